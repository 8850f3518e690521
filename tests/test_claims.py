"""Every claim holds and its falsehood is rejected; and the judge itself can be made to say no."""

import math
from dataclasses import replace

import pytest
import torch

from vaebook.claims import Evidence, Measurement, claim, ledger, registry, verify

IDS = [entry.id for entry in ledger()]


@pytest.mark.parametrize("id", IDS)
def test_claim_holds_and_its_falsehood_is_rejected(id):
    evidence = verify(id)
    assert evidence.holds, evidence
    assert evidence.falsehood_rejected, evidence


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_other_seeds(id):
    """At 4 standard errors one draw in 16,000 of one entry fails; over 200 seeds one failure is already suspicious."""
    evidences = [verify(id, seed=seed) for seed in range(1, 201 if verify(id).claim.kind == "MC" else 21)]
    failed = [e.seed for e in evidences if not e.holds]
    assert len(failed) <= (1 if evidences[0].claim.kind == "MC" else 0), f"seeds {failed}"
    assert all(e.falsehood_rejected for e in evidences)


@pytest.mark.parametrize("id", IDS)
def test_same_seed_same_evidence_and_global_state_untouched(id):
    before = torch.get_rng_state()
    one, two = verify(id, seed=3), verify(id, seed=3)
    assert (one.residual, one.margin) == (two.residual, two.margin)
    assert torch.equal(torch.get_rng_state(), before)


def test_entries_are_complete_and_ids_unique():
    assert len(set(IDS)) == len(IDS)
    for entry in ledger():
        assert entry.id.split("/")[0] in {"index", "dims", "gen", "agg", "est", "prior"}
        assert entry.kind in {"exact", "quadrature", "MC", "bound", "empirical"}
        for text in (entry.falsehood, entry.source, entry.section):
            assert text.strip()


def evidence(**numbers):
    return Evidence(ledger()[0], 0, Measurement(**numbers))


def test_equality_to_a_tolerance():
    e = evidence(lhs=1.0, rhs=1.0 + 5e-11, falsehood_rhs=2.0, tolerance=1e-10)
    assert e.holds and e.falsehood_rejected and e.margin == pytest.approx(1e10)
    assert not evidence(lhs=1.0, rhs=1.0 + 2e-10, falsehood_rhs=2.0, tolerance=1e-10).holds
    assert not evidence(lhs=1.0, rhs=1.0, falsehood_rhs=1.0 + 9e-8, tolerance=1e-10).falsehood_rejected


def test_equality_to_standard_errors():
    assert evidence(lhs=3.9, rhs=0.0, falsehood_rhs=-2.2, stderr=1.0).holds
    assert evidence(lhs=3.9, rhs=0.0, falsehood_rhs=-2.2, stderr=1.0).falsehood_rejected
    assert not evidence(lhs=4.1, rhs=0.0, falsehood_rhs=-2.2, stderr=1.0).holds
    assert not evidence(lhs=3.9, rhs=0.0, falsehood_rhs=-2.0, stderr=1.0).falsehood_rejected


@pytest.mark.parametrize(("relation", "sign"), [("<=", 1), (">=", -1)])
def test_inequalities_look_only_one_way(relation, sign):
    good = evidence(lhs=0.0, rhs=5.0 * sign, falsehood_rhs=-5.0 * sign, relation=relation, tolerance=1e-3)
    assert good.holds and good.falsehood_rejected and good.residual == 0
    bad = evidence(lhs=0.0, rhs=-5.0 * sign, falsehood_rhs=5.0 * sign, relation=relation, tolerance=1e-3)
    assert not bad.holds and not bad.falsehood_rejected and bad.margin == 0


def test_every_entry_must_hold_and_every_falsehood_be_rejected():
    one, off = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])
    assert not evidence(lhs=one, rhs=off, falsehood_rhs=off + 5, tolerance=1e-3).holds
    assert not evidence(lhs=one, rhs=one, falsehood_rhs=off, tolerance=1e-3).falsehood_rejected


def test_falsehood_may_have_its_own_left_side_and_error():
    e = evidence(lhs=0.0, rhs=0.0, falsehood_lhs=7.0, falsehood_rhs=0.0, stderr=10.0, falsehood_stderr=1.0)
    assert e.margin == 7 and e.falsehood_rejected


@pytest.mark.parametrize("bad", [math.nan, torch.tensor([1.0, math.nan])])
def test_nan_neither_holds_nor_rejects(bad):
    assert not evidence(lhs=bad, rhs=1.0, falsehood_rhs=5.0, tolerance=1e-3).holds
    assert not evidence(lhs=1.0, rhs=1.0, falsehood_rhs=bad, tolerance=1e-3).falsehood_rejected


def test_what_a_reader_sees():
    text = evidence(lhs=1.0, rhs=1.0, falsehood_rhs=2.0, tolerance=1e-10)._repr_markdown_()
    assert "holds" in text and "rejected" in text and "≤ 1" in text and "≥ 1000" in text
    text = repr(evidence(lhs=1.0, rhs=3.0, falsehood_rhs=1.0, stderr=0.1))
    assert "FAILS" in text and "NOT REJECTED" in text


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "expected either a tolerance or a stderr"),
        ({"tolerance": 1e-3, "stderr": 1.0}, "expected either a tolerance or a stderr"),
        ({"tolerance": 0.0}, "expected positive"),
        ({"stderr": torch.tensor([1.0, 0.0])}, "expected positive"),
        ({"stderr": math.nan}, "expected positive"),
        ({"tolerance": 1e-3, "relation": "<"}, "relation: expected"),
    ],
)
def test_bad_measurements(numbers, message):
    with pytest.raises(ValueError, match=message):
        Measurement(lhs=1.0, rhs=1.0, falsehood_rhs=2.0, **numbers)


def test_registering_twice_or_without_a_text_is_an_error(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    known = replace(ledger()[0])
    texts = {k: getattr(known, k) for k in ("falsehood", "kind", "source", "section")}
    with pytest.raises(ValueError, match="already registered"):
        claim(known.id, **texts)
    with pytest.raises(ValueError, match="falsehood: expected a text"):
        claim("index/new", **{**texts, "falsehood": " "})
    claim("index/new", **texts)(lambda generator: Measurement(0.0, 1.0, 0.0, tolerance=1.0))
    assert verify("index/new").claim.id == "index/new"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("index/nothing",), ValueError, "id: expected one of .*index/joint.*, got 'index/nothing'"),
        (("index/joint", -1), ValueError, "seed: expected an int at least 0, got -1"),
        (("index/joint", 0.5), TypeError, "seed: expected an int, got float"),
    ],
)
def test_bad_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        verify(arguments[0], **({"seed": arguments[1]} if len(arguments) > 1 else {}))
