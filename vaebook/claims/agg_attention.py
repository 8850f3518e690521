"""Claims of chapter aggregated/attention: the average of the data by responsibility, under its four names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.nn.functional import scaled_dot_product_attention

from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.mixture import DiagGaussianMixture

GRID = torch.linspace(-12, 12, 601, dtype=torch.float64)[:, None]
"""Codes over which decoders are compared and their losses integrated."""


@claim(
    "agg/optimal-decoder",
    falsehood=r"Bernoulli: average the logits; or: at $z=\mu_n$ it returns $x_n$.",
    kind="exact",
    source="Banerjee, Guo & Wang (2005), of which these are two cases; for a VAE, this book",
    section="aggregated/attention",
)
def optimal_decoder(generator: torch.Generator) -> Measurement:
    """Climb to the optimum at every code by Newton's method; integrate what an arbitrary decoder loses."""
    x = 0.05 + 0.9 * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    loc = torch.linspace(-2, 2, 6, dtype=torch.float64) + 0.3 * torch.rand(6, generator=generator, dtype=torch.float64)
    scale = 0.6 + 0.4 * torch.rand(6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, generator=generator, dtype=torch.float64).softmax(0)
    q_agg = DiagGaussianMixture(loc[:, None], scale[:, None], weight.log())
    joint = weight * Normal(loc, scale).log_prob(GRID).exp()  # (codes, data)
    ideal = q_agg.posterior_mean(GRID, x)
    noise = 0.3 + torch.rand(4, generator=generator, dtype=torch.float64)
    phase = 6 * torch.rand(4, generator=generator, dtype=torch.float64)
    other = 0.5 + 0.4 * torch.sin(GRID + phase)  # some decoder or other
    off, lost, expected, reverse = [], [], [], []
    for family, link in ((_gaussian(noise), torch.Tensor.clone), (_bernoulli, torch.sigmoid)):
        best = link(_climb(joint, lambda theta, family=family, link=link: family(link(theta)).log_prob(x)))
        off.append((best - ideal).abs().max())
        gain = family(ideal[:, None]).log_prob(x) - family(other[:, None]).log_prob(x)
        lost.append(_integral((joint[..., None] * gain).sum((1, 2))))
        divergence = kl_divergence(family(ideal), family(other)).sum(-1)
        expected.append(_integral(q_agg.log_prob(GRID).exp() * divergence))
        turned = kl_divergence(family(other), family(ideal)).sum(-1)
        reverse.append(_integral(q_agg.log_prob(GRID).exp() * turned))
    averaged = q_agg.posterior_mean(GRID, x.logit()).sigmoid()
    returned = q_agg.posterior_mean(q_agg.loc, x)
    return Measurement(
        sides=[("loss of another decoder", "its mean KL from the optimum")],
        lhs=torch.stack([*lost, *off]),
        rhs=torch.stack([*expected, *map(torch.zeros_like, off)]),
        falsehood_lhs=torch.stack([(best - averaged).abs().max(), (returned - x).abs().amax(-1).min()]),
        falsehood_rhs=torch.zeros(2),
        tolerance=1e-10,
        neighbours={"the loss is the divergence the other way round": Neighbour(lost[1], reverse[1])},
    )


def _gaussian(noise: Tensor) -> Callable[[Tensor], Distribution]:
    return lambda mean: Normal(mean, noise)


def _bernoulli(mean: Tensor) -> Distribution:
    return Bernoulli(mean, validate_args=False)  # it would refuse grey pixels


def _climb(joint: Tensor, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
    """Maximise the sum over data of joint (S, N) times log_prob(theta), for each code and pixel by itself: (S, P)."""
    theta = torch.zeros(len(joint), 1, 4, dtype=torch.float64)
    for _ in range(12):
        theta = theta.detach().requires_grad_()
        total = (joint[..., None] * log_prob(theta)).sum()
        (slope,) = torch.autograd.grad(total, theta, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), theta)
        theta = theta - slope / curvature
    return theta.detach()[:, 0]


def _integral(values: Tensor) -> Tensor:
    return torch.trapezoid(values, GRID[:, 0])


@claim(
    "agg/attention",
    falsehood=r"The same without the norm term, $r=\mathrm{softmax}(\mu_n\cdot z/s^2)$, as in plain attention.",
    kind="exact",
    source="this book; mean shift: Fukunaga & Hostetler (1975), Cheng (1995), Carreira-Perpiñán (2007); Hopfield: "
    "Ramsauer et al. (2021)",
    section="aggregated/attention",
)
def attention(generator: torch.Generator) -> Measurement:
    """Compare the package with torch's attention, and torch's attention with torch's mixture and its derivatives."""
    loc, z = (1.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (8, 20))
    s = float(0.6 + torch.rand((), generator=generator, dtype=torch.float64))
    q_agg = DiagGaussianMixture(loc, torch.full_like(loc, s))
    half_norm, eye = 0.5 * loc.square().sum(-1) / s**2, torch.eye(8, dtype=torch.float64)
    plain = _attend(z, loc, eye, scale=s**-2)
    r = _attend(z, loc, eye, scale=s**-2, bias=-half_norm)
    log_q, score = _torch_mixture(q_agg, z)
    step = r @ loc
    too_low = (log_q + 0.5 * (step - z).square().sum(-1) / s**2 - q_agg.log_prob(step)).clamp(min=0)
    reweighted = DiagGaussianMixture(loc, q_agg.scale, half_norm.log_softmax(0))
    level = DiagGaussianMixture(loc / loc.norm(dim=1, keepdim=True), q_agg.scale)  # all means of one length

    log_weight = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(0)
    weighted = DiagGaussianMixture(loc, q_agg.scale, log_weight)
    away = weighted.posterior_mean(z, loc)
    weighted_low = weighted.log_prob(z) + 0.5 * (away - z).square().sum(-1) / s**2 - weighted.log_prob(away)
    weighted_low = weighted_low.clamp(min=0)
    general = DiagGaussianMixture(loc, 0.4 + torch.rand(8, 3, generator=generator, dtype=torch.float64), log_weight)
    queries = torch.cat([z.square(), z, torch.ones(20, 1, dtype=torch.float64)], -1)
    constant = log_weight + math.log(8) - (0.5 * (loc / general.scale).square() + general.scale.log()).sum(-1)
    keys = torch.cat([-0.5 / general.scale.square(), loc / general.scale.square(), constant[:, None]], -1)
    log_general = (queries @ keys.mT).logsumexp(-1) - math.log(8) - 1.5 * math.log(2 * math.pi)
    output = _attend(queries, keys, keys, scale=1.0)
    read_off = output[:, 3:6] + 2 * z * output[:, :3]
    pairs = [
        (general.log_prob(z), log_general),
        (q_agg.responsibilities(z), r),
        (q_agg.log_prob_and_score(z)[1], score),
        ((step - z) / s**2, score),
        (too_low, torch.zeros_like(too_low)),
        (weighted_low, torch.zeros_like(weighted_low)),
        (level.responsibilities(z), _attend(z, level.loc, eye, scale=s**-2)),
        (reweighted.responsibilities(z), plain),
        (general.log_prob_and_score(z)[1], read_off),
        *zip(_torch_mixture(general, z), (log_general, read_off), strict=True),
    ]
    lhs, rhs = (torch.cat([side.flatten() for side in sides]) for sides in zip(*pairs, strict=True))
    return Measurement(
        sides=[("log q_agg(z) by the package", "log-sum-exp of query times keys")],
        lhs=lhs,
        rhs=rhs,
        falsehood_lhs=(q_agg.responsibilities(z) - plain).abs().max(),
        falsehood_rhs=0.0,
        tolerance=1e-10,
        neighbours={
            "the score without the query's own part": Neighbour(output[:, 3:6], score),
            "a step gains 1.01 times as much": Neighbour(*_one_step(loc[:1], q_agg.scale[:1], z, 1.01), "<="),
            "a step climbs whatever the widths": Neighbour(*_step_off_a_spike(), "<="),
        },
    )


def _one_step(loc: Tensor, scale: Tensor, z: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return a multiple of the promised gain of a step, and the gain, for one Gaussian: there they are equal."""
    q_agg, away = DiagGaussianMixture(loc, scale), loc.expand_as(z)
    promised = 0.5 * ((away - z) / scale).square().sum(-1)
    return factor * promised, q_agg.log_prob(away) - q_agg.log_prob(z)


def _step_off_a_spike() -> tuple[Tensor, Tensor]:
    """Return the log-density on a narrow Gaussian beside a wide one, and that after a step: it leads down."""
    loc, scale, weight = torch.tensor([[0.0, 0.5], [1.0, 0.05], [0.95, 0.05]], dtype=torch.float64)
    q_agg, z = DiagGaussianMixture(loc[:, None], scale[:, None], weight.log()), loc[1:, None]
    return q_agg.log_prob(z), q_agg.log_prob(q_agg.posterior_mean(z, loc[:, None]))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Torch's own attention, without its dimensions for batch and head."""
    mask = None if bias is None else bias.expand(len(queries), -1)
    return scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, scale=scale)[0]


def _torch_mixture(q_agg: DiagGaussianMixture, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density by torch.distributions, and its score by automatic differentiation."""
    components = Independent(Normal(q_agg.loc, q_agg.scale), 1)
    z = z.clone().requires_grad_()
    log_prob = MixtureSameFamily(Categorical(logits=q_agg.log_weight), components).log_prob(z)
    return log_prob.detach(), torch.autograd.grad(log_prob.sum(), z)[0]


@claim(
    "agg/diffusion",
    falsehood="As $s\\to0$ it returns a held-out $x$.",
    kind="exact",
    source="Vincent (2011); Efron (2011) on Tweedie's formula; Karras et al. (2022), appendix B.3",
    section="aggregated/attention",
)
def diffusion(generator: torch.Generator) -> Measurement:
    """Denoise held-out points by the package, by torch's attention and by Tweedie's formula; then at tiny s."""
    x, held_out, noise = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (12, 5, 5))
    alpha, s = (float(v) for v in 0.4 + torch.rand(2, generator=generator, dtype=torch.float64))
    y = alpha * held_out + s * noise
    q_agg = DiagGaussianMixture(alpha * x, torch.full_like(x, s))
    log_q, score = _torch_mixture(q_agg, y)
    definition = -0.5 * torch.cdist(y, alpha * x).square() / s**2 - 3 * math.log(2 * math.pi * s**2) - math.log(12)
    half_norm = 0.5 * (alpha * x).square().sum(-1) / s**2
    denoised = q_agg.posterior_mean(y, x)

    distance, order = torch.cdist(held_out, x).sort()
    lead = (distance[:, 1].square() - distance[:, 0].square()).min()  # by which the nearest is nearest
    tiny = float(0.01 * alpha * lead / torch.cdist(x, x).max())
    sharp = DiagGaussianMixture(alpha * x, torch.full_like(x, tiny))
    limit = sharp.posterior_mean(alpha * held_out + tiny * noise, x)
    middle = x[:2].mean(0, keepdim=True)  # as near to the one as to the other
    tie = DiagGaussianMixture(alpha * x[:2], torch.full_like(x[:2], tiny)).posterior_mean(alpha * middle, x[:2])
    pairs = [
        (q_agg.log_prob(y), definition.logsumexp(-1)),
        (q_agg.log_prob(y), log_q),
        (denoised, (y + s**2 * score) / alpha),
        (denoised, _attend(y, alpha * x, x, scale=s**-2, bias=-half_norm)),
        (limit, x[order[:, 0]]),
    ]
    lhs, rhs = (torch.cat([side.flatten() for side in sides]) for sides in zip(*pairs, strict=True))
    return Measurement(
        sides=[("log q_agg(y) by the package", "log-density of noised data by definition")],
        lhs=lhs,
        rhs=rhs,
        falsehood_lhs=(limit - held_out).norm(dim=-1),
        falsehood_rhs=torch.zeros(5),
        tolerance=1e-10,
        neighbours={
            "the denoised point without the division by alpha": Neighbour(denoised, y + s**2 * score),
            "s in the place of its square": Neighbour(denoised, (y + s * score) / alpha),
            "one of the nearest, where two are equally near": Neighbour(torch.cdist(tie, x[:2]).min(), 0.0),
        },
    )
