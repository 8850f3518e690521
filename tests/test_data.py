"""The data sets: sizes, values, fixed order, and every way in which a file can be bad."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types
import zlib

import numpy as np
import pooch
import pytest
import torch
from sklearn.datasets import load_digits

from tests.pace import pace
from vaebook import data

PIXELS = {"train": 30, "t10k": 12}  # numbers of pictures in the miniature below


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def miniature(monkeypatch, tmp_path):
    """A Fashion-MNIST of 30 + 12 pictures: its files in a folder, an empty cache, no system folder, no network."""
    rng, hashes, folder = np.random.default_rng(0), {}, tmp_path / "source"
    folder.mkdir()
    for name in data.FASHION_SHA256:
        pixels = (28, 28) if "images" in name else ()
        content = idx(rng.integers(0, 256 if pixels else 10, (PIXELS[name.split("-")[0]], *pixels), np.uint8))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        hashes[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "FASHION_SHA256", hashes)
    monkeypatch.setattr(data, "FASHION_VALIDATION", 10)
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", tmp_path / "no-such-folder")
    monkeypatch.setattr(data, "FASHION_BASES", ("http://127.0.0.1:9/", "http://127.0.0.1:9/mirror/"))  # closed
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def server(miniature):
    """Serve `miniature` and count what was asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=miniature)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", asked
        httpd.shutdown()
        thread.join()


def cache_of(miniature):
    return miniature.parent / "cache" / "fashion-mnist"


def test_digits_are_the_data_of_scikit_learn_in_another_order():
    split = data.digits()
    assert [tuple(part.shape) for part in split] == [(1297, 64), (100, 64), (400, 64), (1297,), (100,), (400,)]
    assert {part.dtype for part in split[:3]} == {torch.float32}
    assert {part.dtype for part in split[3:]} == {torch.int64}
    ours = np.column_stack([torch.cat(split[:3]).numpy() * 16, torch.cat(split[3:]).numpy()])
    theirs = np.column_stack(load_digits(return_X_y=True))
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_no_two_digits_are_equal():
    assert len(torch.cat(data.digits()[:3]).unique(dim=0)) == 1797


def test_digits_come_in_the_order_of_the_committed_results():
    """A committed number of the book is worthless once this order moves."""
    split = data.digits()
    assert hashlib.sha256(split.train.numpy().tobytes()).hexdigest()[:16] == "b6c51488caec3708"
    assert hashlib.sha256(split.test.numpy().tobytes()).hexdigest()[:16] == "10fe3547221d3326"
    assert split.test_labels[:10].tolist() == [2, 7, 4, 0, 4, 2, 7, 7, 9, 1]


@pytest.mark.skipif(not data.FASHION_SYSTEM_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path)
    split = data.fashion_mnist()
    assert [len(part) for part in split] == [50_000, 10_000, 10_000] * 2
    assert split.train.shape[1] == 784 and split.train.dtype == torch.float32
    assert (float(split.train.min()), float(split.train.max())) == (0, 1)
    assert torch.cat(split[3:5]).bincount().tolist() == [6000] * 10
    assert split.train_labels[:5].tolist() == [9, 0, 0, 3, 0]  # as everybody knows them
    assert not list(tmp_path.iterdir())


def test_fashion_mnist_keeps_order_and_values(miniature):
    split = data.fashion_mnist(miniature)
    for group, name in ((split[:2], "train"), (split[2:3], "t10k")):
        raw = gzip.decompress((miniature / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
        expected = np.frombuffer(raw, np.uint8).reshape(-1, 784).astype(np.float32) / np.float32(255)
        assert np.array_equal(torch.cat(group).numpy(), expected)
    labels = gzip.decompress((miniature / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert torch.cat(split[3:5]).tolist() == list(labels)
    assert [len(part) for part in split] == [20, 10, 12] * 2


def test_recompressed_and_unpacked_files_are_the_same_data(miniature):
    before = data.fashion_mnist(miniature)
    for i, name in enumerate(data.FASHION_SHA256):
        packed = miniature / f"{name}.gz"
        content = gzip.decompress(packed.read_bytes())
        if i % 2:
            packed.write_bytes(gzip.compress(content, 1))
        else:
            packed.unlink()
            (miniature / name).write_bytes(content)
    after = data.fashion_mnist(str(miniature))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def spoil_truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def spoil_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoil_pixel(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))


def spoil_longer(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_page(path):
    path.write_bytes(b"<html>404</html>")


SPOIL = [spoil_truncate, spoil_flip, spoil_pixel, spoil_longer, spoil_empty, spoil_page]


@pytest.mark.parametrize("spoil", SPOIL)
def test_bad_file_in_a_given_folder_is_named_and_left_alone(miniature, spoil):
    bad = miniature / "t10k-labels-idx1-ubyte.gz"
    spoil(bad)
    content = bad.read_bytes()
    with pytest.raises(
        ValueError, match=rf"^{bad}: expected uncompressed content with SHA-256 \w{{64}}, got "
    ) as error:
        data.fashion_mnist(miniature)
    assert str(error.value).count("expected") == 1
    assert bad.read_bytes() == content


def test_every_bad_file_is_named_at_once(miniature):
    for name in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        spoil_pixel(miniature / name)
    with pytest.raises(
        ValueError, match=r"train-images.*, got 23,536 bytes with SHA-256 \w{64}; .*t10k-labels.*, got 20"
    ):
        data.fashion_mnist(miniature)


def test_no_more_is_unpacked_than_the_files_may_hold(miniature, monkeypatch):
    monkeypatch.setattr(data, "_MOST", 1000)
    with pytest.raises(ValueError, match=r"train-images.*, got 1,000 bytes"):
        data.fashion_mnist(miniature)


def test_streams_without_end_are_left(miniature):
    packed = miniature / "t10k-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress(b"") * 200_000)
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"^{packed}: expected .*, got 0 bytes"):
        data.fashion_mnist(miniature)
    assert time.process_time() - start < pace()


def test_bad_files_in_the_system_folder_are_named_and_left_alone(miniature, monkeypatch):
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", miniature)
    bad = miniature / "train-images-idx3-ubyte.gz"
    spoil_pixel(bad)
    content = bad.read_bytes()
    with pytest.raises(ValueError, match=rf"{bad}: expected .*, got 23,536 bytes with SHA-256 \w{{64}}; http"):
        data.fashion_mnist()
    assert bad.read_bytes() == content


def test_cache_comes_before_the_system_folder(miniature, monkeypatch, tmp_path):
    shutil.copytree(miniature, cache_of(miniature))
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", miniature)
    spoil_pixel(miniature / "train-images-idx3-ubyte.gz")
    assert len(data.fashion_mnist().train) == 20
    (cache_of(miniature) / "t10k-images-idx3-ubyte.gz").unlink()  # incomplete: the system's turn
    with pytest.raises(ValueError, match=r"without t10k-images-idx3-ubyte .*source/train-images"):
        data.fashion_mnist()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ValueError("spoiled")])
def test_a_cache_that_cannot_be_used_leaves_the_others_their_turn(miniature, monkeypatch, error):
    """Unreadable, or wrong and not to be mended: what is wrong is said once there is nothing else."""
    shutil.copytree(miniature, cache_of(miniature))
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", miniature)
    read = data._read_all

    def refuse(folder, *arguments):
        if folder == cache_of(miniature):
            raise error
        return read(folder, *arguments)

    monkeypatch.setattr(data, "_read_all", refuse)
    assert len(data.fashion_mnist().train) == 20
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", miniature / "none")
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{type(error).__name__}: .*{error.args[-1]}"):
        data.fashion_mnist()


def test_given_folder_is_the_only_source(miniature, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "FASHION_SYSTEM_FOLDER", miniature)
    data.fashion_mnist()
    with pytest.raises(
        FileNotFoundError, match=r"^folder: expected the four files .* without train-images.*, t10k-lab"
    ):
        data.fashion_mnist(tmp_path)
    (miniature / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"got {miniature} without t10k-images-idx3-ubyte \(with .gz or not\)$"
    ):
        data.fashion_mnist(miniature)


@pytest.mark.parametrize("folder", [3, b"x", ["a"], True])
def test_folder_must_be_a_path(folder):
    with pytest.raises(TypeError, match=r"^folder: expected a str or a PathLike or a NoneType, got"):
        data.fashion_mnist(folder)


def test_download_goes_to_the_cache_and_is_used_again(miniature, monkeypatch, server):
    base, asked = server
    monkeypatch.setattr(data, "FASHION_BASES", ("http://127.0.0.1:9/", base))  # the first fails, the mirror works
    first = data.fashion_mnist()
    assert len(asked) == 4
    assert sorted(p.name for p in cache_of(miniature).iterdir()) == sorted(data.FASHION_SHA256)
    second = data.fashion_mnist()
    assert len(asked) == 4
    given = data.fashion_mnist(miniature)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, given, strict=True))


@pytest.mark.parametrize("spoil", SPOIL)
def test_wrong_download_is_an_error_and_never_kept(miniature, monkeypatch, server, spoil):
    base, _ = server
    monkeypatch.setattr(data, "FASHION_BASES", (base,))
    spoil(miniature / "train-labels-idx1-ubyte.gz")
    told = r"train-labels-idx1-ubyte: expected .*, got (.* with SHA-256 \w{64}|a broken gzip stream)"
    with pytest.raises(ValueError, match=f"; {base}: ValueError: {told}"):
        data.fashion_mnist()
    assert [p.name for p in cache_of(miniature).iterdir()] == ["train-images-idx3-ubyte"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_download_leaves_nothing_and_a_full_disk_is_called_so(miniature, monkeypatch, server, error):
    monkeypatch.setattr(data, "FASHION_BASES", (server[0],))

    def interrupt(*_):
        raise error

    monkeypatch.setattr(data, "_unpack", interrupt)
    with pytest.raises((KeyboardInterrupt, FileNotFoundError)) as caught:
        data.fashion_mnist()
    assert caught.type is KeyboardInterrupt or "No space left on device" in str(caught.value)
    assert not list(cache_of(miniature).iterdir())


def test_a_server_that_never_ends_is_left(miniature, monkeypatch, server):
    monkeypatch.setattr(data, "FASHION_BASES", (server[0],))
    monkeypatch.setattr(data, "_MOST", 1000)
    with pytest.raises(ValueError, match="ValueError: more than 1,000 bytes"):
        data.fashion_mnist()
    assert not list(cache_of(miniature).iterdir())


DOWNLOAD = """\
import json, sys
from pathlib import Path
import pooch
from vaebook import data
cache, base, hashes = json.loads(sys.argv[1])
data.FASHION_SHA256, data.FASHION_VALIDATION = hashes, 10
data.FASHION_SYSTEM_FOLDER, data.FASHION_BASES = Path("/no/such/folder"), (base,)
pooch.os_cache = lambda _: cache
{limit}
print("ready", flush=True)
print(len(data.fashion_mnist().train))
"""


@pytest.fixture
def download(miniature, server):
    """A function that starts a download in a process of its own and waits until it begins."""

    def start(limit=""):
        given = json.dumps([str(miniature.parent / "cache"), server[0], data.FASHION_SHA256])
        command = [sys.executable, "-c", DOWNLOAD.format(limit=limit), given]
        here = os.environ | {"TMPDIR": str(scratch)}
        running = subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(running)
        assert running.stdout.readline() == "ready\n"
        return running

    scratch, started = miniature.parent / "scratch", []
    scratch.mkdir()
    yield start
    for running in started:
        running.communicate()
    assert not list(scratch.iterdir())


def said(running):
    return running.stdout.read(), running.stderr.read()


def downloaded(miniature):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cache_of(miniature).glob("*")}


@pytest.mark.slow
def test_a_download_that_is_stopped_many_times_ends_as_if_undisturbed(miniature, download):
    begin = time.monotonic()
    assert said(download()) == ("20\n", "")
    took, moments = time.monotonic() - begin, random.Random(0)
    for turn in range(20):
        shutil.rmtree(cache_of(miniature), ignore_errors=True)
        running = download()
        time.sleep(moments.random() * took / 10)
        running.send_signal([signal.SIGINT, signal.SIGTERM, signal.SIGKILL][turn % 3])
        said(running)
        whole = {k: v for k, v in downloaded(miniature).items() if not k.startswith(".vaebook-")}
        assert whole.items() <= data.FASHION_SHA256.items()
        assert turn % 3 or whole == downloaded(miniature)  # an interruption leaves nothing even for a moment
        assert said(download()) == ("20\n", "")
        assert downloaded(miniature) == data.FASHION_SHA256


def test_two_downloads_at_once_end_like_one(miniature, download):
    assert [said(one) for one in [download() for _ in range(2)]] == [("20\n", "")] * 2
    assert downloaded(miniature) == data.FASHION_SHA256


def test_a_download_to_a_full_disk_says_so_and_leaves_nothing(miniature, download):
    _, err = said(download("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"))
    last = err.splitlines()[-1]
    assert last.startswith("FileNotFoundError: Fashion-MNIST: ") and "File too large" in last
    assert downloaded(miniature) == {}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("spoil", SPOIL)
def test_a_bad_cache_heals(miniature, monkeypatch, server, spoil, packed):
    """Also one of gzipped files, which an earlier version made."""
    base, asked = server
    monkeypatch.setattr(data, "FASHION_BASES", (base,))
    good = data.fashion_mnist()
    if packed:
        shutil.rmtree(cache_of(miniature))
        shutil.copytree(miniature, cache_of(miniature))
    bad = [cache_of(miniature) / (name + ".gz" * packed) for name in list(data.FASHION_SHA256)[::3]]
    for path in bad:
        if not packed:
            path.write_bytes(gzip.compress(path.read_bytes()))
        spoil(path)
    with monkeypatch.context() as offline:
        offline.setattr(data, "FASHION_BASES", ())
        with pytest.raises(ValueError, match=rf"{bad[0]}: expected .*; {bad[1]}: expected "):
            data.fashion_mnist()
    again = data.fashion_mnist()
    assert all(torch.equal(a, b) for a, b in zip(good, again, strict=True))
    assert len(asked) == (8 if packed else 6)
    data.fashion_mnist()
    assert len(asked) == (8 if packed else 6)


def test_nothing_on_disk_and_no_network_is_one_clear_message(miniature):
    with pytest.raises(FileNotFoundError) as error:
        data.fashion_mnist()
    message = str(error.value)
    for part in (str(cache_of(miniature)), "no-such-folder", "127.0.0.1:9/mirror", "dataset-fashion-mnist", "`folder`"):
        assert part in message
    assert "\n" not in message and error.value.__cause__ is None
    assert not list(cache_of(miniature).iterdir())


def test_cache_that_cannot_be_written_is_said(miniature, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(
        FileNotFoundError, match=r"^Fashion-MNIST: expected its four files, got .*(NotADir|FileEx)\w+Error"
    ):
        data.fashion_mnist()


def test_binarize_has_the_grey_values_as_expectations():
    x = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    draws = data.binarize(x.expand(40_000, 5), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    error = (draws.mean(0) - x).abs()
    assert (error <= 4 * (x * (1 - x) / 40_000).sqrt()).all()  # exactly 0 at the ends
    corr = torch.corrcoef(draws[:, 1:4].T).fill_diagonal_(0)
    assert corr.abs().max() < 4 / 200  # pixels are independent


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_binarize_keeps_shape_and_dtype_and_follows_the_generator(dtype):
    x = torch.full((3, 2, 50), 0.5, dtype=dtype)
    state = torch.get_rng_state()
    a, b = (data.binarize(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.shape == x.shape and a.dtype == dtype and torch.equal(a, b)
    assert not torch.equal(a, data.binarize(x, torch.Generator().manual_seed(2)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("x", "generator", "error", "message"),
    [
        ([0.5], None, TypeError, "x: expected a torch.Tensor, got list"),
        (
            torch.ones(3, dtype=torch.int64),
            None,
            TypeError,
            "x: expected a floating-point tensor",
        ),
        (torch.ones(0, 3), None, ValueError, "x: expected at least one element"),
        (torch.tensor([[0.5, torch.nan]]), None, ValueError, "x: expected finite values, got nan at index (0, 1)"),
        (torch.tensor([[0.5, torch.inf]]), None, ValueError, "x: expected finite values, got inf"),
        (torch.tensor([[0.5], [1.5]]), None, ValueError, "x: expected values in [0, 1], got 1.5 at index (1, 0)"),
        (torch.tensor([-0.1]), None, ValueError, "x: expected values in [0, 1], got -0.1"),
        (torch.ones(2), 0, TypeError, "generator: expected a torch.Generator or None, got int"),
    ],
)
def test_binarize_rejects(x, generator, error, message):
    with pytest.raises(error) as caught:
        data.binarize(x, generator)
    assert str(caught.value).startswith(message)


def test_what_a_download_brings_is_counted_over_all_its_pieces(monkeypatch):
    monkeypatch.setattr(data, "_MOST", 10)
    file = data._Limited()
    assert file.write(b"123456") == 6
    with pytest.raises(ValueError, match="more than 10 bytes"):
        file.write(b"12345")
    assert file.write(b"1234") == 4


def test_an_address_that_is_wrong_is_no_wrong_content(miniature, monkeypatch):
    class Odd(OSError, ValueError):
        """As requests' error of an address that is none."""

    def fail(base, cache):
        raise Odd("no address")

    monkeypatch.setattr(data, "_download", fail)
    with pytest.raises(FileNotFoundError, match="Odd: no address"):
        data.fashion_mnist()


def test_black_and_white_data_have_no_derivatives():
    assert not data.binarize(torch.full((2, 3), 0.5).requires_grad_()).requires_grad


def test_the_cache_of_the_user_bears_the_name_of_the_package(miniature, monkeypatch, tmp_path):
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    shutil.copytree(miniature, tmp_path / "vaebook" / "fashion-mnist")
    assert [len(part) for part in data.fashion_mnist()] == [20, 10, 12] * 2


def test_an_empty_path_is_the_folder_of_today_and_no_download(miniature, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_found_or_downloaded", lambda: pytest.fail("a folder was given"))
    monkeypatch.chdir(miniature)
    assert [len(part) for part in data.fashion_mnist("")] == [20, 10, 12] * 2
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^folder: expected the four files"):
        data.fashion_mnist("")


def test_every_image_is_in_single_precision_and_every_label_a_long(miniature):
    assert [part.dtype for part in data.fashion_mnist(miniature)] == [torch.float32] * 3 + [torch.int64] * 3


def test_places_are_tried_in_their_order_and_each_failure_is_told_on_one_line(miniature, monkeypatch):
    def fail(folder):
        raise OSError(f"no\n  {folder.name}")

    asked = []
    monkeypatch.setattr(data, "_download", lambda base, cache: asked.append(base))
    monkeypatch.setattr(data, "_read_all", fail)
    with pytest.raises(FileNotFoundError) as error:
        data.fashion_mnist()
    assert asked == list(data.FASHION_BASES)
    places = [(cache_of(miniature), "fashion-mnist"), (data.FASHION_SYSTEM_FOLDER, "no-such-folder")]
    told = [f"{place}: OSError: no {name}" for place, name in [*places, *((x, "fashion-mnist") for x in asked)]]
    assert str(error.value).startswith(f"Fashion-MNIST: expected its four files, got {'; '.join(told)}. Install ")


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), MemoryError("ours")])
def test_a_mistake_that_is_no_matter_of_files_is_not_called_a_missing_file(miniature, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(data, "_read_all", fail)
    with pytest.raises(type(error), match="ours"):
        data.fashion_mnist()


def test_a_folder_with_the_name_of_a_file_is_none_and_the_packed_file_comes_first(miniature):
    one, two, *_ = data.FASHION_SHA256
    (miniature / one).mkdir()
    (miniature / two).write_bytes(b"unpacked in part")
    before = data.fashion_mnist(miniature)
    content = gzip.decompress((miniature / f"{one}.gz").read_bytes())
    (miniature / f"{one}.gz").unlink()
    (miniature / one).rmdir()
    (miniature / f"{one}.gz").mkdir()
    (miniature / one).write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(before, data.fashion_mnist(miniature), strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_file_that_is_too_long_no_more_than_the_limit_comes_into_memory(monkeypatch, packed):
    read, unpacked, content = [], [], b"x" * 1500

    class File(io.BytesIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    class Unpacker:
        def __init__(self, bits):
            self.own = zlib.decompressobj(bits)

        def decompress(self, packed, size=0):
            unpacked.append(size)
            return self.own.decompress(packed, size)

    kinds = {"MAX_WBITS": zlib.MAX_WBITS, "error": zlib.error, "decompressobj": Unpacker}
    monkeypatch.setattr(data, "zlib", types.SimpleNamespace(**kinds))
    monkeypatch.setattr(data, "_MOST", 1000)
    with pytest.raises(ValueError, match=r"^name: expected .*, got 1,000 bytes with SHA-256 "):
        data._unpack("name", File(gzip.compress(content) if packed else content), "0" * 64)
    assert read == [1000 + 2**16] and unpacked == [1000] * packed


def test_of_a_broken_stream_it_is_told_what_is_broken():
    content = bytearray(gzip.compress(bytes(range(200))))
    content[12:40] = bytes(28)
    with pytest.raises(
        ValueError, match=r"^name: expected .*, got a broken gzip stream \(Error -3 while decompressing"
    ):
        data._unpack("name", io.BytesIO(content), "0" * 64)


def test_the_generator_of_black_and_white_data_goes_where_they_are(monkeypatch):
    asked, x = [], torch.full((3,), 0.5)
    monkeypatch.setattr(data, "check_generator", lambda *given: asked.append(given))
    data.binarize(x, "a generator")
    assert asked == [("a generator", x.device)]


def test_a_server_that_says_nothing_is_left_after_half_a_minute(miniature, monkeypatch):
    class Silent:
        def __init__(self, **how):
            raise OSError(f"asked with {how}")

    monkeypatch.setattr(pooch, "HTTPDownloader", Silent)
    with pytest.raises(FileNotFoundError, match=r"asked with {'timeout': 30}"):
        data.fashion_mnist()
