"""Claims of chapter continuous/npmle: the best prior for a fixed decoder has finitely many atoms."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.npmle import DiscretePrior, em, fit_npmle, fit_weights, log_gradient

SCALE = 0.2


@claim(
    "gen/npmle",
    falsehood="A fixed point of EM is the best prior.",
    kind="bound",
    source="Lindsay (1983); EM: Laird (1978); for finitely many weights the gain of a step and "
    "the certificate: Cover (1984); the last inequality: this book",
    section="continuous/npmle",
)
def npmle(generator: torch.Generator) -> Measurement:
    """Fit 12 scalar data with duplicates twice, bound D_G between the grid's points, and watch EM from outside."""
    x = torch.linspace(-4, 4, 9, dtype=torch.float64) + 0.3 * torch.rand(9, generator=generator, dtype=torch.float64)
    x = x.repeat_interleave(torch.tensor([1, 2, 1, 1, 3, 1, 1, 1, 1]))

    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(z[:, 0], SCALE).log_prob(x[:, None])

    coarse, other = (torch.linspace(-6, 6, k, dtype=torch.float64)[:, None] for k in (61, 86))
    fits = [fit_npmle(log_likelihood, grid, tolerance=1e-9) for grid in (coarse, other)]
    atoms = max(int((fit.log_weight.exp() > 1e-3).sum()) for fit in fits)  # lighter ones come and go with rounding
    best, certified = fits[0].log_prob, [_bound(x, fit) for fit in fits]
    # p_G is unique: with certificate c, mean(r - 1 - log r) <= e^c - 1 for the ratios r of the best to the found.
    spread = sum(math.sqrt(2 * v) + v for v in (len(x) * math.expm1(c) for c in certified))
    # EM on a grid, step by step: against Bayes' rule; and what it lacks, against its certificate over all z.
    terms, log_weight = log_likelihood(coarse), em(log_likelihood(coarse), 3)[0]
    joint = terms.exp() * log_weight.exp()
    average = (joint / joint.sum(1, keepdim=True)).mean(0)
    stepped, trace = em(terms, 1, log_weight=log_weight)
    moved, stepped = (stepped.exp() * (stepped - log_weight)).sum(), stepped.exp()  # KL(G+ | G)
    em_log_prob = joint.sum(1).log()
    em_bound = _bound(x, DiscretePrior(coarse, log_weight, em_log_prob, 0.0))
    # The tempting one: all mass at the single best place. EM does not move it, for it is its own average posterior.
    one = log_likelihood(x.mean()[None, None])
    changed, allowed = _one_weight_too_large(50)
    return Measurement(
        sides=[("atoms of the best prior", "distinct data")],
        lhs=torch.stack(
            [
                torch.tensor(atoms).double(),
                torch.tensor(max(certified)).double(),
                (fits[0].log_prob - fits[1].log_prob).abs().max(),
                (stepped - average).abs().max(),
                (best - em_log_prob).mean(),
                em(one, 1)[0].abs().max(),
                moved,
                changed,
            ]
        ),
        rhs=torch.tensor(
            [
                len(x.unique()),
                1e-7,
                spread,
                0.0,
                em_bound,
                0.0,
                trace[1] - trace[0],
                allowed,
            ],
            dtype=torch.float64,
        ),
        falsehood_lhs=best.mean(),
        falsehood_rhs=one.mean(),
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "at most one atom fewer than distinct data": Neighbour(atoms, len(x.unique()) - 1),
            "a prior that is not best has certificate 0": Neighbour(em_bound, 0.0),
            "a step gains 1.01 KL(G+ | G)": Neighbour(*_gain_where_data_are_apart(generator)),
            "its lack is at most half of its certificate": Neighbour(*_lack_of_one_atom()),
            "likelihoods within the same of delta = e^c - 1": Neighbour(*_one_weight_too_large(1)),
        },
    )


def _gain_where_data_are_apart(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return 1.01 KL(G+ | G) and the gain of a step for four data with an atom each: there the two are equal."""
    terms = torch.full((4, 4), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    start = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0)
    stepped, trace = em(terms, 1, log_weight=start)
    return 1.01 * (stepped.exp() * (stepped - start)).sum(), trace[1] - trace[0]


def _one_weight_too_large(factor: int) -> tuple[Tensor, Tensor]:
    """Change of a datum's log-likelihood to the best prior, and its bound with delta = factor (e^c - 1).

    There are fifty data with an atom each, of which one has e times its best weight.
    """
    weight = torch.full((50,), (50 - math.e) / 49 / 50, dtype=torch.float64)
    weight[0] = math.e / 50
    terms = torch.full((50, 50), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    delta = factor * torch.expm1(log_gradient(terms, weight.log()).max())
    return (weight.log() + math.log(50)).abs().max(), (2 * delta).sqrt() + delta


def _lack_of_one_atom() -> tuple[Tensor, Tensor]:
    """Return lack and half of the certificate of one place for a datum that another makes nine times as likely."""
    terms = torch.tensor([[0.0, math.log(9.0)]], dtype=torch.float64)
    return terms[0, 1] - terms[0, 0], 0.5 * log_gradient(terms, terms[:, 0]).max()


def _bound(x: Tensor, prior: DiscretePrior) -> float:
    """Bound log D_G over the whole line: on a fine grid, plus what a sum of Gaussians can rise between its points.

    Left of all data D_G rises and right of them it falls, and nowhere is its curvature above sum c_n / SCALE².
    """
    height = Normal(0.0, SCALE).log_prob(torch.zeros_like(x)) - prior.log_prob  # N c_n on a log scale
    line = torch.linspace(float(x.min()), float(x.max()), 200_001, dtype=torch.float64)
    terms = (-0.5 * ((line - x[:, None]) / SCALE).square()).add_(height[:, None]).exp_()
    step, curvature = line[1] - line[0], height.exp().mean() / SCALE**2
    return float((terms.mean(0).max() + curvature * step**2 / 8).log())


@claim(
    "gen/fixed-point",
    falsehood="The same without full support.",
    kind="exact",
    source="this book; it follows from Lindsay (1983)",
    section="continuous/npmle",
)
def fixed_point(generator: torch.Generator) -> Measurement:
    r"""Let z be uniform on [-1, 1] and p(x|z) = g_x (1 + a_x(z)) with averages 0 over z and over the data.

    p_G is then g, which is not the empirical distribution, and D_G is 1 everywhere. What is left of the mass goes to
    outcomes that were not seen. All rivals are weights on a grid of 201 places.
    """
    counts = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    data = torch.arange(4).repeat_interleave(counts.long())
    g = 0.1 + 0.1 * torch.rand(4, generator=generator, dtype=torch.float64)
    tilt = 0.2 + 0.2 * torch.rand(2, generator=generator, dtype=torch.float64)
    tilts = torch.tensor([[1, 1], [-3, 1], [0, -2], [0, 0]], dtype=torch.float64) * tilt  # counts @ tilts is 0 ...
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(40))

    def log_likelihood(z: Tensor) -> Tensor:
        waves = torch.stack([z, torch.cos(math.pi * z)])  # ... and each wave averages to 0 over z
        return (g[:, None] * (1 + 0.5 * tilts @ waves))[data].log()

    line = torch.linspace(-1, 1, 201, dtype=torch.float64)
    log_g = (log_likelihood(nodes) + (weights / 2).log()).logsumexp(1)
    derivative = log_gradient(log_likelihood(line), log_g)
    rival = (log_likelihood(line) + fit_weights(log_likelihood(line), tolerance=1e-12)).logsumexp(1).mean()
    # A fixed point without full support: one atom, at the right end.
    one = log_likelihood(line[-1:])
    moved = em(one, 1)[0].abs().max()
    return Measurement(
        sides=[("log-likelihood of the best rival", "log-likelihood of the fixed point")],
        lhs=torch.stack([rival, derivative.abs().max(), moved]),
        rhs=torch.stack([log_g.mean(), moved.new_zeros(()), moved.new_zeros(())]),
        falsehood_lhs=torch.stack([log_g.mean(), log_gradient(log_likelihood(line), one[:, 0]).max()]),
        falsehood_rhs=torch.stack([one.mean(), moved.new_zeros(())]),
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "D_G is at most 0.99": Neighbour(derivative.max(), math.log(0.99)),
            "any decoder, with a jump at one code of no mass too": Neighbour(_jump(), 0.0),
        },
    )


def _jump() -> Tensor:
    """Largest log D_G where a datum is twice as likely at a code of no mass: EM keeps the uniform G, not the best."""
    return log_gradient(torch.tensor([[0.0, math.log(2.0)]], dtype=torch.float64), torch.zeros(1).double()).max()


@claim(
    "gen/em-rate",
    falsehood=r"The lack falls geometrically, below $\mathrm{KL}(G'^+\,\|\,G_0)\,2^{-T}$.",
    kind="exact",
    source="this book, after the argument for Blahut and Arimoto's algorithm and Csiszár & Tusnády (1984)",
    section="continuous/npmle",
)
def em_rate(generator: torch.Generator) -> Measurement:
    """Run EM on a grid for overlapping likelihoods; then where each datum has its own atom, and T = 1 is attained."""
    x, grid = torch.linspace(-2, 2, 7, dtype=torch.float64), torch.linspace(-3, 3, 25, dtype=torch.float64)
    x = x + 0.2 * torch.rand(7, generator=generator, dtype=torch.float64)
    terms = Normal(grid, 1.0).log_prob(x[:, None])
    start, best = torch.full((25,), -math.log(25), dtype=torch.float64), fit_weights(terms, tolerance=1e-12)
    other = torch.randn(25, generator=generator, dtype=torch.float64).log_softmax(0)
    steps = torch.tensor([1, 2, 5, 20, 100, 500])
    lack, bound = zip(*[_lack(terms, goal, start, steps) for goal in (best, other)], strict=True)
    # Each datum under one atom only: the best prior gives it its share, and one step of EM gets there.
    apart = torch.full((4, 4), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    first = torch.randn(4, generator=generator, dtype=torch.float64).log_softmax(0)
    shares = torch.full((4,), -math.log(4), dtype=torch.float64)
    one_lack, one_bound = _lack(apart, shares, first, steps[:1])
    missing = start.clone()
    missing[grid.abs() > 0.5] = -torch.inf
    stuck = _lack(terms, best, missing.log_softmax(0), steps)[0]
    return Measurement(
        sides=[("what EM lacks before its first step", "bound on that")],
        lhs=torch.cat([*lack, one_lack]),
        rhs=torch.cat([*bound, one_bound]),
        falsehood_lhs=lack[0][-1],
        falsehood_rhs=bound[0][-1] * steps[-1] * 2.0 ** -float(steps[-1]),
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "a smaller constant, KL / (1.05 T)": Neighbour(one_lack, one_bound / 1.05),
            "the lack falls like 1/T²": Neighbour(lack[0][4], bound[0][4] / steps[4]),
            "a start that misses the support": Neighbour(stuck[-1], bound[0][-1]),
        },
    )


def _lack(terms: Tensor, goal: Tensor, start: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what EM lacks of a prior's log-likelihood after T - 1 steps, and the bound on it, for several T."""
    joint = terms + goal
    posterior = (joint - joint.logsumexp(1, keepdim=True)).logsumexp(0) - math.log(len(terms))
    apart = torch.where(posterior > -torch.inf, posterior.exp() * (posterior - start), 0.0).sum()
    trace = em(terms, int(steps.max()) - 1, log_weight=start)[1]
    return joint.logsumexp(1).mean() - trace[steps - 1], apart / steps
