// Looks at pages of the built site in Chromium, and prints of each what is wrong with it or what it weighs.
//
// Standard input: {"chromium": path, "site": address, "pages": {path: selector of what must appear}, "views":
// [[pixels wide, "light" or "dark"]], "ignore": [rule of axe-core]}.  All as JSON.  Two views, with another width
// and another theme, see what depends on either.  A page is loaded in one view and goes on to the other, where
// axe-core, which takes most of the time, looks at it; the next page the other way round.  Without views a page
// is loaded and weighed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const given = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: given.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});
const context = await browser.newContext({ viewport: { width: 1400, height: 900 } });
context.setDefaultTimeout(120_000);

// The header of a column may be a formula, whose MathML axe-core does not take for text.
const headers = { id: "empty-table-header", selector: "th:not(:has(math))" };
const rules = Object.fromEntries(given.ignore.map((rule) => [rule, { enabled: false }]));

// axe-core looks at the colours of every token of code and every part of a formula, which takes most of its time.
// One token of each kind is enough: the words of others go into the token before.  (What is no token keeps its
// place.)  So are the parameters of some signatures, and one row of a kind in all tables.  What is folded is not
// looked at.  Formulas are drawn beside the MathML that readers of the screen hear; the drawing goes.
function leaveLessToLookAt() {
  for (const drawing of document.querySelectorAll("mjx-math")) drawing.remove();
  const parameters = [...document.querySelectorAll("dt.sig em")].slice(10);
  for (const parameter of parameters) parameter.textContent = parameter.textContent;
  const rows = [...document.querySelectorAll("tbody tr")], kinds = new Set();
  const kindsOfRows = rows.map((row) => [row, ...row.querySelectorAll("*")].map((part) =>
    part.localName + part.className + part.style.cssText).join() + getComputedStyle(row).backgroundColor);
  for (const [index, kind] of kindsOfRows.entries()) {
    if (kinds.has(kind)) rows[index].remove();
    kinds.add(kind);
  }
  const shown = (block) => block.checkVisibility(), all = [...document.querySelectorAll("pre")];
  const seen = new Set(), blocks = all.filter(shown), folded = all.filter((block) => !shown(block));
  for (const block of folded) block.textContent = "";
  const grounds = blocks.map((block) => getComputedStyle(block).backgroundColor);
  for (const [index, block] of blocks.entries()) {
    const copy = block.cloneNode(true);
    for (const token of copy.querySelectorAll("span[class]")) {
      const kind = `${token.className} on ${grounds[index]}`, gap = token.previousSibling;
      const before = token.previousElementSibling, blank = gap === before || !gap.data?.trim();
      const plain = (element) => element?.localName === "span" && element.className && !element.childElementCount;
      if (seen.has(kind) && plain(token) && plain(before) && blank) {
        if (gap !== before) before.append(gap);
        before.append(token.textContent);
        token.remove();
      }
      seen.add(kind);
    }
    block.replaceWith(copy);
  }
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

async function openTab() {
  const page = await context.newPage(), seen = {};
  page.on("console", (message) => {
    const unasked = message.location().url.endsWith("/favicon.ico"); // by the page that only forwards
    const bad = ["error", "warning"].includes(message.type()) && !unasked;
    if (bad) seen.problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => seen.problems.push(`error: ${error.message}`));
  page.on("request", (request) => {
    const url = request.url(), here = url.startsWith(given.site) || /^(data|blob):/.test(url);
    if (!here) seen.problems.push(`another host: ${url}`);
  });
  if (!given.views.length) page.on("response", (response) => seen.weights.push(weight(response)));
  return { page, seen };
}

async function look({ page, seen }, path, number) {
  const problems = [], weights = [];
  Object.assign(seen, { problems, weights });
  const views = number % 2 ? given.views.toReversed() : given.views;
  if (views.length) await show(page, views[0]);
  await page.goto(given.site + path, { waitUntil: "networkidle" });
  const shows = given.pages[path];
  await page.waitForSelector(shows).catch(() => problems.push(`does not show ${shows}`));
  await page.evaluate(() => globalThis.setFormulas?.()); // all, also those that nobody has scrolled to
  const bytes = (await Promise.all(weights)).reduce((sum, part) => sum + part, 0);

  if (views.length) await lookThrough(page, views, problems);
  return { bytes, problems };
}

async function show(page, [width, theme]) {
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme: theme }); // which the page follows
}

async function lookThrough(page, views, problems) {
  await page.addStyleTag({ content: "* { transition: none !important }" }); // no colours half way
  const problem = ([width, theme], words) => problems.push(`${width} pixels wide, ${theme}: ${words}`);
  for (const view of views) {
    const theme = view[1];
    await show(page, view);
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
    if (seen.theme !== theme) problem(view, `the theme is ${seen.theme}`);
    if (seen.excess > 0) problem(view, `scrolls sideways by ${seen.excess} pixels`);
    if (seen.unset) problem(view, `${seen.unset} formulas have errors`);
    for (const name of seen.cut) problem(view, `a box is cut without a hint that it scrolls: ${name}`);
  }

  await page.evaluate(leaveLessToLookAt);
  await page.evaluate(axe);
  await page.evaluate((rule) => globalThis.axe.configure({ rules: [rule] }), headers);
  const options = { rules, resultTypes: ["violations"], preload: false, iframes: false };
  const { violations } = await page.evaluate((options) => globalThis.axe.run(options), options);
  for (const { id, nodes } of violations) {
    for (const { target, html, failureSummary } of nodes) {
      const words = `axe ${id}: ${target.join(" ")}: ${failureSummary} ${html.slice(0, 200)}`;
      problem(views.at(-1), words.replace(/\s+/g, " "));
    }
  }
}

const results = {}, left = Object.keys(given.pages);
async function lookOn() {
  const tab = await openTab(); // one for many pages: a new one takes a second
  for (let path; (path = left.pop()); ) results[path] = await look(tab, path, left.length);
}
await Promise.all([lookOn(), lookOn()]); // while one page waits for its network, the other works
await browser.close();
console.log(JSON.stringify(results));
