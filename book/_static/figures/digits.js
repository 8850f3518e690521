/* The latent plane of a trained VAE: what the decoder makes of a point, and whose code the point could be. */
"use strict";

figures.define("digits", (figure, data) => {
  const G = figures.gaussians;
  const HALF = 3.6;
  const SIDE = 8;
  const SHOWN = 5; // images of the data that are most likely to be meant
  const [loc, scale] = [figures.unpack(data.loc), figures.unpack(data.scale)];
  const num = loc.length / 2;
  const bits = figures.unpack(data.images, Uint8Array); // one bit a pixel, the first in the highest
  const image = (n) => Array.from({ length: SIDE ** 2 }, (_, i) => (bits[SIDE * n + (i >> 3)] >> (7 - (i & 7))) & 1);
  const layers = Object.fromEntries(Object.entries(data.decoder).map(([name, text]) => [name, figures.halves(text)]));

  const pair = (values, n) => [values[2 * n], values[2 * n + 1]];
  const q = { loc: Array.from({ length: num }, (_, n) => pair(loc, n)), scale: Array.from({ length: num }, (_, n) => pair(scale, n)) };
  const logistic = (value) => 1 / (1 + Math.exp(-value));
  /* The decoder: one hidden layer with SiLU units, then the probability of ink in every pixel. */
  const decode = (z) => {
    const width = layers.hidden_bias.length;
    const hidden = Array.from(layers.hidden_bias, (bias, k) => {
      const value = bias + layers.hidden[2 * k] * z[0] + layers.hidden[2 * k + 1] * z[1];
      return value * logistic(value);
    });
    return Array.from(layers.logits_bias, (bias, i) => logistic(hidden.reduce((total, value, k) => total + layers.logits[i * width + k] * value, bias)));
  };

  figure.tile("log_q_agg", "log q_agg(z)", "c0");
  figure.tile("log_prior", "log p(z), the prior");
  figure.tile("share", "images that share z, exp(H(r))", "c1");

  const z1 = figure.slider("z1", { label: "z1", min: -HALF, max: HALF, step: 0.01, value: 0.6 });
  const z2 = figure.slider("z2", { label: "z2", min: -HALF, max: HALF, step: 0.01, value: 0.3 });
  const { uniform, normal } = G.draws(data.seed);
  const put = (z) => ([z1.value, z2.value] = z);
  figure.button("Draw z from the prior", () => put([normal(), normal()]));
  figure.button("Draw z from q_agg", () => {
    const n = Math.floor(uniform() * num);
    put(q.loc[n].map((mean, j) => mean + q.scale[n][j] * normal()));
  });

  const margin = { left: 14, right: 12 };
  const plane = figure.panel({ name: "wide free", height: figures.square, x: [-HALF, HALF], y: [-HALF, HALF], margin, drag: (x, y) => put([x, y]), title: "q_agg(z), and the prior (rings)", label: "The latent plane; drag to move the point z" });
  const pictures = figure.panel({ name: "row", height: 165, x: [0, 1], y: [0, 1], margin, label: "The decoder's image, and the average of the data by responsibility" });
  const nearest = figure.panel({ name: "row", height: 150, x: [0, 1], y: [0, 1], margin, title: "Whose code is z?", label: "The images with the largest responsibilities" });

  const xs = G.linspace(-HALF, HALF, 121);
  const density = G.plane(q, xs, xs);
  const top = density.reduce((most, value) => Math.max(most, value), 0);

  const drawPlane = (z) => {
    plane.shades(Array.from(density, (value) => 0.9 * (value / top) ** 0.7), xs.length, figure.colors.c0);
    plane.axes([-3, -2, -1, 0, 1, 2, 3]);
    [1, 2, 3].forEach((radius) => plane.ellipse(0, 0, radius, radius, { color: figure.colors.muted, width: 1, dash: [4, 4] }));
    data.middles.forEach(([x, y], digit) => plane.label(String(digit), x, y, { align: "center", dy: 5, weight: 700 }));
    plane.dot(...z, { color: figure.colors.c1, radius: 8, hollow: true, width: 3 });
  };
  const drawImages = (z, r) => {
    const size = Math.min(110, (pictures.width - 40) / 2);
    const average = new Array(SIDE ** 2).fill(0);
    r.forEach((weight, n) => weight > 1e-6 && image(n).forEach((pixel, i) => (average[i] += weight * pixel)));
    [["decoder", decode(z)], ["average by r(z)", average]].forEach(([name, values], k) => {
      const left = 14 + k * (size + 16);
      pictures.image(values, SIDE, left, 24, size);
      pictures.text(name, left, 16, { weight: 600 });
    });
    const order = r.map((_, n) => n).sort((a, b) => r[b] - r[a]).slice(0, SHOWN);
    const small = Math.min(60, (nearest.width - 30) / SHOWN - 6);
    nearest.text(nearest.title, 14, 14, { weight: 600 });
    order.forEach((n, k) => {
      nearest.image(image(n), SIDE, 14 + k * (small + 6), 26, small);
      nearest.text(figures.format(r[n], 2), 14 + k * (small + 6), 26 + small + 16, { color: figure.colors.muted });
    });
    return { average, order };
  };

  figure.redraw = () => {
    const z = [z1.value, z2.value];
    const logs = q.loc.map((mean, n) => G.logNormal(z, mean, q.scale[n]));
    const total = G.logSumExp(logs);
    const r = logs.map((log) => Math.exp(log - total));
    drawPlane(z);
    const { average, order } = drawImages(z, r);
    figure.show("log_q_agg", total - Math.log(num));
    figure.show("log_prior", G.logNormal(z, [0, 0], [1, 1]));
    figure.show("share", Math.exp(-G.sum(r.map((weight) => (weight > 0 ? weight * Math.log(weight) : 0)))));
    figure.state = { z, decoded: decode(z), average, order, responsibilities: order.map((n) => r[n]) };
  };
});
