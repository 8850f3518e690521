r"""Holes: parts of the prior where the codes of the population hardly ever come.

    hole mass = max { p(A) : q_∞(A) <= p(A) / 10 },      over sets A of codes.

It is the largest share of the prior's samples that land where codes land at most a tenth as often as the prior says.
Where the population's codes follow the prior it is 0, for then q_∞(A) = p(A). The gaps between N narrow Gaussians are
no holes: new codes fall there as well. So sets are found with two thirds of the data and judged by the codes of the
third.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from vaebook._checks import check_all, check_int, new_seed
from vaebook.adapters import adapt_prior
from vaebook.distributed import Mixture, in_shards
from vaebook.evaluation import evaluation_mode
from vaebook.gmm import fit_quietly
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import draw_from, log_density
from vaebook.priors import on_cpu

RARER = 0.1
"""A hole has at most this many times the codes that the prior says."""
FALSE_ALARM = 0.01
"""How often a hole may be reported where there is none."""
FOLDS = 3
LEVELS = np.geomspace(0.005, 0.95, 36)
"""Shares of the prior that are tried as holes."""
SIZES = (1, 5, 20)
MOST = 20_000
"""Codes that are used at most: of more, some at random."""
HALF = 0.5
"""Of a hole with more of the prior than this it is shorter to say where codes are."""
LEAST = 60
"""Codes below which nothing can be said."""


class Coordinate(NamedTuple):
    """Where a hole, or codes, lie along one coordinate: from 10 to 90 % of their points, and of the prior's."""

    index: int
    """The latent, counted from 0; D for the distance from the origin."""
    low: float
    high: float
    prior_low: float
    prior_high: float


class Holes(NamedTuple):
    """What `hole_mass` found."""

    mass: float
    """Share of the prior's samples that land in the hole; 0 if none is certain."""
    stderr: float
    codes: float
    """Share of the population's codes that land there."""
    codes_stderr: float
    least: float
    """The smallest hole that so many data can show; a smaller one would go unseen."""
    points: Tensor
    """Draws of the prior in the hole, (S, D)."""
    where: tuple[Coordinate, ...]
    """The coordinates, three at most, along which the hole differs most from the rest of the prior.

    Of a hole with more than half of the prior, which is nearly everywhere, they say where the codes are instead."""


@torch.no_grad()
def hole_mass(
    q_agg: Mixture, prior: Any, *, num_samples: int = 6_000, generator: torch.Generator | None = None
) -> Holes:
    r"""Find the part of a prior where codes hardly ever come.

    $\max\{p(A): q_\infty(A)\le p(A)/10\}$

    Sets are those where an estimate of $\log q_\infty-\log p$ is low. The estimates are Gaussian mixtures fitted to
    codes, the codes' own mixture, the product of its marginals, and a classifier that tells codes from draws of the
    prior. Each is made without the third of the data that counts how many codes land in the set. A hole is reported
    if the count certifies, over all sets that are tried and with a false alarm in at most one case of a hundred, that
    codes are less than half as frequent there as the prior says. What is reported is a lower bound in so far as the
    best set may not have been tried.

    Args:
        q_agg: one component a datum, the data independent of one another; of more than 20,000 some at random.
        prior: p(z), as `vaebook.adapters.adapt` takes it.
        num_samples: draws of the prior that measure each set.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The mass of the hole, the share of codes in it, both with standard errors, and where it is.

    Raises:
        TypeError: q_agg is not a mixture, or another argument is of the wrong kind.
        ValueError: there are fewer than 60 components, or their weights differ, or the prior has another dimension.

    Example:
        >>> from vaebook.priors import StandardNormal
        >>> angle = torch.linspace(0, 6.2832, 400)
        >>> loc = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)  # a ring; the prior is full in the middle
        >>> ring = DiagGaussianMixture(loc, torch.full_like(loc, 0.1))
        >>> holes = hole_mass(ring, StandardNormal(2), generator=torch.Generator().manual_seed(0))
        >>> holes.mass > 0.5, holes.codes < 0.1
        (True, True)

    Source: Neyman & Pearson (1933) for the sets; Kim et al., Classification accuracy as a proxy for two-sample testing
    (2021); what a divergence allows: this book, claim agg/hole-mass.
    """
    q_agg = in_shards("q_agg", q_agg, equal=True)
    num_samples = check_int("num_samples", num_samples, minimum=100, each=q_agg.latent_dim)
    generator = q_agg.processes.common(generator)
    if q_agg.num_components < LEAST:
        raise ValueError(f"q_agg: expected at least {LEAST} components, one for each datum, got {q_agg.num_components}")
    prior, num = on_cpu(adapt_prior(prior, q_agg.latent_dim)), min(q_agg.num_components, MOST)
    chosen = q_agg[torch.randperm(q_agg.num_components, generator=generator)[:num]]
    q_agg = DiagGaussianMixture(chosen.loc, chosen.scale)
    z = q_agg.loc + q_agg.scale * torch.randn(q_agg.loc.shape, generator=generator, dtype=torch.float64)
    with evaluation_mode(prior):
        reference, fresh = (draw_from(prior, (num_samples,), generator).cpu().double() for _ in range(2))
        log_prior = log_density(prior, torch.cat([z, reference, fresh])).double()
    check_all("prior.log_prob(z)", log_prior[:num], log_prior[:num].isfinite(), "finite values at draws of q_agg")
    seed, fold = new_seed(generator), torch.arange(num) % FOLDS
    inside: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for f in range(FOLDS):
        own = fold == f
        points, log_p = torch.cat([z[own], reference, fresh]), torch.cat([log_prior[:num][own], log_prior[num:]])
        for name, values in _scores(q_agg[~own], points, log_p, z[~own], reference, seed):
            here, there, new = values.split([int(own.sum()), num_samples, num_samples])
            # where codes are rarest: the cuts come from draws of the prior that count nothing
            cuts = torch.from_numpy(np.quantile(there.numpy(), LEVELS))[:, None]
            inside.setdefault(name, []).append(((here < cuts).sum(1), new < cuts))
    return _largest(inside, fresh, z)


def _scores(
    q: DiagGaussianMixture, points: Tensor, log_prior: Tensor, codes: Tensor, reference: Tensor, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Estimate log q_∞ - log p, up to a constant, at points, from codes of other folds and from draws of the prior."""
    dim, num = q.latent_dim, q.num_components
    for size in SIZES:
        covariance = "full" if num > 5 * dim * size else "diag"
        fitted = fit_quietly(q, size, covariance=covariance, num_samples=min(5_000, 20 * num), seed=seed)
        yield f"mixture of {size}", fitted.log_prob(points) - log_prior
    yield "codes", q.log_prob(points) - log_prior
    yield "marginals", _marginals(q[:500], points) - log_prior
    yield "classifier", torch.from_numpy(_classifier(codes, reference, seed).decision_function(_features(points)))


def _marginals(q: DiagGaussianMixture, points: Tensor) -> Tensor:
    """Log-density of the product of the marginals, interpolated between 1,000 points of each coordinate."""
    grid = points.amin(0).lerp(points.amax(0), torch.linspace(0, 1, 1_000, dtype=torch.float64)[:, None])
    lines = zip(points.numpy().T, grid.numpy().T, q.log_prob_marginals(grid).numpy().T, strict=True)
    return torch.from_numpy(np.sum([np.interp(*line) for line in lines], 0))


def _classifier(codes: Tensor, reference: Tensor, seed: int) -> Any:
    """Train a classifier to tell codes from draws of the prior, both weighing the same."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # here, because it takes a second to import

    num = min(len(codes), len(reference) // 2)  # not all of the reference, whose rest sets cuts
    x = np.concatenate([_features(codes[:num]), _features(reference[:num])])
    y = np.repeat([1, 0], num)
    size = {"max_iter": 60, "max_leaf_nodes": 8, "learning_rate": 0.1, "min_samples_leaf": min(20, max(2, num // 5))}
    return HistGradientBoostingClassifier(**size, random_state=seed).fit(x, y)


def _features(z: Tensor) -> np.ndarray:
    """Coordinates, and the distance from the centre, which no single one shows."""
    return torch.cat([z, z.square().sum(1, keepdim=True).sqrt()], 1).numpy()


def _largest(inside: dict[str, list[tuple[Tensor, Tensor]]], fresh: Tensor, codes: Tensor) -> Holes:
    """Choose the largest set that is certified; its estimates pool the folds."""
    num, tail = len(codes), FALSE_ALARM / (len(inside) * len(LEVELS))
    least, found = float(scipy.stats.beta.isf(tail, 1, num)) / 0.5, []
    for parts in inside.values():
        counts, landed = zip(*parts, strict=True)
        count, each = sum(counts).numpy(), torch.stack(landed).double().mean(0)
        mass, error = each.mean(1).numpy(), (each.std(1) / each.shape[1] ** 0.5).numpy()
        highest = np.where(count < num, scipy.stats.beta.isf(tail, count + 1, np.maximum(num - count, 1)), 1.0)
        certain = (highest < 0.5 * (mass - 4 * error)) & (count / num <= RARER * mass) & (each > 0.5).any(1).numpy()
        if certain.any():
            level = int(np.flatnonzero(certain).max())
            found.append((float(mass[level]), float(error[level]), float(count[level]) / num, each[level] > 0.5))
    if not found:
        return Holes(0.0, 0.0, 0.0, 0.0, least, fresh[:0], ())
    mass, error, share, chosen = max(found, key=lambda one: one[0])
    smaller = (fresh[chosen], fresh[~chosen]) if mass <= HALF else (codes, fresh)
    return Holes(mass, error, share, (share * (1 - share) / num) ** 0.5, least, fresh[chosen], _where(*smaller, fresh))


def _where(points: Tensor, others: Tensor, prior: Tensor) -> tuple[Coordinate, ...]:
    """Order coordinates by how far points differ from others in distribution, and keep those that differ most."""
    here, elsewhere, all_of_it = (torch.from_numpy(_features(part)).T for part in (points, others, prior))
    pairs = zip(here, elsewhere, strict=True)
    distance = [scipy.stats.ks_2samp(one, two, method="asymp").statistic for one, two in pairs]
    ends = torch.tensor([0.1, 0.9], dtype=prior.dtype)
    far = sorted(range(len(distance)), key=lambda j: -distance[j])[:3]
    shown = [j for j in far if distance[j] > max(0.2, 0.5 * distance[far[0]])]
    return tuple(Coordinate(j, *here[j].quantile(ends).tolist(), *all_of_it[j].quantile(ends).tolist()) for j in shown)
