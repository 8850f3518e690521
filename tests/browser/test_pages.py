"""Every page in a browser, with the network closed: formulas, console, accessibility, width of a phone."""

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from build import build
from fingerprint import ROOT
from pdf import find_browser, printable
from playwright.sync_api import sync_playwright

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is installed")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FROM_THE_THEME = {"label-content-name-mismatch", "region"}
FORMULAS = """() => ({
    written: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('mjx-container').length,
    broken: Array.from(document.querySelectorAll('mjx-merror, [data-mjx-error]')).map(e => e.textContent),
    unread: document.querySelectorAll('mjx-container:not(:has(mjx-assistive-mml))').length,
})"""
READY = "() => !window.MathJax || (window.MathJax.startup?.promise && window.MathJax.startup.promise.then(() => true))"


def pages():
    """Names of the pages without suffix, from the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page.removesuffix(".ipynb") for page in chapters)]


@pytest.fixture(scope="session")
def site():
    """The site as `make test` has just built it, or a new one where this file is run alone."""
    html = ROOT / "_build" / "check" / "_build" / "html"
    if not (html / "index.html").exists():
        build(ROOT / "_build" / "check")
    return html


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, site):
    """A function that opens a page of the site at a given width and collects what goes wrong."""
    contexts = []

    def open_page(name, width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        context.route(lambda url: not url.startswith(("file:", "data:", "blob:")), lambda route: refuse(route, page))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        page.wait_for_function(READY)
        return page

    yield open_page
    for context in contexts:
        context.close()


def refuse(route, page):
    page.wrong.append(f"asked the network for {route.request.url}")
    route.abort()


@pytest.fixture(params=pages())
def name(request):
    return request.param


def test_page_works_without_network(visit, name):
    page = visit(name)
    formulas = page.evaluate(FORMULAS)
    assert formulas["broken"] == []
    assert formulas["rendered"] == formulas["written"]
    assert formulas["unread"] == 0
    images = page.evaluate("() => Array.from(document.images).filter(i => !i.naturalWidth || !i.alt).map(i => i.src)")
    assert images == []
    assert page.wrong == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_page_is_accessible(visit, name, scheme, width):
    page = visit(name, width=width)
    page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
    found = Axe().run(page).response["violations"]
    told = [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]
    assert [problem for problem in told if problem[0] not in FROM_THE_THEME] == []


def test_page_fits_a_phone(visit, name):
    page = visit(name, width=390)
    wide = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]


def test_root_leads_to_the_book(visit):
    page = visit("index")
    page.wait_for_url("**/book/intro.html")
    assert page.title()
    assert page.evaluate("document.documentElement.lang") == "en"


def test_notebooks_download(visit):
    chapters = [name for name in pages() if (ROOT / f"{name}.ipynb").exists()]
    page = visit(chapters[0])
    link = page.locator('a[href$=".ipynb"]').first
    assert link.get_attribute("download") is not None
    assert link.get_attribute("href").endswith(f"{chapters[0].split('/')[-1]}.ipynb")


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
