"""Files that somebody made to do harm: the checksum is right, and what they declare is not there, or is too much.

Each is one ValueError that names the file, on one line, within a second and a hundred megabytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pace import pace
from vaebook import checkpoint, storage
from vaebook.__main__ import main
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import GaussianMixture, StandardNormal, VampPrior
from vaebook.training import load, load_density, save

SECONDS, MEGABYTES = 1.0, 100
HUGE = 10**12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def vae(prior="normal"):
    encoder = GaussianEncoder(6, 2, (5,), generator=generator())
    priors = {
        "normal": lambda: StandardNormal(2),
        "vamp": lambda: VampPrior(encoder, torch.rand(4, 6, generator=generator(1))),
        "gmm": lambda: GaussianMixture(torch.full((3,), 1 / 3), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2)),
    }
    return VAE(encoder, BernoulliDecoder(2, 6, (5,), generator=generator()), priors[prior]())


def forge(path, content, tensors, text=None):
    """Write what `storage.write` refuses to write; text stands for the JSON with the checksum."""
    content = {"format": 1} | content
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    digest = storage.digest(content, tensors)
    text = json.dumps(content | {"sha256": digest}) if text is None else text.replace("DIGEST", digest)
    path.write_bytes(safetensors.torch.save(tensors, {"vaebook": text}))


@contextlib.contextmanager
def bounded():
    """Give the process so much more memory, and look at the clock."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEGABYTES * 2**20, hard))
    start = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < SECONDS * pace()


def refused(path, read, *arguments):
    """Return the message of the one error that reading a file must be."""
    with bounded(), pytest.raises(ValueError) as error:
        read(path, *arguments)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 2000
    assert "alloc" not in message and "mmap" not in message, "memory was asked for, and refused by the system only"
    return message


# Densities

NORMAL, DIAGONAL, FULL = "StandardNormal", "DiagGaussianMixture", "GaussianMixture"
DENSITIES = {
    "a normal of 10^12 dimensions and no value": (NORMAL, {"loc": torch.empty(0, HUGE)}),
    "a normal of no dimension, 10^12 times": (NORMAL, {"loc": torch.empty(HUGE, 0)}),
    "a normal without dimensions": (NORMAL, {"loc": torch.tensor(0.0)}),
    "a normal of sixty axes": (NORMAL, {"loc": torch.zeros([1] * 60)}),
    "10^12 components of no dimension": (
        DIAGONAL,
        {"loc": torch.empty(HUGE, 0), "scale": torch.empty(HUGE, 0), "log_weight": torch.empty(0)},
    ),
    "no component of 10^12 dimensions": (
        DIAGONAL,
        {"loc": torch.empty(0, HUGE), "scale": torch.empty(0, HUGE), "log_weight": torch.empty(0)},
    ),
    "a factor of 10^12 numbers that are not there": (
        FULL,
        {"loc": torch.zeros(1, 10**6), "scale_tril": torch.empty(0, 10**6, 10**6), "weight": torch.ones(1)},
    ),
    "one factor for many components": (
        FULL,
        {"loc": torch.zeros(1000, 1), "scale_tril": torch.ones(1, 1, 1), "weight": torch.full((1000,), 1e-3)},
    ),
    "nan": (
        DIAGONAL,
        {n: torch.full(s, math.nan) for n, s in (("loc", (2, 1)), ("scale", (2, 1)), ("log_weight", (2,)))},
    ),
} | {
    f"a normal of {dtype}": (NORMAL, {"loc": torch.zeros(1, 2).to(dtype)})
    for dtype in (torch.bool, torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn)
}


@pytest.mark.parametrize(("kind", "tensors"), DENSITIES.values(), ids=DENSITIES)
def test_a_hostile_density_is_refused_before_memory_is_taken(kind, tensors, tmp_path):
    forge(tmp_path / "density", {"density": kind}, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(tmp_path / "density", load_density)


def test_names_of_tensors_beyond_all_measure(tmp_path):
    """Thirty thousand empty tensors take no room in the file, and take seconds to be read one by one."""
    tensors = dict(vae().state_dict()) | {f"encoder.x{i}": torch.empty(0) for i in range(30_000)}
    forge(tmp_path / "vae", {"model": checkpoint._describe(vae()), "config": {}}, tensors)
    for arguments in ((), (vae(),)):
        assert "a header of " in refused(tmp_path / "vae", load, *arguments)


# Models


@pytest.mark.parametrize("num", [101, 1000])
def test_layers_beyond_all_measure_although_all_tensors_are_there(num, tmp_path):
    model = checkpoint._describe(vae())
    model["encoder"]["arguments"]["hidden"] = [1] * num
    tensors = {name: t for name, t in vae().state_dict().items() if not name.startswith("encoder")}
    for i in range(num):
        tensors[f"encoder.body.{2 * i}.weight"] = torch.zeros(1, 1 if i else 6)
        tensors[f"encoder.body.{2 * i}.bias"] = torch.zeros(1)
    for head in ("loc", "log_scale"):
        tensors |= {f"encoder.{head}.weight": torch.zeros(2, 1), f"encoder.{head}.bias": torch.zeros(2)}
    forge(tmp_path / "vae", {"model": model, "config": {}}, tensors)
    assert f"expected at most 100 hidden layers, got {num}; build" in refused(tmp_path / "vae", load)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


SIZES = [2**62, 2**63, 10**18, 10**400, -1, 0, True, 2.0, "6", None, [], {}, [2**40, 2**40], nested(900), "x" * 10**5]


@pytest.mark.parametrize("part", ["encoder", "decoder", "prior"])
@pytest.mark.parametrize("prior", ["normal", "vamp", "gmm"])
def test_sizes_that_no_tensor_has(part, prior, tmp_path):
    model = checkpoint._describe(vae(prior))
    for name in model[part]["arguments"]:
        for size in SIZES:
            changed = json.loads(json.dumps(model))
            changed[part]["arguments"][name] = size
            forge(tmp_path / "vae", {"model": changed, "config": {}}, vae(prior).state_dict())
            refused(tmp_path / "vae", load)
            refused(tmp_path / "vae", load, vae(prior))


def test_pseudo_inputs_that_are_not_there(tmp_path):
    tensors = dict(vae("vamp").state_dict()) | {"prior.pseudo_inputs": torch.empty(0, HUGE)}
    forge(tmp_path / "vae", {"model": checkpoint._describe(vae("vamp")), "config": {}}, tensors)
    refused(tmp_path / "vae", load)


# Descriptions

OURS = '{"format": FORMAT, "density": DENSITY, "sha256": CHECKSUM}'


def text(density='"StandardNormal"', version="1", checksum='"DIGEST"'):
    return OURS.replace("FORMAT", version).replace("DENSITY", density).replace("CHECKSUM", checksum)


TEXTS = {
    "a key twice": text('"Laplace", "density": "StandardNormal"'),
    "the checksum twice": text(checksum='"x", "sha256": "DIGEST"'),
    "another format": text(version="true"),
    "a format with a point": text(version="1.0"),
    "a long format": text(version=f'"{"?" * 10**5}"'),
    "a checksum in a list": text(checksum='["DIGEST"]'),
    "a checksum of many lines": text(checksum=f'"{"a" * 9}{"b".join([chr(92) + "n"] * 10**5)}"'),
    "a half of a letter": text('"\\ud800"'),
    "a million lists": text(f"[{', '.join(['[]'] * 10**6)}]"),
    "a hundred thousand lists": text(f"[{', '.join(['[]'] * 10**5)}]"),
    "deep": text("[" * 10**5 + "]" * 10**5),
    "deep, and just to be read": text("[" * 900 + "]" * 900),
    "many digits": text("9" * 10**5),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_hostile_description_is_refused(text, tmp_path):
    forge(tmp_path / "density", {"density": "StandardNormal"}, {"loc": torch.zeros(1, 2)}, text)
    refused(tmp_path / "density", load_density)


def test_a_file_that_claims_a_header_longer_than_itself(tmp_path):
    for size in (0, 2**20, 2**20 + 1, 2**40, 2**64 - 1):
        (tmp_path / "vae").write_bytes(size.to_bytes(8, "little") + b"{}")
        refused(tmp_path / "vae", load)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"^config: expected a header of at most 1,048,576 bytes, got 3,00\d,\d+$"):
        save(tmp_path / "vae", vae(), {"notes": "x" * 3_000_000})
    assert not list(tmp_path.iterdir())


# Code in a file


class Bomb:
    """What a pickle of it does when it is read: write a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "boom")


def test_no_reader_runs_what_a_file_holds(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "file"
    bomb = np.array([Bomb(mark)], dtype=object)
    writers = {
        "torch, as a zip": lambda: torch.save({"loc": Bomb(mark)}, path),
        "torch, as it was": lambda: torch.save({"loc": Bomb(mark)}, path, _use_new_zipfile_serialization=False),
        "npy": lambda: np.save(path.open("wb"), bomb, allow_pickle=True),
        "npz": lambda: np.savez(path.open("wb"), loc=bomb, scale=bomb),
    }
    for write in writers.values():
        write()
        for read in (load, load_density, arrays):
            with contextlib.suppress(ValueError):
                held = read(path)
                assert read is arrays and not any(isinstance(x, np.ndarray) for x in held.values())
            assert not mark.exists()
    with pytest.raises(ValueError, match=r"expected an npz or safetensors file of arrays"):
        arrays(path)  # the npz
    function, arguments = Bomb(mark).__reduce__()
    function(*arguments)
    assert mark.exists()  # it would have gone off


# Arrays, of which few are wanted


def arrays(path):
    return storage.read_arrays(path, ("loc", "scale"))


CODES = {"loc": np.zeros((3, 2)), "scale": np.ones((3, 2))}


def zipped(path, *members):
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
    ):
        for name, value in (*CODES.items(), *members):
            packed = io.BytesIO()
            np.save(packed, value, allow_pickle=True)
            file.writestr(f"{name}.npy", packed.getvalue())


BESIDE = {
    "a bomb": [("labels", np.broadcast_to(np.zeros(1), 14 * 10**6))],
    "a pickle": [("labels", np.array([object], dtype=object))],
    "many": [(f"a{i}", np.zeros(0)) for i in range(300)],
}


@pytest.mark.parametrize("members", BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_the_codes_is_not_read(members, tmp_path):
    zipped(path := tmp_path / "codes.npz", *members)
    with bounded():
        held = arrays(path)
    assert {name for name, value in held.items() if value is not None} == {"loc", "scale"} < set(held)
    assert np.array_equal(held["loc"], CODES["loc"])


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path):
    zipped(path := tmp_path / "codes.npz", ("var", np.broadcast_to(np.zeros(1), 5 * 10**6)))
    with bounded(), pytest.raises(ValueError, match=r"arrays of 0.0 GB, from [\d,]+ bytes, where there are"):
        storage.read_arrays(path, ("var",))


def test_a_list_of_contents_beyond_all_measure_is_not_read(tmp_path):
    """Of two hundred thousand empty parts zipfile would make as many objects, in seconds and 250 MB."""
    size = storage.MOST_HEADER + 1
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2**15, 2**15, size, 0, 0)
    (tmp_path / "codes").write_bytes(b"PK\x03\x04" + bytes(size - 4) + end)
    assert "a header of 1,048,577 bytes" in refused(tmp_path / "codes", arrays)


@pytest.mark.parametrize("size", [2**40, 2**43, 2**60])
def test_a_file_with_holes_is_not_read(size, tmp_path):
    """It has no room on the disk, and fills all memory when it is read."""
    header = b'{"loc":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    (tmp_path / "codes").write_bytes(raw(header))
    with contextlib.suppress(OSError):
        os.truncate(tmp_path / "codes", 8 + len(header) + size)
    for read in (arrays, load, load_density):
        assert "GB of memory" in refused(tmp_path / "codes", read)


def raw(header, body=b""):
    return len(header).to_bytes(8, "little") + header + body


TWICE = b'"scale":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'


def test_a_name_that_occurs_twice_is_no_name(tmp_path):
    path = tmp_path / "codes"
    for name in CODES:
        zipped(path, (name, np.ones((3, 2))))
        assert "a key that occurs twice" in refused(path, arrays)
    path.write_bytes(raw(b"{" + TWICE % (0, 4) + b"," + TWICE % (0, 4) + b"}", bytes(4)))
    for read in (arrays, load, load_density):
        assert "a key that occurs twice" in refused(path, read)


@pytest.mark.parametrize("num", [10**5, 10**6])
def test_names_beyond_all_measure_are_not_read(num, tmp_path):
    one = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    (tmp_path / "codes").write_bytes(raw(b"{" + b",".join(one % i for i in range(num)) + b"}"))
    assert "a header of" in refused(tmp_path / "codes", arrays)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\x00", "\u202e", "a" * 6 * 10**4])
def test_what_a_file_holds_does_not_steer_the_terminal(name, tmp_path, capsys):
    path, density = tmp_path / "file.npz", DiagGaussianMixture(torch.zeros(2, 3), torch.ones(2, 3))
    np.savez(path, **{name: np.zeros(1)})
    assert main(["diagnose", str(path)]) == 2
    said = [capsys.readouterr().err[:-1]]
    tensors = dict(zip(("log_weight", "loc", "scale"), density.components(), strict=True))
    for content in ({"density": "DiagGaussianMixture"}, {"density": name}, {name: 1}):
        forge(path, content, tensors | {name: torch.zeros(1)})
        said.append(refused(path, load_density))
    assert all(text.isprintable() and len(text) < 1000 for text in said)


def test_weights_that_no_network_computes_with_are_refused(tmp_path):
    with warnings.catch_warnings(action="error"):
        for dtype in (torch.float8_e5m2, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool):
            tensors = {name: tensor.to(dtype) for name, tensor in vae().state_dict().items()}
            forge(tmp_path / "vae", {"model": checkpoint._describe(vae()), "config": {}}, tensors)
            refused(tmp_path / "vae", load)


# Whatever comes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**9, -1, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape).to(dtype),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 6]), max_size=4).map(tuple),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool]),
)
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value, path=()):
    """All places in nested JSON, the root excepted."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(data, value):
    """Some JSON with one of its places changed, or without it."""
    *way, last = data.draw(st.sampled_from(list(places(value))))
    inner = value
    for key in way:
        inner = inner[key]
    if data.draw(st.booleans()) and isinstance(inner, dict):
        del inner[last]
    else:
        inner[last] = data.draw(JSON)
    return value


def tampered(data, tensors):
    """Tensors of which one was replaced, renamed or left out, or none."""
    tensors, name = dict(tensors), data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(["none", "replaced", "left out", "renamed"]))
    if kind != "none":
        old = tensors.pop(name)
        if kind != "left out":
            tensors[name if kind == "replaced" else f"{name}x"] = data.draw(TENSORS) if kind == "replaced" else old
    return tensors


@QUICK
@given(data=st.data(), prior=st.sampled_from(["normal", "vamp", "gmm"]))
def test_any_model_is_loaded_or_refused(data, prior, tmp_path):
    path, model = tmp_path / "vae", checkpoint._describe(vae(prior))
    model = changed(data, model) if data.draw(st.booleans()) else model
    forge(path, {"model": model, "config": data.draw(JSON)}, tampered(data, vae(prior).state_dict()))
    for arguments in ((path,), (path, vae(prior))):
        with bounded(), contextlib.suppress(ValueError):
            loaded = load(*arguments)
            assert all(t.isfinite().all() for t in loaded.state_dict().values())


@QUICK
@given(data=st.data(), kind=st.sampled_from([NORMAL, DIAGONAL, FULL]) | JSON)
def test_any_density_is_loaded_or_refused(data, kind, tmp_path):
    density = DiagGaussianMixture(torch.zeros(2, 3), torch.ones(2, 3))
    tensors = dict(zip(("log_weight", "loc", "scale"), density.components(), strict=True))
    tensors = data.draw(st.sampled_from([tensors, dict(vae("gmm").prior.state_dict()), {"loc": torch.zeros(1, 2)}]))
    forge(tmp_path / "density", {"density": kind}, tampered(data, tensors))
    with bounded(), contextlib.suppress(ValueError):
        loaded = load_density(tmp_path / "density")
        assert loaded.log_prob(torch.zeros(1, loaded.latent_dim)).isfinite().all()
