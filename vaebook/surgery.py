r"""What the KL term of the ELBO consists of: how much the code tells about the datum, and the rest.

For an aggregated posterior with components n of weight w_n, the *mutual information* I(n; z) between the index of
a datum and its code is the average of log q(z|n) - log q_agg(z) over both. It lies between 0 (the codes are all
the same) and the entropy of the weights of the distinct components (every code names its datum).
"""

from __future__ import annotations

import torch

from vaebook._checks import check_int
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
    z, index = q_agg.sample_with_index((num_samples,), generator=generator)
    own = torch.distributions.Normal(q_agg.loc[index].double(), q_agg.scale[index].double())
    return estimate(own.log_prob(z.double()).sum(-1) - q_agg.log_prob(z.double()))


def mutual_information_quadrature(q_agg: DiagGaussianMixture, *, num_nodes: int = 4_001) -> float:
    r"""Integrate the mutual information between component index and code, for D = 1.

    $I(n;z) = \sum_n w_n\int\mathcal N(u\mid 0,1)\,\log\frac{q(z\mid n)}{q_\mathrm{agg}(z)}\,du$
    with $z=\mu_n+\sigma_n u$

    The trapezoid rule over u in [-12, 12] converges faster than any power of its step; what lies outside weighs
    less than 1e-32.

    Args:
        q_agg: the mixture, with D = 1.
        num_nodes: nodes for each component.

    Returns:
        I(n; z), in nats.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture, or num_nodes is not an int.
        ValueError: D is not 1, or num_nodes is below 3.

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
    check_int("num_nodes", num_nodes, minimum=3)
    u = torch.linspace(-12, 12, num_nodes, dtype=torch.float64)
    standard = torch.distributions.Normal(u.new_zeros(()), 1.0).log_prob(u)
    scale = q_agg.scale.double()
    z = q_agg.loc.double() + scale * u
    gain = standard - scale.log() - q_agg.log_prob(z[..., None])
    return float(q_agg.log_weight.double().softmax(0) @ torch.trapezoid(standard.exp() * gain, u, dim=-1))
