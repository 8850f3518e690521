"""What a check of a claim returns, and the one place in which a verdict is computed.

A check measures; it never judges. It returns a `Measurement`: the two sides of the claim, the two sides of its
tempting falsehood, one relation that both must satisfy, and one allowance (a tolerance or a standard error) for
both. `Evidence` then computes whether the claim holds and whether the falsehood is rejected by a wide margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vaebook.tables import Table, number, table

STANDARD_ERRORS = 4.0
"""A Monte Carlo claim holds within this many standard errors."""
MARGIN_MONTE_CARLO = 6.0
"""A falsehood must be at least this many standard errors away,"""
MARGIN_TOLERANCE = 1e3
"""or at least this many tolerances."""

Kind = Literal["exact", "quadrature", "MC", "bound", "empirical"]
Number = float | Tensor


@dataclass(frozen=True)
class Neighbour:
    """A statement close to the claim and wrong: a slightly smaller constant, a condition dropped, a converse.

    Args:
        lhs, rhs: its two sides, where one entry that is far off suffices to reject it.
        relation: how the sides would stand to each other; that of the claim unless given.
        unit: tolerance or standard error of lhs - rhs; that of the claim unless given.
    """

    lhs: Number
    rhs: Number
    relation: Literal["==", "<=", ">="] | None = None
    unit: Number | None = None


@dataclass(frozen=True)
class Measurement:
    """What a check returns: numbers only, in the unit of the claim.

    Args:
        lhs, rhs: the two sides of the claim, numbers or tensors of one shape.
        falsehood_lhs, falsehood_rhs: the same for the falsehood; the left side is the claim's unless given.
        relation: how the sides must stand to each other: "==", "<=" or ">=".
        tolerance: largest residual that is rounding or quadrature error; or
        stderr: standard error of lhs - rhs, a number or one per entry;
        falsehood_stderr: that of the falsehood's difference, where it is another.
        neighbours: statements close to the claim, by a name that says what is changed, each of which the check must
            reject too.
        sides: what the two sides are, in words, entry by entry; where a tolerance is given the first entry suffices,
            since no other is shown of a claim that holds.
    """

    lhs: Number
    rhs: Number
    falsehood_rhs: Number
    falsehood_lhs: Number | None = None
    relation: Literal["==", "<=", ">="] = "=="
    tolerance: float | None = None
    stderr: Number | None = None
    falsehood_stderr: Number | None = None
    neighbours: Mapping[str, Neighbour] = field(default_factory=dict)
    sides: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        if (self.tolerance is None) == (self.stderr is None):
            raise ValueError("tolerance: expected either a tolerance or a stderr, got both or neither")
        if self.relation not in ("==", "<=", ">="):
            raise ValueError(f"relation: expected '==', '<=' or '>=', got {self.relation!r}")
        units = self.tolerance if self.stderr is None else self.stderr
        for unit in (units, self.falsehood_stderr):
            if unit is not None and not bool(((_tensor(unit) > 0) & _tensor(unit).isfinite()).all()):
                raise ValueError(f"tolerance or stderr: expected positive, finite values, got {unit}")
        falsehood_lhs = self.lhs if self.falsehood_lhs is None else self.falsehood_lhs
        for name, lhs, rhs in (("rhs", self.lhs, self.rhs), ("falsehood_rhs", falsehood_lhs, self.falsehood_rhs)):
            left, right = _tensor(lhs).shape, _tensor(rhs).shape
            if 0 in (left.numel(), right.numel()) or (left != right and 1 not in (left.numel(), right.numel())):
                raise ValueError(f"{name}: expected one number or shape {tuple(left)}, got {tuple(right)}")


@dataclass(frozen=True)
class Claim:
    """One numbered statement of the book; what it says, and under which conditions, stands only in its chapter."""

    id: str
    falsehood: str
    kind: Kind
    source: str
    section: str
    check: Callable[[torch.Generator], Measurement] = field(repr=False)


@dataclass(frozen=True)
class Evidence:
    """A measurement of a claim, and the verdicts that follow from it and from nothing else."""

    claim: Claim
    seed: int
    measurement: Measurement

    @property
    def residual(self) -> float:
        """How far the claim is from its relation, in tolerances or standard errors: the worst entry counts."""
        m = self.measurement
        return _off(m.lhs, m.rhs, m.relation, m.tolerance if m.stderr is None else m.stderr).max().item()

    @property
    def margin(self) -> float:
        """How far the falsehood is from the same relation, in the same unit: every entry must be far off."""
        m = self.measurement
        lhs = m.lhs if m.falsehood_lhs is None else m.falsehood_lhs
        unit = m.tolerance if m.stderr is None else m.stderr
        return (
            _off(lhs, m.falsehood_rhs, m.relation, unit if m.falsehood_stderr is None else m.falsehood_stderr)
            .min()
            .item()
        )

    @property
    def neighbours(self) -> dict[str, float]:
        """How far each neighbour is from its relation, in its unit, at its worst entry: one is enough."""
        m, found = self.measurement, {}
        for name, near in m.neighbours.items():
            unit = near.unit if near.unit is not None else m.tolerance if m.stderr is None else m.stderr
            found[name] = _off(near.lhs, near.rhs, near.relation or m.relation, unit).max().item()
        return found

    @property
    def neighbours_rejected(self) -> bool:
        """Whether every neighbour was rejected, by the margin that is required of the falsehood."""
        return all(margin >= self.required for margin in self.neighbours.values())

    @property
    def allowed(self) -> float:
        """Largest residual with which a claim holds."""
        return 1.0 if self.measurement.stderr is None else STANDARD_ERRORS

    @property
    def required(self) -> float:
        """Smallest margin with which a falsehood is rejected."""
        return MARGIN_TOLERANCE if self.measurement.stderr is None else MARGIN_MONTE_CARLO

    @property
    def holds(self) -> bool:
        """Whether the claim was accepted."""
        return self.residual <= self.allowed  # False for nan

    @property
    def falsehood_rejected(self) -> bool:
        """Whether the falsehood was rejected, by the required margin."""
        return self.margin >= self.required

    @property
    def shown(self) -> tuple[str, str]:
        """Residual and margin as the book prints them, no finer than they deserve.

        Within a tolerance lies rounding, which is another on another processor.
        """
        within = self.measurement.stderr is None and self.residual < 1
        return "< 1" if within else f"{self.residual:.1f}", _coarse(self.margin)

    def _repr_markdown_(self) -> str:
        title = f"**Check of `{self.claim.id}`** ({self.claim.kind}; off by in {self._unit})"
        return f"{title}\n\n{self._table()._repr_markdown_()}"

    def __repr__(self) -> str:
        """Show the two comparisons side by side."""
        return f"{self.claim.id} ({self.claim.kind}; off by in {self._unit})\n{self._table()}"

    def _entry(self, lhs: Number, rhs: Number, index: int) -> tuple[float, float]:
        """Both sides of one comparison; what differs from 0 by less than the tolerance is 0."""
        sides = [side.flatten()[index].item() for side in torch.broadcast_tensors(_tensor(lhs), _tensor(rhs))]
        tolerance = self.measurement.tolerance or 0.0
        left, right = (0.0 if abs(side) < tolerance else side for side in sides)
        return left, right

    @property
    def _unit(self) -> str:
        m = self.measurement
        return "standard errors" if m.stderr is not None else f"tolerances of {m.tolerance:.0e}".replace("e-0", "e-")

    def _table(self) -> Table:
        m = self.measurement
        lhs = m.lhs if m.falsehood_lhs is None else m.falsehood_lhs
        unit = m.tolerance if m.stderr is None else m.stderr
        falsehood_unit = unit if m.falsehood_stderr is None else m.falsehood_stderr
        off = _off(m.lhs, m.rhs, m.relation, unit).flatten()
        margins = _off(lhs, m.falsehood_rhs, m.relation, falsehood_unit).flatten()
        # Shown is the entry nearest to changing the verdict; of a claim that is at ease everywhere, the first.
        # Of entries that differ by rounding only, the first. An entry that is not a number is the worst.
        off = torch.where(off < (0.05 if m.tolerance is None else 1.0), 0.0, off).nan_to_num(math.inf, math.inf)
        margins = margins.nan_to_num(0.0, math.inf)
        worst = int((off >= (1 - 1e-6) * off.max()).nonzero()[0])
        best = int((margins <= (1 + 1e-6) * margins.min()).nonzero()[0])
        shown = [self._entry(m.lhs, m.rhs, worst), self._entry(lhs, m.falsehood_rhs, best)]
        sign = {"==": "=", "<=": "≤", ">=": "≥"}[m.relation]
        named = m.sides[worst : worst + 1]
        rows = {
            "": ["claim" + "".join(f": {left} {sign} {right}" for left, right in named), "falsehood"],
            "must hold": [f"{number(left)} {sign} {number(right)}" for left, right in shown],
            "off by": list(self.shown),
            "limit": [f"≤ {self.allowed:g}", f"≥ {self.required:g}"],
            "verdict": [
                "holds" if self.holds else "FAILS",
                "rejected" if self.falsehood_rejected else "NOT REJECTED",
            ],
        }
        near = self.neighbours
        if near:
            rejected = sum(margin >= self.required for margin in near.values())
            last = ("neighbours", "; ".join(near), _coarse(min(near.values())), rows["limit"][1])
            for column, entry in zip(rows.values(), (*last, f"{rejected} of {len(near)} rejected"), strict=True):
                column.append(entry)
        return table(rows)


def _tensor(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


def _violations(lhs: Number, rhs: Number, relation: str) -> Tensor:
    difference = _tensor(lhs) - _tensor(rhs)
    if relation == "==":
        return difference.abs()
    return difference.clamp(min=0) if relation == "<=" else (-difference).clamp(min=0)


def _off(lhs: Number, rhs: Number, relation: str, unit: Number) -> Tensor:
    return _violations(lhs, rhs, relation) / _tensor(unit)


def _coarse(value: float) -> str:
    """Show a margin with the precision that it deserves: powers of ten when it is huge."""
    return f"{value:.1f}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
