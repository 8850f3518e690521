/* A mixture beside the product of its marginals: the same margins, but each coordinate picks its own component. */
"use strict";

figures.define("ghosts", (figure, data) => {
  const G = figures.gaussians;
  const HALF = 2.6;
  const MARGIN = { left: 20, right: 44, top: 66, bottom: 34 };
  const codes = data.loc.map((loc) => [...loc]);
  figure.board.classList.add("even");
  figure.tile("mixture", "peaks of the mixture", "c0");
  figure.tile("product", "peaks of the product", "c1");
  figure.tile("ghost", "of the product's mass is on ghosts");
  figure.tile("correlation", "total correlation, nats");

  const num = figure.slider("num", { label: "codes, N", min: 2, max: codes.length, step: 1, value: 3 });
  const width = figure.slider("width", { label: "width of the Gaussians", min: 0.1, max: 1.5, step: 0.01, value: 0.28 });
  const names = Object.fromEntries(codes.map((_, n) => [n, String(n + 1)]));
  const chosen = figure.choice("code", { label: "Move code", options: names, value: "0" });
  const coordinates = [0, 1].map((j) =>
    figure.slider(`z${j + 1}`, { label: `its z${j + 1}`, min: -HALF, max: HALF, step: 0.01, value: codes[0][j] })
  );
  const choose = (n) => {
    figure.element.querySelectorAll("input[type=radio]").forEach((input, k) => (input.checked = k === n));
    coordinates.forEach((slider, j) => (slider.value = codes[n][j]));
  };
  let moved = "0"; // which code the two sliders stand for
  const drag = (x, y, first) => {
    if (first) {
      const distance = codes.slice(0, num.value).map((code) => Math.hypot(code[0] - x, code[1] - y));
      choose(distance.indexOf(Math.min(...distance)));
      moved = chosen.value;
    }
    coordinates[0].value = x;
    coordinates[1].value = y;
  };
  const shared = { height: figures.square, x: [-HALF, HALF], y: [-HALF, HALF], margin: MARGIN, drag };
  const left = figure.panel({ ...shared, name: "free", title: "mixture", label: "Density of the mixture; drag to move a code" });
  const right = figure.panel({ ...shared, name: "free", title: "product of its marginals", label: "Density of the product of the marginals" });

  /* The marginal densities along the upper and the right edge: the same in both panels. */
  const margins = (panel, xs, marginals) => {
    const { pen, margin } = panel;
    marginals.forEach((values, j) => {
      const top = Math.max(...values);
      pen.beginPath();
      values.forEach((value, i) => {
        const height = (30 * value) / top;
        j ? pen.lineTo(panel.width - margin.right + 6 + height, panel.toY(xs[i])) : pen.lineTo(panel.toX(xs[i]), margin.top - 6 - height);
      });
      panel.stroke({ color: figure.colors.c2, width: 2 });
    });
  };

  figure.redraw = () => {
    if (chosen.value !== moved) {
      moved = Number(chosen.value) < num.value ? chosen.value : "0";
      choose(Number(moved));
    } else if (Number(moved) >= num.value) {
      moved = "0";
      choose(0);
    }
    codes[Number(moved)] = coordinates.map((slider) => slider.value);
    figure.element.querySelectorAll("input[type=radio]").forEach((input, k) => (input.parentElement.hidden = k >= num.value));
    const loc = codes.slice(0, num.value);
    const q = { loc, scale: loc.map((_, n) => data.ratio[n].map((ratio) => width.value * ratio)) };
    const xs = G.linspace(-HALF, HALF, 141);
    const marginals = [0, 1].map((j) => G.marginal(q, j, xs));
    const joint = G.plane(q, xs, xs);
    const product = new Float64Array(joint.length);
    marginals[1].forEach((y, i) => marginals[0].forEach((x, k) => (product[i * xs.length + k] = x * y)));
    for (const [panel, values] of [[left, joint], [right, product]]) {
      const top = values.reduce((most, value) => Math.max(most, value), 0);
      panel.shades(Array.from(values, (value) => 0.9 * (value / top) ** 0.8), xs.length, figure.colors.c0);
      panel.axes([-2, -1, 0, 1, 2]);
      margins(panel, xs, marginals);
    }
    loc.forEach((code, n) => {
      loc.forEach((other, m) => n !== m && right.dot(code[0], other[1], { color: figure.colors.c1, radius: 10, hollow: true }));
    });
    for (const panel of [left, right]) {
      loc.forEach((code, n) => {
        panel.cross(...code, { color: figure.colors.ink, size: 4 });
        panel.label(String(n + 1), ...code, { dx: 8, dy: -6, weight: 600 });
      });
    }
    right.label("○ ghosts", HALF, -HALF, { align: "right", dx: -4, dy: -8, color: figure.colors.c1, weight: 600 });
    const peaks = [0, 1].map((j) => G.lineModes(q, j).length);
    figure.show("mixture", G.planeModes(q).length);
    figure.show("product", peaks[0] * peaks[1]);
    figure.show("ghost", `${figures.format(100 * (1 - 1 / num.value), 2)} %`);
    figure.show("correlation", G.totalCorrelation(q));
    figure.state = { q };
  };
});
