"""Rounding, and the two forms of a table."""

import math

import pytest
import torch

from vaebook.tables import number, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.36449, "-0.3645"),
        (99999.0, "1.000e5"),
        (12345.6, "12350"),
        (-10004.9, "-10000"),
        (-math.inf, "-inf"),
        (9999.6, "10000"),
        (0.00099996, "0.001000"),
        (1.0, "1.000"),
        (123.449, "123.4"),
        (1e-4, "1.000e-4"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (60_000, "60000"),
        (True, "True"),
        ("pPCA", "pPCA"),
        (torch.tensor(2.5), "2.500"),
        (torch.tensor([7]), "7"),
    ],
)
def test_four_significant_digits(value, text):
    assert number(value) == text


def test_table_as_markdown_and_as_text():
    made = table({"model": ["VAE", "pPCA"], "nats": [1.23456, 12.3456]})
    assert made._repr_markdown_() == "| model | nats |\n| --- | --: |\n| VAE | 1.235 |\n| pPCA | 12.35 |"
    assert str(made) == repr(made) == "model   nats\nVAE    1.235\npPCA   12.35"


@pytest.mark.parametrize(
    ("entries", "right"),
    [
        ([1.5, 2e-9], True),
        ([-3, "exact"], True),
        (["none", "0.15 to 1.50"], True),
        (["-0.42 to 7.69"], True),
        (["< 1"], True),
        (["+0.20", "+0.01"], True),
        (["± 3"], True),
        (["[3, 4, 4]"], True),
        ([math.nan, -math.inf], True),
        (["VAE (IWAE, k = 1)", "flow"], False),
        (["information", "nanny"], False),
        (["gain -1"], False),
        ([True, False], False),
        (["", "✓"], False),
        ([], False),
    ],
)
def test_numbers_stand_on_the_right_and_words_on_the_left(entries, right):
    made = table({"": ["a"] * len(entries), "a header wider than each": entries})
    assert made._repr_markdown_().splitlines()[1] == f"| --- | {'--:' if right else '---'} |"
    header, *lines = str(made).splitlines()
    cells = map(number, entries)
    assert lines == [f"a  {cell.rjust(len(header) - 3) if right else cell}".rstrip() for cell in cells]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ([1, 2], TypeError, "columns: expected a mapping of names to sequences, got list$"),
        ({}, ValueError, "columns: expected at least one"),
        ({"a": [1], "b": [1, 2]}, ValueError, r"columns: .* got lengths \{'a': 1, 'b': 2\}"),
    ],
)
def test_bad_tables(columns, error, message):
    with pytest.raises(error, match=message):
        table(columns)


@pytest.mark.parametrize("size", [0, 2])
def test_a_number_is_one_number(size):
    with pytest.raises(ValueError, match=rf"value: expected one element, got shape \({size},\)"):
        number(torch.zeros(size))


def test_no_line_of_a_table_ends_in_spaces():
    assert str(table({"name": ["a", "longer"]})) == "name\na\nlonger"
    assert str(table({"name": ["a"], "": [""]})) == "name\na"


def test_a_bar_in_a_cell_does_not_end_it():
    assert table({"": ["KL(q || p)"], "nats": [1.0]})._repr_markdown_().splitlines()[-1] == r"| KL(q \|\| p) | 1.000 |"
