"""How nbval compares a notebook's outputs with the stored ones; at the root, or it is not loaded for the notebooks.

Plain nbval compares text exactly, so that the last digit of a float fails on another machine; it never compares images;
it passes cells that were never run; and a comment or a tag in a cell makes it compare nothing. Here numbers may differ
by one part in a thousand, images by what no eye can see, and cells that were not run, or not in order, that ended in an
error, or that ask not to be compared, fail. Exceptions are listed in pytest's setting `not_compared`, with a reason.

Nothing here knows of this book: with compare.py it can be taken into another one (see CONTRIBUTING.md).
"""

from __future__ import annotations

from pathlib import Path

import compare
import pytest

try:
    import nbval.plugin
except ModuleNotFoundError:  # everything else can be tested without it
    nbval = None

MARKERS = {"skip": True, "check": False, "check_exception": True}
"""Options of nbval's, as markers in a cell set them, with the value that keeps an output from being compared."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the one setting."""
    parser.addini("not_compared", "cells that may hide from nbval: 'folder/name.ipynb:3 reason'", "linelist", [])


def pytest_configure(config: pytest.Config) -> None:
    """Put the pictures that differ below the project's root."""
    compare.DIFFS = config.rootpath / compare.DIFFS


def _sanitize(cell: nbval.plugin.IPyNbCell, text: object) -> object:
    if not isinstance(text, str):
        return text
    name = "-".join(Path(_place(cell)).with_suffix("").parts[-2:])
    return compare.Output(text, f"{name}-cell{cell.cell_num + 1}")


def _runtest(cell: nbval.plugin.IPyNbCell) -> None:
    count, stored, number = cell.cell.execution_count, cell.cell.outputs, cell.cell_num + 1
    allowed = dict(line.split(maxsplit=1) for line in cell.config.getini("not_compared"))
    marked = [name for name, hides in MARKERS.items() if bool(cell.options[name]) is hides]
    if marked and f"{_place(cell)}:{number}" not in allowed:
        cell.raise_cell_error(f"Code cell {number} asks not to be compared; not_compared lists the cells that may")
    if count != number:
        ran = "was never run" if count is None else f"was run as number {count}"
        cell.raise_cell_error(f"Code cell {number} {ran}; run all cells in order")
    if any(output.output_type == "error" for output in stored) and not cell.options["check_exception"]:
        cell.raise_cell_error("The stored output is an error")
    _nbval_runtest(cell)


def _start_kernel(*args: object, **kwargs: object) -> object:
    try:
        return _nbval_kernel(*args, **kwargs)
    except RuntimeError:  # it died before it answered: of kernels that start at once, two may have drawn the same port
        return _nbval_kernel(*args, **kwargs)


def _collect(notebook: nbval.plugin.IPyNbFile) -> object:
    # Pictures are compared, by Output; drawings are not, their PNG stands beside them. Nor is what goes to stderr: it
    # depends on the machine (process ids, the processor's features).
    skipped = [key for key in notebook.skip_compare if key not in ("image/png", "image/jpeg")]
    notebook.skip_compare = (*skipped, "image/svg+xml", "stderr")
    return _nbval_collect(notebook)


def _place(cell: nbval.plugin.IPyNbCell) -> str:
    return cell.path.relative_to(cell.config.rootpath).as_posix()


if nbval is not None:
    _nbval_runtest = nbval.plugin.IPyNbCell.runtest
    _nbval_collect = nbval.plugin.IPyNbFile.collect
    _nbval_kernel = nbval.plugin.RunningKernel
    nbval.plugin.RunningKernel = _start_kernel
    nbval.plugin.IPyNbCell.sanitize = _sanitize
    nbval.plugin.IPyNbCell.runtest = _runtest
    nbval.plugin.IPyNbFile.collect = _collect
