"""Claims of chapter aggregated/population: what N codes say about the population that they come from."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook.claims.registry import Measurement, Neighbour, claim

CHAPTER = "aggregated/population"
GRID = torch.linspace(-12, 12, 4_801, dtype=torch.float64)
"""Codes over which densities are integrated, by the trapezoid rule; none here is narrower than 0.1."""


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return torch.trapezoid(log_q.exp() * (log_q - log_p), GRID)


def _log_mixture(log_parts: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Log-density on the grid of a mixture of some rows, of equal weights unless given."""
    equal = torch.full((len(log_parts),), -math.log(len(log_parts)), dtype=torch.float64)
    return (log_parts + (equal if log_weight is None else log_weight)[:, None]).logsumexp(0)


@claim(
    "agg/population",
    falsehood="The mismatch of the N data at hand is the population's.",
    kind="quadrature",
    source="this book; leaving one out for densities: Duin (1976); the identity for information is in the proof of "
    "Hoffman & Johnson's (2016) decomposition",
    section=CHAPTER,
)
def population(generator: torch.Generator) -> Measurement:
    """Enumerate all samples of three from a population of four data with codes on a line."""
    loc = torch.tensor([-2.0, -0.5, 0.8, 2.5], dtype=torch.float64)
    loc = loc + 0.3 * torch.rand(4, generator=generator, dtype=torch.float64)
    scale = 0.3 + 0.3 * torch.rand(4, generator=generator, dtype=torch.float64)
    share = (0.5 * torch.randn(4, generator=generator, dtype=torch.float64)).softmax(0)
    parts = Normal(loc[:, None], scale[:, None]).log_prob(GRID)
    log_p, log_all = Normal(0.0, 1.0).log_prob(GRID), _log_mixture(parts, share.log())
    log_c = Normal(0.3, 2.0).log_prob(GRID)  # a density made without any datum
    mean = torch.zeros(7, dtype=torch.float64)
    for sample in product(range(4), repeat=3):
        rows = parts[list(sample)]
        log_q, log_two = _log_mixture(rows), _log_mixture(rows[1:])
        own = rows[0]
        values = [
            _kl(log_q, log_p),
            _kl(log_q, log_all),
            torch.trapezoid(own.exp() * (log_two - log_p), GRID),
            _kl(log_all, log_two),
            torch.stack([_kl(row, log_q) for row in rows]).mean(),
            torch.trapezoid(own.exp() * (own - log_two), GRID),
            _kl(log_two, log_all),
        ]
        mean += share[list(sample)].prod() * torch.stack(values)
    plug_in, excess, left_out, lack, told, told_left_out, reverse = mean
    truth, told_all = _kl(log_all, log_p), share @ torch.stack([_kl(part, log_all) for part in parts])
    scored = torch.trapezoid(log_all.exp() * (log_c - log_p), GRID)
    rate = share @ torch.stack([_kl(part, log_p) for part in parts])
    twice = share @ torch.stack([torch.trapezoid(part.exp() * (part - log_p), GRID) for part in parts])
    return Measurement(
        sides=[("mean plug-in mismatch of N data", "mismatch of the population plus excess")],
        lhs=torch.stack(
            [plug_in, left_out, scored, told, told_left_out, rate]
        ),  # last: the plug-in value of three copies of one datum
        rhs=torch.stack(
            [
                truth + excess,
                truth - lack,
                truth - _kl(log_all, log_c),
                told_all - excess,
                told_all + lack,
                truth + told_all,
            ]
        ),
        falsehood_lhs=plug_in,
        falsehood_rhs=truth,
        tolerance=1e-9,
        neighbours={
            "leaving one out is unbiased": Neighbour(left_out, truth),
            "its lack is the KL the other way round": Neighbour(left_out, truth - reverse),
            "the same with a copy of the datum among the others": Neighbour(twice, truth - lack),
            "R - log N is at most the population's mismatch": Neighbour(rate - math.log(2), truth, "<="),  # N = 2
            "I(n; z) is the population's information": Neighbour(told, told_all),
        },
    )


@claim(
    "agg/collapse",
    falsehood="N distinct codes, spread out well, make the prior exactly.",
    kind="quadrature",
    source="Teicher (1963) and Yakowitz & Spragins (1968) for the identifiability of finite Gaussian mixtures",
    section=CHAPTER,
)
def collapse(generator: torch.Generator) -> Measurement:
    """Integrate KL(mixture | N(0, 1)): 0 for collapsed codes, small and positive for codes on its quantiles."""
    log_p = Normal(0.0, 1.0).log_prob(GRID)
    shift = 0.05 + 0.1 * torch.rand(1, generator=generator, dtype=torch.float64)

    def spread(num: int) -> Tensor:
        """Mismatch of codes at quantiles of N(0, 1 - s²), of scale s = 0.7."""
        quantiles = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)
        parts = Normal(math.sqrt(1 - 0.49) * quantiles[:, None], 0.7).log_prob(GRID)
        return _kl(_log_mixture(parts), log_p)

    same = _log_mixture(Normal(torch.zeros(5, 1, dtype=torch.float64), 1.0).log_prob(GRID))
    few, many = spread(5), spread(80)
    moved = _kl(_log_mixture(torch.stack([log_p, Normal(shift, 1.0).log_prob(GRID)])), log_p)
    unused = torch.stack([log_p, Normal(3.0, 0.5).log_prob(GRID)])
    without = _kl(_log_mixture(unused, torch.tensor([0.0, -torch.inf], dtype=torch.float64)), log_p)
    gap = torch.tensor(1e-8, dtype=torch.float64)
    return Measurement(
        sides=[("mismatch of collapsed codes", "no mismatch")],
        lhs=torch.stack([_kl(same, log_p), without, gap, gap, gap]),
        rhs=torch.stack([gap.new_zeros(()), gap.new_zeros(()), few, many, moved]),
        falsehood_lhs=many,
        falsehood_rhs=0.0,
        relation="<=",
        tolerance=1e-11,
        neighbours={
            "the infimum over spread codes is at least 0.01": Neighbour(0.01, many),
            "more codes do not come nearer": Neighbour(few, many),
            "components of weight 0 count too": Neighbour(1e-6, without),
            "one code alone does not attain it either": Neighbour(1e-6, _kl(_log_mixture(log_p[None]), log_p)),
        },
    )
