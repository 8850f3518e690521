"""Experiments resume, results say what they were made on, and bad files are one clear error each."""

import json
import os
import re
import runpy
import subprocess

import harness
import pytest
from harness import ROOT, Experiment, read_result

CONFIG = {"seeds": [0, 1], "dim": 2, "rate": 0.1}
OWN_FORMAT = {
    "doors",
    "mutants",
    "published",
    "scale-avx2",
    "scale-avx512",
    "scale-card",
    "shards",
    "statements",
    "training",
}
"""Results that other programs write, and what was copied from papers."""
RESULTS = [p for p in sorted((ROOT / "book" / "results").glob("*.json")) if p.stem not in OWN_FORMAT]
PROVENANCE = {"time", "commit", "dirty", "machine", "device", "threads", "capability", "python", "versions"}


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    for name in ("SCRIPTS", "RESULTS", "SCRATCH"):
        monkeypatch.setattr(harness, name, tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setattr(harness, "ROOT", tmp_path)  # no history: nothing depends on the state of this tree


def counted(calls, value=None):
    def compute():
        calls.append(1)
        return {"value": 1 / 3} if value is None else value

    return compute


def failing(error):
    def compute():
        raise error

    return compute


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_pieces_are_computed_once(capsys):
    calls = []
    first = Experiment("some", CONFIG).piece("seed 0", counted(calls))
    again = Experiment("some", dict(reversed(CONFIG.items()))).piece("seed 0", counted(calls))
    assert first == again == {"value": 1 / 3, "seconds": first["seconds"]} and len(calls) == 1
    out, err = capsys.readouterr()
    assert [re.sub(r"\d+\.\d", "0.0", line) for line in out.splitlines()] == [
        "some: seed 0: 0.0 s",
        "some: seed 0: 0.0 s, stored",
    ]
    assert err == ""


def test_pieces_come_back_as_json_and_belong_to_the_caller():
    experiment = Experiment("some", CONFIG)
    for _ in range(2):
        found = experiment.piece("a", lambda: {"pair": (1, 2), "seconds": -1})
        assert found["pair"] == [1, 2] and found["seconds"] >= 0
        found["pair"].append(3)
    path = experiment.write({})
    assert json.loads(path.read_text())["provenance"]["seconds"] >= 0


def test_interruption_keeps_what_is_finished(tmp_path):
    calls, experiment = [], Experiment("some", CONFIG)
    experiment.piece("seed 0", counted(calls))
    with pytest.raises(KeyboardInterrupt):
        experiment.piece("seed 1", failing(KeyboardInterrupt()))
    assert len(files(tmp_path)) == 1
    again = Experiment("some", CONFIG)
    assert again.piece("seed 0", counted(calls)) and len(calls) == 1
    assert again.piece("seed 1", counted(calls)) and len(calls) == 2
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("other", [{"dim": 3}, {"seeds": [0]}, {"more": None}])
def test_another_configuration_shares_no_piece(other):
    calls = []
    Experiment("some", CONFIG).piece("a", counted(calls))
    Experiment("some", CONFIG | other).piece("a", counted(calls))
    Experiment("other", CONFIG).piece("a", counted(calls))
    assert len(calls) == 3
    Experiment("some", CONFIG).piece("a", counted(calls))
    Experiment("some", CONFIG | other).piece("a", counted(calls))
    assert len(calls) == 3  # what the one has found, the other leaves


def test_the_seconds_of_a_piece_are_those_of_its_computation_and_no_part_of_a_row(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    experiment = Experiment("some", CONFIG)
    assert experiment.piece("a", lambda: {"value": 1}) == {"value": 1, "seconds": 2.5}
    assert experiment.row("a", failing(AssertionError())) == {"value": 1}


def test_keys_that_make_similar_file_names_are_apart():
    experiment = Experiment("some", CONFIG)
    keys = ["a b", "a/b", "a_b", "a\nb", "../a b", "é" * 300, "a" * 300, "a" * 301]
    values = [experiment.piece(key, lambda key=key: {"key": key})["key"] for key in keys]
    assert values == keys == [experiment.piece(key, failing(AssertionError()))["key"] for key in keys]
    assert len(files(experiment.folder)) == len(keys)


def test_a_truncated_or_changed_piece_is_computed_anew(capsys):
    experiment = Experiment("some", CONFIG)
    good = experiment.piece("a", lambda: {"value": 1.5})
    (path,) = experiment.folder.iterdir()
    content, calls = path.read_bytes(), []
    Experiment("some", CONFIG | {"dim": 3}).piece("a", lambda: {"value": 2.5})
    foreign = next((harness.SCRATCH / "some").glob(f"*/{path.name}"))
    others = {p.read_bytes() for p in (harness.SCRATCH / "some").glob(f"*/{path.name}")} - {content}
    bad = [b"", content[:40], content[:-1], content.replace(b"1.5", b"1.6"), b"[]", b'{"sha256": 1}', b"\xff", *others]
    bad += [json.dumps({"sha256": harness._digest({})}).encode(), b"[" * 10**5, b'{"sha256": ' + b"[" * 10**5]
    assert foreign.exists() and len(others) == 1
    for number, changed in enumerate(bad, start=1):
        path.write_bytes(changed)
        capsys.readouterr()
        again = experiment.piece("a", counted(calls, {"value": 1.5}))
        err = capsys.readouterr().err
        assert again["value"] == good["value"] and len(calls) == number
        assert err == f"{path}: expected a complete piece of some, got a changed one; computed anew\n"
        assert experiment.piece("a", failing(AssertionError())) == again


PARTS = [("value", None), ("value", [1]), ("value", {}), ("made", None), ("made", {}), ("made", [])]
PARTS += [("value", {"value": 1.5, "seconds": seconds}) for seconds in ("x", None, float("nan"), [], -1)]


@pytest.mark.parametrize(("part", "other"), PARTS)
def test_a_piece_that_lacks_a_part_is_computed_anew_although_its_digest_is_right(part, other, capsys):
    experiment = Experiment("some", CONFIG)
    experiment.piece("a", lambda: {"value": 1.5})
    (path,) = experiment.folder.iterdir()
    made = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "sha256"}
    for forged in (made | {part: other}, {name: value for name, value in made.items() if name != part}):
        path.write_bytes(json.dumps(forged | {"sha256": harness._digest(forged)}).encode())
        assert experiment.piece("a", lambda: {"value": 2.5})["value"] == 2.5
        assert "computed anew" in capsys.readouterr().err
    experiment.write({})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"provenance": {}, "config": {"a": 2, "a": 1}}', "a key that occurs twice"),
        ('{"provenance": {}, "config": {"a": 1}, "x": 1, "x": 2}', "a key that occurs twice"),
        ('{"provenance": {}, "config": {"a": "' + "a" * 10**5 + '"}}', "a = 1, got aaa"),
        ('{"provenance": {}, "config": {"a": ' + "[" * 900 + "]" * 900 + "}}", "a = 1, got [[["),
    ],
)
def test_results_on_which_readers_could_disagree_or_that_go_on_for_ever(text, words):
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "some.json").write_text(text)
    with pytest.raises(ValueError) as error:
        read_result("some", {"a": 1})
    assert words in str(error.value) and len(str(error.value)) < 1000


def test_no_flipped_byte_of_a_piece_goes_unnoticed(capsys):
    experiment = Experiment("some", {"a": 1})
    experiment.piece("a", lambda: {"v": 1.5})
    (path,) = experiment.folder.iterdir()
    content = path.read_bytes()
    stored = json.loads(content)
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        found = experiment._stored(path, "a")
        # A space for another blank, or a letter of an escape, changes nothing that is read.
        assert found is None or found == {k: v for k, v in stored.items() if k != "sha256"}, i


@pytest.mark.parametrize("value", [None, [1], {"a": float("nan")}, {"a": float("inf")}, {"a": object()}])
def test_what_json_cannot_hold_is_an_error_and_is_not_stored(value, tmp_path):
    experiment = Experiment("some", CONFIG)
    with pytest.raises(TypeError, match=r"^some, piece a: expected"):
        experiment.piece("a", lambda: value)
    with pytest.raises(TypeError, match=r"^content: expected"):
        experiment.write(value)
    with pytest.raises(TypeError, match=r"^config: expected"):
        Experiment("some", value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_interrupted_writing_leaves_the_old_files_and_nothing_else(monkeypatch, tmp_path, where, error):
    experiment = Experiment("some", CONFIG)
    experiment.piece("a", counted([]))
    before = experiment.write({"rows": []}).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, where, lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            experiment.write({"rows": [1]})
        with pytest.raises(type(error)):
            experiment.piece("b", counted([]))
        with pytest.raises(type(error)):
            Experiment("new", CONFIG).write({})
    assert (harness.RESULTS / "some.json").read_bytes() == before and len(files(tmp_path)) == 2
    calls = []
    assert experiment.piece("b", counted(calls)) and calls == [1]


def test_results_hold_provenance_configuration_and_one_row_a_line(capsys):
    experiment = Experiment("some", CONFIG)
    rows = [experiment.piece(f"seed {seed}", lambda seed=seed: {"seed": seed, "nll": 1 / 3}) for seed in (0, 1)]
    path = experiment.write({"rows": rows, "summary": {"nll": {"mean": 123456.789, "count": 1234567}}})
    assert capsys.readouterr().out.splitlines()[-1] == f"some: written: {path}"
    text, result = path.read_text(), read_result("some", CONFIG)
    assert list(result) == ["provenance", "config", "rows", "summary"] and result["config"] == CONFIG
    assert [row["nll"] for row in result["rows"]] == [0.333333] * 2
    assert result["summary"] == {"nll": {"mean": 123457.0, "count": 1234567}}
    assert len([line for line in text.splitlines() if '"nll": 0.333333' in line]) == 2
    found = result["provenance"]
    assert found.keys() >= PROVENANCE | {"seconds", "pieces"}
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), rel=1e-5)
    assert found["pieces"] == 2 and found["device"] == "cpu" and found["versions"]["torch"]


def test_provenance_knows_the_commit_and_changes_outside_the_results(monkeypatch, tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert harness.provenance()["commit"] is None and harness.provenance()["dirty"] is None
    git("init")
    (tmp_path / "code").write_text("a")
    git("add", "code")
    git("commit", "-m", "a")
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "book" / "results" / "some.json").write_text("{}")
    assert re.fullmatch(r"[0-9a-f]{40}", harness.provenance()["commit"]) and harness.provenance()["dirty"] is False
    (tmp_path / "code").write_text("b")
    assert harness.provenance()["dirty"] is True


def test_a_resumed_experiment_names_all_commits(monkeypatch):
    for seed, commit in enumerate("ba"):
        monkeypatch.setattr(harness, "_git", lambda *a, c=commit: c if a[0] == "rev-parse" else c.strip("b"))
        experiment = Experiment("some", CONFIG)
        experiment.piece("seed 0", counted([]))
        experiment.piece(f"seed {seed}", counted([]))
    found = json.loads(experiment.write({}).read_text())["provenance"]
    assert found["commit"] == "a, b" and found["dirty"] is True


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_one_piece_of_changed_code_is_enough(order, monkeypatch):
    """Of code a the tree was clean, of code b it was not, whichever came first."""
    experiment = Experiment("some", CONFIG)
    for commit in order:
        monkeypatch.setattr(harness, "_git", lambda *a, c=commit: c if a[0] == "rev-parse" else c.strip("a"))
        experiment.piece(commit, counted([]))
    assert json.loads(experiment.write({}).read_text())["provenance"]["dirty"] is True


def test_results_without_pieces_were_made_of_none_in_a_folder_that_is_made():
    harness.RESULTS.rmdir()
    found = json.loads(Experiment("some", CONFIG).write({"a": 1}).read_text())["provenance"]
    assert (found["pieces"], found["seconds"]) == (0, 0) and found["device"] == "cpu"


def test_without_git_there_is_no_commit_unless_one_is_told(monkeypatch):
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: failing(FileNotFoundError("git"))())
    assert harness.provenance()["commit"] is harness.provenance()["dirty"] is None
    monkeypatch.setenv("VAEBOOK_COMMIT", "abc")
    assert harness.provenance()["commit"] == "abc"


def test_digits_are_kept_in_lists_of_lists():
    assert harness.rounded([1.2345, [2.3456], {"a": [3.4567]}], 2) == [1.2, [2.3], {"a": [3.5]}]


@pytest.mark.parametrize("key", ["provenance", "config"])
def test_content_must_not_hide_provenance_or_configuration(key):
    with pytest.raises(ValueError, match=f"^content: expected keys other than provenance and config, got {key}"):
        Experiment("some", CONFIG).write({key: {}})
    assert files(harness.RESULTS) == []


def test_a_missing_results_file_names_the_remedy():
    with pytest.raises(FileNotFoundError) as error:
        read_result("some")
    path = harness.RESULTS / "some.json"
    assert str(error.value) == f"{path}: expected a complete results file, got none; run `make experiments ONLY=some`"


def test_a_truncated_or_foreign_results_file_is_one_clear_error():
    path = Experiment("some", CONFIG).write({"rows": [{"a": 1}]})
    content = path.read_bytes()
    others = (b"[]", b"{}", b'{"config": {}}', b"\xff", b"[" * 10**5)
    for bad in (*(content[:n] for n in range(0, len(content) - 1, 7)), *others):
        path.write_bytes(bad)
        with pytest.raises(ValueError) as error:
            read_result("some")
        assert str(error.value).startswith(f"{path}: expected a complete results file, got ")
        assert str(error.value).endswith("; run `make experiments ONLY=some`") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIG | {"dim": 3}, "dim = 3, got 2"),
        (CONFIG | {"beta": 1}, "beta = 1, got nothing"),
        ({}, "dim = nothing, got 2"),
        ({"seeds": [0, 1], "dim": 2}, "rate = nothing, got 0.1"),
        (CONFIG | {"dim": 2.0}, "dim = 2.0, got 2"),
        (CONFIG | {"seeds": [False, True]}, r"seeds = [False, True], got [0, 1]"),
    ],
)
def test_results_of_another_configuration_are_refused(config, words):
    path = Experiment("some", CONFIG).write({})
    assert read_result("some", CONFIG | {"seeds": (0, 1)}) == read_result("some")
    with pytest.raises(ValueError) as error:
        read_result("some", config)
    remedy = "run `make experiments ONLY=some`"
    assert str(error.value) == f"{path}: expected a configuration with {words}; {remedy}"


def test_one_line_a_row_and_an_indent_a_level():
    value = {"a": {"b": 1, "c": {}}, "d": [], "é": [[1, 2], {"f": [3]}], "g": [1, "x"], "h": {"i": [{}]}}
    assert harness.as_json(value).splitlines() == [
        "{",
        ' "a": {',
        '  "b": 1,',
        '  "c": {}',
        " },",
        ' "d": [],',
        ' "\\u00e9": [',
        "  [1, 2],",
        '  {"f": [3]}',
        " ],",
        ' "g": [1, "x"],',
        ' "h": {',
        '  "i": [',
        "   {}",
        "  ]",
        " }",
        "}",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags: a\nmodel name\t: Other\n", "Some CPU @ 2 GHz"),
        ("my model name: none\n", "arm"),
        (None, "arm"),
    ],
)
@pytest.mark.parametrize("known", ["", "Family 6"])
def test_the_processor_is_named_as_the_system_knows_it(text, told, known, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(harness, "Path", lambda name: asked.append(name) or tmp_path / "cpuinfo")
    monkeypatch.setattr(harness.platform, "processor", lambda: known)
    monkeypatch.setattr(harness.platform, "machine", lambda: "arm")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert harness._processor() == (known if known and told == "arm" else told)
    assert asked == ["/proc/cpuinfo"]


def test_where_numbers_are_made(monkeypatch):
    monkeypatch.setattr(harness, "_processor", lambda: "Some CPU")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(harness.platform, "system", lambda: "Some system")
    monkeypatch.setattr(harness.torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    found = harness.provenance(("pytest", "no package of this name"))
    assert found["machine"] == "Some CPU, 3 cores, Some system"
    assert found["versions"] == {"pytest": pytest.__version__, "no package of this name": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time"])
    experiment = Experiment("some", CONFIG, device="cuda:1")
    experiment.piece("a", counted([]))
    made = json.loads(experiment.write({}).read_text())["provenance"]
    assert made["device"] == "card 1" and made["machine"] == "Some CPU, 3 cores, Some system"


def test_pieces_of_earlier_runs_are_looked_for_where_they_lie():
    experiment = Experiment("some", {"b": 1, "a": [0.5]})
    for key in ("seed 0, x=1.5", "a" * 100):
        experiment.piece(key, counted([]))
    assert experiment.folder == harness.SCRATCH / "some" / "d6b5fa80ee234ce9"
    assert files(experiment.folder) == [f"{'a' * 80}-9391a077.json", "seed_0_x=1.5-cca414ef.json"]


SCRIPT = """
from pathlib import Path
if __name__ == "__main__":
    with Path("{log}").open("a") as log:
        log.write("{name} ")
    {end}
"""


def script(name, end="pass"):
    path = harness.SCRIPTS / f"{name}.py"
    path.write_text(SCRIPT.format(log=harness.SCRIPTS / "log", name=name, end=end))


def log():
    return (harness.SCRIPTS / "log").read_text().split()


def test_all_scripts_run_in_order_or_one(capsys):
    for name in ("b", "_shared", "harness", "a"):
        script(name)
    harness.main()
    assert log() == ["a", "b"]
    harness.main("b")
    assert log() == ["a", "b", "b"]
    for unknown in ("c", "harness", "_shared", "../a"):
        with pytest.raises(SystemExit, match=f"^ONLY: expected one of a, b, got {unknown}$"):
            harness.main(unknown)
    assert log() == ["a", "b", "b"]


def test_an_error_or_an_interruption_stops_the_rest():
    script("a", "raise KeyboardInterrupt")
    script("b")
    with pytest.raises(KeyboardInterrupt):
        harness.main()
    script("a", "raise ValueError('no')")
    with pytest.raises(ValueError, match=r"^no$"):
        harness.main()
    assert log() == ["a", "a"]


def test_unknown_name_on_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["harness.py", "nothing"])
    with pytest.raises(SystemExit, match=r"^ONLY: expected one of .*, got nothing$"):
        runpy.run_path(str(ROOT / "book" / "experiments" / "harness.py"), run_name="__main__")


# What the repository holds

STORED = sorted(
    p.stem for p in (ROOT / "book" / "experiments").glob("*.py") if p.stem != "harness" and not p.stem.startswith("_")
)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_stored_results_say_what_they_were_made_on(path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", ROOT / "book" / "results")
    found = read_result(path.stem)["provenance"]
    assert found.keys() >= PROVENANCE | {"seconds", "pieces"} and found["versions"].keys() >= set(harness.PACKAGES)
    assert found["seconds"] > 0 and found["commit"] is not None


@pytest.mark.parametrize("name", STORED)
def test_every_script_has_results_of_its_configuration(name, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", ROOT / "book" / "results")
    module = runpy.run_path(str(ROOT / "book" / "experiments" / f"{name}.py"))
    assert read_result(name, module["CONFIG"])["config"] == json.loads(json.dumps(module["CONFIG"]))  # which has lists
    assert not files(tmp_path)  # importing runs nothing


@pytest.mark.parametrize("path", sorted((ROOT / "book" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_the_commit_that_a_result_names_is_part_of_the_history(path):
    found = json.loads(path.read_text())
    commit = found.get("provenance", {}).get("commit") if isinstance(found, dict) else None
    if commit is None:  # made of what is there, or copied from papers
        return
    whole = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if whole.stdout.strip() != "false":
        pytest.skip("no history here, or only the end of it")
    command = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0, commit
