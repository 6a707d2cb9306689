// A figure that scrolls in its own box can be focused, so that the arrow keys scroll it, too.
addEventListener("load", () => {
  const settle = (figure) => {
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
    else if (!figure.onclick) figure.removeAttribute("tabindex"); // a film has its own
  };
  const watch = new ResizeObserver((seen) => seen.forEach(({ target }) => settle(target.closest("figure"))));
  for (const figure of document.querySelectorAll(".bd-content figure")) {
    watch.observe(figure);
    figure.querySelectorAll("img").forEach((picture) => watch.observe(picture)); // which may be loaded late
  }
});
