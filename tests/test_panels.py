"""The four pictures of a diagnosis made by hand: what is drawn is what was found, and the words say the same."""

import base64
import dataclasses
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tests.diagnoses import PLAIN, hole, interval
from tests.texts import check_text, describe
from vaebook.estimators import Estimate
from vaebook.holes import Coordinate
from vaebook.panels import PARTS, panels
from vaebook.plots import STYLE

SHOWN = {
    "codes": torch.randn(600, 3, generator=torch.Generator().manual_seed(0)).double(),
    "prior": torch.randn(600, 3, generator=torch.Generator().manual_seed(1)).double(),
    "own": torch.linspace(-2, 0, 50).double(),
    "leave_one_out": torch.linspace(-3, -1, 50).double(),
}
FOUND = dataclasses.replace(
    PLAIN, latent_dim=3, kl_per_dimension=(0.5, 0.0, 2.0), active=(True, False, True), shown=SHOWN
)


def axes_of(**changes):
    drawn = [Figure().subplots() for _ in PARTS]
    for axes, part in zip(drawn, PARTS.values(), strict=True):
        part(axes, dataclasses.replace(FOUND, **changes))
    return drawn


def words(number, **changes):
    return panels(dataclasses.replace(FOUND, **changes))[number].alt


def test_codes_are_shown_in_the_two_latents_of_highest_rate():
    codes, *_ = axes_of()
    assert (codes.get_xlabel(), codes.get_ylabel()) == ("$z_{3}$", "$z_{1}$")
    prior, own = codes.collections
    np.testing.assert_array_equal(prior.get_offsets(), SHOWN["prior"][:500, [2, 0]])
    np.testing.assert_array_equal(own.get_offsets(), SHOWN["codes"][:500, [2, 0]])
    assert words(0).endswith("in latent 3 and latent 1.")
    assert [text.get_text() for text in codes.get_legend().get_texts()] == ["prior", "codes"]


def test_a_hole_is_shown_where_it_is():
    places = (Coordinate(3, 0.1, 0.6, 0.8, 2.5), Coordinate(1, -0.5, 0.5, -1.3, 1.3))  # the first is a distance
    holes = hole(0.25)._replace(points=torch.full((7, 3), 0.3).double(), where=places)
    codes, *_ = axes_of(holes=holes)
    assert (codes.get_xlabel(), codes.get_ylabel()) == ("$z_{2}$", "$z_{3}$")
    assert [text.get_text() for text in codes.get_legend().get_texts()] == ["prior", "codes", "hole"]
    assert len(codes.collections) == 3 and len(codes.collections[2].get_offsets()) == 7
    assert words(0, holes=holes).endswith("draws of the prior in the hole, 0.2500 of it, are marked.")


def test_two_latents_are_shown_against_each_other():
    shown = {name: value[:, :2] if value.ndim == 2 else value for name, value in SHOWN.items()}
    codes, *_ = axes_of(latent_dim=2, kl_per_dimension=(0.5, 0.4), active=(True, True), shown=shown)
    assert (codes.get_xlabel(), codes.get_ylabel()) == ("$z_{1}$", "$z_{2}$")


def test_one_latent_is_a_histogram():
    shown = {name: value[:, :1] if value.ndim == 2 else value for name, value in SHOWN.items()}
    codes, *_ = axes_of(latent_dim=1, kl_per_dimension=(0.5,), active=(True,), shown=shown)
    assert (codes.get_xlabel(), codes.get_ylabel()) == ("$z_{1}$", "density")
    for patch in codes.patches:
        heights = np.unique(np.asarray(patch.get_xy())[:, 0])
        assert len(heights) == 41  # bins of equal width


def test_rates_are_sorted_bars_and_those_in_use_have_another_colour():
    _, rates, *_ = axes_of()
    bars = {round(patch.get_x() + patch.get_width() / 2, 6): patch.get_height() for patch in rates.patches}
    assert bars == {1: 2.0, 2: 0.5, 3: 0.0}
    colours = {patch.get_height(): patch.get_facecolor() for patch in rates.patches}
    assert colours[2.0] == colours[0.5] != colours[0.0]
    assert words(1) == "Bars, the rate of each latent, from 2.000 down to 0 nats; 2 are in use."
    _, other, *_ = axes_of(kl_per_dimension=None)
    assert [patch.get_height() for patch in other.patches] == [2, 1]
    assert words(1, kl_per_dimension=None) == "Two bars: 2 latents in use, 1 collapsed."


def test_intervals_reach_two_standard_errors_or_to_the_limits():
    found = {
        "mismatch": Estimate(1.0, 0.1, 9),
        "mismatch_population": interval(0.2, 0.7),
        "information": Estimate(2.0, 0.25, 9),
        "information_population": None,
    }
    _, _, intervals, _ = axes_of(**found)
    *lines, log_num = intervals.lines
    assert [tuple(line.get_xdata()) for line in lines] == [
        pytest.approx((0.8, 1.2)), pytest.approx((0.2, 0.7)), pytest.approx((1.5, 2.5)),
    ]  # fmt: skip
    assert [line.get_ydata()[0] for line in lines] == [0, 1, 2]
    assert set(log_num.get_xdata()) == {FOUND.log_num_data}
    assert [t.get_text() for t in intervals.get_yticklabels()] == [
        "mismatch, N data", "mismatch, population", "information, N data",
    ]  # fmt: skip
    assert intervals.get_ylim() == (2.5, -0.5)
    assert words(2, **found).endswith(
        "mismatch, population 0.2000 to 0.7000; information, N data 1.500 to 2.500. A dotted line marks log N, 7.600."
    )
    at_hand, population, again = (line.get_color() for line in lines)
    assert at_hand == again != population


def test_log_densities_are_histograms_of_all_that_there_is():
    *_, densities = axes_of()
    assert [text.get_text() for text in densities.get_legend().get_texts()] == ["own codes", "own, left out"]
    assert words(3).endswith("with means: own codes -1.000, own, left out -2.000 nats.")
    held = SHOWN | {"held_out": torch.full((5,), -9.0).double()}
    assert "held-out codes -9.000 nats" in words(3, shown=held)
    few = {name: SHOWN[name] for name in ("codes", "prior")}
    assert words(3, shown=few) == "Nothing to show: fewer than two codes are distinct."


def bars(axes):
    """Ends of the bins of each histogram, and heights."""
    return [(np.unique(xy[:, 0]), xy[:, 1]) for xy in (np.asarray(patch.get_xy()) for patch in axes.patches)]


def test_the_lowest_log_densities_are_counted_in_the_first_bin():
    """One code in a hundred is far out: bins begin at the second percentile, where its bar is the taller for it."""
    own = torch.linspace(-2, 0, 100).double()
    own[0] = -1e6
    *_, densities = axes_of(shown={name: SHOWN[name] for name in ("codes", "prior")} | {"own": own})
    ((ends, heights),) = bars(densities)
    assert ends[[0, -1]] == pytest.approx((float(own.quantile(0.02)), 0.0)) and len(ends) == 40
    first, width = heights[1], ends[1] - ends[0]
    assert first * width == pytest.approx(float((own < ends[1]).double().mean()))
    assert words(3, shown={**SHOWN, "own": own}).split("own codes ")[1].startswith("-10000")  # the mean of all


@pytest.mark.parametrize(("value", "width"), [(-1e3, 1e-3), (1e3, 1e-3), (-0.5, 1e-6), (0.0, 1e-6)])
def test_log_densities_that_are_all_the_same_are_one_bar(value, width):
    """All bins together are a millionth of the value wide, and of 1 at least."""
    same = torch.full((9,), value).double()
    *_, densities = axes_of(shown={name: SHOWN[name] for name in ("codes", "prior")} | {"own": same})
    ((ends, heights),) = bars(densities)
    assert np.isfinite(heights).all() and (heights > 0).any()
    assert ends[-1] - ends[0] == pytest.approx(width, rel=1e-3) and ends[0] == value


def test_the_same_diagnosis_gives_the_same_pictures():
    one, two = panels(FOUND), panels(FOUND)
    assert one == two and [panel.title for panel in one] == [*PARTS]
    for panel in one:
        head, _, data = panel.uri.partition(",")
        assert head == "data:image/svg+xml;base64" and base64.b64decode(data) == panel.svg
        root = ElementTree.fromstring(panel.svg)
        assert root.tag.endswith("svg") and [root.get(side) for side in ("width", "height")] == ["331.2pt", "237.6pt"]
        assert b"date" not in panel.svg and len(panel.svg) > 5_000


@pytest.mark.parametrize("style", ["dark_background", "ggplot", {"font.size": 30, "lines.linewidth": 9}])
def test_pictures_do_not_depend_on_the_style_in_use(style):
    """A reader who works in white on black got white letters on a white page."""
    plain = panels(FOUND)
    with plt.style.context(style):
        assert panels(FOUND) == plain


def test_pictures_are_as_they_are_stored():
    """All that is drawn, in words: places, colours, dashes, labels."""
    one = {name: value[:, :1] if value.ndim == 2 else value for name, value in SHOWN.items()}
    few = {name: SHOWN[name] for name in ("codes", "prior")}
    places = (Coordinate(1, -0.5, 0.5, -1.3, 1.3),)
    holes = hole(0.25)._replace(points=torch.full((7, 3), 0.3).double(), where=places)
    changes = {
        "three latents": {},
        "a hole, held-out codes": {"holes": holes, "shown": SHOWN | {"held_out": SHOWN["own"] - 2}},
        "one latent": {"latent_dim": 1, "kl_per_dimension": (0.5,), "active": (True,), "shown": one},
        "no rates, one code": {"kl_per_dimension": None, "shown": few, "mismatch_population": None},
    }
    told = []
    for name, change in changes.items():
        told += [f"# {name}"]
        for title, draw in PARTS.items():
            with plt.style.context(["default", STYLE]):
                axes = Figure().subplots()
                told += [f"## {title}", draw(axes, dataclasses.replace(FOUND, **change)), describe(axes)]
    check_text("panels.txt", "\n".join(told) + "\n")
