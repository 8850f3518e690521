r"""The sum over components, in constant memory: pure functions on float64 tensors.

For M points, N components and D dimensions everything here rests on the M × N matrix of log-terms

    t[m, n] = log w_n + log N(z_m | mu_n, diag sigma_n²),

of which the callers want the log-sum-exp over n (the log-density), the softmax over n (the responsibilities)
and averages under that softmax. The matrix is never kept. A log-term has two forms. *Expanded*, it is a scalar product,

    t[m, n] = [z², z, 1] · [-1/(2 sigma²), mu/sigma², constant],

so that the log-density is the log-sum-exp of an attention, and its score can be read off that attention's output. This
is fast, but subtracts large numbers where sigma is small. *Direct*, it sums ((z - mu)/sigma)² and loses nothing.

`plan` says, row by row, how a call will be computed: in the direct form where the bound on the rounding error of the
expanded one asks for it; and, where components and points are many, only from clusters of components that can matter.
With derivatives in the components all rows go through `log_terms`, a few at a time, computed again on the way back. The
tests hold all of these ways to one oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vaebook.attention import COLUMNS, Exact, attend, attend_clusters, share_needed

BLOCK = 2**22
"""Entries of t held at once where derivatives or the softmax itself are wanted (32 MiB); one row is the least."""
PART = 2**14
"""Points that go through at once without derivatives: what is held of each, [z², z, 1] and sums, is a small part."""
TILE = 2**16
"""Entries that the direct form works on at once, small enough to stay in cache."""
TOLERANCE = 1e-8
"""Nats that the expanded form may lose by its bound; beyond it the direct form is used."""
MANY, FEW = 2**21, 16
"""Pairs of point and component from which on clusters may pay, and the least number of clusters that may."""
SAMPLE, WORTH = 64, 0.45
"""Points on which is tried whether clusters pay, and the share of them that may be needed if they do."""
ROUGH = 8.0
"""Nats by which a score may be off, by its bound, if clusters are to be chosen by it."""


class Components(NamedTuple):
    """What both forms need of the components, computed once a call (see `prepare`)."""

    loc: Tensor  # (N, D), as given
    scale: Tensor  # (N, D), as given
    normaliser: Tensor  # (N), log w - D/2 log 2π - sum_j log sigma_j
    middle: Tensor  # (D)
    keys: Tensor  # (N, 2D + 1), [-1/(2 sigma²), mu/sigma², constant] with mu minus the middle; or ordered by cluster
    clusters: int  # into how many clusters the keys are ordered, 0 for none
    order: Tensor | None  # their places, (keys), long; N for padding
    rough: Tensor | None  # the keys in float32, by which clusters are chosen
    farthest: Tensor  # (D), max_n |mu_n|
    sharpest: Tensor  # (D), max_n 1/sigma_n²


class Plan(NamedTuple):
    """How a log-density will be computed at each of M points."""

    direct: Tensor  # (M), bool: by sums of squares, because the expanded form would lose too much
    precision: Tensor  # (M), int: 32 or 64, the bits in which clusters that matter are chosen; 0, no choice, all matter


def prepare(loc: Tensor, scale: Tensor, log_weight: Tensor, *, order: tuple[Tensor, int] | None = None) -> Components:
    """Prepare components for the functions below.

    The expanded form shifts points and means by the middle of the means: their differences stay, the numbers shrink.

    Args:
        loc: means, (N, D), float64.
        scale: standard deviations, (N, D), float64.
        log_weight: log-weights, (N), float64; -inf is allowed.
        order: from `vaebook.attention.cluster`; allows the log-density to be computed by clusters.

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
    centred, precision = loc - middle, scale.square().reciprocal()
    normaliser = log_weight - 0.5 * loc.shape[1] * math.log(2 * math.pi) - scale.log().sum(-1)
    constant = normaliser - 0.5 * (centred.square() * precision).sum(-1)
    keys = torch.cat([-0.5 * precision, centred * precision, constant[:, None]], -1)
    farthest, sharpest = centred.detach().abs().amax(0), precision.detach().amax(0)
    places, clusters = (None, 0) if order is None else order
    if places is not None:
        keys = keys[places.clamp(max=len(loc) - 1)]
        keys[:, -1].masked_fill_(places == len(loc), -torch.inf)
    rough = None if places is None else keys.float()
    return Components(loc, scale, normaliser, middle, keys, clusters, places, rough, farthest, sharpest)


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
    return 2 * torch.finfo(z.dtype).eps * _size_of_products(z, components)


def plan(z: Tensor, components: Components) -> Plan:
    """Choose how to compute the log-density at each point; see `Plan`.

    Args:
        z: points, (M, D), float64.
        components: from `prepare`.

    Returns:
        The choice.

    Example:
        >>> import torch
        >>> loc = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> plan(loc, prepare(loc, torch.full_like(loc, 1e-6), torch.zeros(2, dtype=torch.float64))).direct
        tensor([True, True])
    """
    loss = rounding_bound(z, components)
    direct = ~(loss <= TOLERANCE)  # also where the bound is nan
    precision = torch.zeros_like(direct, dtype=torch.int)
    if components.clusters >= FEW and len(z) * len(components.loc) >= MANY and z.device.type == "cpu":
        precision[loss <= ROUGH] = 64
        precision[_rough_error(z, components) <= ROUGH] = 32
    return Plan(direct, precision)


def log_terms(z: Tensor, components: Components, *, direct: bool | None = None) -> Tensor:
    r"""Compute the matrix of log-terms, all of it at once.

    $t_{mn} = \log w_n - \tfrac{D}{2}\log 2\pi - \sum_j \log\sigma_{nj}
    - \tfrac12\sum_j (z_{mj}-\mu_{nj})^2/\sigma_{nj}^2$.

    Args:
        z: points, (M, D), float64.
        components: from `prepare`, not ordered by clusters.
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
        direct = _too_rough(z, components)
    if direct:
        return components.normaliser - 0.5 * _squared_distance(z, components)
    return _queries(z, components) @ components.keys.mT


def logsumexp_terms(z: Tensor, components: Components, *, exclude: Tensor | None = None) -> Tensor:
    """Log-sum-exp of the log-terms over components: (M). ``exclude`` (M) drops one component a row."""
    if _tracked(*components):
        return _by_rows(partial(_dense, components=components), z, exclude, components)[:, 0]
    if _tracked(z):
        return _LogDensity.apply(z, components, exclude)
    return _chosen(z, components, exclude, score=False)[:, 0]


def logsumexp_and_score(z: Tensor, components: Components, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp over components (M) and its gradient in z (M, D), the score.

    $\nabla_z \log\sum_n e^{t_n} = \sum_n r_n\,(\mu_n - z)/\sigma_n^2$ with responsibilities $r = \mathrm{softmax}(t)$:
    the average of the keys $[-1/(2\sigma_n^2), \mu_n/\sigma_n^2]$ under r holds all that it needs.
    """
    if _tracked(z, *components):
        both = _by_rows(partial(_dense, components=components, score=True), z, exclude, components)
    else:
        both = _chosen(z, components, exclude, score=True)
    return both[:, 0], both[:, 1:]


def softmax_terms(z: Tensor, components: Components) -> Tensor:
    """Softmax of the log-terms over components: the responsibilities, (M, N). Rows sum to 1."""
    return _by_rows(lambda z, _: log_terms(z, components).softmax(-1), z, None, components)


def average_terms(z: Tensor, components: Components, values: Tensor) -> Tensor:
    """Average of ``values`` (N, P), of any floating dtype, under the responsibilities: (M, P)."""
    if _tracked(z, values, *components) or bool(plan(z, components).direct.any()):
        block = partial(_dense_average, components=components, values=values)
        return _by_rows(block, z, None, components, values)
    return attend(_queries(z, components), components.keys, values=values)[:, 1:]


class _LogDensity(torch.autograd.Function):
    """The log-density as a function of the points alone: its derivative is the score, which costs little more."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, components: Components, exclude: Tensor | None) -> Tensor:
        value, score = logsumexp_and_score(z.detach(), components, exclude=exclude)
        ctx.save_for_backward(z, score)
        ctx.components, ctx.exclude = components, exclude
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, score = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative may be wanted: make the score a function of z
            score = logsumexp_and_score(z, ctx.components, exclude=ctx.exclude)[1]
        return gradient[:, None] * score, None, None


def _chosen(z: Tensor, components: Components, exclude: Tensor | None, *, score: bool) -> Tensor:
    """Log-sum-exp, and behind it the score, each row as `plan` says; a part of the points at a time."""
    results = z.new_empty(len(z), 1 + z.shape[1] if score else 1)
    for start in range(0, len(z), PART):
        part = slice(start, start + PART)
        dropped = None if exclude is None else exclude[part]
        results[part] = _part_chosen(z[part], components, dropped, score=score)
    return results


def _part_chosen(z: Tensor, components: Components, exclude: Tensor | None, *, score: bool) -> Tensor:
    chosen = plan(z, components)
    results = z.new_empty(len(z), 1 + z.shape[1] if score else 1)
    for direct, precision in product((False, True), (0, 32, 64)):
        mask = (chosen.direct == direct) & (chosen.precision == precision)
        if not bool(mask.any()):
            continue
        rows, dropped = z[mask], None if exclude is None else exclude[mask]
        if precision:
            results[mask] = _by_clusters(rows, components, precision, direct=direct, score=score)
        elif direct:
            results[mask] = _by_rows(partial(_dense, components=components, score=score), rows, dropped, components)
        else:
            values = components.keys[:, :-1] if score else None
            found = attend(_queries(rows, components), components.keys, values=values, exclude=dropped)
            results[mask] = _with_score(rows, components, found)
    return results


def _by_clusters(z: Tensor, components: Components, precision: int, *, direct: bool, score: bool) -> Tensor:
    """Log-sum-exp, and behind it the score, from the clusters that can matter."""
    queries, keys, count = _queries(z, components), components.keys, components.clusters
    members, places = keys.view(count, -1, keys.shape[1]), components.order.view(count, -1)

    def some(k: int) -> Components:
        index = places[k].clamp(max=len(components.loc) - 1)
        normaliser = components.normaliser[index].masked_fill(places[k] == len(components.loc), -torch.inf)
        return components._replace(loc=components.loc[index], scale=components.scale[index], normaliser=normaliser)

    if direct:
        exact = Exact(
            lambda index, k: log_terms(z[index], some(k), direct=True),
            lambda terms, index, k: _direct_pull(z[index], some(k), terms),
        )
    else:
        exact = Exact(lambda index, k: queries[index] @ members[k].mT, lambda terms, _, k: terms @ members[k, :, :-1])
    error = _rough_error(z, components) if precision == 32 else rounding_bound(z, components)
    width = z.shape[1] if direct else keys.shape[1] - 1
    exact, width = (exact, width) if score else (exact._replace(sums=None), 0)
    rough, rough_keys = (queries.float(), components.rough) if precision == 32 else (queries, keys)
    step = max(1, len(z) // SAMPLE)
    if not direct and share_needed(rough[::step], rough_keys, count, error[::step]) > WORTH:
        found = attend(queries, keys, values=keys[:, :-1] if score else None)
    else:
        found = attend_clusters(rough, rough_keys, count, error, exact, width=width)
    return found if direct else _with_score(z, components, found)


def _dense(z: Tensor, exclude: Tensor | None, *, components: Components, score: bool = False) -> Tensor:
    """Log-sum-exp, and behind it the score, from the whole matrix of log-terms; differentiable."""
    direct = _too_rough(z, components)
    terms = log_terms(z, components, direct=direct)
    if exclude is not None:
        terms = terms.scatter(-1, exclude[:, None], -torch.inf)
    # About its own maximum: the weights of torch's derivative sum to 1 only to within eps times the value.
    top = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    value = (terms - top).exp().sum(-1, keepdim=True).log() + top
    if not score:
        return value
    r = terms.softmax(-1)
    if direct:
        return torch.cat([value, _direct_pull(z, components, r)], -1)
    return _with_score(z, components, torch.cat([value, r @ components.keys[:, :-1]], -1))


def _with_score(z: Tensor, components: Components, found: Tensor) -> Tensor:
    """Turn the averages of the keys, an attention's output, into the score; found without them stays as it is."""
    if found.shape[1] == 1:
        return found
    stiffness, pull = found[:, 1:].chunk(2, -1)
    return torch.cat([found[:, :1], pull + 2 * stiffness * (z - components.middle)], -1)


def _direct_pull(z: Tensor, components: Components, weight: Tensor) -> Tensor:
    """Sum of (mu - z)/sigma² over components under given weights (M, N): (M, D)."""
    columns = zip(z.unbind(1), components.loc.unbind(1), components.scale.unbind(1), strict=True)
    return torch.stack([((loc - z[:, None]) / scale.square() * weight).sum(-1) for z, loc, scale in columns], -1)


def _dense_average(z: Tensor, _: None, *, components: Components, values: Tensor) -> Tensor:
    """Average values from the whole matrix of log-terms, a part at a time: a float64 copy of all could be large."""
    r = log_terms(z, components).softmax(-1)
    parts = zip(r.split(COLUMNS, -1), values.split(COLUMNS), strict=True)
    return sum(part @ some.to(part) for part, some in parts)


def _queries(z: Tensor, components: Components) -> Tensor:
    """[z², z, 1] with z minus the middle: (M, 2D + 1)."""
    z = z - components.middle
    return torch.cat([z.square(), z, z.new_ones(len(z), 1)], -1)


def _size_of_products(z: Tensor, components: Components) -> Tensor:
    """Bound the sum of the sizes of the products in the worst log-term, twice over: (M)."""
    reach = (z.detach() - components.middle).abs() + components.farthest
    return reach.square() @ components.sharpest


def _rough_error(z: Tensor, components: Components) -> Tensor:
    """Bound the error in nats of an expanded log-term in float32: inputs and every sum are rounded."""
    normaliser = components.normaliser.detach()
    largest = normaliser.masked_fill(normaliser.isinf(), 0.0).abs().max()
    steps = (2 * z.shape[1] + 4) * torch.finfo(torch.float32).eps
    return steps * (_size_of_products(z, components) + largest)


def _too_rough(z: Tensor, components: Components) -> bool:
    return not bool((rounding_bound(z, components) <= TOLERANCE).all())  # also where the bound is nan


def _squared_distance(z: Tensor, components: Components) -> Tensor:
    """Sum of ((z - mu)/sigma)² over dimensions, (M, N), one tile of components at a time."""
    size = max(1, TILE // max(1, z.shape[0]))
    tiles = []
    for loc, scale in zip(components.loc.split(size), components.scale.split(size), strict=True):
        total = z.new_zeros(z.shape[0], loc.shape[0])
        for z_j, loc_j, inverse_j in zip(z.unbind(1), loc.unbind(1), scale.reciprocal().unbind(1), strict=True):
            total = total + ((z_j[:, None] - loc_j) * inverse_j).square()
        tiles.append(total)
    return torch.cat(tiles, -1)


def _tracked(*values: object) -> bool:
    """Whether derivatives with respect to any of these are wanted."""
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _by_rows(
    block: Callable[[Tensor, Tensor | None], Tensor],
    z: Tensor,
    exclude: Tensor | None,
    components: Components,
    *others: Tensor,
) -> Tensor:
    """Apply ``block`` to a few rows of z at a time; recompute rather than keep what derivatives need."""
    num_components, dim = components.loc.shape
    tracked = _tracked(z, *components, *others)
    rows = max(1, BLOCK // (num_components * (dim if tracked else 1)))
    if tracked and z.shape[0] > rows:
        block = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    parts = z.split(rows)
    excludes = [None] * len(parts) if exclude is None else exclude.split(rows)
    results = (block(part, e) for part, e in zip(parts, excludes, strict=True))
    if tracked:
        return torch.cat(list(results))
    # Without derivatives, write into one tensor: small results left between large temporaries fragment the heap.
    first = next(results)
    whole = first.new_empty(z.shape[0], *first.shape[1:])
    for start, result in zip(range(0, max(1, z.shape[0]), rows), chain([first], results), strict=True):
        whole[start : start + rows] = result
    return whole
