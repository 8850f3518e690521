"""Pictures: that what is drawn is what was given, and that bad input is refused."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tests.texts import check_text, describe
from vaebook import plots


@pytest.fixture
def axes():
    _, axes = plt.subplots()
    yield axes
    plt.close("all")


def test_ellipses_have_the_components_sizes_places_and_colours(axes):
    loc, scale = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.5, 1.0], [2.0, 0.1]])
    drawn = plots.ellipses(axes, loc, scale, labels=torch.tensor([0, 1]), alpha=0.1).collections[0]
    np.testing.assert_allclose(drawn.get_offsets(), loc)
    np.testing.assert_allclose(drawn.get_widths(), 2 * scale[:, 0])  # full widths
    np.testing.assert_allclose(drawn.get_heights(), 2 * scale[:, 1])
    want = matplotlib.colors.to_rgba_array(list(plots.COLORS[:2]), 0.1)
    np.testing.assert_allclose(drawn.get_facecolor(), want)


@pytest.mark.parametrize(("alpha", "edge"), [(0.1, 0.4), (0.25, 1.0), (0.5, 1.0)])
def test_outlines_are_four_times_as_opaque_as_what_they_enclose(axes, alpha, edge):
    drawn = plots.ellipses(axes, torch.zeros(2, 2), torch.ones(2, 2), alpha=alpha).collections[0]
    assert (drawn.get_facecolor()[:, 3].tolist(), drawn.get_edgecolor()[:, 3].tolist()) == ([alpha] * 2, [edge] * 2)


def test_a_density_is_drawn_itself_the_right_way_up_in_its_place(axes):
    side = torch.linspace(-3, 3, 5, dtype=torch.float64)
    image = plots.density(axes, lambda z: -z.square().sum(-1), limit=3, num_points=5).images[0]
    assert image.origin == "lower" and tuple(image.get_extent()) == (-3, 3, -3, 3)
    np.testing.assert_allclose(image.get_array(), torch.exp(-side[:, None].square() - side.square()))


def test_density_is_not_transposed(axes):
    point = torch.tensor([2.0, -1.0], dtype=torch.float64)
    image = plots.density(axes, lambda z: -(z - point).square().sum(-1), limit=4, num_points=9).images[0]
    row, column = np.unravel_index(np.argmax(image.get_array()), (9, 9))
    assert (column - 4, row - 4) == (2, -1)  # origin is the lower left corner


def test_prior_rings_have_the_radii_of_standard_deviations(axes):
    rings = plots.prior_rings(axes).patches
    assert [p.radius for p in rings] == [1, 2, 3]
    assert [(p.get_linestyle(), p.get_fill()) for p in rings] == [(plots.DASHES[1], False)] * 3


def test_image_strip_fills_rows_and_hides_the_rest():
    grid = plots.image_strip(torch.rand(5, 6), shape=(2, 3), captions=list("abcde"), num_columns=3)
    assert grid.shape == (2, 3) and [len(a.images) for a in grid.flat] == [1, 1, 1, 1, 1, 0]
    assert grid[1, 1].get_title() == "e" and grid[0, 0].images[0].get_array().shape == (2, 3)
    plt.close("all")


@pytest.mark.parametrize(("num", "columns", "shape"), [(6, 3, (2, 3)), (2, 10, (1, 2)), (7, 3, (3, 3)), (1, 1, (1, 1))])
def test_an_image_strip_has_as_many_rows_and_columns_as_it_needs(num, columns, shape):
    assert plots.image_strip(torch.zeros(num, 64), num_columns=columns).shape == shape
    plt.close("all")


def test_images_are_black_where_they_are_one_and_white_where_they_are_zero():
    """Whatever else is in them: a pale image stays pale."""
    (image,) = plots.image_strip(torch.tensor([[0.2, 0.3]]), shape=(1, 2))[0, 0].images
    shade = image.cmap(image.norm(np.array([0.0, 0.3, 1.0])))[:, 0]
    np.testing.assert_allclose(shade, [1.0, 0.7, 0.0], atol=0.01)
    plt.close("all")


def test_intervals_lie_where_they_should(axes):
    mean, width = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25])
    plots.intervals(axes, ["first", "second"], {"x": (mean, width), "y": (mean + 1, width)}, xlabel="nats")
    ends = axes.collections[0].get_segments()
    np.testing.assert_allclose([[end[0, 0], end[1, 0]] for end in ends], [[0.5, 1.5], [-2.25, -1.75]])
    assert ends[0][0, 1] < 0 < 1 - 0.3 < ends[1][0, 1] < 1  # beside its name, the first series above the second
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second"] and axes.yaxis_inverted()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["x", "y"]
    heights = [[end[0, 1] for end in part.get_segments()] for part in axes.collections]
    np.testing.assert_allclose(np.mean(heights, 0), [0, 1])  # the series lie about the name
    assert set(axes.lines[-1].get_xdata()) == {0}


def test_curves_differ_in_colour_and_dash(axes):
    plots.curves(axes, torch.arange(3.0), {"a": torch.zeros(3), "b": torch.ones(3)}, xlabel="x", ylabel="nats")
    first, second = axes.lines
    assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b"] and axes.get_ylabel() == "nats"


def test_a_curve_may_have_gaps(axes):
    y = torch.tensor([0.0, torch.nan, 2.0, -torch.inf])
    np.testing.assert_array_equal(plots.curves(axes, torch.arange(4.0), {"a": y}).lines[0].get_ydata(), y)


def test_an_ellipse_is_as_wide_on_the_page_as_its_axes_say(axes):
    """From one standard deviation left of the mean to one right of it, in pixels."""
    plots.ellipses(axes, torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]), alpha=1.0)
    axes.set(xlim=(0, 3), ylim=(0, 3))
    axes.set_axis_off()
    axes.figure.canvas.draw()
    dark = np.argwhere(np.asarray(axes.figure.canvas.buffer_rgba())[::-1, :, 0] < 100)
    ends = axes.transData.inverted().transform([dark.min(0)[::-1], dark.max(0)[::-1] + 1])
    assert ends == pytest.approx(np.array([[0.5, 1.75], [1.5, 2.25]]), abs=0.02)


def test_what_has_a_gradient_is_drawn(axes):
    x = torch.arange(3.0, requires_grad=True)
    np.testing.assert_array_equal(plots.curves(axes, x, {"a": 2 * x}).lines[0].get_ydata(), [0, 2, 4])
    assert axes.get_legend() is None  # of one curve
    plots.ellipses(axes, x[:2].expand(3, 2), torch.ones(3, 2, requires_grad=True))


def test_lines_that_are_drawn_without_a_word_differ_in_colour_and_dash():
    with plt.rc_context():
        plots.use_style()
        cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({style["color"] for style in cycle}) == len({str(style["linestyle"]) for style in cycle}) == 5


def test_pictures_are_as_they_are_stored():
    """All that is drawn, in words: places, colours, dashes, labels; some names more than there are colours."""
    values = torch.tensor([[0.0, 1.0], [2.0, -3.0], [0.5, 0.5]])
    names = list("abcdefghijk")
    pairs = {name: (values[:, 0] + k, 0.1 * values[:, 0] + 0.1) for k, name in enumerate(names[:6])}
    drawings = {
        "ellipses": lambda axes: plots.ellipses(axes, values, values.abs() + 0.5, labels=torch.tensor([0, 9, 2])),
        "ellipses, one colour": lambda axes: plots.ellipses(axes, values, values.abs() + 0.5),
        "density": lambda axes: plots.density(axes, lambda z: -(z - 1).square().sum(-1)),
        "rings": plots.prior_rings,
        "curves": lambda axes: plots.curves(axes, values[:, 0], {n: k + values[:, 1] for k, n in enumerate(names)}),
        "curve": lambda axes: plots.curves(axes, values[:, 0], {"a": values[:, 1]}, xlabel="x, m", ylabel="y"),
        "intervals": lambda axes: plots.intervals(axes, ["p", "q", "r"], pairs, xlabel="nats"),
        "interval": lambda axes: plots.intervals(axes, ["p", "q", "r"], {"a": pairs["b"]}),
    }
    told = []
    with plt.rc_context():
        plots.use_style()
        told += [str({name: plt.rcParams[name] for name in plots.STYLE}), f"{plots.COLORS} {plots.DASHES}"]
        for name, draw in drawings.items():
            axes = plt.figure().gca()
            assert draw(axes) is axes
            limits = [float(f"{limit:.3g}") for limit in (*axes.get_xlim(), *axes.get_ylim())]
            told += [f"# {name}", f"limits {limits}", describe(axes)]
        strips = {"captions": list("abc")}, {}, {"num_columns": 2}
        for options in strips:
            grid = plots.image_strip(torch.linspace(0, 1, 18).reshape(3, 6), shape=(2, 3), **options)
            told += [f"# images {options} {grid[0, 0].figure.get_size_inches()}", *map(describe, grid.flat)]
    plt.close("all")
    check_text("plots.txt", "\n".join(told) + "\n")


PLACES = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: plots.ellipses(a, torch.zeros(2, 3), torch.ones(2, 3)), ValueError, r"loc: expected shape \(N, 2\)"),
        (
            lambda a: plots.ellipses(a, torch.zeros(2, 2), torch.ones(1, 2)),
            ValueError,
            r"scale: expected shape \(2, 2\)",
        ),
        (lambda a: plots.density(a, lambda z: z, limit=-1.0), ValueError, "limit: expected a number > 0"),
        (lambda a: plots.density(a, lambda z: z, num_points=1), ValueError, "num_points: expected an int at least 2"),
        (lambda a: plots.image_strip(torch.zeros(2, 63)), ValueError, r"images: expected shape \(K, 64\)"),
        (
            lambda a: plots.image_strip(torch.zeros(2, 64), captions=["a"]),
            ValueError,
            "captions: expected 2 of them, got 1",
        ),
        (
            lambda a: plots.image_strip(torch.zeros(2, 64), captions=["a", "b", "c"]),
            ValueError,
            "captions: expected 2 of them, got 3",
        ),
        (
            lambda a: plots.curves(a, torch.zeros(3), {"a": torch.zeros(2)}),
            ValueError,
            r"lines\['a'\]: expected shape \(3,\)",
        ),
        (
            lambda a: plots.intervals(a, ["x"], {}),
            ValueError,
            "series: expected at least one name, and 2 tensors for each, got none",
        ),
        (
            lambda a: plots.intervals(a, ["a", "b"], {"x": (torch.zeros(2), torch.zeros(1))}),
            ValueError,
            r"series\['x'\], half-widths: expected shape \(2,\)",
        ),
        (lambda a: plots.intervals(a, ["x"], []), TypeError, "series: expected a mapping from names, got list"),
        (
            lambda a: plots.intervals(a, ["x"], {"a": ()}),
            ValueError,
            "series: .* 2 tensors for each, got another entry",
        ),
        (
            lambda a: plots.intervals(a, ["x"], {"a": {}}),
            ValueError,
            "series: .* 2 tensors for each, got another entry",
        ),
        (lambda a: plots.image_strip(torch.zeros(2, 64), shape=(64,)), ValueError, "shape: expected height and width"),
        (lambda a: plots.image_strip(torch.zeros(2, 64), shape=8), TypeError, "shape: expected a tuple of ints"),
        (lambda a: plots.curves(a, torch.zeros(3), [torch.zeros(3)]), TypeError, "lines: expected a mapping"),
        (
            lambda a: plots.intervals(a, ["a"], {"x": torch.zeros(1)}),
            ValueError,
            "series: .* got another entry for 'x'",
        ),
        (lambda a: plots.intervals(a, ["a"], {}), ValueError, "series: expected at least one"),
        (lambda a: plots.density(a, lambda z: z), ValueError, r"log_prob's value: expected shape \(25921,\)"),
        (lambda a: plots.ellipses(a, PLACES, PLACES + 1, labels=[0, 10]), ValueError, "labels: expected 2 integers"),
        (lambda a: plots.ellipses(a, PLACES, PLACES + 1, labels=[0]), ValueError, "labels: expected 2 integers"),
        (lambda a: plots.ellipses(a, PLACES, PLACES + 1, labels=PLACES), ValueError, "labels: expected 2 integers"),
        (lambda a: plots.ellipses(a, PLACES, PLACES + 1, labels=[0.5, 1]), ValueError, "labels: expected 2 integers"),
    ],
)
def test_bad_input(axes, call, error, message):
    with pytest.raises(error, match=message):
        call(axes)
