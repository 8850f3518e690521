"""The gates on every chapter; `make test CHAPTER=mixture/index` runs those of one."""

import gates
import pytest
from fingerprint import ROOT, chapters, read_md, why_stale

CHAPTERS = {md.relative_to(ROOT / "book").with_suffix("").as_posix(): md for md in chapters()}
PAGES = [*sorted((ROOT / "book").rglob("*.md")), ROOT / "README.md"]


@pytest.fixture(params=CHAPTERS.values(), ids=CHAPTERS)
def md(request):
    return request.param


def test_md_and_ipynb_hold_the_same_cells(md):
    assert gates.pairing(md) == []


def test_outputs_are_those_of_the_present_code(md):
    assert why_stale(md) is None, "`make execute` renews them"


def test_outputs_are_stored_whole_and_in_order(md):
    assert gates.stored_outputs(md.with_suffix(".ipynb")) == []


def test_chapter_is_thin(md):
    assert gates.code_size([cell.source for cell in read_md(md).cells if cell.cell_type == "code"]) == []


def test_no_output_is_unrounded(md):
    assert gates.unrounded(md.with_suffix(".ipynb")) == []


def test_notebook_needs_no_python_version_and_no_timing(md):
    text = md.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert '"iopub.execute_input"' not in text
    assert '"version": "3.' not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_numbers_in_prose_agree_with_their_source(page):
    if page.exists():
        assert gates.prose_numbers(page.read_text(encoding="utf-8"), ROOT / "book" / "results") == []
