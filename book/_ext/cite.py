"""At the foot of every page, how to cite it: BibTeX made from CITATION.cff and the page's own title and address."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx

SPECIAL = re.compile(r"([&%$#_])")


def plain(text: str) -> str:
    """Keep TeX from reading signs as commands."""
    return SPECIAL.sub(r"\\\1", text)


def entry(citation: dict[str, Any], *, page: str, title: str, year: str, address: str) -> str:
    """Write the BibTeX entry of a page."""
    people = [person.get("name") or "" for person in citation["authors"]]
    known = [f"{person.get('family-names')}, {person.get('given-names')}" for person in citation["authors"]]
    authors = [f"{{{name}}}" if name else other for name, other in zip(people, known, strict=True)]
    fields = {
        "author": " and ".join(authors),
        "title": "{" + plain(title) + "}",
        "howpublished": "In: " + plain(citation["title"]),
        "year": str(citation.get("date-released", year))[:4],
        "version": str(citation["version"]),
        "url": address,
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{vaebook-{page.removeprefix('book/').replace('/', '-')},", *lines, "}"])


def add_citation(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the fold below the text of a page."""
    if doctree is None or app.builder.name != "html":
        return
    citation = yaml.safe_load(Path(app.srcdir, "CITATION.cff").read_text(encoding="utf-8"))
    title, year = app.env.titles[page].astext(), app.config.copyright
    text = entry(citation, page=page, title=title, year=year, address=f"{app.config.html_baseurl}{page}.html")
    context["body"] += (
        '<details class="cite"><summary>Cite this page</summary>'
        f'<div class="highlight"><pre tabindex="0">{escape(text)}</pre></div></details>'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the one listener."""
    app.connect("html-page-context", add_citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
