"""The stored list of surviving mutants is whole and explained, and a fresh sample of mutants is killed again."""

import json

import mutate
import pytest

STORED = json.loads(mutate.RESULTS.read_text(encoding="utf-8"))


current = pytest.mark.skipif(
    STORED["provenance"].get("digests") != mutate.digests(),
    reason="the stored mutants are of other code than today's; `make mutants` makes them anew",
)


@current
def test_every_module_was_mutated_and_every_survivor_is_explained():
    assert set(STORED["modules"]) == set(mutate.MODULES)
    assert {"time", "commit", "tool", "python"} <= set(STORED["provenance"])
    for module, counts in STORED["modules"].items():
        alive = [s for s in STORED["survivors"] if s["module"] == module]
        assert counts["survived"] == len(alive) == counts["mutants"] - counts["killed"]
    assert [s for s in STORED["survivors"] if s["reason"] is None or s["reason"] != mutate.reason(s)] == []


def test_a_reason_does_not_excuse_what_it_does_not_name():
    for was, now in (("x - y", "x + y"), ("n < 2", "n <= 2"), ("z.sum(0)", "z.sum(1)"), ("a and b", "a or b")):
        assert (
            mutate.reason({"module": "mixture", "function": "f", "was": f"return {was}", "is": f"return {now}"}) is None
        )


@current
@pytest.mark.slow
def test_a_sample_of_mutants_made_afresh_is_killed(tmp_path):
    """Mutants number 3 and 17 of every function that has so many."""
    mutate.prepare(tmp_path, mutate.MODULES)
    mutate.run(tmp_path, ("*__mutmut_3", "*__mutmut_17"))
    mutants = mutate.collect(tmp_path, mutate.MODULES)
    assert len(mutants) > 100 and {m["module"] for m in mutants} == set(mutate.MODULES)
    unexplained = [s for s in mutate.survivors(mutants) if s["reason"] is None]
    assert unexplained == []
