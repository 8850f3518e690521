r"""The log-likelihood log p(x) of a VAE under any prior, by importance sampling that adapts to each datum.

    p(x) = ∫ p(x|z) p(z) dz = E_r [ p(x|z) p(z) / r(z) ]      for every proposal r that is positive where p(z) is.

An encoder alone is a poor proposal. It can be too narrow, as after training with a small beta, and it does not depend
on a prior that was exchanged after training. Here r is a mixture of three parts: the prior itself, which bounds the
weights by sup p(x|z) over its share; the encoder at several widths; and full Gaussians around maxima of p(x|z) p(z).
The Gaussians are then fitted further to weighted samples. The final samples are fresh, and weighted by the density of
the whole of r.

Several priors are compared by the same draws, from the r of their mean c̄ = (1/J) sum_j c_j: no weight under c_j is
more than J times that under c̄, and the noise that all share cancels in differences.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook._checks import check_generator, check_index, check_int, check_type
from vaebook.adapters import adapt_prior, adapt_vae
from vaebook.evaluation import evaluation_mode, take
from vaebook.integrals import Joint
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import Components, components, draw_from, log_density, optional
from vaebook.priors import GaussianMixture, as_mixture, from_components
from vaebook.proposals import Sampler, effective_samples, factor

ROWS = 32
"""How many data are treated at once."""
PRIOR_DRAWS = 4096
"""Draws of the prior at which p(x|z) is evaluated for each datum, to find starting points."""
SHARED = {"num_starts": 4, "round_samples": 200}
"""Smaller numbers for several priors, which share their draws; often q_agg is among them."""
TRUSTED = 50
"""With fewer effective samples, the standard error of a datum cannot be trusted, and a warning is given."""


class ImportanceEstimate(NamedTuple):
    """Estimates of log p(x), one for each datum. See `importance_log_prob`."""

    log_prob: Tensor
    """Nats, (B)."""
    stderr: Tensor
    """Its standard error, nats, (B)."""
    effective_samples: Tensor
    """(sum of weights)² over sum of squared weights, (B), between 1 and the number of samples."""


def importance_log_prob(
    vae: Any,
    x: Any,
    num_samples: int = 1000,
    *,
    prior: Any = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> ImportanceEstimate:
    r"""Estimate log p(x) with an adapted proposal, together with its error.

    $\hat p(x) = \frac1S\sum_{s=1}^S w_s,\quad w_s = \frac{p(x\mid z_s)\,p(z_s)}{r(z_s)},\quad z_s\sim r$

    p̂(x) is unbiased for p(x). Its logarithm is biased down by about half the square of its standard error, which is
    sd(w)/(mean(w) √S). That error can be trusted only if the effective number of samples is not small. Below 50 a
    warning is given: take more samples and see whether the value changes. A part of the posterior that no Gaussian of
    the proposal covers shows in neither number; only draws of the prior can reach it. Another seed may find it.

    Args:
        vae: what `vaebook.adapters.adapt` makes, or an object with `.encoder`, `.decoder` and `.prior`.
        x: data, (B, …).
        num_samples: S, the draws for each datum, besides those for the adaptation.
        prior: a prior, torch distribution or flow to use in place of vae.prior.
        condition: further input of encoder or decoder beside x or z, one row for each datum.
        generator: the source of randomness; None means torch's global one.

    Returns:
        log p̂(x), its standard error and the effective number of samples, each (B), float64, without gradients. If
        all weights of a datum are 0, they are -inf, inf and 0.

    Warns:
        UserWarning: the effective number of samples is below 50 for some data.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind.
        ValueError: a shape or number is out of range, x or a code is not finite, a scale is not positive, log p(x|z)
            is no number, or the prior is of another dimension.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> x, generator = torch.zeros(1, 2), torch.Generator().manual_seed(0)
        >>> estimate = importance_log_prob(vae, x, 4000, generator=generator)
        >>> exact = vae.log_prob(x)
        >>> bool((estimate.log_prob - exact).abs() < 4 * estimate.stderr), bool(estimate.stderr < 0.02)
        (True, True)

    Source: Veach & Guibas, Optimally combining sampling techniques (1995), the balance heuristic; Cappé et al.,
    Adaptive importance sampling in general mixture classes (2008), for the fit; Owen & Zhou, Safe and effective
    importance sampling (2000), for the prior's share.
    """
    return _estimates(vae, x, {"": prior}, num_samples, condition, generator, {}, (), {})[""]


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
    if not isinstance(priors, Mapping) or not priors or not all(isinstance(name, str) for name in priors):
        raise TypeError(f"priors: expected a dict of at least one prior by name, got {priors!r}")
    leave_out = check_type("leave_out", {} if leave_out is None else leave_out, Mapping)
    drawn_from = check_type("drawn_from", () if drawn_from is None else drawn_from, tuple | list)
    for name, names in (("leave_out", leave_out), ("drawn_from", drawn_from)):
        if unknown := [n for n in names if n not in list(priors)]:
            raise ValueError(f"{name}: expected names among {', '.join(priors)}, got {unknown[0]!r}")
    return _estimates(vae, x, priors, num_samples, condition, generator, leave_out, drawn_from, SHARED)


def _estimates(
    vae: Any, x: Any, priors: Any, samples: int, condition: Any, generator: Any, leave_out: Any, drawn: Any, sizes: Any
) -> dict[str, ImportanceEstimate]:
    """Estimate log p(x) under each of several priors, as `compare_priors` says."""
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    samples = check_int("num_samples", samples, minimum=2, maximum=10**9)
    generator = check_generator(generator, x.device)
    found: dict[str, list[Tensor]] = {name: [] for name in priors}
    with torch.no_grad(), vae.evaluating(x, condition), evaluation_mode(*priors.values()):
        q = vae.encode(x, condition).base_dist
        adapted = {n: adapt_prior(vae.prior if p is None else p, q.loc.shape[1], _named(n)) for n, p in priors.items()}
        adapted = {name: as_mixture(prior, x.device) or prior for name, prior in adapted.items()}
        for name, own in leave_out.items():
            if optional(adapted[name], "leave_one_out") is None:
                raise ValueError(f"leave_out: expected a DiagGaussianMixture, got {adapted[name]}")
            check_index("leave_out", own, (len(x),), size=adapted[name].num_components)
        left = {name: own.to(x.device) for name, own in leave_out.items()}
        pool = _Pool({name: adapted[name] for name in drawn or priors}, left, generator)
        draws = pool.draw(torch.full((PRIOR_DRAWS,), -1, device=x.device))
        mixture = pool.gaussians(draws)
        for rows in torch.arange(len(x), device=x.device).split(ROWS):
            part = pool.at(rows)
            joint = Joint(vae, x[rows], take(condition, rows), part)
            own = Normal(q.loc[rows].double(), q.scale[rows].double(), validate_args=False)
            sampler = Sampler(joint, own, mixture, draws, part.draw, generator, **sizes)
            z, log_ratio, log_prior = (torch.cat(parts, 1) for parts in zip(*sampler.fresh(samples), strict=True))
            for name, prior in adapted.items():
                if len(adapted) > 1:
                    log_prior = _Pool({name: prior}, left, generator).at(rows).log_prob(z)
                found[name].append(log_ratio + log_prior)
    return dict(zip(found, map(_summarise, found.values()), strict=True))


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
            parts.append(log_density(density, z, _named(name)).double())
        return torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def draw(self, rows: Tensor) -> Tensor:
        """Draw for rows (M) of the batch: (M, D). Negative rows leave out nothing."""
        which = torch.randint(len(self.priors), rows.shape, generator=self.generator, device=rows.device)
        z = torch.cat([self._draw(name, rows[which == j]) for j, name in enumerate(self.priors)])
        return z[which.argsort(stable=True).argsort()]

    def _draw(self, name: str, rows: Tensor) -> Tensor:
        prior, num = self.priors[name], max(1, len(rows))
        if name not in self.own:
            return draw_from(prior, (num,), self.generator, _named(name))[: len(rows)].to(rows.device, torch.float64)
        z, index = (part[: len(rows)] for part in prior.sample_with_index((num,), generator=self.generator))
        again = (rows >= 0) & (index == self.own[name][rows.clamp(min=0)])
        if bool(again.any()):
            z[again] = self._draw(name, rows[again]).to(z)
        return z.double()

    def gaussians(self, draws: Tensor) -> DiagGaussianMixture | GaussianMixture:
        """Return all components, of several priors with diagonal covariances; if one has none, the draws' Gaussian."""
        parts = [[part.double() for part in components(p) or _moments(draws)] for p in self.priors.values()]
        if len(parts) > 1:
            diagonal = lambda scale: scale if scale.ndim == 2 else scale.square().sum(-1).sqrt()  # noqa: E731
            parts = [(log_weight.log_softmax(0), loc, diagonal(scale)) for log_weight, loc, scale in parts]
        return from_components(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _named(name: str) -> str:
    """Name a prior in messages: one of several by its key, the only one has none."""
    return f"priors[{name!r}]" if name else "prior"


def _moments(draws: Tensor) -> Components:
    """Return the component with mean and covariance of the draws, (S, D)."""
    return draws.new_zeros(1), draws.mean(0)[None], factor(draws.mT.cov().reshape(1, draws.shape[1], draws.shape[1]))


def _summarise(parts: list[Tensor]) -> ImportanceEstimate:
    """Turn log-weights, (B, S) in parts, into an estimate, and warn where few samples count."""
    log_weight = torch.cat(parts)
    num, effective = log_weight.shape[1], effective_samples(log_weight).nan_to_num(0)
    few = int((effective < TRUSTED).sum())
    if few:
        got = f"fewer for {few} of {len(effective)} data, {float(effective.min()):.1f} for the worst"
        told = "their standard errors cannot be trusted; take more samples"
        warnings.warn(f"num_samples: expected {TRUSTED} effective samples, got {got}: {told}", stacklevel=4)
    # Var(w) / mean(w)² = S / ESS - 1, and an unbiased variance divides by S - 1.
    stderr = ((num / effective - 1).clamp_min(0) / (num - 1)).sqrt()
    return ImportanceEstimate(log_weight.logsumexp(1) - math.log(num), stderr, effective)
