// The atlas of methods: bias, noise and signal of each gradient, against K, its cost, or how wrong q is.
// No dependencies, no network: the numbers stand in the page.  Node can load `Atlas`, for the tests.
"use strict";

const Atlas = (() => {
  const AXES = { particles: "particles K", evaluations: "evaluations of p", wrongness: "KL(p, q) in nats" };

  /** Points [x, y] of a row: along its particles for one q, or along all q for one K. */
  function points(problem, row, quantity, axis, held) {
    const stored = problem.rows[row];
    if (axis === "wrongness") {
      const column = stored.particles.indexOf(held);
      return column < 0 ? [] : problem.wrongness.map((x, i) => [x, stored[quantity][i][column]]);
    }
    return stored[axis].map((x, i) => [x, stored[quantity][held][i]]);
  }

  /** 1, 2 and 5 times powers of ten between two numbers; powers alone where that would be too many. */
  function ticks(low, high, most) {
    const found = (steps) => {
      const values = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
        for (const step of steps) values.push(Number(`${step}e${e}`));
      }
      return values.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    };
    const many = found([1, 2, 5]);
    return many.length > most ? found([1]) : many;
  }

  const words = (value, quantity) => {
    if (value === null || value === undefined) return "";
    if (quantity === "bias") return `${Number((100 * value).toPrecision(2))} %`;
    return String(Number(value.toPrecision(2)));
  };

  /** The lines as SVG, logarithmic both ways; a zero lies on the floor. */
  function draw(problem, rows, labels, quantity, axis, held, width) {
    const height = 340, left = 58, right = width - 12, top = 12, bottom = height - 48;
    const lines = rows.map((row) => [problem.rows[row], points(problem, row, quantity, axis, held).filter((p) => p[1] !== null)]);
    const all = lines.flatMap((line) => line[1]), positive = all.map((p) => p[1]).filter((y) => y > 0);
    const text = (x, y, anchor, words, more = "") => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" ${more}>${words}</text>`;
    if (!all.length) return text(width / 2, height / 2, "middle", "Nothing was measured here: choose other methods.");
    const xs = all.map((p) => p[0]), [x0, x1] = [Math.min(...xs), Math.max(Math.max(...xs), 1.01 * Math.min(...xs))];
    const [y0, y1] = positive.length ? [Math.min(...positive) / 1.3, 1.3 * Math.max(...positive)] : [0.1, 1];
    const floor = all.some((p) => p[1] === 0) ? bottom - 26 : bottom;
    const at = (value, low, high, from, to) => from + ((to - from) * Math.log(value / low)) / Math.log(high / low);
    const x = (value) => at(value, x0, x1, left + 8, right - 8);
    const y = (value) => (value > 0 ? at(value, y0, y1, floor, top) : bottom - 6);
    let svg = "";
    for (const tick of ticks(y0, y1, 9)) {
      svg += `<path class="grid" d="M${left} ${y(tick).toFixed(1)}H${right}"/>` + text(left - 6, y(tick) + 4, "end", words(tick, quantity));
    }
    if (floor < bottom) svg += text(left - 6, y(0) + 4, "end", "0");
    for (const tick of ticks(x0, x1, width < 500 ? 6 : 12)) {
      svg += `<path class="grid" d="M${x(tick).toFixed(1)} ${top}V${bottom}"/>` + text(x(tick), bottom + 16, "middle", tick);
    }
    svg += `<path class="frame" d="M${left} ${top}V${bottom}H${right}"/>` + text((left + right) / 2, height - 8, "middle", AXES[axis]);
    svg += text(-(top + bottom) / 2, 13, "middle", labels[quantity], 'transform="rotate(-90)"');
    for (const [row, values] of lines) {
      const d = values.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
      svg += `<path class="line" d="${d}" stroke="${row.color}" stroke-dasharray="${row.dash}"/>`;
      for (const p of values) {
        const says = `${row.title}: ${labels[quantity]} ${words(p[1], quantity)} at ${AXES[axis]} ${p[0]}`;
        svg += `<circle cx="${x(p[0]).toFixed(1)}" cy="${y(p[1]).toFixed(1)}" r="3" fill="${row.color}"><title>${says}</title></circle>`;
      }
    }
    return svg;
  }

  function start(place, data) {
    const make = (tag, properties = {}, ...children) => {
      const element = Object.assign(document.createElement(tag), properties);
      element.append(...children);
      return element;
    };
    const select = (name, options) => {
      const control = make("select", { name });
      for (const [value, label] of Object.entries(options)) control.append(new Option(label, value));
      return control;
    };
    const titles = Object.fromEntries(Object.entries(data.problems).map(([name, problem]) => [name, problem.title]));
    const controls = {
      problem: select("problem", titles),
      quantity: select("quantity", data.quantities),
      axis: select("axis", AXES),
    };
    controls.quantity.value = "signal";
    const slider = make("input", { type: "range", min: 0, step: 1 }), says = make("output");
    const methods = make("fieldset"), table = make("table");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("role", "img");
    const chosen = new Set(data.shown);
    const problem = () => data.problems[controls.problem.value];
    const kept = () => (controls.axis.value === "wrongness" ? allParticles() : problem().wrongness);
    const allParticles = () => [...new Set(Object.values(problem().rows).flatMap((row) => row.particles))].sort((a, b) => a - b);

    function settle() { // the slider goes over what is not the axis
      const byWrongness = controls.axis.value === "wrongness";
      slider.setAttribute("aria-label", AXES[byWrongness ? "particles" : "wrongness"]);
      slider.max = kept().length - 1;
      slider.value = byWrongness ? Math.max(0, allParticles().indexOf(10)) : problem().start;
    }
    function list() {
      methods.replaceChildren(make("legend", { textContent: "Methods" }));
      for (const [row, { title, color, dash }] of Object.entries(problem().rows)) {
        const box = make("input", { type: "checkbox", checked: chosen.has(row) });
        box.addEventListener("change", () => {
          box.checked ? chosen.add(row) : chosen.delete(row);
          render();
        });
        const label = make("label", {}, box);
        label.insertAdjacentHTML("beforeend", `<svg width="26" height="10" aria-hidden="true"><path class="line" d="M0 5H26" stroke="${color}" stroke-dasharray="${dash}"/></svg>`);
        label.append(title);
        methods.append(label);
      }
    }
    function render() {
      const quantity = controls.quantity.value, axis = controls.axis.value, place = Number(slider.value);
      const rows = Object.keys(problem().rows).filter((row) => chosen.has(row));
      const held = axis === "wrongness" ? allParticles()[place] : place;
      const words = axis === "wrongness" ? `K = ${held}` : `KL(p, q) = ${problem().wrongness[place]} nats`;
      says.textContent = `at ${words}`;
      slider.setAttribute("aria-valuetext", words);
      const width = Math.max(300, svg.clientWidth || 640);
      svg.setAttribute("viewBox", `0 0 ${width} 340`);
      const names = rows.map((row) => problem().rows[row].title).join(", ");
      svg.setAttribute("aria-label", `${data.quantities[quantity]} against ${AXES[axis]} at ${words}: ${names}. The numbers are in the table below.`);
      svg.innerHTML = draw(problem(), rows, data.quantities, quantity, axis, held, width);
      numbers(rows, quantity, axis, held);
    }
    function numbers(rows, quantity, axis, held) {
      const lines = rows.map((row) => [problem().rows[row].title, new Map(points(problem(), row, quantity, axis, held))]);
      const xs = [...new Set(lines.flatMap((line) => [...line[1].keys()]))].sort((a, b) => a - b);
      const cell = (tag, text, scope) => make(tag, scope ? { textContent: text, scope } : { textContent: text });
      table.replaceChildren(
        make("thead", {}, make("tr", {}, cell("th", AXES[axis], "col"), ...xs.map((x) => cell("th", x, "col")))),
        make("tbody", {}, ...lines.map(([title, values]) =>
          make("tr", {}, cell("th", title, "row"), ...xs.map((x) => cell("td", words(values.get(x), quantity)))))),
      );
    }

    const labelled = (text, ...parts) => make("label", {}, `${text} `, ...parts);
    place.append(
      make("div", { className: "atlas-controls" }, labelled("Problem", controls.problem), labelled("Show", controls.quantity),
        labelled("against", controls.axis), make("label", {}, says, slider)),
      make("div", { className: "atlas-display" }, svg, methods),
      make("details", {}, make("summary", { textContent: "The numbers" }), make("div", { className: "atlas-numbers", tabIndex: 0 }, table)),
    );
    controls.problem.addEventListener("change", () => { settle(); list(); render(); });
    controls.axis.addEventListener("change", () => { settle(); render(); });
    controls.quantity.addEventListener("change", render);
    slider.addEventListener("input", render);
    let width = 0;
    new ResizeObserver(() => {
      if (svg.clientWidth !== width) render();
      width = svg.clientWidth;
    }).observe(svg);
    settle();
    list();
    render();
    document.documentElement.classList.add("atlas-runs"); // the still figure is for print now
  }

  return { points, ticks, draw, start };
})();

if (typeof module !== "undefined") module.exports = Atlas;
else addEventListener("DOMContentLoaded", () => {
  Atlas.start(document.getElementById("atlas-figure"), JSON.parse(document.getElementById("atlas-data").textContent));
});
