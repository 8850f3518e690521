// Results of a search: excerpts in words, also for places whose names hold a slash, and none where a page cannot be read.
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  page.querySelectorAll(".headerlink, script, style, .toc, details.cite").forEach((box) => box.remove());
  page.querySelectorAll(".math").forEach((box) => (box.textContent = inWords(box.textContent)));
  const place = anchor && page.getElementById(decodeURIComponent(anchor.slice(1)));
  return (place || page.querySelector("article") || page.body).textContent;
};

// A formula without its TeX: \(\log q_{\mathrm{agg}}(z)\) is read as log q_agg(z).
const inWords = (tex) =>
  tex
    .replace(/\\[()[\]]|\\(begin|end)\{\w+\*?\}|\\[,;:! ]|\\(left|right|bigl?|bigr?|Bigl?|Bigr?)(?![a-zA-Z])|[&$]/g, "")
    .replace(/\\(mathrm|mathbb|mathcal|mathbf|operatorname|text|boldsymbol|label)\*?\s*/g, "")
    .replace(/\\\\/g, " ")
    .replace(/\\([a-zA-Z]+)|\\(.)|[{}]/g, (_, word, sign) => word || sign || "");

if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; // a page in a folder may not read its neighbours
}
