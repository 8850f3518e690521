"""Equality of a notebook's outputs: text exactly, the floats in it nearly, pictures but for what no eye can see.

Nothing here knows of this book: with conftest.py it can be taken into another one (see CONTRIBUTING.md).
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

RTOL = 1e-3
"""Largest relative difference of a float: one unit in the last of the four digits that a book should print."""
ATOL = 1e-15
"""Largest absolute difference: a few rounding errors of float64 in numbers near 1, as remain where terms cancel."""
PIXEL_STEP, PIXEL_BUDGET = 24, 5e-4
"""A pixel differs if one of its channels does so by more than the step, of 255; and the share of those that may."""
MEAN_BUDGET, BIAS_BUDGET = 1.0, 0.1
"""Largest mean, in any channel, of the difference's size, and of the difference with its sign: a shade everywhere."""
BLOCK, BLOCK_BUDGET = 8, 32.0
"""Largest mean difference in any square of so many pixels, 255 / 8: an edge may move by one pixel, no mark may go."""

FLOAT = re.compile(r"(?<![\w.])[-−+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?!\.?\d)")
PNG, JPEG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()[:10], base64.b64encode(b"\xff\xd8\xff").decode()
DIFFS = Path("_build", "nbval-diff")
"""Folder for pictures that differ; conftest.py puts it into the project's root."""


class Output(str):
    """Text of an output, equal to another if only floats and pixels differ, and these by little."""

    __slots__ = ("place",)
    __hash__ = str.__hash__

    def __new__(cls, text: str, place: str) -> Output:
        """Keep beside the text the name of the place that it comes from."""
        self = super().__new__(cls, text)
        self.place = place
        return self

    def __eq__(self, other: object) -> bool:
        """Compare as text, number by number, or pixel by pixel."""
        if not isinstance(other, str):
            return NotImplemented
        if str.__eq__(self, other):
            return True
        if self.startswith((PNG, JPEG)) and other.startswith((PNG, JPEG)):
            return same_image(self, other, DIFFS / f"{self.place}.png")
        return same_text(self, other)

    def __ne__(self, other: object) -> bool:
        """Negate equality; str has a method of its own."""
        equal = self.__eq__(other)
        return NotImplemented if equal is NotImplemented else not equal


def same_text(stored: str, new: str) -> bool:
    """Whether two texts agree in all but the floats in them, and those within RTOL or ATOL."""
    frames = [re.sub(r"[ \t]+", " ", FLOAT.sub("\0", text)) for text in (stored, new)]
    if frames[0] != frames[1]:
        return False
    pairs = zip(FLOAT.findall(stored), FLOAT.findall(new), strict=True)
    return all(same_number(*(float(number.replace("−", "-")) for number in pair)) for pair in pairs)


def same_number(stored: float, new: float) -> bool:
    """Whether two floats agree; a hair more than RTOL, so that one unit in the fourth digit passes."""
    return abs(stored - new) <= max((RTOL + 1e-12) * max(abs(stored), abs(new)), ATOL)


def same_image(stored: str, new: str, diff: Path) -> bool:
    """Whether two pictures agree but for the smoothing of edges; if not, writes both and their difference to a file."""
    import numpy as np
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")) for png in (stored, new)]
    if images[0].shape == images[1].shape:
        difference = images[1].astype(float) - images[0]
        if not excess(difference):
            return True
        strong = (np.abs(difference) > PIXEL_STEP).any(axis=2, keepdims=True)
        shown = np.where(strong, 0, 255 - np.minimum(8 * np.abs(difference[..., :3]), 120)).astype(np.uint8)
        images.append(np.dstack([shown, np.full(shown.shape[:2], 255, np.uint8)]))
    diff.parent.mkdir(parents=True, exist_ok=True)
    height = max(image.shape[0] for image in images)
    padded = [np.pad(im, ((0, height - im.shape[0]), (0, 8), (0, 0)), constant_values=200) for im in images]
    Image.fromarray(np.concatenate(padded, axis=1)).save(diff)
    return False


def excess(difference: Any) -> list[str]:
    """List in which respects a difference of two pictures, of shape (height, width, channels), is too large."""
    import numpy as np

    size = np.abs(difference)
    sums = np.pad(difference, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    rows, columns = (min(BLOCK, length) for length in difference.shape[:2])
    blocks = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    found = {
        "pixels": (size > PIXEL_STEP).any(axis=2).mean() > PIXEL_BUDGET,
        "mean": size.mean((0, 1)).max() > MEAN_BUDGET,
        "bias": np.abs(difference.mean((0, 1))).max() > BIAS_BUDGET,
        "block": np.abs(blocks).max() / (rows * columns) > BLOCK_BUDGET,
    }
    return [name for name, too_large in found.items() if too_large]
