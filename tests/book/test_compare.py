"""What nbval is made to accept and to reject in outputs: see book/_tools/compare.py."""

import base64
import io

import compare
import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("stored", "new", "equal"),
    [
        ("loss 1.2340 after 17 steps", "loss 1.2341 after 17 steps", True),
        ("| 26.72 |", "| 26.73 |", True),
        ("1.000", "1.001", True),
        ("9.999  a", "10.00 a", True),
        ("1.235e-6", "1.236e-6", True),
        ("| 26.72 |", "| 27.26 |", False),
        ("loss 1.2340 after 17 steps", "loss 1.2340 after 18 steps", False),
        ("-0.361", "0.361", False),
        ("1.235e-6", "1.235e-5", False),
        ("1.0 2.0", "1.0", False),
        ("1.5 nats", "1.5 bits", False),
        ("1.5", "nan", False),
        ("holds", "FAILS", False),
        ("version 1.26.4", "version 1.26.5", False),
    ],
)
def test_text(stored, new, equal):
    left, right = compare.Output(stored, "a"), compare.Output(new, "a")
    assert (left == right) is equal
    assert (left != right) is not equal


def png(block=0, width=300):
    pixels = np.full((200, width, 3), 255, np.uint8)
    pixels[:block, :block] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(("block", "equal"), [(0, True), (1, True), (10, True), (12, False), (60, False)])
def test_image(block, equal, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "DIFFS", tmp_path)
    assert (compare.Output(png(), "part-chapter-cell3") == compare.Output(png(block), "x")) is equal
    assert (tmp_path / "part-chapter-cell3.png").exists() is not equal


def test_image_of_another_size_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "DIFFS", tmp_path)
    assert compare.Output(png(), "a") != compare.Output(png(width=301), "a")
    assert (tmp_path / "a.png").exists()
