"""The stored benchmark is whole and follows from its own rows; the script still runs. No timing is asserted."""

import json
import statistics

import pytest
import scale
import torch

STORED = json.loads((scale.ROOT / "book" / "results" / "scale.json").read_text())
CARD = json.loads((scale.ROOT / "book" / "results" / "scale-card.json").read_text())
OURS = ("vaebook", "vaebook, with score", "attention to all")


def test_every_setting_was_measured():
    settings = {(row["kind"], row["dim"], row["num"]) for row in STORED["rows"]}
    large = {(kind, dim, num) for kind in ("random", "Fashion-MNIST") for dim in scale.DIMS for num in scale.SIZES}
    assert settings == large | {("digits", dim, 1297) for dim in scale.DIMS}
    for setting in settings:
        methods = {row["method"] for row in STORED["rows"] if (row["kind"], row["dim"], row["num"]) == setting}
        assert methods >= {*scale.PEERS, *OURS, "floor: GEMM and exp"}, setting
    assert {"time", "commit", "machine", "threads", "versions", "seed", "points"} <= set(STORED["provenance"])


def test_medians_ratios_and_exponents_follow_from_the_rounds():
    for row in STORED["rows"]:
        assert len(row["rounds"]) >= 5 and row["pairs_per_second"] == statistics.median(row["rounds"])
    assert STORED["ratios"] == scale.ratios(STORED["rows"])
    assert STORED["exponents"] == scale.exponents(STORED["rows"])
    assert json.loads(scale.as_json(STORED)) == STORED


def test_what_a_graphics_card_did_follows_from_its_rounds():
    sizes = {(row["dim"], row["num"]) for row in CARD["rows"]}
    assert sizes == {(dim, num) for dim in scale.DIMS for num in scale.CARD["SIZES"]}
    for row in CARD["rows"]:
        assert len(row["rounds"]) >= 5 and row["pairs_per_second"] == statistics.median(row["rounds"])
    assert CARD["ratios"] == scale.ratios(CARD["rows"]) and json.loads(scale.as_json(CARD)) == CARD
    assert CARD["shares"] == scale.shares(CARD["rows"], CARD["provenance"]["peak"])
    # a share of what products and exponentials alone would take
    assert all(0 < row["share"] < 1 for row in CARD["shares"]) and len(CARD["shares"]) == 2 * len(sizes)


def test_stored_errors():
    for row in STORED["rows"] + CARD["rows"]:
        if row["method"] in OURS:
            assert row["error"] <= 1e-8, row
        assert (row["error"] is None) == (row["method"] in scale.NO_DENSITY)


@pytest.mark.parametrize("dim", scale.DIMS)
def test_slice_of_the_errors(dim):
    """Density, oracle and settings of the stored rows, for the random mixture of a thousand components."""
    whole = scale.mixture("random", dim)
    q = scale.DiagGaussianMixture(whole.loc[:1000].clone(), whole.scale[:1000].clone())
    z = q.sample((scale.POINTS,), generator=torch.Generator().manual_seed(scale.SEED + 1))
    exact = scale.oracle(q, z[:50])
    stored = {
        row["method"]: row["error"]
        for row in STORED["rows"]
        if (row["kind"], row["dim"], row["num"]) == ("random", dim, 1000)
    }
    assert float((q.log_prob(z)[:50] - exact).abs().max()) < 1e-11
    rough = scale._attention(q, torch.float32)(z[:50]).double()
    error = float((rough - exact).abs().max())
    assert stored["attention to all, float32"] / 4 < error < 4 * stored["attention to all, float32"]


def test_script_runs(monkeypatch, tmp_path, capsys):
    for name, value in {"KINDS": ("random",), "DIMS": (2,), "SIZES": (300, 600), "POINTS": 200, "SHORT": 0.0}.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr("sys.argv", ["scale.py", "--rounds", "1", "--output", str(tmp_path / "scale.json")])
    scale.main()
    written = json.loads((tmp_path / "scale.json").read_text())
    assert {row["num"] for row in written["rows"]} == {300, 600} and "written" in capsys.readouterr().out
    assert all(row["error"] < 1e-4 for row in written["rows"] if row["error"] is not None)


def test_a_peer_that_fails_is_left_out(capsys):
    with scale.left_out("KeOps"):
        raise OSError("no compiler\nin the path")
    assert capsys.readouterr().out == "KeOps is left out: OSError: no compiler\n"
    with pytest.raises(OSError), scale.left_out("vaebook"):
        raise OSError
