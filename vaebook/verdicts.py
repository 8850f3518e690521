"""Verdicts from the numbers: each states the finding, the number that decides it, and what to do."""

from __future__ import annotations

import math

from vaebook.estimators import Estimate
from vaebook.holes import HALF
from vaebook.report import Diagnosis, Verdict
from vaebook.selection import CLEAR, FEW
from vaebook.tables import number

SURE = 3
"""A difference counts if it exceeds this many standard errors: chance makes one of 700 do so."""
SMALL = 0.5
"""A mismatch, in nats, at which one code can be told from one draw of the prior in at most three of four cases, by
Pinsker's inequality, where guessing is right in two of four."""
LARGE = 2.0
"""A mismatch, in nats, from which on q_agg is, in the geometric mean over its own draws, e² = 7 times as dense as the
prior."""
LARGE_HOLE = 0.05
"""A hole with more than this share of the prior spoils more than one sample of twenty."""
UNSEEN = 0.1
"""If a hole with a tenth of the prior could go unseen, that none was found is no answer."""
STATIONARY = 0.1
"""Allowed distance of moments from 0 and 1: a mean that is off by so much costs 0.1²/2 = 0.005 nats.

It is 5/√N if that is larger. The moments of N draws from N(0, 1) have standard errors 1/√N and √(2/N), so that 5/√N
is at least 3.5 of them."""
BLUNT = 0.5
"""Where 5/√N is larger than this, second moments of half their proper size would pass, so that nothing is shown."""
NOTHING = 1e-6
"""A rate, in nats, below which every Gaussian counts as the prior itself: so much comes of rounding in float32."""
TELL = 0.05
"""Information, in nats, below which exp(I) < 1.06: hardly any code can be told from another."""
VAGUE = 5.0
"""A standard error, in nats a datum, above which no answer is given: a true difference of 15 nats, a factor of three
million in likelihood, could not be told from chance."""
COPIES = 0.2
"""A larger share of samples near training data is a problem: 0.05 is what new data would give, and this is four times
as much."""

Answer = tuple[str, str, str, str] | None
"""Status, finding, what decides and advice; None where there are no numbers."""


def verdicts(found: Diagnosis) -> tuple[Verdict, ...]:
    """Answer every question for which there are numbers.

    Args:
        found: a diagnosis with its numbers.

    Returns:
        One verdict for each question; the one on sampling comes first.
    """
    answers = ((q, answer(found)) for q, (answer, part) in QUESTIONS.items() if getattr(found, part) is not None)
    return tuple(Verdict(question, *answer) for question, answer in answers if answer is not None)


def plus(value: Estimate, unit: str = " nats") -> str:
    """Write an estimate with its standard error."""
    known = value.num_samples == 0 or value.stderr <= 1e-8 * max(1.0, abs(value.value))  # but for rounding
    return f"{number(value.value)}{'' if known else f' ± {number(value.stderr)}'}{unit}"


def _sample(found: Diagnosis) -> Answer:
    if found.sampling is not None:
        return _sample_decoded(found)
    interval = found.mismatch_population
    if interval is None and found.rate.value < NOTHING:
        return "ok", "The prior: every code is the prior itself.", f"rate {plus(found.rate)}", "Draw z from the prior."
    if interval is None:
        finding = "It cannot be told: the interval for the population is missing, for the reason given below."
        return "unknown", finding, "no interval", "Give more data, or what is missing."
    name, gain = best_of_codes(interval.candidates, found.population_from == "held-out codes")
    size = name.split()[-1]
    fitted = "one Gaussian" if size == "1" else f"a mixture of {size} Gaussians"
    what = "the aggregated posterior" if name == "q_agg" else f"{fitted} fitted to codes"
    decides = f"log-density of new codes under {what}, less that under the prior: {plus(gain)} per code"
    if gain.value <= CLEAR * gain.stderr:
        return "ok", "The prior: nothing that was fitted to codes describes new ones better.", decides, KEEP
    fit = "" if name == "q_agg" else f"Fit it by vaebook.priors.fit_gmm(q_agg, {size}). "
    advice = f"{fit}Draw z from it. Whether samples gain by it can be told with the decoder."
    return "look", f"New codes are described better by {what} than by the prior.", decides, advice


def _sample_decoded(found: Diagnosis) -> Answer:
    s = found.sampling
    finding, advice = CANDIDATES[s.chosen]
    # a log-likelihood from few draws may be too low by log FEW, about 2 nats, and by its error
    near = [key for key, gain in s.gains.items() if gain.value > -2 - SURE * gain.stderr]
    few = min(s.effective_samples[key] for key in near) < FEW
    gains = ", ".join(f"{key} {plus(gain)}" for key, gain in s.gains.items() if key != "prior")
    doubt = " But few draws count, so that the gains may be off by more than their errors." if few else ""
    status = "unknown" if few else "ok" if s.chosen == "prior" else "look"
    finding = f"{finding}, judged by the log-likelihood of {s.data}.{doubt}"
    return status, finding, f"gain over the prior: {gains} per datum", advice


def _match(found: Diagnosis) -> Answer:
    interval, own = found.mismatch_population, plus(found.mismatch)
    if interval is None and found.rate.value < NOTHING:
        return "ok", "Yes: every code is the prior itself.", f"rate {plus(found.rate)}", NOTHING_TO_DO
    if interval is None:
        finding = f"The {found.num_data} data at hand differ from it by {own}; of others nothing can be said."
        return "unknown", finding, f"mismatch of the N data: {own}", "Give more data."
    low = number(interval.low)
    decides = f"mismatch of the population, 95 % interval: {low} to {number(interval.high)} nats"
    gaps = f" The N data at hand differ from it by {own}, but gaps between their codes are part of that."
    if interval.low > SMALL:
        advice = "See whether there is a hole; draw z from another distribution, or learn the prior with the model."
        status = "problem" if interval.low > LARGE else "look"
        return status, f"No: new codes, too, differ from the prior by {low} nats or more.{gaps}", decides, advice
    if interval.high <= SMALL:
        close = f"Nearly: they differ by {low} nats or more, but a single code hardly shows it."
        return "ok", close if interval.low > 0 else "Yes, so far as these data can show.", decides, NOTHING_TO_DO
    if interval.low > 0:
        finding = f"Not quite: new codes differ from the prior by {low} nats or more, if not by much.{gaps}"
        return "look", finding, decides, "See whether there is a hole, and look at samples."
    advice = "More data narrow the interval. As it is, it does not speak against the prior."
    return "unknown", f"It cannot be told from these data.{gaps}", decides, advice


def _holes(found: Diagnosis) -> Answer:
    h = found.holes
    if not h.mass:
        seen, finding = h.least < UNSEEN, f"None was found. One with less than {_percent(h.least)} could go unseen."
        advice = NOTHING_TO_DO if seen else "Give more data to see smaller holes."
        return "ok" if seen else "unknown", finding, f"smallest hole that would be seen: {_percent(h.least)}", advice
    places = "; ".join(
        f"{'distance from the origin' if c.index == found.latent_dim else f'latent {c.index + 1}'} from {c.low:.2g} to "
        f"{c.high:.2g} (prior: {c.prior_low:.2g} to {c.prior_high:.2g})"
        for c in h.where
    )
    what = "Codes lie elsewhere" if h.mass > HALF else "It lies"
    where = f"{what}: {places}." if places else "No single latent shows where; many together do."
    few = f"only {100 * h.codes:.2g} %" if h.codes else "none"
    finding = f"Yes: a region with {_percent(h.mass)} holds {few} of the codes. {where}"
    shares = (Estimate(h.mass, h.stderr, 1), Estimate(h.codes, h.codes_stderr, 1))
    decides = f"share of the prior in the hole: {plus(shares[0], '')}; of the codes: {plus(shares[1], '')}"
    advice = "The decoder was hardly trained there. Draw z from a distribution fitted to the codes."
    return "problem" if h.mass > LARGE_HOLE else "look", finding, decides, advice


def _percent(share: float) -> str:
    return f"{100 * share:.2g} % of the prior"


def _collapse(found: Diagnosis) -> Answer:
    used, dim, information = sum(found.active), found.latent_dim, found.information
    decides = f"{used} of {dim} latents in use; information {plus(information)}"
    if found.num_data == 1:
        return "unknown", "One datum cannot tell.", decides, "Give more data."
    if used == 0 or information.value + SURE * information.stderr < TELL:
        finding = "All are collapsed: codes do not tell data apart, and the decoder ignores them."
        advice = "Train with KL warm-up, free bits, a smaller beta or a weaker decoder, and diagnose again."
        return "problem", finding, decides, advice
    told = f"About {found.distinguishable.value:,.0f} of {found.num_distinct:,} codes can be told apart."
    if used == dim:
        return "ok", f"All are in use. {told}", decides, NOTHING_TO_DO
    finding = f"In use: {used}. Collapsed: {dim - used}, whose means do not vary with the data. {told}"
    return "ok", finding, decides, "Nothing: latents whose codes are the prior cost nothing, and do no harm."


def _memory(found: Diagnosis) -> Answer:
    traced, cost = found.memorisation.traced, plus(found.memorisation.cost)
    share = plus(Estimate(100 * traced.value, 100 * traced.stderr, traced.num_samples), " %")
    decides = f"{share} of draws can be traced to their datum; leaving the datum out costs {cost}"
    if traced.value <= 0.5:
        return "ok", "Mostly not: a draw is usually shared by several data.", decides, NOTHING_TO_DO
    finding = "Yes: most draws lie where only one datum's code is. Decoded, they are reconstructions of that datum."
    advice = "Do not call samples from it new or private. For new ones, draw z from a fitted mixture or the prior."
    return "look", finding, decides, advice


def _overfit(found: Diagnosis) -> Answer:
    """Compare training with held-out data: under the decoder where there is one, else by their codes."""
    s, m = found.sampling, found.memorisation
    if s is not None and s.training_log_likelihood is not None:
        one, two, what = s.training_log_likelihood, s.log_likelihood["prior"], "log-likelihood"
    elif m is not None and m.held_out is not None:
        one, two, what = m.leave_one_out, m.held_out, "log-density of codes"
    else:
        return None
    gap, error = one.value - two.value, math.hypot(one.stderr, two.stderr)
    decides = f"{what} of training data less that of held-out data: {plus(Estimate(gap, error, 1))}"
    if gap > max(SMALL, SURE * error):
        finding = "No: training data fare clearly better. The model has learned some of them by heart."
        advice = "Stop training earlier, add data or regularise; trust numbers from held-out data only."
        return "problem", finding, decides, advice
    if error > VAGUE:
        finding = "It cannot be told: with so few data, or codes so narrow, chance could hide a difference."
        return "unknown", finding, decides, "Give more held-out data."
    return "ok", "Yes, within what chance does.", decides, NOTHING_TO_DO


def _copied(found: Diagnosis) -> Answer:
    s = found.sampling
    if s.chosen not in s.copies:
        return None
    copies = s.copies[s.chosen]
    near = "are as near to training data as the nearest 5 % of other data's reconstructions"
    decides = f"{plus(copies, '')} of samples from {s.chosen} {near}"
    if copies.value - SURE * copies.stderr > COPIES:
        finding = "Many are nearer to a training datum than new data would be."
        return "problem", finding, decides, "Compare some with their nearest training data by eye."
    return "ok", "No more than new data would be.", decides, NOTHING_TO_DO


def _trained(found: Diagnosis) -> Answer:
    mean, second = found.moments
    off, chance = max(abs(mean), abs(second - 1)), 5 / found.num_distinct**0.5
    limit = max(STATIONARY, chance)
    decides = f"mean farthest from 0: {number(mean)}; mean square farthest from 1: {number(second)}; both exact"
    decides += f", and {number(limit)} off is allowed"
    if off > limit:
        finding = "It does not look so: at the optimum of the ELBO each latent has mean 0 and mean square 1."
        advice = "Train longer. Weight decay, free bits, clamps or a beta that changes explain it, too."
        return "look", finding, decides, advice
    if off > STATIONARY and chance > BLUNT:
        finding = f"It cannot be told from {found.num_distinct} distinct codes: chance moves their moments as much."
        return "unknown", finding, decides, "Give more data."
    finding = "Nothing speaks against it: moments are those of the end of training. Codes may miss the prior still."
    return "ok", finding, decides, NOTHING_TO_DO


NOTHING_TO_DO, KEEP = "Nothing.", "Draw z from the prior, as before."
CANDIDATES = {
    "prior": ("The prior: nothing is better by more than chance", KEEP),
    "gmm": ("A Gaussian mixture fitted to the codes", "Draw z from it: `prior` of vaebook.selection.choose_prior."),
    "q_agg": ("The codes of the data", "Encode a training datum taken at random, draw z of its Gaussian, decode."),
}
"""What is said of each candidate for drawing codes, and what to do."""
QUESTIONS = {
    "Which distribution should I draw codes from?": (_sample, "rate"),
    "Do codes follow the prior?": (_match, "mismatch"),
    "Are there holes, parts of the prior without codes?": (_holes, "holes"),
    "Are latents in use, or collapsed?": (_collapse, "information"),
    "Do draws of the aggregated posterior repeat training data?": (_memory, "memorisation"),
    "Does the model treat new data as it treats training data?": (_overfit, "rate"),
    "Are samples copies of training data?": (_copied, "sampling"),
    "Has training converged?": (_trained, "moments"),
}
"""Each question, what answers it, and a part of the diagnosis: without it the question is not asked."""


def best_of_codes(candidates: dict[str, tuple[float, float]], held_out: bool) -> tuple[str, Estimate]:
    """Choose, without a decoder, the density that describes new codes best, from the candidates of a bracket.

    Args:
        candidates: by name, the log-density less that of the prior, nats per code, and its standard error.
        held_out: whether held-out codes were scored; the training mixture is then ``densities[0]``.

    Returns:
        Its name, "q_agg" or "mixture of K", and its log-density less that of the prior.
    """
    q_agg = candidates.get("densities[0]" if held_out else "leave-one-out", (-math.inf, 0.0))
    scored = {"q_agg": q_agg} | {name: pair for name, pair in candidates.items() if name.startswith("mixture")}
    name, pair = max(scored.items(), key=lambda item: item[1][0])
    return name, Estimate(*pair, 1)
