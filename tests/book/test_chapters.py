"""The gates on every chapter; `make test CHAPTER=mixture/index` runs those of one."""

import ast
import inspect
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import evidence
import gates
import prose
import pytest
from fingerprint import ROOT, chapters, read_ipynb, read_md, why_stale

from vaebook.claims import ledger

CHAPTERS = {md.relative_to(ROOT / "book").with_suffix("").as_posix(): md for md in chapters()}
PAGES = [*sorted((ROOT / "book").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
CHECKS = {claim.id: (Path(inspect.getfile(claim.check)).name, claim.check.__name__) for claim in ledger()}


@pytest.fixture(params=CHAPTERS.values(), ids=CHAPTERS)
def md(request):
    return request.param


@cache
def notebook(md):
    return read_ipynb(md.with_suffix(".ipynb"))


def known(md):
    """Outputs and code of a chapter, without comments; of another page, the code and the addresses in it."""
    if md not in CHAPTERS.values():
        text = md.read_text(encoding="utf-8")
        return "\n".join([block[3] for block in prose.FENCED.finditer(text)] + re.findall(r"\]\([^)]*\)", text))
    code = [cell for cell in notebook(md).cells if cell.cell_type == "code"]
    return "\n".join(f"{gates.shown_text(cell)}\n{ast.unparse(ast.parse(cell.source))}" for cell in code)


@cache
def elsewhere():
    """Everything that any chapter computes or shows, and the code of the package and the experiments."""
    files = [*(ROOT / "vaebook").rglob("*.py"), *(ROOT / "book" / "experiments").glob("*.py")]
    return "\n".join([*map(known, CHAPTERS.values()), *(ast.unparse(ast.parse(f.read_text("utf-8"))) for f in files)])


def test_no_setting_keeps_a_chapter_or_a_test_from_being_run(pytestconfig):
    assert pytestconfig.getini("not_compared") == [], "every cell of this book is compared"
    files = [*(ROOT / "book").rglob("*.ipynb"), *(ROOT / "tests").rglob("test_*.py")]
    folders = {part for file in files for part in file.relative_to(ROOT).parts[:-1]} - {".ipynb_checkpoints"}
    assert [f for f in folders for form in pytestconfig.getini("norecursedirs") if fnmatch(f, form)] == []
    assert pytestconfig.getini("addopts") == ["-ra", "--strict-markers"]
    settings = [ROOT / "conftest.py", ROOT / "tests" / "conftest.py", ROOT / "Makefile"]
    for word in ("collect_ignore", "nbval-lax", "nbval-sanitize", "--ignore", "--deselect"):
        assert [file.name for file in settings if word in file.read_text(encoding="utf-8")] == []


def test_md_and_ipynb_hold_the_same_cells(md):
    assert gates.pairing(md) == []


def test_outputs_are_those_of_the_present_code(md):
    assert why_stale(md) is None, "`make execute` renews them"


def test_outputs_are_stored_whole_and_in_order(md):
    assert gates.stored_outputs(md.with_suffix(".ipynb")) == []


def test_no_cell_hides_from_the_comparison(md, pytestconfig):
    lines = (line.split(maxsplit=1) for line in pytestconfig.getini("not_compared"))
    reasons = {place: reason for place, reason in lines}
    name = md.with_suffix(".ipynb").relative_to(ROOT).as_posix()
    allowed = [int(place.rpartition(":")[2]) for place in reasons if place.rpartition(":")[0] == name]
    assert gates.hidden(notebook(md), allowed) == []


def test_what_is_computed_is_shown(md):
    assert gates.silent(notebook(md)) == []


def test_no_result_is_typed_into_the_code(md):
    assert gates.typed(notebook(md)) == []


def test_exercises_have_solutions(md):
    assert gates.exercises(md.read_text(encoding="utf-8")) == []


def test_pictures_are_described(md):
    assert gates.alt_texts(notebook(md)) == []


def test_no_two_pictures_of_the_book_have_the_same_description():
    cells = [cell for md in CHAPTERS.values() for cell in notebook(md).cells if cell.cell_type == "code"]
    said = [cell.metadata.get("mystnb", {}).get("image", {}).get("alt") for cell in cells]
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    said += [alt for text in pages for alt in re.findall(r"^:alt: *(.+)", text, re.MULTILINE)]
    assert {alt for alt in said if alt and said.count(alt) > 1} == set()


def test_chapter_is_thin(md):
    assert gates.code_size([cell.source for cell in read_md(md).cells if cell.cell_type == "code"]) == []


def test_no_output_is_unrounded(md):
    assert gates.unrounded(md.with_suffix(".ipynb")) == []


def test_statements_have_a_proof_and_evidence(md):
    assert evidence.unproved(notebook(md)) == []


def test_code_that_is_shown_is_the_code_that_is_named(md):
    assert prose.included(md, CHECKS) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_numbers_in_prose_have_a_source_or_are_in_an_output(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # of what was true once
        return
    text += f"\n\n{prose.captions(notebook(page))}" if page in CHAPTERS.values() else ""
    assert prose.unsourced(text, known(page), elsewhere()) == []


def test_notebook_needs_no_python_version_and_no_timing(md):
    text = md.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert '"iopub.execute_input"' not in text
    assert '"version": "3.' not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_numbers_in_prose_agree_with_their_source(page):
    if page.exists():
        assert prose.unseen(page.read_text(encoding="utf-8")) == []
        if page.parent != ROOT:
            assert prose.foreign(page.read_text(encoding="utf-8")) == []
        assert prose.sources(page.read_text(encoding="utf-8"), ROOT / "book" / "results") == []
