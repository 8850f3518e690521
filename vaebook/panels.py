"""The four pictures of a diagnosis, each an SVG with a description in words.

Their background is opaque white, as in the book's figures, so that they read the same on a light and on a dark page.
matplotlib's global state is left as it was.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaebook.plots import COLORS, STYLE
from vaebook.tables import number

SIZE = (4.6, 3.3)


class Panel(NamedTuple):
    """One picture."""

    title: str
    alt: str
    """The picture in words, with its numbers."""
    svg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def panels(found: Any) -> list[Panel]:
    """Draw the four pictures: codes and prior, the rate of each latent, intervals, and log-densities.

    Args:
        found: a `vaebook.report.Diagnosis`.

    Returns:
        Four panels.
    """
    return [_draw(title, part, found) for title, part in PARTS.items()]


def _draw(title: str, part: Callable[[Axes, Any], str], found: Any) -> Panel:
    with style.context(["default", STYLE | {"svg.hashsalt": "vaebook"}]):  # whatever style is in use
        whole, file = Figure(figsize=SIZE, layout="constrained"), io.BytesIO()
        alt = part(whole.subplots(), found)
        whole.savefig(file, format="svg", metadata={"Date": None})
    return Panel(title, alt, file.getvalue())


def _codes(axes: Axes, found: Any) -> str:
    codes, prior = (found.shown[name].numpy() for name in ("codes", "prior"))
    hole = found.holes.points.numpy() if found.holes is not None else codes[:0]
    first, second = _shown_axes(found)
    for z, label, color in ((prior, "prior", "0.7"), (codes, "codes", COLORS[0]), (hole, "hole", COLORS[1])):
        if len(z) and second is None:
            axes.hist(z[:, first], 40, label=label, color=color, histtype="step", density=True)
        elif len(z):
            axes.scatter(z[:500, first], z[:500, second], s=5, color=color, label=label, linewidths=0)
    axes.set(xlabel=f"$z_{{{first + 1}}}$", ylabel="density" if second is None else f"$z_{{{second + 1}}}$")
    axes.legend(fontsize=8, markerscale=2)
    where = f"latent {first + 1}" + ("" if second is None else f" and latent {second + 1}")
    seen = f"; draws of the prior in the hole, {number(found.holes.mass)} of it, are marked" if len(hole) else ""
    return f"Draws of the aggregated posterior over draws of the prior, in {where}{seen}."


def _shown_axes(found: Any) -> tuple[int, int | None]:
    """Choose two coordinates: first those that show the hole best, then those of the highest rate."""
    rates = np.array(found.kl_per_dimension or np.zeros(found.latent_dim))
    order = [part.index for part in (found.holes.where if found.holes else ()) if part.index < found.latent_dim]
    order += [j for j in np.argsort(-rates, kind="stable").tolist() if j not in order]
    return order[0], order[1] if len(order) > 1 else None


def _rates(axes: Axes, found: Any) -> str:
    used = sum(found.active)
    if found.kl_per_dimension is None:
        axes.bar(["in use", "collapsed"], [used, found.latent_dim - used], color=[COLORS[0], "0.6"])
        axes.set(ylabel="latents")
        return f"Two bars: {used} latents in use, {found.latent_dim - used} collapsed."
    order = np.argsort(-np.array(found.kl_per_dimension), kind="stable")
    rates, active = np.array(found.kl_per_dimension)[order], np.array(found.active)[order]
    place = np.arange(1, len(rates) + 1)
    for which, label, color in ((active, "in use", COLORS[0]), (~active, "collapsed", "0.6")):
        if which.any():
            axes.bar(place[which], rates[which], color=color, label=label)
    axes.set(xlabel="latent dimensions, sorted", ylabel="rate, nats")
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=8)
    ends = f"from {number(rates[0])} down to {number(rates[-1])} nats"
    return f"Bars, the rate of each latent, {ends}; {used} are in use."


def _intervals(axes: Axes, found: Any) -> str:
    rows = [("mismatch, N data", found.mismatch), ("mismatch, population", found.mismatch_population)]
    rows += [("information, N data", found.information), ("information, population", found.information_population)]
    rows, told = [row for row in rows if row[1] is not None], []
    for place, (name, value) in enumerate(rows):
        around = value.value + 2 * value.stderr * np.array([-1, 1]) if hasattr(value, "value") else value[:2]
        low, high = map(float, around)
        axes.plot([low, high], [place, place], color=COLORS[0 if "N data" in name else 1], lw=5, marker="|", ms=9)
        told.append(f"{name} {number(low)} to {number(high)}")
    axes.axvline(found.log_num_data, color="black", ls=":", lw=1, label="log N")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(xlabel="nats", ylim=(len(rows) - 0.5, -0.5))
    axes.legend(fontsize=8)
    return f"Intervals in nats: {'; '.join(told)}. A dotted line marks log N, {number(found.log_num_data)}."


def _densities(axes: Axes, found: Any) -> str:
    labels = {"own": "own codes", "leave_one_out": "own, left out", "held_out": "held-out codes"}
    shown = {label: found.shown[name].numpy() for name, label in labels.items() if name in found.shown}
    if not shown:
        axes.text(0.5, 0.5, "fewer than two distinct codes", ha="center")
        axes.set_axis_off()
        return "Nothing to show: fewer than two codes are distinct."
    low, high = np.quantile(np.concatenate(list(shown.values())), [0.02, 1.0])
    bins = np.linspace(low, max(high, low + 1e-6 * max(1.0, abs(low))), 40)
    for color, (label, values) in zip(COLORS, shown.items(), strict=False):
        axes.hist(np.clip(values, bins[0], bins[-1]), bins, histtype="step", density=True, color=color, label=label)
    axes.set(xlabel="log q_agg(z), nats", ylabel="density")
    axes.legend(fontsize=8, loc="upper left")
    told = [f"{label} {number(float(values.mean()))}" for label, values in shown.items()]
    return f"Histograms of the log-density of the aggregated posterior, with means: {', '.join(told)} nats."


PARTS = {
    "Codes and prior": _codes,
    "What each latent costs": _rates,
    "Data at hand and population": _intervals,
    "Known and new data": _densities,
}
"""Title and drawing function of each picture."""
