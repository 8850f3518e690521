r"""Attention without its matrix: log-sum-exp and output over many keys, in constant memory.

For queries Q (M, C) and keys W (N, C) everything here is about the scores s = Q Wᵀ, of which it returns

    log sum_n exp s[m, n]        and        sum_n softmax(s)[m, n] V[n],

the log-sum-exp and the output of an attention with values V (N, V). The M × N matrix never exists: scores are
made a block at a time, small enough to stay in cache, and folded into running sums about a running maximum.

`attend` does that to every pair. `attend_clusters` first makes rough scores, in float32 if that will do, and keeps only
their maximum over each cluster of neighbouring keys; clusters that provably cannot matter to a query are then left
out of the exact sums. What is left out is bounded before: see `NEGLIGIBLE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 2048
"""Sides of a block of scores (8 MiB in float64)."""
CLUSTER = 256
"""Largest number of keys in a cluster."""
BAND = 4096
"""Queries of which `attend_clusters` holds the maxima at once, 4 bytes a query and cluster."""
NEGLIGIBLE = 1e-10
"""What all clusters that are left out may add to the log-sum-exp, in nats."""
OVERFLOW = 0.65
"""The maximum is raised when the sum of a block exceeds this power of the largest number, 1e200 in float64."""
UNDERFLOW = 0.98
"""Exponents are no smaller than this share of the smallest number's logarithm, -694 in float64: lower, exp is slow."""


def cluster(points: Tensor) -> tuple[Tensor, int]:
    """Order points so that neighbours stand together, by halving the widest dimension again and again.

    Args:
        points: (N, D).

    Returns:
        An order, (L · size) long, of which entry k·size … is cluster k of neighbours; entries equal to N pad the
        clusters to one size. And the number L of clusters, a power of two.

    Example:
        >>> order, clusters = cluster(torch.arange(6.0)[:, None])
        >>> order.tolist(), clusters
        ([0, 1, 2, 3, 4, 5], 1)
    """
    num_points = points.shape[0]
    levels = max(0, math.ceil(math.log2(num_points / CLUSTER)))
    size = -(-num_points // 2**levels)
    order = torch.arange(size * 2**levels, device=points.device)
    pads = order >= num_points
    where = torch.cat([points, points[:1].expand(int(pads.sum()), -1)])
    for level in range(levels):
        groups = order.view(2**level, -1)
        widest = where[groups].var(1).argmax(-1)
        along = where[groups, widest[:, None]]
        order = groups.gather(1, along.argsort(1)).flatten()
    return order.where(~pads[order], num_points), 2**levels


def attend(queries: Tensor, keys: Tensor, *, values: Tensor | None = None, exclude: Tensor | None = None) -> Tensor:
    r"""Log-sum-exp of all scores, and the output if it is asked for.

    Args:
        queries: (M, C).
        keys: (N, C); the last column may be -inf, the others are finite.
        values: one row a key, (N, V), of any floating dtype; None for the log-sum-exp alone.
        exclude: for each query one key to leave out, (M), long.

    Returns:
        (M, 1 + V): the log-sum-exp, and behind it the averages of the values.

    Example:
        >>> attend(torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0]]))  # log 2
        tensor([[0.6931]])
    """
    width = 1 if values is None else 1 + values.shape[1]
    results = queries.new_empty(len(queries), width)
    buffer = queries.new_empty(min(ROWS, len(queries)) * min(COLUMNS, len(keys)))
    for start in range(0, len(queries), BAND):
        band = queries[start : start + BAND]
        # A last column carries minus the maximum so far, and ones on the side of the keys: the product subtracts it.
        rows = torch.cat([band, band.new_zeros(len(band), 1)], 1)
        top, sums = rows.new_full((len(rows), 1), torch.finfo(rows.dtype).min), rows.new_zeros(len(rows), width)
        for first in range(0, len(keys), COLUMNS):
            part = keys[first : first + COLUMNS]
            part = torch.cat([part, part.new_ones(len(part), 1)], 1)
            some = None if values is None else values[first : first + COLUMNS].to(rows.dtype)
            out = None if exclude is None else exclude[start : start + BAND] - first
            for here in torch.arange(len(rows)).split(ROWS):
                k = slice(int(here[0]), int(here[-1]) + 1)
                _fold(rows[k], part, some, None if out is None else out[k], top[k], sums[k], buffer, new=first == 0)
        results[start : start + BAND] = _finish(sums, top)
    return results


def _fold(
    rows: Tensor,
    keys: Tensor,
    values: Tensor | None,
    exclude: Tensor | None,
    top: Tensor,
    sums: Tensor,
    buffer: Tensor,
    *,
    new: bool,
) -> None:
    """Add a block of scores to the running sums about the running maximum; raise that where they would overflow."""
    block = buffer[: len(rows) * len(keys)].view(len(rows), len(keys))

    def scores() -> Tensor:
        torch.mm(rows, keys.mT, out=block)
        if exclude is not None:
            _drop(block, exclude)
        return block

    total = None if new else _exp(scores()).sum(1, keepdim=True)
    if total is None or not bool((total < torch.finfo(total.dtype).max ** OVERFLOW).all()):
        rows[:, -1] = 0
        risen = torch.maximum(top, scores().amax(1, keepdim=True))
        sums *= (top - risen).exp_()
        top.copy_(risen)
        rows[:, -1:] = -risen
        total = _exp(block.sub_(risen)).sum(1, keepdim=True)
    sums[:, :1] += total
    if values is not None:
        sums[:, 1:] += block @ values


class Exact(NamedTuple):
    """What `attend_clusters` asks about some queries (their places, long) and one cluster (its number)."""

    scores: Callable[[Tensor, int], Tensor]
    """Their scores, (queries, cluster), in float64 and not to be used again."""
    sums: Callable[[Tensor, Tensor, int], Tensor] | None = None
    """The values summed under given terms (queries, cluster): (queries, V). None: only the log-sum-exp is wanted."""


def attend_clusters(
    queries: Tensor, keys: Tensor, clusters: int, error: Tensor, exact: Exact | None = None, *, width: int = 0
) -> Tensor:
    r"""Log-sum-exp of all scores that can matter, and the averages of values.

    A cluster whose largest score is below that of the best cluster by more than log N - log `NEGLIGIBLE` adds, together
    with all others like it, at most a share `NEGLIGIBLE` to the sum. Maxima are taken in the dtype of the queries, so
    the threshold is lowered by twice the error that this can make.

    Args:
        queries: (M, C), float32 or float64: clusters are chosen with them.
        keys: (N, C), in the same dtype, as ordered by `cluster`.
        clusters: their number, a divisor of N.
        error: bound on the error of a score of these queries and keys, (M).
        exact: computes the scores that are summed, by default from queries and keys too.
        width: V, the number of averages that ``exact`` computes.

    Returns:
        (M, 1 + V), float64: the log-sum-exp, and behind it the averages.

    Example:
        >>> keys = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> order, clusters = cluster(keys)
        >>> everything = attend(keys, keys)
        >>> chosen = attend_clusters(keys, keys[order], clusters, torch.zeros(600))
        >>> clusters, bool((everything - chosen).abs().max() < 1e-9)
        (4, True)
    """
    size = len(keys) // clusters
    if exact is None:
        exact = Exact(lambda index, k: queries[index].double() @ keys[k * size : (k + 1) * size].double().mT)
    results = queries.new_empty(len(queries), 1 + width, dtype=torch.float64)
    for start in range(0, len(queries), BAND):
        top, needed = _needed(queries[start : start + BAND], keys, clusters, error[start : start + BAND])
        top, sums = top.double(), results.new_zeros(len(top), 1 + width)
        for k, who in enumerate(needed.mT.contiguous()):
            index = who.nonzero()[:, 0]
            if len(index):
                terms = _exp(exact.scores(start + index, k).sub_(top[index]))
                sums[:, :1].index_add_(0, index, terms.sum(1, keepdim=True))
                if exact.sums is not None:
                    sums[:, 1:].index_add_(0, index, exact.sums(terms, start + index, k))
        results[start : start + BAND] = _finish(sums, top)
    return results


def share_needed(queries: Tensor, keys: Tensor, clusters: int, error: Tensor) -> float:
    """Share of the clusters that can matter, on average over the queries; arguments as in `attend_clusters`."""
    return float(_needed(queries, keys, clusters, error)[1].float().mean())


def _needed(queries: Tensor, keys: Tensor, clusters: int, error: Tensor) -> tuple[Tensor, Tensor]:
    """Rough maximum of each query's scores, (M, 1), and which clusters can matter to it, (M, clusters)."""
    maxima = _cluster_maxima(queries, keys, clusters)
    top, reach = maxima.amax(1, keepdim=True), math.log(len(keys)) - math.log(NEGLIGIBLE)
    return top, maxima >= top - (reach + 2 * error[:, None]).to(maxima.dtype)


def _cluster_maxima(queries: Tensor, keys: Tensor, clusters: int) -> Tensor:
    """Largest score of each query in each cluster, (M, clusters)."""
    size = len(keys) // clusters
    step = max(1, COLUMNS // size)
    maxima = queries.new_empty(len(queries), clusters)
    buffer = queries.new_empty(min(ROWS, len(queries)) * step * size)
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS]
        for first in range(0, clusters, step):
            part = keys[first * size : (first + step) * size]
            scores = torch.mm(rows, part.mT, out=buffer[: len(rows) * len(part)].view(len(rows), len(part)))
            maxima[start : start + ROWS, first : first + step] = scores.view(len(rows), -1, size).amax(2)
    return maxima


def _drop(scores: Tensor, exclude: Tensor) -> None:
    """Set one score a row to -inf, where it is among these columns."""
    here = ((exclude >= 0) & (exclude < scores.shape[1])).nonzero()[:, 0]
    scores[here, exclude[here]] = -torch.inf


def _exp(scores: Tensor) -> Tensor:
    """Exponentials, in place; those that underflow are kept at a number too small to matter."""
    return scores.clamp_(min=UNDERFLOW * math.log(torch.finfo(scores.dtype).tiny)).exp_()


def _finish(sums: Tensor, top: Tensor) -> Tensor:
    """Turn sums about the maximum into log-sum-exp and averages."""
    total = sums[:, :1]
    return torch.cat([total.log() + top, sums[:, 1:] / total], 1)
