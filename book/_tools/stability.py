"""Run every chapter with numbers changed in their last digits, and measure how far what it shows moves.

`make stability` writes the largest movements to book/results/stability.json; a slow test runs the same again. What has
been measured is kept, as the pieces of an experiment, until the chapter, the package or these tools change.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from compare import FLOAT, PIXEL_BUDGET, PIXEL_STEP, PNG, RTOL, Output
from drawings import SVG
from execute import ChapterError, run
from fingerprint import ROOT, chapters, fingerprint, read_ipynb
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


class Fails(Exception):
    """A chapter fails, for a reason that may be gone the next time: its row is not kept."""


def measure(ipynb: Path, seed: int, threads: int) -> dict:
    """Run one chapter with changed numbers and compare what it shows with what is stored.

    Returns the largest relative movement of a number, the largest share of changed pixels, and the cells that do not
    pass the gate.
    """
    name = _name(ipynb)
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


def measure_all(keep: Callable[[str, Callable[[], dict]], dict] = lambda _, compute: compute()) -> list[dict]:
    """Measure every chapter in every run, two at a time; what `keep` has under a key is not measured again."""
    own = [Path(__file__).with_name(name) for name in ("compare.py", "perturb.py", "stability.py")]
    tools = hashlib.sha256(b"".join(file.read_bytes() for file in own)).hexdigest()[:16]

    # Not in the threads: Python 3.11 now and then fails to parse two sources at a time.
    made = {path: repr(fingerprint(read_ipynb(path))) for path in (md.with_suffix(".ipynb") for md in chapters())}
    marks = {path: hashlib.sha256(of.encode()).hexdigest()[:16] for path, of in made.items()}

    def row(job: tuple[dict, Path]) -> dict:
        run, ipynb = job

        def passing() -> dict:
            found = measure(ipynb, **run)
            if found["fails"]:
                raise Fails(found)
            return found

        try:
            return keep(f"{_name(ipynb)}, {run}, {marks[ipynb]}, {tools}", passing)
        except Fails as error:
            return error.args[0]

    with ThreadPoolExecutor(WORKERS) as pool:  # the work is done in the kernels
        return list(pool.map(row, product(CONFIG["runs"], marks)))


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
    # Threads that wait must not spin, or two kernels on two cores hinder each other.
    run(notebook, folder, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="passive")
    return _code(notebook)[1:]


def _name(ipynb: Path) -> str:
    return ipynb.relative_to(ROOT / "book").with_suffix("").as_posix() if ROOT in ipynb.parents else ipynb.stem


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """Kind and content of all that a cell shows; of a figure, its PNG."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {output.get("name", output.output_type): output.get("text", "")})
        shown += sorted((kind, "".join(text)) for kind, text in data.items() if kind != SVG)
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
    from harness import Experiment

    experiment = Experiment(RESULTS.stem, CONFIG)
    rows = measure_all(experiment.piece)
    failing = [place for row in rows for place in row["fails"]]
    for place in failing:
        print(f"moves beyond the gate: {place}", file=sys.stderr)
    if not failing:
        experiment.write({"chapters": largest(rows)})
    return len(failing) > 0


if __name__ == "__main__":
    sys.exit(main())
