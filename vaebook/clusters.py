r"""The same sums as in `vaebook.kernels`, but only over the components that can matter to a point.

Components are sorted once into clusters of neighbours (`cluster`). For each point one matrix product in float32, or in
float64 where float32 is too rough, computes all log-terms, and only the largest of each cluster is kept. A cluster is
left out if its largest term is below that of the best one by more than log N - log `NEGLIGIBLE` plus twice the rounding
error. All clusters left out add at most a share `NEGLIGIBLE` to the sum. The others are summed exactly, by the
functions of `vaebook.kernels`.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from vaebook import kernels

SIZE = 256
"""Largest number of components in a cluster."""
PAIRS, COMPONENTS = 2**21, 2**11
"""With fewer pairs of a point and a component, or no more components than this, all pairs are visited."""
BAND, ROWS, COLUMNS = 4096, 512, 2048
"""Points whose cluster maxima are held at once; points and components whose log-terms are, to fit the cache."""
NEGLIGIBLE = 1e-10
"""The most that all clusters left out may add to the sum, as a share of it."""
ROUGH = 8.0
"""Largest error bound, in nats, of terms that choose clusters: with a larger one too few could be left out."""
EACH = ("loc", "scale", "normaliser", "keys")
"""The fields of `kernels.Components` with a row for each component."""
MORE = 0.08
"""Bounds choose if they leave at most this share of clusters more than terms do, which take longer."""
SAMPLE, WORTH = 64, 0.45
"""Points of a trial: choosing is worth its cost if they need at most this share of the clusters."""


class Clusters(NamedTuple):
    """Components in clusters; see `prepare`."""

    components: kernels.Components  # in order, cluster after cluster; each is filled up with components of weight zero
    keys: dict[torch.dtype, Tensor]  # by the precision in which clusters are chosen
    size: int  # components in a cluster
    middle: Tensor  # (D, 1, clusters), half way between the least and the largest mean, minus that of all components
    half: Tensor  # (D, 1, clusters), from there to either
    widest: Tensor  # (D, 1, clusters), the largest scale
    highest: Tensor  # (clusters), the largest normaliser
    central: Tensor  # (clusters), the index of a component near the middle


def worth(num_components: int, num_points: int, device: torch.device) -> bool:
    """Return whether choosing clusters may be faster; on devices other than the processor it never is."""
    return device.type == "cpu" and num_components > COMPONENTS and num_components * num_points >= PAIRS


def cluster(points: Tensor) -> Tensor:
    """Divide points into clusters of neighbours, by halving the widest dimension again and again.

    Args:
        points: (N, D).

    Returns:
        The indices of the points of each cluster, (clusters, size), long; N fills clusters that have fewer.

    Example:
        >>> cluster(torch.arange(6.0)[:, None])
        tensor([[0, 1, 2, 3, 4, 5]])
    """
    num = len(points)
    levels = max(0, math.ceil(math.log2(num / SIZE)))
    order = torch.arange(-(-num // 2**levels) * 2**levels, device=points.device)
    points = torch.cat([points, points[:1].expand(len(order) - num, -1)])
    for level in range(levels):
        groups = order.view(2**level, -1)
        widest = points[groups].var(1).argmax(-1)
        order = groups.gather(1, points[groups, widest[:, None]].argsort(1)).flatten()
    return order.clamp(max=num).view(2**levels, -1)


def prepare(loc: Tensor, scale: Tensor, log_weight: Tensor, places: Tensor) -> Clusters:
    """Prepare components, given as for `kernels.prepare`, in the clusters returned by `cluster`."""
    index = places.flatten().clamp(max=len(loc) - 1)
    log_weight = log_weight[index].masked_fill(places.flatten() == len(loc), -torch.inf)
    components = kernels.prepare(loc[index], scale[index], log_weight)
    keys = {torch.float32: components.keys.float(), torch.float64: components.keys}
    parts, size = places.shape
    # A component of weight zero may be in a box, but not alone: what is left out only by it, matters to no sum.
    low, high = (components.loc - components.middle).view(parts, size, -1).aminmax(dim=1)
    middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    away = (components.loc.view(parts, size, -1) - components.middle - middle[:, None]).square().sum(-1)
    away = away.masked_fill(components.normaliser.view(parts, size).isneginf(), torch.inf)
    central = away.argmin(1) + size * torch.arange(parts)
    widest = components.scale.view(parts, size, -1).amax(1)
    box = (x.mT[:, None].contiguous() for x in (middle, half, widest))
    return Clusters(components, keys, size, *box, components.normaliser.view(parts, size).amax(1), central)


def evaluate(z: Tensor, clusters: Clusters, *, score: bool = False) -> Tensor:
    """Compute what `kernels.all_pairs` does, over the clusters that can matter to each point.

    Args:
        z: points, (M, D), float64.
        clusters: from `prepare`.
        score: append the score.

    Returns:
        (M, 1), or (M, 1 + D) with the score.

    Example:
        >>> loc = torch.randn(600, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> given = loc, torch.full_like(loc, 0.1), torch.zeros(600, dtype=torch.float64)
        >>> everything = kernels.all_pairs(loc, kernels.prepare(*given))
        >>> bool((everything - evaluate(loc, prepare(*given, cluster(loc)))).abs().max() < 1e-9)
        True
    """
    results, left = z.new_empty(len(z), 1 + z.shape[1] * score), torch.ones(len(z), dtype=torch.bool)
    rough = kernels.too_rough(z, clusters.components)
    for dtype, direct in product(clusters.keys, (False, True)):
        error = kernels.rounding_bound(z, clusters.components, dtype)
        index = (left & (rough == direct) & (error <= ROUGH)).nonzero()[:, 0]
        if len(index):
            results[index] = _chosen(z[index], clusters, error[index], dtype, direct=direct, score=score)
            left[index] = False
    results[left] = kernels.all_pairs(z[left], clusters.components, score=score)
    return results


def _chosen(z: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype, *, direct: bool, score: bool) -> Tensor:
    """Sum over the clusters that can matter to each point."""
    components, points = clusters.components, kernels.LOG2_E * kernels.queries(z, clusters.components)
    step, choose = max(1, len(z) // SAMPLE), needed
    if not direct:
        exact, rough = (float(f(points[::step], clusters, error[::step], dtype)[1].float().mean()) for f in (needed, bounded))
        if min(exact, rough) > WORTH:
            return kernels.attend(z, components, score=score)
        choose = bounded if rough < exact + MORE else needed
    results = z.new_empty(len(z), 1 + z.shape[1] * score)
    for band in (slice(start, start + BAND) for start in range(0, len(z), BAND)):
        top, wanted = choose(points[band], clusters, error[band], dtype)
        rows, points[band, -2:-1] = z[band] if direct else points[band], -top
        sums = z.new_zeros(len(rows), 1 + (1 if direct else 2) * z.shape[1] * score)
        for k, index in enumerate(wanted.mT.nonzero()[:, 1].split(wanted.sum(0).tolist())):
            members = slice(k * clusters.size, (k + 1) * clusters.size)
            if len(index) and direct:
                part = components._replace(**{name: getattr(components, name)[members] for name in EACH})
                found = kernels.dense(rows[index], part, score=score)
                weight = (kernels.LOG2_E * found[:, :1] - top[index]).exp2()
                sums.index_add_(0, index, torch.cat([weight * found[:, 1:], weight], 1))
            elif len(index):
                keys = components.keys[members]
                sums.index_add_(0, index, kernels.weigh(rows[index] @ keys.mT, keys, score=score))
        if direct:
            results[band] = torch.cat([sums[:, -1:].log() + top / kernels.LOG2_E, sums[:, :-1] / sums[:, -1:]], 1)
        else:
            results[band] = kernels.finish(z[band], components, top, sums)
    return results


def needed(points: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return each point's largest term, (M, 1), roughly, and which clusters can matter to it, (M, clusters)."""
    keys, size, points = clusters.keys[dtype], clusters.size, points.to(dtype)
    step, count = max(1, COLUMNS // size), len(keys) // size
    maxima, buffer = points.new_empty(len(points), count), points.new_empty(min(ROWS, len(points)) * step * size)
    for start, first in product(range(0, len(points), ROWS), range(0, count, step)):
        rows, part = points[start : start + ROWS], keys[first * size : (first + step) * size]
        terms = torch.mm(rows, part.mT, out=buffer[: len(rows) * len(part)].view(len(rows), len(part)))
        maxima[start : start + ROWS, first : first + step] = terms.view(len(rows), -1, size).amax(2)
    top, reach = maxima.amax(1, keepdim=True), math.log2(len(keys) / NEGLIGIBLE)
    return top.double(), maxima >= top - (reach + 2 * kernels.LOG2_E * error[:, None]).to(dtype)


def bounded(points: Tensor, clusters: Clusters, *_: object) -> tuple[Tensor, Tensor]:
    """Return what `needed` does, of few terms: a lower bound of each point's largest, and clusters that can matter.

    In each dimension a point is at some distance from the means of a cluster. With it and the cluster's largest
    scales and normaliser the cluster's terms are bounded from above.
    """
    dim = len(clusters.middle)
    gap = (points[:, dim : 2 * dim].mT[..., None] / kernels.LOG2_E - clusters.middle).abs_().sub_(clusters.half)
    highest = clusters.highest - 0.5 * gap.clamp_(min=0).div_(clusters.widest).square_().sum(0)
    top = (points @ clusters.components.keys[clusters.central].mT).amax(1, keepdim=True)
    reach = math.log2(len(clusters.components.keys) / NEGLIGIBLE)
    return top, kernels.LOG2_E * highest >= top - reach - 1
