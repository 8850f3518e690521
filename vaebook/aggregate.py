r"""The aggregated posterior of an encoder, as an object.

    q_agg(z) = (1/N) sum_n q(z | x_n)

Every datum is one component. Data with equal Gaussians make equal components; `merge_duplicates` adds their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaebook._checks import check_positive, check_tensor, check_type, explained
from vaebook.adapters import adapt_codes
from vaebook.evaluation import Data
from vaebook.mixture import DiagGaussianMixture
from vaebook.outputs import Spread

SPREADS = ("scale", "var", "log_var")
"""Names of the arrays that may stand beside loc."""


@torch.no_grad()
def aggregated_posterior(
    encoder: Any, data: Data, *, spread: Spread = "std", condition: Any = None, batch_size: int = 1024
) -> DiagGaussianMixture:
    r"""Encode data and average the N posteriors.

    $q_{agg}(z) = \frac1N\sum_{n=1}^N \mathcal N(z \mid \mu(x_n), \mathrm{diag}\,\sigma^2(x_n))$

    All modules that the encoder calls run in evaluation mode and are put back; their running statistics do not
    change. Two passes over the first batch must agree.

    Args:
        encoder: maps a batch (B, …) to the Gaussians of its rows; anything that `vaebook.adapters.adapt` takes or
            returns. Codes of any shape are flattened.
        data: a tensor or an array (N, …), also one larger than memory, or an iterable of batches, of tuples whose first
            entry is the batch; brought to the device of the encoder's weights.
        spread: what the encoder returns beside loc: "std", "var" or "log_var".
        condition: what the encoder takes beside x, a row for each datum: a tensor, or tensors by name.
        batch_size: how many data to encode at once, if they come as one tensor or array.

    Returns:
        The mixture of N components in D dimensions, at least float32, in the order of the data.

    Raises:
        TypeError: data, encoder or what it returns is of another kind (a Gaussian with full covariance, say).
        ValueError: data are empty or not finite, the codes have the wrong shape or are not finite, a scale is not
            positive, or two passes over the same data differ.

    Example:
        >>> import torch
        >>> aggregated_posterior(lambda x: (x, torch.full_like(x, 0.1)), torch.eye(3))
        DiagGaussianMixture(num_components=3, dim=3)

    Source: Makhzani et al., Adversarial autoencoders (2016), section 2; Hoffman & Johnson, ELBO surgery (2016).
    """
    vae, parts = adapt_codes(encoder, spread), []
    with vae.evaluating():
        for x, rows in vae.batches(data, batch_size, condition):
            if not parts:
                vae.encoder.check(x, rows)
            q = vae.encoder(x, rows).base_dist
            parts.append((q.loc, q.scale))
    loc, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    check_tensor("encoder's loc", loc, ("N", "D"))
    return DiagGaussianMixture(loc, check_positive("encoder's scale", scale))


def merge_duplicates(q_agg: DiagGaussianMixture) -> tuple[DiagGaussianMixture, Tensor]:
    r"""Merge components with exactly equal loc and scale, adding their weights; the density stays the same.

    $\frac1N\sum_{n=1}^N q(z\mid x_n) = \sum_{k=1}^K \frac{m_k}N\, q(z\mid x_k)$ with $m$ the multiplicities

    Args:
        q_agg: the mixture, N components.

    Returns:
        The mixture of the K distinct components, in the order of their first appearance (q_agg itself if all are
        distinct), and how many components each of them stands for, (K), long, summing to N.

    Raises:
        TypeError: q_agg is not a DiagGaussianMixture.

    Example:
        >>> import torch
        >>> loc = torch.tensor([[1.0], [0.0], [1.0]])
        >>> merged, counts = merge_duplicates(DiagGaussianMixture(loc, torch.ones(3, 1)))
        >>> merged.loc.flatten(), counts
        (tensor([1., 0.]), tensor([2, 1]))

    Source: this book, chapter mixture/index (claim index/duplicates).
    """
    check_type("q_agg", q_agg, DiagGaussianMixture)
    columns = (*q_agg.loc.detach().mT, *q_agg.scale.detach().mT)
    # One number a row usually shows that no two are equal, by far cheaper than to sort the rows. It is a sum of
    # products, column by column: equal rows give equal bits wherever they stand.
    key = sum(column.double() * j**0.5 for j, column in enumerate(columns, 1))
    if bool(key.isfinite().all()) and len(key.unique()) == len(key):
        return q_agg, torch.ones(q_agg.num_components, dtype=torch.long, device=q_agg.loc.device)
    each, loc, scale = (part.detach().cpu().numpy() for part in q_agg.components())
    rows, device = np.concatenate([loc, scale], 1), q_agg.loc.device
    _, first, group, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    log_weight = np.full(len(counts), -np.inf)
    np.logaddexp.at(log_weight, group.reshape(-1), each)
    order = first.argsort()  # np.unique sorts by value; we keep the order of first appearance
    keep, weights, multiple = (torch.from_numpy(part[order]).to(device) for part in (first, log_weight, counts))
    return DiagGaussianMixture(q_agg.loc[keep], q_agg.scale[keep], weights), multiple


def as_codes(name: str, codes: Any) -> DiagGaussianMixture:
    """Read codes: a mixture, or a mapping of arrays with ``loc`` and a named spread."""
    if isinstance(codes, DiagGaussianMixture):
        return codes
    if not isinstance(codes, Mapping):
        raise TypeError(f"{name}: expected codes of the same kind, a mapping or a mixture, got {type(codes).__name__}")
    keys = list(codes)
    if "loc" not in keys or sum(key in keys for key in SPREADS) != 1 or set(keys) - {"loc", *SPREADS, "log_weight"}:
        got = ", ".join(map(str, keys))
        raise ValueError(f"{name}: expected loc and exactly one of {', '.join(SPREADS)}, got {got}")
    with explained(name, "dense arrays of real numbers"):
        return DiagGaussianMixture.from_arrays(**codes)
