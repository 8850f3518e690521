"""The pPCA table comes out again by another route: numpy and scipy alone, with dense Gaussians over the pixels."""

import numpy as np
import pytest
from harness import read_result
from ppca import CONFIG, findings, summary
from scipy import linalg
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

RESULT = read_result("ppca", CONFIG)
ROWS = {(row["split"], row["D"]): row for row in RESULT["rows"]}


def split_of(split):
    x = load_digits().data / 16
    order = np.random.RandomState(0).permutation(len(x))  # the book's fixed order
    if split != "fixed":
        order = order[np.random.RandomState(split).permutation(len(x))]
    return x[order[:1297]], x[order[1297:]]


def log_gaussian(x, loc, covariance):
    """All pairs (B, N): density of x under Gaussians of one covariance."""
    root = linalg.cholesky(covariance, lower=True)
    a, b = (linalg.solve_triangular(root, rows.T, lower=True) for rows in (x, loc))
    distance = (a**2).sum(0)[:, None] + (b**2).sum(0) - 2 * a.T @ b
    return -0.5 * (distance + x.shape[1] * np.log(2 * np.pi)) - np.log(np.diag(root)).sum()


def model_of(train, dim):
    """Maximum likelihood: weights (P, D), mean, noise variance; and the encoder's means and common covariance."""
    mean = train.mean(0)
    value, vector = np.linalg.eigh(np.cov(train.T, bias=True))
    value, vector = value[::-1], vector[:, ::-1]
    noise = value[dim:].mean()
    weight = vector[:, :dim] * np.sqrt(value[:dim] - noise)
    inverse = np.linalg.inv(weight.T @ weight + noise * np.eye(dim))
    return weight, mean, noise, (train - mean) @ weight @ inverse, noise * inverse


@pytest.mark.parametrize(("split", "dim"), [("fixed", 2), ("fixed", 16), ("fixed", 32), (0, 24), (7, 28)])
def test_log_likelihoods_with_numpy_alone(split, dim):
    train, held_out = split_of(split)
    weight, mean, noise, codes, posterior = model_of(train, dim)
    pixels = noise * np.eye(64)
    decoded, spread = codes @ weight.T + mean, weight @ posterior @ weight.T + pixels
    all_pairs = log_gaussian(train, decoded, spread)
    others = np.where(np.eye(len(train), dtype=bool), -np.inf, all_pairs)
    prior = {
        name: log_gaussian(x, mean[None], weight @ weight.T + pixels)[:, 0]
        for name, x in (("train", train), ("held_out", held_out))
    }
    q_agg = logsumexp(log_gaussian(held_out, decoded, spread), axis=1) - np.log(len(train))
    loo = logsumexp(others, axis=1) - np.log(len(train) - 1)
    expected = {
        "prior": prior["held_out"],
        "q_agg": q_agg,
        "train_prior": prior["train"],
        "train": logsumexp(all_pairs, axis=1) - np.log(len(train)),
        "loo": loo,
        "gain": q_agg - prior["held_out"],
        "predicted_gain": loo - prior["train"],
    }
    for name, values in expected.items():
        assert ROWS[split, dim][name] == pytest.approx(values.mean(), abs=1e-4), name
    for name in ("gain", "predicted_gain"):
        error = expected[name].std(ddof=1) / np.sqrt(len(expected[name]))
        assert ROWS[split, dim][f"{name}_stderr"] == pytest.approx(error, abs=1e-4)


def test_rate_and_information():
    """The rate in closed form; with other draws, I and the mismatch within their errors."""
    train, _ = split_of("fixed")
    _, _, _, codes, posterior = model_of(train, 16)
    row, variance = ROWS["fixed", 16], np.diag(posterior)
    rate = 0.5 * ((codes**2).sum(1).mean() + (variance - 1 - np.log(variance)).sum())
    assert row["rate"] == pytest.approx(rate, abs=1e-4)
    index = np.random.RandomState(5).randint(len(codes), size=2000)
    z = codes[index] + np.random.RandomState(6).randn(2000, 16) * np.sqrt(variance)
    pairs = log_gaussian(z, codes, posterior)
    told = pairs[np.arange(2000), index] - (logsumexp(pairs, axis=1) - np.log(len(codes)))
    error = np.hypot(told.std() / 2000**0.5, row["information_stderr"])
    assert abs(row["information"] - told.mean()) < 4.5 * error
    assert row["information"] + row["marginal_kl"] == pytest.approx(rate, abs=4.5 * row["marginal_kl_stderr"])


def test_a_mixture_fitted_anew_does_as_well():
    """Other draws and another start give another mixture, of about the same quality."""
    train, held_out = split_of("fixed")
    weight, mean, noise, codes, posterior = model_of(train, 16)
    random, pixels = np.random.RandomState(1), noise * np.eye(64)
    z = codes[random.randint(len(codes), size=10_000)]
    z += random.multivariate_normal(np.zeros(16), posterior, size=10_000)
    gmm = GaussianMixture(10, reg_covar=1e-6, random_state=1).fit(z)
    parts = [
        np.log(share) + log_gaussian(held_out, (weight @ loc + mean)[None], weight @ spread @ weight.T + pixels)
        for share, loc, spread in zip(gmm.weights_, gmm.means_, gmm.covariances_, strict=True)
    ]
    value = logsumexp(np.concatenate(parts, 1), axis=1).mean()
    assert ROWS["fixed", 16]["gmm"] == pytest.approx(value, abs=0.6)


def test_the_rest_follows_from_the_rows():
    rows = RESULT["rows"]
    assert len(ROWS) == len(rows) == len(CONFIG["dims"]) * len(CONFIG["splits"])
    for stored, made in ((RESULT["findings"], findings(rows)), (RESULT["summary"], summary(rows))):
        for path, value in leaves(made):
            assert dict(leaves(stored))[path] == pytest.approx(value, rel=1e-3, abs=1e-4), path


def leaves(value, path=""):
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}")]
    return [(path, value)]
