r"""A test for anybody's code: whether a distribution samples from the density that it states.

    E_g[h / (h + f)]  =  E_h[f / (h + f)]      where the sampler g has the density f, and f integrates to 1,

for every density h, and likewise within every part of the space. Both sides are averages of numbers between 0 and 1, so
that no outlier disturbs the comparison, and f enters with its constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import scipy
import torch
from torch import Tensor

from vaebook._checks import check_generator, check_int, check_number, new_seed
from vaebook.adapters import adapt_prior
from vaebook.gmm import fit_quietly
from vaebook.mixture import DiagGaussianMixture

PARTS = 5
"""Parts of the space that are compared one by one."""
KERNELS = 1_000
"""Draws of which the narrow parts of the reference are made."""
SHARE = 0.1
"""Parts with less than this share of the draws are counted together where the order of draws is tested."""


@torch.no_grad()
def assert_density_matches_sampler(
    distribution: Any, *, num_samples: int = 20_000, false_alarm: float = 1e-3, generator: torch.Generator | None = None
) -> None:
    r"""Raise AssertionError if draws of a distribution do not follow its density, or are not independent.

    $\mathbb E_g\frac{h}{h+f}=\mathbb E_h\frac{f}{h+f}$

    It finds variances or their logarithms taken for scales, products of marginals taken for mixtures, weights that are
    not normalised or are counted once a coordinate, coordinates mixed up, and components that are drawn in order. The
    reference h is made of some draws; others are compared with it, over all of the space and in five parts of it, by
    Fisher's exact test. That the draws come in no order is tested by two tables of consecutive draws and of halves.

    Args:
        distribution: a continuous distribution over vectors: anything with ``log_prob(z)`` for z (S, D) and
            ``sample(shape)``, such as a torch distribution, a flow or a prior of this package.
        num_samples: how many draws to compare.
        false_alarm: the chance of an error where nothing is wrong, at most.
        generator: the source of randomness; None means torch's global one.

    Raises:
        AssertionError: density and sampler differ; the message says how.
        TypeError: distribution lacks a method, or a number is of the wrong kind.
        ValueError: a number is out of range, or draws have the wrong shape.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> right = Independent(Normal(torch.zeros(3), torch.full((3,), 2.0)), 1)
        >>> assert_density_matches_sampler(right, generator=torch.Generator().manual_seed(0))
        >>> from types import SimpleNamespace
        >>> wrong = SimpleNamespace(log_prob=right.log_prob, sample=lambda shape: 4.0 * torch.randn(*shape, 3))
        >>> assert_density_matches_sampler(wrong, generator=torch.Generator().manual_seed(0))
        Traceback (most recent call last):
        AssertionError: draws do not follow the density: ...

    Source: the identity behind bridge sampling, Meng & Wong, Simulating ratios of normalizing constants (1996).
    """
    num = check_int("num_samples", num_samples, minimum=1_000, each=1)
    false_alarm = check_number("false_alarm", false_alarm, above=0, below=1)
    source = adapt_prior(distribution, None, "distribution")
    drawn = [source.sample((num,), generator=check_generator(generator)) for _ in range(2)]
    device, drawn = drawn[0].device, [part.cpu() for part in drawn]
    for part in drawn:
        _check_draws(part)
    training, z = (part.double() for part in drawn)
    log_prob = lambda z: source.log_prob(z.to(device)).cpu().double()  # noqa: E731
    seed = new_seed(generator)
    reference, few = _reference(training, seed)
    limit = false_alarm / (PARTS + 3)
    for where, got, expected in _compare(log_prob, reference, few, z, seed):
        p = float(scipy.stats.fisher_exact([[got, num - got], [expected, num - expected]]).pvalue)
        if p < limit:
            raise AssertionError(
                f"draws do not follow the density: {where}, {got} against {expected} of {num} are expected to agree "
                f"(p = {p:.1e}); is the density normalised, and are scales what they should be in both?"
            )
    for what, p in _order(few.responsibilities(z).argmax(1)):
        if p < limit:
            raise AssertionError(f"draws are not independent: {what} (p = {p:.1e}); are components drawn in order?")


def _check_draws(z: Tensor) -> None:
    if not bool(z.isfinite().all()):
        raise AssertionError("draws are not finite")
    fine = z.std(0) > 1e6 * torch.finfo(z.dtype).eps * z.abs().amax(0)  # elsewhere they may repeat by rounding
    enough = 0.9 * len(z)  # distinct ones; one coordinate usually tells, in a tenth of the time
    if bool(fine.any()) and len(z[:, fine][:, 0].unique()) < enough and len(z.unique(dim=0)) < enough:
        raise AssertionError(f"draws repeat: {len(z.unique(dim=0))} of {len(z)} are distinct")


def _reference(z: Tensor, seed: int) -> tuple[DiagGaussianMixture, DiagGaussianMixture]:
    """Make a density of draws: a few Gaussians, and kernels of two widths, with a third each; return the few, too."""
    unit, dim = z.std(0).clamp_min(1e-300), z.shape[1]
    few = fit_quietly(z, PARTS, covariance="diag", seed=seed)
    centres, width = z[:KERNELS], KERNELS ** (-1 / (dim + 4)) * unit
    loc = torch.cat([few.loc, centres, centres])
    scale = torch.cat([few.scale, *((c * width).expand_as(centres) for c in (1.0, 0.2))])
    log_weight = torch.cat([few.log_weight, torch.full((2 * KERNELS,), -math.log(KERNELS)).to(z)]) - math.log(3)
    return DiagGaussianMixture(loc, scale, log_weight), few


def _compare(
    log_prob: Callable[[Tensor], Tensor], reference: DiagGaussianMixture, few: DiagGaussianMixture, z: Tensor, seed: int
) -> list[tuple[str, int, int]]:
    """Count draws of both sides that a coin with h/(h + f), or f/(h + f), shows heads for: everywhere, and by part."""
    generator = torch.Generator().manual_seed(seed)
    y, heads = reference.sample((len(z),), generator=generator), []
    for points, sign in ((z, 1), (y, -1)):
        log_f, log_h = log_prob(points), reference.log_prob(points)
        if bool(log_f.isnan().any() | (log_f == torch.inf).any()):
            raise AssertionError("log_prob is not a number, or infinite, at draws")
        shown = torch.rand(len(points), generator=generator, dtype=torch.float64) < (sign * (log_h - log_f)).sigmoid()
        heads.append((shown, few.responsibilities(points).argmax(1)))
    (ours, here), (theirs, there) = heads
    counts = [("everywhere", int(ours.sum()), int(theirs.sum()))]
    for k in range(PARTS):
        counts.append((f"in part {k + 1} of {PARTS}", int(ours[here == k].sum()), int(theirs[there == k].sum())))
    return counts


def _order(label: Tensor) -> list[tuple[str, float]]:
    """Test that draws come in no order: consecutive ones, and halves."""
    label = torch.where((label.bincount(minlength=PARTS) / len(label))[label] < SHARE, PARTS, label)
    _, label = label.unique(return_inverse=True)
    # Pairs start two or three steps apart, in the irregular order of the golden ratio's square, so that components in
    # turn are not the same ones in every pair.
    num, start = int(label.max()) + 1, (torch.arange(int(len(label) / 2.62)) * 2.618).long()
    half = (torch.arange(len(label)) * 2 // len(label)).clamp(max=1)
    tables = {
        "each depends on the one before it": (label[start], label[start + 1], num),
        "the first half differs from the second": (half, label, num),
    }
    found = []
    for what, (row, column, columns) in tables.items():
        counts = (row * columns + column).bincount(minlength=(int(row.max()) + 1) * columns).reshape(-1, columns)
        counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
        if min(counts.shape) > 1:
            found.append((what, float(scipy.stats.chi2_contingency(counts.numpy(), correction=False).pvalue)))
    return found
