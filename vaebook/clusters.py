r"""The same sums as in `vaebook.kernels`, but only over the components that can matter to a point.

Components are sorted once into clusters of neighbours (`cluster`). A cluster is left out at a point if all its terms
are below the point's largest one by more than log N - log `NEGLIGIBLE`. All clusters left out add at most a share
`NEGLIGIBLE` to the sum. The others are summed exactly, by the functions of `vaebook.kernels`.

Which clusters these are is found in two ways. By terms (`needed`): one matrix product in float32, or in float64 where
float32 is too rough, computes all of them, and twice its rounding error is allowed for. By bounds (`bounded`): the
smallest box that holds a cluster's means tells how large its terms can be. Bounds take a tenth of the time, but are
loose in many dimensions. A trial with a few points decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

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
SAMPLE, WORTH, MORE = 64, 0.45, 0.08
"""Points of a trial: choosing is worth its cost if they need at most a share `WORTH` of the clusters, and is done by
bounds if these leave at most `MORE` of all clusters more than terms do, which take longer."""
WITHIN = 900.0
"""How far apart, in base 2, bounds on a point's largest term may be, so that no power of 2 overflows."""


class Clusters(NamedTuple):
    """Components in clusters; see `prepare`."""

    components: kernels.Components  # in order, cluster after cluster; each is filled up with components of weight zero
    keys: dict[torch.dtype, Tensor]  # by the precision in which clusters are chosen
    size: int  # components in a cluster
    box: Tensor  # (D, 3, clusters): the middle of its means, half their range, and what divides by its largest scale,
    # in units of the points of `bounded`
    highest: Tensor  # (clusters), the largest normaliser, in base 2
    central: Tensor  # (clusters, 2D + 2), the keys of a component near the middle


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
    index, added = places.flatten() % len(loc), places.flatten() == len(loc)  # what fills a cluster stays in its box
    components = kernels.prepare(loc[index], scale[index], log_weight[index].masked_fill(added, -torch.inf))
    keys = {torch.float32: components.keys.float(), torch.float64: components.keys}
    centred, scales = (x.view(*places.shape, -1) for x in (components.loc - components.middle, components.scale))
    low, high = centred.aminmax(dim=1)
    middle, half, normaliser = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low, components.normaliser.view(places.shape)
    away = (centred - middle[:, None]).square().sum(-1).masked_fill(normaliser.isneginf(), torch.inf)
    central = components.keys.view(*places.shape, -1)[torch.arange(len(places), device=loc.device), away.argmin(1)]
    sides = kernels.LOG2_E * middle, kernels.LOG2_E * half, (2 * kernels.LOG2_E) ** -0.5 / scales.amax(1)
    box = torch.stack([side.mT for side in sides], 1)
    return Clusters(components, keys, places.shape[1], box, kernels.LOG2_E * normaliser.amax(1), central)


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
    results, rough = z.new_empty(len(z), 1 + z.shape[1] * score), kernels.too_rough(z, clusters.components)
    for dtype in clusters.keys:  # where float64 is good enough for the sum, float32 is for the choice
        error = kernels.rounding_bound(z, clusters.components, dtype)
        index = ((rough == (dtype == torch.float64)) & (error <= ROUGH)).nonzero()[:, 0]
        if len(index):
            results[index] = _chosen(z[index], clusters, error[index], dtype, score=score)
    left = rough & ~(error <= ROUGH)  # the error may be nan
    results[left] = kernels.all_pairs(z[left], clusters.components, score=score)
    return results


def _chosen(z: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype, *, score: bool) -> Tensor:
    """Sum over the clusters that can matter to each point, which are chosen in this dtype."""
    components, points = clusters.components, kernels.LOG2_E * kernels.queries(z, clusters.components)
    direct = dtype == torch.float64
    choose = needed if direct else cheapest(points, clusters, error, dtype)
    if choose is None:
        return kernels.attend(z, components, score=score)
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


def cheapest(points: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype) -> Callable[..., Any] | None:
    """Return what finds the clusters for these points with the least work, or None if that is all pairs."""
    step = max(1, len(points) // SAMPLE)
    given = points[::step], clusters, error[::step], dtype
    by_terms, by_bounds = (float(method(*given)[1].float().mean()) for method in (needed, bounded))
    if by_terms > WORTH:
        return None
    return bounded if by_bounds < by_terms + MORE else needed


def needed(points: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return each point's largest term, (M, 1), roughly and in base 2, and which clusters can matter, (M, clusters)."""
    keys, size, points = clusters.keys[dtype], clusters.size, points.to(dtype)
    step, count = max(1, COLUMNS // size), len(keys) // size
    maxima, buffer = points.new_empty(len(points), count), points.new_empty(min(ROWS, len(points)) * step * size)
    for start, first in product(range(0, len(points), ROWS), range(0, count, step)):
        rows, part = points[start : start + ROWS], keys[first * size : (first + step) * size]
        terms = torch.mm(rows, part.mT, out=buffer[: len(rows) * len(part)].view(len(rows), len(part)))
        maxima[start : start + ROWS, first : first + step] = terms.view(len(rows), -1, size).amax(2)
    top, reach = maxima.amax(1, keepdim=True), math.log2(len(keys) / NEGLIGIBLE)
    return top.double(), maxima >= top - (reach + 2 * kernels.LOG2_E * error[:, None]).to(dtype)


def bounded(points: Tensor, clusters: Clusters, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `needed` does from bounds instead of terms: the largest term is at least the one returned.

    In each dimension a point has some distance from all means of a cluster. It bounds the cluster's terms from above,
    with the largest scale and normaliser. The term of one component of each cluster bounds the largest from below.
    """
    reach = 1 + math.log2(len(clusters.components.keys) / NEGLIGIBLE)  # 1 for rounding
    dim, parts = len(clusters.box), []
    for rows in points.split(ROWS):
        most = clusters.highest.expand(len(rows), -1).clone()
        for place, (middle, half, sharpness) in zip(rows.mT[dim : 2 * dim, :, None], clusters.box, strict=True):
            most -= (place - middle).abs_().sub_(half).clamp_(min=0).mul_(sharpness).square_()
        least = (rows @ clusters.central.mT).amax(1, keepdim=True)
        if bool((most.amax(1, keepdim=True) - least > WITHIN).any()):
            return needed(points, clusters, error, dtype)
        parts.append((least, most >= least - reach))
    return tuple(map(torch.cat, zip(*parts, strict=True)))
