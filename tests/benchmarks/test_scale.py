"""The stored benchmark is whole and follows from its own rows; the script still runs. No timing is asserted."""

import json
import statistics

import pytest
import scale
import torch

KINDS = ("avx512", "avx2", "card")
*PROCESSORS, CARD = (json.loads((scale.ROOT / "book" / "results" / f"scale-{kind}.json").read_text()) for kind in KINDS)
OURS = ("vaebook", "vaebook, with score", "attention to all")
on_processors = pytest.mark.parametrize("stored", PROCESSORS, ids=KINDS[:-1])


def test_each_result_is_of_the_kind_that_it_is_named_after():
    assert [some["provenance"]["capability"].lower() for some in PROCESSORS] == list(KINDS[:-1])
    assert "card" in CARD["provenance"]


@on_processors
def test_every_setting_was_measured(stored):
    settings = {(row["kind"], row["dim"], row["num"]) for row in stored["rows"]}
    large = {(kind, dim, num) for kind in ("random", "Fashion-MNIST") for dim in scale.DIMS for num in scale.SIZES}
    equal = {(kind + scale.EQUAL, dim, scale.SIZES[-1]) for kind in ("random", "Fashion-MNIST") for dim in scale.DIMS}
    assert settings == large | equal | {("digits", dim, 1297) for dim in scale.DIMS}
    for setting in settings:
        methods = {row["method"] for row in stored["rows"] if (row["kind"], row["dim"], row["num"]) == setting}
        peers = {*scale.PEERS[:-1], *scale.TREES} if setting in equal else {*scale.PEERS}
        peers -= {"pomegranate"} if setting[2] > scale.SIZES[1] else set()
        assert methods >= {*peers, *OURS, "floor: GEMM and exp"}, setting
    assert {"time", "commit", "machine", "threads", "versions", "seed", "points"} <= set(stored["provenance"])


@on_processors
def test_medians_ratios_and_exponents_follow_from_the_rounds(stored):
    for row in stored["rows"]:
        assert len(row["rounds"]) >= 5 and row["pairs_per_second"] == statistics.median(row["rounds"])
    assert stored["ratios"] == scale.ratios(stored["rows"])
    assert stored["exponents"] == scale.exponents(stored["rows"])
    assert json.loads(scale.as_json(stored)) == stored


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
    for row in (row for some in (*PROCESSORS, CARD) for row in some["rows"]):
        if row["method"] in OURS:
            assert row["error"] <= 1e-8, row
        assert (row["error"] is None) == (row["method"] in scale.NO_DENSITY)
        assert row["error"] is None or row["error"] <= (1e-7 if row["settings"]["dtype"] == "float64" else scale.AGREES)


@on_processors
@pytest.mark.parametrize("dim", scale.DIMS)
def test_slice_of_the_errors(dim, stored):
    """Density, oracle and settings of the stored rows, for the random mixture of a thousand components."""
    whole = scale.mixture("random", dim)
    q = scale.DiagGaussianMixture(whole.loc[:1000].clone(), whole.scale[:1000].clone())
    z = q.sample((scale.POINTS,), generator=torch.Generator().manual_seed(scale.SEED + 1))
    exact = scale.oracle(q, z[:50])
    errors = {
        row["method"]: row["error"]
        for row in stored["rows"]
        if (row["kind"], row["dim"], row["num"]) == ("random", dim, 1000)
    }
    assert float((q.log_prob(z)[:50] - exact).abs().max()) < 1e-11
    rough = scale._attention(q, torch.float32)(z[:50]).double()
    error = float((rough - exact).abs().max())
    assert errors["attention to all, float32"] / 4 < error < 4 * errors["attention to all, float32"]


def test_each_peer_agrees():
    """With a direct sum, in a mixture with equal and one with other scales; those that are not installed are out."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(1200, 2, generator=generator).double()
    for scales in (0.3 + torch.rand(1200, 2, generator=generator).double(), torch.full_like(loc, 0.4)):
        q = scale.DiagGaussianMixture(loc, scales)
        z = q.sample((200,), generator=generator)
        exact, found = scale.oracle(q, z[:50]), scale.peers(q)
        assert found.keys() >= {"vaebook", "MixtureSameFamily", "scikit-learn"}
        assert (found.keys() >= scale.TREES.keys()) == bool((scales == 0.4).all())
        for name in set(found) - set(scale.NO_DENSITY):
            for settings, method in found[name]:
                assert scale.error(method(z), exact) <= (1e-7 if settings["dtype"] == "float64" else 1e-4), name


def test_the_setting_chosen_is_the_fastest_that_agrees(monkeypatch):
    seconds = {"wrong": 1.0, "slow": 3.0, "fast": 2.0}
    monkeypatch.setattr(scale, "timed", lambda method, z: seconds[method.__name__] * len(z))
    z, exact = torch.zeros(40, 1), torch.zeros(30)

    def wrong(z):
        return z[:, 0] + 2 * scale.AGREES

    def slow(z):
        return z[:, 0]

    def fast(z):
        return z[:, 0] + scale.AGREES / 2, "a score"

    options = [({"form": method.__name__}, method) for method in (wrong, slow, fast)]
    settings, method, worst = scale.choose("a peer", options, z, exact)
    assert (settings, method) == ({"form": "fast"}, fast) and worst == pytest.approx(2 * scale.AGREES)
    assert scale.choose("a peer", [({"chunk": 41}, fast), *options[1:2]], z, exact)[1] is slow
    with pytest.raises(ValueError, match=r"within 0\.001 nats of a direct sum, got 0\.002"):
        scale.choose("a peer", options[:1], z, exact)
    assert scale.choose(scale.NO_DENSITY[0], options[:1], z, exact) == ({"form": "wrong"}, wrong, None)


def test_script_runs(monkeypatch, tmp_path, capsys):
    for name, value in {"KINDS": ("random",), "DIMS": (2,), "SIZES": (300, 600), "POINTS": 200, "SHORT": 0.0}.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr("sys.argv", ["scale.py", "--rounds", "1", "--output", str(tmp_path / "scale.json")])
    scale.main()
    written = json.loads((tmp_path / "scale.json").read_text())
    told = capsys.readouterr().out
    settings = [(row["kind"], row["num"]) for row in written["ratios"]]
    assert settings == [("random", 300), ("random", 600), ("random, equal scales", 600)] and "written" in told
    assert ["trees_error" in row for row in written["ratios"]] == [False, False, True]
    assert written["ratios"] == scale.ratios(written["rows"])
    measured = {row["method"] for row in written["rows"]}
    assert all((f"{name} is left out: " in told) == (name not in measured) for name in (*scale.PEERS, *scale.TREES))
    assert all(row["error"] < 1e-4 for row in written["rows"] if row["error"] is not None)


def test_a_peer_that_fails_in_a_round_has_no_row(monkeypatch, capsys):
    calls = []

    def fails(z):
        calls.append(len(z))
        if len(calls) > 3:
            raise MemoryError("too large")
        return q.log_prob(z)

    q = scale.DiagGaussianMixture(torch.zeros(3, 2).double(), torch.ones(3, 2).double())
    found = {"vaebook": [({"dtype": "float64"}, q.log_prob)], "KeOps": [({"dtype": "float64"}, fails)]}
    for name, value in {"POINTS": 100, "SHORT": 0.0, "PAUSE": 0.0, "peers": lambda q: found}.items():
        monkeypatch.setattr(scale, name, value)
    rows = scale.measure("random", q, 2)
    assert [row["method"] for row in rows] == ["vaebook"] and len(rows[0]["rounds"]) == 2
    assert capsys.readouterr().out == "KeOps is left out: MemoryError: too large\n"


def test_a_peer_that_fails_is_left_out(capsys):
    with scale.left_out("KeOps"):
        raise OSError("no compiler\nin the path")
    assert capsys.readouterr().out == "KeOps is left out: OSError: no compiler\n"
    with pytest.raises(OSError), scale.left_out("vaebook"):
        raise OSError
