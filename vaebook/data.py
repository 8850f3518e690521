r"""The two data sets of the book, in fixed splits: handwritten digits and Fashion-MNIST.

The digits ship with scikit-learn. Fashion-MNIST is looked for on disk and otherwise downloaded; whatever its
source, its *uncompressed* bytes are compared with a SHA-256 before one of them is used (packagers recompress
the files, so that their compressed bytes differ).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_all, check_generator, check_tensor

DIGITS_SIZES = (1297, 100, 400)
"""How many digits are for training, validation and test."""
FASHION_VALIDATION = 10_000
"""How many of Fashion-MNIST's training images, the last ones, are for validation."""
FASHION_BASES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
"""Where Fashion-MNIST can be downloaded, in order of preference."""
FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts it."""


class _File(NamedTuple):
    """One idx file: its name, and the size in bytes and SHA-256 of its uncompressed content."""

    name: str
    size: int
    sha256: str


FASHION_FILES = (
    _File(
        "train-images-idx3-ubyte.gz",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    _File(
        "train-labels-idx1-ubyte.gz",
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    _File(
        "t10k-images-idx3-ubyte.gz",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    _File(
        "t10k-labels-idx1-ubyte.gz",
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
"""Training images and labels, test images and labels."""


class Split(NamedTuple):
    """A data set in three parts: images (N, P), float32 in [0, 1], and their labels (N), int64."""

    train: Tensor
    validation: Tensor
    test: Tensor
    train_labels: Tensor
    validation_labels: Tensor
    test_labels: Tensor


def digits() -> Split:
    """Scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, shuffled once and for all.

    Grey values 0…16 divided by 16, which float32 holds exactly. No two of the images are equal, so that every
    subset has as many distinct data as data.

    Returns:
        A `Split` with P = 64 and 1,297 images for training, 100 for validation and 400 for test.

    Example:
        >>> [tuple(part.shape) for part in digits()[:3]]
        [(1297, 64), (100, 64), (400, 64)]

    Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), its test set.
    """
    # Imported here because it takes a second, which those who bring their own data need not wait.
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # The legacy generator on purpose: NumPy guarantees its stream for good, that of default_rng it may change.
    order = np.random.RandomState(0).permutation(len(images))
    x = torch.from_numpy(images[order]).to(torch.float32) / 16
    y = torch.from_numpy(labels[order]).to(torch.int64)
    return Split(*x.split(DIGITS_SIZES), *y.split(DIGITS_SIZES))


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """Fashion-MNIST: 70,000 grey pictures of clothes, 28 × 28 pixels, in the original order.

    Grey values 0…255 divided by 255. `torch.cat([train, validation])` is the official training set of 60,000,
    for those who need all of it.

    Args:
        folder: where the four idx files lie, gzipped or not, under their original names. None means: the user's
            cache, else the folder of Debian's package dataset-fashion-mnist, else a download into the cache.

    Returns:
        A `Split` with P = 784 and 50,000 images for training, 10,000 for validation and 10,000 for test.

    Raises:
        TypeError: folder is not a path.
        FileNotFoundError: a file is missing from folder; or there is no folder, no cache and no network.
        ValueError: a file does not have the content that it should. It is removed if it is in the cache or was
            downloaded, and left alone elsewhere.

    Example:
        >>> split = fashion_mnist()  # doctest: +SKIP
        >>> split.train.shape, split.test.shape  # doctest: +SKIP
        (torch.Size([50000, 784]), torch.Size([10000, 784]))

    Source: Xiao, Rasul & Vollgraf, Fashion-MNIST: a Novel Image Dataset (2017). MIT licence.
    """
    payloads = _given(folder) if folder is not None else _found_or_downloaded()
    train, train_labels, test, test_labels = (_parse_idx(payload) for payload in payloads)
    train, test = (images.flatten(1).to(torch.float32).div_(255) for images in (train, test))
    train_labels, test_labels = train_labels.long(), test_labels.long()
    cut = len(train) - FASHION_VALIDATION
    return Split(train[:cut], train[cut:], test, train_labels[:cut], train_labels[cut:], test_labels)


def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw black-and-white images whose expectations are the grey ones.

    $b_i \sim \mathrm{Bernoulli}(x_i)$

    Args:
        x: grey values in [0, 1], of any shape and floating dtype.
        generator: the source of randomness; None means torch's global one.

    Returns:
        Zeros and ones, of the shape and dtype of x.

    Raises:
        TypeError: x is not a floating-point tensor, or generator not a torch.Generator.
        ValueError: x is empty, not finite, or leaves [0, 1].

    Example:
        >>> binarize(torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.Generator().manual_seed(0))
        tensor([0., 0., 1., 1.])

    Source: Salakhutdinov & Murray, On the Quantitative Analysis of Deep Belief Networks (2008).
    """
    check_tensor("x", x, ("...",))
    check_all("x", x, (x >= 0) & (x <= 1), "values in [0, 1]")
    check_generator(generator)
    return torch.bernoulli(x.detach(), generator=generator)


def _given(folder: str | os.PathLike[str]) -> list[bytes]:
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder: expected a path or None, got {type(folder).__name__}")
    paths = [_path_in(Path(folder), file) for file in FASHION_FILES]
    missing = [file.name for file, path in zip(FASHION_FILES, paths, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"folder: expected the four files of Fashion-MNIST, got {folder} without {', '.join(missing)}"
        )
    return _read_all(Path(folder))


def _found_or_downloaded() -> list[bytes]:
    import pooch  # here, because in a notebook the import alone warns about missing progress widgets

    cache = Path(pooch.os_cache("vaebook")) / "fashion-mnist"
    for place in (cache, FASHION_SYSTEM_FOLDER):
        if all(_path_in(place, file) for file in FASHION_FILES):
            return _read_all(place, ours=place == cache)
    for file in FASHION_FILES:
        if _path_in(cache, file) is None:
            _download(file, cache)
    return _read_all(cache, ours=True)


def _path_in(folder: Path, file: _File) -> Path | None:
    candidates = (folder / file.name, folder / file.name.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_all(folder: Path, *, ours: bool = False) -> list[bytes]:
    """Read the four files; report every bad one, and remove it only if it is in our own cache."""
    payloads, errors = [], []
    for file in FASHION_FILES:
        path = _path_in(folder, file)
        try:
            payloads.append(_read_verified(path, file, str(path)))
        except ValueError as error:
            errors.append(str(error))
            if ours:
                path.unlink(missing_ok=True)
    if errors:
        remedy = "; removed from the cache, so that the next call gets it anew" if ours else ""
        raise ValueError("; ".join(errors) + remedy)
    return payloads


def _read_verified(path: Path, file: _File, source: str) -> bytes:
    """Return the uncompressed content, or raise a ValueError that names the source."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"  # some servers and packagers unpack without renaming
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            payload = stream.read(file.size + 1)  # never more, whatever a wrong file unpacks to
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        got = f"a broken gzip stream ({error})"
    else:
        digest = hashlib.sha256(payload).hexdigest()
        if digest == file.sha256:
            return payload
        got = "more bytes" if len(payload) > file.size else f"{len(payload):,} bytes with SHA-256 {digest}"
    raise ValueError(f"{source}: expected {file.size:,} uncompressed bytes with SHA-256 {file.sha256}, got {got}")


def _download(file: _File, cache: Path) -> None:
    """Fetch one file into the cache, where it appears under its name only after it was verified."""
    import pooch

    failures: list[OSError | ValueError] = []
    for base in FASHION_BASES:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as scratch:
                part = Path(scratch) / file.name
                pooch.HTTPDownloader(timeout=30)(base + file.name, str(part), None)
                _read_verified(part, file, base + file.name)
                os.replace(part, cache / file.name)
            return
        except (OSError, ValueError) as error:  # OSError includes every network error of pooch's requests
            failures.append(error)
    wrong = [str(error) for error in failures if isinstance(error, ValueError) and not isinstance(error, OSError)]
    if wrong:
        raise ValueError("; ".join(wrong) + "; nothing of it was kept")
    tried = ", ".join(f"{base} ({type(e).__name__})" for base, e in zip(FASHION_BASES, failures, strict=True))
    raise FileNotFoundError(
        f"Fashion-MNIST: found neither in {cache} nor in {FASHION_SYSTEM_FOLDER}, and {file.name} could not be "
        f"downloaded from {tried}; install the package dataset-fashion-mnist (Debian, Ubuntu), or put the four "
        "files into a folder and pass it as `folder`"
    )


def _parse_idx(payload: bytes) -> Tensor:
    """Unpack the idx format: two zeros, type 8 (unsigned byte), number of dimensions, big-endian sizes, data."""
    num_dims = payload[3]
    shape = struct.unpack_from(f">{num_dims}I", payload, 4)
    # frombuffer wants memory that may be written to, hence the copy.
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8, offset=4 + 4 * num_dims).reshape(shape)
