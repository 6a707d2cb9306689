// Looks at pages of the built site in Chromium, and prints of each what is wrong with it and what it weighs.
//
// Standard input: {"chromium": path, "site": address, "pages": [path], "widths": [pixels], "themes": ["light",
// "dark"], "shows": selector of what must appear, "ignore": [rule of axe-core]}.  All as JSON.  A page is loaded
// at the first width.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import axe from "axe-core";
import { chromium } from "playwright-core";

const given = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: given.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});
const context = await browser.newContext({ viewport: { width: given.widths[0], height: 900 } });
context.setDefaultTimeout(120_000);

// The header of a column may be a formula, whose MathML axe-core does not take for text.
const headers = { id: "empty-table-header", selector: "th:not(:has(math))" };
const rules = Object.fromEntries(given.ignore.map((rule) => [rule, { enabled: false }]));

// Colours take axe-core nearly all its time.  They depend on the theme and not on the width, all else on the width
// and not on the theme: each is looked at where it changes, colours at the last width.
function askedOf(width, theme) {
  const colours = { enabled: width === given.widths.at(-1) };
  if (theme !== given.themes[0]) return colours.enabled && { runOnly: ["color-contrast"] };
  return { rules: { ...rules, "color-contrast": colours } };
}

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

async function look(path) {
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
  await page.waitForSelector(given.shows).catch(() => problems.push(`does not show ${given.shows}`));
  await page.evaluate(() => globalThis.setFormulas?.()); // all, also those that nobody has scrolled to
  const bytes = (await Promise.all(weights)).reduce((sum, part) => sum + part, 0);

  await page.addStyleTag({ content: "* { transition: none !important }" }); // no colours half way
  await page.evaluate(axe.source);
  const views = given.widths.flatMap((width) => given.themes.map((theme) => [width, theme]));
  for (const [width, theme] of views) {
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
    const asked = askedOf(width, theme);
    if (!asked) continue;
    const { violations } = await page.evaluate(([headers, options]) => {
      globalThis.axe.configure({ rules: [headers] });
      return globalThis.axe.run(options);
    }, [headers, { ...asked, resultTypes: ["violations"] }]);
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

const results = {}, left = [...given.pages];
async function lookOn() {
  for (let path; (path = left.pop()); ) results[path] = await look(path);
}
await Promise.all([lookOn(), lookOn()]); // while one page waits for its network, the other works
await browser.close();
console.log(JSON.stringify(results));
