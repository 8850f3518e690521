"""One browser, one site: what the tests of pages and of figures share."""

import functools
import gzip
import http.server
import re
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from build import build
from filelock import FileLock
from fingerprint import ROOT
from pdf import find_browser
from playwright.sync_api import sync_playwright

# Two pages that no reader sees, for the popup of the address bar, came with every window: half a second of work each.
UNUSED = ["WebUIOmniboxPopup", "WebUIOmniboxAimPopup"]
# This takes the place of the same option of Playwright, of which all is here that concerns a page or asks the network.
UNUSED += ["AimEnabled", "AvoidCorsURLLoaderRestartOnRedirect", "AvoidUnnecessaryBeforeUnloadCheckSync"]
UNUSED += ["DestroyProfileOnBrowserClose", "HttpsFirstBalancedModeAutoEnable", "HttpsUpgrades", "LensOverlay"]
UNUSED += ["MediaRouter", "NetworkTimeServiceQuerying", "OptimizationHints", "PaintHolding", "PreconnectToSearch"]
UNUSED += ["ThirdPartyStoragePartitioning"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-features=" + ",".join(UNUSED)]
READ = {".md", ".ipynb", ".py", ".css", ".js", ".svg", ".bib", ".inv", ".json"}
READY = "() => !window.MathJax || (window.MathJax.startup?.promise && window.MathJax.startup.promise.then(() => true))"
ALL = """() => window.MathJax?.typesetPromise?.().then(() => document.dispatchEvent(new Event("toggle")))"""
SETTING = re.compile(r"/mathjax\.js|/figures/\w")
LATE = 0.5  # seconds
SHIFT = """window.shift = 0;
new PerformanceObserver(list => list.getEntries().forEach(entry => (window.shift += entry.value)))
    .observe({ type: "layout-shift", buffered: true });"""


@pytest.fixture(scope="session")
def checked():
    """Where the site is built, and the lock that lets only one worker build it."""
    output = ROOT / "_build" / "check"
    output.mkdir(parents=True, exist_ok=True)
    return output, FileLock(output / "lock")


@pytest.fixture(scope="session")
def site(checked):
    """The site as test_site.py has just built it, or a new one where it is older than what it is made of."""
    output, lock = checked
    index = output / "_build" / "html" / "index.html"
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "CITATION.cff", *(ROOT / "vaebook").rglob("*.py")]
    sources += [path for path in (ROOT / "book").rglob("*") if is_source(path)]
    with lock:
        if not index.exists() or index.stat().st_mtime < max(source.stat().st_mtime for source in sources):
            assert build(output) == 0
    return index.parent


def is_source(path):
    return path.suffix in READ and "mathjax" not in path.parts  # set-up copies that, always the same


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        if find_browser() is None:
            pytest.skip("neither Chromium nor Chrome is installed")
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def address(site):
    """The site over http, as readers get it."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def gzipped():
    """How many bytes a file takes on its way to a reader."""
    return functools.cache(lambda path: len(gzip.compress(path.read_bytes())))


@pytest.fixture(scope="session")
def visit(browser, site, address, gzipped):
    """A context manager that opens a page of the site and collects what goes wrong, in `page.wrong`.

    `page.weight()` is what it has loaded, in bytes. All formulas are set, or, with formulas="near", those that a reader
    would see first; without formulas a page opens in a fraction of the time. What sets
    formulas and draws figures may come late, after the text is on screen, as it does to a phone; `window.shift` is by
    how much the layout has shifted since, every shift counted.
    """

    @contextmanager
    def open_page(name, *, formulas=True, start=address, late=False, size=(1440, 900)):
        viewport = dict(zip(("width", "height"), size, strict=True))
        context = browser.new_context(viewport=viewport, reduced_motion="reduce")
        page = context.new_page()
        page.wrong, asked = [], set()
        allowed = (start, "data:", "blob:")
        context.route(lambda url: not url.startswith(allowed), lambda route: refuse(route, page))
        page.on("request", lambda request: asked.add(urlsplit(request.url).path.lstrip("/")))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.weight = lambda: sum(gzipped(site / path) for path in asked if (site / path).is_file())
        page.add_init_script(SHIFT)
        if late:
            due = time.monotonic() + LATE
            context.route(SETTING, lambda route: (time.sleep(max(0, due - time.monotonic())), route.continue_()))
        if not formulas:
            context.route("**/mathjax.js*", lambda route: route.fulfill(body="", content_type="text/javascript"))
        path, _, query = name.partition("?")
        page.goto(f"{start}/{path}.html" + (f"?{query}" if query else ""), wait_until="load")
        if formulas:
            page.wait_for_function(READY)
        if formulas is True:
            page.evaluate(ALL)
        yield page
        context.close()

    return open_page


def refuse(route, page):
    page.wrong.append(f"asked the network for {route.request.url}")
    route.abort()
