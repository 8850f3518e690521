"""The gates can fail: eight ways to spoil a real chapter, each of which one of them rejects."""

import shutil
import subprocess
import sys
from pathlib import Path

import gates
import nbformat
import pytest
from build import build
from fingerprint import ROOT, as_md, read_ipynb, read_md

CHAPTER = "mixture/index"
MD = ROOT / "book" / f"{CHAPTER}.md"
pytestmark = pytest.mark.skipif(not MD.with_suffix(".ipynb").exists(), reason=f"{CHAPTER} has not been executed")
CROSS_REFERENCE = "See {prf:ref}`index/no-such-claim`."


@pytest.fixture
def copy(tmp_path):
    """The chapter in a tree of its own, with what nbval and the build read."""
    for name in ("book", "vaebook"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "mathjax", ".*"))
    for name in ("conftest.py", "pyproject.toml", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path / "book" / f"{CHAPTER}.md"


def nbval(md: Path) -> subprocess.CompletedProcess:
    """Run the chapter against its stored outputs, up to the first difference."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    command += ["--color=no", "--rootdir", str(md.parents[2]), str(md.with_suffix(".ipynb"))]
    return subprocess.run(command, cwd=md.parents[2], capture_output=True, text=True, check=False)


def rewrite_ipynb(md: Path, edit) -> None:
    notebook = read_ipynb(md.with_suffix(".ipynb"))
    edit(notebook.cells)
    nbformat.write(notebook, md.with_suffix(".ipynb"))


def rewrite_md(md: Path, edit) -> None:
    notebook = read_md(md)
    edit(notebook.cells)
    md.write_text(as_md(notebook), encoding="utf-8")


def rewrite_both(md: Path, edit) -> None:
    rewrite_md(md, edit)
    rewrite_ipynb(md, edit)


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def displayed(cells):
    """The first code cell with text among its outputs, and that output's data."""
    for cell in code(cells):
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown") or output.get("data", {}).get("text/plain", "")
            if any(digit in text for digit in "123456789") and "<Figure" not in text:
                return cell, output.data
    raise AssertionError("no code cell displays a number")


def change_digit(cells):
    _, data = displayed(cells)
    for mime in ("text/plain", "text/markdown"):
        if mime in data:
            at = next(i for i, character in enumerate(data[mime]) if character in "123456789")
            data[mime] = f"{data[mime][:at]}{int(data[mime][at]) % 9 + 1}{data[mime][at + 1 :]}"


def edit_code(cells):
    cell = code(cells)[1]
    cell.source = f'print("edited")\n{cell.source}'


def raise_error(cells):
    code(cells)[0].source += '\nraise ValueError("spoilt")'


def drop_output(cells):
    displayed(cells)[0].outputs = []


def add_tag(cells):
    code(cells)[1].metadata["tags"] = ["nbval-skip"]


def edit_text(cells):
    cells[0].source += "\n\nOne more sentence."


def break_reference(cells):
    cells[-1].source += f"\n\n{CROSS_REFERENCE}"


def test_unspoilt_copy_passes_every_gate(copy):
    assert gates.pairing(copy) == []
    assert gates.stored_outputs(copy.with_suffix(".ipynb")) == []
    done = nbval(copy)
    assert done.returncode == 0, done.stdout


def test_unspoilt_copy_survives_being_rewritten(copy):
    rewrite_both(copy, lambda cells: None)
    assert gates.pairing(copy) == []


@pytest.mark.parametrize(
    ("rewrite", "edit"),
    [(rewrite_ipynb, add_tag), (rewrite_md, edit_text), (rewrite_ipynb, edit_text)],
    ids=["tag", "md-only edit", "ipynb-only edit"],
)
def test_pairing_rejects(copy, rewrite, edit):
    rewrite(copy, edit)
    assert gates.pairing(copy) != []


@pytest.mark.parametrize(
    ("rewrite", "edit", "words"),
    [
        (rewrite_both, edit_code, "Cell outputs differ"),
        (rewrite_ipynb, change_digit, "Cell outputs differ"),
        (rewrite_ipynb, drop_output, "Cell outputs differ"),
        (rewrite_both, raise_error, "ValueError"),
    ],
    ids=["code edit", "printed digit", "dropped output", "raised error"],
)
def test_nbval_rejects(copy, rewrite, edit, words):
    rewrite(copy, edit)
    assert gates.pairing(copy) == []  # so that it is nbval that rejects it
    done = nbval(copy)
    assert done.returncode == 1
    assert words in done.stdout


def test_build_rejects_a_broken_cross_reference(copy, capfd):
    rewrite_both(copy, break_reference)
    assert build(copy.parents[2], root=copy.parents[2]) != 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert warnings
    assert all("index/no-such-claim" in line for line in warnings)  # it builds but for that
