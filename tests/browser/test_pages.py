"""Every page in a browser, with the network closed: formulas, console, accessibility, width of a phone."""

import importlib.util
from contextlib import suppress

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from build import build
from fingerprint import ROOT
from pdf import find_browser, printable
from playwright.sync_api import TimeoutError

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is installed")
FROM_THE_THEME = {"label-content-name-mismatch", "region"}
FORMULAS = """() => ({
    written: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('mjx-container').length,
    broken: Array.from(document.querySelectorAll('mjx-merror, [data-mjx-error]')).map(e => e.textContent),
    unread: document.querySelectorAll('mjx-container:not(:has(mjx-assistive-mml))').length,
})"""
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
UNFOLD = "() => document.querySelectorAll('details').forEach(box => (box.open = true))"
TWICE = """() => { const ids = Array.from(document.querySelectorAll('[id]'), box => box.id);
    return ids.filter((id, i) => ids.indexOf(id) !== i); }"""
IMAGES = "() => Array.from(document.images).filter(i => !i.naturalWidth || !i.alt).map(i => i.src)"
REACHABLE = """() => Array.from(document.querySelectorAll("pre, .cell_output > .output"))
    .every(box => box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"""
WIDTHS = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
READY = "() => !window.MathJax || (window.MathJax.startup?.promise && window.MathJax.startup.promise.then(() => true))"


def pages():
    """Names of the pages without suffix, from the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page.removesuffix(".ipynb") for page in chapters)]


def violations(page, scheme):
    """What axe finds in a colour scheme, but for what the theme brings with it."""
    page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
    options = {"resultTypes": ["violations"], "rules": {rule: {"enabled": False} for rule in FROM_THE_THEME}}
    found = Axe().run(page, options=options).response["violations"]
    return [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]


@pytest.fixture(scope="module", params=pages())
def seen(request, visit):
    """All that is checked of a page, from one visit: as on a desk and light, then as on a phone and dark."""
    with visit(request.param) as page:
        page.evaluate(UNFOLD)
        shown = {"formulas": page.evaluate(FORMULAS), "images": page.evaluate(IMAGES), "wrong": list(page.wrong)}
        shown["twice"] = page.evaluate(TWICE)
        shown["light"] = violations(page, "light")
        page.set_viewport_size({"width": 390, "height": 900})
        page.evaluate(TWO_FRAMES)  # what listens to a change of size has run
        with suppress(TimeoutError):  # the theme waits a moment before it does; if it never does, axe tells
            page.wait_for_function(REACHABLE, timeout=5_000)
        shown["widths"] = page.evaluate(WIDTHS)
        shown["dark"] = violations(page, "dark")
    return shown


def test_page_works_without_network(seen):
    assert seen["formulas"]["broken"] == []
    assert seen["formulas"]["rendered"] == seen["formulas"]["written"]
    assert seen["formulas"]["unread"] == 0
    assert seen["images"] == []
    assert seen["wrong"] == []


def test_ids_are_unique(seen):
    assert seen["twice"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(seen, scheme):
    assert seen[scheme] == []


def test_page_fits_a_phone(seen):
    assert seen["widths"][0] <= seen["widths"][1]


def test_root_leads_to_the_book(visit):
    with visit("index") as page:
        page.wait_for_url("**/book/intro.html")
        assert page.title()
        assert page.evaluate("document.documentElement.lang") == "en"


def test_notebooks_download(visit):
    chapter = next(name for name in pages() if (ROOT / f"{name}.ipynb").exists())
    with visit(chapter) as page:
        link = page.locator('a[href$=".ipynb"]').first
        assert link.get_attribute("download") is not None
        assert link.get_attribute("href").endswith(f"{chapter.split('/')[-1]}.ipynb")


def test_reference_has_every_public_name_and_notation_links_to_it(site):
    spec = importlib.util.spec_from_file_location("api", ROOT / "book" / "_ext" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    page = (site / f"{api.PAGE}.html").read_text(encoding="utf-8")
    names = [f"vaebook.{module}.{name}" for row, _ in api.layers() for module in row for name in api.public(module)]
    assert len(names) > 100
    assert [name for name in names if f'id="{name}"' not in page] == []
    notation = (site / "book" / "notation.html").read_text(encoding="utf-8")
    assert 'href="appendix/api.html#vaebook.mixture.DiagGaussianMixture"' in notation


@pytest.mark.slow
def test_the_page_that_is_printed_is_whole(browser, tmp_path):
    assert build(tmp_path, builder="singlehtml") == 0
    page, failed = browser.new_page(), []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(printable(tmp_path / "_build" / "singlehtml").as_uri(), wait_until="load")
    page.emulate_media(media="print")
    page.wait_for_function(READY)
    assert [url for url in failed if not url.endswith("/searchindex.js")] == []  # paper has no search
    formulas = page.evaluate(FORMULAS)
    assert formulas["broken"] == []
    assert formulas["rendered"] == formulas["written"] > 100
    assert page.evaluate("() => Array.from(document.images).filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("() => document.querySelectorAll('.toggle-hidden, details:not([open])').length") == 0


def test_proofs_and_checks_fold(browser, visit, site):
    folds = "details.fold"
    with visit("book/mixture/index") as page:
        lines = page.locator(f"{folds} > summary")
        assert page.locator(f"{folds}[open]").count() == 0
        checks = [line for line in lines.all_inner_texts() if line != "Proof"]
        assert len(checks) > 3
        assert all(line.startswith("Check: the claim holds; the falsehood is rejected, off by ") for line in checks)
        proof = page.locator(f"{folds} div.proof").first
        assert not proof.is_visible()
        lines.first.focus()
        page.keyboard.press("Enter")
        assert proof.is_visible()
        widths = (
            "() => Array.from(document.querySelectorAll('mjx-container')).map(box => getComputedStyle(box).fontSize)"
        )
        assert len(set(page.evaluate(widths))) <= 3  # a formula that was folded is not set in another size
        page.emulate_media(media="print")
        page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator(f"{folds}:not([open])").count() == 0
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "book/mixture/index.html").as_uri())
    assert page.locator(f"{folds} div.proof").first.is_visible()
    context.close()


def test_an_address_opens_what_it_names(visit):
    with visit("book/mixture/index") as page:
        page.evaluate("() => document.querySelector('details.fold p').id = 'here'")
        page.evaluate("() => location.hash = '#here'")
        page.wait_for_function("() => document.querySelector('details.fold').open")
