r"""The log-likelihood of the same data under several priors of one decoder, from the same draws of z.

    log p_c(x) = log E_r [ p(x|z) c(z) / r(z) ]      for each c, with one r for all.

The proposal r is that of `vaebook.likelihood` for the prior c̄ = (1/J) sum_j c_j, so that no weight under c_j is
more than J times that under c̄. All priors share the draws, so common noise cancels in their differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vaebook._checks import check_type
from vaebook.likelihood import ImportanceEstimate, estimates

SHARED = {"num_starts": 4, "round_samples": 200}
"""Smaller numbers for several priors, which share their draws; often q_agg is among them."""


def compare_priors(
    vae: Any,
    x: Any,
    priors: Mapping[str, Any],
    num_samples: int = 1000,
    *,
    leave_out: Mapping[str, Tensor] | None = None,
    drawn_from: Sequence[str] | None = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> dict[str, ImportanceEstimate]:
    r"""Estimate log p(x) under each of several priors, with draws that all of them share.

    $\hat p_c(x) = \frac1S\sum_{s=1}^S \frac{p(x\mid z_s)\,c(z_s)}{r(z_s)},\quad z_s\sim r$

    The proposal r is that for the mean of the J priors, c̄, so that no weight under c_j is more than J times that
    under c̄. Each estimate has the properties of `importance_log_prob`. Common noise cancels in their differences.

    Args:
        vae: what `vaebook.adapters.adapt` makes, or an object with `.encoder`, `.decoder` and `.prior`.
        x: data, (B, …).
        priors: priors, torch distributions or flows, by name; None is the model's own.
        num_samples: S, the draws for each datum, besides those for the adaptation.
        leave_out: by name of a prior that is a `DiagGaussianMixture`: for each datum the component to leave out, its
            own, (B), long.
        drawn_from: names of the priors of which c̄ is the mean; None means all. Each of the others should be close
            to one of these.
        condition: further input of encoder or decoder beside x or z, one row for each datum.
        generator: the source of randomness; None means torch's global one.

    Returns:
        What `importance_log_prob` returns, by name of the prior.

    Warns:
        UserWarning: the effective number of samples is below 50 for some data.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind.
        ValueError: there is no prior, a name is unknown, or as for `importance_log_prob`.

    Example:
        >>> from vaebook import DiagGaussianMixture
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> wide = DiagGaussianMixture(torch.zeros(1, 1), torch.full((1, 1), 2.0))
        >>> x, generator = torch.tensor([[6.0, 0.0]]), torch.Generator().manual_seed(0)
        >>> found = compare_priors(vae, x, {"own": vae.prior, "wide": wide}, 4000, generator=generator)
        >>> gain = found["wide"].log_prob - found["own"].log_prob
        >>> round(float(gain - (vae.log_prob_under(wide, x) - vae.log_prob(x))), 1)
        0.0

    Source: as `importance_log_prob`; common random numbers, Owen, Monte Carlo theory, methods and examples (2013),
    section 8.6.
    """
    if not isinstance(priors, Mapping) or not priors:
        raise TypeError(f"priors: expected a dict of at least one prior by name, got {priors!r}")
    leave_out = check_type("leave_out", {} if leave_out is None else leave_out, Mapping)
    drawn_from = check_type("drawn_from", () if drawn_from is None else drawn_from, tuple | list)
    for name, names in (("leave_out", leave_out), ("drawn_from", drawn_from)):
        if unknown := [n for n in names if n not in priors]:
            raise ValueError(f"{name}: expected names among {', '.join(priors)}, got {unknown[0]!r}")
    return estimates(vae, x, priors, num_samples, leave_out, drawn_from or priors, condition, generator, **SHARED)
