"""Repairs to the site that Jupyter Book 1.x and its extensions build; each says what it mends."""

from __future__ import annotations

import re
import struct
from html import escape, unescape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

LAUNCHED = "notebooks"  # the branch that .ci/notebooks fills with notebooks that run by themselves; see portable.py
CSS_PIXELS = 96 / 0.0254  # in a metre
SIZES = [  # of one sign of TeX, in the size of the text around it, as MathJax sets it on average
    (r"[\s{}&^_]|\\([,!;]|[td]?frac|math\w+|text\w*|operatorname|left|right|[bB]igg?[lr]?|bar|(wide)?(hat|tilde))", 0),
    (r"[-+=<>]|\\([lg]e|ne|to|approx|in|sim|propto|mapsto|ll|gg|times|cdot|pm)", 1.5),
    (r"\\(log|exp|min|max|det|tanh|cosh|KL|Cov|diag|sum|int|prod|quad)", 1.8),
    (r"\\?[^\w\\]", 0.5),
    (r"\d", 0.75),
    (r"[A-Z]|\\[A-Z]\w*|\\mid", 1.05),
    (r".*", 0.68),
]
FRACTION = re.compile(r"\\[td]?frac *(\{[^{}]*\}|\\[a-zA-Z]+|.) *(\{[^{}]*\}|\\[a-zA-Z]+|.)", re.DOTALL)
SMALL = re.compile(r"[_^](?:\{[^{}]*\}|\\math\w+\{[^{}]*\}|\\[a-zA-Z]+|.)", re.DOTALL)  # an index, an exponent


def room(tex: str) -> float:
    """Estimate how wide a formula will be, in the size of the text around it."""

    def sizes(text: str) -> list[float]:
        signs = re.findall(r"\\[a-zA-Z]+|\\.|.", text, re.DOTALL)
        return [next(size for kind, size in SIZES if re.fullmatch(kind, sign, re.DOTALL)) for sign in signs]

    # The longer part of a fraction is as small as an index.
    tex = FRACTION.sub(lambda parts: "_{" + max(parts.groups(), key=len).strip("{}") + "}", tex)
    return sum(sizes(SMALL.sub(" ", tex))) + 0.5 * sum(size > 0 for part in SMALL.findall(tex) for size in sizes(part))


def leave_room(formula: re.Match) -> str:
    """Note the width for book.css, so that the lines of the text stay as they are when the formula is set."""
    return f'{formula[1]} style="--room: {room(unescape(formula[2])):.1f}em">\\({formula[2]}\\)'


def keep_together(formula: re.Match) -> str:
    """Let no line break part a formula from the signs around it, where there are any."""
    return (
        formula[1] if formula[1][0] == "<" and formula[1][-1] == ">" else f'<span class="unbroken">{formula[1]}</span>'
    )


MENDED = [  # in the HTML of every page: what is wrong, what should stand there
    # A notebook link should download; a browser would show JSON.
    (re.compile(r'(<a href="[^"]*_sources/[^"]*\.ipynb")(?: target="_blank")?'), r"\1 download"),
    # The empty corner of a table is no header.
    (re.compile(r'<th class="head([^"]*)"><p></p></th>'), r'<td class="head\1"></td>'),
    # sphinx-exercise links the space before the number too.
    (re.compile(r"Solution to(<a [^>]*>) "), r"Solution to \1"),
    # What folds, and the button to search, are called by the words on them: who speaks those must press them.
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'(<button class="btn search-button-field[^>]*) aria-label="Search"'), r"\1"),
    # docutils gives references a role that ARIA has withdrawn, inside a list that wants items.
    (re.compile(r'(<div class="citation" id="[^"]*") role="doc-biblioentry"'), r'\1 role="listitem"'),
    # A line must not start with the comma that follows a formula, or end with the bracket that opens before it.
    (re.compile(r'([(“]*<span class="math[^"]*">[^<]*</span>[.,;:!?)”]*)'), keep_together),
    (re.compile(r'(<span class="math[^"]*")>\\\((.*?)\\\)', re.DOTALL), leave_room),
    # sphinx-proof and sphinx-exercise give one id to all proofs, one to the insides of all statements, and some twice.
    (re.compile(r'(<section(?: class="[a-z]+-content")?) id="(?:proof|exercise|solution)-content"'), r"\1"),
    (re.compile(r'(<div class="proof admonition") id="proof"'), r"\1"),
    (re.compile(r'(<p class="admonition-title") id="[a-z]+-\d+"'), r"\1"),
]
REDIRECT = """<!DOCTYPE html>
<html lang="{language}">
  <head>
    <meta charset="utf-8">
    <title>{title}</title>
    <meta http-equiv="refresh" content="0; url={url}">
    <link rel="canonical" href="{url}">
  </head>
  <body><main><h1>{title}</h1><p><a href="{url}">Read the book</a></p></main></body>
</html>
"""


def drop_thebe(app: Sphinx) -> None:
    """sphinx-thebe is not used here, would load from a CDN, and adds its script twice: an error on every page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if not entry.handler.__module__.startswith("sphinx_thebe")]


def follow_names(app: Sphinx, config: Config) -> None:
    """Set from the names in _config.yml what would repeat them; the theme links only to known hosts."""
    config.ogp_site_url = config.html_baseurl
    options = config.html_theme_options
    if "github.com/" in options.get("repository_url", ""):
        options["repository_branch"] = LAUNCHED
        options["use_issues_button"] = True
    else:
        for name in ("launch_buttons", "repository_url", "repository_branch"):
            options.pop(name, None)


def share_html_visitors(app: Sphinx) -> None:
    """sphinx-exercise registers its nodes for singlehtml too, which hides sphinx-proof's html visitors there."""
    handlers = app.registry.translation_handlers
    handlers["singlehtml"] = handlers.get("html", {}) | handlers.get("singlehtml", {})


def size_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Show a notebook's figures at their physical size; without a width the text around them jumps as they load."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        path = path if path.exists() else Path(image["uri"])
        if "width" in image or path.suffix != ".png" or "jupyter_execute" not in path.parts:
            continue
        head = path.read_bytes()[:1000]
        chunk = head.find(b"pHYs") + 4  # where a PNG holds its dots per metre
        if chunk > 3:
            width, per_metre = struct.unpack(">I", head[16:20])[0], struct.unpack(">I", head[chunk : chunk + 4])[0]
            image["width"] = f"{round(width / per_metre * CSS_PIXELS)}px"


def finish_pages(app: Sphinx, exception: Exception | None) -> None:
    """Mend the HTML, and give the redirect at the root, which Jupyter Book leaves bare, a title and a language."""
    if exception or app.builder.name != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = mended = page.read_text(encoding="utf-8")
        for wrong, right in MENDED:
            mended = wrong.sub(right, mended)
        if mended != text:
            page.write_text(mended, encoding="utf-8")
    root = f"{app.config.root_doc}.html"
    if root != "index.html":
        page = REDIRECT.format(language=app.config.language, title=escape(app.config.html_title), url=root)
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the repairs; those at builder-inited run after every extension has connected its own."""
    app.connect("config-inited", follow_names)
    app.connect("builder-inited", drop_thebe, priority=1)
    app.connect("builder-inited", share_html_visitors)
    app.connect("doctree-resolved", size_figures)
    app.connect("build-finished", finish_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
