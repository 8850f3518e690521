"""The stored mutants are whole, explained and of today's code, and samples are drawn fairly."""

import ast
import json
import re

import mutate
import pytest
from scipy.stats import binomtest

STORED = json.loads(mutate.RESULTS.read_text(encoding="utf-8"))


def mutant(was, now, module="mixture", function="f"):
    return {"module": module, "function": function, "was": was, "is": now}


def test_what_is_stored_is_whole_and_every_survivor_is_explained():
    assert set(STORED) == {"provenance", "modules", "survivors"}
    assert set(STORED["provenance"]) == {"time", "tool", "python"}
    assert set(STORED["modules"]) <= set(mutate.MODULES)
    for module, row in STORED["modules"].items():
        alive = [s for s in STORED["survivors"] if s["module"] == module]
        assert row["survived"] == len(alive) == row["tried"] - row["killed"]
        assert 0 < row["tried"] <= row["made"] and (row["seed"] is None) == (row["tried"] == row["made"])
        interval = binomtest(row["killed"], row["tried"]).proportion_ci(method="wilson")
        assert row["interval"] == pytest.approx([interval.low, interval.high])
    assert [s for s in STORED["survivors"] if s["reason"] is None or s["reason"] != mutate.reason(s)] == []


def test_what_is_argued_is_about_code_of_today():
    """Or about survivors that are still stored: an argument outlived the line that it was about."""
    stored = {f"{s['module']}.{s['function']}: {s['was']} -> {s['is']}" for s in STORED["survivors"]}
    modules = sorted((*mutate.PACKAGE, *mutate.TOOLS), key=len, reverse=True)
    for argued in set(mutate.REASONS) - stored:
        place, _, change = argued.partition(": ")
        module = next(name for name in modules if place.startswith(f"{name}."))
        path = mutate.ROOT / {**mutate.PACKAGE, **mutate.TOOLS}[module]
        code = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        assert change.partition(" -> ")[0] in code, argued


@pytest.mark.slow
def test_every_module_was_tried_as_it_is_today():
    """`make mutants SAMPLE=5` measures those that are not."""
    stale = [m for m in mutate.MODULES if STORED["modules"].get(m, {}).get("digest") != mutate.digest(m)]
    if stale:
        pytest.skip(f"{len(stale)} of {len(mutate.MODULES)} modules were not tried as they are: make mutants SAMPLE=5")


def test_a_reason_does_not_excuse_what_it_does_not_name():
    for was, now in (
        ("x - y", "x + y"),
        ("n < 2", "n <= 2"),
        ("error < limit", "error <= limit"),
        ("z.sum(0)", "z.sum(1)"),
        ("a and b", "a or b"),
        ("zip(a, b, strict=True)", "zip(a, c, strict=True)"),
        ("torch.zeros(n, device=z.device)", "torch.zeros(n + 1, device=z.device)"),
        ("torch.zeros(n, device=z.device)", "torch.zeros(None, device=z.device)"),
        ("f('a sentence of words')", "f(None)"),
        ("f('a sentence of words')", "f('XXa sentence of wordsXX')"),
        ("f(ValueError('n: no'))", "f(ValueError('XXn: noXX'))"),
        ("f('two words')", "f('TWO WORDS')"),
        ("f('a sentence of words', 1)", "f('A SENTENCE OF WORDS', 2)"),
    ):
        assert mutate.reason(mutant(f"return {was}", f"return {now}")) is None
    assert mutate.reason(mutant("zip(a, b, strict=True)", "zip(a, b)"))
    assert mutate.reason(mutant("torch.zeros(n, device=z.device)", "torch.zeros(n)"))


def test_an_argument_is_about_one_line_of_one_function():
    for key in mutate.REASONS:
        module, function, change = re.fullmatch(r"([\w/]+)\.([\w.]+): (.*)", key, re.DOTALL).groups()
        assert module in mutate.MODULES
        assert f"def {function.split('.')[-1]}(" in (mutate.ROOT / mutate.source_of(module)).read_text(encoding="utf-8")
        assert " -> " in change


def test_every_module_has_tests():
    assert all(mutate.tests_of((module,)) for module in mutate.MODULES)
    for module, names in mutate.OTHER_TESTS.items():
        assert module in mutate.MODULES and len(mutate.tests_of((module,))) >= len(names)
    assert mutate.tests_of(("compare", "sums")) == [
        "tests/book/test_compare.py", "tests/test_mixture.py", "tests/test_kernels.py", "tests/test_clusters.py",
    ]  # fmt: skip


def test_results_are_kept_only_while_the_code_is_the_same(tmp_path, monkeypatch):
    rows = {
        name: mutate.summary(name, [{"outcome": "killed"}, {"outcome": "survived"}], 9, 0) for name in ("modes", "sums")
    }
    rows["sums"]["digest"] = "of other code"
    alive = [mutant("a", "b", module) for module in rows]
    monkeypatch.setattr(mutate, "RESULTS", tmp_path / "mutants.json")
    mutate.store({"modules": rows, "survivors": alive})
    kept = mutate.stored()
    assert list(kept["modules"]) == ["modes"] and [s["module"] for s in kept["survivors"]] == ["modes"]
    counts = {"made": 9, "tried": 2, "killed": 1, "survived": 1}
    assert counts.items() <= kept["modules"]["modes"].items()


def test_a_sample_is_drawn_from_all_mutants_and_again_the_same(tmp_path, monkeypatch):
    """Without running their tests: the names are asked of mutmut in the folder that was prepared."""
    drawn = []
    monkeypatch.setattr(mutate, "run", lambda folder, names: drawn.append(names))
    monkeypatch.setattr(mutate, "collect", lambda folder, modules: [{"outcome": "killed"}])
    monkeypatch.setattr(mutate, "prepare", light)
    counts, alive = mutate.measure("modes", 5, 0)
    mutate.measure("modes", 5, 0)
    mutate.measure("modes", 5, 1)
    mutate.measure("modes", None, 0)
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 5
    assert set(drawn[0]) <= set(drawn[3]) and len(drawn[3]) == counts["made"] > 50
    assert alive == [] and counts["seed"] == 0


def light(folder, modules):
    """What `prepare` copies for mutmut to name mutants: the module and the settings."""
    for module in modules:
        target = folder / mutate.source_of(module)
        target.parent.mkdir(parents=True)
        target.write_bytes((mutate.ROOT / mutate.source_of(module)).read_bytes())
    (folder / "pyproject.toml").write_text('[tool.mutmut]\nsource_paths = ["vaebook"]\n', encoding="utf-8")


def test_a_module_whose_tests_fail_is_said_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def measure(module, sample, seed):
        if module == "modes":
            raise RuntimeError("mutmut failed")
        return mutate.summary(module, [{"outcome": "killed"}] * 2, 2, None), []

    monkeypatch.setattr(mutate, "RESULTS", tmp_path / "mutants.json")
    monkeypatch.setattr(mutate, "measure", measure)
    monkeypatch.setattr("sys.argv", ["mutate.py", "--modules", "modes", "sums"])
    assert mutate.main() == 1
    assert "modes: mutmut failed" in capsys.readouterr().out
    assert list(mutate.stored()["modules"]) == ["sums"]


@pytest.mark.slow
def test_a_sample_made_afresh_is_killed():
    """Three mutants of each of some modules that have quick tests, others than those that are stored."""
    for module in ("verdicts", "memorisation", "tables"):
        counts, alive = mutate.measure(module, 3, 1)
        assert counts["tried"] == 3
        assert [s for s in alive if s["reason"] is None] == []
