"""The pictures of the book: arrays in, Axes out, one style.

Colours are those of Okabe and Ito, which people with colour-blindness tell apart; lines also differ in dash. Figures
have an opaque white ground, so that they read the same in a light and in a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba_array
from torch import Tensor

from vaebook._checks import check_int, check_number, check_positive, check_shape, check_tensor

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7F7F7F", "#000000", "#B8A800")
"""Okabe and Ito's colours, with their yellow darkened for white ground and two more for ten classes."""
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))

STYLE = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
"""Settings of matplotlib for every picture, of the book and of a diagnosis."""


def use_style() -> None:
    """Set matplotlib's defaults to the book's style; chapters call it once, nothing does at import.

    Example:
        >>> use_style()
        >>> plt.rcParams["figure.facecolor"]
        'white'
    """
    plt.rcParams.update(STYLE, **{"axes.prop_cycle": cycler(color=COLORS[:5]) + cycler(linestyle=DASHES)})


def ellipses(axes: Axes, loc: Tensor, scale: Tensor, *, labels: Tensor | None = None, alpha: float = 0.1) -> Axes:
    """Draw one ellipse per component: its points at one standard deviation from the mean.

    Args:
        axes: where to draw.
        loc: means, (N, 2).
        scale: standard deviations, (N, 2).
        labels: class of each component, (N), integers below 10, for its colour; None draws all in one.
        alpha: opacity of the insides; the outlines have four times as much.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape.

    Example:
        >>> figure, axes = plt.subplots()
        >>> axes = ellipses(axes, torch.zeros(3, 2), torch.ones(3, 2))
    """
    check_tensor("loc", loc, ("N", 2))
    check_positive("scale", check_tensor("scale", scale, tuple(loc.shape)))
    labels = torch.zeros(len(loc), dtype=torch.long) if labels is None else torch.as_tensor(labels)
    if labels.shape != loc.shape[:1] or not set(labels.tolist()) <= set(range(len(COLORS))):
        raise ValueError(f"labels: expected {len(loc)} integers from 0 to {len(COLORS) - 1}, got {labels}")
    width, height = 2 * _array(scale).T
    colors = [COLORS[int(k)] for k in labels]
    place = {"units": "xy", "offsets": _array(loc), "offset_transform": axes.transData}
    drawn = EllipseCollection(width, height, np.zeros(len(loc)), **place)
    drawn.set(facecolor=to_rgba_array(colors, alpha), edgecolor=to_rgba_array(colors, min(1, 4 * alpha)), linewidth=0.5)
    axes.add_collection(drawn)
    axes.set_aspect("equal")
    axes.autoscale_view()
    return axes


def density(axes: Axes, log_prob: Callable[[Tensor], Tensor], *, limit: float = 4.0, num_points: int = 161) -> Axes:
    """Draw a density in the plane, as shades.

    Args:
        axes: where to draw.
        log_prob: log-density of points (S, 2), such as `DiagGaussianMixture.log_prob`.
        limit: the picture covers [-limit, limit]².
        num_points: points a side.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or out of range.

    Example:
        >>> figure, axes = plt.subplots()
        >>> axes = density(axes, lambda z: -z.square().sum(-1), num_points=21)
    """
    limit = check_number("limit", limit, above=0)
    num_points = check_int("num_points", num_points, minimum=2, each=1, power=2)
    side = torch.linspace(-limit, limit, num_points, dtype=torch.float64)
    values = log_prob(torch.cartesian_prod(side, side))
    values = _array(check_tensor("log_prob's value", values, (num_points**2,), finite=False).exp())
    values, extent = values.reshape(num_points, num_points).T, (-limit, limit, -limit, limit)
    axes.imshow(values, origin="lower", extent=extent, cmap="Blues", interpolation="bilinear")
    axes.set_aspect("equal")
    return axes


def prior_rings(axes: Axes) -> Axes:
    """Draw the contours of N(0, I) in the plane at 1, 2 and 3 standard deviations.

    Args:
        axes: where to draw.

    Returns:
        The axes.

    Example:
        >>> figure, axes = plt.subplots()
        >>> len(prior_rings(axes).patches)
        3
    """
    for radius in (1, 2, 3):
        axes.add_patch(plt.Circle((0, 0), radius, fill=False, color="black", linewidth=1.0, linestyle=DASHES[1]))
    axes.set_aspect("equal")
    axes.autoscale_view()
    return axes


def image_strip(
    images: Tensor, *, shape: tuple[int, int] = (8, 8), captions: Sequence[str] | None = None, num_columns: int = 10
) -> np.ndarray:
    """Show images side by side, in rows of ``num_columns``, each with its caption.

    Args:
        images: (K, P), from 0 (white) to 1 (black).
        shape: height and width in pixels, with P their product.
        captions: one for each image.
        num_columns: images in a row.

    Returns:
        The Axes, (rows, columns).

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape.

    Example:
        >>> image_strip(torch.zeros(3, 64), captions=["a", "b", "c"]).shape
        (1, 3)
    """
    if len(check_shape("shape", shape)) != 2:
        raise ValueError(f"shape: expected height and width, got {shape}")
    check_tensor("images", images, ("K", shape[0] * shape[1]))
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions: expected {len(images)} of them, got {len(captions)}")
    columns = min(check_int("num_columns", num_columns, minimum=1), len(images))
    rows = -(-len(images) // columns)
    size = (0.78 * columns, (0.78 if captions is None else 1.0) * rows)
    _, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for k, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if k < len(images):
            axes.imshow(_array(images[k]).reshape(shape), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(captions[k] if captions is not None else "", fontsize=7.5, pad=2)
    return grid


def curves(axes: Axes, x: Tensor, lines: Mapping[str, Tensor], *, xlabel: str = "", ylabel: str = "") -> Axes:
    """Draw named curves over one abscissa, told apart by colour and by dash.

    Args:
        axes: where to draw.
        x: abscissa, (S).
        lines: name → ordinates, (S).
        xlabel: label of the abscissa, with its unit.
        ylabel: label of the ordinate, with its unit.

    Returns:
        The axes, with a legend if there are two curves or more.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape.

    Example:
        >>> figure, axes = plt.subplots()
        >>> len(curves(axes, torch.arange(3.0), {"a": torch.zeros(3), "b": torch.ones(3)}).lines)
        2
    """
    check_tensor("x", x, ("S",))
    for k, (name, y) in enumerate(_check_named("lines", lines)):
        check_tensor(f"lines[{name!r}]", y, (len(x),), finite=False)
        style = {"color": COLORS[k % len(COLORS)], "linestyle": DASHES[k % len(DASHES)]}
        axes.plot(_array(x), _array(y), label=name, **style)
    return _label(axes, len(lines), xlabel=xlabel, ylabel=ylabel)


def intervals(
    axes: Axes, names: Sequence[str], series: Mapping[str, tuple[Tensor, Tensor]], *, xlabel: str = ""
) -> Axes:
    """Draw means with their intervals from left to right, one line a name, the series beside each other.

    Args:
        axes: where to draw.
        names: what the lines are called, from the top down.
        series: name → means and half-widths of the intervals, each (number of names).
        xlabel: label of the abscissa, with its unit.

    Returns:
        The axes, with a legend if there are two series or more.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape.

    Example:
        >>> figure, axes = plt.subplots()
        >>> value = torch.tensor([1.0, 2.0])
        >>> axes = intervals(axes, ["a", "b"], {"gain": (value, 0.1 * value)})
    """
    place, markers = np.arange(len(names)), "osD^v"
    for k, (name, (mean, width)) in enumerate(_check_named("series", series, 2)):
        for what, value in (("means", mean), ("half-widths", width)):
            check_tensor(f"series[{name!r}], {what}", value, (len(names),))
        shift = 0.6 * ((k + 0.5) / len(series) - 0.5)
        style = {"color": COLORS[k % len(COLORS)], "fmt": markers[k % len(markers)]}
        axes.errorbar(_array(mean), place + shift, xerr=_array(width), ms=4, capsize=2.5, label=name, **style)
    axes.axvline(0, color="black", linewidth=0.7)
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    return _label(axes, len(series), xlabel=xlabel)


def _label(axes: Axes, num: int, **labels: str) -> Axes:
    axes.set(**labels)
    if num > 1:
        axes.legend()
    return axes


def _check_named(name: str, value: Any, parts: int = 1) -> Any:
    """Check for a mapping from names to tensors, or to so many of them; the tensors are checked one by one later."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping from names, got {type(value).__name__}")
    wrong = [k for k, v in value.items() if parts > 1 and not (isinstance(v, tuple | list) and len(v) == parts)]
    if wrong or not value:
        got = f"another entry for {wrong[0]!r}" if wrong else "none"
        raise ValueError(f"{name}: expected at least one name, and {parts} tensors for each, got {got}")
    return value.items()


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
