r"""Diagnose any VAE in one call: what its codes tell, whether they follow the prior, and what to sample from."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from vaebook._checks import check_generator, check_int
from vaebook.adapters import adapt_prior, adapt_vae
from vaebook.aggregate import aggregated_posterior, as_codes, merge_duplicates
from vaebook.estimators import Estimate
from vaebook.evaluation import Data, blaming, evaluation_mode
from vaebook.holes import LEAST, hole_mass
from vaebook.information import active_units, decompose_kl, kl_per_dimension
from vaebook.memorisation import memorisation
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import draw_from, one_gaussian, optional
from vaebook.population import FEWEST, Interval, bracket_both
from vaebook.priors import StandardNormal, on_cpu
from vaebook.report import Diagnosis, Moments, Sampling
from vaebook.sampling import decode_candidates
from vaebook.shards import has_equal_weights
from vaebook.verdicts import verdicts

PAIRS = 1e10
"""Budget for splitting the KL term: codes × draws × dimensions."""
MOST = 50_000
"""The most codes from which the brackets for the population are computed."""
WIDE = 50
"""From this many dimensions on, the brackets fit a single Gaussian: larger mixtures have too many parameters."""
ENOUGH = 40
"""With at least this many held-out codes, these describe the population, and not the codes at hand."""
SHOWN = 1_000
"""Draws for pictures."""
Result = TypeVar("Result")


@torch.no_grad()
def diagnose(
    subject: Any,
    x: Data | None = None,
    *,
    held_out: Any = None,
    condition: Any = None,
    held_out_condition: Any = None,
    prior: Any = None,
    num_data: int = 500,
    generator: torch.Generator | None = None,
) -> Diagnosis:
    r"""Diagnose a VAE, or codes from anywhere.

    Codes alone are compared with the prior: rate, information and mismatch, of the N data and of their population;
    holes; collapsed latents; memorisation; convergence. With a decoder, the result also names the distribution of
    codes that gives data the highest log-likelihood, and says whether samples copy training data.

    Args:
        subject: a model or codes. A model is what `vaebook.adapters.adapt` makes, or an object with ``encoder``,
            ``decoder`` and ``prior``. Codes are a `DiagGaussianMixture`, or a mapping (`numpy.load` of an npz, say)
            with ``loc`` and one of ``scale``, ``var`` and ``log_var``, arrays (N, D).
        x: the training data, (N, …), if the subject is a model.
        held_out: data not used in training, or their codes; of the same kind as the training data or codes.
        condition: further input of the model beside x, one row for each datum.
        held_out_condition: the condition of the held-out data.
        prior: the prior to compare codes with; None means the standard normal. Only for codes: a model has its own.
        num_data: the most data that the decoder scores.
        generator: the source of randomness; None makes the result the same at every call.

    Returns:
        The numbers, the verdicts, and what could not be determined. ``print`` it, or call ``.table()``, ``.to_json()``
        or ``.to_html()``; notebooks show it with pictures.

    Raises:
        TypeError: subject is neither a model nor codes, or an argument is of the wrong kind.
        ValueError: shapes disagree, values are not finite, a scale is not positive, or the model gives two answers.

    Example:
        >>> loc = 0.8 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> report = diagnose({"loc": loc, "scale": torch.full_like(loc, 0.6)})
        >>> report.holes.mass, round(report.rate.value, 1), report.verdicts[0].status
        (0.0, 1.0, 'ok')

    Source: this book, chapter practice/your-vae.
    """
    num_data = check_int("num_data", num_data, minimum=2)
    generator = check_generator(generator, torch.device("cpu")) or torch.Generator().manual_seed(0)
    with tqdm(total=5, desc="diagnose", unit="step", delay=2, leave=False, disable=None) as bar:
        work = _Work(bar, generator)
        vae, given, new, q_agg, other = _read(subject, x, held_out, condition, held_out_condition)
        if vae is not None and prior is not None:
            raise TypeError(f"prior: expected None, since the model has its own, got {type(prior).__name__}")
        if vae is not None:
            prior = vae.prior
        elif prior is None:
            prior = StandardNormal(q_agg.latent_dim).double()
        prior, decode = on_cpu(adapt_prior(prior, q_agg.latent_dim)), None
        if vae is not None and vae.decoder is not None:
            decode = partial(decode_candidates, vae, given, new, num_data)
        with evaluation_mode(prior):
            found = _found(work, q_agg.to("cpu"), None if other is None else other.to("cpu"), prior, decode)
    work.remark(found, decode is not None, other is not None)
    return dataclasses.replace(found, verdicts=verdicts(found), unknown=tuple(work.unknown), notes=tuple(work.notes))


class _Work:
    """State of the work: the progress bar, the generator, and remarks for the report."""

    def __init__(self, bar: tqdm, generator: torch.Generator) -> None:
        self.bar, self.generator = bar, generator
        self.unknown, self.notes = [], []

    def enough(self, what: str, num: int, least: int, equal: bool) -> bool:
        """Return whether codes allow one part of the work; record why if they do not."""
        few = f"that takes {least} distinct codes at least; there are {num}" if num < least else ""
        why = few if equal else "codes came with unequal weights, and are no independent draws from the population"
        self.unknown += [f"{what}: {why}."] if why else []
        return not why

    def attempt(self, what: str, function: Callable[..., Result], *given: Any, **options: Any) -> Result | None:
        """Run one part of the work; if it fails, record why and go on. Warnings become notes."""
        result = None
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
            try:
                result = function(*given, generator=self.generator, **options)
            except (ValueError, RuntimeError, ArithmeticError) as error:
                self.unknown.append(f"{what}: {error}".partition("\n")[0])
        self.notes += dict.fromkeys(f"{what}: {w.message}" for w in caught if issubclass(w.category, UserWarning))
        self.bar.update()
        return result

    def remark(self, found: Diagnosis, decoder: bool, held_out: bool) -> None:
        """Record which inputs were missing and what they would show, and that copies were merged."""
        if not decoder:
            self.unknown.append("Whether samples gain by another distribution of codes: that takes the decoder.")
        if not held_out:
            self.unknown.append(
                "Whether the encoder treats new data as it treats these: that takes held-out data. If the encoder was "
                "trained on these data, the intervals for the population may not hold for new data."
            )
        if copies := found.num_data - found.num_distinct:
            self.notes.append(
                f"{copies} of {found.num_data} codes are exact copies of others and were merged. For leaving out and "
                "for the population each distinct code counts once, as is right for copies that were made."
            )


def _read(subject: Any, x: Any, held_out: Any, condition: Any, held_out_condition: Any) -> tuple[Any, ...]:
    """Distinguish a model from codes; return the model, its data, the held-out data, and the codes of both."""
    if isinstance(subject, DiagGaussianMixture | Mapping):
        for name, value in {"x": x, "condition": condition, "held_out_condition": held_out_condition}.items():
            if value is not None:
                raise TypeError(f"{name}: expected None, as codes were given and no model, got {type(value).__name__}")
        q_agg, other = as_codes("subject", subject), None if held_out is None else as_codes("held_out", held_out)
        if other is not None and other.latent_dim != q_agg.latent_dim:
            raise ValueError(f"held_out: expected codes of dimension {q_agg.latent_dim}, got {other.latent_dim}")
        return None, None, None, q_agg, other
    if isinstance(subject, tuple | list | Tensor) or not all(hasattr(subject, part) for part in ("encoder", "decoder")):
        raise TypeError(
            'subject: expected codes, as {"loc": …, "scale": … or "var": … or "log_var": …} or a DiagGaussianMixture, '
            "or a model, as vaebook.adapters.adapt(encode, decode, spread=…) makes it of functions, got "
            f"{type(subject).__name__}"
        )
    vae = adapt_vae(subject)
    if x is None:
        raise TypeError("x: expected the data that the model was trained on, got None")
    given = vae.data(x, condition)
    q_agg, new, other = aggregated_posterior(vae, given[0], condition=given[1]), None, None
    if held_out is not None:
        new = vae.data(held_out, held_out_condition, name="held_out")
        with blaming("held_out"):
            other = aggregated_posterior(vae, new[0], condition=new[1])
    return vae, given, new, q_agg, other


def _found(
    work: _Work,
    q_agg: DiagGaussianMixture,
    other: DiagGaussianMixture | None,
    prior: Any,
    decode: Callable[..., Sampling] | None,
) -> Diagnosis:
    """Compute everything but the verdicts."""
    merged = merge_duplicates(q_agg)[0]
    num, num_distinct, dim = q_agg.num_components, merged.num_components, q_agg.latent_dim
    draws = int(min(10_000, max(1_000, PAIRS / (num_distinct * dim))))
    parts = decompose_kl(merged, prior, num_samples=draws, marginals=True, generator=work.generator)
    work.bar.update()
    merged = merged.double()  # what is prepared for its sums is shared by all below
    distinct = DiagGaussianMixture(merged.loc, merged.scale, validate_args=False)
    equal = has_equal_weights(q_agg)
    sample = other if other is not None and other.num_components >= ENOUGH else distinct
    mismatch = information = holes = None
    if work.enough("The population", sample.num_components, FEWEST, equal):
        mismatch, information = _population(work, sample, distinct, prior)
    if work.enough("Holes", num_distinct, LEAST, equal):
        holes = work.attempt("Holes", hole_mass, distinct, prior)
    told, unit = math.exp(parts.mutual_information.value), one_gaussian(prior)
    return Diagnosis(
        num_data=num,
        num_distinct=num_distinct,
        latent_dim=dim,
        prior=_describe(prior, unit),
        rate=parts.rate,
        information=parts.mutual_information,
        log_num_data=math.log(num),
        distinguishable=Estimate(told, told * parts.mutual_information.stderr, draws),
        information_population=information,
        mismatch=parts.marginal_kl,
        mismatch_population=mismatch,
        population_from="" if mismatch is None else "the codes at hand" if sample is distinct else "held-out codes",
        total_correlation=parts.total_correlation,
        kl_per_dimension=None if unit is None else tuple(kl_per_dimension(merged, prior).tolist()),
        active=_active(merged, prior, unit, work.generator),
        holes=holes,
        memorisation=work.attempt("Memorisation", memorisation, merged, other),
        moments=None if unit is None else _moments(merged, *unit),
        shown=_shown(merged, other, prior, work.generator),
        sampling=None if decode is None else work.attempt("The decoder", decode),
    )


def _population(
    work: _Work, sample: DiagGaussianMixture, distinct: DiagGaussianMixture, prior: Any
) -> tuple[Interval | None, ...]:
    """Bracket mismatch and information of the population."""
    sizes, outside = (1, 5, 20) if sample.latent_dim < WIDE else (1,), () if sample is distinct else (distinct,)
    if sample.num_components > MOST:
        sample = sample[torch.randperm(sample.num_components, generator=work.generator)[:MOST]]
        work.notes.append(f"The intervals for the population are made from {MOST:,} codes, chosen at random.")
    return work.attempt("The population", bracket_both, sample, prior, outside, sizes) or (None, None)


def _active(q: DiagGaussianMixture, prior: Any, unit: Any, generator: torch.Generator) -> tuple[bool, ...]:
    """Return which latents are in use, in units of the prior's scale or, if that is smaller, of the codes' own."""
    scale = draw_from(prior, (5_000,), generator).to("cpu", torch.float64).std(0) if unit is None else unit[1]
    scale = torch.minimum(scale, (q.log_weight.exp() @ q.scale.square()).sqrt())
    return tuple(active_units(DiagGaussianMixture(q.loc / scale, q.scale / scale, q.log_weight)).tolist())


def _moments(q: DiagGaussianMixture, loc: Tensor, scale: Tensor) -> Moments:
    weight, centred = q.log_weight.exp(), (q.loc - loc) / scale
    mean, second = weight @ centred, weight @ (centred.square() + (q.scale / scale).square())
    worst = mean[mean.abs().argmax()], second[(second - 1).abs().argmax()]
    return Moments(*(round(float(value), 9) + 0.0 for value in worst))  # no digits of rounding


def _describe(prior: Any, unit: Any) -> str:
    if unit is not None and bool((unit[0] == 0).all() and (unit[1] == 1).all()):
        return "standard normal"
    return type(optional(prior, "source") or prior).__name__


def _shown(
    q: DiagGaussianMixture, other: DiagGaussianMixture | None, prior: Any, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw the points that the pictures show."""
    z, index = q.sample_with_index((SHOWN,), generator=generator)
    shown = {"codes": z, "prior": draw_from(prior, (SHOWN,), generator).to("cpu", torch.float64)}
    if q.num_components > 1:
        shown |= {"own": q.log_prob(z), "leave_one_out": q.log_prob_leave_one_out(z, index)}
        if other is not None:
            shown["held_out"] = q.log_prob(other.double().sample((SHOWN,), generator=generator))
    return shown
