"""VAEs on binary digits: the stored numbers come out again from the stored weights."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

BOOK = Path(__file__).resolve().parents[2] / "book"
RESULT = json.loads((BOOK / "results" / "digits.json").read_text(encoding="utf-8"))
CONFIG = RESULT["config"]
SETTINGS = [(dim, beta) for dim in CONFIG["latent_dims"] for beta in CONFIG["betas"]]


@pytest.fixture(scope="module")
def digits():
    folder = str(BOOK / "experiments")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("digits_experiment", BOOK / "experiments" / "digits.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def select(table, **where):
    return [row for row in RESULT[table] if all(row[key] == value for key, value in where.items())]


def agrees(got, stored):
    """Another machine rounds otherwise and may take other samples: equal within the errors of both estimates."""
    pairs = zip(got["log_prob"], stored["log_prob"], got["stderr"], stored["stderr"], strict=True)
    return all(abs(a - b) < 0.02 + 5 * math.hypot(one, two) for a, b, one, two in pairs)


def test_the_script_is_the_one_that_made_the_results(digits):
    assert json.loads(json.dumps(digits.CONFIG)) == CONFIG


def test_everything_is_there():
    assert len(RESULT["rows"]) == len(SETTINGS) * len(CONFIG["seeds"]) * len(CONFIG["priors"])
    assert len(RESULT["summary"]) == len(SETTINGS) * len(CONFIG["priors"])
    assert len(RESULT["slice"]) == len(CONFIG["stored"]) * len(CONFIG["priors"])
    assert all(len(row["log_prob"]) == CONFIG["slice_images"] for row in RESULT["slice"])


@pytest.mark.parametrize(("dim", "beta"), [tuple(pair) for pair in CONFIG["stored"]])
def test_slice_comes_out_of_the_stored_weights(digits, dim, beta):
    x = digits.binary()[2][: CONFIG["slice_images"]]
    got = {}
    for model in CONFIG["models"]:
        vae = digits.load(model, dim, beta)
        densities = digits.priors(vae) if model == "normal" else {model: vae.prior}
        got |= {prior: digits.score(vae, p, x, CONFIG["num_samples"]) for prior, p in densities.items()}
    for prior, scores in got.items():
        (stored,) = select("slice", latent_dim=dim, beta=beta, prior=prior)
        assert agrees(scores, stored), prior
        (row,) = select("rows", latent_dim=dim, beta=beta, seed=0, prior=prior)
        mean, share = sum(scores["log_prob"]) / len(x), math.sqrt(CONFIG["test_images"] / len(x))
        assert abs(mean - row["log_prob"]) < 5 * row["stderr_images"] * share
        tampered = copy.deepcopy(stored)
        sharpest = min(range(len(x)), key=lambda i: stored["stderr"][i])
        tampered["log_prob"][sharpest] += 1.0
        assert not agrees(scores, tampered)
    assert not agrees(got["normal"], select("slice", latent_dim=dim, beta=beta, prior="vamp")[0])


def distance(one, two):
    """Relative distance of all weights of two models."""
    a, b = (torch.cat([tensor.flatten() for tensor in vae.state_dict().values()]) for vae in (one, two))
    return float((a - b).norm() / b.norm())


def test_a_model_trains_to_the_stored_weights(digits):
    """The whole way from data to weights. Another processor rounds otherwise: they agree to a float16's last digit."""
    dim, beta = CONFIG["stored"][2]
    trained, history = digits.train("normal", dim, beta, 0)
    (row,) = select("models", latent_dim=dim, beta=beta, seed=0, model="normal")
    assert (len(history.train_loss), history.best_epoch) == (row["epochs"], row["best_epoch"])
    # No rounding decides which epoch is best: the others are worse by far more than rounding moves a loss.
    best, second = sorted(history.validation_loss)[:2]
    assert second - best > 1e-3 * best
    stored = digits.load("normal", dim, beta)
    assert distance(trained, stored) < 2**-11
    x = digits.binary()[2][: CONFIG["slice_images"]]
    scores = digits.score(trained, None, x, CONFIG["num_samples"])
    (slice_,) = select("slice", latent_dim=dim, beta=beta, prior="normal")
    assert agrees(scores, slice_)
    assert distance(digits.build("normal", dim, 0), stored) > 0.1


@pytest.mark.parametrize(("dim", "beta"), SETTINGS)
def test_summary_is_that_of_the_rows(dim, beta):
    at = {(r["seed"], r["prior"]): r["log_prob"] for r in select("rows", latent_dim=dim, beta=beta)}
    for row in select("summary", latent_dim=dim, beta=beta):
        values = [at[seed, row["prior"]] for seed in CONFIG["seeds"]]
        gains = [at[seed, row["prior"]] - at[seed, "normal"] for seed in CONFIG["seeds"]]
        for numbers, mean, width in (
            (values, row["mean"], row["half_width"]),
            (gains, row["gain_mean"], row["gain_half_width"]),
        ):
            sample = torch.tensor(numbers, dtype=torch.float64)
            assert float(sample.mean()) == pytest.approx(mean, abs=1e-4)
            wanted = stats.t.ppf(0.975, len(numbers) - 1) * float(sample.std()) / math.sqrt(len(numbers))
            assert wanted == pytest.approx(width, abs=1e-4)
        assert row["seeds_won"] == sum(gain > 0 for gain in gains)


@pytest.mark.parametrize("prior", CONFIG["priors"])
def test_doubling_the_samples_moves_the_score_by_less_than_a_tenth_of_a_nat(prior):
    curve = {row["num_samples"]: row["log_prob"] for row in select("doubling", prior=prior)}
    assert list(curve) == CONFIG["doubling"]
    used = CONFIG["num_samples"]
    assert abs(curve[2 * used] - curve[used]) < 0.1
    assert abs(curve[4 * used] - curve[2 * used]) < 0.1


def test_identities_between_the_numbers():
    for row in RESULT["codes"]:
        where = {key: row[key] for key in ("latent_dim", "beta", "seed")}
        (held_out,) = select("rows", prior="normal", **where)
        assert row["test_elbo"] < held_out["log_prob"] + 0.05
        assert 0 <= row["mutual_information"] <= row["log_n"] + 4 * row["mutual_information_stderr"] + 1e-9
        parts = row["mutual_information"] + row["marginal_kl"]
        assert parts == pytest.approx(row["rate"], rel=0.03)
        train = {r["prior"]: r["log_prob"] for r in select("training", **where)}
        assert train["leave_one_out"] < train["q_agg"] + 0.05
