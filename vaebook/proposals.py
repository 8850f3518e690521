r"""Where to draw codes that may explain a datum: Gaussians around maxima of p(x, z), fitted to samples.

    p(x, z) ≈ p(x, z*) exp(-½ (z - z*)ᵀ P (z - z*)),      ∫ p(x, z) dz ≈ p(x, z*) (2π)^{D/2} |P|^{-1/2}.

The maxima are found by Gauss-Newton steps, the shares of the Gaussians by Laplace's rule, above. Decoders are not
differentiated, only called. In the climb z has shape (J, B, D): J points for each of B data; draws are (B, S, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from vaebook.integrals import Joint
from vaebook.mixture import DiagGaussianMixture
from vaebook.outputs import Decoded
from vaebook.parts import components
from vaebook.priors import GaussianMixture

STEPS = 4
"""How many Gauss-Newton steps lead to a maximum."""
RESERVE = 0.1
"""Share of a proposal that the prior always has; of the rest, this share is spread evenly over the Gaussians."""
STARTS = 16
"""Starting points among draws of the prior for the search of maxima of p(x, z), besides the encoder's mean."""
ROUNDS = 2
"""Times that all Gaussians are then fitted to weighted samples."""
ROUND_SAMPLES = 500
"""Samples drawn for each datum and fit; also the most drawn at once."""
PAIRS = 32
"""Up to so many latent dimensions second derivatives are also taken by pairs of them, at D² / 2 calls a step."""


class Proposal(NamedTuple):
    """J Gaussians for each datum; their shares leave RESERVE to the prior."""

    log_share: Tensor  # (B, J)
    loc: Tensor  # (B, J, D)
    tril: Tensor  # (B, J, D, D)


def laplace(
    joint: Joint, prior: DiagGaussianMixture | GaussianMixture, z: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb from points by Gauss-Newton, under that component of the prior which rules where a climb begins.

    Args:
        joint: p(x, z) of B data.
        prior: its prior, or an approximation of it.
        z: where to begin, (J, B, D).
        width: the scale of each datum's codes, (B, D); differences are taken over a twentieth of it.

    Returns:
        The tops, (J, B, D), triangular factors of the precisions there, (J, B, D, D), and log-shares of the J Gaussians
        by Laplace's rule, (J, B).
    """
    centre, precision = _ruling_component(prior, z)

    def height(z: Tensor) -> Tensor:
        offset = z - centre
        return _log_likelihood(joint, z) - 0.5 * (offset * (precision @ offset[..., None])[..., 0]).sum(-1)

    for _ in range(STEPS):
        slope, information = _slope_and_information(joint, z, 0.05 * width)
        slope = slope - (precision @ (z - centre)[..., None])[..., 0]
        move = torch.cholesky_solve(slope[..., None], factor(information + precision))[..., 0]
        tries = torch.stack([z + share * move for share in (1.0, 0.5, 0.2, 0.0)])
        best = torch.stack([height(part) for part in tries]).argmax(0)
        z = tries.gather(0, best[None, ..., None].expand_as(tries[:1]))[0]
    tril = factor(_slope_and_information(joint, z, 0.05 * width)[1] + precision)
    log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision)
    return z, tril, (height(z) - 0.5 * log_det).clamp_min(-1e300).log_softmax(0)


def factor(matrix: Tensor) -> Tensor:
    """Return triangular factors, (…, D, D); those of the diagonal alone where rounding left a matrix without one."""
    tril, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt())
    return torch.where((failed > 0)[..., None, None], diagonal, tril)


def _log_likelihood(joint: Joint, z: Tensor) -> Tensor:
    """Return log p(x|z), (J, B), -inf where there is none: a decoder may refuse codes that are far off."""
    with suppress(ValueError):
        return joint.decode(z).log_prob(joint.x).double().nan_to_num(nan=-torch.inf)
    return z.new_full(z.shape[:-1], -torch.inf)


def _slope_and_information(joint: Joint, z: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """By central differences: the gradient of log p(x|z), (J, B, D), and what x tells about z, (J, B, D, D).

    That is the decoder's Fisher information or, where it has no mean and variance, the curvature of log p(x|z).
    """
    here, shifts = joint.decode(z), torch.diag_embed(step).movedim(1, 0)  # (D, B, D)
    slope, information = (_fisher if here.has_moments else _curvature)(joint, z, here, shifts)
    information = information / (step[..., None] * step[:, None])
    return (slope / step).nan_to_num(0, 0, 0), information.nan_to_num(0, 0, 0)


def _fisher(joint: Joint, z: Tensor, here: Decoded, shifts: Tensor) -> tuple[Tensor, Tensor]:
    slopes, changes, spread = [], [], here.variance.double().flatten(2).clamp_min(1e-6).sqrt()
    for shift in shifts:
        up, down = joint.decode(z + shift), joint.decode(z - shift)
        slopes.append((up.log_prob(joint.x).double() - down.log_prob(joint.x).double()) / 2)
        changes.append((up.mean.double() - down.mean.double()).flatten(2) / (2 * spread))
    changes = torch.stack(changes, -2)
    return torch.stack(slopes, -1), changes @ changes.mT


def _curvature(joint: Joint, z: Tensor, here: Decoded, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Second differences, their eigenvalues made positive, so that a step leads up where log p(x|z) is not concave."""
    middle = here.log_prob(joint.x).double()
    up, down = (torch.stack([_log_likelihood(joint, z + sign * s) for s in shifts], -1) for sign in (1, -1))
    bend = up + down - 2 * middle[..., None]
    second = torch.diag_embed(bend)
    for i, j in combinations(range(len(shifts) if len(shifts) <= PAIRS else 0), 2):
        both = shifts[i] + shifts[j]
        pair = _log_likelihood(joint, z + both) + _log_likelihood(joint, z - both) - 2 * middle
        second[..., i, j] = second[..., j, i] = (pair - bend[..., i] - bend[..., j]) / 2
    values, vectors = torch.linalg.eigh(second.nan_to_num(0, 0, 0))
    return (up - down) / 2, vectors * values.abs()[..., None, :] @ vectors.mT


def _ruling_component(prior: DiagGaussianMixture | GaussianMixture, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and precision of the component that z most likely came from, (J, B, D) and (J, B, D, D)."""
    rows, dim = z.flatten(0, -2), z.shape[-1]
    log_weight, loc, scale = (part.double() for part in components(prior))
    if scale.ndim == 2:
        index = torch.cat([prior.responsibilities(part).argmax(1) for part in rows.split(64)])
        precision = torch.diag_embed(scale[index] ** -2)
    else:
        each = MultivariateNormal(loc, scale_tril=scale, validate_args=False).log_prob(rows[:, None])
        index = (each + log_weight).argmax(1)
        precision = torch.cholesky_inverse(scale)[index]
    return loc[index].reshape(z.shape), precision.reshape(*z.shape, dim)


def with_reserve(share: Tensor) -> Tensor:
    """Return logarithms of the Gaussians' shares, none of them near 0, with RESERVE left to the prior."""
    return (((1 - RESERVE) * share + RESERVE / share.shape[1]) * (1 - RESERVE)).log()


def refit(proposal: Proposal, z: Tensor, log_weight: Tensor, log_parts: Tensor) -> Proposal:
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
    return Proposal(with_reserve(share / share.sum(1, keepdim=True)), loc, factor(covariance))


def _temper(log_weight: Tensor, effective: float) -> Tensor:
    """Raise each row of weights (B, S) to the largest power <= 1 with so many effective samples, by bisection."""
    log_weight = log_weight.clamp_min(-1e300)  # where nothing explains a datum, all samples count the same
    low, high = torch.zeros_like(log_weight[:, :1]), torch.ones_like(log_weight[:, :1])
    power = high
    for _ in range(20):
        enough = effective_samples(power * log_weight)[:, None] >= effective
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = torch.where(low == 1, 1.0, 0.5 * (low + high))
    return low * log_weight


def effective_samples(log_weight: Tensor) -> Tensor:
    """(sum of weights)² over sum of squared weights, (B), for log-weights (B, S)."""
    return (2 * log_weight.logsumexp(1) - (2 * log_weight).logsumexp(1)).exp()


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

    def fresh(self, num_samples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Fit a proposal; yield fresh samples from it, S in all, as the first three of `weigh`."""
        proposal = self.start()
        for _ in range(ROUNDS):
            z, log_ratio, log_prior, log_parts = self.weigh(proposal, self.round_samples)
            proposal = refit(proposal, z, log_ratio + log_prior, log_parts)
        sizes = (min(self.round_samples, num_samples - done) for done in range(0, num_samples, self.round_samples))
        yield from (self.weigh(proposal, size)[:3] for size in sizes)

    def start(self) -> Proposal:
        """Put Gaussians at the encoder's mean, 1, 2 and 4 times as wide, and around maxima of p(x, z)."""
        loc, scale = self.q.loc[:, None], self.q.scale[:, None]
        points = torch.cat([loc, self.good_points()], 1).transpose(0, 1)
        z, tril, log_share = (part.transpose(0, 1) for part in laplace(self.joint, self.mixture, points, self.q.scale))
        widths = torch.tensor([1.0, 2.0, 4.0]).to(loc)[:, None]
        log_share = torch.cat([torch.full_like(loc[..., 0], math.log(RESERVE)).expand(-1, len(widths)), log_share], 1)
        # A fifth wider than Laplace's rule has them: too wide costs less than too narrow.
        tril = torch.cat([torch.diag_embed(widths * scale), 1.2 * factor(torch.cholesky_inverse(tril))], 1)
        return Proposal(with_reserve(log_share.softmax(1)), torch.cat([loc.expand(-1, len(widths), -1), z], 1), tril)

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

    def weigh(self, proposal: Proposal, num_samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw z (B, S, D) from r; return it, log p(x|z) / r(z), log p(z) (B, S), and logs of shares in r (B, S, J)."""
        z = self.draw(proposal, num_samples)
        parts = z.transpose(0, 1).split(self.joint.chunk)
        log_likelihood = torch.cat([self.joint.log_likelihood(part) for part in parts]).mT
        log_prior = self.joint.log_prior(z)
        gaussians = MultivariateNormal(proposal.loc, scale_tril=proposal.tril, validate_args=False)
        log_parts = proposal.log_share[:, None] + gaussians.log_prob(z.transpose(0, 1)[:, :, None]).transpose(0, 1)
        log_proposal = torch.logaddexp(log_parts.logsumexp(-1), math.log(RESERVE) + log_prior)
        return z, log_likelihood - log_proposal, log_prior, log_parts - log_proposal[..., None]

    def draw(self, proposal: Proposal, num_samples: int) -> Tensor:
        """Draw z (B, S, D) from the proposal, its share of the prior included."""
        batch, num, dim = proposal.loc.shape
        share = torch.cat([proposal.log_share.exp(), torch.full_like(proposal.log_share[:, :1], RESERVE)], 1)
        which = torch.multinomial(share, num_samples, replacement=True, generator=self.generator)
        row, own, from_prior = torch.arange(batch, device=share.device)[:, None], which.clamp(max=num - 1), which == num
        noise = proposal.loc.new_empty(batch, num_samples, dim, 1).normal_(generator=self.generator)
        z = proposal.loc[row, own] + (proposal.tril[row, own] @ noise)[..., 0]
        z[from_prior] = self.draw_prior(row.expand_as(which)[from_prior])
        return z
