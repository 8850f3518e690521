r"""The log-likelihood log p(x) of a VAE under any prior, by importance sampling that adapts to each datum.

    p(x) = ∫ p(x|z) p(z) dz = E_r [ p(x|z) p(z) / r(z) ]      for every proposal r that is positive where p(z) is.

An encoder alone is a poor proposal. It can be too narrow, as after training with a small beta, and it does not depend
on a prior that was exchanged after training. Here r is a mixture of three parts: the prior itself, which bounds the
weights by sup p(x|z) over its share; the encoder at several widths; and full Gaussians around maxima of p(x|z) p(z).
The Gaussians are then fitted further to weighted samples. The final samples are fresh, and weighted by the density of
the whole of r.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from vaebook._checks import check_generator, check_int
from vaebook.adapters import adapt_prior, adapt_vae
from vaebook.evaluation import take
from vaebook.integrals import Joint, encode
from vaebook.laplace import factor, laplace
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import components, optional
from vaebook.priors import GaussianMixture, as_mixture

ROWS = 32
"""How many data are treated at once."""
RESERVE = 0.1
"""Share of a proposal that the prior always has; of the rest, this share is spread evenly over the Gaussians."""
PRIOR_DRAWS = 4096
"""Draws of the prior at which p(x|z) is evaluated for each datum, to find starting points."""
STARTS = 16
"""Starting points among these draws for the search of maxima of p(x, z), besides the encoder's mean."""
ROUNDS = 2
"""Times that all Gaussians are then fitted to weighted samples."""
ROUND_SAMPLES = 500
"""Samples drawn for each datum and fit; also the most drawn at once."""
TRUSTED = 50
"""With fewer effective samples, the standard error of a datum cannot be trusted, and a warning is given."""


class ImportanceEstimate(NamedTuple):
    """Estimates of log p(x), one for each datum. See `importance_log_prob`."""

    log_prob: Tensor
    """Nats, (B)."""
    stderr: Tensor
    """Its standard error, nats, (B)."""
    effective_samples: Tensor
    """(sum of weights)² over sum of squared weights, (B), between 1 and the number of samples."""


def importance_log_prob(
    vae: Any,
    x: Any,
    num_samples: int = 1000,
    *,
    prior: Any = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> ImportanceEstimate:
    r"""Estimate log p(x) with an adapted proposal, together with its error.

    $\hat p(x) = \frac1S\sum_{s=1}^S w_s,\quad w_s = \frac{p(x\mid z_s)\,p(z_s)}{r(z_s)},\quad z_s\sim r$

    p̂(x) is unbiased for p(x). Its logarithm is biased down by about half the square of its standard error, which is
    sd(w)/(mean(w) √S). That error can be trusted only if the effective number of samples is not small. Below 50 a
    warning is given: take more samples and see whether the value changes. A part of the posterior that no Gaussian of
    the proposal covers shows in neither number; only draws of the prior can reach it. Another seed may find it.

    Args:
        vae: what `vaebook.adapters.adapt` makes, or an object with `.encoder`, `.decoder` and `.prior`.
        x: data, (B, …).
        num_samples: S, the draws for each datum, besides those for the adaptation.
        prior: a prior, torch distribution or flow to use in place of vae.prior.
        condition: further input of encoder or decoder beside x or z, one row for each datum.
        generator: the source of randomness; None means torch's global one.

    Returns:
        log p̂(x), its standard error and the effective number of samples, each (B), float64, without gradients. If
        all weights of a datum are 0, they are -inf, inf and 0.

    Warns:
        UserWarning: the effective number of samples is below 50 for some data.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind.
        ValueError: a shape or number is out of range, x or a code is not finite, a scale is not positive, log p(x|z)
            is no number, or the prior is of another dimension.

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
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    check_int("num_samples", num_samples, minimum=2, maximum=10**9)
    generator = check_generator(generator, x.device)
    parts = []
    with torch.no_grad(), vae.evaluating(x, condition):
        q = encode(vae, x, condition)
        prior = vae.prior if prior is None else adapt_prior(prior, q.loc.shape[1])
        # One Gaussian that knows its KL in closed form samples itself, and its draws tell enough of it.
        mixture = as_mixture(prior, x.device) if optional(prior, "kl") is None else None
        prior = mixture or prior

        def draw(rows: Tensor) -> Tensor:
            z = prior.sample((max(1, len(rows)),), generator=generator)
            return z[: len(rows)].to(q.loc.device, torch.float64)

        draws = draw(torch.arange(PRIOR_DRAWS))
        mixture = mixture or _moments(draws)
        for rows in torch.arange(len(x), device=x.device).split(ROWS):
            joint = Joint(vae, x[rows], take(condition, rows), prior, q.loc.dtype)
            own = Normal(q.loc[rows].double(), q.scale[rows].double(), validate_args=False)
            sampler = Sampler(joint, own, mixture, draws, draw, generator)
            parts.append(torch.cat([log_weight for _, log_weight in sampler.weighted(num_samples)], 1))
    return summarise(torch.cat(parts))


class _Proposal(NamedTuple):
    """J Gaussians for each datum; their shares leave RESERVE to the prior."""

    log_share: Tensor  # (B, J)
    loc: Tensor  # (B, J, D)
    tril: Tensor  # (B, J, D, D)


class Sampler(NamedTuple):
    """Draws codes for a batch of data and weighs them."""

    joint: Joint  # what is integrated
    q: Normal  # the encoder's
    mixture: DiagGaussianMixture | GaussianMixture  # the prior, or the Gaussian of its moments
    draws: Tensor  # of the prior, (PRIOR_DRAWS, D)
    draw_prior: Callable[[Tensor], Tensor]  # rows of the batch (M) to draws of the prior for them, (M, D)
    generator: torch.Generator | None
    num_starts: int = STARTS
    round_samples: int = ROUND_SAMPLES

    def weighted(self, num_samples: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Fit a proposal; yield fresh samples from it, (B, S', D), with their log-weights, (B, S'), S in all."""
        proposal = self.start()
        for _ in range(ROUNDS):
            proposal = _fit(proposal, *self.weigh(proposal, self.round_samples))
        sizes = (min(self.round_samples, num_samples - done) for done in range(0, num_samples, self.round_samples))
        yield from (self.weigh(proposal, size)[:2] for size in sizes)

    def start(self) -> _Proposal:
        """Put Gaussians at the encoder's mean, 1, 2 and 4 times as wide, and around maxima of p(x, z)."""
        loc, scale = self.q.loc[:, None], self.q.scale[:, None]
        points = torch.cat([loc, self.good_points()], 1).transpose(0, 1)
        z, tril, log_share = (part.transpose(0, 1) for part in laplace(self.joint, self.mixture, points, self.q.scale))
        widths = torch.tensor([1.0, 2.0, 4.0]).to(loc)[:, None]
        log_share = torch.cat([torch.full_like(loc[..., 0], math.log(RESERVE)).expand(-1, len(widths)), log_share], 1)
        # A fifth wider than Laplace's rule has them: too wide costs less than too narrow.
        tril = torch.cat([torch.diag_embed(widths * scale), 1.2 * factor(torch.cholesky_inverse(tril))], 1)
        return _Proposal(_with_reserve(log_share.softmax(1)), torch.cat([loc.expand(-1, len(widths), -1), z], 1), tril)

    def good_points(self) -> Tensor:
        """Choose, for each datum, num_starts points (B, J, D) with probabilities as p(x|z), none twice.

        They are draws of the prior, or the means of its components where there are many of them: among draws of
        those, several would come from the same component, and another that matters could be missed.
        """
        points, log_weight = self.draws, 0.0
        if len(self.mixture.loc) > self.num_starts:
            log_weight, points, _ = (part.double() for part in components(self.mixture))
        log_likelihood = [self.joint.log_likelihood(z) for z in points[:, None].split(self.joint.chunk)]
        uniform = points.new_empty(len(self.q.loc), len(points)).uniform_(generator=self.generator)
        # Gumbel's noise makes the largest a sample without replacement.
        score = log_weight + torch.cat(log_likelihood).mT - (-uniform.log()).log()
        return points[score.topk(min(self.num_starts, len(points)), 1).indices]

    def weigh(self, proposal: _Proposal, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw z (B, S, D); also return log w (B, S) and the log of the proposal's Gaussians at z (B, S, J)."""
        z = self.draw(proposal, num_samples)
        parts = z.transpose(0, 1).split(self.joint.chunk)
        log_likelihood = torch.cat([self.joint.log_likelihood(part) for part in parts]).mT
        log_prior = self.joint.log_prior(z)
        gaussians = MultivariateNormal(proposal.loc, scale_tril=proposal.tril, validate_args=False)
        log_parts = proposal.log_share[:, None] + gaussians.log_prob(z.transpose(0, 1)[:, :, None]).transpose(0, 1)
        log_proposal = torch.logaddexp(log_parts.logsumexp(-1), math.log(RESERVE) + log_prior)
        return z, log_likelihood + log_prior - log_proposal, log_parts - log_proposal[..., None]

    def draw(self, proposal: _Proposal, num_samples: int) -> Tensor:
        """Draw z (B, S, D) from the proposal, its share of the prior included."""
        batch, num, dim = proposal.loc.shape
        share = torch.cat([proposal.log_share.exp(), torch.full_like(proposal.log_share[:, :1], RESERVE)], 1)
        which = torch.multinomial(share, num_samples, replacement=True, generator=self.generator)
        row, own, from_prior = torch.arange(batch, device=share.device)[:, None], which.clamp(max=num - 1), which == num
        noise = proposal.loc.new_empty(batch, num_samples, dim, 1).normal_(generator=self.generator)
        z = proposal.loc[row, own] + (proposal.tril[row, own] @ noise)[..., 0]
        z[from_prior] = self.draw_prior(row.expand_as(which)[from_prior])
        return z


def _moments(draws: Tensor) -> GaussianMixture:
    """Return one Gaussian with mean and covariance of the draws, (S, D)."""
    covariance = draws.mT.cov().reshape(1, draws.shape[1], draws.shape[1])
    return GaussianMixture(draws.new_ones(1), draws.mean(0)[None], factor(covariance))


def _with_reserve(share: Tensor) -> Tensor:
    """Return logarithms of the Gaussians' shares, none of them near 0, with RESERVE left to the prior."""
    return (((1 - RESERVE) * share + RESERVE / share.shape[1]) * (1 - RESERVE)).log()


def _fit(proposal: _Proposal, z: Tensor, log_weight: Tensor, log_parts: Tensor) -> _Proposal:
    """Take one step of EM for weighted samples.

    The old Gaussian counts as ten samples for each latent dimension, so that few samples do not move it far.
    """
    weight = _temper(log_weight, z.shape[1] / 5).softmax(1)[..., None] * log_parts.exp()  # (B, S, J)
    share = weight.sum(1)
    effective = share.square() / weight.square().sum(1).clamp_min(1e-300)
    part = weight / share.clamp_min(1e-300)[:, None]
    kept = (10 * z.shape[-1] / (10 * z.shape[-1] + effective))[..., None]  # (B, J, 1)
    loc = (1 - kept) * (part.mT @ z) + kept * proposal.loc
    centred = z[:, None] - loc[:, :, None]  # (B, J, S, D)
    spread = centred.mT @ (part.mT[..., None] * centred)
    covariance = (1 - kept[..., None]) * spread + kept[..., None] * proposal.tril @ proposal.tril.mT
    return _Proposal(_with_reserve(share / share.sum(1, keepdim=True)), loc, factor(covariance))


def _temper(log_weight: Tensor, effective: float) -> Tensor:
    """Raise each row of weights (B, S) to the largest power <= 1 with so many effective samples, by bisection."""
    log_weight = log_weight.clamp_min(-1e300)  # where nothing explains a datum, all samples count the same
    low, high = torch.zeros_like(log_weight[:, :1]), torch.ones_like(log_weight[:, :1])
    power = high
    for _ in range(20):
        enough = _effective(power * log_weight)[:, None] >= effective
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = torch.where(low == 1, 1.0, 0.5 * (low + high))
    return low * log_weight


def _effective(log_weight: Tensor) -> Tensor:
    return (2 * log_weight.logsumexp(1) - (2 * log_weight).logsumexp(1)).exp()


def summarise(log_weight: Tensor) -> ImportanceEstimate:
    """Turn log-weights, (B, S), into an estimate, and warn where few samples count."""
    num, effective = log_weight.shape[1], _effective(log_weight).nan_to_num(0)
    few = int((effective < TRUSTED).sum())
    if few:
        got = f"fewer for {few} of {len(effective)} data, {float(effective.min()):.1f} for the worst"
        told = "their standard errors cannot be trusted; take more samples"
        warnings.warn(f"num_samples: expected {TRUSTED} effective samples, got {got}: {told}", stacklevel=3)
    # Var(w) / mean(w)² = S / ESS - 1, and an unbiased variance divides by S - 1.
    stderr = ((num / effective - 1).clamp_min(0) / (num - 1)).sqrt()
    return ImportanceEstimate(log_weight.logsumexp(1) - math.log(num), stderr, effective)
