r"""The sum over components, in constant memory: pure functions on float64 tensors.

For M points, N components and D dimensions everything here rests on the M × N matrix of log-terms

    t[m, n] = log w_n + log N(z_m | mu_n, diag sigma_n²),

of which the callers want the log-sum-exp over n (the log-density), the softmax over n (the responsibilities)
and averages under that softmax. The matrix is built a few rows at a time and never kept, so memory does not
grow with M × N; with derivatives each block of rows is computed again on the way back.

A log-term has two forms. *Expanded*, it is one matrix product,

    t = [z², z] · [-1/(2 sigma²), mu/sigma²] + constant,

which is fast, but subtracts large numbers where sigma is small. *Direct*, it sums ((z - mu)/sigma)² and loses
nothing. `rounding_bound` bounds the loss of the expanded form before anything is computed; each block of rows
takes the fast form where the bound allows it and the direct form otherwise. The tests hold both to one oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 2**22
"""Entries of t held at once (32 MiB in float64); one row is the least."""
TILE = 2**16
"""Entries that the direct form works on at once, small enough to stay in cache."""
TOLERANCE = 1e-8
"""Nats that the expanded form may lose by its bound; beyond it the direct form is used."""


class Components(NamedTuple):
    """What both forms need of the components, computed once a call (see `prepare`)."""

    loc: Tensor  # (N, D), as given
    inverse: Tensor  # (N, D), 1/sigma
    normaliser: Tensor  # (N), log w - D/2 log 2π - sum_j log sigma_j
    middle: Tensor  # (D)
    keys: Tensor  # (N, 2D), [-1/(2 sigma²), mu/sigma²] with mu minus the middle
    constant: Tensor  # (N), normaliser - sum_j mu²/(2 sigma²)
    farthest: Tensor  # (D), max_n |mu_n|
    sharpest: Tensor  # (D), max_n 1/sigma_n²


def prepare(loc: Tensor, scale: Tensor, log_weight: Tensor) -> Components:
    """Prepare components for the functions below.

    The expanded form shifts points and means by the middle of the means: their differences stay, the numbers shrink.

    Args:
        loc: means, (N, D), float64.
        scale: standard deviations, (N, D), float64.
        log_weight: log-weights, (N), float64; -inf is allowed.

    Returns:
        The prepared components.

    Example:
        >>> import torch
        >>> one = torch.ones(2, 1, dtype=torch.float64)
        >>> prepare(torch.tensor([[1.0], [3.0]]).double(), one, torch.zeros(2).double()).middle
        tensor([2.], dtype=torch.float64)
    """
    low, high = loc.detach().aminmax(dim=0)
    middle = 0.5 * (low + high)
    centred, inverse = loc - middle, scale.reciprocal()
    precision = inverse.square()
    normaliser = log_weight - 0.5 * loc.shape[1] * math.log(2 * math.pi) + inverse.log().sum(-1)
    keys = torch.cat([-0.5 * precision, centred * precision], -1)
    constant = normaliser - 0.5 * (centred.square() * precision).sum(-1)
    farthest, sharpest = centred.detach().abs().amax(0), precision.detach().amax(0)
    return Components(loc, inverse, normaliser, middle, keys, constant, farthest, sharpest)


def rounding_bound(z: Tensor, components: Components) -> Tensor:
    r"""Bound, row by row, the rounding error in nats of the expanded form in float64.

    $4\epsilon\sum_j (|z_j| + \max_n|\mu_{nj}|)^2 \max_n 1/(2\sigma_{nj}^2)$ with z and mu centred. The sum takes the
    worst component in every coordinate, so the bound is far above the usual error.

    Args:
        z: points, (M, D).
        components: from `prepare`.

    Returns:
        The bound, (M), in nats.

    Example:
        >>> import torch
        >>> loc = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> sharp = prepare(loc, torch.full_like(loc, 1e-6), torch.zeros(2, dtype=torch.float64))
        >>> bool((rounding_bound(loc, sharp) > TOLERANCE).all())
        True
    """
    reach = (z.detach() - components.middle).abs() + components.farthest
    return 2 * torch.finfo(z.dtype).eps * (reach.square() @ components.sharpest)


def log_terms(z: Tensor, components: Components, *, direct: bool | None = None) -> Tensor:
    r"""Compute the matrix of log-terms, all of it at once.

    $t_{mn} = \log w_n - \tfrac{D}{2}\log 2\pi - \sum_j \log\sigma_{nj}
    - \tfrac12\sum_j (z_{mj}-\mu_{nj})^2/\sigma_{nj}^2$.

    Args:
        z: points, (M, D), float64.
        components: from `prepare`.
        direct: force the direct (True) or the expanded (False) form; None decides by `rounding_bound`.

    Returns:
        t, (M, N), in nats.

    Example:
        >>> import torch
        >>> z, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
        >>> log_terms(z, prepare(0 * one, one, torch.zeros(2, dtype=torch.float64)))
        tensor([[-0.9189, -0.9189]], dtype=torch.float64)
    """
    if direct is None:
        direct = bool((rounding_bound(z, components) > TOLERANCE).any())
    if direct:
        return components.normaliser - 0.5 * _squared_distance(z, components)
    z = z - components.middle
    return torch.addmm(components.constant, torch.cat([z.square(), z], -1), components.keys.mT)


def logsumexp_terms(z: Tensor, components: Components, *, exclude: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the log-terms over components: (M). ``exclude`` (M) drops one component a row."""

    def block(z: Tensor, exclude: Tensor | None, *components: Tensor) -> Tensor:
        terms = log_terms(z, Components(*components))
        if exclude is not None:
            terms = terms.scatter(-1, exclude[:, None], -torch.inf)
        return terms.logsumexp(-1)

    return _by_rows(block, z, exclude, components)


def softmax_terms(z: Tensor, components: Components) -> Tensor:
    """Softmax of the log-terms over components: the responsibilities, (M, N). Rows sum to 1."""

    def block(z: Tensor, _: None, *components: Tensor) -> Tensor:
        return log_terms(z, Components(*components)).softmax(-1)

    return _by_rows(block, z, None, components)


def average_terms(z: Tensor, components: Components, values: Tensor) -> Tensor:
    """Average of ``values`` (N, P) under the responsibilities: (M, P)."""

    def block(z: Tensor, _: None, *tensors: Tensor) -> Tensor:
        return log_terms(z, Components(*tensors[:-1])).softmax(-1) @ tensors[-1]

    return _by_rows(block, z, None, (*components, values))


def logsumexp_and_score(z: Tensor, components: Components) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp over components (M) and its gradient in z (M, D), the score.

    $\nabla_z \log\sum_n e^{t_n} = \sum_n r_n\,(\mu_n - z)/\sigma_n^2$ with responsibilities $r = \mathrm{softmax}(t)$:
    the average of the keys $[-1/(2\sigma_n^2), \mu_n/\sigma_n^2]$ under r holds all that it needs.
    """

    def block(z: Tensor, _: None, *components: Tensor) -> Tensor:
        held = Components(*components)
        terms = log_terms(z, held)
        stiffness, pull = (terms.softmax(-1) @ held.keys).chunk(2, -1)
        return torch.cat([terms.logsumexp(-1, keepdim=True), pull + 2 * stiffness * (z - held.middle)], -1)

    both = _by_rows(block, z, None, components)
    return both[:, 0], both[:, 1:]


def _squared_distance(z: Tensor, components: Components) -> Tensor:
    """Sum of ((z - mu)/sigma)² over dimensions, (M, N), one tile of components at a time."""
    size = max(1, TILE // max(1, z.shape[0]))
    tiles = []
    for loc, inverse in zip(components.loc.split(size), components.inverse.split(size), strict=True):
        total = z.new_zeros(z.shape[0], loc.shape[0])
        for j in range(z.shape[1]):
            total = total + ((z[:, j, None] - loc[:, j]) * inverse[:, j]).square()
        tiles.append(total)
    return torch.cat(tiles, -1)


def _by_rows(block: Callable[..., Tensor], z: Tensor, exclude: Tensor | None, tensors: tuple[Tensor, ...]) -> Tensor:
    """Apply ``block`` to a few rows of z at a time; recompute rather than keep what derivatives need."""
    num_components, dim = tensors[0].shape
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (z, *tensors))
    rows = max(1, BLOCK // (num_components * (dim if tracked else 1)))
    if tracked and z.shape[0] > rows:
        block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    parts = z.split(rows)
    excludes = [None] * len(parts) if exclude is None else exclude.split(rows)
    results = (block(part, e, *tensors) for part, e in zip(parts, excludes, strict=True))
    if tracked:
        return torch.cat(list(results))
    # Without derivatives, write into one tensor: small results left between large temporaries fragment the heap.
    first = next(results)
    whole = first.new_empty(z.shape[0], *first.shape[1:])
    for start, result in zip(range(0, max(1, z.shape[0]), rows), chain([first], results), strict=True):
        whole[start : start + rows] = result
    return whole
