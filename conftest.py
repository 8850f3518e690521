"""How nbval compares a chapter's outputs with the stored ones; at the root, or it is not loaded for book/.

Plain nbval compares text exactly, so that the last digit of a float fails on another machine; it never compares images;
and it passes cells that were never run. Here numbers may differ by one part in a thousand, images in a few pixels, and
cells that were not run, or not in order, or that ended in an error, fail.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbval.plugin

sys.path.insert(0, str(Path(__file__).parent / "book" / "experiments"))
sys.path.insert(0, str(Path(__file__).parent / "book" / "_tools"))

from compare import Output


def _sanitize(cell: nbval.plugin.IPyNbCell, text: object) -> object:
    if not isinstance(text, str):
        return text
    chapter = Path(cell.path).with_suffix("")
    return Output(text, f"{chapter.parent.name}-{chapter.name}-cell{cell.cell_num + 1}")


def _runtest(cell: nbval.plugin.IPyNbCell) -> None:
    count, stored = cell.cell.execution_count, cell.cell.outputs
    if count != cell.cell_num + 1:
        ran = "was never run" if count is None else f"was run as number {count}"
        cell.raise_cell_error(f"Code cell {cell.cell_num + 1} {ran}; run all cells in order (make execute)")
    if any(output.output_type == "error" for output in stored) and not cell.options["check_exception"]:
        cell.raise_cell_error("The stored output is an error")
    _nbval_runtest(cell)


def _collect(notebook: nbval.plugin.IPyNbFile) -> object:
    # Pictures are compared, by Output. What goes to stderr is not: it depends on the machine (process ids, the
    # processor's features); no chapter may store any, see tests/book/test_chapters.py.
    skipped = [key for key in notebook.skip_compare if key not in ("image/png", "image/jpeg")]
    notebook.skip_compare = (*skipped, "stderr")
    return _nbval_collect(notebook)


_nbval_runtest = nbval.plugin.IPyNbCell.runtest
_nbval_collect = nbval.plugin.IPyNbFile.collect
nbval.plugin.IPyNbCell.sanitize = _sanitize
nbval.plugin.IPyNbCell.runtest = _runtest
nbval.plugin.IPyNbFile.collect = _collect
