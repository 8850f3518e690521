"""Claims of chapter aggregated/priors: which distributions learned from codes come near q_agg, and which do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaebook.aggregate import aggregated_posterior
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import GaussianEncoder
from vaebook.priors import GaussianMixture, VampPrior, fit_gmm

CHAPTER = "aggregated/priors"
SAMPLES = 20_000


def odd_bound(num_pseudo_inputs: int, half_distance: float, scale: float) -> float:
    r"""Bound KL(q_agg | VampPrior) from below for two equal clusters and an odd number of pseudo-inputs.

    $\mathrm{KL}\ge\frac{c^2}2$ with $c^{-1}=K\,(e^{\lambda}+\frac12e^{4\lambda})$, $\lambda=\frac{\pi^2s^2}{8a^2}$

    Args:
        num_pseudo_inputs: K, odd.
        half_distance: a; the two clusters have their codes at -a and a.
        scale: s, the standard deviation of all codes, those of pseudo-inputs included.

    Returns:
        The bound, in nats; it holds for every choice of pseudo-inputs.

    Example:
        >>> round(odd_bound(3, half_distance=3.0, scale=0.5), 4)
        0.0215

    Source: this book, claim prior/vamp-limit.
    """
    small = (math.pi * scale / half_distance) ** 2 / 8
    return 0.5 / (num_pseudo_inputs * (math.exp(small) + 0.5 * math.exp(4 * small))) ** 2


@claim(
    "prior/vamp-limit",
    falsehood=r"More pseudo-inputs never hurt: with equal weights the best KL falls as $K$ grows.",
    kind="quadrature",
    source="Tomczak & Welling (2018) for the first sentence; Teicher (1963) on identifiability; the bound, this book",
    section=CHAPTER,
)
def vamp_limit(generator: torch.Generator) -> Measurement:
    """Integrate rate, information and mismatch for random pseudo-inputs; bound all of K = 3 and 5, and search them."""
    half, scale = 2 + float(torch.rand((), generator=generator)), 0.4 + 0.2 * float(torch.rand((), generator=generator))
    data = half * torch.tensor([[-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    encoder = _shifted(scale)
    q_agg = aggregated_posterior(encoder, data)
    z = torch.linspace(-half - 15, half + 15, 8_001, dtype=torch.float64)[:, None]
    information, lhs, rhs = _rate(q_agg, q_agg, z), [], []
    for num in (1, 2, 3, 5):
        u = 1.5 * half * torch.randn(num, 1, generator=generator, dtype=torch.float64)
        prior = VampPrior(encoder, u).mixture()
        rate, mismatch = _rate(q_agg, prior, z), _kl(q_agg, prior, z)
        lhs += [rate, information + mismatch, rate]  # an equality as two inequalities, and the inequality
        rhs += [information + mismatch, rate, information]
    at_data = VampPrior(encoder, data)
    off = (at_data.log_prob(z) - q_agg.log_prob(z)).abs().max().item()
    bounds = [odd_bound(num, half, scale) for num in (3, 5)]
    pairs = [_kl(q_agg, VampPrior(encoder, data[:num]).mixture(), z) for num in (2, 4)]
    found = _best_on_grid(q_agg, scale, z, half)
    return Measurement(
        sides=[("rate under pseudo-inputs", "information plus mismatch")],
        lhs=torch.tensor([*lhs, 0.0, *(-kl for kl in pairs), found], dtype=torch.float64),
        rhs=torch.tensor([*rhs, off, 0.0, 0.0, bounds[0]], dtype=torch.float64),
        falsehood_lhs=torch.tensor(pairs, dtype=torch.float64),  # best at K = 2 and 4: not above those at 3 and 5
        falsehood_rhs=torch.tensor(bounds, dtype=torch.float64),
        relation=">=",
        tolerance=1e-9,
        neighbours={
            "the mean KL is at least 1.01 I": Neighbour(_rate(q_agg, at_data.mixture(), z), 1.01 * information)
        },
    )


def _shifted(scale: float) -> GaussianEncoder:
    """Build an encoder whose code of u is N(u, s²)."""
    encoder = GaussianEncoder(1, 1, ()).double()
    with torch.no_grad():
        for layer, weight, bias in ((encoder.loc, 1.0, 0.0), (encoder.log_scale, 0.0, math.log(scale))):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    return encoder.requires_grad_(False)


def _kl(q: DiagGaussianMixture, p: DiagGaussianMixture | GaussianMixture, z: Tensor) -> float:
    """KL(q | p) for D = 1, by the trapezoid rule on the nodes z (S, 1)."""
    with torch.no_grad():
        log_q = q.log_prob(z)
        return torch.trapezoid(log_q.exp() * (log_q - p.log_prob(z)), z[:, 0]).item()


def _rate(q_agg: DiagGaussianMixture, p: DiagGaussianMixture, z: Tensor) -> float:
    """Integrate the mean over the components of their KL to p, each by itself."""
    each = [DiagGaussianMixture(q_agg.loc[[n]], q_agg.scale[[n]]) for n in range(q_agg.num_components)]
    return sum(_kl(q, p, z) for q in each) / len(each)


def _best_on_grid(q_agg: DiagGaussianMixture, scale: float, z: Tensor, half: float) -> float:
    """Search all triples of pseudo-inputs on a grid that holds both clusters: the lowest KL(q_agg | p)."""
    places = half * torch.linspace(-1.5, 1.5, 25, dtype=torch.float64)
    each = torch.distributions.Normal(places, scale).log_prob(z[::20])  # (S, 25)
    triples = torch.combinations(torch.arange(25), 3, with_replacement=True)
    log_p = each[:, triples].logsumexp(-1) - math.log(3)
    log_q = q_agg.log_prob(z[::20])[:, None]
    return torch.trapezoid(log_q.exp() * (log_q - log_p), z[::20, 0], dim=0).min().item()


@claim(
    "prior/expost",
    falsehood=r"Fitting to the means $\mu_n$ is the same.",
    kind="MC",
    source="Wald (1949), White (1982); for a Gaussian, agg/pythagoras",
    section=CHAPTER,
)
def expost(generator: torch.Generator) -> Measurement:
    """Compare the moments of one Gaussian in two dimensions, and log-likelihood and KL of two components in one."""
    seed = int(torch.randint(2**31, (), generator=generator))
    loc = torch.randn(30, 2, generator=generator, dtype=torch.float64) @ torch.tensor([[1.0, 0.5], [0.0, 0.8]]).double()
    scale = (-0.4 + 0.2 * torch.randn(30, 2, generator=generator, dtype=torch.float64)).exp()
    plane = DiagGaussianMixture(loc, scale)
    line = DiagGaussianMixture(0.6 * loc[:, :1] + 5 * (torch.arange(30) % 3 == 0)[:, None], scale[:, :1])
    one, one_error = _moments_of_fit(plane, seed)
    two, two_error, best = _two_components(line, seed)
    mean_fit = fit_gmm(line.loc, 2, min_variance=1e-3)
    of_means = fit_gmm(loc, 1)
    within_left = (of_means.scale_tril[0] @ of_means.scale_tril[0].mT).diagonal()
    lower = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    exact = torch.cat([plane.mean, plane.covariance[lower]])
    z = _nodes(line)
    slow, fast = _excesses(plane, seed)
    return Measurement(  # the last three: by how much M times the excess of a fit to M draws is beyond chance
        sides=[("moment of the fitted Gaussian", "moment of q_agg")] * 5
        + [("log-likelihood of the fit", "best of two components"), ("KL(q_agg ‖ fit)", "least of two components")]
        + [("excess of the fit beyond chance", "none")] * 3,
        lhs=torch.cat([one, two, slow]),
        rhs=torch.cat([exact, best, torch.zeros(3, dtype=torch.float64)]),
        falsehood_lhs=torch.cat([within_left, torch.tensor([_kl(line, mean_fit, z)]).double()]),
        falsehood_rhs=torch.cat([plane.variance, best[1:]]),
        stderr=torch.cat([one_error, two_error, torch.full((3,), 1e-6, dtype=torch.float64)]),
        falsehood_stderr=torch.cat([one_error[[2, 4]], two_error[1:]]),
        neighbours={"the excess falls like 1/M²": Neighbour(*fast, unit=1e-6)},
    )


def _moments_of_fit(q_agg: DiagGaussianMixture, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance (lower triangle) of one fitted Gaussian, with standard errors from other draws."""
    fit = fit_gmm(q_agg, 1, num_samples=SAMPLES, seed=seed)
    covariance, lower = fit.scale_tril[0] @ fit.scale_tril[0].mT, (torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    centred = q_agg.sample((SAMPLES,), generator=torch.Generator().manual_seed(seed + 1)) - q_agg.mean
    products = (centred[:, :, None] * centred[:, None])[:, lower[0], lower[1]]
    error = torch.cat([centred, products], 1).std(0) / math.sqrt(SAMPLES)
    return torch.cat([fit.loc[0], covariance[lower]]), error


def _excesses(q_agg: DiagGaussianMixture, seed: int) -> tuple[Tensor, tuple[Tensor, float]]:
    """M times the excess of Gaussians fitted to M draws, KL(N(m, S) | fit): about half a chi-squared of 5.

    Returned is what exceeds 20, a chance of one in a million; and the same for M² instead of M.
    """
    sizes, limit = (
        torch.tensor([500.0, 5_000.0, 50_000.0], dtype=torch.float64),
        MultivariateNormal(q_agg.mean, q_agg.covariance),
    )
    fits = [fit_gmm(q_agg, 1, num_samples=int(size), seed=seed) for size in sizes]
    excess = torch.stack([kl_divergence(limit, MultivariateNormal(f.loc[0], scale_tril=f.scale_tril[0])) for f in fits])
    return (sizes * excess - 20).clamp(min=0), ((sizes.square() * excess - 20).clamp(min=0), 0.0)


def _two_components(q_agg: DiagGaussianMixture, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-likelihood of a fit on its own draws and its integrated KL, their errors, and the best of both.

    The second error is the first: the KL's own is of smaller order.
    """
    draws = q_agg.sample((SAMPLES,), generator=torch.Generator().manual_seed(seed))
    fit, z = fit_gmm(draws, 2), _nodes(q_agg)
    values = fit.log_prob(draws)
    best = _kl(q_agg, _integrated_em(q_agg, z), z)
    log_q = q_agg.log_prob(z)
    highest = torch.trapezoid(log_q.exp() * log_q, z[:, 0]) - best
    error = (values.std() / math.sqrt(SAMPLES)).expand(2)
    return (
        torch.stack([values.mean(), torch.tensor(_kl(q_agg, fit, z)).double()]),
        error,
        torch.stack([highest, torch.tensor(best).double()]),
    )


def _nodes(q_agg: DiagGaussianMixture) -> Tensor:
    reach = 12 * q_agg.scale.max()
    return torch.linspace(*(f(q_agg.loc) + s * reach for f, s in ((torch.min, -1), (torch.max, 1))), 4_001)[
        :, None
    ].double()


def _integrated_em(q_agg: DiagGaussianMixture, z: Tensor) -> DiagGaussianMixture:
    """Run EM for two components on q_agg itself, expectations by quadrature: the limit of infinitely many draws."""
    mass = q_agg.log_prob(z).exp()
    mass, z = mass / mass.sum(), z[:, 0]
    weight = torch.full((2,), 0.5, dtype=torch.float64)
    loc = torch.stack([q_agg.loc.min(), q_agg.loc.max()])
    variance = q_agg.variance.expand(2)
    for _ in range(400):
        log_terms = weight.log() + torch.distributions.Normal(loc, variance.sqrt()).log_prob(z[:, None])
        share = mass[:, None] * log_terms.softmax(1)
        weight = share.sum(0)
        loc = (share * z[:, None]).sum(0) / weight
        variance = (share * (z[:, None] - loc).square()).sum(0) / weight
    return DiagGaussianMixture(loc[:, None], variance.sqrt()[:, None], weight.log())
