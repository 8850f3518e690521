r"""What N data can say about the population that they were drawn from: brackets for its mismatch and its information.

The mixture of N codes, q̂_N, is an estimate of the population's q_∞ = E_x q(z|x). For an encoder that was not fitted to
these data, drawn independently,

    E mean_n E_q_n log(q̂_{-n}/p)  <=  KL(q_∞ | p)  <=  E KL(q̂_N | p),
    E I(n; z)  <=  I(x; z)  <=  E mean_n E_q_n log(q_n/q̂_{-n}),

and any density c made without the datum may take the place of q̂_{-n}: the nearer it is to q_∞, the less it loses. A
bracket reaches from the lower estimate to the upper, each widened for chance as far as the sample shows it. What the
sample does not hold, no interval can allow for: a kind of datum rarer than 3/N is missing from one sample in twenty or
more.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import scipy
import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook._checks import check_all, check_int, check_number, check_sizes, check_type, excess_mass, new_seed
from vaebook.adapters import adapt_prior
from vaebook.distributed import Mixture, in_shards, sums_without
from vaebook.evaluation import evaluation_mode
from vaebook.gmm import fit_quietly
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import log_density
from vaebook.priors import GaussianMixture, on_cpu

FOLDS = 3
"""Into how many parts the data are cut for the mixtures that are fitted to them."""
GROUPS = 20
"""Groups of data that the jackknife leaves out, one at a time; of fewer than 40 data, half as many as data."""
FEWEST = 10
"""Fewest data from which a bracket is made."""
MOST = 100_000
"""Most components that a Gaussian mixture is fitted to."""


class Interval(NamedTuple):
    """A confidence interval in nats, made of two one-sided ones; see `bracket_mismatch`."""

    low: float
    high: float
    low_estimate: float
    """The estimate from below, before chance was allowed for."""
    low_stderr: float
    high_estimate: float
    high_stderr: float
    candidates: dict[str, tuple[float, float]]
    """Estimate and standard error of every end that was tried, by the name of the density."""


class _End(NamedTuple):
    """One estimate of one end of a bracket."""

    value: float
    stderr: float
    skew: float
    """Skewness of the value itself: that of its terms over the root of their number."""


@torch.no_grad()
def bracket_mismatch(
    q_agg: Mixture,
    prior: Any,
    *,
    densities: Sequence[Any] = (),
    num_components: tuple[int, ...] = (1, 5, 10, 30),
    num_samples: int = 10_000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    r"""Bracket the mismatch of the population, $\mathrm{KL}(q_\infty\,\Vert\,p)$.

    $\frac1N\sum_n\mathbb E_{q_n}\log\frac{c_{-n}}{p} \;\le\; \mathrm{KL}(q_\infty\Vert p) \;\le\;
    \mathrm{KL}(\hat q_N\Vert p)$
    in expectation, for each candidate c

    The candidates c for the lower end are the mixture without the datum's own component, Gaussian mixtures fitted
    without the datum's fold, and ``densities``. The largest is taken, each at a confidence corrected for the number of
    candidates. Standard errors and skewness of the ends that share components are jackknifed over the data. A limit
    moves outwards, never inwards, by Johnson's correction for skewness; and each end may err with a quarter of 1 -
    confidence, instead of half, since all this is approximate in small samples.

    The confidence is that of samples that show the tails of their population. Of a kind of datum that the sample does
    not hold, a bracket knows nothing. Nor does it reach its confidence where log(q̂/p) has heavy tails: under
    N(0, I), where codes lie as far out as draws of Student's t with three degrees of freedom, or are log-normal. Then
    the upper end is too low: for tens of data in a fifth of cases or more (book/results/brackets.json).

    Args:
        q_agg: one component of equal weight a datum, spread over processes or not; the data independent draws from the
            population, the encoder not fitted to them. (If it was, the bracket is one for data that it has seen.)
        prior: p(z), as `vaebook.adapters.adapt` takes it.
        densities: further densities over z that were made without these data.
        num_components: sizes of the Gaussian mixtures that are fitted; () for none.
        num_samples: draws of z, as many from each datum or, of more data than draws, one from some of them.
        confidence: with which the interval holds.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The interval, at least 0, with the estimates of both ends.

    Raises:
        TypeError: q_agg is not a mixture, or another argument is of the wrong kind.
        ValueError: weights are not equal, there are fewer than 10 data, a number is out of range, or the prior has
            more mass than one, so that its KL divergence is negative.

    Example:
        >>> from vaebook.priors import StandardNormal
        >>> generator = torch.Generator().manual_seed(0)
        >>> loc = 0.8 * torch.randn(400, 2, generator=generator)  # population: N(0, I), which is the prior
        >>> q_agg = DiagGaussianMixture(loc, torch.full_like(loc, 0.6))
        >>> bracket_mismatch(q_agg, StandardNormal(2), num_components=(1,), generator=generator).low
        0.0

    Source: this book, chapter aggregated/population (claim agg/population); Johnson, Modified t tests and confidence
    intervals for asymmetrical populations (1978).
    """
    drawn = _Drawn(q_agg, num_samples, generator)
    log_prior = _log_prob("prior", prior, drawn.z)
    return _bracket(drawn, log_prior, 1, _outside(drawn, densities, num_components), confidence)


@torch.no_grad()
def bracket_information(
    q_agg: Mixture,
    *,
    densities: Sequence[Any] = (),
    num_components: tuple[int, ...] = (1, 5, 10, 30),
    num_samples: int = 10_000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    r"""Bracket the information that codes carry about data in the population, $I(x;z)$, which no log N caps.

    $I(n;z) \;\le\; I(x;z) \;\le\; \frac1N\sum_n\mathbb E_{q_n}\log\frac{q_n}{c_{-n}}$ in expectation, for each c

    Arguments, returns and errors are those of `bracket_mismatch`; here the candidates make the upper end.

    Source: this book, chapter aggregated/population (claim agg/population).
    """
    drawn = _Drawn(q_agg, num_samples, generator)
    return _bracket(drawn, drawn.log_own, -1, _outside(drawn, densities, num_components), confidence)


@torch.no_grad()
def bracket_both(
    q_agg: Mixture, prior: Any, densities: Sequence[Any], num_components: tuple[int, ...], generator: torch.Generator
) -> tuple[Interval, ...]:
    """Bracket mismatch and information from the same 5,000 draws and fits, which take most of the time.

    Arguments, returns, errors and source are those of `bracket_mismatch` and of `bracket_information`.
    """
    drawn = _Drawn(q_agg, 5_000, generator)
    outside = _outside(drawn, densities, num_components)
    ends = ((_log_prob("prior", prior, drawn.z), 1), (drawn.log_own, -1))
    return tuple(_bracket(drawn, reference, sign, outside, 0.95) for reference, sign in ends)


class _Drawn:
    """Draws of z, one or more from each of some data; and what the groups of data give to the density there."""

    def __init__(self, q_agg: Mixture, num_samples: int, generator: torch.Generator | None) -> None:
        q = self.mixture = in_shards("q_agg", q_agg, equal=True)
        num_samples = check_int("num_samples", num_samples, minimum=2 * GROUPS, each=q.latent_dim)
        num, self.generator = q.num_components, q.processes.common(generator)
        if num < FEWEST:
            raise ValueError(f"q_agg: expected at least {FEWEST} components, one for each datum, got {num}")
        groups, order = min(GROUPS, num // 2), torch.randperm(num, generator=self.generator)
        rows = order[:num_samples].repeat(max(1, num_samples // num))
        own = q[rows]
        noise = torch.randn(own.loc.shape, generator=self.generator, dtype=torch.float64)
        self.z, self.rows = own.loc + own.scale * noise, rows
        self.log_own = Normal(own.loc, own.scale).log_prob(self.z).sum(1)
        self.group = torch.empty(num, dtype=torch.long)
        self.group[order] = torch.arange(num) % groups
        self.sizes = self.group.bincount(minlength=groups)
        self.log_groups = q.sums(self.z, self._groups, rows, logarithms=groups) + math.log(num)

    def _groups(self, q: DiagGaussianMixture, first: int, z: Tensor, rows: Tensor) -> Tensor:
        """Log of the weighted densities of each group's components in a part, summed, the draw's own left out."""
        group, found = self.group[first : first + q.num_components], z.new_full((len(z), len(self.sizes)), -torch.inf)
        for g in group.unique().tolist():
            members = (group == g).nonzero()[:, 0].to(z.device)
            own = torch.searchsorted(members, rows - first).where(torch.isin(rows - first, members), -1)
            found[:, g] = sums_without(q[members].double(), z, own)[:, 0] + math.log(len(members) / q.num_components)
        return found

    def some(self, index: Tensor) -> DiagGaussianMixture:
        """Return the mixture of these components; of more than `MOST`, of some of them at random."""
        if len(index) > MOST:
            index = index[torch.randint(len(index), (MOST,), generator=self.generator)]
        return self.mixture[index]

    def mean(self, values: Tensor) -> _End:
        """Average over draws; the standard error is over data, whose draws belong together."""
        each = values.reshape(len(values) // len(self.rows.unique()), -1).mean(0)
        return _end(float(each.mean()), each)

    def jackknife(self, log_density: Callable[[Tensor, Tensor, int], Tensor], reference: Tensor) -> _End:
        """Average log_density(log of others' sum, log of own, number of others) - reference; its error over groups."""
        num, groups = int(self.sizes.sum()), len(self.sizes)
        value = (log_density(self.log_groups.logsumexp(1), self.log_own, num - 1) - reference).mean()
        left = []
        for g in range(groups):
            keep = self.group[self.rows] != g
            others = self.log_groups[keep][:, torch.arange(groups) != g].logsumexp(1)
            log_c = log_density(others, self.log_own[keep], num - int(self.sizes[g]) - 1)
            left.append((log_c - reference[keep]).mean())
        return _end(float(value), groups * value - (groups - 1) * torch.stack(left))


def _end(value: float, terms: Tensor) -> _End:
    """Find the standard error and the skewness of a mean of terms, or of what a jackknife takes for such."""
    centred = terms - terms.mean()
    spread = centred.square().mean().sqrt()
    third = float(centred.pow(3).mean() / spread**3) if spread > 0 else 0.0
    return _End(value, float(terms.std()) / len(terms) ** 0.5, third / len(terms) ** 0.5)


def _outside(drawn: _Drawn, densities: Sequence[Any], num_components: tuple[int, ...]) -> dict[str, Tensor]:
    """Log-densities at the draws under mixtures fitted without the datum's fold, and under the densities given."""
    check_type("densities", densities, tuple | list)
    found = {f"densities[{i}]": _log_prob(f"densities[{i}]", c, drawn.z) for i, c in enumerate(densities)}
    fold, seed = drawn.group % FOLDS, new_seed(drawn.generator)
    fits = [drawn.some((fold != f).nonzero()[:, 0]) for f in range(FOLDS)]
    for size in check_sizes("num_components", num_components, minimum=1):
        if 2 * size > min(fit.num_components for fit in fits):
            continue
        value = torch.empty(len(drawn.z), dtype=torch.float64)
        with contextlib.suppress(ValueError):  # too few draws in one of the clusters: no candidate
            for f, fit in enumerate(fits):
                own = fold[drawn.rows] == f
                value[own] = _fit(fit, size, seed).log_prob(drawn.z[own])
            found[f"mixture of {size}"] = value
    return found


def _fit(q: DiagGaussianMixture, num_components: int, seed: int) -> GaussianMixture:
    """Fit a mixture to draws of q; one Gaussian, to its moments."""
    if num_components > 1:
        return fit_quietly(q, num_components, num_samples=min(10_000, 20 * q.num_components), seed=seed)
    tril = torch.linalg.cholesky(q.covariance)
    return GaussianMixture(tril.new_ones(1), q.mean[None], tril[None])


def _log_prob(name: str, density: Any, z: Tensor) -> Tensor:
    density = on_cpu(adapt_prior(density, z.shape[1], name))
    with evaluation_mode(density):
        value = log_density(density, z, name).double()
    return check_all(f"{name}.log_prob(z)", value, value.isfinite(), "finite values at draws of q_agg")


def _bracket(drawn: _Drawn, reference: Tensor, sign: int, outside: dict[str, Tensor], confidence: float) -> Interval:
    """Bracket the mean of log q_∞ - reference or, with sign -1, the negative of it.

    The best of the candidates makes the one end, at a confidence that pays for the choice; q̂ itself makes the other.
    """
    ends = {"leave-one-out": drawn.jackknife(lambda others, own, num: others - math.log(num), reference)}
    ends |= {name: drawn.mean(log_c - reference) for name, log_c in outside.items()}
    other = drawn.jackknife(lambda others, own, num: torch.logaddexp(others, own) - math.log(num + 1), reference)
    tail = (1 - check_number("confidence", confidence, above=0, below=1)) / 4  # for two ends, and for small samples

    def limit(end: _End, count: int, direction: int) -> float:
        """One-sided confidence limit, farther out where the terms are skewed that way."""
        t = float(scipy.stats.t.isf(tail / count, len(drawn.sizes) - 1))
        return end.value + direction * end.stderr * (t + max(0.0, direction * end.skew) * (1 + 2 * t**2) / 6)

    ends = {name: end for name, end in ends.items() if math.isfinite(end.value + end.stderr)}
    if not ends or not math.isfinite(other.value + other.stderr):
        raise ValueError("q_agg: expected finite log-densities at its draws, got one too large for a number")
    if sign > 0 and (wrong := excess_mass(other.value, len(reference))):
        raise ValueError(wrong)
    chosen = max(ends.values(), key=lambda end: limit(end, len(ends), -1))
    sides = [(sign * limit(chosen, len(ends), -1), chosen), (sign * limit(other, 1, 1), other)][::sign]
    limits, estimates = [max(0.0, side[0]) for side in sides], [(sign * end.value, end.stderr) for _, end in sides]
    tried = {name: (sign * end.value, end.stderr) for name, end in ends.items()}
    return Interval(*limits, *estimates[0], *estimates[1], tried)
