r"""One file of tensors with a description, verified: safetensors and JSON, no pickle.

The header holds, as JSON, what the tensors are, and a SHA-256 of all of it: there is no second file that could disagree
with the first, and no byte can change unnoticed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vaebook._checks import check_type, explained, room

try:
    import fcntl
except ImportError:  # Windows, where what a killed writer leaves stays
    fcntl = None

MOST_HEADER = 2**20
"""The most bytes of a file's header (description, names, shapes): reading it takes many times that memory."""
_FORMAT = 1
_PART = ".vaebook-"  # begins the name of a file that is not complete


def check_path(path: Any) -> Path:
    """Check for a path."""
    if "\0" in str(found := Path(check_type("path", path, str | os.PathLike))):
        raise ValueError(f"path: expected a name without null characters, got {str(found)!r}")
    return found


def check_fits(wanted: dict[str, Tensor], got: dict[str, Tensor], prefix: str = "") -> None:
    """Compare names, shapes and dtypes before anything is copied."""
    for name in sorted(wanted.keys() | got.keys()):
        one, other = (_kind(group[name]) if name in group else "none" for group in (wanted, got))
        if one != other:
            raise ValueError(f"{prefix}{name}: expected {one}, got {other}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def same_json(one: Any, other: Any) -> bool:
    """Tell whether JSON would write both in the same way: True is not 1, and 10.0 is not 10."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def write(target: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a description that JSON can hold, and tensors; the same ones make the same file."""
    if not target.parent.is_dir():
        raise ValueError(f"path: expected a file in a folder that exists, got {target}")
    content = {"format": _FORMAT} | content
    # clone: safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    # One entry: safetensors writes several in random order, and the same model should give the same file.
    packed = safetensors.torch.save(tensors, {"vaebook": json.dumps(content | {"sha256": digest(content, tensors)})})
    if (size := int.from_bytes(packed[:8], "little")) > MOST_HEADER:
        raise ValueError(f"config: expected a header of at most {MOST_HEADER:,} bytes, got {size:,}")
    write_atomically(target, packed)


def read(source: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON content and the tensors, both verified."""
    writer = {"model": "save", "density": "save_density"}[kind]
    expected = f"a complete safetensors file written by vaebook.training.{writer}"
    if not source.is_file():
        raise FileNotFoundError(f"path: expected {expected}, got {source}, which is no file")
    with explained(source, expected, within=True):
        with _opened(source) as file:
            content = dict(parse_json((file.metadata() or {}).get("vaebook", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        stored, found = str(content.pop("sha256", None)), digest(content, tensors)
        if not same_json(content.get("format"), _FORMAT):
            raise ValueError(f"format {content.get('format')!r} where {_FORMAT} is read")
        if kind not in content:
            raise ValueError(f"one that holds {', '.join(sorted(content.keys() - {'format'}))} and no {kind}")
        if found != stored:
            raise ValueError(f"content: expected SHA-256 {stored[:64]}, got {found}; the file is corrupted")
    return content, tensors


@contextmanager
def _opened(source: Path, wanted: Collection[str] | None = None) -> Iterator[Any]:
    """Open a safetensors file whose header is short and names nothing twice, and of which what is wanted fits."""
    with source.open("rb") as start:
        header = parse_json(start.read(_short(int.from_bytes(start.read(8), "little"))))
    header.pop("__metadata__", None)
    places = [held["data_offsets"] for name, held in header.items() if wanted is None or name in wanted]
    _check_room(source, sum(end - begin for begin, end in places))
    with safetensors.safe_open(source, framework="pt") as file:
        yield file


class _Listed(io.FileIO):
    """A zip file of which no more than a short list of contents is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_short(size))


def _short(size: int) -> int:
    if size > MOST_HEADER:
        raise ValueError(f"a header of {size:,} bytes where at most {MOST_HEADER:,} are read")
    return size


def _check_room(source: Path, size: int) -> None:
    """Check that arrays of so many bytes fit into memory, and that a small file does not unpack to large ones."""
    packed, most = source.stat().st_size, 8 * room()
    if size > min(most, max(2**25, 100 * packed)):
        have = f"where there are {4 * most / 1e9:.1f} GB of memory"
        raise ValueError(f"arrays of {size / 1e9:.1f} GB, from {packed:,} bytes, {have}")


def parse_json(text: str | bytes) -> Any:
    """Read JSON on which no two readers could disagree: no key occurs twice."""
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def read_arrays(path: Any, wanted: Collection[str]) -> dict[str, Any]:
    """Read arrays of an npz or safetensors file, none of pickled objects; None stands for one that is not wanted."""
    source, expected = check_path(path), "an npz or safetensors file of arrays"
    if not source.is_file():
        raise ValueError(f"{source}: expected {expected}, got no file")
    with explained(source, expected, within=True):
        if not zipfile.is_zipfile(source):
            with _opened(source, wanted) as file:
                return {name: file.get_tensor(name) if name in wanted else None for name in file.keys()}  # noqa: SIM118
        with _Listed(source) as file, np.load(file, allow_pickle=False) as arrays:
            parts = [(part.filename.removesuffix(".npy"), part.file_size) for part in arrays.zip.infolist()]
            _without_repetition(parts)
            _check_room(source, sum(size for name, size in parts if name in wanted))
            return {name: arrays[name] if name in wanted else None for name in arrays.files}


def digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, kind and bytes (safetensors itself has no checksum)."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"\n{name} {_kind(tensors[name])}\n".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def write_atomically(target: Path, content: bytes) -> None:
    """Put a file in place when it is complete and on the disk; until then one that was there stays as it was.

    Behind a link its target is replaced, and a file that was there keeps its permissions. Until it is complete, the
    content lies beside the target, under a name of its own. What a writer that was killed leaves, the next one in the
    same folder removes.
    """
    given, target = target, Path(os.path.realpath(target))
    part = target.with_name(_PART + secrets.token_hex(8))
    try:
        if given.exists() and not given.is_file():  # such as /dev/stdout; of a folder, this is the error
            given.write_bytes(content)
            return
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        _remove_left(target.parent)
        with _open_part(part) as file:
            if target.exists():
                shutil.copymode(target, part)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows moves no file that is open; elsewhere it is moved while it is locked
            os.replace(part, target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(given)) from None  # the name that the caller knows
    finally:
        with suppress(OSError):
            part.unlink()


def _open_part(part: Path) -> BinaryIO:
    """Open a file that nobody else removes: it is locked as long as it is open."""
    while True:
        file = part.open("wb")
        with suppress(OSError, AttributeError):  # a file system or, as Windows, a system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():  # not removed before it was locked
            return file
        file.close()


def _remove_left(folder: Path) -> None:
    """Remove the files of writers that were killed: nobody holds their locks."""
    for left in folder.glob(f"{_PART}*"):
        with suppress(OSError, AttributeError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
