r"""What the KL term of the ELBO consists of: how much the code tells about the datum, and the rest.

    R = mean KL(q(z|n) | p) = I(n; z) + KL(q_agg | p),      KL(q_agg | p) = TC(q_agg) + sum_j KL(q_j | p_j).

For an aggregated posterior with components n of weight w_n, the *mutual information* I(n; z) between the index of
a datum and its code is the average of log q(z|n) - log q_agg(z) over both. It lies between 0 (the codes are all
the same) and the entropy of the weights of the distinct components (every code names its datum). The second equation
needs a prior that factorises; TC is the total correlation, KL(q_agg | prod_j q_j). Bounds that need no samples are in
`vaebook.certificates`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from vaebook._checks import check_all, check_int, check_number
from vaebook.estimators import Estimate, estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal


class KLParts(NamedTuple):
    """The KL term and its parts, in nats; an exact value has standard error 0 and 0 samples. See `decompose_kl`."""

    rate: Estimate  # R, what training pays
    mutual_information: Estimate  # I(n; z)
    marginal_kl: Estimate  # KL(q_agg | p), the mismatch
    total_correlation: Estimate  # the part of it that lies between coordinates
    dimension_wise_kl: Estimate | None  # the part that single coordinates show; None if the prior may not factorise


def decompose_kl(
    q_agg: DiagGaussianMixture,
    prior: Any,
    *,
    num_samples: int = 10_000,
    generator: torch.Generator | None = None,
) -> KLParts:
    r"""Take the KL term of the ELBO apart.

    $R = I(n;z) + \mathrm{KL}(q_\mathrm{agg}\,\|\,p)$ and
    $\mathrm{KL}(q_\mathrm{agg}\,\|\,p) = \mathrm{TC}(q_\mathrm{agg}) + \sum_j\mathrm{KL}(q_j\,\|\,p_j)$

    All parts are averages over the same draws, but the rate, which is exact where the prior is a diagonal Gaussian.
    So the estimates of I and of the mismatch sum to an exact rate only within their errors.

    Args:
        q_agg: the mixture, one component a datum.
        prior: p(z): an object with `log_prob(z)` for z (S, D). A `StandardNormal`, a mixture of one component and an
            `Independent` with D one-dimensional factors are known to factorise.
        num_samples: number S of draws of (n, z).
        generator: the source of randomness; None means torch's global one.

    Returns:
        The parts, each an `Estimate`, unbiased; the last is None where the prior is not known to factorise.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture, prior has no log_prob, num_samples is not an int.
        ValueError: the prior has another dimension or is 0 at a draw; num_samples is less than 2.

    Example:
        >>> import torch
        >>> far = DiagGaussianMixture(torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1))
        >>> parts = decompose_kl(far, StandardNormal(1), num_samples=100, generator=torch.Generator().manual_seed(0))
        >>> parts.rate, round(parts.mutual_information.value, 4)  # 9²/2, log 2
        (Estimate(value=40.5, stderr=0.0, num_samples=0), 0.6931)

    Source: Hoffman & Johnson, ELBO surgery (2016), equation 6; Chen et al., Isolating sources of disentanglement
    (2018), equation 2.
    """
    z, log_own, log_agg = _draw(q_agg, num_samples, generator)
    log_product = q_agg.double().log_prob_marginals(z).sum(-1)
    log_prior, factors = _log_prior(prior, z), _factors(prior, z)
    exact = isinstance(factors, Normal)
    return KLParts(
        rate=_exact_rate(q_agg.double(), factors) if exact else estimate(log_own - log_prior),
        mutual_information=estimate(log_own - log_agg),
        marginal_kl=estimate(log_agg - log_prior),
        total_correlation=estimate(log_agg - log_product),
        dimension_wise_kl=None if factors is None else estimate(log_product - log_prior),
    )


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
    _, log_own, log_agg = _draw(q_agg, num_samples, generator)
    return estimate(log_own - log_agg)


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
            about = DiagGaussianMixture(
                loc - loc[n], scale, q_agg.log_weight
            )  # its own component at 0: u keeps its digits
            gain = standard - scale[n].log() - about.log_prob((scale[n] * u)[:, None])
            value += float(weight[n] * torch.trapezoid(standard.exp() * gain, u))
        if abs(value - previous) <= tolerance:
            return value
        previous, num_nodes = value, 3 * (num_nodes - 1) // 2 + 1
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")


def _draw(q_agg: object, num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw (n, z); return z (S, D) and log q(z|n), log q_agg(z), each (S)."""
    if not isinstance(q_agg, DiagGaussianMixture):
        raise TypeError(f"q_agg: expected a DiagGaussianMixture, got {type(q_agg).__name__}")
    check_int("num_samples", num_samples, minimum=2)
    # In float64 from the start: a draw rounded to float16 would no longer be a draw of the mixture.
    precise = q_agg.double()
    z, index = precise.sample_with_index((num_samples,), generator=generator)
    own = Normal(precise.loc[index], precise.scale[index])
    return z, own.log_prob(z).sum(-1), precise.log_prob(z)


def _log_prior(prior: Any, z: Tensor) -> Tensor:
    if not hasattr(prior, "log_prob"):
        raise TypeError(f"prior: expected an object with log_prob(z), got {type(prior).__name__}")
    dim = (*getattr(prior, "event_shape", ()), getattr(prior, "latent_dim", z.shape[1]))[0]
    if dim != z.shape[1]:
        raise ValueError(f"prior: expected dimension {z.shape[1]}, got {dim}")
    value = prior.log_prob(z).detach().double()
    if value.shape != z.shape[:1]:
        raise ValueError(f"prior: expected log_prob of shape {tuple(z.shape[:1])}, got {tuple(value.shape)}")
    return check_all("prior.log_prob(z)", value, value.isfinite(), "finite values at the draws of q_agg")


def _factors(prior: Any, z: Tensor) -> torch.distributions.Distribution | None:
    """Return the D one-dimensional factors of a prior as one distribution of batch shape (D), or None."""
    if isinstance(prior, StandardNormal):
        return Normal(torch.zeros_like(z[0]), torch.ones_like(z[0]))
    if isinstance(prior, DiagGaussianMixture) and prior.num_components == 1:
        return Normal(prior.loc[0].double(), prior.scale[0].double())
    if isinstance(prior, Independent) and prior.base_dist.batch_shape == z.shape[1:]:
        return prior.base_dist
    return None


def _exact_rate(q_agg: DiagGaussianMixture, factors: Normal) -> Estimate:
    each = kl_divergence(Normal(q_agg.loc, q_agg.scale), factors).sum(-1)
    return Estimate((q_agg.log_weight.exp() @ each).item(), 0.0, 0)
