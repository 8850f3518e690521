"""Claims of chapter mixture/vae: how far the ELBO is from log p(x), and what a diagonal covariance costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from vaebook.bounds import quadrature_log_prob
from vaebook.claims.registry import Measurement, Neighbour, claim
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
    # The form that people train: expected log-likelihood less the divergence from the prior.
    expected = torch.trapezoid(log_q.exp() * _decoder(GRID[:, None]).log_prob(x), GRID, dim=0)
    trained = expected - _kl(log_q, StandardNormal(1).log_prob(GRID)[:, None])
    return Measurement(
        sides=[("gap of the ELBO", "KL(q ‖ posterior) on a grid")],
        lhs=torch.stack([log_p - bound, log_p - trained]),
        rhs=_kl(log_q, log_posterior).expand(2, -1),
        falsehood_lhs=log_p - bound,
        falsehood_rhs=_kl(log_posterior, log_q),
        tolerance=1e-8,
        neighbours={
            "the form that is trained, with 0.99 of its KL": Neighbour(
                log_p - 0.99 * trained - 0.01 * expected, _kl(log_q, log_posterior)
            ),
            "no gap at the posterior's mean and variance": Neighbour(
                _kl(Normal(mean, spread).log_prob(GRID), log_posterior), 0.0
            ),
        },
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
    found, cost = _linear_gap(generator)
    return Measurement(
        sides=[("approximation gap", "least KL(Gaussian ‖ posterior)")],
        lhs=torch.cat([gap.approximation, gap.approximation + gap.amortisation, below, found]),
        rhs=torch.cat([least, total, torch.zeros(8), cost]),
        falsehood_lhs=gap.approximation,
        falsehood_rhs=0.0,
        tolerance=1e-8,
        neighbours={"a Gaussian posterior leaves no approximation gap": Neighbour(found, 0.0)},
    )


def _linear_gap(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Approximation gap in two dimensions for a linear decoder, whose posterior is a Gaussian with correlations."""
    weight = torch.tensor([[1.0, 0.6], [0.2, 0.8]]).double() + 0.2 * torch.rand(2, 2, generator=generator).double()
    model = SimpleNamespace(
        encoder=lambda x: Independent(Normal(0.5 * x, 0.6), 1),
        decoder=lambda z: Independent(Normal(z @ weight.mT, 0.7), 1),
        prior=StandardNormal(2),
    )
    precision = torch.eye(2).double() + weight.mT @ weight / 0.7**2
    cost = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    gap = inference_gap(model, torch.tensor([[0.4, -0.7]], dtype=torch.float64), tolerance=1e-9)
    return gap.approximation, cost[None]


def _least_kl(log_posterior: Tensor) -> Tensor:
    """Minimise KL(N(loc, scale²) ‖ posterior) from four starts, without derivatives."""

    def kl(parameters: list[float]) -> float:
        loc, log_scale = torch.as_tensor(parameters, dtype=torch.float64)
        return float(_kl(Normal(loc, log_scale.exp()).log_prob(GRID), log_posterior))

    mode = float(GRID[log_posterior.argmax()])
    starts = [(mode, -1.0), (mode, -2.0), (mode - 0.3, -1.0), (mode + 0.3, -1.0)]
    options = {"xatol": 1e-7, "fatol": 1e-13}
    return torch.tensor(
        min(scipy.optimize.minimize(kl, s, method="Nelder-Mead", options=options).fun for s in starts)
    ).double()


@claim(
    "gen/diagonal-cost",
    falsehood=r"It has the marginal variances $(\Lambda^{-1})_{jj}$.",
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
        sides=[("KL at the formula", "cost from the determinants")],
        lhs=torch.cat([kl(*best)[None], *slopes]),
        rhs=torch.cat([cost[None], none, none]),
        falsehood_lhs=torch.cat([_slopes(kl, marginal)[1], kl(*marginal)[None]]),
        falsehood_rhs=torch.cat([none, cost[None]]),
        tolerance=1e-10,
        neighbours={
            "variances larger by a hundredth": Neighbour(_slopes(kl, (mean, best[1] + math.log(1.01)))[1], none),
            "a hundredth less of the cost": Neighbour(kl(*best), 0.99 * cost),
        },
    )


@claim(
    "gen/diagonal-optimum",
    falsehood="It is narrower than the marginals, whatever the posterior.",
    kind="quadrature",
    source="Opper & Archambeau (2009)",
    section="mixture/vae",
)
def diagonal_optimum(generator: torch.Generator) -> Measurement:
    """Climb to the best Gaussian for three bent posteriors in the plane; then one with a spike at its centre."""
    data = torch.tensor([[0.8, 0.3], [-0.5, 1.0], [0.2, -0.9]], dtype=torch.float64)
    data = data + 0.1 * torch.randn(3, 2, generator=generator, dtype=torch.float64)

    def log_joint(z: Tensor) -> Tensor:
        bent = torch.stack([z[..., 0] + 0.4 * torch.sin(z[..., 1]), z[..., 1] + 0.3 * z[..., 0].square()], -1)
        return -0.5 * z.square().sum(-1) - 2.0 * (bent - data).square().sum(-1)

    loc, variance = _best_diagonal(log_joint, torch.zeros_like(data))
    slope, curvature = _expected_derivatives(log_joint, loc, variance)
    at_mean = _expected_derivatives(log_joint, loc, 1e-12 * variance)[1]
    line = torch.linspace(-6, 6, 301, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    mean = log_joint(z[:, None]).softmax(0).mT @ z
    wide, marginal = _spike()
    none, one = torch.zeros_like(slope), torch.ones_like(slope)
    return Measurement(
        sides=[("best variance times mean curvature", "what stationarity asks")],
        lhs=torch.stack([-curvature * variance, slope]),
        rhs=torch.stack([one, none]),
        falsehood_lhs=(wide - marginal).clamp(min=0),
        falsehood_rhs=0.0,
        tolerance=1e-6,
        neighbours={
            "the curvature at the mean, not its expectation": Neighbour(-at_mean * variance, one),
            "half of the curvature": Neighbour(-0.5 * curvature * variance, one),
            "its mean is the posterior's": Neighbour(loc, mean),
        },
    )


def _expectation(function: Callable[[Tensor], Tensor], loc: Tensor, variance: Tensor) -> Tensor:
    """Average a function of z (nodes, B, 2) over diagonal Gaussians, by Gauss and Hermite's rule."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(24))
    u, weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1) / weights.sum() ** 2
    return torch.einsum("n,n...->...", weight, function(loc + variance.sqrt() * u[:, None]))


def _best_diagonal(log_joint: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise the ELBO over means and variances, for each row."""
    move = torch.zeros(2, *start.shape, dtype=torch.float64, requires_grad=True)
    settings = {"tolerance_grad": 1e-12, "tolerance_change": 1e-16, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([move], max_iter=500, history_size=50, **settings)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -_expectation(log_joint, start + move[0], move[1].exp()).sum() - 0.5 * move[1].sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (start + move[0]).detach(), move[1].detach().exp()


def _expected_derivatives(
    log_joint: Callable[[Tensor], Tensor], loc: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Averages of the first and of the second derivatives in each coordinate."""

    def both(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        (first,) = torch.autograd.grad(log_joint(z).sum(), z, create_graph=True)
        second = [torch.autograd.grad(first[..., j].sum(), z, retain_graph=True)[0][..., j] for j in range(2)]
        return torch.stack([first, torch.stack(second, -1)], -1).detach()

    return _expectation(both, loc, variance).unbind(-1)


def _spike() -> tuple[Tensor, Tensor]:
    """Variance of the best Gaussian, and of the marginals, for 0.6 N(0, [[1, .3], [.3, 1]]) + 0.4 N(0, 0.02² I)."""
    line = 0.02 * torch.sinh(torch.linspace(-6.5, 6.5, 601, dtype=torch.float64))
    z = torch.cartesian_prod(line, line)
    broad = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0.3], [0.3, 1.0]]).double())
    spike = Normal(0.0, 0.02).log_prob(z).sum(1) + math.log(0.4)
    log_p = torch.logaddexp(broad.log_prob(z) + math.log(0.6), spike).reshape(601, 601)

    def kl(log_variance: float) -> float:
        log_q = Normal(0.0, math.exp(0.5 * log_variance)).log_prob(z).sum(1).reshape(601, 601)
        return float(torch.trapezoid(torch.trapezoid(log_q.exp() * (log_q - log_p), line), line))

    best = math.exp(scipy.optimize.minimize_scalar(kl, bounds=(-2.0, 1.0), method="bounded").x)
    return torch.tensor(best).double(), torch.tensor(0.6 + 0.4 * 0.02**2).double()


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
