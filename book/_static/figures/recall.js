/* Recall: noise an image, and let attention over the data clean it. */
"use strict";

figures.define("recall", (figure, data) => {
  const G = figures.gaussians;
  const PIXELS = 64;
  const SHOWN = 6;
  const bytes = figures.unpack(data.images, Uint8Array); // two bits a pixel, the first in the highest
  const levels = Float64Array.from({ length: 4 * bytes.length }, (_, i) => ((bytes[i >> 2] >> (6 - 2 * (i & 3))) & 3) / 3);
  const num = levels.length / PIXELS;
  const image = (n) => levels.subarray(PIXELS * n, PIXELS * (n + 1));
  let seed = data.seed;

  figure.board.classList.add("one");
  figure.tile("largest", "largest responsibility", "c0");
  figure.tile("share", "images averaged, exp(H(r))", "c1");
  figure.tile("before", "error of the noisy image");
  figure.tile("after", "error of the average");

  const which = figure.slider("which", { label: "image", min: 0, max: num - 1, step: 1, value: data.first });
  const noise = figure.slider("noise", { label: "noise, s", min: -1.3, max: 0.7, step: 0.02, value: -0.3, show: (v) => figures.format(10 ** v, 2) });
  const own = figure.choice("own", { label: "The image itself", options: { in: "is among the data", out: "is left out" }, value: "in" });
  figure.button("Other noise", () => (seed += 1));
  const large = (width) => Math.min(150, (width - 56) / 3);
  const small = (width) => Math.min(70, (width - 28) / SHOWN - 8);
  const strip = figure.panel({ name: "tall", height: (width) => 92 + large(width) + small(width), x: [0, 1], y: [0, 1], label: "An image, the image with noise, the average of the data by responsibility, and the data that weigh most" });

  const distance = (a, b) => a.reduce((total, value, i) => total + (value - b[i]) ** 2, 0);
  const error = (a, b) => Math.sqrt(distance(a, b) / PIXELS);

  figure.redraw = () => {
    const s = 10 ** noise.value;
    const clean = image(which.value);
    const { normal } = G.draws(seed);
    const noisy = Array.from(clean, (pixel) => pixel + s * normal());
    const logs = Array.from({ length: num }, (_, n) =>
      n === which.value && own.value === "out" ? -Infinity : -distance(noisy, image(n)) / (2 * s * s)
    );
    const total = G.logSumExp(logs);
    const r = logs.map((log) => Math.exp(log - total));
    const average = new Array(PIXELS).fill(0);
    r.forEach((weight, n) => weight > 1e-9 && image(n).forEach((pixel, i) => (average[i] += weight * pixel)));
    const order = r.map((_, n) => n).sort((a, b) => r[b] - r[a]).slice(0, SHOWN);

    const [size, little] = [large(strip.width), small(strip.width)];
    [["the image", clean], [`with noise, s = ${figures.format(s, 2)}`, noisy], ["recalled: the average", average]].forEach(([name, values], k) => {
      const left = 14 + k * (size + 14);
      strip.text(strip.width < 420 ? name.split(/[,:]/)[0] : name, left, 16, { weight: 600 });
      strip.image(Array.from(values, (value) => Math.min(1, Math.max(0, value))), 8, left, 24, size);
    });
    const below = 24 + size + 34;
    strip.text("largest responsibilities", 14, below - 8, { weight: 600 });
    order.forEach((n, k) => {
      strip.image(image(n), 8, 14 + k * (little + 8), below, little);
      strip.text(figures.format(r[n], 2), 14 + k * (little + 8), below + little + 16, { color: n === which.value ? figure.colors.c1 : figure.colors.muted, weight: n === which.value ? 700 : 400 });
    });
    figure.show("largest", r[order[0]]);
    figure.show("share", Math.exp(-G.sum(r.map((weight) => (weight > 0 ? weight * Math.log(weight) : 0)))));
    figure.show("before", error(noisy, clean));
    figure.show("after", error(average, clean));
    figure.state = { noisy, average, order };
  };
});
