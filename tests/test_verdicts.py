"""Verdicts on numbers made by hand: each threshold from both sides, and which number it is that decides."""

import dataclasses
import re

import pytest

from tests.diagnoses import PLAIN, about, hole, interval, memory, sampling
from tests.texts import check_text
from vaebook.estimators import Estimate
from vaebook.holes import Coordinate
from vaebook.report import Moments
from vaebook.tables import number
from vaebook.verdicts import best_of_codes, plus, verdicts

SAMPLE, MATCH, HOLES = "Which distribution", "Do codes follow", "Are there holes"
USED, TRACED, OVERFIT, COPIED, TRAINED = (
    "Are latents",
    "Do draws",
    "Does the model",
    "Are samples copies",
    "Has training",
)


CASES = [
    (MATCH, {"mismatch_population": interval(0.0, 0.5)}, "ok", "Yes, so far"),
    (MATCH, {"mismatch_population": interval(0.1, 0.5)}, "ok", "Nearly"),
    (MATCH, {"mismatch_population": interval(0.0, 0.51)}, "unknown", "It cannot be told"),
    (MATCH, {"mismatch_population": interval(0.5, 9.0)}, "look", "Not quite"),
    (MATCH, {"mismatch_population": interval(0.51, 9.0)}, "look", "No: new codes, too, differ"),
    (MATCH, {"mismatch_population": interval(2.0, 9.0)}, "look", "No: new codes, too, differ"),
    (MATCH, {"mismatch_population": interval(2.01, 9.0)}, "problem", "No: new codes, too, differ"),
    (MATCH, {"mismatch_population": None}, "unknown", "The 2000 data at hand differ"),
    (MATCH, {"mismatch_population": None, "rate": about(9e-7)}, "ok", "Yes: every code"),
    (MATCH, {"mismatch_population": None, "rate": about(1.1e-6)}, "unknown", "The 2000 data at hand differ"),
    (MATCH, {"mismatch_population": interval(1e-4, 9.0)}, "look", "Not quite"),
    (HOLES, {"holes": hole(0.0, 0.09)}, "ok", "None was found"),
    (HOLES, {"holes": hole(0.0, 0.1)}, "unknown", "None was found"),
    (HOLES, {"holes": hole(0.05)}, "look", "Yes: a region with 5 % of the prior holds only 0.05 % of"),
    (HOLES, {"holes": hole(0.051)}, "problem", "Yes: a region with 5.1 %"),
    (USED, {"num_data": 1}, "unknown", "One datum"),
    (USED, {"active": (False, False)}, "problem", "All are collapsed"),
    (USED, {"active": (True, False)}, "ok", "In use: 1. Collapsed: 1"),
    (USED, {"information": about(0.02, 0.0099)}, "problem", "All are collapsed"),
    (USED, {"information": about(0.02, 0.0101)}, "ok", "All are in use"),
    (USED, {"information": about(0.05, 0.0)}, "ok", "All are in use"),
    (TRACED, {"memorisation": memory(traced=0.5)}, "ok", "Mostly not"),
    (TRACED, {"memorisation": memory(traced=0.51)}, "look", "Yes: most draws"),
    # its standard error is 0.14: a gap of half a nat is both visible and certain, one of 0.4 is not visible
    (OVERFIT, {"memorisation": memory(left=-1.2, held=-1.65)}, "ok", "Yes, within"),
    (OVERFIT, {"memorisation": memory(left=-1.2, held=-1.75)}, "problem", "No: training data"),
    (OVERFIT, {"memorisation": memory(left=-1.2, held=-1.65, stderr=0.01)}, "ok", "Yes, within"),
    (OVERFIT, {"memorisation": memory(left=-1.2, held=-2.2, stderr=0.3)}, "ok", "Yes, within"),
    (OVERFIT, {"memorisation": memory(own=9.0, left=-1.2, held=-1.2)}, "ok", "Yes, within"),
    (OVERFIT, {"memorisation": memory(left=-1.0, held=-1.5, stderr=0.01)}, "ok", "Yes, within"),
    (OVERFIT, {"sampling": sampling(training_log_likelihood=about(-49.4))}, "problem", "No: training data"),
    (OVERFIT, {"sampling": sampling(training_log_likelihood=about(-49.6))}, "ok", "Yes, within"),
    (OVERFIT, {"sampling": sampling(training_log_likelihood=about(-49.0, 0.4))}, "ok", "Yes, within"),
    (COPIED, {"sampling": sampling(copies={"prior": about(0.26, 0.019)})}, "problem", "Many are nearer"),
    (COPIED, {"sampling": sampling(copies={"prior": about(0.26, 0.021)})}, "ok", "No more than"),
    (COPIED, {"sampling": sampling(copies={"prior": about(0.05), "q_agg": about(0.9)})}, "ok", "No more than"),
    # 5/√1000 = 0.158 is more than 0.1, and 5/√10000 is less; 5/√50 moves moments as much as anything
    (TRAINED, {"moments": Moments(0.15, 1.0)}, "ok", "Nothing speaks against it"),
    (TRAINED, {"moments": Moments(0.17, 1.0)}, "look", "It does not look so"),
    (TRAINED, {"moments": Moments(-0.17, 1.0)}, "look", "It does not look so"),
    (TRAINED, {"moments": Moments(0.0, 0.83)}, "look", "It does not look so"),
    (TRAINED, {"moments": Moments(0.0, 1.15)}, "ok", "Nothing speaks against it"),
    (TRAINED, {"moments": Moments(0.11, 1.0), "num_distinct": 10_000}, "look", "It does not look so"),
    (TRAINED, {"moments": Moments(0.09, 1.0), "num_distinct": 10_000}, "ok", "Nothing speaks against it"),
    (TRAINED, {"moments": Moments(0.3, 1.0), "num_distinct": 50}, "unknown", "It cannot be told"),
    (TRAINED, {"moments": Moments(0.3, 1.0), "num_distinct": 100}, "ok", "Nothing speaks against it"),
    (TRAINED, {"moments": Moments(0.3, 1.0), "num_distinct": 110}, "ok", "Nothing speaks against it"),
    (TRAINED, {"moments": Moments(0.09, 1.0), "num_distinct": 50}, "ok", "Nothing speaks against it"),
    (SAMPLE, {"sampling": sampling()}, "ok", "The prior: nothing is"),
    (SAMPLE, {"sampling": sampling("gmm")}, "look", "A Gaussian mixture"),
    (SAMPLE, {"sampling": sampling("q_agg")}, "look", "The codes of the data"),
    # q_agg is behind by 9 nats; by 2 and less than three standard errors it could still be the best
    (SAMPLE, {"sampling": sampling(effective=(99, 99, 9))}, "ok", "The prior: nothing is"),
    (SAMPLE, {"sampling": sampling(effective=(99, 9, 99))}, "unknown", "The prior: nothing is"),
    (SAMPLE, {"sampling": sampling("gmm", effective=(99, 9, 99))}, "unknown", "A Gaussian mixture"),
    (SAMPLE, {"sampling": sampling(effective=(99, 10, 99))}, "ok", "The prior: nothing is"),
    (SAMPLE, {"sampling": sampling(gains=(0, -2.02), effective=(99, 99, 9))}, "unknown", "The prior: nothing is"),
    (SAMPLE, {"sampling": sampling(gains=(0, -2.04), effective=(99, 99, 9))}, "ok", "The prior: nothing is"),
    (SAMPLE, {"mismatch_population": None}, "unknown", "It cannot be told: the interval"),
    (SAMPLE, {"mismatch_population": None, "rate": about(9e-7)}, "ok", "The prior: every code"),
    (SAMPLE, {"mismatch_population": None, "rate": about(1.1e-6)}, "unknown", "It cannot be told: the interval"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 5": (0.3, 0.1)})}, "look", "by a mixture of 5"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 1": (0.3, 0.1)})}, "look", "by one Gaussian"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 5": (0.5, 0.25)})}, "ok", "The prior: nothing that"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 5": (0.19, 0.1)})}, "ok", "The prior: nothing that"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"leave-one-out": (0.3, 0.1)})}, "look", "by the aggregated"),
]  # fmt: skip


# The standard error of a difference is 5 nats, and a little more.
CASES += [
    (
        OVERFIT,
        {"sampling": sampling(training_log_likelihood=about(-50.0, a), log_likelihood={"prior": about(-50.0, b)})},
        status,
        "Yes, within" if status == "ok" else "It cannot be told",
    )
    for a, b, status in ((3.0, 4.0, "ok"), (3.01, 4.0, "unknown"), (3.0, 4.01, "unknown"))
]


@pytest.mark.parametrize(("topic", "changes", "status", "finding"), CASES)
def test_what_decides(topic, changes, status, finding):
    (verdict,) = [v for v in verdicts(dataclasses.replace(PLAIN, **changes)) if v.topic.startswith(topic)]
    assert verdict.status == status
    assert finding in verdict.finding
    assert all(isinstance(part, str) and part for part in verdict)
    assert all(part[0].isupper() and part.endswith(".") for part in (verdict.finding, verdict.advice))


DECIDES = [
    (MATCH, {}, "mismatch of the population, 95 % interval: 0 to 0.4000 nats"),
    (MATCH, {"mismatch_population": None}, "mismatch of the N data: 1.000 ± 0.1000 nats"),
    (MATCH, {"mismatch_population": None, "rate": about(0.0)}, "rate 0 ± 0.1000 nats"),
    (HOLES, {}, "smallest hole that would be seen: 1 % of the prior"),
    (
        HOLES,
        {"holes": hole(0.25)},
        "share of the prior in the hole: 0.2500 ± 0.001000; of the codes: 5.000e-4 ± 1.000e-4",
    ),
    (USED, {"active": (True, False)}, "1 of 2 latents in use; information 2.000 ± 0.1000 nats"),
    (
        TRACED,
        {"memorisation": memory(own=-1.0, left=-1.25, traced=0.1)},
        "10.00 ± 10.00 % of draws can be traced to their datum; leaving the datum out costs 0.2500 ± 0.1000 nats",
    ),
    (
        OVERFIT,
        {"memorisation": memory(left=-1.2, held=-1.65)},
        "log-density of codes of training data less that of held-out data: 0.4500 ± 0.1414 nats",
    ),
    (
        OVERFIT,
        {"sampling": sampling(training_log_likelihood=about(-49.0, 0.0))},
        "log-likelihood of training data less that of held-out data: 1.000 ± 0.1000 nats",
    ),
    (
        COPIED,
        {"sampling": sampling("gmm", copies={"gmm": about(0.25)})},
        "0.2500 ± 0.1000 of samples from gmm are as near to training data as the nearest 5 % of other data's "
        "reconstructions",
    ),
    (
        TRAINED,
        {},
        "mean farthest from 0: 0.01000; mean square farthest from 1: 1.010; both exact, and 0.1581 off is allowed",
    ),
    (
        SAMPLE,
        {"sampling": sampling()},
        "gain over the prior: gmm 0.1000 ± 0.01000 nats, q_agg -9.000 ± 0.01000 nats per datum",
    ),
    (
        SAMPLE,
        {},
        "log-density of new codes under the aggregated posterior, less that under the prior: -5.000 ± 0.1000 nats per "
        "code",
    ),
    (SAMPLE, {"mismatch_population": None}, "no interval"),
]


@pytest.mark.parametrize(("topic", "changes", "decides"), DECIDES)
def test_the_number_that_decides_is_told(topic, changes, decides):
    (verdict,) = [v for v in verdicts(dataclasses.replace(PLAIN, **changes)) if v.topic.startswith(topic)]
    assert verdict.decides == decides


ENDS = [
    # what is said at the end of a finding, and what to do about it
    (SAMPLE, {"sampling": sampling("gmm")}, "log-likelihood of held-out data.", "Draw z from it: `prior` of "),
    (SAMPLE, {"sampling": sampling("q_agg", data="some")}, "log-likelihood of some.", "Encode a training datum"),
    (SAMPLE, {"sampling": sampling(effective=(99, 9, 99))}, "off by more than their errors.", "Draw z from the prior"),
    (SAMPLE, {"sampling": sampling("gmm", effective=(99, 9, 99))}, "off by more than their errors.", "Draw z from it"),
    (SAMPLE, {"mismatch_population": None}, "given below.", "Give more data"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 1": (0.3, 0.1)})}, "prior.", "Fit it by .*, 1\\)"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 20": (0.3, 0.1)})}, "prior.", "Fit it by .*, 20\\)"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"leave-one-out": (0.3, 0.1)})}, "prior.", "Draw z from it"),
    (SAMPLE, {"mismatch_population": interval(0, 1, **{"mixture of 5": (0.1, 0.1)})}, "better.", "Draw z from the p"),
    (MATCH, {}, "these data can show.", "Nothing"),
    (MATCH, {"mismatch_population": interval(0.0, 0.6)}, "1.000 ± 0.1000 nats, .* part of that.", "More data narrow"),
    (MATCH, {"mismatch_population": interval(0.1, 0.6)}, "0.1000 nats or more, if not by .* that.", "See whether"),
    (MATCH, {"mismatch_population": interval(0.6, 0.7)}, "0.6000 nats or more.* that.", "See whether .* a hole; draw"),
    (HOLES, {}, "One with less than 1 % of the prior could go unseen.", "Nothing"),
    (HOLES, {"holes": hole(least=0.2)}, "20 % of the prior could go unseen.", "Give more data"),
    (HOLES, {"holes": hole(0.25)}, "only 0.05 % of the codes. No single latent .* do.", "The decoder was hardly"),
    (HOLES, {"holes": hole(0.25)._replace(codes=0.0)}, "holds none of the codes. No .*", "The decoder was hardly"),
    (USED, {}, "About 7 of 1,000 codes can be told apart.", "Nothing"),
    (USED, {"active": (False, False)}, "the decoder ignores them.", "Train with KL warm-up"),
    (
        USED,
        {"latent_dim": 3, "active": (True, True, False)},
        "In use: 2. Collapsed: 1, .* About 7 of 1,000 codes can be told apart.",
        "Nothing: latents whose codes",
    ),
    (USED, {"num_data": 1}, "One datum cannot tell.", "Give more data"),
    (TRACED, {}, "several data.", "Nothing"),
    (TRACED, {"memorisation": memory(traced=0.6)}, "reconstructions of that datum.", "Do not call samples .* new"),
    (OVERFIT, {"memorisation": memory(held=-9.0)}, "by heart.", "Stop training earlier"),
    (OVERFIT, {"memorisation": memory(held=-1.2)}, "chance does.", "Nothing"),
    (OVERFIT, {"memorisation": memory(held=-1.2, stderr=9.0)}, "could hide a difference.", "Give more held-out data"),
    (COPIED, {"sampling": sampling(copies={"prior": about(0.9)})}, "new data would be.", "Compare some"),
    (COPIED, {"sampling": sampling(copies={"prior": about(0.0)})}, "new data would be.", "Nothing"),
    (TRAINED, {"moments": Moments(0.3, 1.0)}, "mean 0 and mean square 1.", "Train longer"),
    (TRAINED, {"moments": Moments(0.3, 1.0), "num_distinct": 50}, "from 50 distinct codes.*", "Give more data"),
    (TRAINED, {}, "may miss the prior still.", "Nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "changes", "end", "advice"), ENDS)
def test_a_finding_ends_and_is_followed_by_what_to_do(topic, changes, end, advice):
    (verdict,) = [v for v in verdicts(dataclasses.replace(PLAIN, **changes)) if v.topic.startswith(topic)]
    assert re.search(f"{end}$", verdict.finding) and re.match(advice, verdict.advice), verdict


def test_every_answer_reads_as_it_is_stored():
    """From the first letter to the last, for every case above."""
    said = set()
    for topic, changes, *_ in (*CASES, *DECIDES, *ENDS):
        found = verdicts(dataclasses.replace(PLAIN, **changes))
        said |= {"\n  ".join(verdict) for verdict in found if verdict.topic.startswith(topic)}
    check_text("verdicts.txt", "\n\n".join(sorted(said)) + "\n")


def test_the_codes_that_were_scored_decide_which_density_stands_for_q_agg():
    """Held-out codes are scored under all of q_agg, the codes at hand without their own component."""
    population = interval(0, 1, **{"leave-one-out": (1.0, 0.1), "densities[0]": (-1.0, 0.1)})
    for scored, status in (("the codes at hand", "look"), ("held-out codes", "ok")):
        found = dataclasses.replace(PLAIN, mismatch_population=population, population_from=scored)
        assert verdicts(found)[0].status == status


def test_training_data_without_a_score_of_the_decoder_are_compared_by_their_codes():
    found = dataclasses.replace(PLAIN, sampling=sampling(), memorisation=memory(left=-1.0, held=-9.0))
    (verdict,) = [v for v in verdicts(found) if v.topic.startswith(OVERFIT)]
    assert verdict.status == "problem" and verdict.decides.startswith("log-density of codes")


def test_what_there_are_no_numbers_for_gets_no_verdict():
    none = dataclasses.replace(PLAIN, holes=None, memorisation=None, moments=None)
    assert [verdict.topic.split("?")[0].split(",")[0] for verdict in verdicts(none)] == [
        "Which distribution should I draw codes from",
        "Do codes follow the prior",
        "Are latents in use",
    ]


def test_the_error_of_a_difference_is_that_of_both():
    gap = dataclasses.replace(PLAIN, memorisation=memory(left=-1.0, held=-2.0, stderr=0.3))
    (verdict,) = [v for v in verdicts(gap) if v.topic.startswith(OVERFIT)]
    assert verdict.decides.endswith("1.000 ± 0.4243 nats")  # 0.3 √2


def test_what_was_left_out_or_held_out_stands_for_q_agg():
    """A mixture that was made of the scored codes with their own components left in is no candidate."""
    candidates = {"leave-one-out": (1.0, 0.1), "densities[0]": (2.0, 0.1), "mixture of 5": (1.5, 0.1)}
    assert best_of_codes(candidates, held_out=True) == ("q_agg", Estimate(2.0, 0.1, 1))
    assert best_of_codes(candidates, held_out=False) == ("mixture of 5", Estimate(1.5, 0.1, 1))


def test_the_best_is_that_of_the_highest_score_whatever_its_error():
    candidates = {"leave-one-out": (1.0, 0.1), "mixture of 5": (1.1, 0.9), "mixture of 1": (1.05, 0.0)}
    assert best_of_codes(candidates, held_out=False) == ("mixture of 5", Estimate(1.1, 0.9, 1))


def test_an_exact_number_has_no_error():
    assert plus(Estimate(2.0, 0.0, 0)) == "2.000 nats"
    assert plus(Estimate(2.0, 0.1, 5), "") == "2.000 ± 0.1000"
    assert plus(Estimate(2e6, 1e-4, 5), "") == "2.000e6"  # an error of rounding alone
    for value, known in ((0.5, 1e-8), (-0.5, 1e-8), (4.0, 4e-8), (-4.0, 4e-8)):  # relative if large
        assert plus(Estimate(value, 0.99 * known, 5), "") == number(value)
        assert plus(Estimate(value, 1.01 * known, 5), "") == f"{number(value)} ± {number(1.01 * known)}"


def test_of_a_hole_that_is_nearly_everything_it_is_said_where_codes_are():
    places = (Coordinate(2, 3.2, 5.6, 1.0, 2.8), Coordinate(1, 0.9, 3.3, -1.3, 1.3))  # of two latents the third is |z|
    for mass, what in ((0.5, "It lies"), (0.51, "Codes lie elsewhere")):
        holes = hole(mass)._replace(where=places)
        (found,) = [v for v in verdicts(dataclasses.replace(PLAIN, holes=holes)) if v.topic.startswith(HOLES)]
        assert found.finding.endswith(
            f"{what}: distance from the origin from 3.2 to 5.6 (prior: 1 to 2.8); latent 2 from 0.9 to 3.3 "
            "(prior: -1.3 to 1.3)."
        )
