r"""The log-likelihood of the same data under several priors of one decoder, from the same draws of z.

    log p_c(x) = log E_r [ p(x|z) c(z) / r(z) ]      for each c, with one r for all.

The proposal r is that of `vaebook.likelihood` for the prior c̄ = (1/J) sum_j c_j, so that no weight under c_j is
more than J times that under c̄. All priors share the draws, so common noise cancels in their differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook._checks import check_generator, check_index, check_int, check_type
from vaebook.adapters import adapt_prior, adapt_vae
from vaebook.evaluation import take
from vaebook.integrals import Joint, encode
from vaebook.likelihood import PRIOR_DRAWS, ROWS, ImportanceEstimate, Sampler, summarise
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import components, optional
from vaebook.priors import as_mixture, from_components

NUM_STARTS, ROUND_SAMPLES = 4, 200
"""Smaller than in `vaebook.likelihood`: the draws of several priors, often q_agg among them, are shared."""


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

    Each estimate has the properties of `vaebook.likelihood.importance_log_prob`. Differences between priors have
    smaller errors than the estimates themselves, as a rule.

    Args:
        vae: what `vaebook.adapters.adapt` makes, or an object with `.encoder`, `.decoder` and `.prior`.
        x: data, (B, …).
        priors: priors, torch distributions or flows, by name.
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
        >>> from vaebook.ppca import PPCA
        >>> from vaebook.priors import StandardNormal
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
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    check_int("num_samples", num_samples, minimum=2, maximum=10**9)
    generator = check_generator(generator, x.device)
    _check_names(priors, {} if leave_out is None else leave_out, () if drawn_from is None else drawn_from)
    found: dict[str, list[Tensor]] = {name: [] for name in priors}
    with torch.no_grad(), vae.evaluating(x, condition):
        q = encode(vae, x, condition)
        adapted = {name: adapt_prior(prior, q.loc.shape[1]) for name, prior in priors.items()}
        adapted = {name: as_mixture(prior, x.device) or prior for name, prior in adapted.items()}
        for name, own in (leave_out or {}).items():
            if optional(adapted[name], "leave_one_out") is None:
                raise ValueError(f"leave_out: expected a DiagGaussianMixture, got {adapted[name]}")
            check_index("leave_out", own, (len(x),), size=adapted[name].num_components)
        left = {name: own.to(x.device) for name, own in (leave_out or {}).items()}
        pool = _Pool({n: adapted[n] for n in drawn_from or priors}, left, generator)
        draws = pool.draw(torch.full((PRIOR_DRAWS,), -1, device=x.device))
        mixture = pool.gaussians(draws)
        for rows in torch.arange(len(x), device=x.device).split(ROWS):
            part = pool.at(rows)
            joint = Joint(vae, x[rows], take(condition, rows), part, q.loc.dtype)
            own = Normal(q.loc[rows].double(), q.scale[rows].double(), validate_args=False)
            sampler = Sampler(joint, own, mixture, draws, part.draw, generator, NUM_STARTS, ROUND_SAMPLES)
            z, log_weight = (torch.cat(parts, 1) for parts in zip(*sampler.weighted(num_samples), strict=True))
            each = {n: _Pool({n: c}, left, generator).at(rows).log_prob(z) for n, c in adapted.items()}
            log_weight = log_weight - _mean([each[name] for name in part.priors])
            for name, value in each.items():
                found[name].append(log_weight + value)
    return {name: summarise(torch.cat(parts)) for name, parts in found.items()}


class _Pool:
    """The mean of several priors; some of them leave out a component for each row of a batch."""

    def __init__(self, priors: dict[str, Any], own: Mapping[str, Tensor], generator: torch.Generator | None) -> None:
        self.priors, self.own, self.generator = priors, {n: own[n] for n in priors if n in own}, generator

    def at(self, rows: Tensor) -> _Pool:
        """Select the rows of a batch."""
        return _Pool(self.priors, {name: own[rows] for name, own in self.own.items()}, self.generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density at z (B, S, D) as (B, S)."""
        parts = []
        for name, prior in self.priors.items():
            density = prior.leave_one_out(self.own[name][:, None]) if name in self.own else prior
            parts.append(density.log_prob(z).double())
        return _mean(parts)

    def draw(self, rows: Tensor) -> Tensor:
        """Draw for rows (M) of the batch: (M, D). Negative rows leave out nothing."""
        which = torch.randint(len(self.priors), rows.shape, generator=self.generator, device=rows.device)
        parts = {j: self._draw(name, rows[which == j]) for j, name in enumerate(self.priors)}
        z = torch.cat([part for part in parts.values() if len(part)]) if len(rows) else parts[0]
        return z[which.argsort(stable=True).argsort()] if len(rows) else z

    def _draw(self, name: str, rows: Tensor) -> Tensor:
        prior, num = self.priors[name], max(1, len(rows))
        if name not in self.own:
            return prior.sample((num,), generator=self.generator)[: len(rows)].to(rows.device, torch.float64)
        z, index = prior.sample_with_index((num,), generator=self.generator)
        z, index = z[: len(rows)].double(), index[: len(rows)]
        again = (rows >= 0) & (index == self.own[name][rows.clamp(min=0)])
        if bool(again.any()):
            z[again] = self._draw(name, rows[again])
        return z

    def gaussians(self, draws: Tensor) -> DiagGaussianMixture:
        """Return all priors' components with diagonal covariances; for a prior without any, the draws' Gaussian."""
        parts = []
        for prior in self.priors.values():
            found = components(prior)
            if found is None:
                found = draws.new_zeros(1), draws.mean(0)[None], draws.std(0)[None]
            log_weight, loc, scale = (part.double() for part in found)
            scale = scale if scale.ndim == 2 else scale.square().sum(-1).sqrt()
            parts.append((log_weight.log_softmax(0), loc, scale))
        return from_components(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _mean(log_densities: list[Tensor]) -> Tensor:
    return torch.stack(log_densities).logsumexp(0) - math.log(len(log_densities))


def _check_names(priors: object, leave_out: object, drawn_from: object) -> None:
    if not isinstance(priors, Mapping) or not priors:
        raise TypeError(f"priors: expected a dict of at least one prior by name, got {priors!r}")
    check_type("leave_out", leave_out, Mapping)
    check_type("drawn_from", drawn_from, tuple | list)
    for name, names in (("leave_out", leave_out), ("drawn_from", drawn_from)):
        if unknown := [n for n in names if n not in priors]:
            raise ValueError(f"{name}: expected names among {', '.join(priors)}, got {unknown[0]!r}")
