"""Verdicts from the numbers: each states the finding, the number that decides it, and what to do."""

from __future__ import annotations

import math
from typing import Any

from vaebook.estimators import Estimate
from vaebook.report import Diagnosis, Verdict
from vaebook.tables import number

SMALL = 0.5
"""A mismatch, in nats, that is hardly visible: total variation is then at most one half, by Pinsker's inequality."""
LARGE_HOLE = 0.05
"""A hole with more than this share of the prior's samples is a problem."""
STATIONARY = 0.1
"""Allowed distance of moments from 0 and 1; or 5/√N if larger, which is chance for data that trained no model."""
BLUNT = 0.5
"""Where 5/√N is larger than this, moments that pass tell nothing."""
NOTHING = 1e-6
"""A rate, in nats, below which every code counts as the prior itself."""
VAGUE = 5.0
"""Above this standard error, in nats a datum, that training and held-out data show no difference means nothing."""
SURE = 3
"""A difference counts if it exceeds this many standard errors."""
COPIES = 0.2
"""A larger share of samples near training data is a problem; 0.05 is expected."""


def verdicts(found: Diagnosis) -> tuple[Verdict, ...]:
    """Answer every question for which there are numbers.

    Args:
        found: a diagnosis with its numbers.

    Returns:
        One verdict for each question; the one on sampling comes first.
    """
    given = (_sample(found), _match(found), _holes(found), _collapse(found), _memory(found), _overfit(found))
    return tuple(verdict for verdict in (*given, _copied(found), _trained(found)) if verdict is not None)


def plus(value: Estimate, unit: str = " nats") -> str:
    """Write an estimate with its standard error."""
    known = value.num_samples == 0 or value.stderr <= 1e-9 * max(1.0, abs(value.value))  # but for rounding
    return f"{number(value.value)}{'' if known else f' ± {number(value.stderr)}'}{unit}"


def _sample(found: Diagnosis) -> Verdict:
    topic, names = "Which distribution should I draw codes from?", {
        "prior": "The prior will do: nothing is better by more than chance", "q_agg": "The codes of the data",
        "gmm": "A Gaussian mixture fitted to the codes",
    }  # fmt: skip
    if found.sampling is not None:
        s = found.sampling
        # One that is far behind would stay behind with more draws.
        near = [name for name, gain in s.gains.items() if gain.value > -2 - SURE * gain.stderr]
        few = min(s.effective_samples[name] for name in near) < 10
        others = [f"{name} {plus(gain)}" for name, gain in s.gains.items() if name != "prior"]
        advice = {
            "prior": "Draw z from the prior, as before.",
            "gmm": "Draw z from the fitted mixture: vaebook.selection.choose_prior returns it, save_density keeps it.",
            "q_agg": "Take a training datum at random, encode it, draw z and decode; aggregated_posterior does it.",
        }[s.chosen]
        finding = f"{names[s.chosen]}, judged by the log-likelihood of {s.data}."
        if few:
            finding += " But few draws count, so that the gains may be off by more than their errors."
        status = "unknown" if few else "ok" if s.chosen == "prior" else "look"
        return Verdict(topic, status, finding, f"gain over the prior: {', '.join(others)} per datum", advice)
    if found.mismatch_population is None and found.rate.value < NOTHING:
        finding = "The prior: every code is the prior itself."
        return Verdict(topic, "ok", finding, f"rate {plus(found.rate)}", "Draw z from the prior.")
    if found.mismatch_population is None:
        return Verdict(topic, "unknown", "There are too few distinct codes to tell.", "no interval", "Give more data.")
    best = best_of_codes(found.mismatch_population.candidates, found.population_from == "held-out codes")
    size = best["best"].split()[-1]
    fitted = "one Gaussian" if size == "1" else f"a mixture of {size} Gaussians"
    what = "the aggregated posterior" if best["best"] == "q_agg" else f"{fitted} fitted to codes"
    gain = plus(Estimate(best["value"], best["stderr"], 1))
    decides = f"log-density of new codes under {what}, less that under the prior: {gain} per code"
    if best["name"] == "prior":
        finding = "Nothing that was fitted to codes describes new ones better than the prior by more than chance."
        return Verdict(topic, "ok", finding, decides, "Draw z from the prior, as before.")
    finding = f"New codes are described better by {what} than by the prior."
    advice = "Draw z from it. With the decoder, vaebook can say whether samples gain by it."
    if best["name"] != "q_agg":
        advice = f"Fit it, vaebook.priors.fit_gmm(q_agg, {size}), and draw z from it. " + advice.split(". ")[1]
    return Verdict(topic, "look", finding, decides, advice)


def _match(found: Diagnosis) -> Verdict:
    topic, interval, own = "Do codes follow the prior?", found.mismatch_population, found.mismatch
    if interval is None and found.rate.value < NOTHING:
        return Verdict(topic, "ok", "Yes: every code is the prior itself.", f"rate {plus(found.rate)}", "Nothing.")
    if interval is None:
        finding = f"For the data at hand ({found.num_data}) they differ by {plus(own)}; of others nothing can be said."
        return Verdict(topic, "unknown", finding, f"mismatch of the N data: {plus(own)}", "Give more data.")
    decides = f"mismatch of the population, 95 % interval: {number(interval.low)} to {number(interval.high)} nats"
    gaps = f" (The {plus(own)} of the N data at hand include the gaps between their codes.)"
    if interval.low > SMALL:
        finding = f"No: new codes, too, differ from the prior by {number(interval.low)} nats or more." + gaps
        advice = "See whether there is a hole; draw z from another distribution, or learn the prior with the model."
        return Verdict(topic, "problem" if interval.low > 2 else "look", finding, decides, advice)
    if interval.high <= SMALL:
        close = f"Nearly: they differ by {number(interval.low)} nats or more, but hardly visibly."
        finding = "Yes, so far as these data can show." if interval.low == 0 else close
        return Verdict(topic, "ok", finding, decides, "Nothing.")
    if interval.low > 0:
        finding = f"Not quite: some mismatch is certified, {number(interval.low)} nats or more." + gaps
        return Verdict(topic, "look", finding, decides, "See whether there is a hole, and look at samples.")
    finding = "It cannot be told: all of the mismatch may come from the gaps between the N codes." + gaps
    advice = "More data narrow the interval. As it is, it does not speak against the prior."
    return Verdict(topic, "unknown", finding, decides, advice)


def _holes(found: Diagnosis) -> Verdict | None:
    topic, h = "Are there holes, parts of the prior without codes?", found.holes
    if h is None:
        return None
    if not h.mass:
        finding = f"None was found. One that takes less than {number(h.least)} of the prior would go unseen."
        advice = "Nothing." if h.least < 0.1 else "Give more data to see smaller holes."
        return Verdict(topic, "ok" if h.least < 0.1 else "unknown", finding, "share of the prior in a hole: 0", advice)
    places = [
        f"latent {c.index + 1} from {c.low:.2g} to {c.high:.2g} (prior: {c.prior_low:.2g} to {c.prior_high:.2g})"
        for c in h.where
    ]
    where = f" It lies at {'; '.join(places)}." if places else " No single latent shows where; many together do."
    finding = (
        f"Yes: {100 * h.mass:.0f} % of the prior's samples, but only {100 * h.codes:.1f} % of codes, lie in one "
        f"region.{where}"
    )
    decides = f"share of the prior in the hole: {number(h.mass)} ± {number(h.stderr)}"
    advice = "The decoder was hardly trained there. Draw z from a distribution fitted to the codes."
    return Verdict(topic, "problem" if h.mass > LARGE_HOLE else "look", finding, decides, advice)


def _collapse(found: Diagnosis) -> Verdict:
    topic, used, dim = "Are latents in use, or collapsed?", sum(found.active), found.latent_dim
    decides = f"{used} of {dim} latents in use; information {plus(found.information)}"
    if found.num_data == 1:
        return Verdict(topic, "unknown", "One datum cannot tell.", decides, "Give more data.")
    if used == 0 or found.information.value + SURE * found.information.stderr < SMALL / 10:
        finding = "All are collapsed: codes do not tell data apart, and the decoder ignores them."
        advice = "Train with KL warm-up, free bits, a smaller beta or a weaker decoder, and diagnose again."
        return Verdict(topic, "problem", finding, decides, advice)
    told = f"about {found.distinguishable.value:,.0f} of {found.num_distinct:,} codes can be told apart"
    if used < dim:
        finding = f"In use: {used}. Collapsed: {dim - used}, whose codes do not depend on the data. And {told}."
        return Verdict(topic, "ok", finding, decides, "Nothing: collapsed latents cost nothing, and do no harm.")
    return Verdict(topic, "ok", f"All are in use; {told}.", decides, "Nothing.")


def _memory(found: Diagnosis) -> Verdict | None:
    m = found.memorisation
    if m is None:
        return None
    topic = "Do draws of the aggregated posterior repeat training data?"
    decides = (
        f"{plus(Estimate(100 * m.traced.value, 100 * m.traced.stderr, m.traced.num_samples), ' %')} of draws can be "
        f"traced to their datum; leaving the datum out costs {plus(m.cost)}"
    )
    if m.traced.value > 0.5:
        finding = "Yes: most draws lie where only one datum's code is. Decoded, they are reconstructions of that datum."
        advice = "Expected of codes that tell much. Such samples are neither new nor private."
        return Verdict(topic, "look", finding, decides, advice)
    finding = "Mostly not: a draw is usually shared by several data."
    return Verdict(topic, "ok", finding, decides, "Nothing.")


def _overfit(found: Diagnosis) -> Verdict | None:
    """Compare training with held-out data: under the decoder where there is one, else by their codes."""
    topic, s, m = "Does the model treat new data as it treats training data?", found.sampling, found.memorisation
    if s is not None and s.training_log_likelihood is not None:
        one, two, what = s.training_log_likelihood, s.log_likelihood["prior"], "log-likelihood"
    elif m is not None and m.held_out is not None:
        one, two, what = m.leave_one_out, m.held_out, "log-density of codes"
    else:
        return None
    gap, error = one.value - two.value, (one.stderr**2 + two.stderr**2) ** 0.5
    decides = f"{what} of training data less that of held-out data: {plus(Estimate(gap, error, 1))}"
    if gap > max(SMALL, SURE * error):
        finding = "No: training data fare clearly better, so that it has learned some of them by heart."
        advice = "Stop training earlier, add data or regularise; trust numbers from held-out data only."
        return Verdict(topic, "problem", finding, decides, advice)
    if error > VAGUE:
        finding = "It cannot be told: with so few data, or codes so narrow, chance could hide a difference."
        return Verdict(topic, "unknown", finding, decides, "Give more held-out data.")
    return Verdict(topic, "ok", "Yes, within what chance does.", decides, "Nothing.")


def _copied(found: Diagnosis) -> Verdict | None:
    s = found.sampling
    if s is None or s.chosen not in s.copies:
        return None
    topic, copies = "Are samples copies of training data?", s.copies[s.chosen]
    decides = (
        f"{plus(copies, '')} of samples from {s.chosen} are as near to a training datum as the nearest 5 % of other "
        "data's reconstructions"
    )
    if copies.value - SURE * copies.stderr > COPIES:
        finding = "Many are nearer to a training datum than new data would be."
        return Verdict(topic, "problem", finding, decides, "Compare some with their nearest training data by eye.")
    return Verdict(topic, "ok", "No more than new data would be.", decides, "Nothing.")


def _trained(found: Diagnosis) -> Verdict | None:
    if found.moments is None:
        return None
    topic, (mean, second) = "Has training converged?", found.moments
    decides = f"mean farthest from 0: {number(mean)}; mean square farthest from 1: {number(second)}; exact"
    off, chance = max(abs(mean), abs(second - 1)), 5 / found.num_distinct**0.5
    if off > max(STATIONARY, chance):
        finding = (
            "It does not look so, or something besides the ELBO was optimised: at its optimum each latent has mean 0 "
            "and mean square 1 over the training data, in units of the prior."
        )
        advice = "Train longer. Weight decay, free bits, clamps or a beta that changes explain it, too."
        return Verdict(topic, "look", finding, decides, advice)
    if off > STATIONARY and chance > BLUNT:
        finding = f"It cannot be told from {found.num_distinct} distinct codes: chance moves their moments as much."
        return Verdict(topic, "unknown", finding, decides, "Give more data.")
    finding = "Moments are those of the end of training. They do not show that codes follow the prior."
    return Verdict(topic, "ok", finding, decides, "Nothing.")


def best_of_codes(candidates: dict[str, tuple[float, float]], held_out: bool) -> dict[str, Any]:
    """Choose, without a decoder, the density that describes new codes best, from the candidates of a bracket.

    Args:
        candidates: by name, the log-density less that of the prior, nats per code, and its standard error.
        held_out: whether held-out codes were scored; the training mixture is then ``densities[0]``.

    Returns:
        ``best``, with ``value`` and ``stderr``; and ``name``, "prior" if that lead is within two standard errors.
    """
    q_agg = candidates.get("densities[0]" if held_out else "leave-one-out", (-math.inf, 0.0))
    scored = {"q_agg": q_agg} | {name: pair for name, pair in candidates.items() if name.startswith("mixture")}
    name, (value, error) = max(scored.items(), key=lambda item: item[1][0])
    return {"name": name if value > 2 * error else "prior", "best": name, "value": value, "stderr": error}
