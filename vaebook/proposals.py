r"""Gaussians where to look for what explains a datum: around maxima of p(x, z) over z, then fitted to weighted samples.

    p(x, z) ≈ p(x, z*) exp(-½ (z - z*)ᵀ P (z - z*)),      ∫ p(x, z) dz ≈ p(x, z*) (2π)^{D/2} |P|^{-1/2}.

Decoders are not differentiated, only called; z has shape (J, B, D) throughout: J points for each of B data.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vaebook.integrals import Joint
from vaebook.mixture import DiagGaussianMixture
from vaebook.outputs import Decoded
from vaebook.parts import components
from vaebook.priors import GaussianMixture

STEPS = 4
"""How many Gauss-Newton steps lead to a maximum."""
RESERVE = 0.1
"""Share of a proposal that the prior always has; of the rest, this share is spread evenly over the Gaussians."""
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
