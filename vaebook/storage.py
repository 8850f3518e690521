r"""One file of tensors with a description, verified: safetensors and JSON, no pickle.

The header holds, as JSON, what the tensors are, and a SHA-256 of all of it: there is no second file that could disagree
with the first, and no byte can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

_FORMAT = 1


def check_path(path: Any) -> Path:
    """Check for a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a path, got {type(path).__name__}")
    return Path(path)


def check_fits(wanted: dict[str, Tensor], got: dict[str, Tensor], prefix: str = "") -> None:
    """Compare names, shapes and dtypes before anything is copied."""
    for name in sorted(wanted.keys() | got.keys()):
        one, other = (_kind(group[name]) if name in group else "none" for group in (wanted, got))
        if one != other:
            raise ValueError(f"{prefix}{name}: expected {one}, got {other}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


@contextmanager
def refusing(source: Path, wanted: str) -> Iterator[None]:
    """Turn all that the content of a file may bring about into one kind of error that names the file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        told = str(error).partition("\n")[0]  # torch's go on
        kind = "" if isinstance(error, ValueError) else f"expected {wanted}, got {type(error).__name__}: "
        raise ValueError(f"{source}: {kind}{told}") from error


def write(target: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a description that JSON can hold, and tensors; the same ones make the same file."""
    if not target.parent.is_dir():
        raise ValueError(f"path: expected a file in a folder that exists, got {target}")
    content = {"format": _FORMAT} | content
    # clone: safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    # One entry: safetensors writes several in random order, and the same model should give the same file.
    header = {"vaebook": json.dumps(content | {"sha256": digest(content, tensors)})}
    write_atomically(target, safetensors.torch.save(tensors, header))


def read(source: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON content and the tensors, both verified."""
    writer = {"model": "save", "density": "save_density"}[kind]
    expected = f"a complete safetensors file written by vaebook.training.{writer}"
    if not source.is_file():
        raise FileNotFoundError(f"path: expected {expected}, got {source}, which is no file")
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            content = dict(json.loads((file.metadata() or {}).get("vaebook", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        stored, found = content.pop("sha256", None), digest(content, tensors)
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{source}: expected {expected}, got a truncated or foreign one ({error})") from None
    if content.get("format") != _FORMAT or kind not in content:
        held = ", ".join(sorted(content.keys() & {"model", "density"})) or "nothing of ours"
        got = f"format {content.get('format')}" if content.get("format") != _FORMAT else held
        raise ValueError(f"{source}: expected {expected} in format {_FORMAT}, got {got}")
    if found != stored:
        raise ValueError(f"{source}: corrupted, expected content with SHA-256 {stored}, got {found}")
    return content, tensors


def read_arrays(path: Any) -> dict[str, Any]:
    """Read the arrays of an npz, which must hold no pickled objects, or the tensors of a safetensors file."""
    source, wanted = check_path(path), "an npz or safetensors file of arrays"
    if not source.is_file():
        raise ValueError(f"{source}: expected {wanted}, got no file of that name")
    try:
        if not zipfile.is_zipfile(source):
            return safetensors.torch.load_file(source)
        with zipfile.ZipFile(source) as archive:
            size, memory = sum(part.file_size for part in archive.infolist()), _memory()
        if 4 * size > memory:
            raise ValueError(f"arrays of {size / 1e9:.1f} GB where there are {memory / 1e9:.1f} GB of memory")
        with np.load(source, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # whatever a file may hold that is none of ours
        told = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{source}: expected {wanted}, got one that cannot be read: {told}") from None


def _memory() -> float:
    """Bytes of memory of this machine, where it tells."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, kind and bytes (safetensors itself has no checksum)."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"\n{name} {_kind(tensors[name])}\n".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_atomically(target: Path, content: bytes) -> None:
    """Put a file in place when it is complete; until then one that was there stays as it was.

    Behind a link its target is replaced, and a file that was there keeps its permissions.
    """
    target = Path(os.path.realpath(target))
    # A scratch folder beside the target: same file system, cleaned up whatever happens, usual permissions.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
