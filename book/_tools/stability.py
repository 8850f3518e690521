"""Run every chapter with numbers changed in their last digits, and measure how far what it shows moves.

`make stability` writes the movements to book/results/stability.json; a slow test runs the same and compares.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from compare import FLOAT, PIXEL_BUDGET, PIXEL_STEP, PNG, RTOL, Output
from execute import run
from fingerprint import ROOT, chapters, read_ipynb
from nbformat.v4 import new_code_cell
from PIL import Image

RUNS = [(0, 1), (1, 2), (2, 1)]
"""Seed of the change and number of threads, of each run."""
WORKERS = 2


def measure(md: Path, seed: int, threads: int) -> dict:
    """Run one chapter changed, and return its largest movements and what differs beyond the gate."""
    stored = read_ipynb(md.with_suffix(".ipynb"))
    name = md.relative_to(ROOT / "book").with_suffix("").as_posix()
    pairs = [pair for cells in zip(_code(stored), _changed(stored, md, seed, threads), strict=True)
             for pair in _outputs(name, *cells)]
    moved = [movement for _, old, new in pairs for movement in movements(old, new)]
    shares = [share for _, old, new in pairs for share in pixels(old, new)]
    return {
        "chapter": name,
        "seed": seed,
        "threads": threads,
        "numbers": len(moved),
        "moved": sum(movement > 0 for movement in moved),
        "largest": max(moved, default=0.0),
        "pictures": len(shares),
        "pixels": max(shares, default=0.0),
        "differ": sorted({place for place, old, new in pairs if Output(old, place) != new}),
    }


def movements(old: str, new: str) -> list[float]:
    """Relative differences of the floats in two texts; none for pictures, or where the texts do not match."""
    numbers = [FLOAT.findall(text) for text in (old, new) if not text.startswith(PNG)]
    if len(numbers) < 2 or len(numbers[0]) != len(numbers[1]):
        return []
    values = np.array([[float(number.replace("−", "-")) for number in side] for side in numbers])
    return (np.abs(values[0] - values[1]) / np.maximum(np.abs(values).max(0), 1e-300)).tolist()


def pixels(old: str, new: str) -> list[float]:
    """Share of the pixels that differ between two pictures, in a list; an empty one for text."""
    if not (old.startswith(PNG) and new.startswith(PNG)):
        return []
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int) for png in (old, new)]
    if images[0].shape != images[1].shape:
        return [1.0]
    return [float((np.abs(images[0] - images[1]) > PIXEL_STEP).any(axis=2).mean())]


def measure_all(runs: list[tuple[int, int]] = RUNS) -> list[dict]:
    """Measure every chapter in every run, some at the same time."""
    os.environ["OMP_NUM_THREADS"] = str(max(threads for _, threads in runs))
    jobs = [(md, *run) for md in chapters() for run in runs]
    with ThreadPoolExecutor(WORKERS) as pool:  # the work is done in the chapters' kernels
        return list(pool.map(lambda job: measure(*job), jobs))


def _changed(stored, md: Path, seed: int, threads: int) -> list:
    """Code cells of the chapter after a run in a kernel that was changed first."""
    notebook = stored.copy()
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    start += f"import perturb; perturb.start({seed}, {threads})"
    notebook.cells = [new_code_cell(start), *(_cleared(cell) for cell in stored.cells)]
    run(notebook, md.parent)
    return _code(notebook)[1:]
