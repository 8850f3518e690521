r"""How far an encoder's Gaussian is from the exact posterior, and why, for one or two latent dimensions.

    log p(x) - ELBO(x)  =  KL(q(z|x) ‖ p(z|x))  =  approximation gap  +  amortisation gap

The approximation gap is what the best of all Gaussians with diagonal covariance leaves; the amortisation gap is what
this datum would gain by a mean and scales of its own instead of the network's. Everything is in float64 and nats, and
nothing is sampled. A decoder maps z (…, D) to a distribution of x, a prior has `log_prob(z)`, as in `vaebook.bounds`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from vaebook._checks import check_int, check_number, check_positive, check_tensor
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import Decoder, _chunks, _latent_dim, _log_likelihood, _log_prior, quadrature_log_prob

MOST_NODES = 100
"""Beyond this many nodes a side NumPy's Gauss-Hermite rule is not tested."""


class InferenceGap(NamedTuple):
    """The two parts of log p(x) - ELBO(x), each (B), nats; and the best Gaussian that was found, each (B, D)."""

    approximation: Tensor
    amortisation: Tensor
    loc: Tensor
    scale: Tensor


def elbo_quadrature(
    decoder: Decoder,
    prior: Any,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    *,
    tolerance: float = 1e-9,
    max_nodes: int = MOST_NODES,
) -> Tensor:
    r"""Integrate the ELBO of one given Gaussian a datum, for D <= 2.

    $\mathrm{ELBO}(x) = \mathbb E_q[\log p(x\mid z)+\log p(z)-\log q(z)]$, $q=\mathcal N(\mu,\mathrm{diag}\,\sigma^2)$

    By the Gauss-Hermite rule, which with n nodes a side is exact for polynomials in z of degree 2n - 1; n grows by
    half until no value changes by more than the tolerance.

    Args:
        decoder: z (…, D) → a distribution of x.
        prior: an object with `log_prob(z)`.
        x: data, (B, P), float64, as the decoder's parameters.
        loc: the mean of q for each datum, (B, D).
        scale: its standard deviations, (B, D).
        tolerance: nats; the last change.
        max_nodes: the most nodes a side, at most 100.

    Returns:
        The ELBO, (B), float64, without gradient.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape, dtype or number is out of range, or D > 2.
        RuntimeError: max_nodes do not reach the tolerance.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(1), torch.ones(1, 1), noise_variance=1.0)  # posterior of 0: N(0, 1/2)
        >>> x, half = torch.zeros(1, 1).double(), torch.full((1, 1), 0.5).double()
        >>> elbo_quadrature(model.decoder, model.prior, x, 0 * x, half.sqrt())  # log p(0) = log N(0 | 0, 2)
        tensor([-1.2655], dtype=torch.float64)

    Source: the definition; on the rule, Abramowitz & Stegun, Handbook of Mathematical Functions (1964), 25.4.46.
    """
    _check_data(x)
    check_tensor("loc", loc, (len(x), "D"))
    check_positive("scale", check_tensor("scale", scale, tuple(loc.shape)))
    check_number("tolerance", tolerance, above=0)
    check_int("max_nodes", max_nodes, minimum=2, maximum=MOST_NODES)
    if loc.shape[1] > 2:
        raise ValueError(f"loc: expected at most 2 latent dimensions, got {loc.shape[1]}; use vaebook.bounds.elbo")
    previous, num_nodes = torch.full((), torch.nan), 8
    while num_nodes <= max_nodes:
        with torch.no_grad():
            value = _elbo(decoder, prior, x, loc.double(), scale.double(), num_nodes)
        if bool(((value - previous).abs() <= tolerance).all()):
            return value
        previous, num_nodes = value, 3 * num_nodes // 2
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")


def posterior_moments(
    decoder: Decoder, prior: Any, x: Tensor, *, limit: float = 8.0, tolerance: float = 1e-6, max_nodes: int = 1_000_000
) -> tuple[Tensor, Tensor]:
    r"""Integrate mean and covariance of the exact posterior, for D <= 2.

    $p(z\mid x)\propto p(x\mid z)\,p(z)$, by the trapezoid rule on a grid over z, whose step shrinks by a third until
    no entry changes by more than the tolerance.

    Args:
        decoder: z (…, D) → a distribution of x.
        prior: an object with `log_prob(z)` and either `latent_dim` or `event_shape` (D), D <= 2.
        x: data, (B, P), float64, as the decoder's parameters.
        limit: the box is [-limit, limit]^D; what lies outside is cut off.
        tolerance: the last change, in units of z and z².
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
    _check_data(x)
    check_number("limit", limit, above=0)
    check_number("tolerance", tolerance, above=0)
    check_int("max_nodes", max_nodes, minimum=2)
    dim, previous = _latent_dim(prior), torch.full((), torch.nan)
    num_nodes = {1: 1025, 2: 129}[dim]
    while num_nodes**dim <= max_nodes:
        with torch.no_grad():
            axis = torch.linspace(-limit, limit, num_nodes, dtype=torch.float64)
            value = _grid_moments(decoder, prior, x, dim, axis)
        if bool(((value - previous).abs() <= tolerance).all()):
            return value[:, 0], value[:, 1:]
        previous, num_nodes = value, 3 * (num_nodes - 1) // 2 + 1
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")


def inference_gap(
    vae: Any, x: Tensor, *, limit: float = 8.0, tolerance: float = 1e-6, num_nodes: int = 10, max_steps: int = 200
) -> InferenceGap:
    r"""Split log p(x) - ELBO(x) into approximation gap and amortisation gap, for D <= 2.

    $\log p(x)-\mathrm{ELBO}(x)=[\log p(x)-\mathrm{ELBO}^*(x)]+[\mathrm{ELBO}^*(x)-\mathrm{ELBO}(x)]$

    with ELBO* the largest over all Gaussians with diagonal covariance. It is sought by L-BFGS for each datum, from the
    encoder's Gaussian, from the moments of the exact posterior, and from one standard deviation of it to either
    side, and the best is taken. So neither gap is negative by more than the tolerance; a better maximum elsewhere
    would move nats from the first to the second.

    Args:
        vae: `.encoder(x)` → (loc, scale) or a diagonal Normal, `.decoder(z)` and `.prior`, all in float64.
        x: data, (B, P), float64.
        limit: the box of the integrals over z is [-limit, limit]^D.
        tolerance: nats; of each integral, and of the maximum.
        num_nodes: Gauss-Hermite nodes a side while climbing; the result is evaluated to the tolerance.
        max_steps: of L-BFGS.

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
    _check_data(x)
    check_int("num_nodes", num_nodes, minimum=2, maximum=MOST_NODES)
    check_int("max_steps", max_steps, minimum=1)
    log_p = quadrature_log_prob(vae.decoder, vae.prior, x, limit=limit, tolerance=tolerance)
    encoded = aggregated_posterior(vae.encoder, x).double()
    mean, covariance = posterior_moments(vae.decoder, vae.prior, x, limit=limit, tolerance=max(tolerance, 1e-4))
    spread = covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-8).sqrt()
    starts = [(encoded.loc, encoded.scale), (mean, spread)]
    for aside in torch.diag_embed(spread).unbind(1):  # where the posterior has two modes, they are about there
        starts += [(mean + aside, spread / 2), (mean - aside, spread / 2)]
    found = starts[:1] + [_climb(vae, x, *start, num_nodes, max_steps, tolerance) for start in starts]
    values = torch.stack([elbo_quadrature(vae.decoder, vae.prior, x, *q, tolerance=tolerance) for q in found])
    best, which = values.max(0)
    rows = torch.arange(len(x), device=x.device)
    loc, scale = (torch.stack(parts)[which, rows] for parts in zip(*found, strict=True))
    return InferenceGap(log_p - best, best - values[0], loc, scale)


def _climb(
    vae: Any, x: Tensor, loc: Tensor, scale: Tensor, num_nodes: int, max_steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Maximise the sum of the ELBOs, in units of the starting scale, in which a Gaussian posterior is nearly round.

    There a slope of size g means that less than about g² nats are missing.
    """
    move = torch.zeros(2, *loc.shape, dtype=torch.float64, device=loc.device, requires_grad=True)
    settings = {"tolerance_grad": 0.1 * tolerance**0.5, "tolerance_change": 1e-15, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([move], max_iter=max_steps, history_size=50, **settings)

    def loss() -> Tensor:
        value = -_elbo(vae.decoder, vae.prior, x, loc + scale * move[0], scale * move[1].exp(), num_nodes).sum()
        (move.grad,) = torch.autograd.grad(value, move)  # and none for the decoder's parameters
        return value.detach()

    optimizer.step(loss)  # which enables gradients itself
    return (loc + scale * move[0]).detach(), (scale * move[1].exp()).detach()


def _elbo(decoder: Decoder, prior: Any, x: Tensor, loc: Tensor, scale: Tensor, num_nodes: int) -> Tensor:
    """Sum over Gauss-Hermite nodes, a few at a time; the entropy of q is closed form."""
    dim = loc.shape[1]
    nodes, weights = (torch.from_numpy(a).to(loc) for a in hermegauss(num_nodes))
    nodes = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[weights / weights.sum()] * dim).reshape(-1, dim).prod(1)
    value = scale.log().sum(1) + 0.5 * dim * (1 + math.log(2 * math.pi))
    sizes = _chunks(len(nodes), x, None)
    for u, weight in zip(nodes.split(sizes), weights.split(sizes), strict=True):
        z = loc + scale * u[:, None]
        value = value + weight @ (_log_likelihood(decoder, z, x) + _log_prior(prior, z))
    return value


def _grid_moments(decoder: Decoder, prior: Any, x: Tensor, dim: int, axis: Tensor) -> Tensor:
    """Return the posterior's mean, (B, 1, D), on top of its covariance, (B, D, D), from one grid."""
    nodes = torch.cartesian_prod(*[axis.to(x)] * dim).reshape(-1, dim)
    parts = [
        _log_prior(prior, z)[:, None] + _log_likelihood(decoder, z[:, None], x)
        for z in nodes.split(_chunks(len(nodes), x, None))
    ]
    weight = torch.cat(parts).softmax(0)  # (nodes, B)
    mean = weight.mT @ nodes
    second = torch.stack([weight.mT @ (nodes * nodes[:, [j]]) for j in range(dim)], 1)
    return torch.cat([mean[:, None], second - mean[:, :, None] * mean[:, None]], 1)


def _check_data(x: Tensor) -> None:
    check_tensor("x", x, ("B", "P"))
    if x.dtype != torch.float64:
        raise ValueError(f"x: expected dtype torch.float64, got {x.dtype}; use vae.double() and x.double()")
