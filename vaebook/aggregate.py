r"""The aggregated posterior of an encoder, as an object.

    q_agg(z) = (1/N) sum_n q(z | x_n)

Every datum is one component. Data with the same code make equal components; `merge_duplicates` adds their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaebook._checks import check_int, check_same_device, check_tensor
from vaebook.mixture import DiagGaussianMixture

Codes = tuple[Tensor, Tensor] | Normal | Independent
"""What an encoder may return: (loc, scale), a Normal, or an Independent(Normal, 1)."""


def aggregated_posterior(encoder: Callable[[Tensor], Codes], x: Tensor, batch_size: int = 1024) -> DiagGaussianMixture:
    r"""Encode data and average the N posteriors.

    $q_{agg}(z) = \frac1N\sum_{n=1}^N \mathcal N(z \mid \mu(x_n), \mathrm{diag}\,\sigma^2(x_n))$

    Runs without gradients. A module (or a method of one) is put in evaluation mode for the pass and then restored;
    inside a lambda it cannot be seen, so call `.eval()` yourself there: dropout would make the codes random.

    Args:
        encoder: maps a batch (B, ...) to the codes of its rows: (loc, scale), each (B, D), or a Normal or
            Independent(Normal, 1) of those parameters. scale is a standard deviation.
        x: data, (N, ...), on the device that the encoder expects.
        batch_size: how many data to encode at once.

    Returns:
        The mixture, N components in D dimensions, in the encoder's dtype and in the order of the data.

    Raises:
        TypeError: x is not a floating-point tensor, encoder not callable, or it returns anything else (a Gaussian
            with full covariance, say).
        ValueError: x is empty or not finite, the codes have the wrong shape or are not finite, or a scale is not
            positive.

    Example:
        >>> import torch
        >>> aggregated_posterior(lambda x: (x, torch.full_like(x, 0.1)), torch.eye(3))
        DiagGaussianMixture(num_components=3, dim=3)

    Source: Makhzani et al., Adversarial autoencoders (2016), section 2; Hoffman & Johnson, ELBO surgery (2016).
    """
    check_tensor("x", x, ("...",))
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (N, ...) with a dimension for the data, got {tuple(x.shape)}")
    check_int("batch_size", batch_size, minimum=1)
    if not callable(encoder):
        raise TypeError(f"encoder: expected a callable, got {type(encoder).__name__}")
    with evaluation_mode(encoder), torch.no_grad():
        codes = [_loc_and_scale(encoder(batch), len(batch)) for batch in x.split(batch_size)]
    widths = {loc.shape[1] for loc, _ in codes}
    if len(widths) > 1:
        raise ValueError(f"encoder: expected the same D for every batch, got {sorted(widths)}")
    loc, scale = (torch.cat(parts) for parts in zip(*codes, strict=True))
    _check_values(loc, scale)
    return DiagGaussianMixture(loc, scale)


def merge_duplicates(q_agg: DiagGaussianMixture) -> tuple[DiagGaussianMixture, Tensor]:
    r"""Merge components with exactly equal loc and scale, adding their weights; the density stays the same.

    $\frac1N\sum_{n=1}^N q(z\mid x_n) = \sum_{k=1}^K \frac{m_k}N\, q(z\mid x_k)$ with $m$ the multiplicities

    Args:
        q_agg: the mixture, N components.

    Returns:
        The mixture of the K distinct components, in the order of their first appearance, and how many components
        each of them stands for, (K), long, summing to N.

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
    if not isinstance(q_agg, DiagGaussianMixture):
        raise TypeError(f"q_agg: expected a DiagGaussianMixture, got {type(q_agg).__name__}")
    rows = torch.cat([q_agg.loc, q_agg.scale], 1).detach()
    _, group, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    position = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(counts, len(rows)).scatter_reduce(0, group, position, "amin")
    order = first.argsort()  # torch.unique sorts by value; we keep the order of first appearance
    log_weight = _log_sum_by_group(q_agg.double().log_weight.detach(), group, len(counts))
    keep = first[order]
    return DiagGaussianMixture(q_agg.loc[keep], q_agg.scale[keep], log_weight[order]), counts[order]


def _log_sum_by_group(log_weight: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """log-sum-exp within each group, safe for weights that underflow and for groups of weight 0."""
    top = log_weight.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, log_weight, "amax")
    shift = top.where(top.isfinite(), 0.0)
    return torch.zeros_like(top).index_add(0, group, (log_weight - shift[group]).exp()).log() + shift


@contextmanager
def evaluation_mode(encoder: object) -> Iterator[None]:
    """Put a module, or the module of a method, in evaluation mode, and restore it afterwards."""
    owner = getattr(encoder, "__self__", encoder)  # a bound method such as vae.encode belongs to a module
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def _loc_and_scale(codes: object, batch: int) -> tuple[Tensor, Tensor]:
    normal = codes
    if isinstance(codes, Independent) and codes.reinterpreted_batch_ndims == 1:
        normal = codes.base_dist
    if isinstance(normal, Normal):
        loc, scale = normal.loc, normal.scale
    elif isinstance(codes, (tuple, list)) and len(codes) == 2:
        loc, scale = codes
    else:
        got = f"{type(codes).__name__} of {len(codes)}" if isinstance(codes, (tuple, list)) else repr(type(codes))
        raise TypeError(
            "encoder: expected it to return (loc, scale), a Normal or an Independent(Normal, 1), got " + got
        )
    check_tensor("encoder's loc", loc, (batch, "D"), finite=False)
    check_tensor("encoder's scale", scale, tuple(loc.shape), finite=False)
    check_same_device(loc=loc, scale=scale)
    return loc, scale


def _check_values(loc: Tensor, scale: Tensor) -> None:
    """Check all codes at once, so that the index in the message is that of the datum."""
    check_tensor("encoder's loc", loc, tuple(loc.shape))
    check_tensor("encoder's scale", scale, tuple(scale.shape))
    lowest = scale.min()
    if not bool(lowest > 0):
        row, column = divmod(int(scale.argmin()), scale.shape[1])
        raise ValueError(
            f"encoder's scale: expected positive values, got min {lowest.item():.6g} at index ({row}, {column}); "
            "scale is a standard deviation, not a (log-)variance"
        )
