"""Equality of a chapter's outputs: text exactly, the floats in it nearly, pictures in nearly all pixels."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

RTOL = 1e-3
"""Largest relative difference of a float: one unit in the last of the four digits that the book prints."""
PIXEL_STEP = 40
"""A pixel differs if one of its channels does so by more than this, of 255."""
PIXEL_BUDGET = 0.002
"""Largest share of pixels that may differ."""

DIFFS = Path(__file__).resolve().parents[2] / "_build" / "nbval-diff"
FLOAT = re.compile(r"(?<![\w.])[-−+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?![\w.])")
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()[:10]


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
        if self.startswith(PNG) and other.startswith(PNG):
            return same_image(self, other, DIFFS / f"{self.place}.png")
        return same_text(self, other)

    def __ne__(self, other: object) -> bool:
        """Negate equality; str has a method of its own."""
        equal = self.__eq__(other)
        return NotImplemented if equal is NotImplemented else not equal


def same_text(stored: str, new: str) -> bool:
    """Whether two texts agree in all but the floats in them, and those within RTOL."""
    frames = [re.sub(r"[ \t]+", " ", FLOAT.sub("#", text)) for text in (stored, new)]
    if frames[0] != frames[1]:
        return False
    pairs = zip(FLOAT.findall(stored), FLOAT.findall(new), strict=True)
    return all(same_number(*(float(number.replace("−", "-")) for number in pair)) for pair in pairs)


def same_number(stored: float, new: float) -> bool:
    """Whether two floats agree within RTOL; a hair more, so that one unit in the fourth digit passes."""
    return abs(stored - new) <= (RTOL + 1e-12) * max(abs(stored), abs(new))


def same_image(stored: str, new: str, diff: Path) -> bool:
    """Whether two PNGs agree in size and in nearly all pixels; if not, writes both and their difference to a file."""
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in (stored, new)]
    if images[0].shape == images[1].shape:
        differs = (np.abs(images[0].astype(int) - images[1]) > PIXEL_STEP).any(axis=2)
        if differs.mean() <= PIXEL_BUDGET:
            return True
        images.append(np.where(differs[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2))
    diff.parent.mkdir(parents=True, exist_ok=True)
    height = max(image.shape[0] for image in images)
    padded = [np.pad(im, ((0, height - im.shape[0]), (0, 8), (0, 0)), constant_values=200) for im in images]
    Image.fromarray(np.concatenate(padded, axis=1)).save(diff)
    return False
