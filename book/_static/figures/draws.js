/* p(x) as the average of the Gaussians of K draws from the prior, and what that makes of log p(x). */
"use strict";

figures.define("draws", (figure, data) => {
  const G = figures.gaussians;
  const MOST = 10; // log2 of the largest K
  const decode = (z) => z + Math.sin(3 * z);
  const nodes = G.linspace(-7, 7, 2001); // of z, for the integrals
  const gap = G.spacing(nodes);
  let seed = data.seed;
  figure.board.classList.add("even");
  figure.tile("num", "draws, K");
  figure.tile("estimate", "log of the average at x, nats", "c0");
  figure.tile("exact", "log p(x)");
  figure.tile("cost", "draws that x asks for, about exp(KL)", "c1");

  const num = figure.slider("num", { label: "draws, K", min: 0, max: MOST, step: 1, value: 2, show: (v) => String(2 ** v) });
  const noise = figure.slider("noise", { label: "the decoder's noise, s", min: -1.3, max: 0, step: 0.02, value: -0.52, show: (v) => figures.format(10 ** v, 2) });
  const point = figure.slider("x", { label: "point x", min: -4, max: 4, step: 0.01, value: 1.8 });
  figure.button("Draw others", () => (seed += 1));

  const drag = (x) => (point.value = x);
  const picture = figure.panel({ name: "tall", height: 300, x: [-4, 4], y: [0, 1], drag, xlabel: "x", title: "Density of x", label: "The average of K Gaussians and the exact density; drag to move the point x" });
  const course = figure.panel({ name: "tall", height: 300, x: [0, MOST], y: [-8, 1], margin: { left: 34 }, xlabel: "K", title: "log of the average at x", label: "Log of the average against the number of draws" });

  const drawn = (start) => {
    const { normal } = G.draws(start);
    return Array.from({ length: 2 ** MOST }, () => decode(normal()));
  };
  const density = (x, scale) => G.sum(nodes.map((z) => G.normal(z, 0, 1) * G.normal(x, decode(z), scale))) * gap;
  /* KL(p(z|x) ‖ p(z)), by the same nodes. */
  const divergence = (x, scale) => {
    const logs = nodes.map((z) => G.logNormal([x], [decode(z)], [scale]));
    const weights = nodes.map((z, i) => Math.log(G.normal(z, 0, 1)) + logs[i]);
    const total = G.logSumExp(weights);
    return G.sum(weights.map((weight, i) => Math.exp(weight - total) * (logs[i] - (total + Math.log(gap)))));
  };
  const xs = G.linspace(-4, 4, 321);
  const exact = { key: NaN };
  const curve = (scale) => {
    if (exact.key !== scale) {
      Object.assign(exact, { key: scale, values: xs.map((x) => density(x, scale)) });
    }
    return exact.values;
  };
  /* log of the running average at 1, 2, 4, … draws. */
  const running = (means, x, scale) => {
    const path = [];
    let total = 0;
    means.forEach((mean, k) => {
      total += G.normal(x, mean, scale);
      if (Number.isInteger(Math.log2(k + 1))) {
        path.push(Math.log(total / (k + 1)));
      }
    });
    return path;
  };

  figure.redraw = () => {
    const { colors } = figure;
    const [K, x, scale] = [2 ** num.value, point.value, 10 ** noise.value];
    const all = drawn(seed);
    const means = all.slice(0, K);
    const truth = curve(scale);
    const average = xs.map((at) => G.sum(means.map((mean) => G.normal(at, mean, scale))) / K);
    picture.y = [-0.05, 1.15].map((v) => v * Math.max(...average, ...truth));
    picture.axes([-4, -2, 0, 2, 4]);
    if (K <= 16) {
      means.forEach((mean, k) => picture.line(xs, xs.map((at) => G.normal(at, mean, scale) / K), { color: colors[`c${k % 8}`], width: 1, fill: 0.15 }));
    }
    picture.line(xs, average, { color: colors.c0, width: 2.5 });
    picture.line(xs, truth, { dash: [6, 4] });
    means.forEach((mean) => picture.segment(picture.toX(mean), picture.toY(0), picture.toX(mean), picture.toY(0) + 7, { color: colors.c0, width: 1 }));
    const p = density(x, scale);
    picture.segment(picture.toX(x), picture.toY(0), picture.toX(x), picture.toY(p), { width: 1.5, dash: [4, 3] });
    picture.dot(x, p, { radius: 6, hollow: true });
    picture.label("x", x, p, { dx: 9, dy: -7, weight: 600 });
    picture.label("p(x), exact (dashed)", -4, picture.y[1], { dx: 4, dy: 16, weight: 600 });
    picture.label(K === 1 ? "one Gaussian" : `average of ${K} Gaussians`, -4, picture.y[1], { dx: 4, dy: 33, color: colors.c0, weight: 600 });

    const ks = Array.from({ length: MOST + 1 }, (_, k) => k);
    course.y = [Math.log(p) - 6, Math.log(p) + 2];
    const low = (path) => path.map((value) => Math.max(value, course.y[0] - 1));
    course.axes([0, 2, 4, 6, 8, 10].map((k) => [k, String(2 ** k)]), [Math.ceil(course.y[0] + 0.5), Math.round(Math.log(p))]);
    for (let k = 1; k <= 6; k++) {
      course.line(ks, low(running(drawn(seed + 1000 * k), x, scale)), { color: colors.c0, width: 1, alpha: 0.4 });
    }
    const path = running(all, x, scale);
    course.line([0, MOST], [Math.log(p), Math.log(p)], { dash: [6, 4], width: 1.5 });
    course.line(ks, low(path), { color: colors.c0, width: 2.5 });
    course.dot(num.value, Math.max(path[num.value], course.y[0]), { color: colors.c0, radius: 5 });
    const kl = divergence(x, scale);
    const mark = Math.min(MOST, kl / Math.log(2));
    course.segment(course.toX(mark), course.margin.top, course.toX(mark), course.toY(course.y[0]), { color: colors.c1, width: 1.5, dash: [2, 3] });
    course.label("exp(KL)", mark, course.y[0], { dx: 5, dy: -8, color: colors.c1, weight: 600 });
    course.label("log p(x)", MOST, Math.log(p), { align: "right", dy: -8, weight: 600 });

    figure.show("num", K);
    figure.show("estimate", path[num.value]);
    figure.show("exact", Math.log(p));
    figure.show("cost", Math.exp(kl));
    figure.state = { means, x, scale };
  };
});
