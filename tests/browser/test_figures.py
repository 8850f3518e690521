"""The interactive figures: real keys and a real mouse, and the numbers that they show are the package's."""

import math
import re
from contextlib import contextmanager

import figures
import numpy as np
import pytest
import torch
from fingerprint import ROOT
from torch.distributions import Independent, Normal, kl_divergence

from vaebook import DiagGaussianMixture, plots
from vaebook.bounds import quadrature_log_prob
from vaebook.checkpoint import load
from vaebook.data import binarize, digits
from vaebook.information import mutual_information_quadrature
from vaebook.modes import find_modes
from vaebook.priors import StandardNormal

STATIC = ROOT / "book" / "_static" / "figures"
PAGES = {
    "mixture": "book/intro",
    "ghosts": "book/mixture/dimensions",
    "sample": "book/aggregated/population",
    "draws": "book/continuous/generative",
    "digits": "book/aggregated/posterior",
    "recall": "book/aggregated/attention",
}
THREE_DIGITS = 5e-4  # relative, of what is shown with four


class Driver:
    """A figure in a page, as a reader with a keyboard and a mouse meets it."""

    def __init__(self, page, name):
        self.page, self.figure = page, page.locator(f"figure.interactive.{name}")
        self.name = name

    def press(self, slider, key, times=1):
        """Press a key on a slider, and return the value that it has then."""
        handle = self.figure.locator(f"#{self.name}-{slider}")
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        self.settle()
        return float(handle.input_value())

    def value(self, slider):
        return float(self.figure.locator(f"#{self.name}-{slider}").input_value())

    def shown(self, tile):
        """Return the number that a reader reads, within what its rounding leaves."""
        return float(self.figure.locator(f"[data-value={tile}]").inner_text().replace("−", "-"))

    def state(self):
        return self.page.evaluate(f"figures.live.{self.name}.state")

    def settle(self):
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def drag(self, canvas, start, end):
        """Drag from one point of a canvas to another, both in parts of its size."""
        self.figure.locator("canvas").nth(canvas).scroll_into_view_if_needed()
        box = self.figure.locator("canvas").nth(canvas).bounding_box()
        points = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in (start, end)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=4)
        self.page.mouse.up()
        self.settle()


@pytest.fixture
def drive(visit):
    @contextmanager
    def driver(name):
        with visit(PAGES[name], formulas=False) as page:
            picture, stage = (page.locator(f"figure.interactive.{name} {part}") for part in ("img", ".stage"))
            assert not picture.is_visible()
            yield Driver(page, name)
            page.emulate_media(media="print")
            assert picture.is_visible()
            assert not stage.is_visible()
            assert page.wrong == []

    return driver


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussians(name, num, width, dims):
    """The mixture of a figure's first data at this width."""
    data = figures.read(name)
    loc, ratio = (double(data[key])[:num, :dims] for key in ("loc", "ratio"))
    return DiagGaussianMixture(loc, width * ratio)


def grid(q, num=401):
    """Points that cover a mixture in the plane, and the area of each."""
    sides = [torch.linspace(*ends, num, dtype=torch.float64) for ends in box(q)]
    return torch.cartesian_prod(*sides), math.prod(float(side[1] - side[0]) for side in sides)


def box(q):
    low, high = (q.loc - 8 * q.scale).min(0).values, (q.loc + 8 * q.scale).max(0).values
    return list(zip(low.tolist(), high.tolist(), strict=True))


def entropy(q):
    points, area = grid(q)
    log_q = q.log_prob(points)
    return float(-(log_q.exp() * log_q).sum() * area)


@pytest.mark.parametrize("keys", [0, 25])
def test_mixture_on_the_line(drive, keys):
    with drive("mixture") as figure:
        width = 10 ** figure.press("width", "ArrowRight", keys)
        num = round(figure.press("num", "ArrowRight"))
        z = double([[figure.press("z1", "ArrowLeft", 30)]])
        q = gaussians("mixture", num, width, 1)
        information = mutual_information_quadrature(q)
        assert figure.shown("components") == num == 6
        assert figure.shown("information") == pytest.approx(information, rel=THREE_DIGITS)
        assert figure.shown("codes") == pytest.approx(math.exp(information), rel=THREE_DIGITS)
        starts = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
        assert figure.shown("modes") == len(find_modes(q, starts, separation=0.01))
        state = figure.state()
        assert state["logProb"] == pytest.approx(float(q.log_prob(z)), rel=1e-6)
        assert state["responsibilities"] == pytest.approx(q.responsibilities(z)[0].tolist(), abs=1e-6)


def test_mixture_in_the_plane(drive):
    with drive("mixture") as figure:
        figure.figure.get_by_label("in the plane").check()
        width = 10 ** figure.press("width", "ArrowRight", 12)
        figure.drag(0, (0.5, 0.5), (0.3, 0.6))
        z = double([[figure.value("z1"), figure.value("z2")]])
        assert z[0, 0] < 0
        q = gaussians("mixture", 5, width, 2)
        information = entropy(q) - float(Independent(Normal(q.loc, q.scale), 1).entropy().mean())
        assert figure.shown("information") == pytest.approx(information, rel=THREE_DIGITS)
        assert figure.shown("modes") == len(find_modes(q, grid(q, 25)[0], separation=0.01))
        state = figure.state()
        assert state["logProb"] == pytest.approx(float(q.log_prob(z)), rel=1e-6)
        assert state["responsibilities"] == pytest.approx(q.responsibilities(z)[0].tolist(), abs=1e-6)


def test_ghosts(drive):
    with drive("ghosts") as figure:
        num = round(figure.press("num", "ArrowRight"))
        width = figure.press("width", "ArrowRight", 4)
        before = figure.value("z1")
        figure.drag(0, (0.5, 0.5), (0.62, 0.42))  # takes hold of the code nearest to the middle, which is another one
        assert figure.value("z1") != before
        state = figure.state()["q"]
        q = DiagGaussianMixture(double(state["loc"]), double(state["scale"]))
        untouched = gaussians("ghosts", num, width, 2)
        assert int((q.loc - untouched.loc).abs().gt(0.02).any(1).sum()) == 1  # sliders round to hundredths
        assert torch.allclose(q.scale, untouched.scale)
        points, area = grid(q)
        excess = q.log_prob(points) - q.log_prob_marginals(points).sum(-1)
        correlation = float((q.log_prob(points).exp() * excess).sum() * area)
        assert figure.shown("correlation") == pytest.approx(correlation, rel=THREE_DIGITS)
        assert figure.shown("mixture") == len(find_modes(q, grid(q, 25)[0], separation=0.01))
        margins = [DiagGaussianMixture(q.loc[:, [j]], q.scale[:, [j]]) for j in (0, 1)]
        starts = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
        assert figure.shown("product") == math.prod(len(find_modes(m, starts, separation=0.01)) for m in margins)


@pytest.mark.parametrize("source", ["two groups", "equal to the prior"])
def test_sample(drive, source):
    with drive("sample") as figure:
        figure.figure.get_by_label(source).check()
        figure.figure.get_by_role("button").click()
        num = round(2 ** figure.press("num", "ArrowLeft", 2))
        width = figure.press("width", "ArrowRight", 3)
        state = figure.state()
        q, whole = (
            DiagGaussianMixture(*(double(state[key][part]) for part in ("loc", "scale"))) for key in ("q", "population")
        )
        assert figure.shown("num") == num == q.num_components
        assert torch.allclose(q.scale, torch.full_like(q.scale, width))
        u = torch.linspace(-8, 8, 161, dtype=torch.float64)
        weight = Normal(0.0, 1.0).log_prob(u).exp() * (u[1] - u[0])
        plug_in, left_out = figures.closing(q.loc, width, u, weight)
        assert figure.shown("plug_in") == pytest.approx(plug_in, rel=THREE_DIGITS)
        assert figure.shown("left_out") == pytest.approx(left_out, rel=THREE_DIGITS)
        z = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
        excess = whole.log_prob(z) - StandardNormal(1).double().log_prob(z)
        mismatch = float(torch.trapezoid(whole.log_prob(z).exp() * excess, z[:, 0]))
        assert figure.shown("population") == pytest.approx(mismatch, rel=THREE_DIGITS, abs=1e-9)


def test_draws(drive):
    with drive("draws") as figure:
        figure.figure.get_by_role("button").click()
        num = round(2 ** figure.press("num", "ArrowRight", 3))
        scale = 10 ** figure.press("noise", "ArrowLeft", 5)
        figure.drag(0, (0.5, 0.5), (0.33, 0.5))
        x = double([[figure.value("x")]])
        means = double(figure.state()["means"])[:, None]
        assert figure.shown("num") == num == len(means)
        average = DiagGaussianMixture(means, torch.full_like(means, scale)).log_prob(x)
        assert figure.shown("estimate") == pytest.approx(float(average), rel=THREE_DIGITS)
        decoder = lambda z: Independent(Normal(z + torch.sin(3 * z), scale), 1)  # noqa: E731
        exact = quadrature_log_prob(decoder, StandardNormal(1).double(), x)
        assert figure.shown("exact") == pytest.approx(float(exact), rel=THREE_DIGITS)
        z = torch.linspace(-8, 8, 16001, dtype=torch.float64)[:, None]
        posterior = decoder(z).log_prob(x) + StandardNormal(1).double().log_prob(z) - exact
        kl = torch.trapezoid(posterior.exp() * (decoder(z).log_prob(x) - exact), z[:, 0])
        assert figure.shown("cost") == pytest.approx(math.exp(float(kl)), rel=THREE_DIGITS)


def test_digits(drive):
    data = figures.read("digits")
    loc, scale = (figures.unpacked(data[name], "<f4").reshape(-1, 2).double() for name in ("loc", "scale"))
    q, vae = DiagGaussianMixture(loc, scale), load(figures.WEIGHTS).double()
    x = binarize(digits().train, torch.Generator().manual_seed(0)).double()
    with drive("digits") as figure:
        figure.figure.get_by_text("Draw z from q_agg").click()
        figure.drag(0, (0.5, 0.5), (0.3, 0.7))
        figure.press("z1", "ArrowRight", 7)
        z = double([[figure.value("z1"), figure.value("z2")]])
        assert z[0, 0] < 0 and z[0, 1] < 0
        state, r = figure.state(), q.responsibilities(z)[0]
        assert figure.shown("log_q_agg") == pytest.approx(float(q.log_prob(z)), rel=THREE_DIGITS)
        assert figure.shown("log_prior") == pytest.approx(float(vae.prior.log_prob(z)), rel=THREE_DIGITS)
        assert figure.shown("share") == pytest.approx(math.exp(float(torch.special.entr(r).sum())), rel=THREE_DIGITS)
        assert state["responsibilities"] == pytest.approx(r.topk(5).values.tolist(), rel=THREE_DIGITS)
        assert state["decoded"] == pytest.approx(vae.decoder(z).mean[0].tolist(), abs=THREE_DIGITS)
        assert state["average"] == pytest.approx(q.posterior_mean(z, x)[0].tolist(), abs=THREE_DIGITS)


@pytest.mark.parametrize("own", ["is among the data", "is left out"])
def test_recall(drive, own):
    x = figures.recall_images(figures.read("recall"))
    assert (x - digits().train).abs().max() <= 1 / 6 + 1e-6  # four levels of grey
    with drive("recall") as figure:
        figure.figure.get_by_label(own).check()
        figure.figure.get_by_role("button").click()
        n, s = round(figure.press("which", "ArrowRight", 3)), 10 ** figure.press("noise", "ArrowRight", 4)
        state = figure.state()
        kept = x if own == "is among the data" else torch.cat([x[:n], x[n + 1 :]])
        q, noisy = DiagGaussianMixture(kept, torch.full_like(kept, s)), double([state["noisy"]])
        r, average = q.responsibilities(noisy)[0], q.posterior_mean(noisy, kept)[0]
        assert figure.shown("largest") == pytest.approx(float(r.max()), rel=THREE_DIGITS)
        assert figure.shown("share") == pytest.approx(math.exp(float(torch.special.entr(r).sum())), rel=THREE_DIGITS)
        assert state["average"] == pytest.approx(average.tolist(), abs=THREE_DIGITS)
        errors = [float((values - x[n]).square().mean().sqrt()) for values in (noisy[0], average)]
        assert [figure.shown("before"), figure.shown("after")] == pytest.approx(errors, rel=THREE_DIGITS)


def test_draws_of_the_figures_are_standard_normal(visit):
    with visit(PAGES["draws"], formulas=False) as page:
        draws = double(
            page.evaluate(
                "() => { const g = figures.gaussians.draws(7).normal; return Array.from({length: 20000}, g); }"
            )
        )
    assert kl_divergence(Normal(draws.mean(), draws.std()), Normal(double(0.0), double(1.0))) < 1e-3
    assert (draws < 1).double().mean() == pytest.approx(0.8413, abs=0.012)


def test_static_picture_stands_without_scripts(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name, place in PAGES.items():
        page.goto((site / f"{place}.html").as_uri())
        assert page.locator(f"figure.interactive.{name} img").is_visible()
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_scripts_and_data_are_light(name):
    files = [STATIC / f"{kind}" for kind in ("core.js", "gaussians.js", "figures.css", f"{name}.js", f"{name}.data.js")]
    assert sum(path.stat().st_size for path in files) <= 150_000


@pytest.mark.parametrize("name", PAGES)
def test_data_are_what_the_package_gives(name):
    new, stored = figures.FIGURES[name][0](), figures.read(name)
    assert new.keys() == stored.keys()
    for key, value in stored.items():
        if isinstance(value, dict):
            assert value == new[key]  # weights
        elif not isinstance(value, str):
            torch.testing.assert_close(double(new[key]), double(value), rtol=0.0, atol=2e-3)
        elif key in {"loc", "scale"}:
            codes = (figures.unpacked(text, "<f4") for text in (new[key], value))
            torch.testing.assert_close(*codes, rtol=1e-4, atol=1e-4)
        else:
            assert value == new[key]  # images


def unlike(one, two):
    """Whether two drawings differ in more than coordinates by a little, names of clips, and images."""
    frames = [re.sub(r"\b[mpC][0-9a-f]{8,}\w*|base64,[\w+/=\s]+|-?\d+\.\d+", "", svg) for svg in (one, two)]
    numbers = [re.sub(r"base64,[\w+/=\s]+", "", svg) for svg in (one, two)]
    numbers = [torch.tensor([float(n) for n in re.findall(r"(?<![\w.])-?\d+\.\d+", svg)]) for svg in numbers]
    return frames[0] != frames[1] or not torch.allclose(*numbers, rtol=0.0, atol=0.1)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "sample")) for n in PAGES])
def test_static_pictures_are_what_is_drawn(name):
    stored = (STATIC / f"{name}.svg").read_text(encoding="utf-8")
    assert not unlike(stored, figures.drawing(figures.FIGURES[name][1], name))
    sign = re.findall(r'href="#(DejaVuSans-\w+)"', stored)
    path = re.search(r'd="M (\d+)', stored)
    for old, new in ((f'href="#{sign[0]}"', f'href="#{sign[-1]}"'), (path[0], f'd="M {int(path[1]) + 1}')):
        assert unlike(stored, stored.replace(old, new, 1))


def test_colours_are_those_of_the_book():
    css = (STATIC / "figures.css").read_text(encoding="utf-8")
    for k, color in enumerate(plots.COLORS):
        assert f"--c{k}: {color.lower()};" in css


@pytest.fixture
def bare(browser):
    """A page of no site with the scripts of the figures, and with those of one that is named."""
    context = browser.new_context(viewport={"width": 900, "height": 900}, device_scale_factor=1)
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))

    def start(name="toy"):
        page.set_content(f'<html><body><figure class="interactive {name}"></figure></body></html>')
        page.add_style_tag(
            content=":root { --ink: #010203; --ground: #ffffff; --c0: #0072b2; } canvas { width: 400px }"
        )
        own = [] if name == "toy" else [f"{name}.data.js", f"{name}.js"]
        for script in ("core.js", "gaussians.js", *own):
            page.add_script_tag(content=(STATIC / script).read_text(encoding="utf-8"))
        return page

    yield start
    context.close()
    assert page.wrong == []


NUMBERS = {
    "0": "0", "17": "17", "-3": "−3", "1e-12": "0", "-1e-12": "0", "3.14159": "3.142", "-0.5": "−0.5000",
    "123456.7": "123500", "0.00012345": "0.0001234", "1 / 0": "∞", "-1 / 0": "−∞", "0 / 0": "–",
}  # fmt: skip


def test_numbers_are_written_as_the_book_prints_them(bare):
    page = bare()
    assert {n: page.evaluate(f"figures.format({n})") for n in NUMBERS} == NUMBERS
    assert page.evaluate("figures.format(3.14159, 2)") == "3.1"


def test_packed_numbers_come_back(bare):
    page = bare()
    floats = np.array([0.0, -1.5, 3.25e-8, 1e30], "<f4")
    halves = np.array([0.0, -0.0, 1.0, -2.5, 6e-8, 6.1e-5, 65504.0, 0.1], "<f2")
    assert page.evaluate("text => Array.from(figures.unpack(text))", figures.packed(floats)) == floats.tolist()
    assert page.evaluate("text => Array.from(figures.halves(text))", figures.packed(halves)) == halves.tolist()
    assert page.evaluate(
        "text => Array.from(figures.unpack(text, Uint8Array))", figures.packed(np.arange(256, dtype="u1"))
    ) == [*range(256)]


TOY = """() => new Promise(done => figures.define("toy", figure => {
    figure.tile("some", "a tile");
    const slider = figure.slider("x", { label: "x", min: -1, max: 3, step: 0.5, value: 0, show: v => `x ${v}` });
    const margin = { left: 50, right: 50, top: 50, bottom: 50 };
    const panel = figure.panel({ name: "p", label: "l", height: 300, x: [-2, 2], y: [0, 10], margin });
    const at = (x, y) => Array.from(panel.pen.getImageData(x, y, 1, 1).data);
    figure.redraw = () => {
        panel.shades([0, 0, 0, 1], 2, "#0072b2");
        panel.dot(-1, 2, { radius: 9 });
        panel.image([1, 0, 0, 0], 2, 0, 0, 20);
        figure.show("some", -0.5);
        done({
            ends: [panel.toX(-2), panel.toX(2), panel.toY(10), panel.toY(0)],
            back: [panel.fromX(panel.toX(0.7)), panel.fromY(panel.toY(7))],
            colours: [at(340, 60), at(60, 240), at(60, 60), at(125, 210), at(3, 3), at(15, 3), at(3, 15)],
            value: slider.value, min: document.querySelector("input").min,
        });
    };
}))"""


def test_what_is_drawn_lies_where_it_belongs(bare):
    """High values above, x to the right; of four shades the last is that of high x and y; an image begins above."""
    page = bare()
    found = page.evaluate(TOY)
    assert found["ends"] == [50, 350, 50, 250] and found["back"] == pytest.approx([0.7, 7])
    shade, *pale, dot, black, white, below = found["colours"]
    assert shade == [0, 0x72, 0xB2, 255] and all(colour[3] < 40 for colour in pale)
    assert dot == [1, 2, 3, 255] and black == [0, 0, 0, 255] and white == below == [255] * 4
    tile = page.locator("[data-value=some]")
    assert (tile.inner_text(), tile.get_attribute("data-number")) == ("−0.5000", "-0.5")
    slider, shown = page.locator("input"), page.locator("output[for]")
    for key, text in (("Home", "x -1"), ("ArrowRight", "x -0.5"), ("End", "x 3")):
        slider.press(key)
        assert shown.inner_text() == slider.get_attribute("aria-valuetext") == text


@pytest.mark.parametrize("name", PAGES)
def test_sliders_go_to_their_ends(bare, name):
    """At each end, alone and all together, every tile shows a number and every slider says its own."""
    page = bare(name)
    sliders = page.locator("input[type=range]:visible")
    for key in ("Home", "End"):
        for number in range(sliders.count()):
            slider = sliders.nth(number)
            slider.press(key)
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            low, high = float(slider.get_attribute("min")), float(slider.get_attribute("max"))
            assert float(slider.input_value()) == pytest.approx(low if key == "Home" else high)
            texts = page.locator("[data-value]").all_inner_texts()
            assert texts and all(re.fullmatch(r"−?(∞|[\d.]+(e[−+]?\d+)?)( %)?", text) for text in texts), texts
