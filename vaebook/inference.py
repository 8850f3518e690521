r"""How far an encoder's Gaussian is from the exact posterior, and why, for one or two latent dimensions.

    log p(x) - ELBO(x)  =  KL(q(z|x) ‖ p(z|x))  =  approximation gap  +  amortisation gap

The approximation gap is the KL divergence of the best Gaussian with diagonal covariance. The amortisation gap is what
this datum would gain by a mean and scales of its own instead of the network's. Everything is in float64 and nats, and
nothing is sampled. Decoders and priors may be whatever `vaebook.adapters.adapt` takes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from vaebook._checks import check_all, check_int, check_positive, check_tensor
from vaebook.adapters import adapt_decoder, adapt_vae
from vaebook.integrals import Joint, grid_averages, integrand, log_evidence, refine, refine_grid

MOST_NODES = 100
"""NumPy's Gauss-Hermite rule is tested up to this many nodes per dimension."""
Gaussian = tuple[Tensor, Tensor]
"""Means and standard deviations, each (B, D)."""


class InferenceGap(NamedTuple):
    """The two parts of log p(x) - ELBO(x), each (B), nats, and loc and scale of the best Gaussian found, (B, D)."""

    approximation: Tensor
    amortisation: Tensor
    loc: Tensor
    scale: Tensor


def elbo_quadrature(
    decoder: Any,
    prior: Any,
    x: Any,
    loc: Tensor,
    scale: Tensor,
    *,
    condition: Any = None,
    tolerance: float = 1e-9,
    max_nodes: int = MOST_NODES,
) -> Tensor:
    r"""Compute the ELBO of one given Gaussian for each datum, by quadrature, for D <= 2.

    $\mathrm{ELBO}(x) = \mathbb E_q[\log p(x\mid z)+\log p(z)-\log q(z)]$, $q=\mathcal N(\mu,\mathrm{diag}\,\sigma^2)$

    The Gauss-Hermite rule with n nodes per dimension is exact for polynomials in z of degree 2n - 1. n grows by half
    until no value changes by more than the tolerance.

    Args:
        decoder: maps rows of codes to a distribution of x; whatever `vaebook.adapters.adapt` takes or makes.
        prior: a prior, torch distribution or flow, D <= 2.
        x: data, (B, …); float64, as the decoder's parameters, unless tolerance >= 1e-4.
        loc: the mean of q for each datum, (B, D).
        scale: its standard deviations, (B, D).
        condition: further input of the decoder beside z, one row for each datum.
        tolerance: the largest last change, nats, at least 1e-14.
        max_nodes: the most nodes per dimension, at most 100.

    Returns:
        The ELBO, (B), float64, without gradient.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape, dtype or number is out of range, or D > 2.
        RuntimeError: the tolerance is not reached within max_nodes.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(1), torch.ones(1, 1), noise_variance=1.0)  # posterior of 0: N(0, 1/2)
        >>> x, half = torch.zeros(1, 1).double(), torch.full((1, 1), 0.5).double()
        >>> elbo_quadrature(model.decoder, model.prior, x, 0 * x, half.sqrt())  # log p(0) = log N(0 | 0, 2)
        tensor([-1.2655], dtype=torch.float64)

    Source: the definition; on the rule, Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 25.4.46.
    """
    max_nodes = check_int("max_nodes", max_nodes, minimum=2, maximum=MOST_NODES)
    vae = adapt_decoder(decoder, prior)
    with integrand(vae, x, condition, tolerance=tolerance) as (joint, _, tolerance, _):
        check_tensor("loc", loc, (len(joint.x), joint.prior.latent_dim))
        check_positive("scale", check_tensor("scale", scale, tuple(loc.shape)))
        return _refined_elbo(joint, loc.double(), scale.double(), tolerance, max_nodes)


def posterior_moments(
    decoder: Any,
    prior: Any,
    x: Any,
    *,
    condition: Any = None,
    limit: float = 8.0,
    tolerance: float = 1e-6,
    max_nodes: int = 1_000_000,
) -> tuple[Tensor, Tensor]:
    r"""Compute mean and covariance of the exact posterior, by quadrature, for D <= 2.

    $p(z\mid x)\propto p(x\mid z)\,p(z)$ is integrated by the trapezoid rule on a grid over z. The step shrinks by a
    third until no entry changes by more than the tolerance.

    Args:
        decoder: maps rows of codes to a distribution of x; whatever `vaebook.adapters.adapt` takes or makes.
        prior: a prior, torch distribution or flow, D <= 2.
        x: data, (B, …); float64, as the decoder's parameters, unless tolerance >= 1e-4.
        condition: further input of the decoder beside z, one row for each datum.
        limit: the box is [-limit, limit]^D; what lies outside is cut off.
        tolerance: the largest last change, in units of z and z², at least 1e-14.
        max_nodes: the finest grid allowed.

    Returns:
        The means, (B, D), and the covariances, (B, D, D), float64, without gradient.

    Raises:
        TypeError, ValueError, RuntimeError: as `elbo_quadrature`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(1), torch.ones(1, 1), noise_variance=1.0)  # posterior of 1: N(1/2, 1/2)
        >>> posterior_moments(model.decoder, model.prior, torch.ones(1, 1).double())
        (tensor([[0.5000]], dtype=torch.float64), tensor([[[0.5000]]], dtype=torch.float64))

    Source: the definition; on the rule, Trefethen & Weideman, SIAM Review 56 (2014), section 5.
    """
    vae = adapt_decoder(decoder, prior)
    with integrand(vae, x, condition, tolerance=tolerance, max_nodes=max_nodes, limit=limit) as numbers:
        return _moments(*numbers)


def inference_gap(
    vae: Any,
    x: Any,
    *,
    condition: Any = None,
    limit: float = 8.0,
    tolerance: float = 1e-6,
    num_nodes: int = 10,
    max_steps: int = 200,
) -> InferenceGap:
    r"""Split log p(x) - ELBO(x) into approximation gap and amortisation gap, for D <= 2.

    $\log p(x)-\mathrm{ELBO}(x)=[\log p(x)-\mathrm{ELBO}^*(x)]+[\mathrm{ELBO}^*(x)-\mathrm{ELBO}(x)]$

    ELBO* is the largest over all Gaussians with diagonal covariance. L-BFGS searches for it, for each datum, from
    several starts, of which the best result is taken: the encoder's Gaussian, one with the moments of the exact
    posterior, and narrower ones a standard deviation to either side of its mean. So neither gap is negative by more
    than the tolerance. A better maximum elsewhere would move nats from the first gap to the second.

    Args:
        vae: what `vaebook.adapters.adapt` makes, or an object with `.encoder`, `.decoder` and `.prior`.
        x: data, (B, …); float64, as the model's parameters, unless tolerance >= 1e-4.
        condition: further input of encoder or decoder beside x or z, one row for each datum.
        limit: the box of the integrals over z is [-limit, limit]^D.
        tolerance: of each integral and of the maximum, nats, at least 1e-14.
        num_nodes: Gauss-Hermite nodes per dimension during the search; the result is evaluated to the tolerance.
        max_steps: the most steps of L-BFGS.

    Returns:
        Both gaps, (B), and the best Gaussian's loc and scale, (B, D).

    Raises:
        TypeError, ValueError, RuntimeError: as `elbo_quadrature` and `vaebook.bounds.quadrature_log_prob`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> gap = inference_gap(model, torch.ones(3, 2).double())  # exact encoder
        >>> bool((gap.approximation.abs() + gap.amortisation.abs() < 2e-6).all())
        True

    Source: Cremer, Li & Duvenaud, Inference suboptimality in variational autoencoders (2018), who named the gaps.
    """
    num_nodes = check_int("num_nodes", num_nodes, minimum=2, maximum=MOST_NODES)
    max_steps = check_int("max_steps", max_steps, minimum=1, maximum=10**6)
    with integrand(adapt_vae(vae), x, condition, tolerance=tolerance, limit=limit) as (joint, limit, tolerance, _):
        log_p = log_evidence(joint, limit, tolerance, 5_000_000)
        starts = _starts(joint, limit, tolerance)
        found = starts[:1] + [_climb(joint, *start, num_nodes, max_steps, tolerance) for start in starts]
        values = torch.stack([_refined_elbo(joint, *q, tolerance, MOST_NODES) for q in found])
    best, which = values.max(0)
    rows = torch.arange(len(which), device=which.device)
    loc, scale = (torch.stack(parts)[which, rows] for parts in zip(*found, strict=True))
    return InferenceGap(log_p - best, best - values[0], loc, scale)


def _starts(joint: Joint, limit: float, tolerance: float) -> list[Gaussian]:
    """Return the encoder's Gaussian, that of the posterior's moments, and narrower ones to either side of its mean."""
    q = joint.vae.encode(joint.x, joint.condition).base_dist
    mean, covariance = _moments(joint, limit, max(tolerance, 1e-4), 1_000_000)
    spread = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-8).sqrt()
    starts = [(q.loc.double(), q.scale.double()), (mean, spread)]
    for aside in torch.diag_embed(spread).unbind(1):  # where the posterior has two modes, they are about there
        starts += [(mean + aside, spread / 2), (mean - aside, spread / 2)]
    return starts


def _climb(joint: Joint, loc: Tensor, scale: Tensor, num_nodes: int, max_steps: int, tolerance: float) -> Gaussian:
    """Maximise the sum of the ELBOs, in units of the starting scale, in which a Gaussian posterior is nearly round.

    There a slope of size g means that less than about g² nats are missing.
    """
    move = torch.zeros(2, *loc.shape, dtype=torch.float64, device=loc.device, requires_grad=True)
    settings = {"tolerance_grad": 0.1 * tolerance**0.5, "tolerance_change": 1e-15, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([move], max_iter=max_steps, history_size=50, **settings)

    def loss() -> Tensor:
        value = -_elbo(joint, loc + scale * move[0], scale * move[1].exp(), num_nodes).sum()
        (move.grad,) = torch.autograd.grad(value, move)  # and none for the decoder's parameters
        return value.detach()

    optimizer.step(loss)  # which enables gradients itself
    return (loc + scale * move[0]).detach(), (scale * move[1].exp()).detach()


def _elbo(joint: Joint, loc: Tensor, scale: Tensor, num_nodes: int) -> Tensor:
    """Sum over Gauss-Hermite nodes, a few at a time; the entropy of q is closed form."""
    dim = loc.shape[1]
    nodes, weights = (torch.from_numpy(a).to(loc) for a in hermegauss(num_nodes))
    nodes = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[weights / weights.sum()] * dim).reshape(-1, dim).prod(1)
    value = scale.log().sum(1) + 0.5 * dim * (1 + math.log(2 * math.pi))
    for u, weight in zip(nodes.split(joint.chunk), weights.split(joint.chunk), strict=True):
        value = value + weight @ joint(loc + scale * u[:, None])
    return value


def _refined_elbo(joint: Joint, loc: Tensor, scale: Tensor, tolerance: float, max_nodes: int) -> Tensor:
    rule = lambda num_nodes: _elbo(joint, loc, scale, num_nodes)  # noqa: E731
    return refine(rule, 8, tolerance=tolerance, max_nodes=max_nodes, num_nodes=lambda steps: steps)


def _moments(joint: Joint, limit: float, tolerance: float, max_nodes: int) -> tuple[Tensor, Tensor]:
    """Integrate the posterior's means and covariances as `posterior_moments` says."""

    def features(z: Tensor) -> Tensor:
        return torch.cat([z, (z[:, :, None] * z[:, None]).flatten(1)], 1)

    def rule(steps: int) -> Tensor:
        log_p, average = (part[:-1] for part in grid_averages(joint, features, limit=limit, steps=steps))
        check_all("log p(x)", log_p, log_p > -torch.inf, "values above -infinity within the limit")
        dim = joint.prior.latent_dim
        mean, second = average[:, :dim], average[:, dim:].unflatten(1, (dim, dim))
        return torch.cat([mean[:, None], second - mean[:, :, None] * mean[:, None]], 1)

    value = refine_grid(rule, joint, tolerance=tolerance, max_nodes=max_nodes)
    return value[:, 0], value[:, 1:]
