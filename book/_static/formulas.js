// Loads MathJax when a formula is on the screen, when the reader does anything, or when the page is printed:
// half of a page's weight is MathJax's, and the first page tells what it has to tell without a formula.
(() => {
  const folder = new URL("mathjax/", document.currentScript.src);
  let loading;
  // A formula that scrolls in its own box can be focused, so that the arrow keys scroll it, too.
  const focusable = () => document.querySelectorAll("mjx-container[display=true]").forEach((formula) => {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
  });
  globalThis.setFormulas = () => (loading ??= new Promise((done) => {
    globalThis.MathJax = {
      ...globalThis.MathJax,
      loader: { load: ["input/tex", "output/chtml", "a11y/assistive-mml"] },
      startup: { ready: () => { MathJax.startup.defaultReady(); MathJax.startup.promise.then(focusable).then(done); } },
    };
    const script = document.createElement("script");
    script.src = new URL("startup.js", folder);
    document.head.append(script);
  }));
  const near = new IntersectionObserver((found) => {
    if (!found.some((formula) => formula.isIntersecting)) return;
    near.disconnect();
    setFormulas();
  });
  document.querySelectorAll(".math").forEach((formula) => near.observe(formula));
  for (const deed of ["scroll", "pointermove", "touchstart", "keydown", "beforeprint"]) {
    if (document.querySelector(".math")) addEventListener(deed, setFormulas, { once: true, passive: true });
  }
})();
