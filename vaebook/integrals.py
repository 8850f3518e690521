r"""What is integrated over z, the joint density log p(x, z) of some data, and rules that are refined until they agree.

p(x) = ∫ p(x|z) p(z) dz        and averages over p(z|x), on a grid in one or two latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vaebook._checks import check_all, check_int, check_number
from vaebook.adapters import AdaptedVAE
from vaebook.evaluation import Condition
from vaebook.outputs import Decoded
from vaebook.parts import log_density
from vaebook.priors import as_mixture

CELLS = 2**21
"""Codes × data × values of a datum that are decoded at once: 16 MiB in float64."""
FINEST = 1e-14
"""The smallest tolerance that is taken: below it, all that is left is the rounding of sums in float64."""
SINGLE = 1e-4
"""The smallest tolerance, in nats, that a model in single precision can reach."""


class Joint:
    """log p(x, z) of data x under a decoder and a prior, in float64; what is no number is an error that says whose.

    Args:
        vae: the adapted model.
        x: data, (B, …), as `AdaptedVAE.data` returns them, with their condition.
        condition: a row for each datum, or None.
        prior: what takes the place of the model's own.
    """

    def __init__(self, vae: AdaptedVAE, x: Tensor, condition: Condition = None, prior: Any = None) -> None:
        self.vae, self.x, self.condition = vae, x, condition
        self.prior = vae.prior if prior is None else prior
        self.dtype = (vae.decoder and vae.decoder.dtype) or (x.dtype if x.is_floating_point() else torch.float64)
        self.chunk = max(1, CELLS // x.numel())

    def decode(self, z: Tensor) -> Decoded:
        """Decode z (S, B, D), one code for each datum and sample."""
        return self.vae.decoder(z.to(self.dtype), self.condition)

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Return log p(x|z) at z (S, B, D) or, the same for all data, (S, 1, D): (S, B)."""
        value = self.vae.log_likelihood(z.to(self.dtype), self.x, self.condition)
        return check_all("decoder's log p(x|z)", value, value < torch.inf, "values below infinity")

    def log_prior(self, z: Tensor) -> Tensor:
        """Return log p(z) at z (*s, D): (*s)."""
        value = log_density(self.prior, z)
        return check_all("prior's log p(z)", value, value < torch.inf, "values below infinity").double()

    def __call__(self, z: Tensor) -> Tensor:
        """Return log p(x, z) at z (S, B, D) or (S, 1, D): (S, B)."""
        return self.log_likelihood(z) + self.log_prior(z)


@contextmanager
def integrand(
    vae: AdaptedVAE, x: object, condition: object, *, tolerance: float, max_nodes: int = 2, limit: float = 1.0
) -> Iterator[tuple[Joint, float, float, int]]:
    """Check what a rule for at most two latent dimensions needs; yield log p(x, z) in evaluation mode, and numbers."""
    x, condition = vae.data(x, condition)
    limit = check_number("limit", limit, above=0)
    tolerance = check_number("tolerance", tolerance, minimum=FINEST)
    max_nodes = check_int("max_nodes", max_nodes, minimum=2)
    for name, dtype in (("x", x.dtype), ("decoder", vae.decoder and vae.decoder.dtype)):
        # From one grid to the next the rounding of half precision alone is more.
        if dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and tolerance < SINGLE):
            hint = f"use decoder.double() and x.double(), or single precision and a tolerance of at least {SINGLE:g}"
            raise ValueError(f"{name}: expected dtype torch.float64 for tolerance {tolerance:g}, got {dtype}; {hint}")
    with torch.no_grad(), vae.evaluating(x, condition):
        joint = Joint(vae, x, condition, as_mixture(vae.prior, x.device))  # what is made of codes is encoded once
        if joint.prior.latent_dim > 2:
            got = f"got {joint.prior.latent_dim}; use vaebook.likelihood.importance_log_prob"
            raise ValueError(f"prior: expected at most 2 latent dimensions, {got}")
        yield joint, limit, tolerance, max_nodes


def refine(
    rule: Callable[[int], Tensor],
    steps: int,
    *,
    tolerance: float,
    max_nodes: int,
    num_nodes: Callable[[int], int] = lambda steps: steps + 1,
) -> Tensor:
    r"""Evaluate a rule with ever more steps, each time half as many again, until no value changes any more.

    Not twice as many: at half the step, the trapezoid rule still makes the even half of its aliasing errors, unseen.

    Args:
        rule: maps a number of steps to values, in float64.
        steps: how many to begin with.
        tolerance: the largest last change.
        max_nodes: the most nodes.
        num_nodes: how many nodes so many steps need.

    Returns:
        The values of the last rule.

    Raises:
        RuntimeError: max_nodes do not reach the tolerance.

    Example:
        >>> rule = lambda steps: torch.trapezoid(torch.linspace(0, 1, steps + 1).double() ** 2, dx=1 / steps)
        >>> round(float(refine(rule, 8, tolerance=1e-6, max_nodes=2000)), 5)
        0.33333

    Source: Trefethen & Weideman, The exponentially convergent trapezoidal rule, SIAM Review 56 (2014), section 3.
    """
    previous = None
    while num_nodes(steps) <= max_nodes:
        value = rule(steps)
        if previous is not None and bool(((value == previous) | ((value - previous).abs() <= tolerance)).all()):
            return value
        previous, steps = value, 3 * steps // 2
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")


def grid_averages(
    joint: Joint, features: Callable[[Tensor], Tensor], *, limit: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Integrate over the box [-limit, limit]^D by the trapezoid rule, a chunk of nodes at a time.

    Args:
        joint: the integrand p(x, z) of B data.
        features: maps nodes (M, D) to what is averaged, (M, F).
        limit: half the width of the box.
        steps: of the grid on each side.

    Returns:
        log p(x), (B + 1), and the averages over p(z|x), (B + 1, F); the last row is for p(z) in the place of p(x, z).
    """
    axis = torch.linspace(-limit, limit, steps + 1, dtype=torch.float64, device=joint.x.device)
    nodes = torch.cartesian_prod(*[axis] * joint.prior.latent_dim).reshape(-1, joint.prior.latent_dim)
    totals, averages = [], []
    for z in nodes.split(joint.chunk):
        log_prior = joint.log_prior(z[:, None])
        value = torch.cat([joint.log_likelihood(z[:, None]) + log_prior, log_prior], 1)
        totals.append(value.logsumexp(0))
        averages.append(value.softmax(0).nan_to_num().mT @ features(z))  # 0 / 0 where the density is 0
    total = torch.stack(totals)
    average = (total.softmax(0).nan_to_num()[..., None] * torch.stack(averages)).sum(0)
    return total.logsumexp(0) + nodes.shape[1] * math.log(2 * limit / steps), average


def refine_grid(rule: Callable[[int], Tensor], joint: Joint, *, tolerance: float, max_nodes: int) -> Tensor:
    """Refine a rule that uses `grid_averages`."""
    dim = joint.prior.latent_dim
    num_nodes = lambda steps: (steps + 1) ** dim  # noqa: E731
    return refine(rule, {1: 1024, 2: 128}[dim], tolerance=tolerance, max_nodes=max_nodes, num_nodes=num_nodes)


def log_evidence(joint: Joint, limit: float, tolerance: float, max_nodes: int) -> Tensor:
    """Integrate log p(x), (B), as `vaebook.bounds.quadrature_log_prob` says."""

    def rule(steps: int) -> Tensor:
        on_edge = lambda z: (z.abs().amax(1, keepdim=True) > limit * (1 - 1e-6)).double()  # noqa: E731
        value, edge = grid_averages(joint, on_edge, limit=limit, steps=steps)
        if bool((edge * steps / 2 > tolerance).any()):  # outside the box we count the density on its edge times limit
            raise ValueError("limit: expected a box that holds all mass, got one with mass on its edge; raise limit")
        return value

    value = refine_grid(rule, joint, tolerance=tolerance, max_nodes=max_nodes)
    if not abs(float(value[-1])) <= max(tolerance, 1e-12):
        got = f"got {float(value[-1].exp()):.6g}; raise limit, or normalise"
        raise ValueError(f"prior: expected a density with mass 1 in the box, {got}")
    return value[:-1]
