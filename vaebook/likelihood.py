r"""The log-likelihood log p(x) of a VAE under any prior, by importance sampling that adapts to each datum.

    p(x) = ∫ p(x|z) p(z) dz = E_r [ p(x|z) p(z) / r(z) ]      for every proposal r that is positive where p(z) is.

An encoder alone is a poor proposal: it can be too narrow (training with a small beta makes it so), and where the
prior was exchanged after training it knows nothing of the new one. Here r is a mixture: the prior itself, which keeps
the weights bounded by sup p(x|z) over its share, the encoder at several widths, and full Gaussians around
maxima of p(x|z) p(z), all fitted further to weighted samples. The final samples
are fresh, and weighted by the density of all of r.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_generator, check_int, check_tensor
from vaebook.bounds import Decoder, _chunks, _encode, _log_likelihood, _log_prior
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import GaussianMixture

PRIOR_SHARE = 0.1
"""How much of the proposal is the prior itself."""
WIDTHS = (1.0, 2.0, 4.0)
"""Multiples of the encoder's scale at which a Gaussian of the proposal starts."""
PRIOR_DRAWS = 8192
"""How many draws of the prior are tried as explanations of a datum."""
NUM_POINTS = 12
"""From how many of these maxima of p(x, z) are looked for, besides from the encoder's mean."""
CLIMBS = 4
"""Gauss-Newton steps from each of these points."""
INFLATION = 1.2
"""By how much a Gaussian around such a maximum is wider than Laplace's."""
ROUNDS = 2
"""How often all Gaussians are then fitted."""
ROUND_SAMPLES = 500
"""How many samples a datum are drawn for each fit, and at once."""
MIN_EFFECTIVE = 100
"""Weights are tempered for a fit until so many of these samples count."""
HOLD = 10
"""What a Gaussian was before a fit counts as so many samples for each latent dimension."""
ROWS = 32
"""How many data are treated at once."""


class ImportanceEstimate(NamedTuple):
    """Estimates of log p(x), one a datum. See `importance_log_prob`."""

    log_prob: Tensor
    """Nats, (B)."""
    stderr: Tensor
    """Its standard error, nats, (B)."""
    effective_samples: Tensor
    """(sum of weights)² over sum of squared weights, (B), between 1 and the number of samples."""


class _Target(NamedTuple):
    decoder: Decoder
    prior: Any


class _Proposal(NamedTuple):
    """J Gaussians a datum; the shares leave PRIOR_SHARE to the prior."""

    log_share: Tensor  # (B, J)
    loc: Tensor  # (B, J, D)
    tril: Tensor  # (B, J, D, D)


@torch.no_grad()
def importance_log_prob(
    vae: Any,
    x: Tensor,
    num_samples: int = 1000,
    *,
    prior: Any = None,
    generator: torch.Generator | None = None,
) -> ImportanceEstimate:
    r"""Estimate log p(x) with an adapted proposal, together with its error.

    $\hat p(x) = \frac1S\sum_{s=1}^S w_s,\quad w_s = \frac{p(x\mid z_s)\,p(z_s)}{r(z_s)},\quad z_s\sim r$

    p̂(x) is unbiased for p(x); its logarithm is biased down by about half the square of the standard error. That
    error is sd(w)/(mean(w) √S), and can itself be trusted only if the effective number of samples is not small:
    below some 50, take more samples and look whether the value moves.

    Args:
        vae: an object with `.encoder(x)` → Independent(Normal, 1), `.decoder(z)` → a distribution of x, with mean and
            variance, and, unless a prior is given, `.prior`.
        x: data, (B, P), in the dtype of the model.
        num_samples: S, for each datum, besides those for the adaptation.
        prior: what takes the place of vae.prior: anything with `log_prob(z)` and `sample(shape, generator=…)`.
        generator: the source of randomness; None means torch's global one.

    Returns:
        log p̂(x), its standard error and the effective number of samples, each (B), float64, without gradients.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind.
        ValueError: a shape or number is out of range, x is not finite, or the prior is of another dimension.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> x, generator = torch.zeros(1, 2), torch.Generator().manual_seed(0)
        >>> estimate = importance_log_prob(vae, x, 4000, generator=generator)
        >>> exact = vae.log_prob(x)
        >>> bool((estimate.log_prob - exact).abs() < 4 * estimate.stderr), bool(estimate.stderr < 0.02)
        (True, True)

    Source: Veach & Guibas, Optimally combining sampling techniques (1995), the balance heuristic; Cappé et al.,
    Adaptive importance sampling in general mixture classes (2008), for the fit; Owen & Zhou, Safe and effective
    importance sampling (2000), for the prior's share.
    """
    check_tensor("x", x, ("B", "P"))
    check_int("num_samples", num_samples, minimum=2)
    check_generator(generator)
    q = _encode(vae, x).base_dist
    target = _target(vae, prior, q.loc.shape[1])
    draws = _draw_prior(target.prior, PRIOR_DRAWS, q.loc, generator)
    parts = []
    for rows in torch.arange(len(x), device=x.device).split(ROWS):
        batch = x[rows]
        proposal = _start(target, batch, q.loc[rows].double(), q.scale[rows].double(), draws, generator)
        for _ in range(ROUNDS):
            proposal = _fit(proposal, *_weigh(target, proposal, batch, ROUND_SAMPLES, generator))
        sizes = [min(ROUND_SAMPLES, num_samples - done) for done in range(0, num_samples, ROUND_SAMPLES)]
        parts.append(torch.cat([_weigh(target, proposal, batch, size, generator)[1] for size in sizes], 1))
    return _summary(torch.cat(parts))


def _target(vae: Any, prior: Any, dim: int) -> _Target:
    prior = vae.prior if prior is None else prior
    for method in ("log_prob", "sample"):
        if not callable(getattr(prior, method, None)):
            raise TypeError(f"prior: expected an object with a method {method}, got {type(prior).__name__}")
    got = (*getattr(prior, "event_shape", ()), getattr(prior, "latent_dim", dim))[0]
    if got != dim:
        raise ValueError(f"prior: expected dimension {dim}, got {got}")
    # A prior that is made of codes is encoded once, not for every batch of samples.
    return _Target(vae.decoder, prior.mixture() if callable(getattr(prior, "mixture", None)) else prior)


def _draw_prior(prior: Any, num: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return prior.sample((max(1, num),), generator=generator)[:num].to(like.device, torch.float64)


def _start(
    target: _Target, x: Tensor, loc: Tensor, scale: Tensor, draws: Tensor, generator: torch.Generator | None
) -> _Proposal:
    """Gaussians at the encoder's mean, of several widths, and around maxima of p(x, z) found from several points."""
    points = _good_draws(target.decoder, x, draws, generator)
    z, precision, evidence = _laplace(target, x, torch.cat([loc[:, None], points], 1), scale, draws)
    widths = torch.tensor(WIDTHS).to(loc)
    tril = INFLATION * torch.linalg.cholesky(torch.linalg.inv(precision))
    log_share = torch.cat([torch.full_like(loc[:, :1], math.log(0.1)).expand(-1, len(WIDTHS)), evidence], 1)
    return _Proposal(
        _mix_shares(log_share.softmax(1)),
        torch.cat([loc[:, None].expand(-1, len(WIDTHS), -1), z], 1),
        torch.cat([torch.diag_embed(widths[:, None] * scale[:, None]), tril], 1),
    )


def _good_draws(decoder: Decoder, x: Tensor, draws: Tensor, generator: torch.Generator | None) -> Tensor:
    """Choose, for each datum, draws of the prior (B, K, D) by the likelihood that they give it, tempered."""
    z = draws.to(x.dtype)[:, None]
    parts = [_log_likelihood(decoder, chunk, x) for chunk in z.split(_chunks(len(z), x, None))]
    log_weight = _temper(torch.cat(parts).mT, 2 * NUM_POINTS)  # (B, M)
    uniform = torch.rand(log_weight.shape, generator=generator, dtype=torch.float64, device=x.device)
    return draws[(log_weight - (-uniform.log()).log()).topk(min(NUM_POINTS, len(draws)), 1).indices]


def _laplace(target: _Target, x: Tensor, z: Tensor, scale: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from z (B, J, D) by Gauss-Newton; return the tops, the precisions there and shares by Laplace's rule."""
    centre, prior_precision = _nearest_gaussian(target.prior, z, draws)
    for step in range(CLIMBS + 1):
        slope, precision = _slope_and_information(target.decoder, x, z, 0.05 * scale)
        precision = precision + prior_precision
        if step == CLIMBS:
            break
        slope = slope - (prior_precision @ (z - centre)[..., None])[..., 0]
        move = torch.linalg.solve(precision, slope)
        tries = torch.stack([z + share * move for share in (1.0, 0.5, 0.2, 0.0)])
        offset = tries - centre
        value = -0.5 * (offset * (prior_precision @ offset[..., None])[..., 0]).sum(-1)
        value = value + torch.stack([_decode(target.decoder, x, part)[0] for part in tries])
        best = value.argmax(0)
        z = tries.gather(0, best[None, ..., None].expand_as(tries[:1]))[0]
        value = value.amax(0)
    log_det = torch.logdet(precision) - torch.logdet(prior_precision)
    return z, precision, (value - 0.5 * log_det).log_softmax(1)


def _slope_and_information(decoder: Decoder, x: Tensor, z: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """By central differences in z: the gradient of log p(x|z) and the decoder's Fisher information, (B, J, D, D)."""
    slopes, jacobian = [], []
    variance = _decode(decoder, x, z)[2].clamp_min(1e-6)
    for j in range(z.shape[-1]):
        shift = torch.zeros_like(z)
        shift[..., j] = step[:, None, j]
        (up, mean_up, _), (down, mean_down, _) = _decode(decoder, x, z + shift), _decode(decoder, x, z - shift)
        slopes.append((up - down) / (2 * step[:, None, j]))
        jacobian.append((mean_up - mean_down) / (2 * step[:, None, j, None]) / variance.sqrt())
    jacobian = torch.stack(jacobian, -2)  # (B, J, D, P), whitened
    return torch.stack(slopes, -1), jacobian @ jacobian.mT


def _decode(decoder: Decoder, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood (B, J), mean and variance (B, J, P) at z (B, J, D)."""
    decoded = decoder(z.to(x.dtype))
    return decoded.log_prob(x[:, None]).double(), decoded.mean.double(), decoded.variance.double()


def _nearest_gaussian(prior: Any, z: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, J, D) and precision of the component of the prior that rules at z; for others, of all its draws."""
    rows = z.reshape(-1, z.shape[-1])
    if isinstance(prior, DiagGaussianMixture):
        index = torch.cat([prior.responsibilities(part).argmax(1) for part in rows.split(64)])
        loc, precision = prior.loc.double()[index], torch.diag_embed(prior.scale.double()[index] ** -2)
    elif isinstance(prior, GaussianMixture):
        index = prior.responsibilities(rows).argmax(1)
        loc, precision = prior.loc.double()[index], torch.cholesky_inverse(prior.scale_tril.double())[index]
    else:
        loc, precision = draws.mean(0).expand_as(rows), torch.linalg.inv(draws.mT.cov().reshape(z.shape[-1], -1))
        precision = precision.expand(len(rows), -1, -1)
    return loc.reshape(z.shape), precision.reshape(*z.shape, z.shape[-1])


def _mix_shares(share: Tensor) -> Tensor:
    """Logarithms of the Gaussians' shares: none is forgotten, and the prior has its own."""
    return ((0.9 * share + 0.1 / share.shape[1]) * (1 - PRIOR_SHARE)).log()


def _weigh(
    target: _Target, proposal: _Proposal, x: Tensor, num_samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw z (B, S, D) from the proposal; also return log w (B, S) and the log of its Gaussians at z (B, S, J)."""
    z = _draw(target.prior, proposal, num_samples, generator)
    z_model = z.to(x.dtype).mT.movedim(-1, 0)  # (S, B, D)
    sizes = _chunks(num_samples, x, None)
    log_likelihood = torch.cat([_log_likelihood(target.decoder, part, x) for part in z_model.split(sizes)]).mT
    log_prior = _log_prior(target.prior, z)
    log_parts = proposal.log_share[:, None] + _log_gaussians(proposal, z)
    log_proposal = torch.logaddexp(log_parts.logsumexp(-1), math.log(PRIOR_SHARE) + log_prior)
    return z, log_likelihood + log_prior - log_proposal, log_parts - log_proposal[..., None]


def _draw(prior: Any, proposal: _Proposal, num_samples: int, generator: torch.Generator | None) -> Tensor:
    batch, num, dim = proposal.loc.shape
    share = torch.cat([proposal.log_share.exp(), torch.full_like(proposal.log_share[:, :1], PRIOR_SHARE)], 1)
    which = torch.multinomial(share, num_samples, replacement=True, generator=generator)  # (B, S)
    own, from_prior = which.clamp(max=num - 1)[..., None], which == num
    noise = torch.randn(batch, num_samples, dim, generator=generator, dtype=torch.float64, device=share.device)
    tril = proposal.tril.gather(1, own[..., None].expand(-1, -1, dim, dim))
    z = proposal.loc.gather(1, own.expand(-1, -1, dim)) + (tril @ noise[..., None])[..., 0]
    z[from_prior] = _draw_prior(prior, int(from_prior.sum()), z, generator)
    return z


def _log_gaussians(proposal: _Proposal, z: Tensor) -> Tensor:
    """Log-densities (B, S, J) of all Gaussians at z (B, S, D)."""
    eye = torch.eye(z.shape[-1]).to(z)
    inverse = torch.linalg.solve_triangular(proposal.tril, eye.expand_as(proposal.tril), upper=False)
    whitened = inverse @ z[:, None].mT - inverse @ proposal.loc[..., None]  # (B, J, D, S)
    log_det = proposal.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return (-0.5 * whitened.square().sum(-2) - log_det[..., None] - constant).mT


def _fit(proposal: _Proposal, z: Tensor, log_weight: Tensor, log_parts: Tensor) -> _Proposal:
    """One step of EM for the weighted samples, held back by the Gaussian that was there where samples are few."""
    dim = z.shape[-1]
    weight = _temper(log_weight, MIN_EFFECTIVE).softmax(1)[..., None] * log_parts.exp()  # (B, S, J)
    share = weight.sum(1)
    effective = share.square() / weight.square().sum(1).clamp_min(1e-300)
    part = weight / share.clamp_min(1e-300)[:, None]
    hold = (HOLD * dim / (HOLD * dim + effective))[..., None]  # (B, J, 1)
    loc = (1 - hold) * (part.mT @ z) + hold * proposal.loc
    centred = z[:, None] - loc[:, :, None]  # (B, J, S, D)
    spread = centred.mT @ (part.mT[..., None] * centred)
    covariance = (1 - hold[..., None]) * spread + hold[..., None] * proposal.tril @ proposal.tril.mT
    return _Proposal(_mix_shares(share / share.sum(1, keepdim=True)), loc, torch.linalg.cholesky(covariance))


def _temper(log_weight: Tensor, effective: float) -> Tensor:
    """Raise weights (B, S) to the largest power <= 1 that leaves so many effective samples; bisection, by row."""
    low, high = torch.zeros_like(log_weight[:, :1]), torch.ones_like(log_weight[:, :1])
    power = high
    for _ in range(20):
        enough = _effective(power * log_weight)[:, None] >= effective
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = torch.where(low == 1, 1.0, 0.5 * (low + high))
    return low * log_weight


def _effective(log_weight: Tensor) -> Tensor:
    return (2 * log_weight.logsumexp(1) - (2 * log_weight).logsumexp(1)).exp()


def _summary(log_weight: Tensor) -> ImportanceEstimate:
    num = log_weight.shape[1]
    effective = _effective(log_weight)
    # Var(w) / mean(w)² = S / ESS - 1, and an unbiased variance divides by S - 1.
    stderr = ((num / effective - 1).clamp_min(0) / (num - 1)).sqrt()
    return ImportanceEstimate(log_weight.logsumexp(1) - math.log(num), stderr, effective)
