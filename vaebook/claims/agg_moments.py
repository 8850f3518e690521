"""Claims of chapter aggregated/holes on what moments at convergence and a kernel distance show of a mismatch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import elbo
from vaebook.certificates import mmd_squared
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, GaussianDecoder, GaussianEncoder
from vaebook.priors import StandardNormal

CHAPTER = "aggregated/holes"


def _slopes_and_moments(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Slopes of a random network's loss along the two symmetries, over β; and mean(mu² + sigma²) - 1, mean mu."""
    encoder = GaussianEncoder(5, 2, (6,), generator=generator)
    decoder = GaussianDecoder(2, 5, (7,), generator=generator)
    vae, beta = VAE(encoder, decoder, StandardNormal(2)).double(), 0.7
    x = 2 * torch.randn(9, 5, generator=generator, dtype=torch.float64) + 1
    (-elbo(vae, x, num_samples=3, beta=beta, generator=generator).mean()).backward()
    head, first = encoder.loc, decoder.body[0]
    stretch = (head.weight * head.weight.grad).sum(1) + head.bias * head.bias.grad + encoder.log_scale.bias.grad
    stretch = stretch - (first.weight * first.weight.grad).sum(0)
    shift = head.bias.grad - first.bias.grad @ first.weight
    q_agg = aggregated_posterior(encoder, x)
    return torch.cat([stretch, shift]) / beta, torch.cat([q_agg.variance + q_agg.mean.square() - 1, q_agg.mean])


def _linear_maximum(generator: torch.Generator, beta: float = 0.8, noise: float = 0.5) -> DiagGaussianMixture:
    """Maximise the exact objective of a linear VAE from a random start; the data are three clusters in four pixels."""
    corner = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]]).repeat(8, 1).double()
    raw = torch.cat([3 * corner, torch.zeros_like(corner)], 1)
    raw = raw + 0.3 * torch.randn(24, 4, generator=generator, dtype=torch.float64)
    left, _, _ = torch.linalg.svd(raw - raw.mean(0), full_matrices=False)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    x = (24**0.5 * left * torch.tensor([2.0, 1.4, 0.4, 0.3])) @ turn + 1.0
    shapes = [(2, 4), (2,), (2, 4), (2,), (4, 2), (4,)]
    start = [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    a, a0, b, b0, w, w0 = parameters = [value.requires_grad_() for value in start]

    def loss() -> Tensor:
        loc, log_scale = x @ a.mT + a0, x @ b.mT + b0
        variance = (2 * log_scale).exp()
        error = (x - w0 - loc @ w.mT).square().sum(1) + variance @ w.square().sum(0)
        kl = 0.5 * (loc.square() + variance - 1 - 2 * log_scale).sum(1)
        return (error / (2 * noise) + beta * kl).mean()

    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=2_000,
        tolerance_grad=1e-11,
        tolerance_change=0,
        history_size=40,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return DiagGaussianMixture((x @ a.mT + a0).detach(), (x @ b.mT + b0).exp().detach())


@claim(
    "agg/stationarity",
    falsehood=r"Marginal moments reveal the mismatch: $\mathrm{KL}(q_\mathrm{agg}\,\|\,p)="
    r"\mathrm{KL}(\mathcal N(\bar\mu,\mathrm{diag}\,C)\,\|\,p)$.",
    kind="exact",
    source="this book; Lucas et al. (2019) on the linear case",
    section=CHAPTER,
)
def stationarity(generator: torch.Generator) -> Measurement:
    """Compare slopes with moments at random weights of a network; then climb to a maximum of a linear VAE."""
    slopes, moments = _slopes_and_moments(generator)
    q_agg = _linear_maximum(generator)
    rate = kl_divergence(Normal(q_agg.loc, q_agg.scale), Normal(0.0, 1.0)).sum(1).mean()
    side = torch.linspace(-8, 8, 321, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    log_q = q_agg.log_prob(z)
    mismatch = (log_q.exp() * (log_q - StandardNormal(2).log_prob(z))).sum() * (side[1] - side[0]) ** 2
    seen = kl_divergence(Normal(q_agg.mean, q_agg.variance.sqrt()), Normal(0.0, 1.0)).sum()
    found = torch.cat([q_agg.mean, q_agg.covariance.flatten(), rate[None]])
    expected = torch.cat([torch.zeros(2), torch.eye(2).flatten(), -q_agg.scale.log().sum(1).mean()[None]])
    at_saddle, saddle = _saddle(generator)
    return Measurement(
        sides=[("slope of loss/β as a latent is stretched", "its second moment less 1")],
        lhs=torch.cat([slopes, found, at_saddle, saddle.diagonal()]),
        rhs=torch.cat([moments, expected, torch.zeros_like(at_saddle), torch.ones(2)]),
        falsehood_lhs=mismatch - seen,  # as a difference: the second is 0 but for rounding
        falsehood_rhs=0.0,
        tolerance=1e-6,
        neighbours={
            "the codes' own variances average to 1": Neighbour(q_agg.scale.square().mean(0), 1.0),
            "covariance I at saddle points too": Neighbour(saddle[0, 1], 0.0),
        },
    )


def _saddle(generator: torch.Generator, beta: float = 0.8, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return the gradient of the exact objective of a linear VAE at a saddle point, and the codes' covariance there.

    The latents are turned by 45 degrees against the principal axes, and so correlated.
    """
    spread = 2 + torch.rand(2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, -0.5])
    t, turn = spread.mean() ** 2, torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    tau = t.sqrt() * spread
    w = (torch.diag((tau - beta * noise).sqrt()) @ turn.mT).requires_grad_()
    a = (turn @ torch.diag(1 / tau) @ turn.mT @ w.detach().mT).requires_grad_()
    log_scale = torch.full((2,), 0.5 * math.log(beta * noise / t), dtype=torch.float64, requires_grad=True)
    variance, missed = (2 * log_scale).exp(), torch.eye(2, dtype=torch.float64) - w @ a
    covariance_x = torch.diag(spread.square())
    error = (missed @ covariance_x @ missed.mT).trace() + variance @ w.square().sum(0)
    kl = 0.5 * ((a @ covariance_x @ a.mT).trace() + (variance - 1 - 2 * log_scale).sum())
    slopes = torch.autograd.grad(error / (2 * noise) + beta * kl, (w, a, log_scale))
    covariance = a @ covariance_x @ a.mT + torch.diag(variance)
    return torch.cat([slope.flatten() for slope in slopes]), covariance.detach()


@claim(
    "agg/mmd",
    falsehood="The V-statistic of finite samples is unbiased for it; or it is that of the means $\\mu_n$.",
    kind="MC",
    source="Rustamov (2021); Gretton et al. (2012) for the definition and the bias",
    section=CHAPTER,
)
def mmd(generator: torch.Generator) -> Measurement:
    """Average independent quadruples of draws; then V-statistics of five draws each, whose bias is known."""
    loc = 0.4 * torch.randn(10, 3, generator=generator, dtype=torch.float64)  # narrow, but for the codes' own width
    q_agg, bandwidth = DiagGaussianMixture(loc, torch.full_like(loc, 0.8)), 1.2
    exact = mmd_squared(q_agg, bandwidth)
    means = mmd_squared(DiagGaussianMixture(loc, torch.full_like(loc, 1e-9)), bandwidth)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a - b).square().sum(-1) / (2 * bandwidth**2)).exp()

    prior = StandardNormal(3).double()
    (z, z2), (y, y2) = (p.sample((2, 50_000), generator=generator) for p in (q_agg, prior))
    draws = estimate(kernel(z, z2) - kernel(z, y2) - kernel(z2, y) + kernel(y, y2))
    few, few_prior = (p.sample((5_000, 5), generator=generator) for p in (q_agg, prior))
    signed = torch.cat([few, few_prior], 1)
    sign = torch.tensor([0.2] * 5 + [-0.2] * 5, dtype=torch.float64)
    biased = estimate(torch.einsum("i,rij,j->r", sign, kernel(signed[:, :, None], signed[:, None]), sign))
    return Measurement(
        sides=[("squared MMD from draws", "squared MMD in closed form")],
        lhs=draws.value,
        rhs=exact,
        falsehood_lhs=torch.tensor([biased.value, draws.value], dtype=torch.float64),
        falsehood_rhs=torch.tensor([exact, means], dtype=torch.float64),
        stderr=draws.stderr,
        falsehood_stderr=torch.tensor([biased.stderr, draws.stderr], dtype=torch.float64),
        neighbours={"it is the MMD, not its square": Neighbour(draws.value, exact**0.5)},
    )
