r"""What can be said of an aggregated posterior without drawing a sample: bounds on I(n; z) and KL, and one distance.

    lower  <=  I(n; z)  <=  min(pairwise, gaussian),      KL(q_agg | p)  >=  R - log N,      MMD²(q_agg, N(0, I)).

All come from sums over components or over pairs of them, in float64. Pairs are never all held at once: memory grows
with the number of components, time with its square.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_int, check_number, check_type
from vaebook.mixture import DiagGaussianMixture

BLOCK = 2**16
"""Pairs of components held at once (half a MiB a matrix, for the cache); those of one component are the least."""


class InformationBounds(NamedTuple):
    """Bounds on the mutual information between component and code, in nats; see `mutual_information_bounds`."""

    lower: float  # from Bhattacharyya distances between components
    upper: float  # the smaller of the next two
    pairwise_upper: float  # from KL divergences between components; at most the entropy of the distinct ones' weights
    gaussian_upper: float  # from the moments alone; `gaussian_cap`


def mutual_information_bounds(q_agg: DiagGaussianMixture) -> InformationBounds:
    r"""Bound the mutual information between component index and code from both sides, without samples.

    $-\sum_i w_i\log\sum_j w_j e^{-C(i,j)} \le I(n;z) \le -\sum_i w_i\log\sum_j w_j e^{-\mathrm{KL}(i\,\|\,j)}$

    with C the Bhattacharyya distance. Components that are equal have KL 0, so the upper bound is at most the entropy
    of the weights of the distinct components; it is reported as the smaller of itself and `gaussian_cap`.

    Args:
        q_agg: the mixture, N components in D dimensions. Time grows with N² D, memory with N.

    Returns:
        lower, upper, and the two upper bounds of which it is the smaller; in nats.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture.

    Example:
        >>> far = DiagGaussianMixture(torch.tensor([[0.0], [100.0]]), torch.ones(2, 1))
        >>> [round(bound, 4) for bound in mutual_information_bounds(far)]  # log 2, log 2; the moments see less
        [0.6931, 0.6931, 0.6931, 3.9122]

    Source: Kolchinsky & Tracey, Estimating mixture entropy with pairwise distances, Entropy 19 (2017).
    """
    loc, scale, weight = _components(q_agg)
    log_weight, lower, upper = weight.log(), 0.0, 0.0
    for rows in _row_blocks(loc):
        distance, divergence = _pairwise(loc[rows], scale[rows], loc, scale)
        lower -= float(weight[rows] @ (log_weight - distance).logsumexp(1))
        upper -= float(weight[rows] @ (log_weight - divergence).logsumexp(1))
    cap = gaussian_cap(q_agg)
    best = min(upper, cap)
    return InformationBounds(min(lower, best), best, upper, cap)  # they may be equal, but for rounding


def gaussian_cap(q_agg: DiagGaussianMixture) -> float:
    r"""Bound the mutual information from above by what it would be if q_agg were Gaussian.

    $I(n;z) \le \tfrac12\log\det S - \tfrac12\sum_n w_n\log\det\Sigma_n$, S the covariance of the mixture

    The difference of the two sides is KL(q_agg | N(m, S)), so the cap is sharp where q_agg is nearly Gaussian.

    Args:
        q_agg: the mixture.

    Returns:
        The cap, in nats, infinite where means are more than 1e308 scales apart; time grows with N D².

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture.

    Example:
        >>> gaussian_cap(DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2)))
        0.0

    Source: this book, chapter aggregated/surgery (claim agg/gaussian-cap).
    """
    loc, scale, weight = _components(q_agg)
    largest = scale.amax(0)
    within = largest * (weight @ (scale / largest).square()).sqrt()  # root of the mean variance, of any size
    middle = 0.5 * loc.amin(0) + 0.5 * loc.amax(0)
    centred = loc - middle - weight @ (loc - middle)
    ratios = weight.sqrt()[:, None] * centred / within
    if not bool(ratios.isfinite().all()):
        return math.inf  # further apart, in scales, than the largest number
    spread = torch.linalg.svdvals(ratios)
    # log det(S) = log det(within²) + sum log(1 + spread²); what rounding may have taken from small ones is added.
    spread = spread + len(spread) * torch.finfo(spread.dtype).eps * spread.amax()
    return float(torch.hypot(spread, torch.ones_like(spread)).log().sum() - weight @ (scale / within).log().sum(1))


def mismatch_bound(rate: float, num_data: int) -> float:
    r"""Certify a mismatch between aggregated posterior and prior from two numbers that every training logs.

    $\mathrm{KL}(q_\mathrm{agg}\,\|\,p) \ge \max(0,\ R - \log N)$

    Args:
        rate: R, the mean of KL(q(z|x_n) | p) over *all* N data at the final parameters, in nats: not multiplied by a
            beta, not clamped by free bits, without augmentation of the data, not the mean over one batch.
        num_data: N, the number of data in that mean; the number of a batch gives no bound.

    Returns:
        The certified divergence, in nats.

    Raises:
        TypeError: rate is not a number, num_data not an int.
        ValueError: rate is negative or not finite, num_data is below 1.

    Example:
        >>> round(mismatch_bound(25.0, 60_000), 2), mismatch_bound(3.0, 60_000)
        (14.0, 0.0)

    Source: this book, chapter aggregated/holes (claim agg/hole-bound); it follows from Hoffman & Johnson (2016).
    """
    rate = check_number("rate", rate, minimum=0)
    return max(0.0, rate - math.log(check_int("num_data", num_data, minimum=1)))


def mmd_squared(q_agg: DiagGaussianMixture, bandwidth: float) -> float:
    r"""Squared maximum mean discrepancy between a mixture and N(0, I) under a Gaussian kernel, in closed form.

    $\mathbb E\,k(z,z') - 2\,\mathbb E\,k(z,y) + \mathbb E\,k(y,y')$ with $k(a,b)=e^{-\|a-b\|^2/(2\ell^2)}$,
    where $z,z'\sim q_\mathrm{agg}$ and $y,y'\sim\mathcal N(0,I)$ are independent; between two Gaussians

    $\mathbb E\,k = \prod_j \frac{\ell}{\sqrt{\ell^2+u_j}}\,e^{-(a_j-b_j)^2/(2(\ell^2+u_j))}$, u the sum of variances.

    Args:
        q_agg: the mixture, N components in D dimensions. Time grows with N² D, memory with N.
        bandwidth: l, in units of z.

    Returns:
        The squared discrepancy, between 0 and 2: no estimate, exact to rounding (about 1e-15).

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture, bandwidth not a number.
        ValueError: bandwidth is not positive.

    Example:
        >>> mmd_squared(DiagGaussianMixture(torch.zeros(2, 3), torch.ones(2, 3)), 1.0)
        0.0
        >>> far = DiagGaussianMixture(torch.full((1, 1), 50.0), torch.ones(1, 1))
        >>> round(mmd_squared(far, 1.0), 4)  # 2/√3
        1.1547

    Source: Rustamov, Closed-form expressions for maximum mean discrepancy, Stat 10 (2021); Gretton et al. (2012).
    """
    loc, scale, weight = _components(q_agg)
    length, within = loc.new_tensor(check_number("bandwidth", bandwidth, above=0)), 0.0
    for rows in _row_blocks(loc):
        within += float(weight[rows] @ _expected_kernel(loc[rows], scale[rows], loc, scale, length) @ weight)
    origin, one = torch.zeros_like(loc[:1]), torch.ones_like(loc[:1])
    across = float(weight @ _expected_kernel(loc, scale, origin, one, length).squeeze(1))
    return max(0.0, within - 2 * across + float(_expected_kernel(origin, one, origin, one, length)))


def _components(q_agg: object) -> tuple[Tensor, Tensor, Tensor]:
    """Means, scales and weights of the components of positive weight, in float64 and without gradients."""
    log_weight, loc, scale = (x.detach() for x in check_type("q_agg", q_agg, DiagGaussianMixture).components())
    used = log_weight.exp() > 0
    return loc[used], scale[used], log_weight[used].exp()


def _row_blocks(loc: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(loc), device=loc.device).split(max(1, BLOCK // len(loc)))


def _pairwise(loc: Tensor, scale: Tensor, all_loc: Tensor, all_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Bhattacharyya distance and KL(row | column) between components, (rows, N); one coordinate at a time.

    In ratios alone, so that they are the same in any unit of z: with r = log(sigma/sigma') and g the gap of the means

    distance = g²/4(sigma² + sigma'²) + log cosh(r)/2,      KL = g²/2sigma'² + (exp(2r) - 1 - 2r)/2.
    """
    distance, divergence = loc.new_zeros(len(loc), len(all_loc)), loc.new_zeros(len(loc), len(all_loc))
    for mu, sigma, other, others in zip(*(x.unbind(1) for x in (loc, scale, all_loc, all_scale)), strict=True):
        gap, ratio = mu[:, None] - other, sigma.log()[:, None] - others.log()
        tail = torch.log1p((-2 * ratio.abs()).exp()) - math.log(2)  # log cosh r - |r|
        distance += 0.25 * (gap / torch.hypot(sigma[:, None], others)).square() + 0.5 * (ratio.abs() + tail)
        divergence += 0.5 * (gap / others).square() + 0.5 * torch.expm1(2 * ratio) - ratio
    return distance, divergence


def _expected_kernel(loc: Tensor, scale: Tensor, other: Tensor, other_scale: Tensor, length: Tensor) -> Tensor:
    """E k(z, z') for z from each row's Gaussian and z' from each other one, (rows, others)."""
    exponent, shrinkage = loc.new_zeros(len(loc), len(other)), loc.new_ones(len(loc), len(other))
    for j in range(loc.shape[1]):
        total = torch.hypot(torch.hypot(scale[:, j, None], other_scale[:, j]), length)
        exponent -= 0.5 * ((loc[:, j, None] - other[:, j]) / total).square()
        shrinkage *= length / total
    return exponent.exp() * shrinkage
