// Loads MathJax when a formula comes near the screen or the page is printed: half of a page's weight is its.
(() => {
  const folder = new URL("mathjax/", document.currentScript.src);
  let loading;
  globalThis.setFormulas = () => (loading ??= new Promise((done) => {
    globalThis.MathJax = {
      ...globalThis.MathJax,
      loader: { load: ["input/tex", "output/chtml", "a11y/assistive-mml"] },
      startup: { ready: () => { MathJax.startup.defaultReady(); MathJax.startup.promise.then(done); } },
    };
    const script = document.createElement("script");
    script.src = new URL("startup.js", folder);
    document.head.append(script);
  }));
  const near = new IntersectionObserver((found) => {
    if (!found.some((formula) => formula.isIntersecting)) return;
    near.disconnect();
    setFormulas();
  }, { rootMargin: "100px" });
  document.querySelectorAll(".math").forEach((formula) => near.observe(formula));
  addEventListener("beforeprint", setFormulas);
})();
