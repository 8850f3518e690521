r"""The sum over components, in constant memory: pure functions on float64 tensors.

For M points, N components and D dimensions everything here rests on the M × N matrix of log-terms

    t[m, n] = log w_n + log N(z_m | mu_n, diag sigma_n²),

of which the callers want the log-sum-exp over n (the log-density), the softmax over n (the responsibilities)
and averages under that softmax. The matrix is never kept. A log-term has two forms. *Expanded*, it is a scalar product,

    t[m, n] = [z², z, 1] · [-1/(2 sigma²), mu/sigma², constant],

so that the log-density is the log-sum-exp of an attention, and its score can be read off that attention's output. This
is fast, but subtracts large numbers where sigma is small. *Direct*, it sums ((z - mu)/sigma)² and loses nothing.
`rounding_bound` decides for each point.

`attend` sums the expanded form over all components, a block of them at a time. `dense` takes all components at once and
few points, in either form: for points at which the expanded one would lose too much, and for derivatives in components.
"""

from __future__ import annotations

import math
from itertools import product, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TOLERANCE = 1e-8
"""Where the bound on the rounding error of the expanded form exceeds this, in nats, the direct form is used."""
ROWS, COLUMNS = 512, 2048
"""Points and components in a block of log-terms of `attend`: 8 MiB, which stays in a processor's cache."""
ON_CARD = 8
"""How many times as many of both on a graphics card, which needs so much at once to be busy."""
POINTS = 2**14
"""The most points in one pass over all components: each takes little memory, but there may be millions."""
ENTRIES = 2**21
"""The most numbers in an array of `dense` (16 MiB), unless a single point with all components needs more."""
LOG2_E = math.log2(math.e)
"""Turns log-terms into base 2: exp2 takes less time than exp."""
FAR = -1e8
"""Log-terms below this have too few digits left for their differences, which determine the responsibilities."""


class Components(NamedTuple):
    """Components as both forms need them; made by `prepare`."""

    loc: Tensor  # (N, D), as given
    scale: Tensor  # (N, D), as given
    normaliser: Tensor  # (N), log w - D/2 log 2π - sum_j log sigma_j
    keys: Tensor  # (N, 2D + 2), [-1/(2 sigma²), mu/sigma², 1, constant] with mu minus the middle
    middle: Tensor  # (D), half way between the least and the largest mean
    farthest: Tensor  # (), max_n sum_j (mu_nj - middle_j)²/(2 sigma_nj²)
    sharpest: Tensor  # (D), max_n 1/sigma_n²


def prepare(loc: Tensor, scale: Tensor, log_weight: Tensor) -> Components:
    """Prepare components for the functions below.

    The expanded form shifts points and means by the middle of the means: differences stay the same, numbers shrink.

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
    middle = 0.5 * loc.detach().amin(0) + 0.5 * loc.detach().amax(0)
    centred, precision = loc - middle, scale.square().reciprocal()
    normaliser = log_weight - 0.5 * loc.shape[1] * math.log(2 * math.pi) - scale.log().sum(-1)
    half = 0.5 * (centred.square() * precision).sum(-1)
    ends = torch.stack([torch.ones_like(half), normaliser - half], -1)
    keys = torch.cat([-0.5 * precision, centred * precision, ends], -1)
    return Components(loc, scale, normaliser, keys, middle, half.detach().amax(), precision.detach().amax(0))


def rounding_bound(z: Tensor, components: Components, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Bound the rounding error of the expanded form, for each point, in nats.

    $(3D + 14)\,u\,\bigl((\sqrt\alpha + \sqrt\gamma)^2 + \max_n|c_n|\bigr)$ with
    $\alpha = \sum_j z_j^2 \max_n 1/(2\sigma_{nj}^2)$ and $\gamma = \max_n\sum_j \mu_{nj}^2/(2\sigma_{nj}^2)$, z and mu
    centred, c the normalisers, and u the unit roundoff, $2^{-53}$ in float64. A loss is u
    times the sum of the sizes, by the triangle inequality at most the bracket. What is added has been rounded D + 8
    times at most; of 2D + 1 additions two hold the reference too, and count twice; two steps lead out of base 2.

    Args:
        z: points, (M, D), float64.
        components: from `prepare`.
        dtype: the precision of the scalar product.

    Returns:
        The bound, (M), in nats.

    Example:
        >>> import torch
        >>> loc = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> sharp = prepare(loc, torch.full_like(loc, 1e-6), torch.zeros(2, dtype=torch.float64))
        >>> bool((rounding_bound(loc, sharp) > TOLERANCE).all())
        True

    Source: Higham, Accuracy and stability of numerical algorithms (2002), section 3.1.
    """
    largest = components.normaliser.detach().nan_to_num(neginf=0.0).abs().max()
    near = 0.5 * (z.detach() - components.middle).square() @ components.sharpest
    size = (near.sqrt() + components.farthest.sqrt()).square() + largest
    return (1.5 * z.shape[1] + 7) * torch.finfo(dtype).eps * size


def all_pairs(z: Tensor, components: Components, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
    r"""Compute the log-sum-exp of the log-terms over components and, if asked, its gradient in z, the score.

    $\nabla_z \log\sum_n e^{t_n} = \sum_n r_n\,(\mu_n - z)/\sigma_n^2$ with responsibilities $r = \mathrm{softmax}(t)$.

    Args:
        z: points, (M, D), float64.
        components: from `prepare`.
        exclude: for each point one component to leave out, (M), long.
        score: append the score.

    Returns:
        (M, 1), or (M, 1 + D) with the score, each point in the form that suits it; without derivatives.

    Example:
        >>> import torch
        >>> one = torch.ones(2, 1, dtype=torch.float64)
        >>> all_pairs(one, prepare(0 * one, one, torch.full((2,), 0.5).double().log()), score=True)[0]
        tensor([-1.4189, -1.0000], dtype=torch.float64)
    """
    results = z.new_empty(len(z), 1 + z.shape[1] * score)
    for rows in torch.arange(len(z), device=z.device).split(POINTS):
        rough = too_rough(z[rows], components)
        for method, index in ((attend, rows[~rough]), (dense, rows[rough])):
            if len(index):
                results[index] = method(z[index], components, None if exclude is None else exclude[index], score=score)
    return results


def attend(z: Tensor, components: Components, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
    r"""Compute what `all_pairs` does in the expanded form, in z's dtype, a block of points and components at a time.

    For every point it keeps a reference, the largest log-term of the first block, and sums powers of 2 of the terms
    minus it, all in base 2. The queries hold minus the reference opposite the 1 of the keys, so that the matrix product
    subtracts it. It is raised only when a block's terms are so large that their sum would nearly overflow.

    Args:
        z: points, (M, D), in the dtype of the components.
        components: from `prepare`.
        exclude: for each point one component to leave out, (M), long.
        score: append the score.

    Returns:
        (M, 1), or (M, 1 + D) with the score.

    Example:
        >>> import torch
        >>> one = torch.ones(2, 1)
        >>> attend(one, prepare(0 * one, one, torch.full((2,), 0.5).log()))
        tensor([[-1.4189],
                [-1.4189]])

    Source: Milakov & Gimelshein, Online normalizer calculation for softmax (2018); Dao et al., FlashAttention (2022).
    """
    points, lowest = LOG2_E * queries(z, components), torch.finfo(z.dtype).min
    least = 0.98 * math.log2(torch.finfo(z.dtype).tiny)
    top, sums = z.new_full((len(z), 1), lowest), z.new_zeros(len(z), 1 + 2 * z.shape[1] * score)
    num_rows, num_columns = (size * (1 if z.device.type == "cpu" else ON_CARD) for size in (ROWS, COLUMNS))
    buffer = z.new_empty(min(num_rows, len(z)) * min(num_columns, len(components.keys)))

    def block(rows: slice, start: int, keys: Tensor) -> Tensor:
        terms = torch.mm(points[rows], keys.mT, out=buffer[: len(points[rows]) * len(keys)].view(-1, len(keys)))
        if exclude is not None:
            inside = (exclude[rows] // num_columns == start // num_columns).nonzero()[:, 0]
            terms[inside, exclude[rows][inside] - start] = -torch.inf
        return terms

    def total(terms: Tensor, keys: Tensor) -> Tensor:
        if float((terms[::64, ::16] < least).float().mean()) > 0.1:  # of a sample; exp2 is slow where it is nearly zero
            terms.clamp_(min=least)
        return weigh(terms, keys, score=score)

    for start, first in product(range(0, len(components.keys), num_columns), range(0, len(z), num_rows)):
        rows, keys = slice(first, first + num_rows), components.keys[start : start + num_columns]
        new = total(block(rows, start, keys), keys) if start else None
        if new is None or not bool((new[:, -1] < (-lowest) ** 0.65).all()):
            points[rows, -2] = 0
            terms = block(rows, start, keys)
            risen = torch.maximum(top[rows], terms.amax(1, keepdim=True))
            sums[rows] *= (top[rows] - risen).exp2()
            top[rows], points[rows, -2:-1] = risen, -risen
            new = total(terms.sub_(risen), keys)
        sums[rows] += new
    return finish(z, components, top, sums)


def queries(z: Tensor, components: Components) -> Tensor:
    """Return [z², z, 0, 1] with z minus the middle, (M, 2D + 2); what replaces the 0 is added to every log-term."""
    z = z - components.middle
    return torch.cat([z.square(), z, torch.zeros_like(z[:, :1]), torch.ones_like(z[:, :1])], -1)


def weigh(terms: Tensor, keys: Tensor, *, score: bool) -> Tensor:
    """Sum 2^terms, in place, (M, 1); for the score, put the sums of the keys so weighted before it."""
    weights = terms.exp2_()
    return weights @ keys[:, :-1] if score else weights.sum(1, keepdim=True)


def finish(z: Tensor, components: Components, top: Tensor, sums: Tensor) -> Tensor:
    """Turn sums relative to 2^top into the log-sum-exp and, if the keys were summed, the score."""
    dim, averages = sums.shape[1] // 2, sums[:, :-1] / sums[:, -1:]
    score = averages[:, dim:] + 2 * averages[:, :dim] * (z - components.middle)[:, :dim]
    return torch.cat([sums[:, -1:].log() + top / LOG2_E, score], -1)


def dense(z: Tensor, components: Components, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
    """Compute what `all_pairs` does from all log-terms of a few points at a time; differentiable in everything."""

    def block(z: Tensor, exclude: Tensor | None) -> Tensor:
        terms, reference = log_terms(z, components, exclude, score or tracked(z, *components))
        value = terms.logsumexp(-1, keepdim=True) + reference
        if not score:
            return value
        weighted = (components.loc - z[:, None]) / components.scale * terms.softmax(-1)[..., None]
        return torch.cat([value, (weighted / components.scale).sum(1)], -1)

    return _by_rows(block, 1 + z.shape[1] * score, z, components, exclude, wide=score)


def responsibilities(z: Tensor, components: Components, values: Tensor | None = None) -> Tensor:
    """Return the softmax of the log-terms, (M, N), or the average of values, (N, P), under it, (M, P)."""

    def block(z: Tensor, _: None) -> Tensor:
        r = log_terms(z, components)[0].softmax(-1)
        return r if values is None else r @ values

    return _by_rows(block, len(components.loc) if values is None else values.shape[1], z, components, None, values)


def log_terms(z: Tensor, components: Components, exclude: Any = None, apart: bool = True) -> tuple[Tensor, Tensor]:
    """Return log-terms minus that of one component, (M, N), and that one, (M, 1), in one form for all of these points.

    Far from all components, unless ``apart`` is False, differences of squares are computed as (x - y)(x + y) with
    x = (z - mu)/sigma, and x - y without subtracting large numbers: responsibilities and score are right everywhere.
    """
    loc, scale, offset = components.loc, components.scale, _without(exclude, components.normaliser.expand(len(z), -1))
    if bool(too_rough(z, components).any()):
        tiles = zip(*(x.split(max(1, 32 * COLUMNS // max(1, z.numel()))) for x in (loc, scale)), strict=True)
        terms = offset - 0.5 * torch.cat([((z[:, None] - mu) / sigma).square().sum(-1) for mu, sigma in tiles], -1)
    else:
        terms = _without(exclude, queries(z, components) @ components.keys.mT)
    top = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).min)
    if not (apart and bool((top < FAR).any())):
        return terms - top, top
    x = ((z[:, None] - loc) / scale).nan_to_num()  # inf - inf would be nan
    # The nearest, by squares that do not overflow, of those that have weight.
    near = (2.0**-510 * x.detach()).square().sum(-1).masked_fill(offset.isneginf(), torch.inf).argmin(-1, keepdim=True)
    for _ in range(2):  # the second time from the largest term, which rounding may have hidden from the first
        y, own = x.gather(1, near[..., None].expand(-1, -1, x.shape[-1])), offset.gather(-1, near)
        unit = y.detach().abs().amax(-1).clamp(min=1.0)
        change = ((loc[near] - loc) + y * (scale[near] - scale)) / scale  # x - y
        terms = offset - own - ((change * ((0.5 * x + 0.5 * y) / unit[..., None])).sum(-1) * unit).nan_to_num()
        near = terms.detach().argmax(-1, keepdim=True)
    return terms, own - 0.5 * y.square().sum(-1)


def too_rough(z: Tensor, components: Components) -> Tensor:
    """Return where the expanded form might lose too much, or overflows so that the bound is nan."""
    return ~(rounding_bound(z, components) <= TOLERANCE)


def tracked(*values: object) -> bool:
    """Return whether derivatives with respect to any of these are wanted."""
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _without(exclude: Tensor | None, terms: Tensor) -> Tensor:
    return terms if exclude is None else terms.scatter(-1, exclude[:, None], -torch.inf)


def _by_rows(block: Any, width: int, z: Tensor, components: Components, *given: Any, wide: bool = False) -> Tensor:
    """Apply ``block`` to a few rows of z at a time; recompute, rather than store, what derivatives need."""
    follow, exclude = tracked(z, *components, *given), given[0]
    wide = wide or follow or bool(too_rough(z, components).any())
    rows = max(1, ENTRIES // (components.loc.numel() if wide else len(components.loc)))
    parts = zip_longest(z.split(rows), [] if exclude is None else exclude.split(rows))
    if follow and len(z) > rows:
        return torch.cat([checkpoint(block, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
    # Filled in place: small results kept between large arrays would break up the memory that these leave.
    results = z.new_empty(len(z), width)
    for start, part in zip(range(0, len(z), rows), parts, strict=False):
        results[start : start + rows] = block(*part)
    return results
