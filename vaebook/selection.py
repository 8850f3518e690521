r"""Which distribution of codes should a trained VAE be sampled from? A Gaussian mixture fitted to them.

How many components, and with full or diagonal covariances, is decided by cross-validation of codes: fitted without a
fold of the data, that mixture c is best under which E_{q(z|x)} log c(z) is largest on the fold. No decoder is needed.

What the mixture gains over the model's prior, and what the aggregated posterior would gain, is then estimated,

    log p_c(x) - log p(x) = log ∫ p(x|z) c(z) dz - log ∫ p(x|z) p(z) dz,

on held-out data or, on training data, under densities made *without the datum or its fold*.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebook._checks import check_all, check_generator, check_int, check_sizes, new_seed
from vaebook.adapters import AdaptedVAE, adapt_vae
from vaebook.aggregate import aggregated_posterior
from vaebook.estimators import Estimate, estimate
from vaebook.evaluation import Data, take
from vaebook.gmm import GaussianMixture, fit_quietly
from vaebook.likelihood import compare_priors
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import optional
from vaebook.tables import Table, table

ORDER = ("prior", "gmm", "q_agg")
"""The densities that are compared."""
FOLDS = 3
"""Into how many parts the data are cut."""
COVARIANCES = ("full", "diag")
"""What is tried for each number of components."""
FIT_SAMPLES = 4000
"""Samples of q_agg to which a mixture is fitted."""
NUM_SAMPLES = 250
"""Importance samples for each datum."""
CLEAR = 2
"""Standard errors at which a gain counts: chance makes one of 40 do so where there is none, at hardly any loss."""
FEW = 10
"""Effective samples for half of the data below which the gains are not to be relied on."""

Mixture = GaussianMixture | DiagGaussianMixture


class Choice(NamedTuple):
    """What `choose_prior` found; `prior` is ready to take the place of the model's."""

    prior: Mixture
    """The mixture, fitted to the codes of all training data."""
    num_components: int
    """Its K."""
    covariance: str
    """"full" or "diag"."""
    gains: dict[str, Estimate]
    """Estimated log-likelihood over that under the model's prior, nats per datum, by name; num_samples counts data."""
    log_likelihood: dict[str, Estimate]
    """The log-likelihood itself under each, nats per datum."""
    candidates: dict[str, Any]
    """The densities over z of which the gains tell: "prior", "gmm" and "q_agg"."""
    effective_samples: dict[str, float]
    """How many of the 250 samples for a datum count under each, by name: the median over the data."""

    def table(self) -> Table:
        """Show the gains and their standard errors."""
        value, error = zip(*[(g.value, g.stderr) for g in self.gains.values()], strict=True)
        return table({"z from": list(self.gains), "gain (nats)": value, "std. error": error})


@torch.no_grad()
def choose_prior(
    vae: Any,
    x: Data,
    *,
    condition: Any = None,
    held_out: Data | None = None,
    held_out_condition: Any = None,
    num_components: tuple[int, ...] = (1, 3, 10, 30),
    num_data: int = 300,
    generator: torch.Generator | None = None,
) -> Choice:
    r"""Fit a Gaussian mixture to the codes of a trained model, and say what it gains in place of the model's prior.

    $(K,\text{covariance})=\arg\max\ \sum_f\sum_{n\in f}\mathbb E_{q(z\mid x_n)}\log c_{-f}(z)$ with $c_{-f}$ fitted
    without fold f

    **Why always the mixture.** A rule that chose among prior, mixture and q_agg by gains on training data lost more
    likelihood, on data sets not used to design it, than always taking this mixture. With held-out data at hand,
    compare the gains: those on held-out data are right to their standard errors, those on training data are not; see
    the source.

    **The gains** are log-likelihood less that under the model's prior, on up to num_data data. With held-out data
    these are scored. Without, it is training data: under q_agg without the datum's own component, under the mixture
    fitted (and its K chosen) without the datum's fold.

    *What is left out.* One component, the datum's own, even if the data contain copies of it. If copies come
    about by chance, new data are copies as often, and leaving out one is what makes the score that of new data; if
    they were made (augmentation, oversampling), remove them first.

    *What remains.* Encoder and decoder were fitted to the data that are scored. Standard errors do not contain that:
    with training data they are those of a fixed model and a fixed mixture. Held-out data are worth having.

    Args:
        vae: a trained model: what `vaebook.adapters.adapt` makes, or an object with such an encoder, decoder
            and prior. It is run in evaluation mode.
        x: the training data, (N, …), N at least 10.
        condition: what the model takes beside x, a row for each datum: a tensor, or tensors by name.
        held_out: data that had no part in training, (M, …); None means to leave out training data.
        held_out_condition: their condition.
        num_components: the K to try. Those with as many parameters as data are skipped, but for the smallest.
        num_data: how many data to score at most, drawn at random.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The mixture, with the gains (0 for the prior itself) and all three densities, ready to use. Where fewer than 10
        samples count for half of the data, a warning says so.

    Raises:
        TypeError: vae lacks a part, or an argument has the wrong type.
        ValueError: an argument has the wrong shape, is out of range or not finite; there are fewer
            than 10 training data, a log-likelihood is not finite, or two passes over the same data differ.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> ring = torch.linspace(0, 6.28, 200, dtype=torch.float64)
        >>> x = torch.stack([ring.cos(), ring.sin(), 0.02 * (7 * ring).sin()], 1)
        >>> choice = choose_prior(PPCA.fit(x, 2), x, generator=torch.Generator().manual_seed(0))
        >>> choice.num_components > 1, choice.gains["gmm"].value > 1
        (True, True)

    Source: this book, chapter aggregated/sampling. Mixtures fitted after training: Ghosh et al., From variational to
    deterministic autoencoders (2020), section 4. Cross-validation: Smyth, Model selection for probabilistic clustering
    using cross-validated likelihood (2000).
    """
    vae = adapt_vae(vae)
    sizes = sorted(set(check_sizes("num_components", num_components, minimum=1, empty=False)))
    num_data = check_int("num_data", num_data, minimum=2)
    x, condition = vae.data(x, condition, least=10)
    generator = check_generator(generator, x.device)
    name, scored, given = "x", x, condition
    if held_out is not None:
        name, (scored, given) = "held_out", vae.data(held_out, held_out_condition, name="held_out", least=2)
    if scored.shape[1:] != x.shape[1:]:
        raise ValueError(f"{name}: expected data of shape {tuple(x.shape[1:])}, got {tuple(scored.shape[1:])}")
    with vae.evaluating(x, condition):
        q_agg, exemplars = aggregated_posterior(vae, x, condition=condition), optional(vae.prior, "exemplars")
        if held_out is None and exemplars is not None and len(x) != len(exemplars):
            wanted = f"the {len(exemplars)} exemplars of which the prior is made"
            raise ValueError(f"x: expected {wanted}, got {len(x)} data")
        seed = new_seed(generator)
        size, covariance = _best(q_agg, sizes, seed)
        candidates = {"prior": vae.prior, "gmm": _fit(q_agg, size, covariance, seed), "q_agg": q_agg}
        rows = torch.randperm(len(scored), generator=generator, device=x.device)[:num_data]
        parts, own, found = [(rows, candidates["gmm"])], [], []
        if held_out is None:
            # A prior made of the training data was trained without the datum's own component, and is scored so.
            parts, own = _unseen(q_agg, rows, sizes, seed), ["q_agg"] + ["prior"] * (exemplars is not None)
        for part, mixture in parts:
            options = {"leave_out": {n: part for n in own}, "condition": take(given, part), "generator": generator}
            found.append(_compare(vae, scored[part], candidates | {"gmm": mixture}, options))
    log_prob, effective = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    check_all(name, log_prob.mT, log_prob.mT.isfinite(), "data with finite log-likelihoods")
    gains = {n: estimate(v - log_prob[0]) for n, v in zip(ORDER, log_prob, strict=True)}
    total = {n: estimate(v) for n, v in zip(ORDER, log_prob, strict=True)}
    counted = dict(zip(ORDER, effective.median(1).values.tolist(), strict=True))
    if min(counted.values()) < FEW:
        hint = "gains may be wrong by more than their standard errors"
        warnings.warn(f"choose_prior: expected {FEW} effective samples or more, got {counted}; {hint}", stacklevel=3)
    return Choice(candidates["gmm"], size, covariance, gains, total, candidates, counted)


def _best(q_agg: DiagGaussianMixture, sizes: list[int], seed: int) -> tuple[int, str]:
    """Return the K and the covariance under whose mixtures codes of the folds left out fare best."""
    (num, dim), fold, scores = q_agg.loc.shape, _folds(q_agg.num_components, seed), {}
    parts = (q_agg[fold == f].double() for f in range(FOLDS))
    codes = [part.sample((3000,), generator=torch.Generator().manual_seed(seed)) for part in parts]
    for covariance in COVARIANCES if dim > 1 else COVARIANCES[:1]:  # of one number they are the same
        parameters = 1 + dim + (dim * (dim + 1) // 2 if covariance == "full" else dim)
        for size in [k for k in sizes if k == sizes[0] or k * parameters < num]:
            pairs = [(_fit(q_agg[fold != f], size, covariance, seed), codes[f]) for f in range(FOLDS)]
            scores[size, covariance] = sum(float(c.log_prob(z.to(c.loc.dtype)).double().mean()) for c, z in pairs)
    return max(scores, key=scores.get)


def _fit(q_agg: DiagGaussianMixture, size: int, covariance: str, seed: int) -> Mixture:
    return fit_quietly(q_agg, size, covariance=covariance, num_samples=FIT_SAMPLES, seed=seed).to(q_agg.loc.dtype)


def _unseen(q_agg: DiagGaussianMixture, rows: Tensor, sizes: list[int], seed: int) -> Iterator[tuple[Tensor, Mixture]]:
    """Yield rows of data to be scored, and a mixture that has not seen them."""
    fold = _folds(q_agg.num_components, seed).to(rows.device)
    for f in range(FOLDS):
        part = rows[fold[rows] == f]
        if len(part):
            outside = q_agg[fold != f]
            yield part, _fit(outside, *_best(outside, sizes, seed), seed)


def _compare(vae: AdaptedVAE, x: Tensor, priors: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log p(x) under each of ORDER, and how many samples count, (3, B) each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="num_samples: expected")  # the median tells
        found = compare_priors(vae, x, priors, NUM_SAMPLES, **options)
    return tuple(torch.stack([getattr(found[n], part) for n in ORDER]) for part in ("log_prob", "effective_samples"))


def _folds(num: int, seed: int) -> Tensor:
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)) % FOLDS
