"""Brackets for the population: a slice comes out again, and the stored ends contain what is known."""

import pytest
from harness import read_result
from population import CONFIG, known, row, truth

RESULT = read_result("population", CONFIG)


def test_everything_is_there():
    assert {(r["D"], r["data"]) for r in RESULT["rows"]} == {(d, k) for d in CONFIG["dims"] for k in ("digits", "own")}
    wanted = {(n, s, seed) for n in CONFIG["sizes"] for s in CONFIG["known_shifts"] for seed in CONFIG["seeds"]}
    assert {(r["N"], r["shift"], r["seed"]) for r in RESULT["known"]} == wanted


@pytest.mark.parametrize(("dim", "kind"), [(2, "digits"), (8, "own")])
def test_rows_come_out_again(dim, kind):
    """Mixtures are fitted anew, by an iteration that another machine may stop a step earlier or later."""
    (stored,) = [r for r in RESULT["rows"] if (r["D"], r["data"]) == (dim, kind)]
    made = row(dim, kind)
    for what in ("mismatch", "information"):
        for end in ("low", "high", "leave_one_out", "cross_fitted"):
            assert made[what][end] == pytest.approx(stored[what][end], rel=0.01, abs=0.05), (what, end)


def test_a_known_population_comes_out_again():
    (stored,) = [r for r in RESULT["known"] if (r["N"], r["shift"], r["seed"]) == (300, 0.6, 0)]
    made = known(300, 0.6, 0)
    for what in ("mismatch", "information"):
        assert made[what]["high"] == pytest.approx(stored[what]["high"], rel=0.01, abs=0.05)
        assert made[what]["low"] == pytest.approx(stored[what]["low"], rel=0.01, abs=0.05)


def test_known_answers_lie_in_their_brackets():
    """84 brackets at 95 %, and on the safe side: more than nine misses would be one case in a thousand."""
    missed = 0
    for r in RESULT["known"]:
        answer = truth(r["shift"])
        for what in ("mismatch", "information"):
            assert r[f"true_{what}"] == pytest.approx(answer[f"true_{what}"], rel=1e-5, abs=1e-12)
            missed += not r[what]["low"] <= answer[f"true_{what}"] <= r[what]["high"]
    assert missed <= 9


def test_the_models_own_data_certify_nothing_and_the_digits_do():
    for r in RESULT["rows"]:
        assert r["mismatch"]["low"] <= r["mismatch"]["high"] and r["mismatch"]["high_estimate"] > 0
        if r["data"] == "own":
            assert r["mismatch"]["low"] == 0
        elif r["D"] >= 8:
            assert r["mismatch"]["low"] > 1
    plug_in = {(r["D"], r["data"]): r["mismatch"]["high_estimate"] for r in RESULT["rows"]}
    for dim in (8, 16, 24, 32):
        assert plug_in[dim, "own"] == pytest.approx(plug_in[dim, "digits"], rel=0.2)
