// Formulas are set a few at a time, those in sight and on the next screen first, the others when they come near: so the
// page can be read and scrolled meanwhile.
const FEW = 4; // at once; each time the browser lays the page out again
const FONTS = { MJXTEX: "Main-Regular", "MJXTEX-I": "Math-Italic", "MJXTEX-S1": "Size1-Regular" };
const folder = new URL("mathjax/output/chtml/fonts/woff-v2/", document.currentScript.src);
const loadFont = ([family, file]) => {
  const font = new FontFace(family, `url(${folder}MathJax_${file}.woff)`);
  document.fonts.add(font);
  return font.load();
};
const fonts = window.MathJax ? Object.entries(FONTS).map(loadFont) : []; // with another font a line breaks elsewhere
const paper = window.matchMedia("print");
const setSome = async (boxes) => {
  for (let i = 0; i < boxes.length; i += FEW) {
    await MathJax.typesetPromise(boxes.slice(i, i + FEW));
    await new Promise((done) => setTimeout(done));
  }
};
const setFormulas = async () => {
  await Promise.allSettled(fonts);
  const all = Array.from(document.querySelectorAll(".math"));
  if (paper.matches || !all.length) {
    return MathJax.typesetPromise();
  }
  let before = Promise.resolve();
  return new Promise((done) => {
    const comeNear = (seen, observer) => {
      const boxes = seen.filter(({ isIntersecting }) => isIntersecting).map(({ target }) => target);
      boxes.forEach((box) => observer.unobserve(box));
      before = before.then(() => setSome(boxes)).then(settle).then(done);
    };
    const near = new IntersectionObserver(comeNear, { rootMargin: "100%" });
    all.forEach((box) => near.observe(box));
  });
};
if (window.MathJax) {
  window.MathJax.startup = { pageReady: setFormulas };
}

// Boxes too wide for the page scroll sideways: let the keyboard reach them, and show where there is more.
const BOXES = "mjx-container, div.math, figure, .pst-scrollable-table-container";
const mark = ({ target: box }) =>
  box.classList.toggle("has-more", box.scrollLeft + box.clientWidth < box.scrollWidth - 4);
// A formula within text that is wider than its line becomes a box of its own, which scrolls.
const BLOCK = "p, li, dd, dt, td, th, figcaption, summary, h1, h2, h3, h4, div";
const widen = () => {
  const inline = Array.from(document.querySelectorAll("mjx-container:not([display])"));
  inline.forEach((box) => box.classList.remove("wide"));
  const beyond = (box) => {
    const around = box.parentElement.closest(BLOCK);
    const { paddingLeft, paddingRight } = getComputedStyle(around);
    const room = around.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
    return room > 0 && (box.closest(".unbroken") ?? box).getBoundingClientRect().width > room + 1; // clientWidth is rounded
  };
  inline.filter(beyond).forEach((box) => box.classList.add("wide"));
};
const settle = () => {
  widen();
  for (const box of document.querySelectorAll(BOXES)) {
    box.style.overflow = ""; // what it was at another width
    box.classList.remove("has-more");
    const beyond = box.scrollWidth - box.clientWidth;
    if (beyond <= 0 || getComputedStyle(box).overflowX === "visible") {
      continue;
    }
    if (beyond === 1) {
      box.style.overflow = "hidden"; // a width that was rounded: nothing to scroll to
      continue;
    }
    box.tabIndex = 0;
    box.addEventListener("scroll", mark, { passive: true }); // the same listener again changes nothing
    mark({ target: box });
  }
  // The theme looks at code once, when what is folded has no width.
  document.querySelectorAll("pre").forEach((box) => box.scrollWidth > box.clientWidth && (box.tabIndex = 0));
};
window.addEventListener("load", async () => {
  if (!window.MathJax?.startup?.promise) {
    document.documentElement.classList.add("plain-tex"); // it did not come: show what is there
  }
  await window.MathJax?.startup?.promise;
  await document.fonts?.ready;
  settle();
  let width;
  new ResizeObserver(([{ contentRect }]) => contentRect.width !== width && ((width = contentRect.width), settle())).observe(
    document.querySelector("article") ?? document.body, // a window made narrower, a phone that is turned, a column that went
  );
});

// Proofs and checks come open, for readers without scripts; here they fold, but for the one that the address names.
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = [];
  for (let box = target && target.closest("details:not([open])"); box; box = box.parentElement.closest("details:not([open])")) {
    closed.push(box);
  }
  closed.forEach((box) => (box.open = true));
  closed.length && target.scrollIntoView();
};
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("details.fold").forEach((box) => (box.open = false));
  reveal();
});
window.addEventListener("hashchange", reveal);
document.addEventListener("toggle", settle, true); // what was folded had no width
document.addEventListener("click", ({ target }) => target.closest?.(".toggle") && requestAnimationFrame(settle)); // a solution

// Paper cannot be clicked or scrolled: unfold solutions and code, and set all formulas, before printing.
const unfold = () => {
  document.querySelectorAll("details").forEach((details) => (details.open = true));
  document.querySelectorAll(".toggle-hidden").forEach((box) => box.classList.remove("toggle-hidden"));
  window.MathJax?.typeset?.();
};
window.addEventListener("beforeprint", unfold);
paper.addEventListener("change", () => paper.matches && unfold());
