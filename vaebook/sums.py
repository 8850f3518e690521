"""Sums over the components of a mixture: prepared once and kept, and differentiable where that is wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vaebook import clusters, kernels


def prepared(
    held: dict[str, Any], loc: Tensor, scale: Tensor, log_weight: Tensor, num_points: int = 0
) -> kernels.Components | clusters.Clusters:
    """Prepare components for so many points, in clusters if that may pay; ``held`` keeps them while they stay equal."""
    if kernels.tracked(loc, scale, log_weight):
        return kernels.prepare(loc.double(), scale.double(), log_weight)
    given = (loc.double(), scale.double())
    # Other names for the same memory, numpy arrays among them, may have been written to: only a look can tell.
    with torch.inference_mode(False), torch.no_grad():
        if "given" not in held or not all(map(torch.equal, held["given"], given)):
            places = held.get("places")  # any division into clusters gives the same density: this one stays
            held.clear()
            held.update(given=tuple(x.clone() for x in given), places=places)
        if not clusters.worth(len(loc), num_points, loc.device):
            held["all"] = held.get("all") or kernels.prepare(*held["given"], log_weight)
            return held["all"]
        if held["places"] is None:
            held["places"] = clusters.cluster(held["given"][0])
        held["some"] = held.get("some") or clusters.prepare(*held["given"], log_weight, held["places"])
        return held["some"]


class _LogProb(torch.autograd.Function):
    """The log-density as a function of the points alone: its derivative is the score, which costs little more."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, prepared: Any, exclude: Tensor | None) -> Tensor:
        both = evaluate(z.detach(), prepared, exclude, score=True)
        ctx.save_for_backward(z, both)
        ctx.rest = prepared, exclude
        return both[:, :1].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, both = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative may be wanted: make the score a function of z
            both = evaluate(z, *ctx.rest, score=True)
        return gradient * both[:, 1:], None, None


def evaluate(z: Tensor, prepared: Any, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
    """Log-density, (M, 1), and behind it the score, differentiable in what wants derivatives."""
    few = isinstance(prepared, clusters.Clusters)  # of the components, those that matter to a point
    components = prepared.components if few else prepared
    if kernels.tracked(*components) or (score and kernels.tracked(z)):
        return kernels.dense(z, components, exclude, score=score)
    if kernels.tracked(z):
        return _LogProb.apply(z, prepared, exclude)
    return clusters.evaluate(z, prepared, score=score) if few else kernels.all_pairs(z, prepared, exclude, score=score)


def log_sum_of_others(log_weight: Tensor) -> Tensor:
    """For each n the log of the sum of all other weights, without the cancellation of log(1 - w_n)."""
    nothing = -1e300  # instead of -inf, at which the derivatives of both functions are nan
    edge, log_weight = log_weight.new_full((1,), nothing), log_weight.clamp(min=nothing)
    before = torch.cat([edge, log_weight.logcumsumexp(0)[:-1]])
    others = torch.logaddexp(before, torch.cat([log_weight.flip(0).logcumsumexp(0).flip(0)[1:], edge]))
    return others.masked_fill(others < nothing / 2, -torch.inf)


def check_others(log_weight: Tensor, num: int) -> Tensor:
    """Check that others of positive weight remain where one of ``num`` components is left out."""
    if bool(log_weight.isneginf().any()):
        wanted, got = "other components of positive weight to remain", "a mixture in which the component left out"
        raise ValueError(f"index: expected {wanted}, got {got} is the only one (N = {num})")
    return log_weight
