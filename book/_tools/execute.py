"""Run the stale chapters (or all, or one) and store their outputs in the .ipynb beside each .md.

The .md is what people edit, and what is run. A chapter of which only the text changed keeps its outputs. A notebook is
replaced only after all of its cells have run without an error and without a word on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import addresses  # noqa: F401
import jupytext
import nbformat
from drawings import SETTINGS, keep_drawings
from fingerprint import (
    MYST,
    ROOT,
    BrokenNotebookError,
    as_md,
    chapters,
    digest,
    fingerprint,
    inputs,
    read_ipynb,
    read_md,
    source_hash,
    why_stale,
)
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from statements import collect

from vaebook.storage import write_atomically

LANGUAGE = {  # without Python's version, which nbclient would add and which differs from machine to machine
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
TIMEOUT = 600


class ChapterError(Exception):
    """A chapter that cannot be stored, with a message for its author."""


def main() -> int:
    """Run what the command line asks for; the exit status is the number of chapters that failed, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also chapters that are not stale")
    parser.add_argument("--chapter", help="one chapter, such as mixture/index")
    parser.add_argument("--keep", choices=["md", "ipynb"], help="which file wins where the two differ")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two threads on a busy machine are slower, and reproduce less well
    failed = 0
    collect(ROOT)
    for md in _selected(options.chapter):
        name = md.relative_to(ROOT).as_posix()
        start = time.monotonic()
        try:
            done = update(md, force=options.all, keep=options.keep)
        except KeyboardInterrupt:
            print(f"stopped {name}: nothing of it was stored", file=sys.stderr)
            return 130
        except (ChapterError, OSError) as error:  # such as a full disk
            failed += 1
            print(f"FAILED  {name}: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{done:<9} {name} ({time.monotonic() - start:.0f} s)", flush=True)
    return min(failed, 1)


def update(md: Path, *, force: bool = False, keep: str | None = None) -> str:
    """Bring one chapter's notebook up to date and say what was done; the .md is then the newer of the two files."""
    done = _update(md, force, keep)
    md.touch()  # jupytext refuses to open a pair whose .ipynb is newer
    return done


def _update(md: Path, force: bool, keep: str | None) -> str:
    ipynb = md.with_suffix(".ipynb")
    stored = _stored(md, ipynb, keep)
    if stored is not None:
        settle_differences(md, ipynb, keep)
    if not force and why_stale(md) is None:
        return "fresh"
    normalise(md)
    notebook = read_md(md)
    marks = {"fingerprint": fingerprint(notebook), "source": source_hash(notebook)}
    known = {} if stored is None else stored.metadata.get("vaebook", {})
    edited = stored is not None and known.get("digest") != digest(stored)
    if force or edited or known.get("fingerprint") != marks["fingerprint"]:
        run(notebook, md.parent)
        done = "executed"
    else:
        carry_outputs(stored, notebook)
        done = "text only"
    finish(notebook, marks)
    _replace(ipynb, nbformat.writes(notebook) + "\n")
    return done


def normalise(md: Path) -> None:
    """Write the .md as JupyterLab would, so that saving there later changes nothing else."""
    notebook = read_md(md)
    text = as_md(notebook)
    if inputs(jupytext.reads(text, fmt=dict(MYST))) != inputs(notebook):
        raise ChapterError("jupytext cannot write this file back without changing its cells")
    if text != md.read_text(encoding="utf-8"):
        _replace(md, text)


def settle_differences(md: Path, ipynb: Path, keep: str | None) -> None:
    """Make sure that the .md holds the newest cells, or say why that cannot be decided here."""
    notebook, stored = read_md(md), read_ipynb(ipynb)
    if inputs(notebook) == inputs(stored) or keep == "md":
        return
    recorded = stored.metadata.get("vaebook", {}).get("source")
    if keep == "ipynb":
        _replace(md, as_md(stored))
    elif source_hash(stored) != recorded:
        edited = "the .ipynb was" if source_hash(notebook) == recorded else "both files were"
        raise ChapterError(
            f"{edited} edited and the two differ. `make execute CHAPTER={_chapter(md)} KEEP=md` takes the cells of the "
            ".md, KEEP=ipynb those of the .ipynb."
        )


def run(notebook: NotebookNode, folder: Path, **environment: str) -> None:
    """Execute all cells in place, in the chapter's own folder, with additional variables of the environment."""
    try:
        try:
            _execute(notebook, folder, environment)
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            # The kernel died before it answered: of those that start at once, two may have drawn the same port.
            _execute(notebook, folder, environment)
    except (CellExecutionError, TimeoutError, DeadKernelError, AssertionError) as error:  # a dead kernel raises both
        raise ChapterError(f"{_failing_cell(notebook)}\n{error}") from None
    for number, cell in enumerate(_code(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                raise ChapterError(f"code cell {number} wrote to stderr:\n{output.text}")


def _execute(notebook: NotebookNode, folder: Path, environment: dict[str, str]) -> None:
    settings = {"timeout": TIMEOUT, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, resources=resources, extra_arguments=SETTINGS, **settings)
    try:
        # stderr of the kernel's own process; what cells write there is stored.
        client.execute(stderr=subprocess.DEVNULL, env=os.environ | environment)
    except (Exception, asyncio.CancelledError):
        # nbclient takes signals itself, and what it raises after one depends on the moment.
        if getattr(client, "_async_cleanup_kernel_future", None) is None:
            raise
        raise KeyboardInterrupt from None


def carry_outputs(stored: NotebookNode, notebook: NotebookNode) -> None:
    """Copy outputs and counts to the same code cells among new text."""
    for old, new in zip(_code(stored), _code(notebook), strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count


def finish(notebook: NotebookNode, marks: dict[str, str]) -> None:
    """Leave in the notebook only what is the same on every run and every machine."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            keep_drawings(output)
        seen[cell.source] = seen.get(cell.source, 0) + 1
        cell.id = hashlib.sha256(f"{seen[cell.source]}{cell.source}".encode()).hexdigest()[:8]
    notebook.metadata["language_info"] = dict(LANGUAGE)
    notebook.metadata["vaebook"] = marks | {"digest": digest(notebook)}
    notebook.nbformat, notebook.nbformat_minor = 4, 5


def _selected(chapter: str | None) -> list[Path]:
    known = chapters()
    if chapter is None:
        return known
    chosen = [md for md in known if _chapter(md) == chapter]
    if not chosen:
        sys.exit(f"no chapter {chapter!r}; there are: {', '.join(map(_chapter, known)) or 'none'}")
    return chosen


def _stored(md: Path, ipynb: Path, keep: str | None) -> NotebookNode | None:
    """Read the notebook that is there; one that cannot be read counts as none if the .md is to win."""
    try:
        return read_ipynb(ipynb) if ipynb.exists() else None
    except BrokenNotebookError as error:
        if keep == "md":
            return None
        remedy = f"`make execute CHAPTER={_chapter(md)} KEEP=md` makes it anew from the .md."
        raise ChapterError(f"{error}. {remedy}") from None


def _chapter(md: Path) -> str:
    return md.relative_to(ROOT / "book").with_suffix("").as_posix()


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _failing_cell(notebook: NotebookNode) -> str:
    for number, cell in enumerate(_code(notebook), start=1):
        if any(output.output_type == "error" for output in cell.outputs):
            return f"code cell {number} of {len(_code(notebook))} raised an error:"
    return "a cell ran out of time, or the kernel died:"


def _replace(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


if __name__ == "__main__":
    sys.exit(main())
