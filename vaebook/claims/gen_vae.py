"""Claims of chapter mixture/vae: how far the ELBO is from log p(x), and what a diagonal covariance costs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaebook.bounds import quadrature_log_prob
from vaebook.claims.registry import Measurement, claim
from vaebook.inference import elbo_quadrature, inference_gap
from vaebook.priors import StandardNormal

GRID = torch.linspace(-8, 8, 4_001, dtype=torch.float64)[:, None]
"""Codes over which the divergences are integrated; the posteriors here have scales of 0.1 to 1."""


def _decoder(z: Tensor) -> Independent:
    """Decode a scalar code to a point on a bent curve in the plane, near which the posterior is not Gaussian."""
    return Independent(Normal(torch.cat([z + 0.5 * torch.sin(2 * z), 0.5 * z.square()], -1), 0.4), 1)


def _data(codes: list[float], generator: torch.Generator) -> Tensor:
    """Decode codes that are moved a little at random, without noise: so the posteriors stay near them."""
    moved = torch.tensor(codes) + 0.2 * torch.rand(len(codes), generator=generator, dtype=torch.float64) - 0.1
    return _decoder(moved[:, None]).mean


def _log_posterior(x: Tensor) -> Tensor:
    """Bayes' rule on the grid, one column a datum."""
    joint = _decoder(GRID[:, None]).log_prob(x) + StandardNormal(1).log_prob(GRID)[:, None]
    return joint - torch.trapezoid(joint.exp(), GRID, dim=0).log()


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    return torch.trapezoid(log_q.exp() * (log_q - log_p), GRID, dim=0)


@claim(
    "gen/elbo-identity",
    falsehood=r"The gap is $\mathrm{KL}(p(z\mid x)\,\|\,q(z\mid x))$.",
    kind="quadrature",
    source="Jordan, Ghahramani, Jaakkola & Saul (1999); Kingma & Welling (2014), equation 1",
    section="mixture/vae",
)
def elbo_identity(generator: torch.Generator) -> Measurement:
    """Integrate all three for a bent decoder, five data, and Gaussians off-centre and too wide or too narrow.

    log p and the ELBO come from the package, the divergences from Bayes' rule on a grid.
    """
    x = _data([-1.6, -0.8, 0.0, 0.8, 1.6], generator)
    log_posterior = _log_posterior(x)
    mean = torch.trapezoid(log_posterior.exp() * GRID, GRID, dim=0)
    spread = torch.trapezoid(log_posterior.exp() * (GRID - mean).square(), GRID, dim=0).sqrt()
    loc = mean + 0.3 * spread * torch.randn(5, generator=generator, dtype=torch.float64)
    scale = spread * torch.tensor([2.0, 0.5, 2.0, 0.5, 2.0])
    log_q = Normal(loc, scale).log_prob(GRID)
    log_p = quadrature_log_prob(_decoder, StandardNormal(1), x)
    bound = elbo_quadrature(_decoder, StandardNormal(1), x, loc[:, None], scale[:, None])
    return Measurement(
        lhs=log_p - bound,
        rhs=_kl(log_q, log_posterior),
        falsehood_rhs=_kl(log_posterior, log_q),
        tolerance=1e-8,
    )


@claim(
    "gen/inference-gap",
    falsehood=r"A mean and scales of its own for every datum close the gap.",
    kind="quadrature",
    source="Cremer, Li & Duvenaud (2018)",
    section="mixture/vae",
)
def gap_in_two(generator: torch.Generator) -> Measurement:
    """Split the gap by maximising the ELBO; compare with scipy's minimum of the divergence itself, on a grid."""
    x = _data([-1.8, -0.9, 0.6, 1.5], generator)
    encode = lambda x: Independent(Normal(0.8 * x[:, :1], 0.3), 1)  # noqa: E731
    vae = SimpleNamespace(encoder=encode, decoder=_decoder, prior=StandardNormal(1))
    gap, log_posterior = inference_gap(vae, x, tolerance=1e-10, num_nodes=60), _log_posterior(x)
    least = torch.stack([_least_kl(column[:, None]) for column in log_posterior.mT])
    q = encode(x).base_dist
    total = _kl(Normal(q.loc[:, 0], q.scale[:, 0]).log_prob(GRID), log_posterior)
    below = torch.cat([gap.approximation, gap.amortisation]).clamp(max=0)
    return Measurement(
        lhs=torch.cat([gap.approximation, gap.approximation + gap.amortisation, below]),
        rhs=torch.cat([least, total, torch.zeros(8)]),
        falsehood_lhs=gap.approximation,
        falsehood_rhs=0.0,
        tolerance=1e-8,
    )


def _least_kl(log_posterior: Tensor) -> Tensor:
    """Minimise KL(N(loc, scale²) ‖ posterior) from four starts, without derivatives."""

    def kl(parameters: list[float]) -> float:
        loc, log_scale = torch.as_tensor(parameters, dtype=torch.float64)
        return float(_kl(Normal(loc, log_scale.exp()).log_prob(GRID), log_posterior))

    mode = float(GRID[log_posterior.argmax()])
    starts = [(mode, -1.0), (mode, -2.0), (mode - 0.3, -1.0), (mode + 0.3, -1.0)]
    options = {"xatol": 1e-7, "fatol": 1e-13}
    return torch.tensor(min(minimize(kl, s, method="Nelder-Mead", options=options).fun for s in starts)).double()


@claim(
    "gen/diagonal-cost",
    falsehood=r"It has the marginal variances $(P^{-1})_{jj}$.",
    kind="exact",
    source="Bishop (2006), section 10.1.2, for the variances; the cost follows",
    section="mixture/vae",
)
def diagonal_cost(generator: torch.Generator) -> Measurement:
    """Differentiate torch's divergence, which is convex in mean and variances, at the formula; and at the marginals."""
    posterior = _correlated_gaussian(generator)
    mean, precision = posterior.mean, posterior.precision_matrix

    def kl(loc: Tensor, log_variance: Tensor) -> Tensor:
        return kl_divergence(MultivariateNormal(loc, torch.diag(log_variance.exp())), posterior)

    best, marginal = (mean, -precision.diagonal().log()), (mean, posterior.variance.log())
    cost = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    none, slopes = torch.zeros(3, dtype=torch.float64), _slopes(kl, best)
    return Measurement(
        lhs=torch.cat([*slopes, kl(*best)[None]]),
        rhs=torch.cat([none, none, cost[None]]),
        falsehood_lhs=torch.cat([_slopes(kl, marginal)[1], kl(*marginal)[None]]),
        falsehood_rhs=torch.cat([none, cost[None]]),
        tolerance=1e-10,
    )


def _correlated_gaussian(generator: torch.Generator) -> MultivariateNormal:
    """Draw a Gaussian in three dimensions of which the precision has off-diagonal correlations of 0.3 to 0.8."""
    share, size, sign = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    root = (0.3 + 0.5 * share[0]).sqrt() * (2 * (sign > 0.5) - 1)
    correlation = torch.outer(root, root)
    correlation = correlation - torch.diag(correlation.diagonal()) + torch.eye(3)
    scale = 0.5 + 2 * size
    mean = torch.randn(3, generator=generator, dtype=torch.float64)
    return MultivariateNormal(mean, precision_matrix=scale[:, None] * correlation * scale)


def _slopes(function: Callable[..., Tensor], at: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.functional.jacobian(function, at)
