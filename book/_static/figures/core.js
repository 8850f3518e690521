/* What the interactive figures share: a stage in place of the static picture, controls, read-outs, panels to draw on.

A figure of the book is <figure class="interactive NAME"> with a static picture and a caption. NAME.js calls
figures.define("NAME", build); the picture then gives way on screen, and stays for paper and for readers without scripts.
Plain scripts rather than modules, because modules do not load from a folder (file://). */
"use strict";

window.figures = (() => {
  const data = {}; // NAME.data.js puts there what it holds
  const live = {}; // figures on this page, by name
  const INK = ["ink", "muted", "grid", "ground", ...Array.from({ length: 10 }, (_, k) => `c${k}`)];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  /* Numbers with four significant digits, as the book prints them; whole ones as they are. */
  const format = (value, digits = 4) => {
    if (!Number.isFinite(value)) {
      return value > 0 ? "∞" : value < 0 ? "−∞" : "–";
    }
    const small = Math.abs(value) < 1e-9 ? 0 : value;
    const text = Number.isInteger(small) ? String(small) : small.toPrecision(digits);
    return (text.includes("e") ? String(Number(text)) : text).replace("-", "−");
  };

  const plain = (value) => String(value).replace("-", "−"); // what is short as it is

  class Figure {
    constructor(element, name) {
      this.element = element;
      this.name = name;
      this.controls = {};
      this.outputs = {};
      this.panels = [];
      this.redraw = () => {};
      this.still = window.matchMedia("(prefers-reduced-motion: reduce)");
      this.board = make("div", { class: "board" });
      this.tiles = make("div", { class: "tiles" });
      this.desk = make("div", { class: "desk" });
      element.prepend(make("div", { class: "stage" }, this.tiles, this.board, this.desk));
      element.classList.add("live");
      new ResizeObserver(() => this.update()).observe(this.board);
      new MutationObserver(() => this.update()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    }

    /* Draw before the next frame, once, however many controls have moved. */
    update() {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = undefined;
        if (!this.board.clientWidth) {
          return; // not on screen: printing
        }
        this.colors = this.readColors();
        this.panels.forEach((panel) => panel.clear());
        this.redraw();
      });
    }

    readColors() {
      const style = getComputedStyle(this.element);
      return Object.fromEntries(INK.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    }

    slider(name, { label, min, max, step, value, show = plain }) {
      const id = `${this.name}-${name}`;
      const input = make("input", { type: "range", id, min, max, step, value });
      const shown = make("output", { for: id });
      const settle = () => {
        shown.textContent = show(Number(input.value));
        input.setAttribute("aria-valuetext", shown.textContent);
      };
      input.addEventListener("input", () => (settle(), this.update()));
      this.desk.append(make("div", { class: "slider" }, make("label", { for: id }, label, " ", shown), input));
      settle();
      this.controls[name] = {
        get value() {
          return Number(input.value);
        },
        set value(to) {
          input.value = to;
          settle();
        },
        get hidden() {
          return input.parentElement.hidden;
        },
        set hidden(to) {
          input.parentElement.hidden = to;
        },
      };
      return this.controls[name];
    }

    /* A few alternatives; `value` is the name of the chosen one. */
    choice(name, { label, options, value }) {
      const group = make("fieldset", { class: "choice" }, make("legend", {}, label));
      for (const [key, text] of Object.entries(options)) {
        const input = make("input", { type: "radio", name: `${this.name}-${name}`, value: key });
        input.checked = key === value;
        input.addEventListener("change", () => this.update());
        group.append(make("label", {}, input, make("span", {}, text)));
      }
      this.desk.append(group);
      this.controls[name] = {
        get value() {
          return group.querySelector("input:checked").value;
        },
      };
      return this.controls[name];
    }

    button(label, act) {
      const button = make("button", { type: "button" }, label);
      button.addEventListener("click", () => (act(), this.update()));
      this.desk.append(button);
      return button;
    }

    /* A number with its name, above the picture; set it with figure.show(name, value). */
    tile(name, label, color = "ink") {
      this.outputs[name] = make("output", { "data-value": name, style: `color: var(--${color})` });
      this.tiles.append(make("div", { class: "tile" }, this.outputs[name], make("span", {}, label)));
    }

    show(name, value) {
      const output = this.outputs[name];
      output.textContent = typeof value === "number" ? format(value) : value;
      output.dataset.number = value;
    }

    panel(options) {
      const panel = new Panel(this, options);
      this.panels.push(panel);
      return panel;
    }
  }

  /* The height at which both axes have the same length. */
  const square = (width, { left, right, top, bottom }) => width - left - right + top + bottom;

  /* A canvas with axes: x and y are [low, high] in the units of what is drawn; height is in pixels, or a function of the
  width and the margin. */
  class Panel {
    constructor(figure, { name, height, x, y, label, title = "", xlabel = "", ylabel = "", margin = {}, drag }) {
      Object.assign(this, { figure, height, x, y, title, xlabel, ylabel });
      this.margin = { left: 14, right: 20, top: 24, bottom: 34, ...margin };
      this.canvas = make("canvas", { role: "img", "aria-label": label, class: name });
      this.pen = this.canvas.getContext("2d");
      figure.board.append(this.canvas);
      if (drag) {
        this.canvas.classList.add("drag");
        const move = (event) => {
          const box = this.canvas.getBoundingClientRect();
          drag(this.fromX(event.clientX - box.left), this.fromY(event.clientY - box.top), event.type === "pointerdown");
          figure.update();
        };
        this.canvas.addEventListener("pointerdown", (event) => {
          this.canvas.setPointerCapture(event.pointerId);
          move(event);
        });
        this.canvas.addEventListener("pointermove", (event) => event.buttons && move(event));
      }
    }

    clear() {
      const ratio = window.devicePixelRatio || 1;
      this.width = this.canvas.clientWidth;
      const height = typeof this.height === "function" ? this.height(this.width, this.margin) : this.height;
      this.canvas.style.height = `${height}px`;
      this.shown = height;
      [this.canvas.width, this.canvas.height] = [Math.round(this.width * ratio), Math.round(height * ratio)];
      this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.pen.font = "13px system-ui, sans-serif";
      this.pen.lineJoin = "round";
    }

    get span() {
      return [this.width - this.margin.left - this.margin.right, this.shown - this.margin.top - this.margin.bottom];
    }
    toX(value) {
      return this.margin.left + ((value - this.x[0]) / (this.x[1] - this.x[0])) * this.span[0];
    }
    toY(value) {
      return this.margin.top + ((this.y[1] - value) / (this.y[1] - this.y[0])) * this.span[1];
    }
    fromX(pixel) {
      return this.x[0] + ((pixel - this.margin.left) / this.span[0]) * (this.x[1] - this.x[0]);
    }
    fromY(pixel) {
      return this.y[1] - ((pixel - this.margin.top) / this.span[1]) * (this.y[1] - this.y[0]);
    }

    /* Title, labels and ticks; ticks are values, or [value, text]. */
    axes(xticks = [], yticks = []) {
      const { pen, margin, figure: { colors } } = this;
      const [width, height] = this.span;
      const [right, bottom] = [margin.left + width, margin.top + height];
      this.text(this.title, margin.left, 14, { weight: 600 });
      this.text(this.xlabel, right, bottom + 30, { align: "right", color: colors.muted });
      this.text(this.ylabel, margin.left, margin.top - 4, { color: colors.muted });
      this.segment(margin.left, bottom, right, bottom, { color: colors.muted, width: 1 });
      for (const [value, text] of xticks.map((tick) => (Array.isArray(tick) ? tick : [tick, plain(tick)]))) {
        this.segment(this.toX(value), bottom, this.toX(value), bottom + 4, { color: colors.muted, width: 1 });
        this.text(text, this.toX(value), bottom + 16, { align: "center", color: colors.muted });
      }
      for (const [value, text] of yticks.map((tick) => (Array.isArray(tick) ? tick : [tick, plain(tick)]))) {
        this.segment(margin.left, this.toY(value), right, this.toY(value), { color: colors.grid, width: 1 });
        this.text(text, margin.left - 6, this.toY(value) + 4, { align: "right", color: colors.muted });
      }
      pen.globalAlpha = 1;
    }

    /* Text at pixels; `halo` keeps it readable over lines. */
    text(text, left, top, { align = "left", color = this.figure.colors.ink, weight = 400, halo = false } = {}) {
      const { pen } = this;
      pen.font = `${weight} 13px system-ui, sans-serif`;
      pen.textAlign = align;
      if (halo) {
        pen.lineWidth = 4;
        pen.strokeStyle = this.figure.colors.ground;
        pen.strokeText(text, left, top);
      }
      pen.fillStyle = color;
      pen.fillText(text, left, top);
    }

    label(text, x, y, { dx = 0, dy = 0, ...style } = {}) {
      this.text(text, this.toX(x) + dx, this.toY(y) + dy, { halo: true, ...style });
    }

    segment(left, top, right, bottom, { color = this.figure.colors.ink, width = 2, dash = [] } = {}) {
      const { pen } = this;
      pen.beginPath();
      pen.moveTo(left, top);
      pen.lineTo(right, bottom);
      this.stroke({ color, width, dash });
    }

    stroke({ color, width, dash = [], alpha = 1 }) {
      const { pen } = this;
      pen.globalAlpha = alpha;
      pen.strokeStyle = color;
      pen.lineWidth = width;
      pen.setLineDash(dash);
      pen.stroke();
      pen.setLineDash([]);
      pen.globalAlpha = 1;
    }

    /* Draw inside the axes only. */
    inside(draw) {
      const { pen, margin } = this;
      pen.save();
      pen.beginPath();
      pen.rect(margin.left, margin.top - 2, ...this.span.map((length) => length + 2));
      pen.clip();
      draw();
      pen.restore();
    }

    line(xs, ys, { color = this.figure.colors.ink, width = 2, dash = [], alpha = 1, fill = 0 } = {}) {
      const { pen } = this;
      this.inside(() => {
        pen.beginPath();
        xs.forEach((x, i) => pen.lineTo(this.toX(x), this.toY(ys[i])));
        this.stroke({ color, width, dash, alpha });
        if (fill) {
          pen.lineTo(this.toX(xs.at(-1)), this.toY(0));
          pen.lineTo(this.toX(xs[0]), this.toY(0));
          pen.globalAlpha = fill;
          pen.fillStyle = color;
          pen.fill();
          pen.globalAlpha = 1;
        }
      });
    }

    dot(x, y, { color = this.figure.colors.ink, radius = 4, hollow = false, width = 2, alpha = 1 } = {}) {
      const { pen } = this;
      pen.beginPath();
      pen.arc(this.toX(x), this.toY(y), radius, 0, 2 * Math.PI);
      if (hollow) {
        this.stroke({ color, width, alpha });
      } else {
        pen.globalAlpha = alpha;
        pen.fillStyle = color;
        pen.fill();
        pen.globalAlpha = 1;
      }
    }

    cross(x, y, { color = this.figure.colors.ink, size = 5, width = 2.5 } = {}) {
      const [left, top] = [this.toX(x), this.toY(y)];
      this.segment(left - size, top - size, left + size, top + size, { color, width });
      this.segment(left - size, top + size, left + size, top - size, { color, width });
    }

    ellipse(x, y, rx, ry, { color, width = 1.5, fill = 0, dash = [] }) {
      const { pen } = this;
      const [wide, high] = [this.toX(rx) - this.toX(0), this.toY(0) - this.toY(ry)];
      this.inside(() => {
        pen.beginPath();
        pen.ellipse(this.toX(x), this.toY(y), wide, high, 0, 0, 2 * Math.PI);
        this.stroke({ color, width, dash });
        pen.globalAlpha = fill;
        pen.fillStyle = color;
        pen.fill();
        pen.globalAlpha = 1;
      });
    }

    bar(x0, x1, y0, y1, color) {
      const { pen } = this;
      const [left, right, top, bottom] = [this.toX(x0), this.toX(x1), this.toY(y1), this.toY(y0)];
      pen.fillStyle = color;
      pen.fillRect(left, top, Math.max(1, right - left), bottom - top);
    }

    /* Shades of one colour: values (rows from low y to high) of `columns` each, in [0, 1], over all of the axes. */
    shades(values, columns, color) {
      const rows = values.length / columns;
      const [red, green, blue] = channels(color);
      const picture = new ImageData(columns, rows);
      values.forEach((value, i) => {
        const place = 4 * ((rows - 1 - Math.floor(i / columns)) * columns + (i % columns));
        picture.data.set([red, green, blue, Math.round(255 * Math.min(1, Math.max(0, value)))], place);
      });
      const sheet = make("canvas", { width: columns, height: rows });
      sheet.getContext("2d").putImageData(picture, 0, 0);
      this.pen.imageSmoothingEnabled = true;
      this.pen.drawImage(sheet, this.margin.left, this.margin.top, ...this.span);
    }

    /* A small grey picture, 0 white to 1 black, always on white, at pixels. */
    image(values, columns, left, top, size) {
      const picture = new ImageData(columns, values.length / columns);
      values.forEach((value, i) => picture.data.set([0, 0, 0, Math.round(255 * value)], 4 * i));
      const sheet = make("canvas", { width: picture.width, height: picture.height });
      sheet.getContext("2d").putImageData(picture, 0, 0);
      this.pen.fillStyle = "#fff";
      this.pen.fillRect(left, top, size, (size * picture.height) / columns);
      this.pen.imageSmoothingEnabled = false;
      this.pen.drawImage(sheet, left, top, size, (size * picture.height) / columns);
      this.pen.lineWidth = 1;
      this.pen.strokeStyle = this.figure.colors.grid;
      this.pen.strokeRect(left, top, size, (size * picture.height) / columns);
    }
  }

  const channels = (color) => [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));

  /* Bring every figure of this name on the page to life. */
  const define = (name, build) => {
    const start = () => {
      for (const element of document.querySelectorAll(`figure.interactive.${name}`)) {
        live[name] = new Figure(element, name);
        build(live[name], data[name]);
        live[name].update();
      }
    };
    document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", start) : start();
  };

  /* Numbers that were packed by book/_tools/figures.py: base64 of little-endian float32, of bytes, or of float16. */
  const unpack = (text, Kind = Float32Array) =>
    new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

  const halves = (text) =>
    Float64Array.from(unpack(text, Uint16Array), (half) => {
      const [sign, exponent, fraction] = [half >> 15 ? -1 : 1, (half >> 10) & 31, half & 1023];
      return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
    });

  return { data, live, define, format, square, unpack, halves };
})();
