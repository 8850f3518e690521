"""Run long experiments in pieces: resume after an interruption, and store results with what they were made on.

`make experiments` runs every script of this folder, `make experiments ONLY=name` one. A script builds one `Experiment`
from its CONFIG, computes its pieces, each of which is kept in the scratch folder `_build/experiments/`, and writes
`book/results/NAME.json` once all of them are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vaebook.storage import parse_json, same_json, write_atomically

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, RESULTS, SCRATCH = ROOT / "book" / "experiments", ROOT / "book" / "results", ROOT / "_build" / "experiments"
PACKAGES = ("torch", "numpy", "scikit-learn", "scipy", "vaebook")
DIGITS = 6
"""Significant digits of the numbers in a results file; pieces keep all of theirs."""


class Experiment:
    """One run of an experiment with one configuration.

    Pieces are found again by the experiment's name, its configuration and their key, and by nothing else: after a
    change of code that changes numbers, delete `folder`.

    Args:
        name: of the script and of the results file.
        config: everything that decides the numbers, such as sizes and seeds; JSON only.
        device: what the pieces are computed on, for the record.

    Raises:
        TypeError: config is not a dict that JSON can hold.
    """

    def __init__(self, name: str, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.name, self.config, self.device = name, _plain("config", config), torch.device(device)
        self.folder = SCRATCH / name / _digest(self.config)[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._used: dict[str, dict[str, Any]] = {}

    def piece(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what compute returns, as JSON gives it back, from the scratch folder if it is there.

        A piece that was changed or cut off is computed anew; one that fails leaves nothing.

        Args:
            key: the piece's name, unique in the experiment.
            compute: called without arguments; returns a dict that JSON can hold, without nan or infinity.

        Returns:
            The dict, with the wall time of its computation as "seconds".

        Raises:
            TypeError: compute returned something else.
        """
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', key)[:80]}-{_digest(key)[:8]}.json"
        made, note = self._stored(path, key), ", stored"
        if made is None:
            start, note = time.perf_counter(), ""
            value = _plain(f"{self.name}, piece {key}", compute())
            seconds = float(f"{time.perf_counter() - start:.4g}")
            made = {"config": self.config, "key": key, "value": value | {"seconds": seconds}, "made": self._made()}
            write_atomically(path, json.dumps(made | {"sha256": _digest(made)}).encode())
        self._used[key] = made
        print(f"{self.name}: {key}: {made['value']['seconds']:.1f} s{note}", flush=True)
        return json.loads(json.dumps(made["value"]))  # the caller's own

    def row(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a piece as a row of the results, without its seconds; see `piece`."""
        return {name: value for name, value in self.piece(key, compute).items() if name != "seconds"}

    def write(self, content: dict[str, Any]) -> Path:
        """Write the results file, all or nothing, with provenance, configuration and content in this order.

        Numbers of the content are rounded to six significant digits.

        Args:
            content: the results; neither "provenance" nor "config" may be among its keys.

        Returns:
            The path, book/results/NAME.json.

        Raises:
            TypeError: content is not a dict that JSON can hold.
            ValueError: it has one of the two keys.
        """
        content = rounded(_plain("content", content))
        if taken := {"provenance", "config"} & content.keys():
            raise ValueError(f"content: expected keys other than provenance and config, got {min(taken)}")
        path = RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = {"provenance": self._provenance(), "config": self.config, **content}
        write_atomically(path, (as_json(made) + "\n").encode())
        print(f"{self.name}: written: {path}", flush=True)
        return path

    def _stored(self, path: Path, key: str) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            made = parse_json(path.read_bytes())
            stored = made.pop("sha256")
            mine = same_json([made["config"], made["key"]], [self.config, key]) and stored == _digest(made)
            mine = mine and made["value"]["seconds"] >= 0 and made["made"].keys() == self._made().keys()
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
            mine = False
        if mine:
            return made
        print(f"{path}: expected a complete piece of {self.name}, got a changed one; computed anew", file=sys.stderr)
        return None

    def _made(self) -> dict[str, Any]:
        made = provenance()
        return {key: made[key] for key in ("commit", "dirty", "machine")} | {"device": _device(self.device)}

    def _provenance(self) -> dict[str, Any]:
        """Say where the pieces come from: with a resumed experiment that may be several places."""
        pieces = self._used.values()
        made = [piece["made"] for piece in pieces] or [self._made()]
        several = {key: ", ".join(sorted({str(m[key]) for m in made})) for key in ("commit", "machine", "device")}
        seconds = sum(piece["value"]["seconds"] for piece in pieces)
        dirty = any(m["dirty"] for m in made)
        return provenance() | several | {"dirty": dirty, "pieces": len(pieces), "seconds": rounded(seconds)}


def read_result(name: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read book/results/NAME.json.

    Args:
        name: of the experiment.
        config: the configuration that it must have been made with; None takes any.

    Returns:
        The content, with "provenance" and "config".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, not one of ours, or of another configuration.
    """
    path, remedy = RESULTS / f"{name}.json", f"run `make experiments ONLY={name}`"
    expected = "a complete results file"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {expected}, got none; {remedy}")
    try:
        result = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected {expected}, got a truncated or changed one ({error}); {remedy}") from None
    parts = ("provenance", "config")
    if not isinstance(result, dict) or any(not isinstance(result.get(part), dict) for part in parts):
        raise ValueError(f"{path}: expected {expected}, got one without provenance or config; {remedy}")
    if config is not None and (other := _difference(_plain("config", config), result["config"])):
        raise ValueError(f"{path}: expected a configuration with {other}; {remedy}")
    return result


def provenance(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Say when, from what code and on what machine numbers are made."""
    status = _git("status", "--porcelain", "--", ".", ":!book/results")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("VAEBOOK_COMMIT") or _git("rev-parse", "HEAD"),  # a copy without history may be told
        "dirty": None if status is None else bool(status),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Keep so many significant digits of every float in nested lists and dicts."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def as_json(value: Any, indent: str = "") -> str:
    """Write one line a row: a change of one number is a change of one line."""
    inner = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {as_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(inner + json.dumps(item) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def names() -> list[str]:
    """Return the names of the experiments, in the order in which they run."""
    return sorted(p.stem for p in SCRIPTS.glob("*.py") if p.stem != "harness" and not p.stem.startswith("_"))


def main(only: str = "") -> None:
    """Run one experiment, or all in the order of their names; the first that fails stops the rest."""
    if only and only not in names():
        raise SystemExit(f"ONLY: expected one of {', '.join(names())}, got {only}")
    for name in [only] if only else names():
        print(f"\n======== {name} ========", flush=True)
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")


def _plain(name: str, value: object) -> dict[str, Any]:
    """Return the dict as JSON gives it back: tuples become lists, keys strings."""
    if not isinstance(value, dict):
        raise TypeError(f"{name}: expected a dict, got {type(value).__name__}")
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name}: expected values that JSON can hold, got an error: {error}") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _difference(wanted: dict[str, Any], got: dict[str, Any]) -> str:
    for key in sorted(wanted.keys() | got.keys()):
        one, other = (group.get(key, "nothing") for group in (wanted, got))
        if not same_json(one, other):
            return f"{key} = {str(one)[:200]}, got {str(other)[:200]}"
    return ""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return None
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(*sys.argv[1:])
