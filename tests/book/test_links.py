"""Links within a site: what is there is found, under any spelling, and what is not is named with its page."""

import pytest
from links import dead_links

PAGES = {
    "index.html": '<h1 id="top">A</h1><a name="old"></a><link rel="canonical" href="nowhere.html">',
    "part/page.html": '<div id="here"></div><div id="a é"></div>',
    "part/a b.html": "",
    "part/picture.png": "",
    "_static/template.html": '<a href="nowhere.html">',
    "style.css": "",
}


@pytest.fixture
def site(tmp_path):
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("link", "dead"),
    [
        ('<a href="../index.html">', False),
        ('<a href="../index.html#top">', False),
        ('<a href="../index.html#old">', False),
        ('<a href="#here">', False),
        ('<a href="page.html?q=1#here">', False),
        ('<a href="a%20b.html">', False),
        ('<a href="#a%20%C3%A9">', False),
        ('<a href="page.html#a%20e">', True),
        ('<a href="picture.png#anything">', False),
        ('<a href="https://example.com/nowhere">', False),
        ('<a href="//example.com/nowhere">', False),
        ('<a href="mailto:a@example.org">', False),
        ('<img src="picture.png">', False),
        ('<link rel="stylesheet" href="../style.css">', False),
        ('<link rel="edit" href="nowhere.html">', False),
        ("<a>", False),
        ('<a href="nowhere.html">', True),
        ('<a href="#nowhere">', True),
        ('<a href="../index.html#here">', True),
        ('<a href="../part">', True),
        ('<img src="nowhere.png">', True),
        ('<script src="nowhere.js">', True),
        ('<link rel="stylesheet" href="nowhere.css">', True),
        *((f'<link rel="{rel}" href="nowhere.html">', True) for rel in ("next", "prev", "preload", "icon")),
        ('<link rel="shortcut icon" href="nowhere.html">', True),
        ('<link rel="next" href="../index.html#nowhere">', True),
    ],
)
def test_a_link(link, dead, site):
    page = site / "part" / "page.html"
    page.write_text(PAGES["part/page.html"] + link, encoding="utf-8")
    target = link.partition('="')[2].rpartition('"')[0].rpartition('"')[2] if dead else ""
    assert dead_links(site) == ([f"part/page.html: {target}"] if dead else [])


def test_every_dead_link_is_listed_once_and_in_order(site):
    (site / "index.html").write_text('<a href="b"><a href="a"><a href="b"><a href="//elsewhere">', encoding="utf-8")
    assert dead_links(site) == ["index.html: a", "index.html: b"]


def test_a_page_is_read_as_utf_8_and_a_place_is_one_of_its_own(site):
    (site / "index.html").write_text(
        '<h1 id="größe"></h1><a href="#gr%C3%B6%C3%9Fe"><a href="part/page.html#größe">', "utf-8"
    )
    assert dead_links(site) == ["index.html: part/page.html#größe"]
