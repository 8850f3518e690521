"""Numbers rounded once, in one way: four significant digits wherever the book prints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch

DIGITS = 4
"""Significant digits that the book prints; the checks on stored outputs use the same rounding."""
NUMBER = re.compile(r"[-−+±<≤\[( ]*(\d|(inf|nan)\b)")
"""How the text of a number, or of an interval, begins."""


def number(value: object) -> str:
    """Format one value: floats to four significant digits, everything else as it is.

    Args:
        value: a float, an int, a tensor with one element, a string, …

    Returns:
        The text. Very large and very small floats come as powers of ten.

    Raises:
        ValueError: a tensor with more than one element.

    Example:
        >>> number(3.14159265), number(1234567.0), number(2e-10), number(1797), number("digits")
        ('3.142', '1.235e6', '2.000e-10', '1797', 'digits')

    Source: none; a convention of this book.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"value: expected one element, got shape {tuple(value.shape)}")
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, Integral):
        return str(value)
    value = float(value)
    if value in (0.0, float("inf"), -float("inf")) or value != value:
        return f"{value + 0.0:g}"
    text = f"{value:.{DIGITS - 1}e}"
    mantissa, power = text.split("e")[0], int(text.split("e")[1])
    return f"{float(text):.{max(0, DIGITS - 1 - power)}f}" if -4 < power < 5 else f"{mantissa}e{power}"


class Table(NamedTuple):
    """A table that notebooks show as Markdown and terminals as text; made by `table`."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_markdown_(self) -> str:
        lines = [self.header, ["---" if left else "--:" for left in self._left()], *self.rows]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in escaped)

    def __str__(self) -> str:
        """Align the columns with spaces."""
        columns = []
        for left, column in zip(self._left(), zip(self.header, *self.rows, strict=True), strict=True):
            width = max(map(len, column))
            columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in column])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))

    __repr__ = __str__

    def _left(self) -> list[bool]:
        """Tell which columns stand on the left: the first, and those in which no cell begins with a number."""
        columns = zip(self.header, *self.rows, strict=True)
        return [i == 0 or not any(map(NUMBER.match, column[1:])) for i, column in enumerate(columns)]


def table(columns: Mapping[str, Sequence[object]]) -> Table:
    """Make a table from named columns.

    Args:
        columns: header → entries; every column has the same length.

    Returns:
        The table, every number through `number`.

    Raises:
        TypeError: columns is not a mapping.
        ValueError: no columns, or columns of different lengths.

    Example:
        >>> print(table({"D": [2, 8], "log-likelihood": [-0.361234, 13.8312]}))
        D  log-likelihood
        2         -0.3612
        8           13.83

    Source: none; a convention of this book.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns: expected a mapping of names to sequences, got {type(columns).__name__}")
    lengths = {name: len(entries) for name, entries in columns.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"columns: expected at least one, all of one length, got lengths {lengths}")
    rows = zip(*columns.values(), strict=True)
    return Table(tuple(columns), tuple(tuple(number(entry) for entry in row) for row in rows))
