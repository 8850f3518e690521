/* N Gaussians, one per datum, on the line or in the plane: what their sum looks like as they grow wider. */
"use strict";

figures.define("mixture", (figure, data) => {
  const G = figures.gaussians;
  const HALF = 4;
  figure.tile("components", "Gaussians, N");
  figure.tile("codes", "can be told apart, exp(I)", "c1");
  figure.tile("modes", "peaks (modes)", "c0");
  figure.tile("information", "I(n; z), nats");

  const place = figure.choice("place", { label: "Codes", options: { line: "on the line", plane: "in the plane" }, value: "line" });
  const width = figure.slider("width", { label: "width of the Gaussians", min: -1.1, max: 0.4, step: 0.01, value: -0.6, show: (v) => figures.format(10 ** v, 2) });
  const num = figure.slider("num", { label: "data, N", min: 1, max: data.loc.length, step: 1, value: 5 });
  const z1 = figure.slider("z1", { label: "point z", min: -HALF, max: HALF, step: 0.01, value: 0.2 });
  const z2 = figure.slider("z2", { label: "its second coordinate", min: -HALF, max: HALF, step: 0.01, value: 0.4 });

  const drag = (x, y) => {
    z1.value = x;
    if (place.value === "plane") {
      z2.value = y;
    }
  };
  const picture = figure.panel({ name: "wide", height: 330, x: [-HALF, HALF], y: [0, 1], drag, label: "The Gaussians and their average; drag to move the point z" });
  const bars = figure.panel({ name: "small", height: 160, x: [0, 1], y: [0, 1], margin: { left: 24 }, title: "Whose is z? r(z)", label: "Responsibility of every datum for the point z" });
  const course = figure.panel({ name: "small", height: 160, x: [-1.1, 0.4], y: [0, 1], margin: { left: 34 }, xlabel: "width", title: "I against log N", label: "Information as a function of the width" });

  const mixture = (logWidth) => {
    const dims = place.value === "plane" ? [0, 1] : [0];
    const rows = data.loc.slice(0, num.value);
    return {
      loc: rows.map((loc) => dims.map((j) => loc[j])),
      scale: rows.map((_, n) => dims.map((j) => 10 ** logWidth * data.ratio[n][j])),
    };
  };
  const color = (n) => figure.colors[`c${[0, 1, 2, 3, 4, 5, 6, 7, 9][n]}`];
  const widths = G.linspace(-1.1, 0.4, 31);
  let known = {}; // the curve of I for this N and this space
  const curve = () => {
    const key = `${place.value} ${num.value}`;
    if (known.key !== key) {
      known = { key, values: widths.map((w) => G.mutualInformation(mixture(w))) };
    }
    return known.values;
  };

  /* Name the point, on the side where there is room. */
  const label = (x, y, q, z) => {
    const side = x > 0 ? { align: "right", dx: -10 } : { dx: 10 };
    picture.label(`log q_agg(z) = ${figures.format(G.logProb(q, z), 3)}`, x, y, { ...side, dy: -8, weight: 600 });
  };
  const drawLine = (q, z) => {
    const xs = G.linspace(-HALF, HALF, 481);
    const total = G.marginal(q, 0, xs);
    picture.y = [-0.06 * Math.max(...total), 1.12 * Math.max(...total)];
    picture.title = "q_agg(z), the average of all";
    q.loc.forEach(([loc], n) => {
      const part = xs.map((x) => G.normal(x, loc, q.scale[n][0]) / num.value);
      picture.line(xs, part, { color: color(n), width: 1.5, fill: 0.25 });
    });
    picture.line(xs, total, { width: 2.5 });
    const modes = G.lineModes(q, 0);
    modes.forEach((x) => picture.dot(x, Math.exp(G.logProb(q, [x])), { color: figure.colors.c0, radius: 4.5 }));
    q.loc.forEach(([loc], n) => picture.cross(loc, 0.5 * picture.y[0], { color: color(n), size: 3, width: 2 }));
    const [left, top] = [picture.toX(z[0]), picture.toY(Math.exp(G.logProb(q, z)))];
    picture.segment(left, picture.toY(0), left, top, { width: 1.5, dash: [4, 3] });
    picture.dot(z[0], Math.exp(G.logProb(q, z)), { radius: 6, hollow: true });
    label(z[0], Math.exp(G.logProb(q, z)), q, z);
    return modes.length;
  };

  const drawPlane = (q, z) => {
    picture.y = [-HALF, HALF].map((v) => (v * picture.span[1]) / picture.span[0]);
    picture.title = "q_agg(z), the average of all";
    const [xs, ys] = [G.linspace(...picture.x, 121), G.linspace(...picture.y, 101)];
    const values = G.plane(q, xs, ys);
    const top = Math.max(...values);
    picture.shades(Array.from(values, (value) => 0.85 * (value / top) ** 0.8), xs.length, figure.colors.c7);
    q.loc.forEach((loc, n) => picture.ellipse(...loc, ...q.scale[n], { color: color(n), width: 2, fill: 0.08 }));
    const modes = G.planeModes(q);
    modes.forEach((mode) => picture.dot(...mode, { color: figure.colors.c0, radius: 4.5 }));
    picture.dot(...z, { radius: 6, hollow: true });
    label(...z, q, z);
    return modes.length;
  };

  const drawBars = (r) => {
    bars.y = [r.length + 0.2, -0.2];
    bars.axes([0, 0.5, 1]);
    r.forEach((value, n) => {
      bars.bar(0, value, n + 0.12, n + 0.88, color(n));
      bars.text(String(n + 1), 16, bars.toY(n + 0.5) + 4, { align: "right", color: figure.colors.muted });
    });
    const best = r.indexOf(Math.max(...r));
    const right = r[best] > 0.75; // no room beside the bar
    bars.text(figures.format(r[best], 3), bars.toX(r[best]) + (right ? -5 : 5), bars.toY(best + 0.5) + 4, { align: right ? "right" : "left", color: right ? figure.colors.ground : figure.colors.ink, weight: 600 });
  };

  const drawCourse = (information) => {
    const most = Math.log(num.value);
    course.y = [0, Math.max(0.5, 1.25 * most)];
    course.axes([0.1, 0.3, 1].map((w) => [Math.log10(w), String(w)]), [0]);
    course.line([-1.1, 0.4], [most, most], { dash: [5, 4], width: 1.5, color: figure.colors.muted });
    course.label(`log N = ${figures.format(most)}`, 0.4, most, { align: "right", dy: -5, color: figure.colors.muted });
    course.line(widths, curve(), { color: figure.colors.c1 });
    course.dot(width.value, information, { color: figure.colors.c1, radius: 6 });
  };

  figure.redraw = () => {
    const flat = place.value === "plane";
    const [q, z] = [mixture(width.value), flat ? [z1.value, z2.value] : [z1.value]];
    z2.hidden = !flat;
    picture.canvas.classList.toggle("free", flat);
    const modes = flat ? drawPlane(q, z) : drawLine(q, z);
    picture.axes([-4, -2, 0, 2, 4]);
    const [information, r] = [G.mutualInformation(q), G.responsibilities(q, z)];
    drawBars(r);
    drawCourse(information);
    figure.show("components", num.value);
    figure.show("codes", Math.exp(information));
    figure.show("modes", modes);
    figure.show("information", information);
    figure.state = { q, z, responsibilities: r, logProb: G.logProb(q, z) };
  };
});
