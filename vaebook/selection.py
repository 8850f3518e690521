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

from vaebook._checks import check_all, check_generator, check_int, check_number, check_positive, check_tensor
from vaebook.adapters import AdaptedVAE, adapt_vae
from vaebook.estimators import Estimate, estimate
from vaebook.evaluation import Condition, Data, take
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import components, optional
from vaebook.priors import GaussianMixture, as_mixture, fit_gmm
from vaebook.tables import Table, table
from vaebook.tilted import CELLS, Tilted, log_factor

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
PILOT = 200
"""How many data decide how strong the tilt is."""
FEW = 10
"""Effective draws for half of the data below which the gains are not to be relied on."""


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
    effective_samples: dict[str, float]
    """How many of the 288 draws for a datum count under each, by name: the median over the data."""

    def table(self) -> Table:
        """Show the gains and their standard errors."""
        value, error = zip(*[(g.value, g.stderr) for g in self.gains.values()], strict=True)
        chosen = ["yes" if name == self.name else "" for name in self.gains]
        return table({"z from": list(self.gains), "gain (nats)": value, "std. error": error, "chosen": chosen})


_Candidate = tuple[Tilted, Any]
"""A mixture to draw from, and the density itself where the mixture only resembles it, else None."""


class _Codes(NamedTuple):
    """B data to be scored."""

    x: Tensor  # (B, …)
    condition: Condition
    precision: Tensor  # (B, D), H of the Gaussian factor that is left of the code without the model's prior
    shift: Tensor  # (B, D), its eta
    own: Tensor | None  # (B), their components in q_agg
    fold: Tensor  # (B)

    def at(self, rows: Tensor) -> _Codes:
        """Select some of the data."""
        return _Codes(*[take(part, rows) for part in self])


@torch.no_grad()
def choose_prior(
    vae: Any,
    x: Data,
    *,
    condition: Any = None,
    held_out: Data | None = None,
    held_out_condition: Any = None,
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
        vae: a trained model on the CPU: what `vaebook.adapters.adapt` makes, or an object with such an encoder, decoder
            and prior. It is run in evaluation mode.
        x: the training data, (N, …), N at least 10.
        condition: what the model takes beside x, a row for each datum: a tensor, or tensors by name.
        held_out: data that had no part in training, (M, …); None means to leave out training data.
        held_out_condition: their condition.
        num_components: the K to try; those above N/2 are skipped (if all are, K = 1 is tried).
        num_data: how many data to score at most, drawn at random.
        caution: how many standard errors a smoother candidate may fall short of the best.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The choice, with the gains (0 for the prior itself) and all three densities, ready to use. Where fewer than 10
        draws count for half of the data, a warning says so.

    Raises:
        TypeError: vae lacks a part, or an argument has the wrong type.
        ValueError: an argument has the wrong shape, is out of range, not finite or not on the CPU; there are fewer
            than 10 training data, a log-likelihood is not finite, or two passes over the same data differ.

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
    vae = adapt_vae(vae)
    _check(num_components, num_data, caution, generator)
    x, condition = vae.data(x, condition, least=10)
    name, scored, given = "x", x, condition
    if held_out is not None:
        name, (scored, given) = "held_out", vae.data(held_out, held_out_condition, name="held_out", least=2)
    if scored.shape[1:] != x.shape[1:] or scored.device != x.device or x.device.type != "cpu":
        wanted = f"data of shape {tuple(x.shape[1:])} on the CPU, as the model"
        raise ValueError(f"{name}: expected {wanted}, got {tuple(scored.shape[1:])} on {scored.device}")
    with vae.evaluating(x, condition):
        q_agg = _encode(vae, x, condition)
        exemplars = optional(vae.prior, "exemplars")
        if held_out is None and exemplars is not None and len(x) != len(exemplars):
            wanted = f"the {len(exemplars)} exemplars of which the prior is made"
            raise ValueError(f"x: expected {wanted}, got {len(x)} data")
        rows = torch.randperm(len(scored), generator=generator)[:num_data]
        codes = _codes(vae, scored[rows], take(given, rows), rows if held_out is None else None, generator)
        check_all(name, codes.shift, codes.shift.isfinite(), "data with finite codes and log-likelihoods")
        seed = int(torch.randint(2**31, (), generator=generator))
        folds = [q_agg] if held_out is not None else _without_folds(q_agg, codes)
        mixtures = _best_size(codes, folds, sorted({k for k in num_components if 2 * k <= len(x)}) or [1], seed)
        log_prob, effective = _score(vae, codes, q_agg, mixtures, generator)
    check_all(name, log_prob, log_prob.isfinite(), "data with finite log-likelihoods")
    gain = dict(zip(ORDER, (log_prob - log_prob[:, :1]).unbind(1), strict=True))
    gmm = mixtures[0] if held_out is not None else _fit(q_agg, len(mixtures[0].weight), seed)
    candidates = {"prior": vae.prior, "gmm": gmm.to(q_agg.loc.dtype), "q_agg": q_agg}
    chosen, counted = _smoothest(gain, caution), dict(zip(ORDER, effective.median(0).values.tolist(), strict=True))
    if min(counted.values()) < FEW:
        hint = "gains may be wrong by more than their standard errors; compare those of importance_log_prob"
        warnings.warn(f"choose_prior: expected {FEW} effective draws or more, got {counted}; {hint}", stacklevel=3)
    return Choice(chosen, candidates[chosen], {n: estimate(gain[n]) for n in ORDER}, candidates, counted)


def _smoothest(gain: dict[str, Tensor], caution: float) -> str:
    """Return the smoothest candidate that falls short of the best by no more than what is noise or negligible."""
    best = max(ORDER, key=lambda name: float(gain[name].mean()))
    for name in ORDER:
        lost = estimate(gain[best] - gain[name])
        if lost.value <= max(NEGLIGIBLE, caution * lost.stderr):
            return name
    return best


def _encode(vae: AdaptedVAE, x: Tensor, condition: Condition) -> DiagGaussianMixture:
    parts = [vae.encode(x[r], take(condition, r)).base_dist for r in torch.arange(len(x)).split(1024)]
    loc, scale = torch.cat([q.loc for q in parts]), torch.cat([q.scale for q in parts])
    return DiagGaussianMixture(check_tensor("encoder's loc", loc, ("N", "D")), check_positive("encoder's scale", scale))


def _codes(vae: AdaptedVAE, x: Tensor, condition: Condition, own: Tensor | None, generator: Any) -> _Codes:
    """Encode x, divide the model's prior out of the codes, and scale what is left to fit the decoder."""
    coded = _encode(vae, x, condition).double()
    prior_loc, prior_variance = _moments(vae.prior, generator)
    precision = coded.scale.square().reciprocal()
    shift = coded.loc * precision - prior_loc / prior_variance
    precision = torch.maximum(precision - 1 / prior_variance, 0.01 * precision)
    fold = torch.arange(len(x)) % FOLDS if own is not None else torch.zeros(len(x), dtype=torch.long)
    codes = _Codes(x, condition, precision, shift, own, fold)
    strength = _strength(vae, codes.at(slice(PILOT)), coded.loc[:PILOT], coded.scale[:PILOT], generator)
    return codes._replace(precision=strength * precision, shift=strength * shift)


def _strength(vae: AdaptedVAE, codes: _Codes, loc: Tensor, scale: Tensor, generator: Any) -> Tensor:
    """Return the factor at which exp(-H z²/2 + …) falls over the encoder's width as p(x|z) does, on average.

    It is about beta for a model trained with beta, whose codes are narrower or wider than p(x|z) is.
    """
    noise = scale * torch.randn((8, *loc.shape), generator=generator, dtype=torch.float64)
    value = vae.log_likelihood(torch.cat([loc[None], loc + noise, loc - noise]), codes.x, codes.condition)
    fall = (value[0] - value[1:].mean(0)).mean()
    expected = 0.5 * (codes.precision * scale.square()).sum(-1).mean()
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
            score += float(Tilted(mixture).log_normaliser(part.precision, part.shift).sum())
        if score > best_score:
            best, best_score = mixtures, score
    return best


def _score(
    vae: AdaptedVAE, codes: _Codes, q_agg: DiagGaussianMixture, mixtures: list[GaussianMixture], generator: Any
) -> Tensor:
    """Log p(x) under each of ORDER and effective draws, (2, B, 3); of the mixtures each datum sees that of its fold."""
    parts, prior = [], as_mixture(vae.prior) or vae.prior
    size = max(1, CELLS // (len(ORDER) * DRAWS * codes.x[0].numel()))  # draws × data × pixels at once
    for f, mixture in enumerate(mixtures):
        for rows in (codes.fold == f).nonzero()[:, 0].split(size):
            part = codes.at(rows)
            # A prior made of the training data was trained without the datum's own component, and is scored so.
            own = None if optional(vae.prior, "exemplars") is None else part.own
            candidates = [_candidate(prior, own, generator), _candidate(mixture, None, generator)]
            parts.append(_log_probs(vae, part, [*candidates, _candidate(q_agg, part.own, generator)], generator))
    return torch.cat(parts, 1)


def _log_probs(vae: AdaptedVAE, codes: _Codes, candidates: list[_Candidate], generator: Any) -> Tensor:
    """Estimate log p(x) under each candidate from draws that all share, and how many of them count, (2, B, K)."""
    draws, parts = [], []
    for number, (base, _) in enumerate(candidates):
        for strength, share in STRENGTHS:
            precision, shift, count = strength * codes.precision, strength * codes.shift, DRAWS * share // 8
            z, log_normaliser = base.sample(precision, shift, count, generator)
            draws.append(z)
            parts.append((number, precision, shift, math.log(count) - log_normaliser))
    z = torch.cat(draws, 1)
    log_base = [base.log_prob(z) for base, _ in candidates]
    proposal = [log_base[number] + log_factor(z, h, eta) + constant[:, None] for number, h, eta, constant in parts]
    log_density = [
        value if density is None else density.log_prob(z.to(vae.decoder.dtype)).double()
        for value, (_, density) in zip(log_base, candidates, strict=True)
    ]
    likelihood = vae.log_likelihood(z.transpose(0, 1), codes.x, codes.condition).mT
    log_weight = likelihood + torch.stack(log_density) - torch.stack(proposal).logsumexp(0)
    log_prob = log_weight.logsumexp(-1).mT
    return torch.stack([log_prob, (2 * log_prob - (2 * log_weight).logsumexp(-1).mT).exp()])


def _candidate(prior: Any, own: Tensor | None, generator: Any) -> _Candidate:
    """Make a density ready for tilting; one that is no Gaussian mixture gets a Gaussian of its moments to draw from."""
    if components(prior) is not None:
        return Tilted(prior, own), None
    loc, variance = _moments(prior, generator)
    return Tilted(DiagGaussianMixture(loc[None], variance.sqrt()[None])), prior


def _moments(prior: Any, generator: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of each coordinate under a density."""
    mixture = as_mixture(prior)
    if isinstance(mixture, DiagGaussianMixture):
        return mixture.mean, mixture.variance
    z = prior.sample((10_000,), generator=generator).double()
    return z.mean(0), z.var(0)


def _fit(q_agg: DiagGaussianMixture, num_components: int, seed: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns when EM runs out of steps: what it found is scored
        return fit_gmm(q_agg, num_components, seed=seed)


def _check(num_components: object, num_data: object, caution: object, generator: object) -> None:
    if not isinstance(num_components, tuple) or not num_components:
        raise TypeError(f"num_components: expected a tuple of ints, got {num_components!r}")
    for number in num_components:
        check_int("num_components", number, minimum=1)
    check_int("num_data", num_data, minimum=2)
    check_number("caution", caution, minimum=0)
    check_generator(generator)
