// What is wider than the screen scrolls in its own box, and fades out where more of it follows.
const WIDE = ".bd-content :is(pre, .picture, .pst-scrollable-table-container, .wide-table, div.math, .text_html)";

function mark(box) {
  box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
  // For the arrow keys.  The theme does so, too, but once, and later: formulas make tables wider.
  if (box.scrollWidth > box.clientWidth && !box.matches(".math")) box.tabIndex = 0;
}

addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll(".bd-content figure img")) {
    const box = document.createElement("div");
    box.className = "picture";
    picture.replaceWith(box);
    box.append(picture);
    const size = () => box.style.setProperty("--natural", `${picture.naturalWidth}px`);
    if (picture.complete) size();
    picture.addEventListener("load", size);
  }
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => mark(target)));
  for (const box of document.querySelectorAll(WIDE)) {
    sizes.observe(box);
    box.addEventListener("scroll", () => mark(box), { passive: true });
  }
});
