"""The figures that readers see as SVG show what their PNG shows, which is what all other tests look at."""

import base64
import io
import re

import drawings
import numpy as np
import pytest
from fingerprint import chapters, read_ipynb
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

NEAR, STEP, BUDGET = 11, 80, 100
"""A pixel must be as light as one in a square about it, of 255; how many need not: a PNG has its signs moved a bit."""
LEAST, MOST = 0.92, 1.04
"""Ink of a drawing, as a share of that of its PNG, whose signs are a little heavier."""


def drawn():
    """Every figure of the book that is stored as both."""
    for md in chapters():
        for cell in read_ipynb(md.with_suffix(".ipynb")).cells:
            for output in cell.get("outputs", []):
                if drawings.SVG in output.get("data", {}):
                    png = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                    yield md.stem, output.data[drawings.SVG], png.convert("RGB")


@pytest.fixture(scope="module")
def shown(browser):
    page = browser.new_page()

    def show(svg, size):
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        source = base64.b64encode(svg.encode()).decode()
        page.set_content(
            f'<img style="position: fixed; inset: 0; width: 100%" src="data:image/svg+xml;base64,{source}">'
        )
        page.evaluate("() => document.images[0].decode()")
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")

    yield show
    page.close()


def unlike(one, two):
    """What differs in two pictures: pixels unlike all that are near them in the other, or the ink in all."""
    count = 0
    one, two = (np.asarray(picture).astype(int) for picture in (one, two))
    for a, b in ((one, two), (two, one)):
        least, most = (near(a, (NEAR, NEAR, 1)) for near in (minimum_filter, maximum_filter))
        count += int(((b < least - STEP) | (b > most + STEP)).any(2).sum())
    ink = [float((255 - picture).sum()) for picture in (one, two)]
    share = ink[1] / ink[0]
    return {"pixels": count} if count > BUDGET else {} if LEAST < share < MOST else {"ink": share}


def test_a_drawing_shows_what_its_picture_shows(shown):
    found = [(name, unlike(png, shown(svg, png.size))) for name, svg, png in drawn()]
    assert found
    assert [(name, what) for name, what in found if what] == []


@pytest.mark.parametrize(
    ("what", "put"),
    [
        (r'<g id="line2d_\d+">\s*<path[^>]*clip-path[^>]*>', "<g>"),  # a curve
        (r"scale\(0\.015625\)", "scale(0.02)"),  # larger signs
        (r"(?s)<g id=\"text_\d+\">.*?</g>\s*</g>", ""),  # words
        (r"stroke: #0072b2", "stroke: #d55e00"),
    ],
)
def test_a_drawing_that_shows_something_else_is_found(what, put, shown):
    svg, png = next(pair for name, *pair in drawn() if name == "limits")
    assert re.search(what, svg)
    changed = re.sub(what, put, svg)
    assert unlike(png, shown(changed, png.size))
