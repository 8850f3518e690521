"""The stored cost of shards is whole and follows from its own rows; bytes are counted again; no timing is asserted."""

import json
import statistics

import pytest
import shards

STORED = json.loads((shards.scale.ROOT / "book" / "results" / "shards.json").read_text())


def test_every_setting_was_measured():
    found = {(r["num"], r["dim"], r["points"], r["ranks"], r["method"]) for r in STORED["rows"]}
    assert found == {
        (*s, ranks, method) for s in shards.SETTINGS for ranks in shards.RANKS for method in shards.METHODS
    }
    assert {"time", "commit", "machine", "threads", "versions", "seed", "link"} <= set(STORED["provenance"])


def test_medians_bytes_and_paper_follow_from_the_rows():
    for row in STORED["rows"]:
        assert row["seconds"] == pytest.approx(statistics.median(row["rounds"]), rel=1e-3)
        assert row["bytes"] == shards.payload(row["method"], row["dim"], row["points"], row["ranks"]), row
        assert row.get("error", 0.0) <= 1e-10
    assert STORED["paper"] == shards.paper(STORED["rows"])
    seconds = {(r["num"], r["method"]): r["seconds"] for r in STORED["paper"]}
    assert {num for num, _ in seconds} == {10**8, 10**9}


def test_script_runs_and_counts_the_same_bytes(monkeypatch, tmp_path, capsys):
    """Two processes are started; what they send is counted anew."""
    for name, value in {"SETTINGS": ((50, 3, 20),), "RANKS": (1, 2)}.items():
        monkeypatch.setattr(shards, name, value)
    monkeypatch.setattr("sys.argv", ["shards.py", "--rounds", "1", "--output", str(tmp_path / "shards.json")])
    shards.main()
    written = json.loads((tmp_path / "shards.json").read_text())
    assert len(written["rows"]) == 8 and "written" in capsys.readouterr().out
    for row in written["rows"]:
        assert row["bytes"] == shards.payload(row["method"], 3, 20, row["ranks"])
        assert row.get("error", 0.0) <= 1e-10
