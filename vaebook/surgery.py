r"""What the KL term of the ELBO consists of: how much the code tells about the datum, and the rest.

For an aggregated posterior with components n of weight w_n, the *mutual information* I(n; z) between the index of
a datum and its code is the average of log q(z|n) - log q_agg(z) over both. It lies between 0 (the codes are all
the same) and the entropy of the weights of the distinct components (every code names its datum).
"""

from __future__ import annotations

import torch

from vaebook._checks import check_int, check_number
from vaebook.estimators import Estimate, estimate
from vaebook.mixture import DiagGaussianMixture


def mutual_information(
    q_agg: DiagGaussianMixture, num_samples: int = 10_000, *, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimate the mutual information between component index and code, by sampling from both.

    $I(n;z) = \sum_n w_n\,\mathrm{KL}(q(z\mid n)\,\|\,q_\mathrm{agg})
    = \mathbb E[\log q(z\mid n) - \log q_\mathrm{agg}(z)]$

    Args:
        q_agg: the mixture; its N components play the data.
        num_samples: number S of draws of (n, z).
        generator: the source of randomness; None means torch's global one.

    Returns:
        The estimate, in nats. It is unbiased: the density of q_agg is exact, only the average is sampled.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture, num_samples is not an int.
        ValueError: num_samples is less than 2.

    Example:
        >>> import torch
        >>> far = DiagGaussianMixture(torch.tensor([[0.0], [100.0]]), torch.ones(2, 1))
        >>> round(mutual_information(far, 100, generator=torch.Generator().manual_seed(0)).value, 4)  # log 2
        0.6931

    Source: Hoffman & Johnson, ELBO surgery (2016), equation 6, where it is the index-code mutual information.
    """
    if not isinstance(q_agg, DiagGaussianMixture):
        raise TypeError(f"q_agg: expected a DiagGaussianMixture, got {type(q_agg).__name__}")
    check_int("num_samples", num_samples, minimum=2)
    # In float64 from the start: a draw rounded to float16 would no longer be a draw of the mixture.
    precise = q_agg.double()
    z, index = precise.sample_with_index((num_samples,), generator=generator)
    own = torch.distributions.Normal(precise.loc[index], precise.scale[index])
    return estimate(own.log_prob(z).sum(-1) - precise.log_prob(z))


def mutual_information_quadrature(
    q_agg: DiagGaussianMixture, *, tolerance: float = 1e-10, max_nodes: int = 1_000_000
) -> float:
    r"""Integrate the mutual information between component index and code, for D = 1.

    $I(n;z) = \sum_n w_n\int\mathcal N(u\mid 0,1)\,\log\frac{q(z\mid n)}{q_\mathrm{agg}(z)}\,du$
    with $z=\mu_n+\sigma_n u$

    The trapezoid rule over u in [-12, 12] converges faster than any power of its step; what lies outside weighs
    less than 1e-32. The step shrinks by a third until the value changes by no more than the tolerance.

    Args:
        q_agg: the mixture, with D = 1.
        tolerance: nats; the last change.
        max_nodes: the most nodes to use for each component.

    Returns:
        I(n; z), in nats.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture, or a number is of the wrong kind.
        ValueError: D is not 1, or a number is out of range.
        RuntimeError: max_nodes do not reach the tolerance, for instance because scales differ by too much.

    Example:
        >>> far = DiagGaussianMixture(torch.tensor([[0.0], [100.0]]), torch.ones(2, 1))
        >>> round(mutual_information_quadrature(far), 12)  # log 2
        0.69314718056

    Source: the definition; on the rule, Trefethen & Weideman, SIAM Review 56 (2014), section 5.
    """
    if not isinstance(q_agg, DiagGaussianMixture):
        raise TypeError(f"q_agg: expected a DiagGaussianMixture, got {type(q_agg).__name__}")
    if q_agg.event_shape[0] != 1:
        raise ValueError(f"q_agg: expected dimension 1, got {q_agg.event_shape[0]}; use mutual_information")
    check_number("tolerance", tolerance, above=0)
    check_int("max_nodes", max_nodes, minimum=3)
    q_agg, previous, num_nodes = q_agg.double(), float("inf"), 2_001
    loc, scale, weight = q_agg.loc, q_agg.scale, q_agg.log_weight.exp()
    while num_nodes <= max_nodes:
        u = torch.linspace(-12, 12, num_nodes, dtype=torch.float64, device=loc.device)
        standard = torch.distributions.Normal(u.new_zeros(()), 1.0).log_prob(u)
        value = 0.0
        for n in range(len(loc)):  # one component at a time: all at once would need N × nodes
            gain = standard - scale[n].log() - q_agg.log_prob((loc[n] + scale[n] * u)[:, None])
            value += float(weight[n] * torch.trapezoid(standard.exp() * gain, u))
        if abs(value - previous) <= tolerance:
            return value
        previous, num_nodes = value, 3 * (num_nodes - 1) // 2 + 1
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")
