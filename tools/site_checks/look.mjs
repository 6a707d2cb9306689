// Looks at pages of the built site in Chromium, and prints of each what is wrong with it and what it weighs.
//
// Standard input: {"chromium": path, "site": address, "pages": {path: selector of what must appear}, "views":
// [[pixels wide, "light" or "dark"]], "byTurns": false, "ignore": [rule of axe-core]}.  All as JSON.  A page is
// loaded in the first view.  Two views, with another width and another theme, see what depends on either.
// axe-core takes most of the time: by turns, a page gets it in the first view, the next page in the second.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import axe from "axe-core";
import { chromium } from "playwright-core";

const given = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: given.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});
const context = await browser.newContext({ viewport: { width: given.views[0][0], height: 900 } });
context.setDefaultTimeout(120_000);

// The header of a column may be a formula, whose MathML axe-core does not take for text.
const headers = { id: "empty-table-header", selector: "th:not(:has(math))" };
const rules = Object.fromEntries(given.ignore.map((rule) => [rule, { enabled: false }]));

const known = new Map();
async function weight(response) {
  const url = response.url();
  if (response.status() >= 300) return 0; // a redirection has no body
  if (!known.has(url)) {
    const body = await response.body().catch(() => Buffer.alloc(0)); // the page that only forwards is gone
    known.set(url, Math.min(body.length, gzipSync(body).length));
  }
  return known.get(url);
}

async function look(path, number) {
  const page = await context.newPage();
  const problems = [], weights = [];
  page.on("console", (message) => {
    const unasked = message.location().url.endsWith("/favicon.ico"); // by the page that only forwards
    if (["error", "warning"].includes(message.type()) && !unasked) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(given.site) && !/^(data|blob):/.test(url)) problems.push(`another host: ${url}`);
  });
  page.on("response", (response) => weights.push(weight(response)));
  await page.goto(given.site + path, { waitUntil: "networkidle" });
  const shows = given.pages[path];
  await page.waitForSelector(shows).catch(() => problems.push(`does not show ${shows}`));
  await page.evaluate(() => globalThis.setFormulas?.()); // all, also those that nobody has scrolled to
  const bytes = (await Promise.all(weights)).reduce((sum, part) => sum + part, 0);

  await page.addStyleTag({ content: "* { transition: none !important }" }); // no colours half way
  await page.evaluate(axe.source);
  for (const [index, [width, theme]] of given.views.entries()) {
    const problem = (words) => problems.push(`${width} pixels wide, ${theme}: ${words}`);
    await page.setViewportSize({ width, height: 900 });
    await page.emulateMedia({ colorScheme: theme }); // which the page follows
    await page.waitForSelector(`html[data-theme=${theme}]`, { timeout: 5000 }).catch(() => {});
    const seen = await page.evaluate(async () => {
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); // marks are set
      const { dataset, scrollWidth, clientWidth } = document.documentElement;
      const unset = document.querySelectorAll("mjx-merror, [data-mjx-error]").length;
      const cut = [...document.querySelectorAll(".bd-content :is(div, pre, figure)")].filter((box) =>
        box.checkVisibility() && box.scrollWidth > box.clientWidth + 4 &&
        /auto|scroll/.test(getComputedStyle(box).overflowX) &&
        !box.classList.contains("more"));
      return { theme: dataset.theme, excess: scrollWidth - clientWidth, unset, cut: cut.map((b) => b.className) };
    });
    if (seen.theme !== theme) problem(`the theme is ${seen.theme}`);
    if (seen.excess > 0) problem(`scrolls sideways by ${seen.excess} pixels`);
    if (seen.unset) problem(`${seen.unset} formulas have errors`);
    for (const name of seen.cut) problem(`a box is cut without a hint that it scrolls: ${name}`);
    if (given.byTurns && index !== number % given.views.length) continue;
    const { violations } = await page.evaluate(([headers, options]) => {
      globalThis.axe.configure({ rules: [headers] });
      return globalThis.axe.run(options);
    }, [headers, { rules, resultTypes: ["violations"] }]);
    for (const { id, nodes } of violations) {
      for (const { target, html, failureSummary } of nodes) {
        const words = `axe ${id}: ${target.join(" ")}: ${failureSummary} ${html.slice(0, 200)}`;
        problem(words.replace(/\s+/g, " "));
      }
    }
  }
  await page.close();
  return { bytes, problems };
}

const results = {}, left = Object.keys(given.pages);
async function lookOn() {
  for (let path; (path = left.pop()); ) results[path] = await look(path, left.length);
}
await Promise.all([lookOn(), lookOn()]); // while one page waits for its network, the other works
await browser.close();
console.log(JSON.stringify(results));
