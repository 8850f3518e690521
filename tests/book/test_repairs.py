"""Repairs to the HTML of a page: what is mended, and what is left as it is."""

import importlib.util

import pytest
from fingerprint import ROOT

spec = importlib.util.spec_from_file_location("repairs", ROOT / "book" / "_ext" / "repairs.py")
repairs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repairs)

FORMULA = '<span class="math notranslate nohighlight">\\(K\\)</span>'
SET = f'<span class="math notranslate nohighlight" style="--room: {repairs.room("K"):.1f}em">\\(K\\)</span>'


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ","), ("", ")."), ("(", ""), ("(", ")"), ("“", "”"), ("(“", ";"), ("", "!?")],
)
def test_no_line_break_parts_a_formula_from_the_signs_around_it(before, after):
    found = f"covariances {before}{FORMULA}{after} by"
    for pattern, new in repairs.MENDED:
        found = pattern.sub(new, found)
    assert found == f'covariances <span class="unbroken">{before}{SET}{after}</span> by'


@pytest.mark.parametrize("text", [f"of {FORMULA} by", f"( {FORMULA} )", f"<em>{FORMULA}</em>."])
def test_a_formula_between_words_or_spaces_stays_as_it_is(text):
    found = text
    for pattern, new in repairs.MENDED:
        found = pattern.sub(new, found)
    assert found == text.replace(FORMULA, SET)
