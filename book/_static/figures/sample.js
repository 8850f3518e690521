/* N codes are a sample: plug-in and leave-one-out close on the mismatch of the population as N grows. */
"use strict";

figures.define("sample", (figure, data) => {
  const G = figures.gaussians;
  const MOST = 9; // log2 of the largest N
  const SIZES = Array.from({ length: 4 * MOST - 3 }, (_, i) => Math.round(2 ** (1 + i / 4)));
  const SPAN = 7.5;
  let seed = data.seed;
  figure.tile("num", "codes, N");
  figure.tile("plug_in", "plug-in: KL(q_agg ‖ p), nats", "c0");
  figure.tile("population", "the population's mismatch");
  figure.tile("left_out", "leave-one-out", "c1");

  const num = figure.slider("num", { label: "codes, N", min: 1, max: MOST, step: 0.25, value: 4, show: (v) => String(Math.round(2 ** v)) });
  const width = figure.slider("width", { label: "width of the Gaussians", min: 0.1, max: 0.9, step: 0.01, value: 0.25 });
  const source = figure.choice("source", { label: "Population", options: { groups: "two groups", prior: "equal to the prior" }, value: "groups" });
  figure.button("Draw another sample", () => (seed += 1));

  const picture = figure.panel({ name: "tall", height: 300, x: [-4, 4], y: [0, 1], title: "N codes, and where they come from", xlabel: "z", label: "Density of the mixture at hand, of the population and of the prior" });
  const course = figure.panel({ name: "tall", height: 300, x: [1, MOST], y: [-1, 1.6], margin: { left: 34 }, title: "Mismatch, nats", xlabel: "N", label: "Plug-in and leave-one-out against the number of codes" });
  figure.board.classList.add("even");

  /* Means of the codes: from two groups, or such that the population is the prior N(0, 1). */
  const codes = (start) => {
    const { uniform, normal } = G.draws(start);
    return Array.from({ length: 2 ** MOST }, () => {
      const [sign, noise] = [uniform() < 0.5 ? -1 : 1, normal()];
      return source.value === "prior" ? Math.sqrt(1 - width.value ** 2) * noise : data.centre * sign + data.spread * noise;
    });
  };
  const population = () => {
    if (source.value === "prior") {
      return { loc: [[0]], scale: [[1]] };
    }
    const scale = Math.hypot(data.spread, width.value);
    return { loc: [[-data.centre], [data.centre]], scale: [[scale], [scale]] };
  };
  const mixture = (loc) => ({ loc: loc.map((mean) => [mean]), scale: loc.map(() => [width.value]) });
  const meanLogPrior = (q) =>
    -0.5 * Math.log(2 * Math.PI) - 0.5 * (G.sum(q.loc.map(([mean], n) => mean ** 2 + q.scale[n][0] ** 2)) / q.loc.length);
  const mismatch = (q) => -G.entropy(q) - meanLogPrior(q);

  /* Both estimates at all sizes, from the densities of the codes at common nodes, added one by one. */
  const estimates = (means) => {
    const step = 0.5 * width.value;
    const xs = G.linspace(-SPAN, SPAN, Math.ceil((2 * SPAN) / step) + 1);
    const gap = G.spacing(xs);
    const total = new Float64Array(xs.length);
    const own = means.map((mean) => {
      const first = Math.max(0, Math.ceil((mean - 7 * width.value + SPAN) / gap));
      const last = Math.min(xs.length - 1, Math.floor((mean + 7 * width.value + SPAN) / gap));
      return { first, values: xs.slice(first, last + 1).map((x) => G.normal(x, mean, width.value)) };
    });
    const plugIn = [];
    const leftOut = [];
    let added = 0;
    for (const size of SIZES) {
      for (; added < size; added++) {
        own[added].values.forEach((value, i) => (total[own[added].first + i] += value));
      }
      const logPrior = meanLogPrior(mixture(means.slice(0, size)));
      const negative = G.sum(Array.from(total, (value) => (value > 0 ? (value / size) * Math.log(value / size) : 0)));
      plugIn.push(negative * gap - logPrior);
      let log = 0;
      for (let n = 0; n < size; n++) {
        own[n].values.forEach((value, i) => {
          const others = total[own[n].first + i] - value;
          // Where nearly all is the code's own, the difference has no digits: add up the others' logarithms.
          const logOthers = others > 1e-6 * value ? Math.log(others) : logOthersAt(means, size, n, xs[own[n].first + i]);
          log += value * (logOthers - Math.log(size - 1));
        });
      }
      leftOut.push((log * gap) / size - logPrior);
    }
    return { plugIn, leftOut };
  };
  const logOthersAt = (means, size, n, x) =>
    G.logSumExp(means.slice(0, size).filter((_, m) => m !== n).map((mean) => G.logNormal([x], [mean], [width.value])));

  const others = { key: "" }; // four further samples, drawn faintly: they change with the settings only
  const further = () => {
    const key = `${source.value} ${width.value}`;
    if (others.key !== key) {
      Object.assign(others, { key, paths: [1, 2, 3, 4].map((k) => estimates(codes(data.seed + 1000 * k))) });
    }
    return others.paths;
  };

  figure.redraw = () => {
    const { colors } = figure;
    const size = Math.round(2 ** num.value);
    const means = codes(seed);
    const q = mixture(means.slice(0, size));
    const xs = G.linspace(-4, 4, 401);
    const [here, all] = [G.marginal(q, 0, xs), G.marginal(population(), 0, xs)];
    picture.y = [-0.05, 1.15 * Math.max(0.75, ...here)].map((v) => v);
    picture.axes([-4, -2, 0, 2, 4]);
    const prior = xs.map((x) => G.normal(x, 0, 1));
    picture.line(xs, prior, { color: colors.c7, width: 1.5, fill: 0.12 });
    picture.line(xs, here, { color: colors.c0, width: 2.5 });
    picture.line(xs, all, { dash: [6, 4] });
    q.loc.forEach(([mean]) => picture.segment(picture.toX(mean), picture.toY(0), picture.toX(mean), picture.toY(0) + 7, { color: colors.c0, width: 1 }));
    const [x0, y0] = [picture.x[0] + 0.1, picture.y[1]];
    [["q_agg of these N", colors.c0], ["population (dashed)", colors.ink], ["prior", colors.c7]].forEach(([name, color], i) =>
      picture.label(name, x0, y0, { dy: 16 + 17 * i, color, weight: 600 })
    );

    const truth = mismatch(population());
    const logs = SIZES.map((n) => Math.log2(n));
    course.axes([1, 3, 5, 7, 9].map((k) => [k, String(2 ** k)]), [-1, 0, 1]);
    for (const path of further()) {
      course.line(logs, path.plugIn, { color: colors.c0, width: 1, alpha: 0.4 });
      course.line(logs, path.leftOut, { color: colors.c1, width: 1, alpha: 0.4 });
    }
    const { plugIn, leftOut } = estimates(means);
    course.line(logs, plugIn, { color: colors.c0, width: 2.5 });
    course.line(logs, leftOut, { color: colors.c1, width: 2.5 });
    course.line([1, MOST], [truth, truth], { dash: [6, 4], width: 1.5 });
    const at = SIZES.indexOf(size);
    course.dot(num.value, plugIn[at], { color: colors.c0, radius: 5 });
    course.dot(num.value, Math.max(course.y[0], leftOut[at]), { color: colors.c1, radius: 5 });
    course.label("plug-in", MOST, truth, { align: "right", dy: -34, color: colors.c0, weight: 600 });
    course.label("leave-one-out", MOST, truth, { align: "right", dy: 44, color: colors.c1, weight: 600 });
    course.label("population", 1, truth, { dx: 4, dy: 15, weight: 600 });

    figure.show("num", size);
    figure.show("plug_in", plugIn[at]);
    figure.show("population", truth);
    figure.show("left_out", leftOut[at]);
    figure.state = { q, population: population() };
  };
});
