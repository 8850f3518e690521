"""Whole texts as they are stored beside this file, so that what people read and see changes on purpose only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex


def check_text(name: str, text: str) -> None:
    """Compare a text with the stored one; with WRITE_TEXTS=1 in the environment, store it."""
    path = Path(__file__).with_name(name)
    if os.environ.get("WRITE_TEXTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name}: WRITE_TEXTS=1 stores what is said now"


def describe(axes: Axes) -> str:
    """Tell what a picture consists of, a line for each thing that was drawn."""
    told = [
        f"axes {axes.get_xlabel()!r} {axes.get_ylabel()!r} shown={axes.axison} aspect={axes.get_aspect()}"
        f" title={axes.get_title()!r} {axes.title.get_fontsize():g} {axes.titleOffsetTrans.get_matrix()[1, 2]:.3g}",
    ]
    for line in axes.lines:
        style = f"{line.get_linestyle()} {line.get_linewidth():g} {line.get_marker()} {line.get_markersize():g}"
        told.append(f"line {_numbers(line.get_xydata())} {to_hex(line.get_color())} {style} {line.get_label()}")
    for part in axes.collections:
        colors = " ".join(to_hex(c, keep_alpha=True) for c in (*part.get_facecolor()[:2], *part.get_edgecolor()[:2]))
        style = f"{colors} {_numbers(part.get_linewidth())} {part.get_label()}"
        sizes = part.get_sizes() if hasattr(part, "get_sizes") else ()
        told.append(f"{type(part).__name__} {_numbers(part.get_offsets())} sizes={_numbers(sizes)} {style}")
    for patch in axes.patches:
        where = patch.get_path().transformed(patch.get_patch_transform()).vertices
        colors = f"{to_hex(patch.get_facecolor())} {to_hex(patch.get_edgecolor())} fill={patch.get_fill()}"
        style = f"{patch.get_linestyle()} {patch.get_linewidth():g} {patch.get_label()}"
        told.append(f"{type(patch).__name__} {_numbers(where)} {colors} {style}")
    for image in axes.images:
        style = f"{image.cmap.name} {image.get_interpolation()} {image.origin} {_numbers(image.get_clim())}"
        told.append(f"image {_numbers(image.get_array())} {_numbers(image.get_extent())} {style}")
    for text in axes.texts:
        told.append(f"text {text.get_text()!r} {_numbers(text.get_position())} {text.get_horizontalalignment()}")
    if legend := axes.get_legend():
        marks = [_numbers(mark.get_sizes()) for mark in legend.legend_handles if hasattr(mark, "get_sizes")]
        words = [f"{text.get_text()} {text.get_fontsize():g}" for text in legend.get_texts()]
        told.append(f"legend {words} at {legend._loc} marks={marks} frame={legend.get_frame_on()}")
    return "\n".join(told)


def _numbers(values: Any) -> str:
    """Write few numbers as they are; of many, their shape, ends, mean and spread."""
    array = np.asarray(values, dtype=float) + 0.0
    if array.size <= 12:
        return str([float(f"{value:.4g}") for value in array.ravel()])
    ends = [*array.ravel()[:4], *array.ravel()[-4:], array.mean(), array.std(), array.min(), array.max()]
    return f"{array.shape} {[float(f'{value:.4g}') for value in ends]}"
