"""Links within a built site: every page, picture and place on a page that one of its pages names must be there."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

TARGETS = {"a": "href", "img": "src", "link": "href", "script": "src"}
KINDS = {"link": {"stylesheet", "icon", "shortcut icon", "next", "prev", "preload"}}


class _Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if given.get(TARGETS.get(tag, "")) and given.get("rel") in KINDS.get(tag, {given.get("rel")}):
            self.links.add(given[TARGETS[tag]])


def dead_links(site: Path) -> list[str]:
    """List the links within a site that lead nowhere, as page: link."""
    files = (path.resolve() for path in sorted(site.rglob("*.html")))
    pages = {path: _Page(path) for path in files if "_static" not in path.parts}  # templates of the theme
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.is_file() or (place and target in pages and place not in pages[target].places):
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead
