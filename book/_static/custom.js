// A figure that scrolls in its own box can be focused, so that the arrow keys scroll it, too.
addEventListener("load", () => {
  for (const figure of document.querySelectorAll(".bd-content figure")) {
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
  }
});
