"""Run every chapter with numbers changed in their last digits, and measure how far what it shows moves.

`make stability` writes the largest movements to book/results/stability.json; a slow test runs the same again.
"""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from compare import FLOAT, PIXEL_BUDGET, PIXEL_STEP, PNG, RTOL, Output
from execute import ChapterError, run
from fingerprint import ROOT, chapters, read_ipynb
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from perturb import SIZE
from PIL import Image

CONFIG = {
    "runs": [{"seed": 0, "threads": 1}, {"seed": 1, "threads": 2}, {"seed": 2, "threads": 1}],
    "change": SIZE,
    "gate": {"numbers": RTOL, "pixels": PIXEL_BUDGET},
}
WORKERS = 2
RESULTS = ROOT / "book" / "results" / "stability.json"


def measure(ipynb: Path, seed: int, threads: int) -> dict:
    """Run one chapter with changed numbers and compare what it shows with what is stored.

    Returns the largest relative movement of a number, the largest share of changed pixels, and the cells that do not
    pass the gate.
    """
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    name = ipynb.relative_to(ROOT / "book").with_suffix("").as_posix() if ROOT in ipynb.parents else ipynb.stem
    row = {"chapter": name, "seed": seed, "threads": threads, "movement": 0.0, "pixels": 0.0, "fails": []}
    stored = read_ipynb(ipynb)
    try:
        new = _run_changed(stored, ipynb.parent, seed, threads)
    except ChapterError as error:
        return row | {"fails": [str(error)]}
    for number, cells in enumerate(zip(_code(stored), new, strict=True), start=1):
        place = f"{name.replace('/', '-')}-cell{number}"
        for old, now in _pairs(*map(_shown, cells)):
            row["movement"] = max([row["movement"], *movements(old, now)])
            row["pixels"] = max(row["pixels"], changed_pixels(old, now))
            if Output(old, place) != now and place not in row["fails"]:
                row["fails"].append(place)
    return row


def measure_all() -> list[dict]:
    """Measure every chapter in every run, two at a time."""
    jobs = [(md.with_suffix(".ipynb"), *run.values()) for run in CONFIG["runs"] for md in chapters()]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        rows = []
        for row in pool.map(measure, *zip(*jobs, strict=True)):
            print(row, flush=True)
            rows.append(row)
    return rows


def movements(old: str, new: str) -> list[float]:
    """Relative differences of the floats in two texts; none for pictures, nor where one text has more of them."""
    if old.startswith(PNG) or new.startswith(PNG):
        return []
    sides = [[float(number.replace("−", "-")) for number in FLOAT.findall(text)] for text in (old, new)]
    if len(sides[0]) != len(sides[1]):
        return []
    return [abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in zip(*sides, strict=True)]


def changed_pixels(old: str, new: str) -> float:
    """Share of the pixels that differ between two pictures; 0 for text."""
    if not (old.startswith(PNG) and new.startswith(PNG)):
        return 0.0
    one, two = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB")).astype(int) for p in (old, new))
    return 1.0 if one.shape != two.shape else float((np.abs(one - two) > PIXEL_STEP).any(axis=2).mean())


def largest(rows: list[dict]) -> list[dict]:
    """Largest movements of each chapter over all runs."""
    names = dict.fromkeys(row["chapter"] for row in rows)
    own = {name: [row for row in rows if row["chapter"] == name] for name in names}
    keys = ("movement", "pixels")
    return [{"chapter": name} | {key: max(row[key] for row in own[name]) for key in keys} for name in names]


def _run_changed(stored: NotebookNode, folder: Path, seed: int, threads: int) -> list[NotebookNode]:
    """Code cells of a notebook after a run in a kernel whose numbers were changed first."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    start += f"import perturb; perturb.start({seed}, {threads})"
    notebook = NotebookNode(stored | {"cells": [new_code_cell(start), *map(NotebookNode, map(dict, stored.cells))]})
    run(notebook, folder)
    return _code(notebook)[1:]


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """Kind and content of all that a cell shows."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {output.get("name", output.output_type): output.get("text", "")})
        shown += sorted((kind, "".join(text)) for kind, text in data.items())
    return shown


def _pairs(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Content that belongs together; the kinds themselves if they are not the same."""
    kinds = [[kind for kind, _ in side] for side in (old, new)]
    if kinds[0] != kinds[1]:
        return [(", ".join(kinds[0]), ", ".join(kinds[1]))]
    return [(a, b) for (_, a), (_, b) in zip(old, new, strict=True)]


def main() -> int:
    """Measure, say what fails, and store the result if nothing does."""
    sys.path.insert(0, str(ROOT / "book" / "experiments"))
    from harness import as_json, provenance, rounded

    made = provenance()
    rows = measure_all()
    failing = [place for row in rows for place in row["fails"]]
    for place in failing:
        print(f"moves beyond the gate: {place}", file=sys.stderr)
    if not failing:
        content = {"provenance": made, "config": CONFIG, "chapters": rounded(largest(rows), 3)}
        RESULTS.write_text(as_json(content) + "\n", encoding="utf-8")
    return len(failing) > 0


if __name__ == "__main__":
    sys.exit(main())
