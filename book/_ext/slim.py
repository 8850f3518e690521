"""Pages without what the theme loads and the book does not use.

When all pages are written, scripts and styles of which a page uses nothing go; the styles that stay become one file of
the rules that can match; icons are the outlines of those that appear, instead of a script of 1.5 MB with all;
no script holds up the first paint, pictures further down wait until they are near, and those that are not SVG become
WebP, without loss unless that takes more than twice the bytes, as clouds of points do.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import tinycss2
from PIL import Image
from sphinx.application import Sphinx

UNUSED = r"scripts/fontawesome\.js|sphinx-thebe\.css"
TOOLS = re.compile(r'<script src="_static/searchtools\.js[^"]*"></script>')
SEARCH = r"searchtools\.js|language_data\.js|searchindex\.js"
DESIGN = r"design-tabs\.js"
TAG = r'\s*<(?:script|link)\b[^>]*(?:src|href)="[^"]*(?:{})[^"]*"[^>]*>(?:</script>)?'
STYLE = re.compile(r'\s*<link\b(?=[^>]*rel="stylesheet")[^>]*href="(?:\.\./)*_static/([^"?]+)[^"]*"[^>]*>')
OPTIONS = re.compile(r'<script src="(?:\.\./)*_static/documentation_options\.js[^"]*"></script>')
HELD = re.compile(r'<script (?!defer)(?=[^>]*src="(?!https?:)(?![^"]*documentation_options))')
# The theme repeats the one that Sphinx writes, and the others are for a search service.
TWICE = re.compile(
    r'<meta name="(?:viewport" content="width=device-width, initial-scale=1|docsearch:\w+" content="[^"]*)" ?/>'
)
PICTURE = re.compile(r'<img (?=[^>]*src="[^"]*_images/([^"]+\.(?:png|svg))")')
DRAWN = re.compile(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"')
POINT = 4 / 3  # in CSS's pixels
NEARLY = 90  # of 100: looked at closely, thin coloured lines are a little paler
PNG = re.compile(r"(_images/[\w-]+)\.png")
LEFT = ["_static/scripts/fontawesome.js*", "_static/vendor", "_static/locales", "_static/**/*.map"]
STYLED = (".fa-solid", ".fas", ".fa-regular", ".far", ".fa-brands", ".fab")
ICON = r'"?(?<![\w-]){}"?:\[(\d+),(\d+),\[[^\]]*\],"\w+","([^"]+)"'
# A sign of the font of icons, which no page loads: a reader would see an empty box.
GLYPH = re.compile(r'content: *(?:var\(--pst-icon-[\w-]+\)|"(?:[\ue000-\uf8ff]|\\[ef][0-9a-f]{3})")')
ICONS = f"""/* Icons: Font Awesome Free, https://fontawesome.com, CC BY 4.0 */
:is({", ".join(STYLED)}) {{ display: inline-block; width: 1.25em; height: 1em; vertical-align: -0.125em;
background: currentcolor; mask: var(--icon) center / contain no-repeat; }}
@media (forced-colors: active) {{ :is({", ".join(STYLED)}) {{ forced-color-adjust: none; background: CanvasText; }} }}
.fa-lg {{ font-size: 1.25em; }}
"""


def slim(app: Sphinx, exception: Exception | None) -> None:
    """Rewrite all pages of the site, and remove the files that none of them loads."""
    if exception or app.builder.name != "html":
        return
    site = Path(app.outdir)
    files = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    pages = {page: clean(page.read_text(encoding="utf-8"), site, search=page.stem == "search") for page in files}
    names = dict.fromkeys(name for text in pages.values() for name in STYLE.findall(text))
    shared = [name for name in names if not name.startswith("figures/")]
    css = styles([site / "_static" / name for name in shared], words(pages.values(), site))
    css += icons(pages.values(), site / "_static" / "scripts" / "fontawesome.js")
    (site / "_static" / "shared.css").write_text(css, encoding="utf-8")
    options = (site / "_static" / "documentation_options.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(css.encode()).hexdigest()[:8]
    for page, text in pages.items():
        place = f"{'../' * (len(page.relative_to(site).parts) - 1)}_static/shared.css?v={digest}"
        text = OPTIONS.sub(lambda _: f"<script>{options}</script>", one_style(text, shared, place))
        page.write_text(PNG.sub(r"\1.webp", text), encoding="utf-8")
    for picture in site.glob("_images/*.png"):
        picture.with_suffix(".webp").write_bytes(webp(Image.open(picture)))
        picture.unlink()
    for path in [path for pattern in LEFT for path in site.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def webp(picture: Image.Image) -> bytes:
    """Encode a picture without loss, or nearly so if that halves it."""
    exact, near = io.BytesIO(), io.BytesIO()
    picture.save(exact, "WEBP", lossless=True, method=2)
    picture.save(near, "WEBP", quality=NEARLY)
    return (near if 2 * near.tell() < exact.tell() else exact).getvalue()


def clean(text: str, site: Path, *, search: bool) -> str:
    """Take from a page what it does not use, and let scripts and all pictures but the first wait."""
    unused = [UNUSED, *([] if search else [SEARCH]), *([] if re.search(r'class="[^"]*\bsd-', text) else [DESIGN])]
    text = TOOLS.sub(r'\g<0><script src="_static/search.js"></script>', text) if search else text
    text = TWICE.sub("", re.sub(TAG.format("|".join(unused)), "", text))
    seen: list[str] = []

    def sized(tag: re.Match) -> str:
        seen.append(tag[1])
        width, height = size(site / "_images" / tag[1])
        return f'<img width="{width}" height="{height}" {"loading=lazy" if len(seen) > 1 else "fetchpriority=high"} '

    return PICTURE.sub(sized, HELD.sub("<script defer ", text))


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a picture: of a PNG in its own pixels, of a drawing in those of CSS."""
    data = picture.read_bytes()
    if picture.suffix == ".png":
        return struct.unpack(">II", data[16:24])
    return tuple(round(POINT * float(length)) for length in DRAWN.search(data.decode()).groups())


def one_style(text: str, shared: list[str], place: str) -> str:
    """Replace the first of the shared style sheets of a page by the one file, and remove the others."""
    links = iter([f'\n    <link rel="stylesheet" href="{place}" />'])
    return STYLE.sub(lambda tag: next(links, "") if tag[1] in shared else tag[0], text)


def words(pages: Iterable[str], site: Path) -> set[str]:
    """Every word that could be a class or an id on some page, now or once a script has run."""
    skipped = {"fontawesome.js", "searchindex.js", "mathjax.js"}
    scripts = [path for path in site.rglob("*.js") if path.name not in skipped and "locales" not in path.parts]
    texts = [*pages, *(path.read_text(encoding="utf-8") for path in scripts)]
    return set().union(*(re.findall(r"[\w-]+", text) for text in texts))


def styles(sheets: list[Path], used: set[str]) -> str:
    """Join style sheets and keep only the rules that can match."""

    def read(path: Path) -> str:
        load = lambda found: read(path.parent / found[1])  # noqa: E731
        return re.sub(r'@import\s+(?:url\()?"?([^";)]+)"?\)?;', load, path.read_text(encoding="utf-8"))

    text = "".join(map(read, sheets))
    return "".join(kept(tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True), used))


def kept(rules: list[tinycss2.ast.Node], used: set[str]) -> Iterator[str]:
    """Write rules as text, without selectors that name what no page has."""
    for rule in rules:
        content = GLYPH.sub("content: none", tinycss2.serialize(rule.content)) if rule.content is not None else None
        if rule.type == "qualified-rule":
            if selectors := [text for text in selectors_of(rule.prelude) if can_match(text, used)]:
                yield f"{','.join(selectors)}{{{content}}}\n"
        elif rule.at_keyword in {"media", "supports"}:
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if inside := "".join(kept(inner, used)):
                yield f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}\n"
        elif rule.at_keyword != "font-face":  # the theme's are those of its icons
            yield rule.serialize()


def selectors_of(prelude: list[tinycss2.ast.Node]) -> list[str]:
    """Split a list of selectors at its commas; those within brackets are no commas of its own."""
    parts: list[list[tinycss2.ast.Node]] = [[]]
    for token in prelude:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return [tinycss2.serialize(part).strip() for part in parts]


def can_match(selector: str, used: set[str]) -> bool:
    """Whether the classes and ids that a selector asks for are all there; icons have rules of their own here."""
    plain = re.sub(r"\[[^\]]*\]|:(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)", "", selector)
    names = re.findall(r"[.#]((?:[\w-]|\\.)+)", plain)
    return used.issuperset(names) and not any(
        name in {"fa", "fas", "far", "fab"} or name[:3] == "fa-" for name in names
    )


def icons(pages: Iterable[str], script: Path) -> str:
    """Outlines of the icons that appear, as masks."""
    outlines, rules = script.read_text(encoding="utf-8"), [ICONS]
    tags = {tag for text in pages for tag in re.findall(r'<(?:i|span) class="([^"]*\bfa[srb-][^"]*)"', text)}
    for name in sorted(
        {name for tag in tags for name in re.findall(r"\bfa-([\w-]+)", tag)} - {"solid", "regular", "brands", "lg"}
    ):
        width, height, path = re.findall(ICON.format(re.escape(name)), outlines)[-1]  # the solid set is the last
        drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><path d="{path}"/></svg>'
        held = base64.b64encode(drawing.encode()).decode()
        rules.append(f'.fa-{name} {{ --icon: url("data:image/svg+xml;base64,{held}"); }}\n')
    return "".join(rules)


def setup(app: Sphinx) -> dict[str, bool]:
    """Run when all pages are written and mended."""
    app.connect("build-finished", slim, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
