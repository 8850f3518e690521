/* The mathematics of the interactive figures: mixtures of diagonal Gaussians with equal weights.

A mixture is {loc, scale}: lists of N points and of N standard deviations, each a list of D numbers. The names are those
of the package, and so are the values: tests/browser/test_figures.py compares. */
"use strict";

figures.gaussians = (() => {
  const LOG_2PI = Math.log(2 * Math.PI);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const logSumExp = (values) => {
    const top = Math.max(...values);
    return top === -Infinity ? top : top + Math.log(sum(values.map((value) => Math.exp(value - top))));
  };
  const logNormal = (z, loc, scale) =>
    sum(loc.map((mean, j) => -0.5 * ((z[j] - mean) / scale[j]) ** 2 - Math.log(scale[j]) - 0.5 * LOG_2PI));
  const normal = (z, loc, scale) => Math.exp(-0.5 * ((z - loc) / scale) ** 2 - 0.5 * LOG_2PI) / scale;

  const logComponents = (q, z) => q.loc.map((loc, n) => logNormal(z, loc, q.scale[n]) - Math.log(q.loc.length));
  const logProb = (q, z) => logSumExp(logComponents(q, z));
  const responsibilities = (q, z) => {
    const logs = logComponents(q, z);
    const total = logSumExp(logs);
    return logs.map((log) => Math.exp(log - total));
  };

  const linspace = (low, high, num) => Array.from({ length: num }, (_, i) => low + ((high - low) * i) / (num - 1));

  /* Nodes of one coordinate that cover all components, finer than the narrowest: there the trapezoidal rule is exact
  to many digits. */
  const nodes = (q, j) => {
    const low = Math.min(...q.loc.map((loc, n) => loc[j] - 7 * q.scale[n][j]));
    const high = Math.max(...q.loc.map((loc, n) => loc[j] + 7 * q.scale[n][j]));
    const finest = Math.min(...q.scale.map((scale) => scale[j]));
    return linspace(low, high, Math.ceil((high - low) / (0.6 * finest)) + 1);
  };
  const marginal = (q, j, xs) => xs.map((x) => sum(q.loc.map((loc, n) => normal(x, loc[j], q.scale[n][j]))) / q.loc.length);

  /* Density on the grid of two lists of nodes, x fastest; a diagonal Gaussian is a product, so few exponentials. */
  const plane = (q, xs, ys) => {
    const values = new Float64Array(xs.length * ys.length);
    q.loc.forEach((loc, n) => {
      const row = xs.map((x) => normal(x, loc[0], q.scale[n][0]) / q.loc.length);
      ys.forEach((y, i) => {
        const factor = normal(y, loc[1], q.scale[n][1]);
        for (let k = 0; k < row.length; k++) {
          values[i * row.length + k] += factor * row[k];
        }
      });
    });
    return values;
  };

  const spacing = (xs) => xs[1] - xs[0];
  const entropySum = (values) => {
    let total = 0;
    for (const value of values) {
      total -= value > 0 ? value * Math.log(value) : 0;
    }
    return total;
  };
  const marginalEntropy = (q, j) => {
    const xs = nodes(q, j);
    return entropySum(marginal(q, j, xs)) * spacing(xs);
  };
  /* Differential entropy in one or two dimensions, in nats. */
  const entropy = (q) => {
    if (q.loc[0].length === 1) {
      return marginalEntropy(q, 0);
    }
    const [xs, ys] = [nodes(q, 0), nodes(q, 1)];
    return entropySum(plane(q, xs, ys)) * spacing(xs) * spacing(ys);
  };
  /* I(n; z): the entropy of the mixture less the mean entropy of its components. */
  const mutualInformation = (q) =>
    entropy(q) - sum(q.scale.map((scale) => sum(scale.map((s) => Math.log(s) + 0.5 * (1 + LOG_2PI))))) / q.loc.length;
  const totalCorrelation = (q) => marginalEntropy(q, 0) + marginalEntropy(q, 1) - entropy(q);

  /* Local maxima of a function on the line, by its values at nodes. */
  const peaks = (xs, values) => xs.filter((_, i) => values[i] > (values[i - 1] ?? 0) && values[i] >= (values[i + 1] ?? 0));
  const lineModes = (q, j) => {
    const xs = nodes(q, j);
    const fine = linspace(xs[0], xs.at(-1), 8 * xs.length);
    return peaks(fine, marginal(q, j, fine));
  };
  /* Modes in the plane: climb from every mean, and from every highest node of a grid, as vaebook.modes.find_modes does. */
  const planeModes = (q) => {
    const [xs, ys] = [nodes(q, 0), nodes(q, 1)];
    const values = plane(q, xs, ys);
    const starts = [...q.loc];
    for (let i = 1; i < ys.length - 1; i++) {
      for (let k = 1; k < xs.length - 1; k++) {
        const [here, w] = [i * xs.length + k, xs.length];
        const around = [here - 1, here + 1, here - w, here + w, here - w - 1, here - w + 1, here + w - 1, here + w + 1];
        if (values[here] > 0 && around.every((place) => values[place] <= values[here])) {
          starts.push([xs[k], ys[i]]);
        }
      }
    }
    const unit = Math.min(...q.scale.flat());
    const found = [];
    for (const start of starts) {
      const mode = climb(q, start, 1e-6 * unit);
      if (mode && isMaximum(q, mode) && found.every((other) => Math.hypot(other[0] - mode[0], other[1] - mode[1]) > 0.01 * unit)) {
        found.push(mode);
      }
    }
    return found;
  };
  const climb = (q, start, tolerance) => {
    let z = start;
    for (let step = 0; step < 3000; step++) {
      const r = responsibilities(q, z);
      const next = z.map((_, j) => {
        const precision = r.map((weight, n) => weight / q.scale[n][j] ** 2);
        return sum(precision.map((p, n) => p * q.loc[n][j])) / sum(precision);
      });
      const moved = Math.hypot(next[0] - z[0], next[1] - z[1]);
      z = next;
      if (moved < tolerance) {
        return z;
      }
    }
    return null;
  };
  const isMaximum = (q, z) => {
    const h = 0.05 * Math.min(...q.scale.flat());
    const here = logProb(q, z);
    return linspace(0, Math.PI, 9).every((angle) => {
      const [dx, dy] = [h * Math.cos(angle), h * Math.sin(angle)];
      return logProb(q, [z[0] + dx, z[1] + dy]) + logProb(q, [z[0] - dx, z[1] - dy]) < 2 * here;
    });
  };

  /* Standard normal draws that repeat: the generator is mulberry32, the transformation Box and Muller's. */
  const draws = (seed) => {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    return { uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()) };
  };

  return {
    sum, logSumExp, logNormal, normal, logProb, responsibilities, linspace, nodes, marginal, plane, spacing,
    entropy, mutualInformation, totalCorrelation, peaks, lineModes, planeModes, draws,
  };
})();
