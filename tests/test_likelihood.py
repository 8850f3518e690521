"""Importance sampling against closed forms (probabilistic PCA), quadrature and its own promises."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Laplace, MultivariateNormal, Normal

from vaebook import likelihood
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import iwae_bound, quadrature_log_prob
from vaebook.data import binarize, digits
from vaebook.likelihood import importance_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior, fit_gmm
from vaebook.training import fit


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def digit_model(dim):
    split = digits()
    model = PPCA.fit(split.train, dim)
    return model, model.aggregated_posterior(split.train), split.test[:40].double()


def agrees(estimate, exact, *, worst=5.0):
    """Errors as the standard errors say; a rare heavy weight may make a single one look better than it is."""
    error = (estimate.log_prob - exact).abs()
    return bool((error < worst * estimate.stderr.clamp_min(estimate.stderr.median())).all())


@pytest.mark.parametrize("dim", [1, 2, 8, 16])
def test_closed_forms_of_ppca(dim):
    model, q_agg, x = digit_model(dim)
    under_prior = importance_log_prob(model, x, 1000, generator=rng())
    under_q_agg = importance_log_prob(model, x, 1000, prior=q_agg, generator=rng())
    assert agrees(under_prior, model.log_prob(x))
    assert agrees(under_q_agg, model.log_prob_under(q_agg, x))
    assert not agrees(under_q_agg, model.log_prob(x))  # it can tell them apart
    assert float(under_prior.stderr.max()) < 0.1
    assert float(under_prior.effective_samples.median()) > 500


def test_gaussian_mixture_with_full_covariances():
    model, q_agg, x = digit_model(4)
    prior = fit_gmm(q_agg, 5, num_samples=3000)
    weight = model.weight
    covariance = weight @ prior.scale_tril @ prior.scale_tril.mT @ weight.T
    covariance = covariance + model.noise_variance * torch.eye(len(weight))
    parts = MultivariateNormal(prior.loc @ weight.T + model.mean, covariance)
    exact = (prior.weight.log() + parts.log_prob(x[:, None])).logsumexp(1)
    assert agrees(importance_log_prob(model, x, 1000, prior=prior, generator=rng()), exact)


@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 0.3), (1.0, 1.0), (0.5, 3.0)])
def test_a_poor_encoder_does_no_harm(shift, stretch):
    model, q_agg, x = digit_model(8)

    def encoder(x):
        q = model.posterior(x).base_dist
        return Independent(Normal(q.loc + shift, q.scale * stretch), 1)

    vae = SimpleNamespace(encoder=encoder, decoder=model.decoder, prior=model.prior)
    exact = model.log_prob(x)
    assert agrees(importance_log_prob(vae, x, 1000, generator=rng()), exact)
    assert float((iwae_bound(vae, x, 1000, generator=rng()) - exact).mean()) < -0.3
    assert agrees(importance_log_prob(vae, x, 1000, prior=q_agg, generator=rng()), model.log_prob_under(q_agg, x))


@pytest.fixture(scope="module")
def trained():
    generator = rng()
    x, test = binarize(digits().train[:300], generator).double(), binarize(digits().test[:8], generator).double()
    encoder, decoder = GaussianEncoder(64, 2, (32,)).double(), BernoulliDecoder(2, 64, (32,)).double()
    vae = VAE(encoder, decoder, StandardNormal(2).double())
    fit(vae, x, num_epochs=60, batch_size=50, learning_rate=5e-3, beta=0.3, generator=generator, progress=False)
    return vae, x, test


def test_quadrature_of_a_trained_vae_under_every_prior(trained):
    vae, x, test = trained
    q_agg = aggregated_posterior(vae.encoder, x)
    priors = [vae.prior, q_agg, fit_gmm(q_agg, 5), VampPrior(vae.encoder, x[:20]), ExemplarPrior(vae.encoder, x, 0.3)]
    for prior in priors:
        exact = quadrature_log_prob(vae.decoder, prior, test, limit=12.0, tolerance=1e-3)
        estimate = importance_log_prob(vae, test, 2000, prior=prior, generator=rng())
        assert agrees(estimate, exact), type(prior).__name__
        assert float(estimate.stderr.max()) < 0.2, type(prior).__name__


def test_estimates_of_p_are_unbiased_and_their_errors_as_large_as_stated():
    model, q_agg, x = digit_model(4)
    q_agg = DiagGaussianMixture(q_agg.loc[:200], q_agg.scale[:200])
    runs = importance_log_prob(model, x[:1].expand(500, -1), 20, prior=q_agg, generator=rng())
    error = runs.log_prob - model.log_prob_under(q_agg, x[:1])
    ratio = error.exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))
    assert 0.8 < float(runs.stderr.square().mean().sqrt() / error.std()) < 1.25


def test_the_samples_of_the_fit_are_not_used_again(monkeypatch):
    """Unbiased whatever the fit does: also if it is made of four samples."""
    monkeypatch.setattr(likelihood, "ROUND_SAMPLES", 4)
    monkeypatch.setattr(likelihood, "MIN_EFFECTIVE", 2)
    model, _, x = digit_model(2)
    error = importance_log_prob(model, x[:1].expand(800, -1), 2, generator=rng()).log_prob - model.log_prob(x[:1])
    ratio = error.exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))
    assert float(error.mean()) < -4 * float(error.std()) / math.sqrt(len(error))  # the logarithm is biased down


def test_more_samples_shrink_the_error_as_they_should():
    model, q_agg, x = digit_model(8)
    few, many = (importance_log_prob(model, x, num, prior=q_agg, generator=rng()) for num in (500, 4500))
    assert 2.2 < float(few.stderr.median() / many.stderr.median()) < 4.0
    assert 6 < float(many.effective_samples.median() / few.effective_samples.median()) < 12


def test_failure_shows(monkeypatch):
    """Without a fit, and with an encoder and a prior that miss the posterior, the effective number says so."""
    for name, value in (("NUM_POINTS", 1), ("CLIMBS", 1), ("ROUNDS", 0), ("PRIOR_DRAWS", 200)):
        monkeypatch.setattr(likelihood, name, value)
    model, _, x = digit_model(16)

    def encoder(x):
        return Independent(Normal(x.new_zeros(len(x), 16), x.new_full((len(x), 16), 0.1)), 1)

    def decoder(z):  # its slopes are hidden from the climb
        return Independent(Normal(model.decoder(z.round(decimals=1)).mean, math.sqrt(model.noise_variance)), 1)

    vae = SimpleNamespace(encoder=encoder, decoder=decoder, prior=model.prior)
    estimate = importance_log_prob(vae, x, 100, generator=rng())
    assert float(estimate.effective_samples.median()) < 20
    assert float(estimate.effective_samples.min()) >= 1
    assert float(estimate.log_prob.mean()) < float(model.log_prob(x).mean()) - 1


class LaplacePrior:
    """A prior of one's own, with nothing but the two methods, whose draws are heavier than a Gaussian's."""

    latent_dim = 1

    def log_prob(self, z):
        return Laplace(0.0, 1.0).log_prob(z).sum(-1)

    def sample(self, sample_shape=(), *, generator=None):
        uniform = torch.rand(*sample_shape, 1, generator=generator, dtype=torch.float64) - 0.5
        return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def test_any_prior_with_density_and_sampler_will_do():
    def decoder(z):  # two maxima for every x
        return Independent(Normal(torch.cat([z.square(), z], -1), torch.tensor([0.2, 3.0]).double()), 1)

    def encoder(x):  # sees one of them
        return Independent(Normal(x[:, :1].clamp_min(0.01).sqrt(), torch.full_like(x[:, :1], 0.1)), 1)

    vae = SimpleNamespace(encoder=encoder, decoder=decoder)
    x = torch.tensor([[4.0, 0.0], [1.0, -1.0], [9.0, 1.0]], dtype=torch.float64)
    grid = torch.linspace(-30, 30, 600_001, dtype=torch.float64)[:, None]
    terms = decoder(grid[:, None]).log_prob(x) + LaplacePrior().log_prob(grid)[:, None]
    exact = terms.logsumexp(0) + math.log(1e-4)
    estimate = importance_log_prob(vae, x, 4000, prior=LaplacePrior(), generator=rng())
    assert agrees(estimate, exact)
    assert float(estimate.stderr.max()) < 0.05


def test_same_generator_same_values_and_no_global_state(trained):
    vae, _, test = trained
    before = torch.get_rng_state()
    one, two = (importance_log_prob(vae, test, 100, generator=rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.log_prob, importance_log_prob(vae, test, 100, generator=rng(4)).log_prob)


def test_single_precision_and_shapes(trained):
    vae, _, test = trained
    single = VAE(GaussianEncoder(64, 2, (32,)), BernoulliDecoder(2, 64, (32,)), StandardNormal(2))
    single.load_state_dict(vae.state_dict())
    fine = importance_log_prob(vae, test, 1500, generator=rng())
    rough = importance_log_prob(single, test.float(), 1500, generator=rng())
    assert rough.log_prob.dtype == torch.float64
    assert rough.log_prob.shape == rough.stderr.shape == rough.effective_samples.shape == (8,)
    assert not rough.log_prob.requires_grad
    spread = (fine.stderr.square() + rough.stderr.square()).sqrt()
    assert bool(((fine.log_prob - rough.log_prob).abs() < 5 * spread).all())


def test_a_constant_decoder_is_exact():
    """p(x|z) = p(x): what is left is the agreement of the prior's density and sampler."""
    logits = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def decoder(z):
        return Independent(Bernoulli(logits=logits.expand(*z.shape[:-1], 6)), 1)

    def encoder(x):
        return Independent(Normal(x[:, :2], torch.ones_like(x[:, :2])), 1)

    vae, x = SimpleNamespace(encoder=encoder, decoder=decoder, prior=StandardNormal(2)), torch.ones(3, 6).double()
    estimate = importance_log_prob(vae, x, 2000, generator=rng())
    assert agrees(estimate, Independent(Bernoulli(logits=logits), 1).log_prob(x))


def test_tempering_leaves_the_wanted_number_of_effective_samples():
    log_weight = (
        torch.randn(5, 1000, generator=rng(), dtype=torch.float64) * torch.tensor([0.0, 0.1, 1, 10, 100])[:, None]
    )
    tempered = likelihood._temper(log_weight, 50)
    effective = likelihood._effective(tempered)
    assert torch.equal(tempered[:2], log_weight[:2])  # enough as they are
    assert bool((effective >= 50).all())
    torch.testing.assert_close(effective[3:], torch.full((2,), 50.0, dtype=torch.float64), rtol=1e-2, atol=0)


class TestErrors:
    def vae(self):
        return VAE(GaussianEncoder(6, 2, (4,)), BernoulliDecoder(2, 6, (4,)), StandardNormal(2))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(6)}, ValueError, r"x: expected shape \(B, P\), got \(6,\)"),
            ({"x": torch.zeros(2, 5)}, ValueError, "x: expected shape"),
            ({"x": torch.full((2, 6), torch.nan)}, ValueError, "x: expected finite values"),
            ({"x": torch.zeros(2, 6).long()}, TypeError, "x: expected a floating-point tensor"),
            ({"num_samples": 1}, ValueError, "num_samples: expected an int at least 2, got 1"),
            ({"num_samples": 10.0}, TypeError, "num_samples: expected an int, got float"),
            ({"generator": 0}, TypeError, "generator: expected a torch.Generator or None, got int"),
            ({"prior": StandardNormal(3)}, ValueError, "prior: expected dimension 2, got 3"),
            (
                {"prior": DiagGaussianMixture(torch.zeros(1, 3), torch.ones(1, 3))},
                ValueError,
                "prior: expected dimension 2, got 3",
            ),
            ({"prior": "normal"}, TypeError, "prior: expected an object with a method log_prob, got str"),
            ({"prior": SimpleNamespace(log_prob=len)}, TypeError, "prior: expected an object with a method sample"),
        ],
    )
    def test_bad_input(self, change, error, message):
        arguments = {"x": torch.zeros(2, 6), "num_samples": 10, "prior": None, "generator": rng()} | change
        with pytest.raises(error, match=message):
            importance_log_prob(self.vae(), arguments.pop("x"), arguments.pop("num_samples"), **arguments)

    def test_an_encoder_without_an_event_dimension(self):
        vae = SimpleNamespace(encoder=lambda x: Normal(x[:, :2], 1.0), decoder=None, prior=StandardNormal(2))
        with pytest.raises(TypeError, match=r"vae\.encoder: expected it to return Independent"):
            importance_log_prob(vae, torch.zeros(2, 6), 10)
