// Boxes too wide for the page scroll sideways: let the keyboard reach them, and show where there is more.
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll("mjx-container, div.math, figure, .pst-scrollable-table-container")) {
    const beyond = box.scrollWidth - box.clientWidth;
    if (beyond <= 0 || getComputedStyle(box).overflowX === "visible") {
      continue;
    }
    if (beyond === 1) {
      box.style.overflow = "hidden"; // a width that was rounded: nothing to scroll to
      continue;
    }
    const mark = () => box.classList.toggle("has-more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
    box.tabIndex = 0;
    box.addEventListener("scroll", mark, { passive: true });
    mark();
  }
});

// Paper cannot be clicked: unfold solutions and code before printing.
const unfold = () => {
  document.querySelectorAll("details").forEach((details) => (details.open = true));
  document.querySelectorAll(".toggle-hidden").forEach((box) => box.classList.remove("toggle-hidden"));
};
window.addEventListener("beforeprint", unfold);
window.matchMedia("print").addEventListener("change", (query) => query.matches && unfold());
