"""Agreement of the likelihoods: closed form by numpy alone, slices of both tables drawn anew, and what follows."""

import math

import numpy as np
import pytest
import torch
from agreement import CONFIG, by_importance, closed_form, findings, first_order_bias, library, wrong_encoder
from harness import read_result
from scipy import stats
from sklearn.datasets import load_digits

from vaebook.data import digits
from vaebook.ppca import PPCA

RESULT = read_result("agreement", CONFIG)
OWN = {(row["D"], row["seed"]): row for row in RESULT["closed_form"]}
OTHER = {(row["loss"], row["seed"]): row for row in RESULT["library"]}
LARGE = 4.5
"""Standard errors that chance hardly exceeds, for all rows together."""


def held_out(seed):
    order = np.random.RandomState(0).permutation(1797)  # the book's fixed order
    x = (load_digits().data / 16)[order]
    train, test = x[:1297], x[-len(digits().test) :]
    return train, test[torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[: CONFIG["num_data"]]]


def test_every_row_is_there():
    assert OWN.keys() == {(d, s) for d in CONFIG["dims"] for s in CONFIG["seeds"]}
    assert OTHER.keys() == {(name, s) for name in CONFIG["losses"] for s in CONFIG["seeds"]}
    for name, rows in (("closed_form", OWN), ("pythae", OTHER)):
        made = findings(list(rows.values()))
        for estimator, values in made.items():
            assert RESULT["findings"][name][estimator] == pytest.approx(values, rel=1e-4), name


def test_all_agree_within_their_errors():
    biased = RESULT["findings"]["pythae"]["importance"]
    for values in (each for part in RESULT["findings"].values() for each in part.values() if each is not biased):
        assert values["largest_errors"] < LARGE
        assert 0.3 < values["rms_errors"] < 2  # errors that were far too large would hide a fault


def test_a_bound_is_below_and_comes_nearer_with_more_samples():
    assert all(row["importance_errors"] > -LARGE for row in OTHER.values())
    found = RESULT["findings"]["pythae"]
    assert abs(found["importance_more"]["mean"]) < abs(found["importance"]["mean"])


@pytest.mark.parametrize(("dim", "seed"), [(2, 0), (16, 3)])
def test_exact_values_with_numpy_alone(dim, seed):
    train, x = held_out(seed)
    value, vector = np.linalg.eigh(np.cov(train.T, bias=True))
    noise = value[:-dim].mean()
    weight = vector[:, -dim:] * np.sqrt(value[-dim:] - noise)
    exact = stats.multivariate_normal(train.mean(0), weight @ weight.T + noise * np.eye(64)).logpdf(x).mean()
    assert OWN[dim, seed]["exact"] == pytest.approx(exact, abs=1e-4)


def test_expected_bias_by_quadrature():
    u = np.linspace(-12, 12, 20_001)
    p, q = stats.norm.pdf(u), stats.norm.pdf(u, CONFIG["shift"], CONFIG["widening"])
    second = np.trapezoid(p**2 / q, u)
    for dim in CONFIG["dims"]:
        bias = -(second**dim - 1) / (2 * CONFIG["num_samples"])
        assert first_order_bias(dim) == pytest.approx(bias, rel=1e-6)
        assert OWN[dim, 0]["bound_expected"] == pytest.approx(bias, rel=1e-5)


def test_closed_form_with_other_draws():
    row, again = OWN[8, 1], closed_form(8, 1)
    assert again["exact"] == pytest.approx(row["exact"], abs=1e-4)
    vae = wrong_encoder(PPCA.fit(digits().train, 8))
    value, error = by_importance(vae, torch.as_tensor(held_out(1)[1]), 99)
    assert abs(value - row["exact"]) < LARGE * error


@pytest.mark.parametrize("loss", CONFIG["losses"])
def test_the_library_again(loss):
    """Where it is installed: the same model, trained again, scored with fewer repeats."""
    pytest.importorskip("pythae", reason="pythae is not installed")
    row, again = OTHER[loss, 2], library(loss, 2, repeats=3)
    error = math.hypot(row["pythae_stderr"], again["pythae_stderr"])
    assert abs(again["pythae"] - row["pythae"]) < 2 * LARGE * error  # of three repeats, an error is rough
    assert abs(again["pythae"] + again["bound"] - row["pythae"] - row["bound"]) < 2 * LARGE * error
    ours, stored = (each["pythae"] + each["importance"] for each in (again, row))
    assert ours == pytest.approx(stored, abs=0.03)
