/* The Gaussian mixture of the paper's section 4.3, trained in the browser; no dependencies, no network.
 *
 * The first half is the model, its estimators and Adam, with gradients written by hand.  Node can load it,
 * and tests/test_playground.py compares it with rwslib.  The second half is the page.
 *
 * Notation as in rwslib: K particles, B data, C categories; tables are flat, row by row. */
"use strict";

const Playground = (() => {
  const C = 20, H = 16, BATCH = 100, SPACING = 10, SD = 5, LOGIT_SCALE = 0.5, SUPPORT = 1e-3;
  const LOG_NORMALISER = Math.log(SD * Math.sqrt(2 * Math.PI));
  const NUM_PHI = H + H + C * H + C; // w1 [H], b1 [H], w2 [C, H], b2 [C], in PyTorch's order
  const PROBES = [0, 95, 190];
  const TRUE_LOG_PRIOR = Float64Array.from({ length: C }, (_, c) => Math.log((c + 5) / (C * (C + 9) / 2)));

  // -- random numbers ---------------------------------------------------------------------------------

  /** Doty-Humphrey's small fast counting generator with 32-bit words, and normals by Box and Muller. */
  class Random {
    constructor(seed) {
      this.state = Uint32Array.of(seed, 0x2545f491, 0x9e3779b9, 1);
      this.spare = null;
      for (let i = 0; i < 15; i++) this.uniform();
    }
    uniform() { // on the open interval (0, 1)
      const s = this.state, sum = (s[0] + s[1] + s[3]++) >>> 0;
      s[0] = s[1] ^ (s[1] >>> 9);
      s[1] = s[2] + (s[2] << 3);
      s[2] = ((s[2] << 21) | (s[2] >>> 11)) + sum;
      return (sum + 0.5) / 4294967296;
    }
    normal() {
      if (this.spare !== null) {
        const value = this.spare;
        this.spare = null;
        return value;
      }
      const radius = Math.sqrt(-2 * Math.log(this.uniform())), angle = 2 * Math.PI * this.uniform();
      this.spare = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    }
  }

  // -- model and network ------------------------------------------------------------------------------

  function logSumExp(values) {
    let max = -Infinity, sum = 0;
    for (let i = 0; i < values.length; i++) if (values[i] > max) max = values[i];
    for (let i = 0; i < values.length; i++) sum += Math.exp(values[i] - max);
    return max + Math.log(sum);
  }

  function logSoftmax(logits) {
    const logTotal = logSumExp(logits);
    return logits.map((value) => value - logTotal);
  }

  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const logPriorOf = (theta) => logSoftmax(theta.map((value) => LOGIT_SCALE * value));
  const logLikelihood = (z, x) => -0.5 * ((x - SPACING * z) / SD) ** 2 - LOG_NORMALISER;

  /** log p(z | x) of every category under the given log prior, [C]. */
  const exactPosterior = (logPrior, x) => logSoftmax(logPrior.map((value, z) => value + logLikelihood(z, x)));

  /** The 1-16-C tanh network: hidden units [B, H], q(z | x) and its logarithm [B, C]. */
  function forward(phi, x) {
    const hidden = new Float64Array(x.length * H), logQ = new Float64Array(x.length * C);
    for (let b = 0; b < x.length; b++) {
      const h = b * H, out = b * C;
      for (let i = 0; i < H; i++) hidden[h + i] = Math.tanh(phi[i] * x[b] + phi[H + i]);
      let max = -Infinity, total = 0;
      for (let c = 0, w = 2 * H; c < C; c++) {
        let sum = phi[2 * H + C * H + c];
        for (let i = 0; i < H; i++, w++) sum += phi[w] * hidden[h + i];
        logQ[out + c] = sum;
        if (sum > max) max = sum;
      }
      for (let c = 0; c < C; c++) total += Math.exp(logQ[out + c] - max);
      total = max + Math.log(total);
      for (let c = 0; c < C; c++) logQ[out + c] -= total;
    }
    return { hidden, logQ, probs: logQ.map(Math.exp) };
  }

  /** Adds to `grad` phi's gradient, where `table [B, C]` is the loss's gradient in log q(z | x). */
  function backward(phi, x, { hidden, probs }, table, grad) {
    const dHidden = new Float64Array(H);
    for (let b = 0; b < x.length; b++) {
      const h = b * H, row = b * C;
      let total = 0;
      for (let c = 0; c < C; c++) total += table[row + c];
      dHidden.fill(0);
      for (let c = 0, w = 2 * H; c < C; c++) {
        const dLogit = table[row + c] - total * probs[row + c];
        grad[2 * H + C * H + c] += dLogit;
        for (let i = 0; i < H; i++, w++) {
          grad[w] += dLogit * hidden[h + i];
          dHidden[i] += dLogit * phi[w];
        }
      }
      for (let i = 0; i < H; i++) {
        const d = dHidden[i] * (1 - hidden[h + i] * hidden[h + i]);
        grad[i] += d * x[b];
        grad[H + i] += d;
      }
    }
  }

  /** How many of the first C - 1 ends of the cumulative table [.., C] at `row` lie below u. */
  function pick(cdf, row, u) {
    let z = 0;
    while (z < C - 1 && u > cdf[row + z]) z++;
    return z;
  }

  function cumulative(probs) {
    const cdf = probs.slice();
    for (let i = 0; i < cdf.length; i++) if (i % C) cdf[i] += cdf[i - 1];
    return cdf;
  }

  /** Ancestral samples from the model with this log prior. */
  function sampleModel(logPrior, count, noise) {
    const cdf = cumulative(logPrior.map(Math.exp)), z = new Uint8Array(count), x = new Float64Array(count);
    for (let i = 0; i < count; i++) z[i] = pick(cdf, 0, noise.uniform());
    for (let i = 0; i < count; i++) x[i] = SPACING * z[i] + SD * noise.normal();
    return { z, x };
  }

  // -- estimators: of one datum, from log p(z_k, x) and log q(z_k | x) [K] ---------------------------------
  // Each returns the surrogate loss and its gradients in log p (`p`) and in log q (`q`).

  const negated = (values) => values.map((value) => -value), zeros = (values) => values.map(() => 0);

  function weigh(logP, logQ) {
    const logW = logP.map((value, k) => value - logQ[k]), logTotal = logSumExp(logW);
    return { logW, bound: logTotal - Math.log(logW.length), v: logW.map((value) => Math.exp(value - logTotal)) };
  }

  const estimators = {
    wakeTheta(logP, logQ) {
      const { bound, v } = weigh(logP, logQ);
      return { loss: -bound, p: negated(v), q: zeros(v) };
    },
    wakePhi(logP, logQ, logProposal = logQ) {
      const { v } = weigh(logP, logProposal);
      const loss = -total(v.map((value, k) => value * logQ[k]));
      return { loss, p: zeros(v), q: negated(v) };
    },
    sleepPhi(logP, logQ) { // logP is not used
      const K = logQ.length;
      return { loss: -total(logQ) / K, p: zeros(logQ), q: logQ.map(() => -1 / K) };
    },
    reinforce(logP, logQ) {
      const { bound, v } = weigh(logP, logQ);
      return { loss: -bound * (1 + total(logQ)), p: negated(v), q: v.map((value) => value - bound) };
    },
    vimco(logP, logQ) {
      const { logW, bound, v } = weigh(logP, logQ), K = logW.length;
      const top = logW.indexOf(Math.max(...logW)), sum = total(logW);
      const withoutTop = logSumExp(logW.filter((_, k) => k !== top));
      const signal = logW.map((value, k) => {
        // all but the largest weight leave a sum that cannot cancel
        const others = k === top ? withoutTop : bound + Math.log(K) + Math.log1p(-v[k]);
        return bound - logSumExp([others, (sum - value) / (K - 1)]) + Math.log(K);
      });
      const loss = -bound - total(signal.map((value, k) => value * logQ[k]));
      return { loss, p: negated(v), q: v.map((value, k) => value - signal[k]) };
    },
  };

  function wakeWake(logP, logQ) {
    const theta = estimators.wakeTheta(logP, logQ), phi = estimators.wakePhi(logP, logQ);
    return { loss: theta.loss + phi.loss, p: theta.p, q: phi.q };
  }

  // -- one step -----------------------------------------------------------------------------------------

  /** Loss of a method and its gradients for theta and phi, means over x [B]; random numbers as in rwslib. */
  function lossAndGradients(method, theta, phi, x, K, noise, delta = 0.2) {
    const result = { loss: 0, theta: new Float64Array(C), phi: new Float64Array(NUM_PHI) };
    const logPrior = logPriorOf(theta), tableP = new Float64Array(C);
    const q = forward(phi, x), cdf = cumulative(q.probs), table = new Float64Array(q.logQ.length);

    const draw = () => new Uint8Array(K * x.length).map((_, i) => pick(cdf, (i % x.length) * C, noise.uniform()));

    function add(estimate, data, logQ, z, intoQ) { // particle k of datum b is z[k * B + b]
      const B = data.length, count = z.length / B, logP = Array(count).fill(0), logZ = Array(count).fill(0);
      for (let b = 0; b < B; b++) {
        for (let k = 0; k < count; k++) {
          const c = z[k * B + b];
          logP[k] = logPrior[c] + logLikelihood(c, data[b]);
          logZ[k] = logQ[b * C + c];
        }
        const term = estimate(logP, logZ);
        result.loss += term.loss / B;
        for (let k = 0; k < count; k++) {
          tableP[z[k * B + b]] += term.p[k] / B;
          intoQ[b * C + z[k * B + b]] += term.q[k] / B;
        }
      }
    }

    if (method === "ws") {
      add(estimators.wakeTheta, x, q.logQ, draw(), table);
      const dreams = sampleModel(logPrior, K * x.length, noise);
      const qDreams = forward(phi, dreams.x), dreamTable = new Float64Array(qDreams.logQ.length);
      add(estimators.sleepPhi, dreams.x, qDreams.logQ, dreams.z, dreamTable);
      backward(phi, dreams.x, qDreams, dreamTable, result.phi);
    } else if (method === "dww") {
      add(estimators.wakeTheta, x, q.logQ, draw(), table);
      const z = draw(), uniform = z.map(() => Math.floor(C * noise.uniform()));
      for (let i = 0; i < z.length; i++) if (noise.uniform() < delta) z[i] = uniform[i];
      const mixture = (value) => logSumExp([Math.log1p(-delta) + value, Math.log(delta / C)]);
      add((logP, logQ) => estimators.wakePhi(logP, logQ, logQ.map(mixture)), x, q.logQ, z, table);
    } else {
      const estimate = { ww: wakeWake, reinforce: estimators.reinforce, vimco: estimators.vimco }[method];
      add(estimate, x, q.logQ, draw(), table);
    }
    if (method !== "ws") backward(phi, x, q, table, result.phi);
    const totalP = total(tableP);
    for (let c = 0; c < C; c++) result.theta[c] = LOGIT_SCALE * (tableP[c] - totalP * Math.exp(logPrior[c]));
    return result;
  }

  /** One step of Adam with default betas, in place; `state` is { m, v } and step counts from 1. */
  function adam(params, grads, { m, v }, step, rate) {
    for (let i = 0; i < params.length; i++) {
      m[i] = 0.9 * m[i] + 0.1 * grads[i];
      v[i] = 0.999 * v[i] + 0.001 * grads[i] ** 2;
      const root = Math.sqrt(v[i] / (1 - 0.999 ** step));
      params[i] -= (rate * (m[i] / (1 - 0.9 ** step))) / (root + 1e-8);
    }
  }

  const distance = (logA, logB) => Math.hypot(...logA.map((value, c) => Math.exp(value) - Math.exp(logB[c])));

  /** One training run: parameters, optimiser and random numbers, all from a seed and a start. */
  class Run {
    constructor(seed, start) {
      this.noise = new Random(seed);
      this.theta = Float64Array.from({ length: C }, (_, c) => (start === "far" ? (C - 1 - c) / LOGIT_SCALE : 0));
      // PyTorch's start: uniform within one over the square root of the number of inputs
      this.phi = Float64Array.from({ length: NUM_PHI }, (_, i) =>
        (2 * this.noise.uniform() - 1) / (i < 2 * H ? 1 : Math.sqrt(H)));
      const moments = (n) => ({ m: new Float64Array(n), v: new Float64Array(n) });
      this.moments = { theta: moments(C), phi: moments(NUM_PHI) };
      this.iteration = 0;
    }
    step(method, K, delta, rate) {
      const { x } = sampleModel(TRUE_LOG_PRIOR, BATCH, this.noise);
      const grads = lossAndGradients(method, this.theta, this.phi, x, K, this.noise, delta);
      this.iteration++;
      for (const name of ["theta", "phi"]) adam(this[name], grads[name], this.moments[name], this.iteration, rate);
      return grads.loss;
    }
    /** The chapter's errors of p(z) and of q(z | x), the latter a mean over x [B], and the categories left. */
    metrics(x = TEST_POINTS, exact = TEST_POSTERIORS) {
      const logPrior = logPriorOf(this.theta), { logQ } = forward(this.phi, x);
      const errors = exact.map((log, b) => distance(logQ.subarray(b * C, b * C + C), log));
      return {
        prior: distance(logPrior, TRUE_LOG_PRIOR),
        posterior: total(errors) / x.length,
        left: [...logPrior.keys()].filter((c) => Math.exp(logPrior[c]) > SUPPORT),
      };
    }
  }
  const TEST_POINTS = sampleModel(TRUE_LOG_PRIOR, 100, new Random(0)).x;
  const TEST_POSTERIORS = [...TEST_POINTS].map((x) => exactPosterior(TRUE_LOG_PRIOR, x));


  // -- the page -----------------------------------------------------------------------------------------

  // Names, colours and dashes as in rwslib/plotting.py, and the two colours of its film.
  const METHODS = {
    ws: { title: "WS", color: "#009E73", dash: [] },
    ww: { title: "WW", color: "#0072B2", dash: [] },
    dww: { title: "δ-WW", color: "#D55E00", dash: [] },
    reinforce: { title: "REINFORCE", color: "#E69F00", dash: [5, 3] },
    vimco: { title: "VIMCO", color: "#000000", dash: [5, 3] },
  };
  const LEARNED = "#0072B2", TRUE = "#D55E00", INK = "#333333", MAX_POINTS = 300, MAX_RUNS = 6;

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function select(options, chosen) {
    const node = element("select", {}, ...Object.entries(options).map(([value, text]) => element("option", { value }, text)));
    node.value = chosen;
    return node;
  }

  /** A canvas at the screen's resolution, its width and height in CSS pixels, cleared. */
  function pen(canvas) {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    const size = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = "12px system-ui, sans-serif";
    return { ctx, width, height };
  }

  function drawBars(canvas, logLearned, logTrue) { // heights are square roots of probabilities
    const { ctx, width, height } = pen(canvas), bottom = height - 18, slot = width / C;
    const level = (log) => (bottom - 2) * Math.exp(log / 2);
    for (let c = 0; c < C; c++) {
      ctx.fillStyle = LEARNED;
      ctx.fillRect(c * slot + 1, bottom - level(logLearned[c]), slot - 2, level(logLearned[c]));
      ctx.fillStyle = TRUE;
      if (Math.exp(logTrue[c]) > SUPPORT) ctx.fillRect(c * slot, bottom - level(logTrue[c]) - 1, slot, 2.5);
    }
    ctx.fillStyle = INK;
    ctx.fillRect(0, bottom, width, 1);
    ctx.textAlign = "center";
    for (let c = 0; c < C; c += 5) ctx.fillText(c, (c + 0.5) * slot, height - 4);
  }

  function drawCurves(canvas, runs, metric) {
    const { ctx, width, height } = pen(canvas), left = 34, bottom = height - 18, low = 0.05, high = 1.4;
    const end = Math.max(100, ...runs.map((run) => run.points.at(-1).iteration));
    const toX = (iteration) => left + ((width - left - 2) * iteration) / end;
    const toY = (value) => bottom - (bottom * Math.log(Math.max(value, low) / low)) / Math.log(high / low);
    ctx.fillStyle = INK;
    ctx.textAlign = "right";
    for (const tick of [0.05, 0.1, 0.2, 0.5, 1]) {
      ctx.fillText(tick, left - 5, toY(tick) + (tick === low ? 0 : 4));
      ctx.globalAlpha = tick === low ? 1 : 0.2;
      ctx.fillRect(left, toY(tick), width - left, 1);
      ctx.globalAlpha = 1;
    }
    ctx.fillText(`${end.toLocaleString("en")} steps`, width - 2, height - 4);
    runs.forEach((run, index) => {
      ctx.lineWidth = index === runs.length - 1 ? 2.2 : 1.2;
      run.points.forEach((point, i) => { // one stroke a method, so that its dashes are unbroken
        if (i && run.points[i - 1].method === point.method && i > 1) {
          ctx.lineTo(toX(point.iteration), toY(point[metric]));
        } else {
          if (i) ctx.stroke();
          const from = run.points[Math.max(0, i - 1)];
          ctx.beginPath();
          ctx.strokeStyle = METHODS[point.method].color;
          ctx.setLineDash(METHODS[point.method].dash);
          ctx.moveTo(toX(from.iteration), toY(from[metric]));
          ctx.lineTo(toX(point.iteration), toY(point[metric]));
        }
      });
      ctx.stroke();
      ctx.setLineDash([]);
    });
  }

  function mount(root) {
    const controls = {
      method: select(Object.fromEntries(Object.entries(METHODS).map(([name, { title }]) => [name, title])), "ww"),
      K: select({ 2: "2", 3: "3", 5: "5", 10: "10", 20: "20" }, "2"),
      delta: element("input", { type: "range", min: "0.05", max: "0.6", step: "0.05", value: "0.2" }),
      start: select({ far: "far: small z only", near: "near: uniform" }, "far"),
      rate: select({ 0.001: "0.001, as in the chapter", 0.003: "0.003", 0.01: "0.01" }, "0.01"),
      speed: select({ 1: "one step a picture", 5: "5 steps a picture", 200: "as fast as it goes" }, "200"),
      seed: element("input", { type: "number", min: "0", max: "4294967295", step: "1", value: "1" }),
    };
    const labels = {
      method: "Method", K: "Particles K", delta: "δ = ", start: "Start", rate: "Learning rate", speed: "Speed", seed: "Seed",
    };
    const deltaValue = element("span", {}, "0.20"), fields = {};
    for (const [name, text] of Object.entries(labels)) {
      fields[name] = element("label", {}, element("span", {}, text, ...(name === "delta" ? [deltaValue] : [])), controls[name]);
    }
    const buttons = Object.fromEntries(["Play", "One step", "Reset", "Clear curves"].map((text) =>
      [text, element("button", { type: "button" }, text)]));
    const numbers = Object.fromEntries(["step", "error of p(z)", "error of q(z | x)", "categories left"].map((text) =>
      [text, element("output", { "aria-live": "off" })]));
    const status = element("p", { role: "status", class: "playground-status" });
    const legend = element("ul", { class: "playground-legend" });
    const picture = (text) => {
      const canvas = element("canvas", { role: "img", "aria-label": text });
      return { canvas, figure: element("figure", {}, element("figcaption", {}, text), canvas) };
    };
    const prior = picture("p(z)"), posteriors = PROBES.map((x) => picture(`q(z | x = ${x})`));
    const curves = { prior: picture("error of p(z)"), posterior: picture("error of q(z | x)") };
    const truth = PROBES.map((x) => exactPosterior(TRUE_LOG_PRIOR, x));
    const swatch = (color, dash = []) => {
      const line = `<line x1="0" y1="5" x2="24" y2="5" stroke="${color}" stroke-width="3" stroke-dasharray="${dash}"/>`;
      const node = element("span", { class: "playground-swatch", "aria-hidden": "true" });
      node.innerHTML = `<svg width="24" height="10">${line}</svg>`;
      return node;
    };
    root.append(
      element("div", { class: "playground-controls", role: "group", "aria-label": "Settings" }, ...Object.values(fields)),
      element("div", { class: "playground-buttons", role: "group", "aria-label": "Training" }, ...Object.values(buttons)),
      element("div", { class: "playground-display" },
        element("dl", {}, ...Object.entries(numbers).map(([text, node]) =>
          element("div", {}, element("dt", {}, text), element("dd", {}, node)))),
        element("p", { class: "playground-key" }, swatch(LEARNED), "learned ", swatch(TRUE), "true; heights are square roots"),
        element("div", { class: "playground-bars" }, prior.figure, ...posteriors.map(({ figure }) => figure)),
        element("div", { class: "playground-curves" }, curves.prior.figure, curves.posterior.figure),
        legend),
      status);

    const reduced = matchMedia("(prefers-reduced-motion: reduce)");
    let run, runs = [], playing = false, onScreen = true, frame = 0, drawn = 0, said = 0;
    const settings = () => ({
      method: controls.method.value, K: +controls.K.value, delta: +controls.delta.value, rate: +controls.rate.value,
    });
    const seed = () => Math.min(4294967295, Math.max(0, Math.floor(+controls.seed.value || 0)));

    function record() { // points of the curves; when there are many, every second one is dropped
      const { method } = settings(), { iteration } = run.model;
      run.points.push({ iteration, method, ...run.model.metrics() });
      if (run.points.length > MAX_POINTS) {
        run.points = run.points.filter(({ iteration }, i) => i === 0 || iteration % (2 * run.every) === 0);
        run.every *= 2;
      }
    }

    function advance() {
      const { method, K, delta, rate } = settings(), name = `${METHODS[method].title}, K = ${K}`;
      if (run.names.at(-1) !== name) run.names.push(name);
      run.model.step(method, K, delta, rate);
      if (run.model.iteration % run.every === 0) record();
    }

    function summary({ prior, posterior, left }) {
      const { method, K } = settings(), range = left.length ? `, between z = ${left[0]} and ${left.at(-1)}` : "";
      return `${METHODS[method].title}, K = ${K}, ${run.start} start, step ${run.model.iteration.toLocaleString("en")}: ` +
        `error of p(z) ${prior.toFixed(3)}, of q(z | x) ${posterior.toFixed(3)}; ${left.length} of ${C} categories left${range}.`;
    }

    function draw() {
      const { theta, phi, iteration } = run.model, metrics = run.model.metrics(), { logQ } = forward(phi, PROBES);
      const values = [iteration.toLocaleString("en"), metrics.prior.toFixed(3), metrics.posterior.toFixed(3), `${metrics.left.length} of ${C}`];
      Object.values(numbers).forEach((node, i) => { node.textContent = values[i]; });
      drawBars(prior.canvas, logPriorOf(theta), TRUE_LOG_PRIOR);
      posteriors.forEach(({ canvas }, i) => drawBars(canvas, logQ.subarray(i * C, i * C + C), truth[i]));
      for (const metric of ["prior", "posterior"]) drawCurves(curves[metric].canvas, runs, metric);
      legend.replaceChildren(...runs.map(({ names, start, points }) => {
        const { color, dash } = METHODS[points.at(-1).method];
        return element("li", {}, swatch(color, dash), `${names.join(", then ") || METHODS[controls.method.value].title}, ${start} start`);
      }));
      return metrics;
    }

    function say(prefix = "") {
      status.textContent = prefix + summary(run.model.metrics());
      said = performance.now();
    }

    function tick(now) {
      frame = 0;
      if (!playing || !onScreen || document.hidden) return;
      const deadline = performance.now() + 12;
      for (let i = 0; i < +controls.speed.value && performance.now() < deadline; i++) advance();
      if (!reduced.matches || now - drawn > 1000) {
        drawn = now;
        if (!Number.isFinite(draw().prior)) return play(false, "Training diverged. ");
      }
      if (now - said > 10000) say();
      schedule();
    }

    function schedule() {
      if (playing && !frame) frame = requestAnimationFrame(tick);
    }

    function play(on, prefix = on ? "Training. " : "Paused. ") {
      playing = on;
      buttons.Play.textContent = on ? "Pause" : "Play";
      draw();
      say(prefix);
      schedule();
    }

    function reset() {
      runs = runs.filter(({ model }) => model.iteration > 0).slice(1 - MAX_RUNS);
      const start = controls.start.value;
      run = { model: new Run(seed(), start), start, names: [], points: [], every: 10 };
      runs.push(run);
      record();
      play(false, "Ready. ");
    }

    buttons.Play.addEventListener("click", () => play(!playing));
    buttons["One step"].addEventListener("click", () => { advance(); play(false); });
    buttons.Reset.addEventListener("click", reset);
    buttons["Clear curves"].addEventListener("click", () => { runs = [run]; draw(); });
    for (const name of ["start", "seed"]) controls[name].addEventListener("change", reset);
    for (const name of ["method", "K"]) controls[name].addEventListener("change", () => { showDelta(); draw(); });
    controls.delta.addEventListener("input", () => { deltaValue.textContent = (+controls.delta.value).toFixed(2); });
    const showDelta = () => { fields.delta.hidden = controls.method.value !== "dww"; };
    document.addEventListener("visibilitychange", schedule);
    new IntersectionObserver(([entry]) => { onScreen = entry.isIntersecting; schedule(); }).observe(root);
    new ResizeObserver(() => draw()).observe(root);
    showDelta();
    reset();
  }

  if (typeof document !== "undefined") mount(document.getElementById("mixture-playground"));
  return { C, METHODS, LEARNED, TRUE, TRUE_LOG_PRIOR, Random, Run, adam, estimators, exactPosterior, forward, lossAndGradients };
})();

if (typeof module !== "undefined") module.exports = Playground;
