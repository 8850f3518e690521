"""Ten thousand strange inputs to `diagnose` and to the command: a diagnosis without nan, or one clear error."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import time
import warnings
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributions import Independent, Normal

from tests.pace import pace
from tests.test_fuzz import MESSAGE, Hang, limited
from vaebook.__main__ import main
from vaebook.adapters import adapt
from vaebook.diagnosis import diagnose
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal

SECONDS = 8.0
"""Of the processor, for one input."""
VALUES = (0.0, -0.0, -1.0, 1e-3, 7.0, 65504.0, 1e30, 1e160, 1e308, 1e-30, 1e-160, 5e-324, math.nan, math.inf, -math.inf)
SPREADS = ("scale", "var", "log_var")
DTYPES = ("<f2", "<f4", "<f8", ">f8", "<i8", "<i4", "u1", "?", "<c8", "O", "<U3", "<M8[s]", "longdouble")


def array(draw, num, dim):
    """An array that is mostly as it should be, but for one thing or two."""
    rng = np.random.default_rng(draw.getrandbits(32))
    value = rng.normal(size=(num, dim)) * draw.choice([0.8, 0.8, 0.8, 1e-4, 1e4])
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2])):
        with contextlib.suppress(
            ValueError, TypeError, IndexError, OverflowError, RuntimeError
        ):  # this change cannot follow the last
            value = change(draw, value)
    return value


def change(draw, value):
    kind = draw.randrange(9)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == 0 and value.size:
            value = value.copy()
            value[tuple(draw.randrange(n) for n in value.shape)] = draw.choice(VALUES)
        elif kind == 1:
            value = np.full_like(value, draw.choice(VALUES))
        elif kind == 2:
            value = value.astype(draw.choice(DTYPES))
        elif kind == 3:
            value = value[: draw.randrange(len(value) + 1)] if value.ndim else value
        elif kind == 4:
            value = draw.choice([value.T, value[None], value[..., None], value.ravel(), value.reshape(-1)[:1]])
        elif kind == 5:
            value = np.repeat(value, draw.choice([0, 2]), axis=0) if value.ndim else value
        elif kind == 6:
            value = draw.choice([np.asfortranarray(value), np.flip(value), np.ma.array(value), np.array(1.0)])
        elif kind == 7 and value.dtype.kind == "f":
            value = np.exp(value)
        elif kind == 8 and value.dtype.kind == "f":
            value = value * draw.choice(VALUES)
    return value


def codes(draw, num=None, dim=None):
    """Names and arrays of codes, or of something like codes."""
    num, dim = num or draw.choice([1, 2, 3, 5, 9, 9, 9, 9, 12, 40]), dim or draw.choice([1, 1, 2, 2, 3, 7])
    if draw.random() < 0.01:
        num, dim = draw.choice([(65, 2), (4, 256), (1, 100)])
    spread = draw.choice(SPREADS)
    found = {"loc": array(draw, num, dim), spread: array(draw, num, dim)}
    if spread != "log_var" and found[spread].dtype.kind == "f" and draw.random() < 0.9:
        found[spread] = np.abs(found[spread])
    if draw.random() < 0.1:
        weight = draw.choice([np.ones(num) / num, np.arange(num) / max(1, num * (num - 1) / 2)])
        with np.errstate(all="ignore"):
            found["log_weight"] = np.log(weight) if draw.random() < 0.7 else weight
    if draw.random() < 0.1:
        found[draw.choice(["labels", "mu", "std", "var", "scale", "log_var", ""])] = array(draw, num, dim)
    if draw.random() < 0.05:
        del found[draw.choice([*found])]
    return found


def held(draw, value):
    """The same in another container."""
    kind = draw.randrange(8)
    try:
        if kind == 0:
            return value.tolist()
        if kind < 4 and isinstance(value, np.ndarray):
            tensor = torch.tensor(value)
            return draw.choice([tensor, tensor, tensor.half(), tensor.bfloat16(), tensor.clone().requires_grad_()])
    except (TypeError, ValueError, RuntimeError):
        pass
    return value


THINGS = (None, 3, "codes.npz", [], (), {}, b"", object(), torch.zeros(4, 2), (torch.zeros(4, 2), torch.ones(4, 2)),
          nn.Linear(2, 2), lambda x: x, StandardNormal(2), int, {"loc": None, "scale": None}, {"loc": [[1.0]], 1: 2},
          {"loc": torch.zeros(4, 2).to_sparse(), "scale": torch.ones(4, 2)}, {"loc": torch.zeros(4, 2, device="meta"),
          "scale": torch.ones(4, 2)}, Normal(0.0, 1.0), float("nan"))  # fmt: skip


class Dropping(nn.Module):
    """An encoder whose dropout never stops."""

    def forward(self, x):
        return nn.functional.dropout(x[:, :1], 0.5, training=True), torch.ones_like(x[:, :1])


def failing(x):
    raise KeyError("weights")


ENCODERS = (
    lambda x: (x[:, :2], torch.ones_like(x[:, :2])), lambda x: (x[:, :1], x[:, :1].abs() + 0.1), lambda x: x, failing,
    lambda x: (x, -torch.ones_like(x)), lambda x: (x * math.nan, torch.ones_like(x)), lambda x: (x[:1], x[:1].exp()),
    lambda x: {"mu": x, "logvar": x}, lambda x: Normal(x, 1.0), lambda x: None, lambda x: (x.numpy(), x.numpy()),
    Dropping(), nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)), lambda x: Independent(Normal(x, x.exp()), 1),
    lambda x: (x[:, :0], x[:, :0]), lambda x: (1e200 * x.double(), torch.ones_like(x).double()),
)  # fmt: skip
DECODERS = (
    None, None, lambda z: z, lambda z: z.expand(-1, 3), failing, lambda z: Normal(z.sum(1, keepdim=True), 1.0),
    lambda z: Independent(Normal(z.sum(1, keepdim=True).expand(-1, 3), 1.0), 1), lambda z: z * math.nan,
    lambda z: Independent(Normal(z.sum(1, keepdim=True).expand(-1, 3), 0.0, validate_args=False), 1), lambda z: z[:1],
)  # fmt: skip


def models(draw):
    """A model of strange parts and data for it, or nothing if adapt refuses."""
    num = draw.choice([1, 3, 9, 9, 9, 14])
    likelihood = draw.choice([None, None, "bernoulli", "bernoulli_logits", "gaussian", "categorical"])
    options = {"likelihood": likelihood, "spread": draw.choice(["std", "std", "var", "log_var"])}
    vae = adapt(draw.choice(ENCODERS), draw.choice(DECODERS), **options)
    x = draw.choice([array(draw, num, 3), torch.rand(num, 3), torch.rand(num, 3).double(), *THINGS])
    return vae, {"x": x}


def inputs(num):
    """Generate arguments of `diagnose`."""
    draw = random.Random(0)
    for _ in range(num):
        kind = draw.random()
        if kind < 0.1:
            subject, options = draw.choice(THINGS), {}
        elif kind < 0.2:
            subject, options = models(draw)
        else:
            subject, options = codes(draw), {}
            if draw.random() < 0.3:
                subject = {name: held(draw, value) for name, value in subject.items()}
        if draw.random() < 0.15:
            options["held_out"] = draw.choice([codes(draw), codes(draw, dim=2), *THINGS])
        if draw.random() < 0.1:
            prior = DiagGaussianMixture(torch.zeros(2, 2), torch.ones(2, 2))
            options["prior"] = draw.choice([prior, StandardNormal(1), StandardNormal(2), *THINGS])
        if draw.random() < 0.05:
            name = draw.choice(["x", "condition", "held_out_condition", "num_data", "generator"])
            options[name] = draw.choice(THINGS)
        yield subject, options


def undetermined(value):
    """Whether a number that is none is anywhere in what a diagnosis holds."""
    if isinstance(value, Mapping):
        return any(undetermined(part) for part in value.values())
    if isinstance(value, tuple | list):
        return any(undetermined(part) for part in value)
    if isinstance(value, torch.Tensor):
        return bool(value.isnan().any())
    return isinstance(value, float) and math.isnan(value)


def problem(subject, options):
    """Return what is wrong with what `diagnose` did, None if nothing is."""
    start = time.process_time()
    try:
        with limited():
            report = diagnose(subject, **options)
            json.loads(report.to_json())
            text = str(report)
    except (TypeError, ValueError) as error:
        if not MESSAGE.match(str(error)):
            return f"{type(error).__name__} without a name: {str(error)[:200]}"
    except Hang:
        return "hangs"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        if undetermined([vars(report)[name] for name in vars(report)]) or "nan" in text.split("What it could not")[0]:
            return "nan"
    return None if time.process_time() - start < SECONDS * pace() else f"took {time.process_time() - start:.1f} s"


def shown(value):
    if isinstance(value, Mapping):
        return {name: shown(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        first = value.ravel()[:3].tolist() if value.size else []
        return f"{value.dtype}{value.shape}{first}"
    return repr(value)[:80]


def check_inputs(num):
    torch.manual_seed(0)
    failures = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for subject, options in inputs(num):
            wrong = problem(subject, options)
            if wrong is not None:
                failures.setdefault(wrong[:60], []).append(f"{shown(subject)}, {shown(options)}: {wrong}")
    lines = [f"{len(found)} times: {found[0]}" for found in failures.values()]
    assert not failures, "\n".join(lines)


def content(draw):
    """The bytes of a file: of codes, or of something else, often broken."""
    found, kind, buffer = codes(draw), draw.random(), io.BytesIO()
    if kind < 0.6:
        draw.choice([np.savez, np.savez_compressed])(buffer, **{name or "x": value for name, value in found.items()})
        whole = buffer.getvalue()
    elif kind < 0.8:
        tensors = {}
        for name, value in found.items():
            try:
                tensors[name] = torch.tensor(np.ascontiguousarray(value))
            except (TypeError, ValueError, RuntimeError):
                tensors[name] = torch.zeros(3, dtype=draw.choice([torch.bool, torch.bfloat16, torch.float16]))
        whole = safetensors.torch.save(tensors)
    elif kind < 0.85:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in draw.sample(["loc", "loc.npy", "scale.npy", "../loc.npy", "a/b", ""], 2):
                archive.writestr(name or "x", draw.randbytes(draw.randrange(200)))
        whole = buffer.getvalue()
    elif kind < 0.9:
        np.save(buffer, found.get("loc", 0), allow_pickle=True)
        whole = buffer.getvalue()
    else:
        whole = draw.choice([b"", b"PK", b"\0" * 99, b"loc,scale\n1,2\n", b"{}", draw.randbytes(300)])
    for _ in range(draw.choice([0, 0, 0, 1, 4])):
        place = draw.randrange(len(whole) + 1)
        part = draw.choice([b"", draw.randbytes(1), draw.randbytes(8), b"\xff" * 8])
        whole = whole[:place] + part + (whole[place + len(part) :] if draw.random() < 0.8 else b"")
    return whole


def check_files(num, folder, capsys):
    draw, failures = random.Random(1), []
    for number in range(num):
        paths = [folder / f"{name}.{draw.choice(['npz', 'safetensors', 'bin'])}" for name in "ab"]
        for path in paths:
            path.write_bytes(content(draw))
        line = ["diagnose", str(paths[0])]
        line += draw.choice([[], [], [], ["--held-out", str(paths[1])], ["--prior", str(paths[1])], ["--seed", "3"]])
        try:
            with warnings.catch_warnings(), limited():
                warnings.simplefilter("ignore")
                status = main(line)
        except (Exception, Hang) as error:
            failures.append(f"{number}: {line}: {type(error).__name__} {error}")
            continue
        told = capsys.readouterr()
        if status == 0:
            right = "data, " in told.out and "nan" not in told.out.split("What it could not")[0]
        else:
            right = status == 2 and not told.out and told.err.startswith("error: ") and told.err.count("\n") == 1
        if not right:
            failures.append(f"{number}: {line}: {status} {told.out[:200]} {told.err[:300]}")
    assert not failures, f"{len(failures)} files\n" + "\n".join(failures[:20])


def test_some_strange_inputs():
    check_inputs(150)


@pytest.mark.slow
def test_strange_inputs():
    check_inputs(6_000)


def test_some_strange_files(tmp_path, capsys):
    check_files(80, tmp_path, capsys)


@pytest.mark.slow
def test_strange_files(tmp_path, capsys):
    check_files(4_000, tmp_path, capsys)
