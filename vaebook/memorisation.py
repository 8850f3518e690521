r"""Memorisation: whether the aggregated posterior knows the data that it is made of better than others.

Its log-density is taken at codes of its own data, at the same codes without the datum's component, and at codes of data
that it has not seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_generator, check_int, check_type
from vaebook.aggregate import merge_duplicates
from vaebook.estimators import Estimate, estimate
from vaebook.mixture import DiagGaussianMixture


class Memorisation(NamedTuple):
    """Log-densities of q_agg, in nats per code; see `memorisation`."""

    own: Estimate
    """At codes of its own data."""
    leave_one_out: Estimate
    """At the same codes, under the mixture without the datum's component: what a new datum would get."""
    held_out: Estimate | None
    """At codes of data that were held out; None without them."""
    traced: Estimate
    """Probability with which a draw of q_agg can be traced to its datum, from 1/N to 1."""
    cost: Estimate
    """Own less leave-one-out: what leaving out the datum costs."""


@torch.no_grad()
def memorisation(
    q_agg: DiagGaussianMixture,
    held_out: DiagGaussianMixture | None = None,
    *,
    num_samples: int = 4_000,
    generator: torch.Generator | None = None,
) -> Memorisation:
    r"""Compare log-densities at codes of own, of left-out and of held-out data.

    $\mathbb E_{q_n}\log q_{agg}$, $\;\mathbb E_{q_n}\log q_{agg,-n}$, $\;\mathbb E_{q(z\mid x')}\log q_{agg}$, and
    $\mathbb E\,r_n(z)$ with $r_n(z) = w_n q_n(z) / q_{agg}(z)$

    Copies of a datum are merged first: with a copy left in, leaving out one component leaves out nothing.
    If leave-one-out agrees with held-out, the encoder treats new data as it treats its own.

    Args:
        q_agg: the mixture, one component a datum.
        held_out: the codes of data that had no part in training.
        num_samples: draws of (n, z).
        generator: the source of randomness; None means torch's global one.

    Returns:
        The averages; their standard errors are over data and draws.

    Raises:
        TypeError: q_agg or held_out is not a DiagGaussianMixture.
        ValueError: fewer than two components are distinct, or dimensions differ.

    Example:
        >>> far = DiagGaussianMixture(torch.tensor([[-9.0], [0.0], [9.0]]), torch.ones(3, 1))
        >>> found = memorisation(far, generator=torch.Generator().manual_seed(0))
        >>> round(found.traced.value, 3), found.own.value - found.leave_one_out.value > 30
        (1.0, True)

    Source: leaving one out: Stone, Cross-validatory choice (1974); this book, chapter aggregated/sampling.
    """
    q = merge_duplicates(q_agg)[0].double()
    if held_out is not None and check_type("held_out", held_out, DiagGaussianMixture).latent_dim != q_agg.latent_dim:
        raise ValueError(f"held_out: expected dimension {q_agg.latent_dim}, got {held_out.latent_dim}")
    num_samples = check_int("num_samples", num_samples, minimum=2, each=q.latent_dim)
    generator = check_generator(generator, q_agg.loc.device)
    if int((q.log_weight > -torch.inf).sum()) < 2:
        raise ValueError("q_agg: expected at least 2 distinct components, got 1")
    z, index = q.sample_with_index((num_samples,), generator=generator)
    log_own = q.log_prob_given(z, index) + q.log_weight[index]
    log_all, others = q.log_prob(z), q.log_prob_leave_one_out(z, index)
    new = None
    if held_out is not None:
        at, row = held_out.double().sample_with_index((num_samples,), generator=generator)
        new = _over_data(q.log_prob(at), row)
    traced = (log_own - log_all).clamp(max=0).exp()
    own, left, cost, share = (_over_data(part, index) for part in (log_all, others, log_all - others, traced))
    return Memorisation(own, left, new, share, cost)


def _over_data(values: Tensor, index: Tensor) -> Estimate:
    """Average values; for the standard error, draws of one datum count as one cluster."""
    alone, centred = estimate(values), values - values.mean()
    together = torch.bincount(index, centred)
    return alone._replace(stderr=max(alone.stderr, float(together.square().sum().sqrt()) / len(values)))
