"""PPCA against dense Gaussians, numerical integration and scikit-learn."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, MultivariateNormal, Normal

from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA
from vaebook.priors import GaussianMixture


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def toy(n=60, p=6, d=2, seed=0):
    """Correlated data with mean far from 0, and the model fitted to them."""
    x = normal(n, p, seed=seed) @ normal(p, p, seed=seed + 1) + 5
    return x, PPCA.fit(x, d)


def mixture(d, n=5, seed=3):
    return DiagGaussianMixture(
        2 * normal(n, d, seed=seed), normal(n, d, seed=seed + 1).exp(), normal(n, seed=seed + 2).log_softmax(0)
    )


def dense_covariance(model):
    return (
        model.weight @ model.weight.T + model.noise_variance * torch.eye(len(model.mean), dtype=torch.float64)
    ).numpy()


def dense_under(q, model, x):
    """log sum_n w_n N(x; W mu_n + m, W S_n Wᵀ + s² I), with full P × P covariances."""
    w = model.weight.numpy()
    noise = model.noise_variance * np.eye(len(w))
    terms = [
        float(lw)
        + stats.multivariate_normal(w @ mu.numpy() + model.mean.numpy(), (w * s.numpy() ** 2) @ w.T + noise).logpdf(x)
        for lw, mu, s in zip(q.log_weight, q.loc, q.scale, strict=True)
    ]
    return logsumexp(np.stack(terms), 0)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_prob_is_the_dense_gaussian(d):
    x, model = toy(d=d)
    expected = stats.multivariate_normal(model.mean.numpy(), dense_covariance(model)).logpdf(x.numpy())
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [1, 3, 5])
def test_fit_is_scikit_learns(d):
    x, model = toy(n=200, d=d)
    pca = PCA(n_components=d).fit(x.numpy())
    # scikit-learn divides by N - 1; everything it estimates as a variance is larger by N / (N - 1).
    np.testing.assert_allclose(dense_covariance(model), pca.get_covariance() * 199 / 200, atol=1e-10)
    np.testing.assert_allclose(model.noise_variance, pca.noise_variance_ * 199 / 200, rtol=1e-10)
    np.testing.assert_allclose(model.mean, pca.mean_, rtol=1e-13)


def test_fit_is_a_maximum():
    x, model = toy()
    best = model.log_prob(x).mean()
    for factor in (0.95, 1.05):
        assert PPCA(model.mean, model.weight * factor, model.noise_variance).log_prob(x).mean() < best - 1e-5
        assert PPCA(model.mean, model.weight, model.noise_variance * factor).log_prob(x).mean() < best - 1e-5
        assert PPCA(model.mean * factor, model.weight, model.noise_variance).log_prob(x).mean() < best - 1e-5


def test_fit_makes_orthogonal_columns_of_known_sign():
    x, model = toy(d=4)
    gram = model.weight.T @ model.weight
    assert (gram - torch.diag(gram.diag())).abs().max() < 1e-12
    assert bool((gram.diag().diff() < 0).all())
    largest = model.weight.abs().argmax(0)
    assert bool((model.weight[largest, torch.arange(4)] > 0).all())
    torch.testing.assert_close(PPCA.fit(x.flip(0), 4).weight, model.weight, rtol=0, atol=1e-11)


def test_posterior_is_the_general_formula():
    x, model = toy(d=3)
    m = model.weight.T @ model.weight + model.noise_variance * torch.eye(3, dtype=torch.float64)
    covariance = model.noise_variance * torch.linalg.inv(m)
    q = model.posterior(x)
    assert isinstance(q, Independent)
    assert isinstance(q.base_dist, Normal)
    assert (q.batch_shape, q.event_shape) == ((60,), (3,))
    torch.testing.assert_close(q.mean, (x - model.mean) @ model.weight @ torch.linalg.inv(m), rtol=0, atol=1e-10)
    for variance in q.variance:
        torch.testing.assert_close(torch.diag(variance), covariance, rtol=0, atol=1e-10)


def test_bayes_rule_holds_at_every_z():
    x, model = toy(d=2)
    z = 2 * normal(60, 2, seed=9)
    joint = model.likelihood(z).log_prob(x) + model.prior.log_prob(z)
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_prob(x), rtol=0, atol=1e-10)
    assert model.encoder(x).mean.equal(model.posterior(x).mean)
    assert model.decoder(z).mean.equal(model.likelihood(z).mean)


@pytest.mark.parametrize("d", [1, 2])
def test_log_prob_under_is_the_integral(d):
    """By numerical integration of p(x|z) q(z), which uses neither W's orthogonality nor a mixture of x."""
    x, model = toy(d=d)
    q = mixture(d, n=3)
    axis = torch.linspace(-18, 18, 20_001 if d == 1 else 901, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
    log_q = q.log_prob(z)
    values = [
        (model.likelihood(z).log_prob(row) + log_q).logsumexp(0) + d * math.log(axis[1] - axis[0]) for row in x[:4]
    ]
    torch.testing.assert_close(model.log_prob_under(q, x[:4]), torch.stack(values), rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_prob_under_is_the_dense_mixture(d):
    x, model = toy(d=d)
    q = mixture(d)
    np.testing.assert_allclose(model.log_prob_under(q, x), dense_under(q, model, x.numpy()), rtol=0, atol=1e-10)


def test_log_prob_under_the_prior_is_log_prob():
    x, model = toy(d=3)
    torch.testing.assert_close(model.log_prob_under(model.prior, x), model.log_prob(x), rtol=0, atol=1e-11)


def test_decoded_aggregated_posterior_is_dense_too_and_not_the_model():
    x, model = toy(d=2)
    q = model.aggregated_posterior(x)
    assert (q.num_components, q.loc.shape[1]) == (60, 2)
    p_agg = model.log_prob_under(q, x)
    np.testing.assert_allclose(p_agg, dense_under(q, model, x.numpy()), rtol=0, atol=1e-10)
    assert float((p_agg - model.log_prob(x)).abs().max()) > 0.01  # the falsehood p_agg = p_theta


def test_leave_one_out_is_the_mixture_of_the_others():
    x, model = toy(n=12, d=2)
    q = model.aggregated_posterior(x)
    got = model.log_prob_under(q, x, leave_out_index=torch.arange(12))
    for i in range(12):
        others = model.aggregated_posterior(torch.cat([x[:i], x[i + 1 :]]))
        torch.testing.assert_close(got[i], model.log_prob_under(others, x[i]), rtol=0, atol=1e-10)
    assert bool((got < model.log_prob_under(q, x)).all())  # a datum's own component is its best


def test_a_latent_without_effect():
    """A zero column of W: p(x) is that of the model without it, and its posterior is its prior."""
    x, model = toy(d=2)
    dead = PPCA(model.mean, torch.cat([model.weight, torch.zeros(6, 1)], 1), model.noise_variance)
    torch.testing.assert_close(dead.log_prob(x), model.log_prob(x), rtol=0, atol=1e-11)
    q = mixture(3)
    np.testing.assert_allclose(dead.log_prob_under(q, x), dense_under(q, dead, x.numpy()), rtol=0, atol=1e-10)
    assert torch.equal(dead.posterior(x).mean[:, 2], torch.zeros(60, dtype=torch.float64))
    assert torch.equal(dead.posterior(x).stddev[:, 2], torch.ones(60, dtype=torch.float64))


def test_sampled_model_has_the_density():
    model = toy(d=2)[1]
    z = normal(200_000, 2, seed=5)
    noise = math.sqrt(model.noise_variance) * normal(200_000, 6, seed=6)
    drawn = model.likelihood(z).mean + noise
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * dense_covariance(model))[1]
    log_prob = model.log_prob(drawn)
    assert abs(float(log_prob.mean()) + entropy) < 4 * math.sqrt(3 / 200_000)  # Var log p = P / 2


def test_leading_shapes_and_dtype():
    x, model = toy(d=2)
    single = x.float()
    assert model.log_prob(single).dtype == torch.float64
    for got in (model.log_prob(x.reshape(3, 20, 6)), model.log_prob_under(mixture(2), x.reshape(3, 20, 6))):
        assert got.shape == (3, 20)
    assert model.log_prob(x[0]).shape == ()
    assert model.likelihood(torch.zeros(7, 3, 2)).batch_shape == (7, 3)
    assert repr(model).startswith("PPCA(data_dim=6, latent_dim=2, noise_variance=")


def test_digits_with_constant_pixels():
    """Three pixels of the digits never change: their variance is 0, yet the noise variance is not."""
    x = torch.as_tensor(load_digits().data, dtype=torch.float64) / 16
    assert int((x.var(0) == 0).sum()) == 3
    model = PPCA.fit(x, 16)
    expected = stats.multivariate_normal(model.mean.numpy(), dense_covariance(model)).logpdf(x.numpy())
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"latent_dim: expected at most 60 \(the data have rank 61\), got 61"):
        PPCA.fit(x, 61)


@pytest.mark.parametrize("d", [3, 4, 6])
def test_no_noise_variance_is_an_error(d):
    x = normal(50, 3) @ normal(3, 6, seed=1)  # rank 3 in 6 dimensions
    assert PPCA.fit(x, 2).noise_variance > 0
    with pytest.raises(ValueError, match=rf"expected at most 2 \(the data have rank 3\), got {d}, .*no noise variance"):
        PPCA.fit(x, d)


def test_rotated_weight_is_rejected_with_a_remedy_that_works():
    x, model = toy(d=2)
    c, s = math.cos(0.3), math.sin(0.3)
    rotated = model.weight @ torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weight: expected orthogonal columns, got two with cosine .*svd"):
        PPCA(model.mean, rotated, model.noise_variance)
    u, scale, _ = torch.linalg.svd(rotated, full_matrices=False)
    remedied = PPCA(model.mean, u * scale, model.noise_variance)
    torch.testing.assert_close(remedied.log_prob(x), model.log_prob(x), rtol=0, atol=1e-10)


ZERO, WEIGHT = torch.zeros(2), torch.tensor([[2.0], [0.0]])
MODEL = PPCA(ZERO, WEIGHT, 1.0)
PRIOR = DiagGaussianMixture(torch.zeros(2, 1), torch.ones(2, 1))


def elsewhere():
    """MODEL on another device: on a machine without accelerator only "meta" is one."""
    model = copy.copy(MODEL)
    model.mean, model.weight = model.mean.to("meta"), model.weight.to("meta")
    return model


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "mean: expected a torch.Tensor", lambda: PPCA([0.0], WEIGHT, 1.0)),
        (ValueError, r"mean: expected shape \(P,\), got \(1, 2\)", lambda: PPCA(ZERO[None], WEIGHT, 1.0)),
        (ValueError, r"weight: expected shape \(2, D\), got \(3, 1\)", lambda: PPCA(ZERO, torch.ones(3, 1), 1.0)),
        (ValueError, "weight: expected finite", lambda: PPCA(ZERO, WEIGHT * math.inf, 1.0)),
        (ValueError, "noise_variance: expected a number > 0", lambda: PPCA(ZERO, WEIGHT, 0.0)),
        (TypeError, "noise_variance: expected a number, got Tensor", lambda: PPCA(ZERO, WEIGHT, torch.ones(2))),
        (ValueError, "weight: expected at most 2 columns, got 3", lambda: PPCA(ZERO, torch.ones(2, 3), 1.0)),
        (ValueError, r"x: expected shape \(N, P\), got \(4,\)", lambda: PPCA.fit(torch.ones(4), 1)),
        (TypeError, "x: expected a floating-point", lambda: PPCA.fit(torch.ones(4, 2, dtype=torch.long), 1)),
        (ValueError, "x: expected finite", lambda: PPCA.fit(torch.full((4, 2), math.nan), 1)),
        (ValueError, "x: expected at least one element", lambda: PPCA.fit(torch.ones(0, 2), 1)),
        (ValueError, "no noise variance", lambda: PPCA.fit(torch.ones(4, 2), 1)),
        (ValueError, "no noise variance", lambda: PPCA.fit(torch.ones(1, 2), 1)),
        (ValueError, "latent_dim: expected an int at least 1", lambda: PPCA.fit(torch.eye(4), 0)),
        (TypeError, "latent_dim: expected an int, got float", lambda: PPCA.fit(torch.eye(4), 1.0)),
        (ValueError, r"x: expected shape \(..., 2\)", lambda: MODEL.log_prob(torch.ones(4, 3))),
        (ValueError, "x: expected finite", lambda: MODEL.log_prob(torch.tensor([[math.nan, 0]]))),
        (ValueError, r"x: expected shape \(..., 2\)", lambda: MODEL.posterior(torch.ones(4, 3))),
        (ValueError, "x: expected all arguments on one device", lambda: elsewhere().posterior(torch.ones(4, 2))),
        (ValueError, "z: expected all arguments on one device", lambda: elsewhere().likelihood(torch.ones(4, 1))),
        (ValueError, "q_z: expected all arguments on", lambda: elsewhere().log_prob_under(PRIOR, ZERO)),
        (ValueError, r"z: expected shape \(..., 1\)", lambda: MODEL.likelihood(torch.ones(4, 3))),
        (TypeError, "z: expected a torch.Tensor", lambda: MODEL.likelihood(0.0)),
        (ValueError, r"x: expected shape \(N, 2\), got \(2,\)", lambda: MODEL.aggregated_posterior(ZERO)),
        (
            TypeError,
            "q_z: expected a mixture of Gaussians, got Independent",
            lambda: MODEL.log_prob_under(Independent(Laplace(torch.zeros(1), torch.ones(1)), 1), ZERO),
        ),
        (TypeError, "q_z: expected a torch distribution", lambda: MODEL.log_prob_under(3, ZERO)),
        (
            ValueError,
            r"q_z's draws: expected shape \(1, D\), got \(1,\)",
            lambda: MODEL.log_prob_under(Normal(0.0, 1.0), ZERO),
        ),
        (
            ValueError,
            "q_z: expected dimension 1, got 2",
            lambda: MODEL.log_prob_under(DiagGaussianMixture(torch.ones(2, 2), torch.ones(2, 2)), ZERO),
        ),
        (
            TypeError,
            "index: expected a tensor of dtype torch.int64",
            lambda: MODEL.log_prob_under(PRIOR, ZERO, leave_out_index=torch.tensor(0.0)),
        ),
        (ValueError, "index: expected", lambda: MODEL.log_prob_under(PRIOR, ZERO, leave_out_index=torch.tensor(2))),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_fit_of_small_data_is_the_fit_of_large_ones_scaled():
    x, model = toy(n=50, d=2)
    small = PPCA.fit(0.01 * x, 2)
    torch.testing.assert_close(small.weight, 0.01 * model.weight, rtol=1e-9, atol=1e-12)
    assert small.noise_variance == pytest.approx(1e-4 * model.noise_variance, rel=1e-9)


@pytest.mark.parametrize("exponent", [-150, -100, 100, 150])
def test_fit_of_tiny_and_of_huge_data_is_the_same_scaled(exponent):
    x, model = toy(n=50, d=2)
    scaled = PPCA.fit(x * 10.0**exponent, 2)
    torch.testing.assert_close(scaled.weight / 10.0**exponent, model.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scaled.mean / 10.0**exponent, model.mean, rtol=1e-12, atol=0)
    assert scaled.noise_variance / 10.0**exponent / 10.0**exponent == pytest.approx(model.noise_variance, rel=1e-9)
    density = scaled.log_prob(x * 10.0**exponent) + 6 * exponent * math.log(10)
    torch.testing.assert_close(density, model.log_prob(x), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-320, 1e-200, 1e200, 1e307])
def test_data_whose_variance_is_no_number_are_refused(factor):
    x = toy(n=50, d=2)[0] * factor
    with pytest.raises(ValueError, match=r"^x: expected variances that are float64 numbers, got values up to") as told:
        PPCA.fit(x, 2)
    largest = float(str(told.value).rpartition(" ")[2])
    assert float(x.abs().max()) <= 1.001 * largest <= 2.01 * float(x.abs().max())  # the next power of two


def test_torchs_mixtures_take_the_place_of_the_prior_too():
    x, model = toy(d=2)
    q, full = mixture(2), full_mixture(2)
    for ours, parts, weight in (
        (q, Independent(Normal(q.loc, q.scale), 1), q.log_weight),
        (full, MultivariateNormal(full.loc, scale_tril=full.scale_tril), full.weight.log()),
    ):
        torchs = MixtureSameFamily(Categorical(logits=weight), parts)
        torch.testing.assert_close(model.log_prob_under(torchs, x), model.log_prob_under(ours, x), rtol=0, atol=1e-11)
    one = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    torch.testing.assert_close(model.log_prob_under(one, x), model.log_prob(x), rtol=0, atol=1e-11)


def test_constant_data_have_rank_zero():
    with pytest.raises(ValueError, match=r"^latent_dim: expected at most 0 \(the data have rank 0\), got 1, which"):
        PPCA.fit(torch.ones(4, 3), 1)


def full_mixture(d, n=4, seed=7):
    tril = torch.tril(normal(n, d, d, seed=seed))
    tril.diagonal(dim1=1, dim2=2).abs_().add_(0.2)
    return GaussianMixture(normal(n, seed=seed).softmax(0), 2 * normal(n, d, seed=seed + 1), tril)


@pytest.mark.parametrize("d", [1, 3, 5])
def test_log_prob_under_a_mixture_with_full_covariances_is_dense(d):
    x, model = toy(d=d)
    q, w = full_mixture(d), model.weight.numpy()
    noise = model.noise_variance * np.eye(len(w))
    terms = [
        math.log(weight)
        + stats.multivariate_normal(w @ mu + model.mean.numpy(), w @ lower @ lower.T @ w.T + noise).logpdf(x.numpy())
        for weight, mu, lower in zip(q.weight.tolist(), q.loc.numpy(), q.scale_tril.numpy(), strict=True)
    ]
    np.testing.assert_allclose(model.log_prob_under(q, x), logsumexp(np.stack(terms), 0), rtol=0, atol=1e-10)


def test_full_and_diagonal_mixtures_agree_where_both_apply():
    x, model = toy(d=3)
    q = mixture(3)
    same = GaussianMixture(q.log_weight.exp(), q.loc, torch.diag_embed(q.scale))
    np.testing.assert_allclose(model.log_prob_under(same, x), model.log_prob_under(q, x), rtol=0, atol=1e-11)
    with pytest.raises(TypeError, match=r"^leave_out_index: expected None at full covariance, got Tensor$"):
        model.log_prob_under(same, x, leave_out_index=torch.zeros(len(x), dtype=torch.long))
    with pytest.raises(ValueError, match=r"^q_z: expected dimension 3, got 2"):
        model.log_prob_under(full_mixture(2), x)


@pytest.mark.parametrize("cosine", [1e-12, 1e-6])
def test_columns_are_orthogonal_but_for_rounding(cosine):
    weight = torch.tensor([[1.0, cosine], [0.0, 1.0]], dtype=torch.float64)
    if cosine < 1e-9:
        PPCA(torch.zeros(2).double(), weight, noise_variance=1.0)
    else:
        with pytest.raises(ValueError, match="weight: expected orthogonal columns, got two with cosine 1e-06"):
            PPCA(torch.zeros(2).double(), weight, noise_variance=1.0)


def test_a_model_has_no_gradients():
    mean, weight = torch.zeros(2, requires_grad=True), torch.eye(2, 1, requires_grad=True)
    model = PPCA(mean, weight, noise_variance=1.0)
    x = torch.ones(3, 2)
    assert not model.log_prob(x).requires_grad and not model.posterior(x).mean.requires_grad


@pytest.mark.parametrize("dim", [1, 2])
def test_data_that_are_alike_in_all_directions_are_fitted(dim):
    """Eigenvalues that are equal but for rounding leave a weight of nearly nothing, and no number that is none."""
    x = (
        torch.cat([torch.eye(3), -torch.eye(3)]).double()
        @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    )
    model = PPCA.fit(x, dim)
    assert bool(model.weight.isfinite().all()) and float(model.weight.abs().max()) < 1e-6
    assert model.noise_variance == pytest.approx(1 / 3)


@pytest.mark.parametrize("x", [iter([]), [["a"]], 3, "data", [torch.zeros(2, 3), torch.zeros(2, 4)]])
def test_data_in_batches_that_cannot_be_taken_are_named(x):
    with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
        PPCA.fit(x, 1)


def test_every_component_of_an_aggregated_posterior_has_a_scale_of_its_own():
    x, model = toy(n=5)
    q_agg = model.aggregated_posterior(x)
    q_agg.scale[0] = 9.0
    assert float(q_agg.scale[0].min()) == 9 and float(q_agg.scale[1:].max()) < 1
