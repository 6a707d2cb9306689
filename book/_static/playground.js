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

  // Names, colours and dashes as in rwslib/report/plotting.py, and the two colours of its film.
  const METHODS = {
    ws: { title: "WS", color: "#009E73", dash: [] },
    ww: { title: "WW", color: "#0072B2", dash: [] },
    dww: { title: "δ-WW", color: "#D55E00", dash: [] },
    reinforce: { title: "REINFORCE", color: "#E69F00", dash: [5, 3] },
    vimco: { title: "VIMCO", color: "#000000", dash: [5, 3] },
  };
  const PARTICLES = ["2", "3", "5", "10", "20"], LETTERS = ["A", "B"], MAX_SEED = 4294967295;
  const LEARNED = "#0072B2", TRUE = "#D55E00", INK = "#333333", MAX_POINTS = 300, MAX_KEPT = 4;
  const AXIS = { low: 0.002, high: 1.4, ticks: [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1] };

  // The experiments of the page, by the label of their section.  Each stops once, and asks again.
  const STOP = 3000;
  const PRESETS = {
    "play-lost": {
      title: "Lost, and found again",
      A: { method: "ww", K: "2", start: "far" },
      B: { method: "ww", K: "2", start: "far" },
      prompt: "WW with two particles, twice the same run. How far to the right will p(z) get, and what will it keep? Both stop after 3,000 steps.",
      then: {
        A: { K: "20" },
        B: { method: "dww" },
        prompt: "From here on A has twenty particles, and B is δ-WW with two. Which brings the lost bars back, and how soon? Predict, then play on.",
      },
    },
    "play-start": {
      title: "Is it the start?",
      A: { method: "ws", K: "2", start: "far" },
      B: { method: "ws", K: "2", start: "near" },
      prompt: "WS with two particles, from both starts. How many categories will each of them keep? Both stop after 3,000 steps.",
      then: { prompt: "Now choose WW for both, press Reset and Play, and then REINFORCE. Does the start decide as much for them?" },
    },
    "play-network": {
      title: "A good model with a bad network",
      A: { method: "vimco", K: "20", start: "far" },
      B: { method: "ww", K: "20", start: "far" },
      prompt: "VIMCO and WW with twenty particles. Whose p(z) and whose q(z | x) will be nearer to the truth? Both stop after 3,000 steps.",
      then: { prompt: "Compare the two panels of errors, and q(z | x = 95). Is the worse network too narrow or too wide? Play on: does time mend it?" },
    },
  };

  /** A seed as typed: a whole number that fits 32 bits, or null. */
  const seedOf = (text) => (/^\d{1,10}$/.test(text) && +text <= MAX_SEED ? +text : null);

  /** What a run has been, by its segments { name, steps }, without settings that were only passed through. */
  function story(segments) {
    const long = segments.filter(({ steps }, i) => steps >= 50 || i === segments.length - 1).map(({ name }) => name);
    const names = long.filter((name, i) => name !== long[i - 1]);
    return (names.length > 3 ? [names[0], "…", ...names.slice(-2)] : names).join(", then ");
  }

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function select(name, options, chosen) {
    const node = element("select", { name }, ...Object.entries(options).map(([value, text]) => element("option", { value }, text)));
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

  /** Errors over steps: the runs in hand with their letters, and paler the runs before them. */
  function drawCurves(canvas, runs, kept, metric) {
    const { ctx, width, height } = pen(canvas), left = 42, right = width - 16, bottom = height - 18;
    const { low, high, ticks } = AXIS, top = 6;
    const end = Math.max(100, ...[...kept, ...runs].map((run) => run.points.at(-1).iteration));
    const toX = (iteration) => left + ((right - left) * iteration) / end;
    const toY = (value) => bottom - ((bottom - top) * Math.log(Math.max(value, low) / low)) / Math.log(high / low);
    ctx.fillStyle = INK;
    ctx.textAlign = "right";
    for (const tick of ticks) {
      const labelled = height > 150 || [low, 0.01, 0.1, 1].includes(tick);
      if (labelled) ctx.fillText(tick, left - 5, toY(tick) + 4);
      ctx.globalAlpha = tick === low ? 1 : labelled ? 0.2 : 0.08;
      ctx.fillRect(left, toY(tick), right - left, 1);
      ctx.globalAlpha = 1;
    }
    ctx.fillText(`${end.toLocaleString("en")} steps`, right, height - 4);
    for (const run of [...kept, ...runs]) {
      ctx.lineWidth = widthOf(run, runs);
      ctx.globalAlpha = runs.includes(run) ? 1 : 0.5;
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
      ctx.globalAlpha = 1;
    }
    const ends = runs.map((run) => ({ run, y: toY(run.points.at(-1)[metric]) })).sort((a, b) => a.y - b.y);
    ends.forEach((here, i) => { // letters keep apart, and within the picture
      here.y = Math.min(Math.max(here.y, top + 6, i ? ends[i - 1].y + 12 : 0), bottom - 12 * (ends.length - 1 - i));
      ctx.font = "bold 12px system-ui, sans-serif";
      ctx.textAlign = "left";
      ctx.fillText(here.run.letter, toX(here.run.points.at(-1).iteration) + 4, here.y + 4);
    });
  }

  // Two runs of one method share its colour: A is the bold line, B the fine one.
  function widthOf(run, runs) {
    return !runs.includes(run) ? 1 : run.letter === "A" ? 3.6 : 1.6;
  }

  function swatch(color, dash = [], width = 3) {
    const line = `<line x1="0" y1="5" x2="24" y2="5" stroke="${color}" stroke-width="${width}" stroke-dasharray="${dash}"/>`;
    const node = element("span", { class: "playground-swatch", "aria-hidden": "true" });
    node.innerHTML = `<svg width="24" height="10">${line}</svg>`;
    return node;
  }

  function picture(name, text = name) {
    const canvas = element("canvas", { role: "img", "aria-label": text });
    return { canvas, figure: element("figure", {}, element("figcaption", {}, name), canvas) };
  }

  function field(text, control, ...more) {
    return element("label", {}, element("span", {}, text, ...more), control);
  }

  function group(name, ...children) {
    return element("fieldset", {}, element("legend", {}, name), ...children);
  }

  /** The settings of one run; δ keeps its place where the method has none. */
  function runControls(letter) {
    const titles = Object.fromEntries(Object.entries(METHODS).map(([name, { title }]) => [name, title]));
    const controls = {
      method: select(`${letter}-method`, titles, "ww"),
      K: select(`${letter}-K`, Object.fromEntries(PARTICLES.map((K) => [K, K])), "2"),
      start: select(`${letter}-start`, { far: "far: small z", near: "near: uniform" }, "far"),
      delta: element("input", { name: `${letter}-delta`, type: "range", min: "0.05", max: "0.6", step: "0.05", value: "0.2" }),
    };
    const value = element("span", {});
    const show = () => {
      controls.delta.disabled = controls.method.value !== "dww";
      value.textContent = (+controls.delta.value).toFixed(2);
    };
    const node = group(`Run ${letter}`, field("Method", controls.method), field("Particles K", controls.K),
      field("Start", controls.start), field("δ = ", controls.delta, value));
    return { ...controls, node, show };
  }

  function mount(root) {
    const each = Object.fromEntries(LETTERS.map((letter) => [letter, runControls(letter)]));
    const rate = select("rate", { 0.001: "0.001 (chapter)", 0.003: "0.003", 0.01: "0.01" }, "0.01");
    const speed = select("speed", { 1: "slow", 5: "medium", 200: "full" }, "200");
    const seed = element("input", { name: "seed", type: "text", inputmode: "numeric", value: "1", "aria-describedby": "playground-seed" });
    const seedNote = element("small", { id: "playground-seed" });
    const presets = Object.fromEntries(Object.entries(PRESETS).map(([name, { title }]) =>
      [name, element("button", { type: "button", "aria-pressed": "false" }, title)]));
    const prompt = element("p", { class: "playground-prompt" });
    const buttons = Object.fromEntries(["Play", "One step", "Reset", "Clear"].map((text) =>
      [text, element("button", { type: "button" }, text)]));
    buttons.Clear.setAttribute("aria-label", "Clear the curves of earlier runs");
    const columns = ["step", "error of p(z)", "error of q(z | x)", "categories"];
    const numbers = Object.fromEntries(LETTERS.map((letter) => [letter, columns.map(() => element("td", {}))]));
    const status = element("p", { role: "status", class: "playground-status" });
    const legend = element("ul", { class: "playground-legend" });
    const bars = Object.fromEntries(LETTERS.map((letter) => {
      const names = ["p(z)", ...PROBES.map((x) => `q(z | x = ${x})`)];
      return [letter, names.map((name) => picture(`${letter}: ${name}`, `${name} of run ${letter}`))];
    }));
    const curves = { prior: picture("error of p(z)"), posterior: picture("error of q(z | x)") };
    const truth = PROBES.map((x) => exactPosterior(TRUE_LOG_PRIOR, x));
    const settings = element("details", { class: "playground-settings", open: "" }, element("summary", {}, "Settings"),
      element("div", {}, ...LETTERS.map((letter) => each[letter].node),
        group("Both", field("Learning rate", rate), field("Speed", speed), field("Seed", seed), seedNote)));
    settings.open = !matchMedia("(max-width: 600px)").matches;
    root.append(
      element("div", { class: "playground-presets", role: "group", "aria-label": "Experiments" }, ...Object.values(presets)),
      prompt,
      settings,
      element("div", { class: "playground-buttons", role: "group", "aria-label": "Training" }, ...Object.values(buttons)),
      element("div", { class: "playground-display" },
        element("table", {},
          element("thead", {}, element("tr", {}, ...["run", ...columns].map((name) => element("th", { scope: "col" }, name)))),
          element("tbody", {}, ...LETTERS.map((letter) =>
            element("tr", {}, element("th", { scope: "row" }, letter), ...numbers[letter])))),
        element("p", { class: "playground-key" }, swatch(LEARNED), "learned ", swatch(TRUE), "true; heights are square roots"),
        element("div", { class: "playground-bars" }, ...LETTERS.flatMap((letter) => bars[letter].map(({ figure }) => figure))),
        element("div", { class: "playground-curves" }, curves.prior.figure, curves.posterior.figure),
        legend),
      status);

    const reduced = matchMedia("(prefers-reduced-motion: reduce)");
    let runs = [], kept = [], stage = null, playing = false, onScreen = true, frame = 0, drawn = 0, said = 0;
    const nameOf = (letter) => `${METHODS[each[letter].method.value].title}, K = ${each[letter].K.value}`;

    function record(run) { // points of the curves; when there are many, every second one is dropped
      const { iteration } = run.model;
      run.points.push({ iteration, method: each[run.letter].method.value, ...run.model.metrics() });
      if (run.points.length > MAX_POINTS) {
        run.points = run.points.filter(({ iteration }, i) => i === 0 || iteration % (2 * run.every) === 0);
        run.every *= 2;
      }
    }

    function advance() {
      for (const run of runs) {
        const { method, K, delta } = each[run.letter], name = nameOf(run.letter);
        if (run.segments.at(-1)?.name !== name) run.segments.push({ name, steps: 0 });
        run.segments.at(-1).steps++;
        run.model.step(method.value, +K.value, +delta.value, +rate.value);
        if (run.model.iteration % run.every === 0) record(run);
      }
    }

    function summary({ letter, start, model }) {
      const { prior, posterior, left } = model.metrics();
      const range = left.length ? `, between z = ${left[0]} and ${left.at(-1)}` : "";
      return `${letter}: ${nameOf(letter)}, ${start} start: error of p(z) ${prior.toFixed(3)}, of q(z | x) ` +
        `${posterior.toFixed(3)}; ${left.length} of ${C} categories left${range}.`;
    }

    /** Shows the runs; false if a number of theirs is not finite any more. */
    function draw() {
      let finite = true;
      for (const { letter, model } of runs) {
        const metrics = model.metrics(), { logQ } = forward(model.phi, PROBES);
        const values = [model.iteration.toLocaleString("en"), metrics.prior.toFixed(3), metrics.posterior.toFixed(3), `${metrics.left.length} of ${C}`];
        numbers[letter].forEach((node, i) => { node.textContent = values[i]; });
        const [prior, ...posteriors] = bars[letter];
        drawBars(prior.canvas, logPriorOf(model.theta), TRUE_LOG_PRIOR);
        posteriors.forEach(({ canvas }, i) => drawBars(canvas, logQ.subarray(i * C, i * C + C), truth[i]));
        finite &&= Number.isFinite(metrics.prior) && Number.isFinite(metrics.posterior);
      }
      for (const metric of ["prior", "posterior"]) drawCurves(curves[metric].canvas, runs, kept, metric);
      legend.replaceChildren(...[...runs, ...kept].map((run) => {
        const { color, dash } = METHODS[run.points.at(-1).method], which = runs.includes(run) ? run.letter : "earlier";
        return element("li", {}, swatch(color, dash, widthOf(run, runs)), `${which}: ${story(run.segments) || nameOf(run.letter)}, ${run.start} start`);
      }));
      return finite;
    }

    function say(prefix) { // for screen readers alone: what is seen is in the table
      const steps = runs[0].model.iteration.toLocaleString("en");
      status.textContent = `${prefix} Step ${steps}. ${runs.map(summary).join(" ")}`;
      said = performance.now();
    }

    function tick(now) {
      frame = 0;
      if (!playing || !onScreen || document.hidden) return;
      const deadline = performance.now() + 12;
      for (let i = 0; i < +speed.value && performance.now() < deadline; i++) {
        advance();
        if (stage && runs[0].model.iteration >= STOP) return next();
      }
      if (!reduced.matches || now - drawn > 1000) {
        drawn = now;
        if (!draw()) return play(false, "Training diverged.");
      }
      if (now - said > 10000) say("Training.");
      schedule();
    }

    function schedule() {
      if (playing && !frame) frame = requestAnimationFrame(tick);
    }

    function play(on, prefix = on ? "Training." : "Paused.") {
      playing = on;
      buttons.Play.textContent = on ? "Pause" : "Play";
      draw();
      say(prefix);
      schedule();
    }

    function set(letter, values = {}) {
      for (const [name, value] of Object.entries(values)) each[letter][name].value = value;
      each[letter].show();
    }

    function next() { // the experiment stops, and goes on with other settings
      const { then } = stage;
      stage = null;
      for (const letter of LETTERS) set(letter, then[letter]);
      prompt.textContent = then.prompt;
      play(false, `Paused. ${then.prompt}`);
    }

    function reset() {
      const number = seedOf(seed.value);
      seed.setAttribute("aria-invalid", String(number === null));
      seedNote.textContent = number === null ? `A seed is a whole number from 0 to ${MAX_SEED}.` : "";
      if (number === null) {
        if (playing) play(false);
        return seed.focus();
      }
      kept = [...kept, ...runs.filter(({ model }) => model.iteration > 0)].slice(-MAX_KEPT);
      runs = LETTERS.map((letter) => {
        const start = each[letter].start.value;
        return { letter, start, model: new Run(number, start), segments: [], points: [], every: 10 };
      });
      runs.forEach(record);
      play(false, "Ready.");
    }

    function choose(name) {
      const preset = PRESETS[name];
      for (const letter of LETTERS) set(letter, preset[letter]);
      rate.value = "0.01";
      stage = preset;
      prompt.textContent = preset.prompt;
      if (seedOf(seed.value) === null) seed.value = "1";
      for (const [other, button] of Object.entries(presets)) button.setAttribute("aria-pressed", String(other === name));
      kept = runs = [];
      reset();
    }

    function ownSettings() { // they are no experiment of the page any more
      if (stage) prompt.textContent = "Your own settings: they run until you pause them.";
      stage = null;
      for (const button of Object.values(presets)) button.setAttribute("aria-pressed", "false");
      draw();
    }

    const asked = () => decodeURIComponent(location.hash.slice(1));
    function follow() { // a link to an experiment's section, from a chapter or from this page
      if (!(asked() in PRESETS)) return;
      choose(asked());
      root.scrollIntoView();
    }

    buttons.Play.addEventListener("click", () => play(!playing));
    buttons["One step"].addEventListener("click", () => { advance(); play(false); });
    buttons.Reset.addEventListener("click", reset);
    buttons.Clear.addEventListener("click", () => { kept = []; draw(); });
    for (const [name, button] of Object.entries(presets)) button.addEventListener("click", () => choose(name));
    for (const { method, K, start, delta, show } of Object.values(each)) {
      for (const control of [method, K]) control.addEventListener("change", () => { show(); ownSettings(); });
      start.addEventListener("change", () => { ownSettings(); reset(); });
      delta.addEventListener("input", show);
    }
    seed.addEventListener("change", reset);
    document.addEventListener("visibilitychange", schedule);
    new IntersectionObserver((entries) => { onScreen = entries.at(-1).isIntersecting; schedule(); }).observe(root);
    new ResizeObserver(() => draw()).observe(root);
    choose("play-lost");
    addEventListener("hashchange", follow);
    addEventListener("load", follow);
    document.addEventListener("click", ({ target }) => { // the same link once more changes no hash
      if (target.closest?.("a[href^='#']")?.hash === location.hash) follow();
    });
  }

  if (typeof document !== "undefined") mount(document.getElementById("mixture-playground"));
  return {
    AXIS, C, LETTERS, METHODS, PARTICLES, PRESETS, STOP, LEARNED, TRUE, TRUE_LOG_PRIOR, Random, Run, adam, estimators,
    exactPosterior, forward, lossAndGradients, seedOf, story,
  };
})();

if (typeof module !== "undefined") module.exports = Playground;
