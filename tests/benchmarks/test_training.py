"""The stored comparison of trainers is whole and follows from its own rows; no timing is asserted."""

import json

import training
from torch import equal
from training import bare, images, model, ours

STORED = json.loads((training.scale.ROOT / "book" / "results" / "training.json").read_text())


def test_every_setting_was_measured():
    assert {(row["setting"], row["trainer"]) for row in STORED["rows"]} == {
        (setting, trainer) for setting in training.SETTINGS for trainer in ("fit", "bare loop", "pythae")
    }
    assert {"time", "commit", "machine", "threads", "versions"} <= set(STORED["provenance"])
    assert STORED["provenance"]["versions"]["pythae"] == "0.1.2"


def test_ratios_follow_from_the_rounds():
    assert all(len(row["seconds"]) == len(row["losses"]) >= 5 for row in STORED["rows"])
    assert STORED["ratios"] == training.ratios(STORED["rows"])


def test_all_reach_the_same_loss():
    """The bare loop draws what `fit` draws; pythae draws otherwise, and is as good within the noise of seeds."""
    for row in STORED["ratios"]:
        allowed = 1e-3 if row["over"] == "bare loop" else 4 * row["stderr"]
        assert abs(row["loss_apart"]) <= allowed, row


def test_the_bare_loop_is_the_same_training():
    x = images("digits")[:100]
    first, second = (model(x, 2, (8,), 0) for _ in range(2))
    ours(first, x, 32, 3, 1)
    bare(second, x, 32, 3, 1)
    apart = max(float((a - b).abs().max()) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert apart < 1e-5
    assert not equal(next(first.parameters()), next(model(x, 2, (8,), 0).parameters()))


def test_script_runs_without_pythae(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training, "SETTINGS", {"digits": ("digits", (8,), 2, 512, 1)})
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["training.py", "--rounds", "1", "--output", str(tmp_path / "training.json")])
    training.main()
    told = capsys.readouterr().out
    assert "pythae is not installed and left out" in told and "written" in told
    assert {row["trainer"] for row in json.loads((tmp_path / "training.json").read_text())["rows"]} == {
        "fit",
        "bare loop",
    }
