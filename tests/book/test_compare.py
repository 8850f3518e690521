"""What nbval is made to accept and to reject in outputs: see book/_tools/compare.py."""

import base64
import io
from unittest import mock

import compare
import numpy as np
import pytest
from fingerprint import chapters, read_ipynb
from PIL import Image


@pytest.mark.parametrize(
    ("stored", "new", "equal"),
    [
        ("loss 1.2340 after 17 steps", "loss 1.2341 after 17 steps", True),
        ("| 26.72 |", "| 26.73 |", True),
        ("0.999", "1.000", True),
        ("1.000", "0.999", True),
        ("1.000", "1.002", False),
        ("1.002", "1.000", False),
        ("−1.2340", "−1.2341", True),
        ("−1.234", "1.234", False),
        ("−1.0e-17", "3.0e-16", True),
        ("1.000", "1.001", True),
        ("9.999  a", "10.00 a", True),
        ("1.235e-6", "1.236e-6", True),
        ("1.0e-17", "1.2e-17", True),
        ("-1.0e-17", "3.0e-16", True),
        ("3.100s", "3.101s", True),
        ("a(3.100ms)", "a(3.101ms)", True),
        ("1.000j", "1.001j", True),
        ("1e-12", "1e-13", False),
        ("1.0e-14", "1.2e-14", False),
        ("3.1s", "3.2s", False),
        ("3.1s", "3.1m", False),
        ("3s", "4s", False),
        ("| 26.72 |", "| 27.26 |", False),
        ("loss 1.2340 after 17 steps", "loss 1.2340 after 18 steps", False),
        ("-0.361", "0.361", False),
        ("1.235e-6", "1.235e-5", False),
        ("1.0 2.0", "1.0", False),
        ("1.5 nats", "1.5 bits", False),
        ("1.5", "nan", False),
        ("holds", "FAILS", False),
        ("version 1.26.4", "version 1.26.5", False),
        ("version 1.26.4rc1", "version 1.26.5rc1", False),
        ("x1.5", "x1.5001", False),
    ],
)
def test_text(stored, new, equal):
    left, right = compare.Output(stored, "a"), compare.Output(new, "a")
    assert (left == right) is equal
    assert (left != right) is not equal


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(float)


@pytest.fixture(autouse=True)
def diffs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "DIFFS", tmp_path)
    return tmp_path


def test_what_differs_is_written_beside_both_pictures(diffs):
    white, black = np.full((20, 30, 3), 255.0), np.zeros((20, 30, 3))
    assert compare.Output(png(white), "a") == png(white)
    assert not (diffs / "a.png").exists()
    assert compare.Output(png(white), "part-chapter-cell3") != png(black)
    assert Image.open(diffs / "part-chapter-cell3.png").size == (3 * (30 + 8), 20)
    assert compare.Output(png(white), "b") != png(white[:, 1:])
    assert (diffs / "b.png").exists()


def pictures():
    """The pixels of some pictures of the book, by their place."""
    found = {}
    for md in chapters():
        code = [cell for cell in read_ipynb(md.with_suffix(".ipynb")).cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, start=1):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    found[f"{md.stem}-{number}"] = output.data["image/png"]
    return {place: pixels(picture) for place, picture in list(found.items())[::4]}


PICTURES = pictures()


def invert(share):
    def change(image, rng):
        height, width = image.shape[:2]
        at = rng.choice(height * width, int(share * height * width), replace=False)
        image.reshape(-1, 3)[at] = 255 - image.reshape(-1, 3)[at]
        return image

    return change


def shift_channel(channel, by):
    def change(image, rng):
        image[..., channel] += by
        return image

    return change


def blot(size):
    def change(image, rng):
        image[40 : 40 + size, 60 : 60 + size] = 255 - image[40 : 40 + size, 60 : 60 + size]
        return image

    return change


def move(by):
    """Move everything to the right by a part of a pixel, which is what another rounding does to edges."""

    def change(image, rng):
        return np.round((1 - by) * image + by * np.roll(image, 1, axis=1))

    return change


def nudge_glyph(image, rng):
    """Move what is drawn in one place, of the size of a digit, by a whole pixel."""
    height = image.shape[0]
    rows, columns = np.nonzero(image[-60:].sum(2) < 600)
    top, left = max(height - 60 + rows[len(rows) // 2] - 7, 0), max(columns[len(columns) // 2] - 5, 1)
    image[top : top + 14, left : left + 10] = image[top : top + 14, left - 1 : left + 9].copy()
    return image


def grain(size):
    """Noise of a few levels in one pixel of a hundred."""

    def change(image, rng):
        noisy = rng.random(image.shape[:2]) < 0.01
        return image + noisy[..., None] * rng.integers(-size, size + 1, image.shape)

    return change


REJECTED = {f"channel {c} by {by}": shift_channel(c, by) for c in range(3) for by in (39, -39)} | {
    "red by 5": shift_channel(0, -5),
    "0.2 % inverted": invert(0.002),
    "0.18 % inverted": invert(0.0018),
    "0.1 % inverted": invert(0.001),
    "a blot of 20 pixels": blot(20),
    "moved by a pixel": move(1.0),
}
ACCEPTED = {
    "moved by 0.02": move(0.02),
    "moved by 0.05": move(0.05),
    "a glyph by a pixel": nudge_glyph,
    "grain": grain(6),
}


@pytest.mark.parametrize(("change", "equal"), [(c, False) for c in REJECTED] + [(c, True) for c in ACCEPTED])
def test_pictures_of_the_book(change, equal):
    rng = np.random.default_rng(0)
    for place, picture in PICTURES.items():
        changed = (REJECTED | ACCEPTED)[change](picture.copy(), rng).clip(0, 255)
        assert (compare.excess(changed - picture) == []) is equal, place


def flat(value, shape=(400, 400, 3)):
    return np.full(shape, float(value))


def spot(value, height, width, channel=slice(None)):
    """A difference in one corner and one channel."""
    found = flat(0)
    found[:height, :width, channel] = value
    return found


EXCESSES = [
    (spot(25, 80, 1, 1), []),  # of 160,000 pixels 80 may differ
    (spot(-25, 81, 1, 1), ["pixels"]),
    (spot(24, 400, 1), []),
    (flat(0.09), []),
    (flat(0.11), ["bias"]),
    (flat(-0.11), ["bias"]),
    (flat(0.99) * (-1.0) ** np.arange(400)[:, None, None], []),
    (flat(1.0) * (-1.0) ** np.arange(400)[:, None, None], []),
    (flat(1.01) * (-1.0) ** np.arange(400)[:, None, None], ["mean"]),
    (flat(1.01) * (-1.0) ** np.arange(400)[:, None, None] * [0, 1, 0], ["mean"]),
    (spot(31, 8, 8), []),
    (spot(32, 8, 8), []),
    (spot(33, 8, 8), ["block"]),
    (spot(-33, 8, 8, 2), ["block"]),
    (spot(200, 3, 3), []),
    (flat(33, (4, 4, 3)) * [[[1]], [[-1]], [[1]], [[-1]]], ["pixels", "mean"]),
    (flat(33, (4, 4, 3)), ["pixels", "mean", "bias", "block"]),
    (flat(0, (1, 1, 4)), []),
]


@pytest.mark.parametrize(("difference", "expected"), EXCESSES)
def test_each_respect_has_its_limit(difference, expected):
    """On both sides of it, for both signs, in one channel; and where a picture is smaller than a square."""
    assert compare.excess(difference) == expected


COLOURS = {
    "as light": ((255, 0, 0), (0, 130, 0)),
    "transparent": ((9, 9, 9, 255), (9, 9, 9, 0)),
    "of another shape": (np.zeros((20, 30, 3)), np.zeros((30, 20, 3))),
}


@pytest.mark.parametrize("name", COLOURS)
def test_what_differs_in_colour_in_opacity_or_in_shape_differs(name, diffs):
    one, two = (np.asarray(side) if np.ndim(side) > 1 else np.tile(side, (9, 9, 1)) for side in COLOURS[name])
    assert compare.Output(png(one), "a") != png(two) and (diffs / "a.png").exists()


def test_a_level_less_in_a_few_pixels_is_no_difference():
    """One level up or down in one pixel of a hundred: as small as it is, whichever is the darker."""
    grey = np.full((100, 100, 3), 100.0)
    for step in (1, -1):
        other = grey.copy()
        other[::10, ::10] += step
        assert compare.Output(png(grey), "a") == png(other)


def test_the_picture_of_a_difference_is_black_where_it_is_strong_and_grey_where_it_is_weak(diffs):
    """Rows that differ by 0, 5, 24 and 25 levels: both pictures and what differs, each with a grey bar behind it."""
    one = np.full((4, 6, 3), 100)
    two = one + np.array([0, 5, 24, -25])[:, None, None]
    assert compare.Output(png(one), "a") != png(two)
    with Image.open(diffs / "a.png") as file:
        first, second, shown = np.split(np.asarray(file).astype(int), 3, axis=1)
    assert (first[:, :6, :3] == one).all() and (second[:, :6, :3] == two).all()
    assert (shown[:, :6, :3] == np.array([255, 215, 135, 0])[:, None, None]).all()
    assert all((part[:, :6, 3] == 255).all() and (part[:, 6:] == 200).all() for part in (first, second, shown))


def test_the_lower_of_two_pictures_is_filled_up_with_grey(diffs):
    assert compare.Output(png(flat(100, (4, 6, 3))), "a") != png(flat(50, (2, 6, 3)))
    with Image.open(diffs / "a.png") as file:
        first, second = np.split(np.asarray(file).astype(int), 2, axis=1)
    assert (first[:, :6, :3] == 100).all() and (second[:2, :6, :3] == 50).all() and (second[2:] == 200).all()


def test_a_picture_and_a_text_differ():
    picture = png(flat(100, (4, 6, 3)))
    assert compare.Output(picture, "a") != "text" and compare.Output("text", "a") != picture


def test_photographs_are_compared_as_pictures():
    files = [io.BytesIO() for _ in range(3)]
    for file, shade, quality in zip(files, (90, 90, 160), (95, 90, 95), strict=True):
        Image.fromarray(np.full((16, 16, 3), shade, np.uint8)).save(file, "JPEG", quality=quality)
    one, two, other = (base64.b64encode(file.getvalue()).decode() for file in files)
    assert one != two
    assert compare.Output(one, "a") == two and compare.Output(one, "a") != other


def test_what_is_no_text_decides_for_itself():
    assert (compare.Output("a", "b") == 3) is False and (compare.Output("a", "b") != 3) is True
    assert compare.Output("a", "b") == mock.ANY and (compare.Output("a", "b") != mock.ANY) is False


def test_there_are_pictures():
    assert len(PICTURES) > 5


def test_a_sign_in_the_place_of_a_number_is_another_text():
    for sign in ("#", "XX#XX", "-", "nan", ""):
        assert not compare.same_text("loss 1.5", f"loss {sign}") and not compare.same_text(f"loss {sign}", "loss 1.5")
    assert compare.same_text("# loss 1.5", "# loss 1.5")
