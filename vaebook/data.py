r"""The two data sets of the book, in fixed splits: handwritten digits and Fashion-MNIST.

The digits ship with scikit-learn. Fashion-MNIST is looked for on disk and otherwise downloaded; whatever its
source, its *uncompressed* bytes are compared with a SHA-256 before one of them is used (packagers recompress
the files, so that their compressed bytes differ).
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaebook._checks import check_generator, check_tensor, check_type, check_unit
from vaebook.storage import write_atomically

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
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Training images and labels, test images and labels: names without .gz, and SHA-256 of the uncompressed content."""
_MOST = 2**26  # bytes; never more is unpacked, whatever a wrong file unpacks to


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
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    images, labels = load_digits(return_X_y=True)
    # The legacy generator on purpose: NumPy guarantees its stream for good, that of default_rng it may change.
    order = np.random.RandomState(0).permutation(len(images))
    x = torch.from_numpy(images[order]).to(torch.float32) / 16
    return Split(*x.split(DIGITS_SIZES), *torch.from_numpy(labels[order]).to(torch.int64).split(DIGITS_SIZES))


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> Split:
    """Fashion-MNIST: 70,000 grey pictures of clothes, 28 × 28 pixels, in the original order.

    Grey values 0…255 divided by 255. `torch.cat([train, validation])` is the official training set of 60,000,
    for those who need all of it.

    Args:
        folder: where the four idx files lie, gzipped or not, under their original names. None means the first that
            has all of them right: the user's cache, the folder of Debian's package dataset-fashion-mnist, a download
            into the cache.

    Returns:
        A `Split` with P = 784 and 50,000 images for training, 10,000 for validation and 10,000 for test.

    Raises:
        TypeError: folder is not a path.
        FileNotFoundError: a file is missing from folder; or nothing is on disk, and it cannot be downloaded.
        ValueError: a file does not have the content that it should. A wrong download is not kept, a wrong file in the
            cache replaced as soon as a right one can be had; elsewhere all is left alone.

    Example:
        >>> split = fashion_mnist()  # doctest: +SKIP
        >>> split.train.shape, split.test.shape  # doctest: +SKIP
        (torch.Size([50000, 784]), torch.Size([10000, 784]))

    Source: Xiao, Rasul & Vollgraf, Fashion-MNIST: a Novel Image Dataset (2017). MIT licence.
    """
    check_type("folder", folder, str | os.PathLike | None)
    payloads = _found_or_downloaded() if folder is None else _read_all(Path(folder), "folder: ")
    # Before the images there are 16 bytes of sizes, which have been verified with all else, and before the labels 8.
    images, labels = ([np.frombuffer(p, np.uint8, offset=n) for p in payloads[i::2]] for i, n in enumerate((16, 8)))
    train, test = (torch.from_numpy(part.reshape(-1, 784) / np.float32(255)) for part in images)
    train_labels, test_labels = (torch.from_numpy(part.astype(np.int64)) for part in labels)
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
    check_unit("x", check_tensor("x", x, ("...",)))
    return torch.bernoulli(x.detach(), generator=check_generator(generator, x.device))


def _found_or_downloaded() -> list[bytes]:
    import pooch  # here, because in a notebook the import alone warns about missing progress widgets

    cache = Path(pooch.os_cache("vaebook")) / "fashion-mnist"
    failures: list[tuple[object, Exception]] = []
    for source in (cache, FASHION_SYSTEM_FOLDER, *FASHION_BASES):
        try:
            if isinstance(source, str):
                _download(source, cache)
            return _read_all(cache if isinstance(source, str) else source)
        except (OSError, ValueError) as error:  # OSError includes every network error of pooch's requests
            failures.append((source, error))
    told = " ".join("; ".join(f"{source}: {type(error).__name__}: {error}" for source, error in failures).split())
    wrong = any(isinstance(error, ValueError) and not isinstance(error, OSError) for _, error in failures)
    remedy = "Install the package dataset-fashion-mnist (Debian, Ubuntu), or put the files into a folder and pass it"
    kind = ValueError if wrong else FileNotFoundError
    raise kind(f"Fashion-MNIST: expected its four files, got {told}. {remedy} as `folder`")


def _read_all(folder: Path, prefix: str = "") -> list[bytes]:
    """Read the four files and report every one that is missing or wrong."""
    paths = [next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None) for name in FASHION_SHA256]
    missing = [name for name, path in zip(FASHION_SHA256, paths, strict=True) if path is None]
    if missing:
        expected = "expected the four files of Fashion-MNIST"
        raise FileNotFoundError(f"{prefix}{expected}, got {folder} without {', '.join(missing)} (with .gz or not)")
    payloads, errors = [], []
    for path, sha256 in zip(paths, FASHION_SHA256.values(), strict=True):
        try:
            with path.open("rb") as file:
                payloads.append(_unpack(path, file, sha256))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("; ".join(errors))
    return payloads


def _unpack(name: object, raw: BinaryIO, sha256: str) -> bytes:
    """Read and verify what may be gzipped: some servers and packagers unpack without renaming."""
    raw.seek(0)
    content = raw.read(_MOST + 2**16)  # packed, what cannot be made smaller is a little longer
    try:
        if content.startswith(b"\x1f\x8b"):  # gzip; one stream, since a million empty ones take minutes
            content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, _MOST)
        content = content[:_MOST]
        got = f"{len(content):,} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}"
    except zlib.error as error:
        got = f"a broken gzip stream ({error})"
    if not got.endswith(sha256):
        raise ValueError(f"{name}: expected uncompressed content with SHA-256 {sha256}, got {got}")
    return content


class _Limited(io.BytesIO):
    """Memory for a download, which a server could go on with for ever."""

    def write(self, piece: Any) -> int:
        if self.tell() + len(piece) > _MOST:
            raise ValueError(f"more than {_MOST:,} bytes")
        return super().write(piece)


def _download(base: str, cache: Path) -> None:
    """Let pooch fetch what the cache lacks; a file is put in place once its uncompressed content was verified."""
    import pooch

    cache.mkdir(parents=True, exist_ok=True)
    for name, sha256 in FASHION_SHA256.items():
        if not ((cache / name).is_file() and pooch.file_hash(cache / name) == sha256):
            pooch.HTTPDownloader(timeout=30)(f"{base}{name}.gz", packed := _Limited(), None)
            write_atomically(cache / name, _unpack(name, packed, sha256))
        (cache / f"{name}.gz").unlink(missing_ok=True)
