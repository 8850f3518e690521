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
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_generator, check_int, check_number, check_tensor
from vaebook.adapters import Decoder
from vaebook.aggregate import aggregated_posterior, evaluation_mode
from vaebook.estimators import Estimate, estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm
from vaebook.tables import Table, table
from vaebook.tilted import TiltedDiag, TiltedFull, log_factor

ORDER = ("prior", "gmm", "q_agg")
"""The candidates, the smoothest first."""
FOLDS = 3
"""Into how many parts the data are cut, to score the mixtures that are fitted."""
STRENGTHS = ((0.0, 1), (0.25, 3), (1.0, 4))
"""How strongly draws are tilted towards the datum, and how many of eight are drawn so."""
DRAWS = 96
"""Draws of z for each datum from each candidate, a multiple of eight."""
NEGLIGIBLE = 0.01
"""Nats per datum for which a smoother candidate is not given up."""
CELLS = 2**22
"""Draws × data × pixels at once."""
PILOT = 200
"""How many data decide how strong the tilt is."""

Tilted = TiltedDiag | TiltedFull


class _Candidate(NamedTuple):
    """A density over z, and what to draw from for it."""

    base: Tilted
    density: Any = None  # the density itself, where base only resembles it


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
    r"""Choose what to sample codes from: the model's prior, the aggregated posterior, or a Gaussian mixture.

    $\hat g_c = \frac1B\sum_n\bigl(\log\hat p_{c_{-n}}(x_n) - \log\hat p(x_n)\bigr)$ with $c_{-n}$ made without $x_n$

    **The rule.** Estimate the gain $\hat g_c$ of each candidate over the model's prior on up to num_data training data:
    of q_agg without the datum's own component, of the mixture fitted without the datum's fold, its K the one of
    num_components under which the data left out fare best. Take the smoothest candidate (prior, then mixture, then
    q_agg) that falls short of the best by at most as many standard errors of the paired difference as caution says, or
    by at most 0.01 nats.

    With held-out data these are scored instead, and nothing has to be left out.

    *What is left out.* One component, the datum's own, even if the data contain copies of it. If copies come
    about by chance, new data are copies as often, and leaving out one is what makes the score that of new data; if
    they were made (augmentation, oversampling), remove them first.

    *What remains.* Encoder and decoder were fitted to the data that are scored. Much of this optimism is common to all
    candidates and cancels. If the model overfits badly, so that its ELBO is far better on the training data than on
    others, gains are too large, and held-out data are worth having.

    The criterion is held-out likelihood under the decoder, not the look of samples. Time is spent on fitting
    mixtures and on N × num_data pairs: seconds for 1,000 data, minutes for 50,000.

    Args:
        vae: a trained model on the CPU: `.encoder` as for `aggregated_posterior`, `.decoder(z)` → a distribution of x,
            and `.prior` with `log_prob(z)` and `sample(shape, generator=…)`. A `PPCA` is one.
        x: the training data, (N, P), N at least 10, in the dtype of the model.
        held_out: data that had no part in training, (M, P); None means to leave out training data.
        num_components: the K to try; those above N/2 are skipped (if all are, K = 1 is tried).
        num_data: how many data to score at most, drawn at random.
        caution: how many standard errors a smoother candidate may fall short of the best.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The choice, with the gains (0 for the prior itself) and all three densities, ready to use.

    Raises:
        TypeError: vae lacks a part, or an argument has the wrong type.
        ValueError: an argument has the wrong shape, is out of range, not finite or not on the CPU; there are fewer
            than 10 training data, or a log-likelihood is not finite.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> ring = torch.linspace(0, 6.28, 200, dtype=torch.float64)
        >>> x = torch.stack([ring.cos(), ring.sin(), 0.02 * (7 * ring).sin()], 1)
        >>> choice = choose_prior(PPCA.fit(x, 2), x, generator=torch.Generator().manual_seed(0))
        >>> choice.name != "prior", choice.gains["q_agg"].value > 1
        (True, True)

    Source: this book, chapter aggregated/sampling. Taking the simplest model within a standard error: Breiman et al.,
    Classification and Regression Trees (1984), section 3.4.3.
    """
    _check(vae, x, held_out, num_components, num_data, caution, generator)
    q_agg = aggregated_posterior(vae.encoder, x)
    sizes = sorted({k for k in num_components if 2 * k <= len(x)}) or [1]
    with evaluation_mode(vae.decoder), evaluation_mode(vae.prior):
        scored = x if held_out is None else held_out
        rows = torch.randperm(len(scored), generator=generator)[:num_data]
        codes = _codes(vae, scored[rows], rows if held_out is None else None, generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        folds = [q_agg] if held_out is not None else _without_folds(q_agg, codes)
        mixtures = _best_size(codes, folds, sizes, seed)
        gain = _gains(vae, codes, q_agg, mixtures, generator)
    gmm = mixtures[0] if held_out is not None else _fit(q_agg, len(mixtures[0].weight), seed)
    candidates = {"prior": vae.prior, "gmm": gmm.to(q_agg.loc.dtype), "q_agg": q_agg}
    name = _smoothest(gain, caution)
    return Choice(name, candidates[name], {n: estimate(gain[n]) for n in ORDER}, candidates)


@torch.no_grad()
def log_prob_under_each(
    vae: Any, x: Tensor, priors: Mapping[str, Any], *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    r"""Estimate log p(x) under several densities in the place of the prior, from the same draws.

    $\hat p_c(x) = \frac1S\sum_s\frac{p(x\mid z_s)\,c(z_s)}{r(z_s)}$ with r a mixture of all c, tilted towards x

    The estimates of p_c(x) are unbiased; their logarithms are low by half their relative variance. What is common
    to all c cancels in differences.

    Args:
        vae: as for `choose_prior`.
        x: data that none of the densities was made of, (B, P).
        priors: densities over z by name: Gaussian mixtures of any kind, or objects with `log_prob` and `sample`.
        generator: the source of randomness; None means torch's global one.

    Returns:
        By name, log p̂_c(x), (B), nats, float64, without gradients.

    Raises:
        TypeError, ValueError: as `choose_prior`; priors is not a mapping, or empty.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> wide = DiagGaussianMixture(torch.zeros(1, 1), torch.full((1, 1), 2.0))
        >>> x, generator = torch.ones(2, 2), torch.Generator().manual_seed(0)
        >>> found = log_prob_under_each(model, x, {"wide": wide}, generator=generator)["wide"]
        >>> bool((found - model.log_prob_under(wide, x)).abs().max() < 0.1)
        True

    Source: Veach & Guibas, Optimally combining sampling techniques (1995), the balance heuristic.
    """
    _check(vae, x, None, (1,), 2, 0.0, generator, least=1)
    if not isinstance(priors, Mapping) or not priors:
        raise TypeError(f"priors: expected densities by name, got {priors!r}")
    with evaluation_mode(vae.decoder), evaluation_mode(vae.prior):
        codes = _codes(vae, x, None, generator)
        candidates = [_candidate(prior, None, generator) for prior in priors.values()]
        size = _batch_size(codes, len(candidates))
        parts = [_log_probs(vae, codes.at(r), candidates, generator) for r in torch.arange(len(x)).split(size)]
    return dict(zip(priors, torch.cat(parts).unbind(1), strict=True))


def _smoothest(gain: dict[str, Tensor], caution: float) -> str:
    """Return the smoothest candidate that falls short of the best by no more than what is noise or negligible."""
    best = max(ORDER, key=lambda name: float(gain[name].mean()))
    for name in ORDER:
        lost = estimate(gain[best] - gain[name])
        if lost.value <= max(NEGLIGIBLE, caution * lost.stderr):
            return name
    return best


def _codes(vae: Any, x: Tensor, own: Tensor | None, generator: Any) -> _Codes:
    """Encode x, divide the model's prior out of the codes, and scale what is left to fit the decoder."""
    coded = aggregated_posterior(vae.encoder, x).double()
    prior_loc, prior_variance = _moments(vae.prior, generator)
    precision = coded.scale.square().reciprocal()
    shift = coded.loc * precision - prior_loc / prior_variance
    precision = torch.maximum(precision - 1 / prior_variance, 0.01 * precision)
    strength = _strength(vae.decoder, x[:PILOT], coded, precision, generator)
    fold = torch.arange(len(x)) % FOLDS if own is not None else torch.zeros(len(x), dtype=torch.long)
    return _Codes(x, strength * precision, strength * shift, own, fold)


def _strength(decoder: Any, x: Tensor, coded: DiagGaussianMixture, precision: Tensor, generator: Any) -> Tensor:
    """Return the factor at which exp(-H z²/2 + …) falls over the encoder's width as p(x|z) does, on average.

    It is about beta for a model trained with beta, whose codes are narrower or wider than p(x|z) is.
    """
    loc, scale = coded.loc[: len(x)], coded.scale[: len(x)]
    noise = scale * torch.randn((8, *loc.shape), generator=generator, dtype=torch.float64)
    z = torch.cat([loc[None], loc + noise, loc - noise]).to(x.dtype)
    value = Decoder(decoder).log_likelihood(z, x)
    fall = (value[0] - value[1:].mean(0)).mean()
    expected = 0.5 * (precision[: len(x)] * scale.square()).sum(-1).mean()
    return (fall / expected).clamp(1e-3, 10.0)


def _without_folds(q_agg: DiagGaussianMixture, codes: _Codes) -> list[DiagGaussianMixture]:
    """For each fold return q_agg of the data outside of it; data that are not scored belong to no fold."""
    fold = torch.full((q_agg.num_components,), -1).scatter(0, codes.own, codes.fold)
    keep = [(fold != f).nonzero()[:, 0] for f in range(FOLDS)]
    return [DiagGaussianMixture(q_agg.loc[rows], q_agg.scale[rows]) for rows in keep]


def _best_size(codes: _Codes, folds: list[DiagGaussianMixture], sizes: list[int], seed: int) -> list[GaussianMixture]:
    """Fit mixtures of each size to each fold; return those of the size under which the data left out fare best."""
    best, best_score = [], -torch.inf
    for size in sizes:
        mixtures, score = [_fit(q, size, seed) for q in folds], 0.0
        for f, mixture in enumerate(mixtures):
            part = codes.at(codes.fold == f)
            score += float(TiltedFull(mixture).log_normaliser(part.precision, part.shift).sum())
        if score > best_score:
            best, best_score = mixtures, score
    return best


def _gains(
    vae: Any, codes: _Codes, q_agg: DiagGaussianMixture, mixtures: list[GaussianMixture], generator: Any
) -> dict[str, Tensor]:
    """Gains over the model's prior, one a datum, by name; of the mixtures each datum sees that of its fold."""
    parts = []
    for f, mixture in enumerate(mixtures):
        for rows in (codes.fold == f).nonzero()[:, 0].split(_batch_size(codes, len(ORDER))):
            part = codes.at(rows)
            # An exemplar prior was trained without the datum's own component, and is scored so.
            own = part.own if isinstance(vae.prior, ExemplarPrior) else None
            candidates = [_candidate(vae.prior, own, generator), _candidate(mixture, None, generator)]
            parts.append(_log_probs(vae, part, [*candidates, _candidate(q_agg, part.own, generator)], generator))
    values = torch.cat(parts)
    if not bool(values.isfinite().all()):
        raise ValueError("vae: expected finite log-likelihoods, got some that are not")
    return {name: value - values[:, 0] for name, value in zip(ORDER, values.unbind(1), strict=True)}


def _log_probs(vae: Any, codes: _Codes, candidates: list[_Candidate], generator: Any) -> Tensor:
    """Estimate log p(x) under each candidate, (B, candidates), from draws that all of them share."""
    draws, parts = [], []
    for number, (base, _) in enumerate(candidates):
        for strength, share in STRENGTHS:
            precision, shift, count = strength * codes.precision, strength * codes.shift, DRAWS * share // 8
            draws.append(base.sample(precision, shift, count, generator))
            parts.append((number, precision, shift, math.log(count) - base.log_normaliser(precision, shift)))
    z = torch.cat(draws, 1)
    log_base = [base.log_prob(z) for base, _ in candidates]
    proposal = [log_base[number] + log_factor(z, h, eta) + constant[:, None] for number, h, eta, constant in parts]
    log_density = [
        value if density is None else density.log_prob(z.to(codes.x.dtype)).double()
        for value, (_, density) in zip(log_base, candidates, strict=True)
    ]
    likelihood = Decoder(vae.decoder).log_likelihood(z.transpose(0, 1).to(codes.x.dtype), codes.x).mT
    return (likelihood + torch.stack(log_density) - torch.stack(proposal).logsumexp(0)).logsumexp(-1).mT


def _batch_size(codes: _Codes, num_candidates: int) -> int:
    return max(1, CELLS // (num_candidates * DRAWS * codes.x.shape[1]))


def _candidate(prior: Any, own: Tensor | None, generator: Any) -> _Candidate:
    """Make a density ready for tilting; one that is no Gaussian mixture gets a Gaussian of its moments to draw from."""
    if isinstance(prior, GaussianMixture):
        return _Candidate(TiltedFull(prior))
    mixture = _mixture(prior)
    if mixture is not None:
        return _Candidate(TiltedDiag(mixture, own))
    loc, variance = _moments(prior, generator)
    return _Candidate(TiltedDiag(DiagGaussianMixture(loc[None], variance.sqrt()[None])), prior)


def _mixture(prior: Any) -> DiagGaussianMixture | None:
    if isinstance(prior, StandardNormal):
        zero = torch.zeros(1, prior.latent_dim, dtype=torch.float64)
        return DiagGaussianMixture(zero, zero + 1)
    mixture = prior.mixture() if isinstance(prior, VampPrior | ExemplarPrior) else prior
    return mixture if isinstance(mixture, DiagGaussianMixture) else None


def _moments(prior: Any, generator: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coordinate under a density."""
    mixture = _mixture(prior)
    if mixture is not None:
        return mixture.double().mean, mixture.double().variance
    z = prior.sample((10_000,), generator=generator).double()
    return z.mean(0), z.var(0)


def _fit(q_agg: DiagGaussianMixture, num_components: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns when EM runs out of steps: what it found is scored
        return fit_gmm(q_agg, num_components, seed=seed)


def _check(
    vae: Any,
    x: Any,
    held_out: Any,
    num_components: object,
    num_data: object,
    caution: object,
    generator: object,
    least: int = 10,
) -> None:
    for part, methods in (("encoder", ()), ("decoder", ()), ("prior", ("log_prob", "sample"))):
        if not hasattr(vae, part) or any(not hasattr(getattr(vae, part), method) for method in methods):
            wanted = " with log_prob and sample" if methods else ""
            raise TypeError(f"vae: expected an object with .{part}{wanted}, got {type(vae).__name__}")
    _check_data("x", x, ("N", "P"), least)
    if held_out is not None:
        _check_data("held_out", held_out, ("M", x.shape[1]), 2)
    if not isinstance(num_components, tuple) or not num_components:
        raise TypeError(f"num_components: expected a tuple of ints, got {num_components!r}")
    for number in num_components:
        check_int("num_components", number, minimum=1)
    check_int("num_data", num_data, minimum=2)
    check_number("caution", caution, minimum=0)
    check_generator(generator)


def _check_data(name: str, x: Any, shape: tuple[str, str | int], least: int) -> None:
    check_tensor(name, x, shape)
    if len(x) < least:
        raise ValueError(f"{name}: expected at least {least} data, got {len(x)}")
    if x.device.type != "cpu":
        raise ValueError(f"{name}: expected model and data on the CPU, got {x.device}")
