"""Every page in a browser, with the network closed: formulas, console, accessibility, weight, widths, paper."""

import html
import importlib.util
import re
from contextlib import suppress
from urllib.parse import quote

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from build import build
from fingerprint import ROOT, read_ipynb
from pdf import find_browser, printable
from playwright.sync_api import TimeoutError

from vaebook.claims import ledger

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is installed")
FROM_THE_THEME = {"region"}
FORMULAS = """() => ({
    written: document.querySelectorAll('.math').length,
    rendered: document.querySelectorAll('mjx-container').length,
    broken: Array.from(document.querySelectorAll('mjx-merror, [data-mjx-error]')).map(e => e.textContent),
    unread: document.querySelectorAll('mjx-container:not(:has(mjx-assistive-mml))').length,
})"""
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
UNFOLD = """() => {
    document.querySelectorAll("details").forEach(box => (box.open = true));
    document.querySelectorAll(".toggle-hidden").forEach(box => box.classList.remove("toggle-hidden"));
    document.dispatchEvent(new Event("toggle"));
}"""
# What unfolds, and what takes another theme, fades over a third of a second, during which it has less contrast.
STILL = "() => document.getAnimations().forEach(animation => animation.finish())"
TWICE = """() => { const ids = Array.from(document.querySelectorAll('[id]'), box => box.id);
    return ids.filter((id, i) => ids.indexOf(id) !== i); }"""
IMAGES = """async () => {
    const images = Array.from(document.images);
    images.forEach(image => (image.loading = "eager"));  // those further down wait until a reader comes near
    await Promise.allSettled(images.map(image => image.decode()));
    return images.filter(image => !image.naturalWidth || !image.alt).map(image => image.src); }"""
HEAD = """() => ({
    title: document.title,
    description: document.querySelector("meta[name=description]")?.content ?? "",
    canonical: document.querySelector("link[rel=canonical]")?.href,
    viewports: document.querySelectorAll("meta[name=viewport]").length,
    waits: Array.from(document.head.querySelectorAll("script[src]:not([defer]):not([async])"), script => script.src),
    styles: Array.from(document.head.querySelectorAll("link[rel=stylesheet]"), link => new URL(link.href).pathname),
})"""
# What reaches beyond the window, is cut off, or scrolls in a box that the keyboard does not reach.
HIDDEN = """() => {
    const edge = document.documentElement.clientWidth, found = [];
    for (const box of document.querySelectorAll("mjx-container, pre, .cell_output > .output, figure, table")) {
        const { left, right, width } = box.getBoundingClientRect();
        if (!width || box.closest("mjx-assistive-mml")) continue;
        let [from, to, holder] = [0, edge, null];
        for (let around = box; around && !holder; around = around.parentElement) {
            const style = getComputedStyle(around);
            if (style.overflowX === "visible" || around === document.documentElement) continue;
            const inner = around.getBoundingClientRect();
            if (style.overflowX === "hidden" || style.overflowX === "clip") {
                [from, to] = [inner.left, inner.right];
            }
            holder = around;
        }
        const scrolls = holder && /auto|scroll/.test(getComputedStyle(holder).overflowX);
        const fits = !scrolls && left >= from - 1.5 && right <= to + 1.5;
        const reached = scrolls && (holder.scrollWidth <= holder.clientWidth || holder.tabIndex === 0);
        const place = `${box.tagName} ${Math.round(left)} to ${Math.round(right)}: `;
        const cut = holder === box && !scrolls && box.scrollWidth > box.clientWidth + 1.5;
        (fits && !cut) || reached || found.push(place + box.textContent.slice(0, 60));
    }
    const scroll = document.documentElement.scrollWidth;
    return [...found, ...(scroll > edge ? [`the page is ${scroll} wide`] : [])];
}"""
PAPER = """() => {
    const inside = selector => Array.from(document.querySelectorAll(`.bd-article ${selector}`));
    const faded = ({ animationName, opacity }) => animationName !== "none" || opacity === "0";
    return [
        ...inside("details:not([open])"),
        ...inside(".toggle-hidden"),
        ...inside("details *").filter(box => box.checkVisibility() && faded(getComputedStyle(box))),
        ...inside(":is(pre, mjx-container, table, img)").filter(box => !box.checkVisibility()),
        ...inside("pre").filter(box => box.scrollWidth > box.clientWidth + 2),
    ].map(box => box.outerHTML.slice(0, 120));
}"""
SETTLED = """() => Array.from(document.querySelectorAll("pre, .output, div.math, mjx-container")).every(box =>
    box.scrollWidth <= box.clientWidth + 1 || box.tabIndex === 0 || getComputedStyle(box).overflowX === "visible")"""
FADED = """() => Array.from(document.querySelectorAll(".has-more"))
    .filter(box => box.scrollWidth <= box.clientWidth + 4).map(box => box.outerHTML.slice(0, 120))"""
# Numbers in tables, with sign, exponent, error or unit, of which a part stands on another line.
BROKEN = r"""() => Array.from(document.querySelectorAll(".bd-article .cell_output td")).filter(cell => {
    const number = /^[+−-]?[\d.,]+(e[+-]?\d+)?( [±%×].*)?$/.test(cell.textContent.trim());
    if (!number || cell.closest("details.fold")) return false;
    const range = document.createRange();
    range.selectNodeContents(cell);
    const tops = Array.from(range.getClientRects()).filter(part => part.width > 1).map(part => part.top);
    return tops.length && Math.max(...tops) - Math.min(...tops) > 10;
}).map(cell => cell.textContent.trim())"""
READY = "() => !window.MathJax || (window.MathJax.startup?.promise && window.MathJax.startup.promise.then(() => true))"
# Formulas have been looked at; without the thousands of boxes within them axe takes a fraction of the time.
BARE = """() => document.querySelectorAll("mjx-container").forEach(box => {
    box.replaceChildren("x");
    box.style.lineHeight = "normal";  // with that of a formula, zero, the letter would stick out of its box
})"""
# Nine tenths of the time of axe go to contrast, which is the same for all texts of one look: their own style, and what
# lies behind them. Of each look one text is marked; the page with all of them is looked at by a slow test.
LOOKS = """() => {
    const numbers = new Map(), behind = new WeakMap([[document, 0]]), seen = new Set();
    const own = ["backgroundColor", "backgroundImage", "opacity", "filter", "mixBlendMode", "position", "zIndex",
        "float", "display", "visibility", "overflowX", "clipPath", "transform"];
    const around = box => {  // a number for the looks of a box and of all boxes around it
        if (!behind.has(box)) {
            const style = getComputedStyle(box);
            const look = [around(box.parentNode), ...own.map(name => style[name])].join();
            numbers.has(look) || numbers.set(look, numbers.size + 1);
            behind.set(box, numbers.get(look));
        }
        return behind.get(box);
    };
    for (const box of document.body.querySelectorAll("*")) {
        box.removeAttribute("data-look");
        // Of a single letter axe is unsure.
        const letters = node => node.nodeType === Node.TEXT_NODE && node.data.trim().length > 1;
        const text = Array.from(box.childNodes).some(letters);
        if (!text && !box.matches("input, select, textarea, button")) continue;
        const style = getComputedStyle(box);
        const look = ["color", "fontSize", "fontWeight", "textShadow"].map(name => style[name]).join() + around(box);
        if (!seen.has(look)) box.setAttribute("data-look", "");
        seen.add(look);
    }
    return seen.size;
}"""
# Half of the boxes of a page are words of code, and to find out what lies where takes axe most of its time. Those that
# are not marked and say nothing but their colour lend their text to the box around them until axe has been.
AWAY = """() => {
    window.away = work => {  // all changes at once: each by itself would make styles anew
        const article = document.querySelector("article"), place = document.createComment("");
        article.replaceWith(place);
        work(article);
        place.replaceWith(article);
    };
}"""
LEND = """() => {
    const plain = span => Array.from(span.attributes).every(({ name }) => name === "class") && span.firstChild
        && getComputedStyle(span).display === "inline";
    const words = Array.from(document.querySelectorAll("article :is(pre, dt) span:not([data-look])")).filter(plain);
    window.lent = [];
    away(() => words.reverse().forEach(span => {
        if (span.childElementCount) return;  // what is in it is marked
        const text = Array.from(span.childNodes);
        span.replaceWith(...text);
        lent.push([span, text]);
    }));
}"""
GIVE_BACK = """() => away(() => lent.reverse().forEach(([span, text]) => {
    text[0].before(span);
    span.append(...text);
}))"""
AXE = """async ({ texts, off }) => {
    axe.configure({ rules: [{ id: "color-contrast", selector: texts }] });
    const rules = Object.fromEntries(off.map(rule => [rule, { enabled: false }]));
    rules["label-content-name-mismatch"] = { enabled: true };  // a word on a button that speech cannot press
    const { violations } = await axe.run({ resultTypes: ["violations"], rules });
    return violations.flatMap(({ id, nodes }) => nodes.map(({ html }) => [id, html.slice(0, 200)]));
}"""
SPOIL = """([boxes, least, where]) => {
    const own = box => Array.from(box.childNodes).some(part => part.nodeType === Node.TEXT_NODE && part.length > least);
    const texts = Array.from(document.querySelectorAll(`article ${boxes}`)).filter(own);
    const text = texts[Math.round(where * (texts.length - 1))];
    text.style.color = "#555";
    return text;
}"""
EVIDENCE = re.compile(
    r"\*\*Check of .*?\n\| claim: (.+?) ([=≤≥]) (.+?) \| (\S+) [=≤≥] (\S+) \| (.+?) \|.*?\| (\w+) \|"
    r"\n\| falsehood \|.*?\| (\S+) \|",
    re.DOTALL,
)
# What Lighthouse says tells nobody where a link leads.
VAGUE = {"click here", "click this", "go", "here", "information", "learn more", "more", "more info"}
VAGUE |= {"more information", "right here", "read more", "see more", "start", "this"}
SIZES = [320, 390, 768, 1440]
PHONE = (412, 823)
SHIFT = 0.1  # of the window's height, weighed by the part of it that moves: what is called good
MOST = 1_000_000  # bytes, gzipped, of all that a page loads
FIRST = 200_000  # bytes, gzipped, without which nothing is painted: a second on a slow phone


def pages():
    """Names of the pages without suffix, from the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(page.removesuffix(".ipynb") for page in chapters)]


def violations(page, scheme, *, every=False):
    """Rule and element of what axe finds in a colour scheme, but for what the theme brings with it.

    Contrast is that of one text of each look, or of every text.
    """
    page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")
    page.evaluate(STILL)
    assert page.evaluate(LOOKS) > 1
    if page.evaluate("() => !window.axe"):
        page.evaluate(Axe().axe_script)
        page.evaluate(AWAY)
    if every:
        return page.evaluate(AXE, {"texts": "*", "off": sorted(FROM_THE_THEME)})
    page.evaluate(LEND)
    page.evaluate(STILL)
    found = page.evaluate(AXE, {"texts": "[data-look]", "off": sorted(FROM_THE_THEME)})
    page.evaluate(GIVE_BACK)
    return found


def resize(page, width):
    """Give the window another width, and let what listens to that do its work."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(TWO_FRAMES)
    with suppress(TimeoutError):  # the theme waits a moment before it does; if it never does, the tests tell
        page.wait_for_function(SETTLED, timeout=5_000)


@pytest.fixture(scope="module", params=pages())
def seen(request, visit, site):
    """All that is checked of a page, from one visit: at every width, on paper, light on a desk and dark on a phone."""
    shown = {"name": request.param, "hidden": {}, "faded": {}}
    with visit(request.param, late=True, size=PHONE) as page:
        page.evaluate(TWO_FRAMES)
        shown["shift"] = page.evaluate("() => window.shift")
        page.set_viewport_size({"width": SIZES[-1], "height": 900})
        shown["head"] = page.evaluate(HEAD)
        page.emulate_media(media="print")
        page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
        shown["paper"] = page.evaluate(PAPER)
        page.emulate_media(media="screen")
        page.evaluate(UNFOLD)
        shown |= {"formulas": page.evaluate(FORMULAS), "images": page.evaluate(IMAGES), "twice": page.evaluate(TWICE)}
        shown["weight"] = page.weight()
        for width in SIZES:  # the last is that of a desk
            resize(page, width)
            shown["hidden"][width] = page.evaluate(HIDDEN)
            shown["faded"][width] = page.evaluate(FADED)
        shown["broken"] = page.evaluate(BROKEN)
        page.evaluate(BARE)
        shown["light"] = violations(page, "light")
        resize(page, 390)
        shown["dark"] = violations(page, "dark")
        shown["wrong"] = list(page.wrong)
    shown["text"] = (site / f"{request.param}.html").read_text(encoding="utf-8")
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


@pytest.fixture(scope="module")
def dark(visit):
    """A page in which all texts have contrast."""
    with visit("book/primer", formulas=False) as page:
        page.evaluate(UNFOLD)
        assert violations(page, "dark") == []
        yield page


TEXTS, CODE = (":is(p, td)", 9), ("pre span", 3)  # where, and of how many letters at least
WORDS = {"first": [*TEXTS, 0], "middle": [*TEXTS, 0.5], "last": [*TEXTS, 1], "of code": [*CODE, 0.5]}


@pytest.mark.parametrize("word", WORDS)
def test_one_text_without_contrast_is_found(dark, word):
    undo = dark.evaluate_handle(SPOIL, WORDS[word])
    assert {rule for rule, _ in violations(dark, "dark")} == {"color-contrast"}
    undo.evaluate("text => text.style.color = ''")


@pytest.mark.slow
@pytest.mark.parametrize("name", pages())
def test_every_text_has_contrast(visit, name):
    with visit(name) as page:
        page.evaluate(UNFOLD)
        page.evaluate(BARE)
        # Where what is out of sight is not laid out, axe sees texts behind others that are elsewhere by then.
        page.add_style_tag(content="* { content-visibility: visible !important }")
        for scheme, width in (("light", 1440), ("dark", 390)):
            resize(page, width)
            assert violations(page, scheme, every=True) == []


@pytest.mark.parametrize("width", SIZES)
def test_nothing_is_cut_off(seen, width):
    assert seen["hidden"][width] == []


def test_a_number_in_a_table_stands_on_one_line(seen):
    assert seen["broken"] == []


def test_a_window_made_wider_fades_nothing_that_is_whole(seen):
    assert not any(seen["faded"].values())


def test_a_desk_shows_all_columns_and_symbols_of_the_notation(visit):
    with visit("book/notation") as page:
        assert page.locator("table.cards").count() > 0
        assert page.locator(".has-more:has(table.cards), table.cards .has-more").count() == 0


def test_page_is_whole_on_paper(seen):
    assert seen["paper"] == []


def test_page_is_light_and_nothing_holds_it_up(seen, site, gzipped):
    assert seen["weight"] <= MOST
    assert seen["head"]["waits"] == []
    first = [site / path.lstrip("/") for path in seen["head"]["styles"]] + [site / f"{seen['name']}.html"]
    assert sum(map(gzipped, first)) <= FIRST


def test_nothing_jumps_as_formulas_and_figures_come(seen):
    assert seen["shift"] < SHIFT


def test_no_sign_needs_a_font_of_icons(site):
    css = (site / "_static" / "shared.css").read_text(encoding="utf-8")
    assert "content: none" in css
    assert not re.search(r'content: *(var\(--pst-icon|"([\ue000-\uf8ff]|\\[ef][0-9a-f]{3}))', css)


def test_search_engines_are_told_what_the_page_is(seen):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert seen["head"]["title"].endswith(config["title"])
    assert 20 < len(seen["head"]["description"]) < 400
    assert seen["head"]["canonical"] == f"{config['html']['baseurl']}{seen['name']}.html"
    assert seen["head"]["viewports"] == 1


def test_links_say_where_they_lead(seen):
    links = re.findall(r"<a\b[^>]*\bhref=[^>]*>(.*?)</a>", seen["text"], re.DOTALL)
    texts = {html.unescape(re.sub(r"<.*?>", "", text)).strip().lower() for text in links}
    assert len(texts) > 10
    assert not texts & VAGUE


def test_page_says_how_to_cite_it(seen):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = html.unescape(re.search(r'<details class="cite">.*?</details>', seen["text"], re.DOTALL)[0])
    heading = re.sub(r"<.*?>", "", re.search(r"<h1>(.*?)<a", seen["text"].partition("<article")[2], re.DOTALL)[1])
    title = re.sub(r"^[\d.]+ ", "", html.unescape(heading)).strip()
    for value in (f"{{{title}}}", f"{citation['url']}{seen['name']}.html", citation["authors"][0]["name"]):
        assert value in text


@pytest.mark.parametrize("words", ["agg/moments", "posterior collapse", "mutual information"])
def test_search_finds_and_shows_words(visit, words):
    with visit(f"search?q={quote(words)}") as page:
        page.wait_for_function("() => /found/.test(document.querySelector('#search-results h2 + p')?.innerText)")
        page.wait_for_load_state("networkidle")
        excerpts = page.locator("#search-results li").all_inner_texts()
        assert len(excerpts) > 2
        assert any(word in " ".join(excerpts).lower() for word in re.split(r"\W", words))
        assert not any(re.search(r"\\[(\[a-z]", text) for text in excerpts)
        assert page.wrong == []


def test_search_works_from_a_folder(visit, site):
    with visit("search?q=mixture", start=site.as_uri()) as page:
        page.wait_for_function("() => document.querySelectorAll('#search-results li').length > 2")
        assert page.wrong == []


def test_page_works_from_a_folder(visit, site):
    with visit("book/mixture/index", start=site.as_uri()) as page:
        formulas = page.evaluate(FORMULAS)
        assert formulas["rendered"] == formulas["written"] > 0
        assert formulas["broken"] == page.wrong == []


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
    assert not re.search(r"<dt[^>]*>Type<", page), "what stands before a colon was taken for a type"
    text = re.sub(r"(?s)<(script|style|pre|code|dt|em class=.sig)\b.*?</\1>", "", page)
    assert re.findall(r"(?<!\w)\*{1,2}[A-Za-z][^*<\n]*[\w.]\*{1,2}(?!\w)", text) == [], "emphasis that nothing has read"
    notation = (site / "book" / "notation.html").read_text(encoding="utf-8")
    assert 'href="appendix/api.html#vaebook.mixture.DiagGaussianMixture"' in notation


@pytest.mark.slow
def test_the_page_that_is_printed_is_whole(browser, tmp_path):
    assert build(tmp_path, builder="singlehtml") == 0
    page, failed = browser.new_page(), []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(printable(tmp_path / "_build" / "singlehtml").as_uri(), wait_until="load", timeout=120_000)
    page.emulate_media(media="print")
    page.wait_for_function(READY, timeout=120_000)  # a whole book of formulas
    assert [url for url in failed if not url.endswith("/searchindex.js")] == []  # paper has no search
    formulas = page.evaluate(FORMULAS)
    assert formulas["broken"] == []
    assert formulas["rendered"] == formulas["written"] > 100
    assert page.evaluate("() => Array.from(document.images).filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert page.evaluate("() => document.querySelectorAll('.toggle-hidden, details:not([open])').length") == 0


def test_the_line_of_every_check_names_both_sides(site):
    """Names and numbers are those that the stored evidence of the chapters shows."""
    named, powers = 0, str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹’", "-0123456789'")
    for page in (name for name in pages() if (ROOT / f"{name}.ipynb").exists()):
        outputs = [output for cell in read_ipynb(ROOT / f"{page}.ipynb").cells for output in cell.get("outputs", ())]
        shown = "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
        text = html.unescape((site / f"{page}.html").read_text(encoding="utf-8")).translate(powers).replace("·10", "e")
        lines = re.findall("<summary>(Check .*?)</summary>", text)
        for line, evidence in zip(lines, EVIDENCE.findall(shown), strict=True):
            left, sign, right, this, that, off, verdict, margin = evidence
            assert line.startswith(f"Check {verdict}") and f"{left} {this} {sign} {right} {that}" in line
            assert f"the falsehood is rejected, off by {margin}" in line and (off == "< 1" or f"off by {off}" in line)
            named += 1
    assert named == len(ledger())


def test_proofs_and_checks_fold(browser, visit, site):
    folds = "details.fold"
    with visit("book/mixture/index") as page:
        lines = page.locator(f"{folds} > summary")
        assert page.locator(f"{folds}[open]").count() == 0
        checks = [line for line in lines.all_inner_texts() if line != "Proof"]
        assert len(checks) > 3
        assert all(line.startswith("Check holds: ") for line in checks)
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


UNSET = "Array.from(document.querySelectorAll('.math:not(:has(mjx-container))'))"
IN_SIGHT = """box => {
    const { top, bottom } = box.getBoundingClientRect();
    return box.checkVisibility() && !box.closest(".toggle-hidden") && top < innerHeight && bottom > 0; }"""


def test_formulas_are_set_when_a_reader_comes_near_and_all_on_paper(visit):
    none_in_sight = f"() => !{UNSET}.some({IN_SIGHT})"
    with visit("book/mixture/index", formulas="near") as page:
        assert page.evaluate(none_in_sight)
        assert page.evaluate(f"{UNSET}.length") > 50
        page.evaluate("() => document.querySelector('.toggle-hidden:has(.math)').scrollIntoView()")
        page.wait_for_function(none_in_sight)
        page.locator("button.toggle-button:visible").first.click()  # what was folded comes near too
        page.locator("details.fold:has(.math) > summary").first.click()
        page.wait_for_function(none_in_sight)
        page.wait_for_function("!document.querySelector('details.fold[open] .math:not(:has(mjx-container))')")
        page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(f"{UNSET}.length") == 0


CODE_AT = """box => Array.from(box.querySelectorAll("pre"))
    .filter(code => code.checkVisibility() && code.scrollWidth > code.clientWidth).map(code => code.tabIndex)"""


def test_wide_code_in_a_solution_that_is_opened_can_be_scrolled_by_keys(visit):
    with visit("book/primer", formulas=False) as page:
        page.evaluate("() => document.querySelectorAll('details').forEach(box => (box.open = true))")
        folded = ".toggle:has(pre)"
        assert page.locator(folded).count() > 0
        for box in page.locator(folded).all():
            box.locator("button.toggle-button").first.click()
            page.evaluate(TWO_FRAMES)
        found = [index for box in page.locator(folded).all() for index in box.evaluate(CODE_AT)]
        assert found and set(found) == {0}


def test_an_address_opens_what_it_names(visit):
    with visit("book/mixture/index") as page:
        page.evaluate("() => document.querySelector('details.fold p').id = 'here'")
        page.evaluate("() => location.hash = '#here'")
        page.wait_for_function("() => document.querySelector('details.fold').open")
