"""Claims of the chapters continuous/* and mixture/vae: the generative mixture and the bounds on it."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from vaebook.bounds import elbo, iwae_bound, prior_sample_log_prob, quadrature_log_prob
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import estimate
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal


def _curved_decoder(z: Tensor) -> Independent:
    """Decode a scalar code to a point on a smooth curve in the plane: small, and not Gaussian after integration."""
    loc = torch.cat([z + 0.5 * torch.sin(2 * z), 0.5 * z.square()], -1)
    return Independent(Normal(loc, 0.4), 1)


def _linear_vae(generator: torch.Generator) -> tuple[PPCA, SimpleNamespace, Tensor]:
    """Build a pPCA on four pixels, the same decoder with an encoder that is somewhat off, and data drawn from it."""
    weight = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=torch.float64))[0] * torch.tensor([1.5, 0.8])
    model = PPCA(torch.zeros(4).double(), weight, 0.5)

    def encoder(x: Tensor) -> Independent:
        exact = model.posterior(x).base_dist
        return Independent(Normal(0.8 * exact.loc + 0.1, 1.3 * exact.scale), 1)

    z = model.prior.sample((8,), generator=generator)
    x = model.likelihood(z).mean + 0.5**0.5 * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return model, SimpleNamespace(encoder=encoder, decoder=model.likelihood, prior=model.prior), x


@claim(
    "gen/ppca",
    falsehood=r"$\operatorname{Cov}p$ is the covariance of the data, and $p_\mathrm{agg}=p_\theta$.",
    kind="exact",
    source="Tipping & Bishop (1999); p_agg: this book",
    section="continuous/generative",
)
def ppca(generator: torch.Generator) -> Measurement:
    """Compare p and p_agg with integrals over z, p_agg with its formula, the posterior with Bayes' rule."""
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    data = torch.randn(40, 5, generator=generator, dtype=torch.float64) @ mixing
    model, x = PPCA.fit(data, 2), data[:6]
    q_agg = model.aggregated_posterior(data)
    closed = torch.stack([model.log_prob(x), model.log_prob_under(q_agg, x)])
    integrated = [
        quadrature_log_prob(model.likelihood, p, x, limit=10.0, tolerance=1e-11) for p in (model.prior, q_agg)
    ]
    z = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    bayes = model.likelihood(z).log_prob(x) + model.prior.log_prob(z) - model.log_prob(x)
    noise, weight = model.noise_variance * torch.eye(5, dtype=torch.float64), model.weight
    spread = weight @ torch.diag(q_agg.scale[0].square()) @ weight.mT + noise
    decoded = MultivariateNormal(q_agg.loc @ weight.mT + model.mean, spread)  # N components
    formula = decoded.log_prob(x[:, None]).logsumexp(1) - math.log(len(data))
    sample_covariance = (data - model.mean).mT @ (data - model.mean) / len(data)
    empirical = MultivariateNormal(model.mean, sample_covariance).log_prob(x)
    return Measurement(
        sides=[("log p(x) in closed form", "log p(x) by quadrature")],
        lhs=torch.cat([closed.flatten(), model.posterior(x).log_prob(z), closed[1]]),
        rhs=torch.cat([*integrated, bayes, formula]),
        falsehood_lhs=torch.stack([closed[0].mean(), closed[1].mean()]),
        falsehood_rhs=torch.stack([empirical.mean(), closed[0].mean()]),
        tolerance=1e-10,
        neighbours={
            "the posterior's covariance is the inverse of M": Neighbour(
                bayes, Normal(model.posterior(x).mean, q_agg.scale[0] / model.noise_variance**0.5).log_prob(z).sum(1)
            ),
            "components of p_agg as narrow as the noise": Neighbour(
                closed[1],
                MultivariateNormal(decoded.mean, noise).log_prob(x[:, None]).logsumexp(1) - math.log(len(data)),
            ),
        },
    )


@claim(
    "gen/collapse-linear",
    falsehood="Collapse needs a bad optimiser or a powerful decoder.",
    kind="exact",
    source="Lucas, Tucker, Grosse & Norouzi (2019); for β = 1 Tipping & Bishop (1999)",
    section="continuous/generative",
)
def collapse_linear(generator: torch.Generator) -> Measurement:
    """Maximise the objective of one coordinate, for eigenvalues on both sides of the threshold, over a fine grid."""
    noise, beta = 0.5, torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)[:, None]
    share = torch.tensor([0.2, 0.5, 0.97, 1.03, 2.0, 5.0], dtype=torch.float64)  # eigenvalue over threshold
    share = share + 0.02 * (torch.rand(6, generator=generator, dtype=torch.float64) - 0.5)
    eigenvalue = share * beta * noise
    square = torch.linspace(0, 16, 160_001, dtype=torch.float64)[:, None, None]
    best = square[_linear_elbo(square, eigenvalue, noise, beta).argmax(0)].reshape(3, 6)
    off = torch.zeros(2, 3, 6, dtype=torch.float64, requires_grad=True)  # the encoder's slope and log-variance
    slopes = torch.autograd.grad(_linear_elbo(best, eigenvalue, noise, beta, *off).sum(), off)[0]
    return Measurement(  # the objective is concave in the encoder, so that a slope of 0 is its best
        sides=[("best squared weight below the threshold", "what the formula leaves")],
        lhs=torch.cat([best[None], slopes]),
        rhs=torch.cat([(eigenvalue - beta * noise).clamp(min=0)[None], torch.zeros_like(slopes)]),
        falsehood_lhs=(best[:, :3] > 0).double(),  # of latents below the threshold: active or not
        falsehood_rhs=1.0,
        tolerance=1e-4,
        neighbours={
            "the threshold does not depend on beta": Neighbour(best, (eigenvalue - noise).clamp(min=0)),
            "the threshold is twice as high": Neighbour(best, (eigenvalue - 2 * beta * noise).clamp(min=0)),
        },
    )


def _linear_elbo(square: Tensor, eigenvalue: Tensor, noise: float, beta: Tensor, *off: Tensor) -> Tensor:
    """Objective of one coordinate, up to a constant, at the best linear encoder for a column of length l.

    With z ~ N(a x, v): -(E (x - l z)²)/(2 s²) - beta KL, largest at a = l/(l² + beta s²), v = beta s²/(the same);
    evaluated at a and log v that are off these by so much.
    """
    total = square + beta * noise
    slope, variance = square.sqrt() / total, beta * noise / total
    if off:
        slope, variance = slope + off[0], variance * off[1].exp()
    missed = eigenvalue * (1 - square.sqrt() * slope).square() + square * variance
    kl = 0.5 * (slope.square() * eigenvalue + variance - 1 - variance.log())
    return -0.5 * missed / noise - beta * kl


@claim(
    "gen/finite-k",
    falsehood=r"$\log\hat p_K$ is unbiased for $\log p$.",
    kind="MC",
    source="Jensen's inequality and the delta method; Nowozin (2018) for the expansion",
    section="continuous/generative",
)
def finite_k(generator: torch.Generator) -> Measurement:
    r"""Repeat K = 1,000 draws 5,000 times for the gap's constant, and K = 50 draws 50,000 times for its existence.

    The constant needs E p̂ = p as a control variate: with $\eta=\hat p/p-1$ the gap is
    $\mathbb E[\eta-\log(1+\eta)]$, whose draws vary far less. They are also never negative, so the
    falsehood is tried on draws of log p̂ as they are.
    """
    x = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    prior = StandardNormal(1)
    log_p = quadrature_log_prob(_curved_decoder, prior, x)

    def errors(num_draws: int, repetitions: int) -> Tensor:
        rows = x.expand(repetitions, 2)
        log_hat = prior_sample_log_prob(_curved_decoder, prior, rows, num_draws, shared=False, generator=generator)
        return log_hat - log_p

    many, few = errors(1_000, 5_000), estimate(errors(50, 50_000))
    ratio, gap = estimate(many.exp()), estimate(1_000 * (many.expm1() - many))
    return Measurement(
        sides=[("K times the gap", "half of Var/p²"), ("mean of estimate over p", "that of an unbiased one")],
        lhs=torch.tensor([gap.value, ratio.value], dtype=torch.float64),
        rhs=torch.tensor([_relative_variance(x, log_p) / 2, 1.0], dtype=torch.float64),
        falsehood_lhs=few.value,
        falsehood_rhs=0.0,
        stderr=torch.tensor([gap.stderr, ratio.stderr], dtype=torch.float64),
        falsehood_stderr=few.stderr,
        neighbours={"the gap is Var/(K p²)": Neighbour(gap.value, _relative_variance(x, log_p), unit=gap.stderr)},
    )


def _relative_variance(x: Tensor, log_p: Tensor) -> float:
    """Integrate Var/p² of p(x|z) under z ~ N(0, I) at one x."""
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_ratio = _curved_decoder(z).log_prob(x) - log_p
    return float(torch.trapezoid((2 * log_ratio + StandardNormal(1).log_prob(z)).exp(), z[:, 0]) - 1)


@claim(
    "gen/prior-sampling-cost",
    falsehood=r"$\mathrm{Var}/p^2=\mathrm{KL}$: the cost grows only as fast as the information.",
    kind="quadrature",
    source="Chatterjee & Diaconis (2018) on e^KL draws; the identity: this book",
    section="continuous/generative",
)
def prior_sampling_cost(generator: torch.Generator) -> Measurement:
    """Integrate all three quantities for five random x, the variance and chi-squared by their own definitions."""
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.8])
    log_p = quadrature_log_prob(_curved_decoder, StandardNormal(1), x)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_prior, log_likelihood = StandardNormal(1).log_prob(z)[:, None], _curved_decoder(z[:, None]).log_prob(x)
    log_posterior = log_likelihood + log_prior - log_p

    def integrate(values: Tensor) -> Tensor:
        return torch.trapezoid(values, z, dim=0)

    variance = integrate((log_likelihood.exp() - log_p.exp()).square() * log_prior.exp()) / (2 * log_p).exp()
    chi_squared = integrate((2 * log_posterior - log_prior).exp()) - 1
    kl = integrate(log_posterior.exp() * (log_posterior - log_prior))
    return Measurement(
        sides=[("relative variance of a draw", "chi-squared(posterior ‖ prior)")],
        lhs=torch.cat([variance, chi_squared, kl.expm1()]),
        rhs=torch.cat([chi_squared, variance, chi_squared]),
        falsehood_lhs=variance,
        falsehood_rhs=kl,
        relation="<=",
        tolerance=1e-7,
        neighbours={  # a posterior that is the prior on a quarter of it has chi-squared 3 and KL log 4: equality
            "a larger exponent, 1.01 KL": Neighbour(math.expm1(1.01 * math.log(4)), 3.0),
        },
    )


@claim(
    "gen/iwae",
    falsehood="Averaging $K$ single-sample ELBOs tightens the bound as much as $\\mathrm{IWAE}_K$ does.",
    kind="MC",
    source="Burda, Grosse & Salakhutdinov (2016)",
    section="continuous/generative",
)
def iwae(generator: torch.Generator) -> Measurement:
    """Climb from the ELBO over K = 2, 3, 8 to the exact log p(x) of a linear VAE with a wrong encoder."""
    model, vae, x = _linear_vae(generator)
    rows = x[:1].expand(20_000, 4)
    # K samples a row, rows independent: each column holds independent draws of one bound.
    ladder = [iwae_bound(vae, rows, k, generator=generator).double() for k in (1, 2, 3, 8)]
    averaged = estimate(elbo(vae, rows, num_samples=8, generator=generator).double())
    single = estimate(elbo(vae, rows, generator=generator).double())
    steps = [estimate(bound) for bound in ladder]
    first = steps[0]
    values = [first.value, single.value, *(s.value for s in steps), model.log_prob(x[:1]).item()]
    errors = [first.stderr, single.stderr, *(s.stderr for s in steps), 0.0]
    # IWAE_1 <= ELBO <= IWAE_1, for they are equal; IWAE_1 <= IWAE_2 <= IWAE_3 <= IWAE_8 <= log p
    names = [f"IWAE of {number}" for number in ("one", "two", "three", "eight")]
    return Measurement(
        sides=list(pairwise([names[0], "ELBO", *names, "log p(x)"])),
        lhs=torch.tensor(values[:-1], dtype=torch.float64),
        rhs=torch.tensor(values[1:], dtype=torch.float64),
        falsehood_lhs=steps[-1].value,
        falsehood_rhs=averaged.value,
        relation="<=",
        stderr=torch.tensor([math.hypot(*pair) for pair in pairwise(errors)], dtype=torch.float64),
        falsehood_stderr=math.hypot(steps[-1].stderr, averaged.stderr),
        neighbours={
            "two samples reach log p": Neighbour(values[-1], steps[1].value, unit=steps[1].stderr),
            "two samples do no better than one": Neighbour(
                steps[1].value, first.value, unit=math.hypot(steps[1].stderr, first.stderr)
            ),
        },
    )


@claim(
    "gen/elbo-submass",
    falsehood=r"The same holds for the objective with $\beta<1$.",
    kind="quadrature",
    source="this book; it follows from ELBO ≤ log p",
    section="continuous/generative",
)
def elbo_submass(generator: torch.Generator) -> Measurement:
    """Integrate exp ELBO over a scalar x for a linear decoder: with the posterior, with worse encoders, and β = 0.2."""
    slope, noise = 1.0 + float(torch.rand((), generator=generator)), 0.5
    precision = 1 + slope**2 / noise**2
    gain, scale = slope / noise**2 / precision, precision**-0.5

    def mass(gain: float, scale: float, beta: float) -> Tensor:
        x = torch.linspace(-60, 60, 24_001, dtype=torch.float64)
        loc = gain * x
        expected_square = (x - slope * loc).square() + (slope * scale) ** 2
        reconstruction = -0.5 * expected_square / noise**2 - math.log(noise) - 0.5 * math.log(2 * math.pi)
        kl = 0.5 * (loc.square() + scale**2 - 1) - math.log(scale)
        return torch.trapezoid((reconstruction - beta * kl).exp(), x)

    exact, worse = mass(gain, scale, 1.0), torch.stack([mass(0.9 * gain, scale, 1.0), mass(gain, 2 * scale, 1.0)])
    one = torch.ones((), dtype=torch.float64)
    # The posterior reaches 1; other encoders stay below by more than any error of the integral.
    return Measurement(
        sides=[("integral of exp(ELBO), exact encoder", "mass of a density")],
        lhs=torch.stack([exact, one, *(worse + 1e-3)]),
        rhs=torch.stack([one, exact, one, one]),
        falsehood_lhs=mass(gain, scale, 0.2),
        falsehood_rhs=1.0,
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "a mass of at most 0.999": Neighbour(exact, 0.999),
            "the same for beta = 0.95": Neighbour(mass(gain, scale, 0.95), 1.0),
            "equality for a wider encoder": Neighbour(1.0, worse[1]),
        },
    )
