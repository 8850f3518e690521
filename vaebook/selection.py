r"""Which distribution of codes should a trained VAE be sampled from? A rule that needs no held-out data.

Exchanging the prior of a trained model for another density c over z changes the log-likelihood of x by

    log p_c(x) - log p(x) = log ∫ p(x|z) c(z) dz - log ∫ p(x|z) p(z) dz.

The rule estimates this gain on the training data, for the aggregated posterior *without the datum's own component* and
for a Gaussian mixture fitted *without the datum's fold*. Both integrals use the same draws of z, from a mixture of all
candidates tilted towards x, so that what they have in common cancels; so does most of the optimism that comes from
a decoder fitted to the very same data.

The tilt is a Gaussian factor exp(-H z²/2 + eta z) in the place of p(x|z), what is left of the encoder's q(z|x) when the
model's prior is divided out of it. A tilted mixture is a mixture again: its normalising constant, its density and its
draws are closed form, whatever the number of components.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_generator, check_int, check_number, check_tensor
from vaebook.aggregate import aggregated_posterior, evaluation_mode
from vaebook.bounds import _log_likelihood as log_likelihood
from vaebook.estimators import Estimate, estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, fit_gmm
from vaebook.tables import Table, table
from vaebook.tilted import TiltedDiag, TiltedFull, log_factor

ORDER = ("prior", "gmm", "q_agg")
"""The candidates, the smoothest first."""
FOLDS = 3
"""Into how many parts the data are cut, to score the mixtures that are fitted."""
STRENGTHS = ((0.0, 1), (0.25, 3), (1.0, 4))
"""How strongly draws are tilted towards the datum, and how many of eight are drawn so."""
DRAWS = 96
"""Draws of z for each datum from each candidate."""
CELLS = 2**22
"""Draws × data × pixels at once."""

Tilted = TiltedDiag | TiltedFull


class Choice(NamedTuple):
    """What `choose_prior` found; `prior` is ready to take the place of the model's."""

    name: str
    """"prior", "gmm" or "q_agg"."""
    prior: Any
    """The chosen one of the candidates."""
    gains: dict[str, Estimate]
    """Estimated log-likelihood over that under the model's prior, nats per datum, by name; num_samples counts data."""
    candidates: dict[str, Any]
    """All three densities over z, by name."""

    def table(self) -> Table:
        """Show the gains and their standard errors."""
        value, error = zip(*[(g.value, g.stderr) for g in self.gains.values()], strict=True)
        chosen = ["yes" if name == self.name else "" for name in self.gains]
        return table({"z from": list(self.gains), "gain (nats)": value, "std. error": error, "chosen": chosen})


class _Codes(NamedTuple):
    """B data to be scored."""

    x: Tensor  # (B, P)
    loc: Tensor  # (B, D), the encoder's mean
    scale: Tensor  # (B, D)
    precision: Tensor  # (B, D), H of the factor that the encoder is without the model's prior
    shift: Tensor  # (B, D), its eta
    own: Tensor | None  # (B), their components in q_agg
    fold: Tensor  # (B)

    def at(self, rows: Tensor) -> _Codes:
        """Select some of the data."""
        return _Codes(*[None if part is None else part[rows] for part in self])


@torch.no_grad()
def choose_prior(
    vae: Any,
    x: Tensor,
    *,
    held_out: Tensor | None = None,
    num_components: tuple[int, ...] = (1, 10, 30),
    num_data: int = 500,
    caution: float = 1.0,
    generator: torch.Generator | None = None,
) -> Choice:
    r"""TODO"""
    _check(vae, x, held_out, num_components, num_data, caution, generator)
    q_agg = aggregated_posterior(vae.encoder, x)
    sizes = sorted({k for k in num_components if 2 * k <= len(x)}) or [1]
    with evaluation_mode(vae.decoder), evaluation_mode(vae.prior):
        codes = _codes(vae, x, q_agg, held_out, num_data, generator)
        codes = _with_strength(vae.decoder, codes, generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        folds = [q_agg] if held_out is not None else _without_folds(q_agg, codes, len(x))
        mixture_of = _best_size(codes, folds, sizes, seed)
        gain = _gains(vae, codes, q_agg, mixture_of, generator)
    gmm = mixture_of[0] if held_out is not None else _fit(q_agg, len(mixture_of[0].weight), seed)
    candidates = {"prior": vae.prior, "gmm": gmm.to(q_agg.loc.dtype), "q_agg": q_agg}
    name = _smoothest(gain, caution)
    return Choice(name, candidates[name], {n: estimate(gain[n]) for n in ORDER}, candidates)


def _smoothest(gain: dict[str, Tensor], caution: float) -> str:
    """Return the smoothest candidate that is not worse than the best by more than so many standard errors."""
    best = max(ORDER, key=lambda name: float(gain[name].mean()))
    for name in ORDER:
        lost = estimate(gain[best] - gain[name])
        if lost.value <= caution * lost.stderr:
            return name
    return best


def _codes(
    vae: Any, x: Tensor, q_agg: DiagGaussianMixture, held_out: Tensor | None, num_data: int, generator: Any
) -> _Codes:
    """Choose the data to be scored, and divide the model's prior out of their codes."""
    scored, coded = (x, q_agg) if held_out is None else (held_out, aggregated_posterior(vae.encoder, held_out))
    order = torch.randperm(len(scored), generator=generator)
    rows = order[:num_data]
    loc, scale = coded.loc[rows].double(), coded.scale[rows].double()
    prior_loc, prior_variance = _moments(vae.prior, q_agg, generator)
    precision = scale.square().reciprocal()
    shift = loc * precision - prior_loc / prior_variance
    precision = torch.maximum(precision - 1 / prior_variance, 0.01 * precision)
    own, fold = rows, torch.arange(len(rows)) % FOLDS
    if held_out is not None:
        own, fold = None, torch.zeros_like(fold)
    return _Codes(scored[rows], loc, scale, precision, shift, own, fold)


def _with_strength(decoder: Any, codes: _Codes, generator: Any) -> _Codes:
    """Scale the factors so that along the encoder's width they fall as the likelihood does, on average.

    A model trained with beta has codes that are narrower, or wider, than p(x|z) is: there the scale is about beta.
    """
    some = codes.at(torch.arange(min(200, len(codes.x))))
    noise = some.scale * torch.randn((8, *some.loc.shape), generator=generator, dtype=torch.float64)
    z = torch.cat([some.loc[None], some.loc + noise, some.loc - noise]).to(some.x.dtype)
    value = log_likelihood(decoder, z, some.x)
    fall = (value[0] - value[1:].mean(0)).mean()
    expected = 0.5 * (some.precision * some.scale.square()).sum(-1).mean()
    strength = (fall / expected).clamp(1e-3, 10.0)
    return codes._replace(precision=strength * codes.precision, shift=strength * codes.shift)


def _without_folds(q_agg: DiagGaussianMixture, codes: _Codes, num: int) -> list[DiagGaussianMixture]:
    """For each fold return q_agg of the data outside of it; data that are not scored belong to no fold."""
    fold = torch.full((num,), -1).scatter(0, codes.own, codes.fold)
    keep = [(fold != f).nonzero()[:, 0] for f in range(FOLDS)]
    return [DiagGaussianMixture(q_agg.loc[rows], q_agg.scale[rows]) for rows in keep]


def _best_size(codes: _Codes, folds: list[DiagGaussianMixture], sizes: list[int], seed: int) -> list[GaussianMixture]:
    """Fit mixtures of each size to each fold; return those of the size under which the data left out fare best."""
    best, best_score = [], -torch.inf
    for size in sizes:
        mixtures = [_fit(q, size, seed) for q in folds]
        score = 0.0
        for f, mixture in enumerate(mixtures):
            part = codes.at(codes.fold == f)
            score += float(TiltedFull(mixture).log_normaliser(part.precision, part.shift).sum())
        if score > best_score:
            best, best_score = mixtures, score
    return best


def _gains(
    vae: Any, codes: _Codes, q_agg: DiagGaussianMixture, mixture_of: list[GaussianMixture], generator: Any
) -> dict[str, Tensor]:
    """Gains over the model's prior, one a datum, by name."""
    parts = []
    size = max(1, CELLS // (3 * DRAWS * codes.x[0].numel()))
    for f, mixture in enumerate(mixture_of):
        for rows in (codes.fold == f).nonzero()[:, 0].split(size):
            part = codes.at(rows)
            bases = [_tilted_prior(vae.prior, part, q_agg, generator), TiltedFull(mixture), TiltedDiag(q_agg, part.own)]
            parts.append(_log_probs(vae, part, bases, generator))
    values = torch.cat(parts)
    return {name: value - values[:, 0] for name, value in zip(ORDER, values.unbind(1), strict=True)}


def _log_probs(vae: Any, codes: _Codes, bases: list[Tilted], generator: Any) -> Tensor:
    """Estimate log p(x) under each candidate, (B, candidates), from draws that all of them share."""
    draws, factors = [], []
    for number, base in enumerate(bases):
        for strength, share in STRENGTHS:
            precision, shift = strength * codes.precision, strength * codes.shift
            count = DRAWS * share // 8
            draws.append(base.sample(precision, shift, count, generator))
            factors.append((number, precision, shift, math.log(count) - base.log_normaliser(precision, shift)))
    z = torch.cat(draws, 1)
    density = torch.stack([base.log_prob(z) for base in bases])  # (candidates, B, S)
    proposal = torch.stack(
        [density[number] + log_factor(z, h, eta) + constant[:, None] for number, h, eta, constant in factors]
    ).logsumexp(0)
    density[0] = _density(vae.prior, z, codes, density[0])
    likelihood = log_likelihood(vae.decoder, z.transpose(0, 1).to(codes.x.dtype), codes.x).mT
    return (likelihood + density - proposal).logsumexp(-1).mT


def _tilted_prior(prior: Any, codes: _Codes, q_agg: DiagGaussianMixture, generator: Any) -> Tilted:
    """Return the model's prior as a mixture, if it is one, or a Gaussian of its moments to draw from."""
    if isinstance(prior, GaussianMixture):
        return TiltedFull(prior)
    mixture = prior.mixture() if hasattr(prior, "mixture") else prior
    if isinstance(mixture, DiagGaussianMixture):
        same = isinstance(prior, ExemplarPrior) and codes.own is not None and len(prior.exemplars) == len(q_agg.loc)
        return TiltedDiag(mixture, codes.own if same else None)
    loc, variance = _moments(prior, q_agg, generator)
    return TiltedDiag(DiagGaussianMixture(loc[None], variance.sqrt()[None]))


def _density(prior: Any, z: Tensor, codes: _Codes, of_base: Tensor) -> Tensor:
    known = isinstance(prior, GaussianMixture | DiagGaussianMixture | StandardNormal) or hasattr(prior, "mixture")
    return of_base if known else prior.log_prob(z.to(codes.x.dtype)).double()


def _moments(prior: Any, q_agg: DiagGaussianMixture, generator: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coordinate under the model's prior."""
    loc = q_agg.loc[0].double()
    if isinstance(prior, StandardNormal):
        return torch.zeros_like(loc), torch.ones_like(loc)
    mixture = prior.mixture() if hasattr(prior, "mixture") else prior
    if isinstance(mixture, DiagGaussianMixture):
        return mixture.mean.double(), mixture.variance.double()
    z = prior.sample((10_000,), generator=generator).double()
    return z.mean(0), z.var(0)


def _fit(q_agg: DiagGaussianMixture, num_components: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns when EM ran out of steps: scored is what it found
        return fit_gmm(q_agg, num_components, seed=seed)


def _check(
    vae: Any, x: object, held_out: object, num_components: object, num_data: object, caution: object, generator: object
) -> None:
    for part, methods in (("encoder", ()), ("decoder", ()), ("prior", ("log_prob", "sample"))):
        if not hasattr(vae, part) or any(not hasattr(getattr(vae, part), m) for m in methods):
            wanted = " with log_prob and sample" if methods else ""
            raise TypeError(f"vae: expected an object with a {part}{wanted}, got {type(vae).__name__}")
    check_tensor("x", x, ("N", "P"))
    if len(x) < 10:
        raise ValueError(f"x: expected at least 10 data, got {len(x)}")
    if held_out is not None:
        check_tensor("held_out", held_out, ("M", x.shape[1]))
        if len(held_out) < 2:
            raise ValueError("held_out: expected at least 2 data, got 1")
    if not isinstance(num_components, tuple) or not num_components:
        raise TypeError(f"num_components: expected a tuple of ints, got {num_components!r}")
    for k in num_components:
        check_int("num_components", k, minimum=1)
    check_int("num_data", num_data, minimum=2)
    check_number("caution", caution, minimum=0)
    check_generator(generator)
