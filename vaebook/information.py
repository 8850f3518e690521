r"""What the KL term of the ELBO consists of: how much the code tells about the datum, and the rest.

    R = mean KL(q(z|n) | p) = I(n; z) + KL(q_agg | p),      KL(q_agg | p) = TC(q_agg) + sum_j KL(q_j | p_j).

For an aggregated posterior with components n of weight w_n, the *mutual information* I(n; z) between the index of
a datum and its code is the average of log q(z|n) - log q_agg(z) over both. It lies between 0 (the codes are all
the same) and the entropy of the weights of the distinct components (every code identifies its datum). The second
equation needs a prior that factorises; TC is the total correlation, KL(q_agg | prod_j q_j).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook._checks import check_all, check_int, check_number, check_type, excess_mass
from vaebook.adapters import Prior, adapt_prior
from vaebook.distributed import Mixture
from vaebook.estimators import Estimate, estimate
from vaebook.evaluation import evaluation_mode
from vaebook.integrals import refine
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import gaussian_kl, log_density, one_gaussian, optional
from vaebook.priors import StandardNormal


class KLParts(NamedTuple):
    """The KL term and its parts, in nats; an exact value has standard error 0 and 0 samples. See `decompose_kl`."""

    rate: Estimate  # R, what training pays
    mutual_information: Estimate  # I(n; z)
    marginal_kl: Estimate  # KL(q_agg | p), the mismatch
    total_correlation: Estimate | None  # the part of it that lies between coordinates; None if not asked for
    dimension_wise_kl: Estimate | None  # the part that single coordinates show; None if the prior may not factorise
    how: Literal["sampled", "combined", "bounded"]  # whether the exact rate was used, and a bound had to be put in


@torch.no_grad()
def decompose_kl(
    q_agg: Mixture,
    prior: Any,
    *,
    num_samples: int = 10_000,
    marginals: bool = False,
    generator: torch.Generator | None = None,
) -> KLParts:
    r"""Take the KL term of the ELBO apart.

    $R = I(n;z) + \mathrm{KL}(q_\mathrm{agg}\,\|\,p)$ and
    $\mathrm{KL}(q_\mathrm{agg}\,\|\,p) = \mathrm{TC}(q_\mathrm{agg}) + \sum_j\mathrm{KL}(q_j\,\|\,p_j)$

    All parts are averages over the same S draws. Where the prior is one Gaussian with independent dimensions, R is
    exact, and there are two unbiased estimates of the mismatch: the mean b of log q_agg - log p, and R - a with a the
    mean of log q(z|n) - log q_agg. The second is better where codes identify their data, the first where codes follow
    the prior. What is returned is their weighted mean of least variance, the weights for each half of the draws taken
    from the other half, so that it is unbiased too; information is what is left of R. Where the mean contradicts what
    is certain, max(0, R - H) <= KL(q_agg | p) <= R with H <= log N the entropy of the weights, the bound takes its
    place, and the standard error is still that of the mean.

    Args:
        q_agg: the mixture, one component a datum.
        prior: p(z), all that `vaebook.adapters.adapt` takes as one.
        num_samples: number S of draws of (n, z).
        marginals: True also splits the mismatch, which takes time where D is large.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The parts, each an `Estimate`, in nats; and how they were made: "sampled", with a sampled rate; "combined", as
        above; "bounded", if a bound took the estimate's place. The last two are None unless marginals is True, and the
        last where the prior is not known to factorise, as a torch Independent is.

    Raises:
        TypeError: q_agg is not a mixture, prior lacks a method, num_samples is not an int.
        ValueError: the prior has another dimension or is 0 at a draw; num_samples is less than 2.

    Warns:
        UserWarning: the mismatch is negative, beyond a chance of one in 100,000: the prior has more mass than one.

    Example:
        >>> import torch
        >>> far = DiagGaussianMixture(torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1))
        >>> parts = decompose_kl(far, StandardNormal(1), num_samples=100, generator=torch.Generator().manual_seed(0))
        >>> parts.rate, round(parts.mutual_information.value, 4)  # 9²/2, log 2
        (Estimate(value=40.5, stderr=0.0, num_samples=0), 0.6931)

    Source: Hoffman & Johnson, ELBO surgery (2016), equation 6; Chen et al., Isolating sources of disentanglement
    (2018), equation 2; the weights: Owen, Monte Carlo theory, methods and examples (2013), section 8.9.
    """
    z, log_own, log_agg = _draw(q_agg, num_samples, generator)
    prior = adapt_prior(prior, z.shape[1])
    with evaluation_mode(prior):
        log_prior, rates = log_density(prior, z).double(), _rates(q_agg, prior)
    check_all("prior.log_prob(z)", log_prior, log_prior.isfinite(), "finite values at the draws of q_agg")
    price, told = log_own - log_prior, log_own - log_agg
    check_all("q_agg", price, price.abs() < 1e150, "rates below 1e150 nats")
    between = log_agg - q_agg.double().log_prob_marginals(z).sum(-1) if marginals else torch.zeros_like(told)
    if rates is None:
        parts, how = (estimate(price), estimate(told), estimate(price - told)), "sampled"
        if wrong := excess_mass(parts[2].value, num_samples):
            warnings.warn(wrong, stacklevel=3)
    else:
        rate, rounding = float(rates.sum()), [2**-52 * float(part.abs().max()) for part in (log_own, price)]
        told, between = (_with_control(part, price - rate) for part in (told, between))
        parts, how = _bounded(rate, told, _entropy(q_agg), rounding)
        price = rate
    total, alone = (estimate(between), estimate(price - told - between)) if marginals else (None, None)
    return KLParts(*parts, total, alone if rates is not None or optional(prior, "factorises") else None, how)


def kl_per_dimension(q_agg: Mixture, prior: Any = None) -> Tensor:
    r"""Compute the rate of each latent dimension, in closed form: 0 where every Gaussian is the prior.

    $R_j = \sum_n w_n\,\mathrm{KL}(\mathcal N(\mu_{nj},\sigma_{nj}^2)\,\|\,p_j)$, which sum to R

    Args:
        q_agg: the mixture, one component a datum.
        prior: one Gaussian with independent dimensions; None is N(0, I).

    Returns:
        The rates, (D), nats, float64.

    Raises:
        TypeError: q_agg is not a mixture, or prior lacks a method.
        ValueError: prior is of another kind or dimension.

    Example:
        >>> kl_per_dimension(DiagGaussianMixture(torch.tensor([[3.0, 0.0]]), torch.ones(1, 2)))  # 3²/2 and 0
        tensor([4.5000, 0.0000], dtype=torch.float64)

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), appendix B.
    """
    dim = check_type("q_agg", q_agg, Mixture).latent_dim
    prior = StandardNormal(dim) if prior is None else adapt_prior(prior, dim)
    if (rates := _rates(q_agg, prior)) is None:
        raise ValueError(f"prior: expected one Gaussian with independent dimensions, got {type(prior).__name__}")
    return rates


def active_units(q_agg: Mixture, threshold: float = 0.01) -> Tensor:
    r"""Tell which latent dimensions are in use: those whose posterior means differ between data.

    $\mathrm{Var}_n\,\mu_{nj} > \text{threshold}$

    Args:
        q_agg: the mixture, one component a datum.
        threshold: a variance, in squared units of z; 0.01 is meant for codes under N(0, I).

    Returns:
        For each dimension whether it is active, (D), bool.

    Raises:
        TypeError: q_agg is not a mixture, or threshold is not a number.
        ValueError: threshold is negative.

    Example:
        >>> active_units(DiagGaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2)))
        tensor([ True, False])

    Source: Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), section 5.2.
    """
    mean = check_type("q_agg", q_agg, Mixture).average(lambda log_weight, loc, scale: loc)
    variance = q_agg.average(lambda log_weight, loc, scale: (loc - mean.to(loc)).square())
    return variance > check_number("threshold", threshold, minimum=0)


def mutual_information(
    q_agg: Mixture, num_samples: int = 10_000, *, generator: torch.Generator | None = None
) -> Estimate:
    r"""Estimate the mutual information between component index and code, by sampling from both.

    $I(n;z) = \sum_n w_n\,\mathrm{KL}(q(z\mid n)\,\|\,q_\mathrm{agg})
    = \mathbb E[\log q(z\mid n) - \log q_\mathrm{agg}(z)]$

    Args:
        q_agg: the mixture; its N components play the data.
        num_samples: number S of draws of (n, z).
        generator: the source of randomness; None means torch's global one.

    Returns:
        The estimate, in nats: the density of q_agg is exact, only the average is sampled, so that it is unbiased. But
        where it would exceed the entropy of the weights, which I never does, that takes its place.

    Raises:
        TypeError: q_agg is not a mixture, num_samples is not an int.
        ValueError: num_samples is less than 2.

    Example:
        >>> import torch
        >>> far = DiagGaussianMixture(torch.tensor([[0.0], [100.0]]), torch.ones(2, 1))
        >>> round(mutual_information(far, 100, generator=torch.Generator().manual_seed(0)).value, 4)  # log 2
        0.6931

    Source: Hoffman & Johnson, ELBO surgery (2016), equation 6, where it is the index-code mutual information.
    """
    _, log_own, log_agg = _draw(q_agg, num_samples, generator)
    found = estimate(log_own - log_agg)
    return found._replace(value=min(found.value, _entropy(q_agg)))


def mutual_information_quadrature(
    q_agg: DiagGaussianMixture, *, tolerance: float = 1e-10, max_nodes: int = 1_000_000
) -> float:
    r"""Integrate the mutual information between component index and code, for D = 1.

    $I(n;z) = \sum_n w_n\int\mathcal N(u\mid 0,1)\,\log\frac{q(z\mid n)}{q_\mathrm{agg}(z)}\,du$
    with $z=\mu_n+\sigma_n u$

    The trapezoid rule over u in [-12, 12] converges faster than any power of its step; what lies outside weighs
    less than 1e-32. The step shrinks by a third until the value changes by no more than the tolerance.

    Args:
        q_agg: the mixture, with D = 1. Time grows with N², memory does not.
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
    if check_type("q_agg", q_agg, DiagGaussianMixture).event_shape[0] != 1:
        raise ValueError(f"q_agg: expected dimension 1, got {q_agg.event_shape[0]}; use mutual_information")
    tolerance = check_number("tolerance", tolerance, above=0)
    max_nodes = check_int("max_nodes", max_nodes, minimum=3)
    q_agg = q_agg.double()
    loc, scale, weight = q_agg.loc, q_agg.scale, q_agg.log_weight.exp()

    def rule(steps: int) -> Tensor:
        u = torch.linspace(-12, 12, steps + 1, dtype=torch.float64, device=loc.device)
        standard, value = Normal(u.new_zeros(()), 1.0).log_prob(u), 0.0
        for n in range(len(loc)):  # one component at a time: all at once would need N × nodes
            # Its own component is at 0, so that u keeps its digits.
            about = DiagGaussianMixture(loc - loc[n], scale, q_agg.log_weight)
            gain = standard - scale[n].log() - about.log_prob((scale[n] * u)[:, None])
            value += float(weight[n] * torch.trapezoid(standard.exp() * gain, u))
        return torch.tensor(value, dtype=torch.float64)

    return float(refine(rule, 2000, tolerance=tolerance, max_nodes=max_nodes))


def _draw(q_agg: Any, num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw (n, z); return z (S, D) and log q(z|n), log q_agg(z), each (S)."""
    # In float64 from the start: a draw rounded to float16 would no longer be a draw of the mixture.
    precise = check_type("q_agg", q_agg, Mixture).double()
    num_samples = check_int("num_samples", num_samples, minimum=2, each=precise.latent_dim)
    z, index = precise.sample_with_index((num_samples,), generator=generator)
    return z, precise.log_prob_given(z, index), precise.log_prob(z)


def _entropy(q_agg: Any) -> float:
    """Entropy of the weights, which bounds I(n; z)."""
    entropy = q_agg.average(lambda log_weight, loc, scale: -log_weight.nan_to_num(neginf=0.0))
    return min(float(entropy), math.log(q_agg.num_components))


def _rates(q_agg: Any, prior: Prior) -> Tensor | None:
    """Return the exact rate of each dimension, (D), where the prior is one Gaussian with independent ones."""
    found = one_gaussian(prior)
    return found and q_agg.average(lambda _, loc, scale: gaussian_kl(loc, scale, *(part.to(loc) for part in found)))


def _bounded(rate: float, told: Tensor, entropy: float, rounding: list[float]) -> tuple[tuple[Estimate, ...], str]:
    """Return rate, information and mismatch within their bounds, from draws of the information; and how it was done.

    Information has an error of its own: where rates are huge, their rounding is that of the mismatch alone.
    """
    found = estimate(told)
    value, errors = min(max(found.value, 0.0), entropy, rate), [max(found.stderr, part) for part in rounding]
    parts = map(Estimate, (value, rate - value), errors, [found.num_samples] * 2)
    return (Estimate(rate, 0.0, 0), *parts), "combined" if value == found.value else "bounded"


def _with_control(draws: Tensor, control: Tensor) -> Tensor:
    """Subtract the multiple, from 0 to 1, of a control of mean 0 that leaves least variance; by halves, see above.

    Where the control hardly varies, nothing is subtracted: information is bounded, what the control holds is not.
    """
    rest, halves = draws.clone(), (slice(0, None, 2), slice(1, None, 2))
    rounding = 8 * torch.finfo(torch.float64).eps * float(control.abs().max())
    for own, other in (halves, halves[::-1]):
        centred = control[other] - control[other].mean()
        allowed = centred @ centred + len(centred) * rounding**2
        share = (centred @ (draws[other] - draws[other].mean()) / allowed).nan_to_num(0.0).clamp(0, 1)
        rest[own] -= share * control[own]
    return rest
