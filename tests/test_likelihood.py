"""Importance sampling against closed forms (probabilistic PCA), quadrature and its own promises."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    StudentT,
)

from vaebook import likelihood, proposals
from vaebook.adapters import adapt, adapt_vae
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import iwae_bound, quadrature_log_prob
from vaebook.data import binarize, digits
from vaebook.integrals import Joint
from vaebook.likelihood import importance_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior, fit_gmm, from_components
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


class Only:
    """A likelihood with nothing but its density."""

    def __init__(self, source):
        self.log_prob = source.log_prob


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
    with pytest.warns(UserWarning, match="expected 50 effective samples"):
        runs = importance_log_prob(model, x[:1].expand(500, -1), 20, prior=q_agg, generator=rng())
    error = runs.log_prob - model.log_prob_under(q_agg, x[:1])
    ratio = error.exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))
    assert 0.8 < float(runs.stderr.square().mean().sqrt() / error.std()) < 1.25


def test_the_samples_of_the_fit_are_not_used_again(monkeypatch):
    """Unbiased whatever the fit does: also if it is made of four samples."""
    monkeypatch.setattr(proposals.Sampler.__new__, "__defaults__", (proposals.STARTS, 4))
    monkeypatch.setattr(likelihood, "PRIOR_DRAWS", 256)  # which start the fit, for each of the 3,200
    model, _, x = digit_model(2)
    with pytest.warns(UserWarning, match="expected 50 effective samples, got fewer for 3200 of 3200 data"):
        runs = importance_log_prob(model, x[:1].expand(3200, -1), 2, generator=rng())
    error = runs.log_prob - model.log_prob(x[:1])
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
    monkeypatch.setattr(likelihood, "PRIOR_DRAWS", 200)
    monkeypatch.setattr(proposals, "ROUNDS", 0)
    monkeypatch.setattr(proposals.Sampler.__new__, "__defaults__", (1, proposals.ROUND_SAMPLES))
    monkeypatch.setattr(proposals, "STEPS", 1)
    model, _, x = digit_model(16)

    def encoder(x):
        return Independent(Normal(x.new_zeros(len(x), 16), x.new_full((len(x), 16), 0.1)), 1)

    def decoder(z):  # its slopes are hidden from the climb
        return Independent(Normal(model.decoder(z.round(decimals=1)).mean, math.sqrt(model.noise_variance)), 1)

    vae = SimpleNamespace(encoder=encoder, decoder=decoder, prior=model.prior)
    with pytest.warns(
        UserWarning, match=r"got fewer for 40 of 40 data, 1\.\d for the worst: their standard errors"
    ) as told:
        estimate = importance_log_prob(vae, x, 100, generator=rng())
    assert Path(told[0].filename) == Path(__file__)  # it points at the call
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

    vae = SimpleNamespace(encoder=encoder, decoder=decoder, prior=StandardNormal(1))
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
    tempered = proposals._temper(log_weight, 50)
    effective = proposals.effective_samples(tempered)
    assert torch.equal(tempered[:2], log_weight[:2])  # enough as they are
    assert bool((effective >= 50).all())
    torch.testing.assert_close(effective[3:], torch.full((2,), 50.0, dtype=torch.float64), rtol=1e-2, atol=0)


class TestErrors:
    def vae(self):
        return VAE(GaussianEncoder(6, 2, (4,)), BernoulliDecoder(2, 6, (4,)), StandardNormal(2))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(6)}, ValueError, r"x: expected shape \(N, ...\) .*, got \(6,\)"),
            ({"x": torch.zeros(2, 5)}, ValueError, "x: expected shape"),
            ({"x": torch.full((2, 6), torch.nan)}, ValueError, "x: expected finite values"),
            ({"x": torch.zeros(2, 6).long()}, TypeError, "x: expected a floating-point tensor, got dtype"),
            ({"x": "digits"}, TypeError, r"x: expected a tensor, array or iterable of batches \(DataLoader\), got str"),
            ({"num_samples": 1}, ValueError, "num_samples: expected an int between 2 and 1000000000, got 1"),
            ({"num_samples": 10**400}, ValueError, "num_samples: expected an int between 2 and 1000000000"),
            ({"num_samples": 10.0}, TypeError, "num_samples: expected an int, got float"),
            ({"generator": 0}, TypeError, "generator: expected a torch.Generator or None, got int"),
            ({"prior": StandardNormal(3)}, ValueError, "prior: expected dimension 2, got 3"),
            (
                {"prior": DiagGaussianMixture(torch.zeros(1, 3), torch.ones(1, 3))},
                ValueError,
                "prior: expected dimension 2, got 3",
            ),
            ({"prior": Normal(0.0, 1.0)}, ValueError, r"prior's draws: expected shape \(1, D\), got \(1,\)"),
            ({"prior": "normal"}, TypeError, "prior: expected a torch distribution over vectors, .* got str"),
            ({"prior": SimpleNamespace(log_prob=len)}, TypeError, "prior: expected a torch distribution .* and sample"),
        ],
    )
    def test_bad_input(self, change, error, message):
        arguments = {"x": torch.zeros(2, 6), "num_samples": 10, "prior": None, "generator": rng()} | change
        with pytest.raises(error, match=message):
            importance_log_prob(self.vae(), arguments.pop("x"), arguments.pop("num_samples"), **arguments)

    @pytest.mark.parametrize(
        ("parts", "error", "message"),
        [
            (
                {"encoder": lambda x: (x[:, :2], 0 * x[:, :2])},
                ValueError,
                "encoder's scale: expected positive .* min 0",
            ),
            ({"encoder": lambda x: (x[:, :2] / 0, 1 + x[:, :2])}, ValueError, "encoder's loc: expected finite values"),
            ({"encoder": lambda x: x}, TypeError, "encoder: expected it to return"),
            ({"decoder": None}, TypeError, "decoder: expected a callable, got NoneType"),
            ({"decoder": lambda z: z}, TypeError, "decoder: expected it to return a distribution of x, got Tensor"),
            ({"prior": None}, TypeError, "prior: expected|vae: expected|latent_shape"),
        ],
    )
    def test_bad_parts(self, parts, error, message):
        vae = self.vae()
        made = {"encoder": vae.encoder, "decoder": vae.decoder, "prior": vae.prior} | parts
        if made["prior"] is None:
            del made["prior"]
        with pytest.raises(error, match=message):
            importance_log_prob(SimpleNamespace(**made), torch.zeros(2, 6), 10)


def bernoulli_model(dim, num=24):
    generator = rng(dim)
    weight = torch.randn(dim, 60, generator=generator, dtype=torch.float64)
    decoder = lambda z: Independent(Bernoulli(logits=2 * (z @ weight)), 1)  # noqa: E731
    z = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    x = torch.bernoulli(decoder(z).mean, generator=generator)
    uninformed = lambda x: (torch.zeros(len(x), dim).double(), torch.ones(len(x), dim).double())  # noqa: E731
    return SimpleNamespace(encoder=uninformed, decoder=decoder, prior=StandardNormal(dim)), x


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_without_moments_as_good_as_with_them(dim):
    """For Bernoulli pixels the curvature of log p(x|z) is the Fisher information."""
    vae, x = bernoulli_model(dim)
    bare = SimpleNamespace(**vars(vae) | {"decoder": lambda z: Only(vae.decoder(z))})
    known, found = (importance_log_prob(model, x, 1000, generator=rng()) for model in (vae, bare))
    spread = (known.stderr.square() + found.stderr.square()).sqrt()
    assert bool(((known.log_prob - found.log_prob).abs() < 5 * spread).all())
    assert float((found.effective_samples / known.effective_samples).min()) > 0.8


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", ["heavy tails", "classes", "density only"])
def test_likelihoods_without_mean_and_variance(dim, name):
    vae, _ = bernoulli_model(dim)
    logits = lambda z: vae.decoder(z).base_dist.logits[:, :24]  # noqa: E731
    decoder = {
        "heavy tails": lambda z: Independent(StudentT(1.0, logits(z), 1.0), 1),
        "classes": lambda z: Independent(Categorical(logits=logits(z).reshape(-1, 8, 3)), 1),
        "density only": lambda z: Only(Independent(Normal(logits(z), 2.0), 1)),
    }[name]
    z = torch.linspace(-1.5, 1.5, 6 * dim, dtype=torch.float64).reshape(6, dim)
    x = logits(z) + 0.5 if name != "classes" else decoder(z).sample()
    exact = quadrature_log_prob(decoder, vae.prior, x, tolerance=1e-4)
    estimate = importance_log_prob(SimpleNamespace(**vars(vae) | {"decoder": decoder}), x, 1000, generator=rng())
    assert bool(((estimate.log_prob - exact).abs() < 5 * estimate.stderr).all())
    assert float(estimate.effective_samples.min()) > 500


def test_a_likelihood_that_is_not_concave_in_many_dimensions():
    vae, _ = bernoulli_model(8)
    decoder = lambda z: Independent(StudentT(1.0, vae.decoder(z).base_dist.logits, 0.5), 1)  # noqa: E731
    x = vae.decoder(torch.randn(24, 8, generator=rng(), dtype=torch.float64)).base_dist.logits + 0.2
    estimate = importance_log_prob(SimpleNamespace(**vars(vae) | {"decoder": decoder}), x, 1000, generator=rng())
    assert float(estimate.effective_samples.median()) > 100


@pytest.mark.parametrize(
    "rate",
    [
        lambda h: h.exp(),
        lambda h: (5 * h).exp(),
        lambda h: torch.nn.functional.softplus(h),
        lambda h: h.relu() + 1e-20,
        lambda h: h.square(),
        lambda h: h.relu(),
    ],
)
def test_untrained_rates(rate):
    """Rates that are next to nothing have means without bound; an estimate comes out, or one error of the decoder."""
    weight = torch.randn(2, 10, generator=rng())
    decoder = lambda z: Independent(Exponential(rate(z @ weight), validate_args=False), 1, validate_args=False)  # noqa: E731
    vae = SimpleNamespace(
        encoder=lambda x: (0.1 * x[:, :2], torch.full_like(x[:, :2], 0.5)), decoder=decoder, prior=StandardNormal(2)
    )
    x = -torch.rand(20, 10, generator=rng()).log()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = importance_log_prob(vae, x, 1000, generator=rng())
        again = importance_log_prob(vae, x, 1000, generator=rng(1))
    spread = (estimate.stderr.square() + again.stderr.square()).sqrt()
    sure = (estimate.effective_samples > 50) & (again.effective_samples > 50)
    assert bool(estimate.log_prob.isfinite().all()) and bool(estimate.stderr.isfinite().all())
    assert bool(((estimate.log_prob - again.log_prob).abs() < 5 * spread)[sure].all())


def test_a_decoder_that_refuses_its_own_prior_is_one_error():
    def decoder(z):
        return Independent(Exponential((1000 * z).exp()), 1)

    vae = SimpleNamespace(encoder=lambda x: (0 * x, 0.01 + 0 * x), decoder=decoder, prior=StandardNormal(2))
    with pytest.raises(ValueError, match=r"decoder: expected it to take a batch of shape .*rate"):
        importance_log_prob(vae, torch.ones(3, 2), 100, generator=rng())


def test_data_that_nothing_explains():
    def decoder(z):
        return SimpleNamespace(log_prob=lambda x: torch.where((x < 5).all(-1), -(x - z).square().sum(-1), -torch.inf))

    vae = SimpleNamespace(encoder=lambda x: (0 * x, 1 + 0 * x), decoder=decoder, prior=StandardNormal(1))
    x = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"got fewer for 1 of 2 data, 0\.0 for the worst"):
        estimate = importance_log_prob(vae, x, 500, generator=rng())
    assert [v[1].item() for v in estimate] == [-math.inf, math.inf, 0.0]
    assert abs(float(estimate.log_prob[0]) + 0.5 * math.log(3)) < 5 * float(estimate.stderr[0])


def test_enough_effective_samples_are_no_reason_to_warn():
    model, _, x = digit_model(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importance_log_prob(model, x, 200, generator=rng())


def sampler(log_likelihood, draws):
    """What chooses points, for data whose log p(x|z) is given as a function of z."""
    decoder = lambda z: SimpleNamespace(log_prob=lambda x: log_likelihood(z[:, 0]) + 0 * x[:, 0])  # noqa: E731
    vae = adapt(lambda x: (x, 1 + 0 * x), decoder, prior=StandardNormal(1))
    x = torch.zeros(400, 1, dtype=torch.float64)
    q = Normal(x, 1 + 0 * x)
    return proposals.Sampler(
        Joint(vae, x), q, from_components(*likelihood._moments(draws)), draws, lambda rows: draws[rows], rng()
    )


@pytest.mark.parametrize("gain", [0.0, 1.0, 3.0])
def test_points_are_chosen_by_chance_as_they_explain_a_datum(gain):
    """Draws left and right of 0, the latter better by so many nats: without chance only those would be chosen."""
    draws = torch.linspace(-2, 2, 2001, dtype=torch.float64)[:, None]
    points = sampler(lambda z: gain * (z > 0).double(), draws).good_points()[..., 0]
    assert all(len(row.unique()) == proposals.STARTS for row in points)
    share, expected = float((points > 0).double().mean()), 1 / (1 + math.exp(-gain))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / points.numel()) + 0.005
    assert abs(float(points[points > 0].mean()) - 1) < 0.05  # and all alike on one side


def test_both_of_two_explanations_are_found_when_one_is_a_little_better():
    def decoder(z):  # |z| = 2, a little easier to hit on the right
        return Independent(Normal(z.abs() + 0.02 * (z < 0), 0.05), 1)

    vae = SimpleNamespace(encoder=lambda x: (x, 0.02 + 0 * x), decoder=decoder, prior=StandardNormal(1))
    x = torch.full((20, 1), 2.0, dtype=torch.float64)
    exact = quadrature_log_prob(decoder, vae.prior, x, tolerance=1e-4)
    estimate = importance_log_prob(vae, x, 1000, generator=rng())
    assert bool(((estimate.log_prob - exact).abs() < 5 * estimate.stderr).all())
    assert float(estimate.stderr.max()) < 0.05


def test_training_mode_and_dropout_do_not_enter(trained):
    vae, _, test = trained
    noisy = torch.nn.Sequential(torch.nn.Dropout(0.5), vae.decoder)
    loud = SimpleNamespace(encoder=vae.encoder, decoder=noisy, prior=vae.prior)
    quiet = importance_log_prob(vae, test, 200, generator=rng())
    assert noisy.training
    torch.testing.assert_close(importance_log_prob(loud, test, 200, generator=rng()).log_prob, quiet.log_prob)
    assert noisy.training and noisy[0].training


def test_what_is_told_of_log_weights():
    """Against the definitions; and where all weights are 0, or one weight is all."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    with pytest.warns(UserWarning, match=r"expected 50 .* fewer for 4 of 4 data, 0\.0 for the worst"):
        found = likelihood._summarise(list(weight.double().log().split(3)))
    assert found.log_prob.exp().tolist() == pytest.approx([2.5, 0.0, 1.25, 2.0])
    assert found.effective_samples.tolist() == pytest.approx([100 / 30, 0.0, 1.0, 4.0])
    exact = float(weight[0].std()) / 2.5 / 2, math.inf, 2.5 / 1.25 / 2, 0.0
    assert found.stderr.tolist() == pytest.approx(exact, abs=1e-7)


def test_equal_weights_have_no_error_whichever_way_they_are_rounded():
    log_weight = torch.linspace(-300, 300, 200, dtype=torch.float64)[:, None].expand(200, 61)
    found = likelihood._summarise([log_weight])
    torch.testing.assert_close(found.stderr, torch.zeros(200).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.log_prob, log_weight[:, 0])


def codes(*places, scale=0.01):
    loc = torch.tensor(places, dtype=torch.float64)[:, None]
    return DiagGaussianMixture(loc, torch.full_like(loc, scale))


def test_draws_of_several_priors_are_in_equal_parts_and_leave_out_each_row_its_own():
    """Row 0 leaves out the code at 0, row 1 that at 5; a row of -1 leaves out none."""
    priors = {"far": codes(-50.0), "q_agg": codes(0.0, 5.0, 10.0)}
    pool = likelihood._Pool(priors, {"q_agg": torch.tensor([0, 1])}, rng())
    rows = torch.tensor([0, 1, -1]).repeat(2_000)
    z = pool.draw(rows).round()[:, 0]
    for row, places in ((0, (5.0, 10.0)), (1, (0.0, 10.0)), (-1, (0.0, 5.0, 10.0))):
        own = z[rows == row]
        assert set(own.tolist()) == {-50.0, *places}
        for place, share in [(-50.0, 0.5)] + [(place, 0.5 / len(places)) for place in places]:
            assert float((own == place).double().mean()) == pytest.approx(share, abs=0.05)
    assert pool.draw(rows[:0]).shape == (0, 1)
    at = torch.tensor([[[0.0]], [[5.0]]]).double()
    exact = torch.stack([codes(5.0, 10.0).log_prob(at[0]), codes(0.0, 10.0).log_prob(at[1])])
    torch.testing.assert_close(pool.log_prob(at), torch.logaddexp(exact, codes(-50.0).log_prob(at)) - math.log(2))
    first = pool.at(torch.tensor([1]))
    torch.testing.assert_close(first.log_prob(at[1:]), pool.log_prob(at)[1:])


def test_the_gaussians_of_several_priors_have_their_own_variances():
    """Of a full covariance the diagonal; of a prior without components the moments of the draws."""
    tril = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]]).double()
    full = from_components(torch.zeros(1).double(), torch.zeros(1, 2).double(), tril)
    draws = torch.randn(500, 2, generator=rng(), dtype=torch.float64) @ tril[0] + 4
    heavy = SimpleNamespace(sample=None, log_prob=None)
    two = likelihood._Pool({"full": full, "normal": StandardNormal(2)}, {}, None).gaussians(draws)
    torch.testing.assert_close(two.scale, torch.tensor([[1.0, 13**0.5], [1.0, 1.0]]).double())
    one = likelihood._Pool({"heavy": heavy}, {}, None).gaussians(draws)
    torch.testing.assert_close(one.loc[0], draws.mean(0))
    torch.testing.assert_close(one.scale_tril[0] @ one.scale_tril[0].mT, draws.mT.cov())


def test_laplaces_rule_is_exact_for_probabilistic_pca():
    """From any point one step leads to the posterior's mean; precisions and shares are those of the closed form."""
    ppca = PPCA(torch.zeros(3), torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), noise_variance=0.5)
    loc, scale = torch.tensor([[0.0, 0.0], [9.0, -9.0]]).double(), torch.tensor([[1.0, 0.5], [0.7, 2.0]]).double()
    prior = DiagGaussianMixture(loc, scale)
    x = torch.tensor([[1.0, 2.0, 3.0], [8.0, -5.0, 0.1]]).double()
    z, tril, log_share = proposals.laplace(Joint(adapt_vae(ppca), x), prior, loc[:, None].repeat(1, 2, 1) + 0.3, scale)
    strength, own = torch.tensor([4.0, 1.0]).double(), scale**-2
    precision = strength / 0.5 + own[:, None]
    mean = (x @ ppca.weight / 0.5 + (loc * own)[:, None]) / precision
    torch.testing.assert_close(z, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(tril @ tril.mT, torch.diag_embed(precision.expand(2, 2, 2)), rtol=1e-5, atol=1e-6)
    exact = torch.stack([ppca.log_prob_under(prior[[k]], x) for k in (0, 1)])
    torch.testing.assert_close(log_share, exact.log_softmax(0), rtol=0, atol=1e-4)


def test_shares_leave_the_prior_its_reserve_and_none_is_near_zero():
    share = proposals.with_reserve(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])).exp()
    torch.testing.assert_close(share.sum(1), torch.full((2,), 1 - proposals.RESERVE))
    assert share[0].tolist() == pytest.approx([0.9 * 0.925, *[0.9 * 0.025] * 3])


def test_a_matrix_without_a_factor_is_given_that_of_its_diagonal():
    good, bad, flat = torch.eye(2) + 1, torch.tensor([[1.0, 3.0], [3.0, 4.0]]), torch.zeros(2, 2)
    found = proposals.factor(torch.stack([good, bad, flat]).double())
    torch.testing.assert_close(found[0] @ found[0].mT, good.double())
    assert found[1].tolist() == [[1.0, 0.0], [0.0, 2.0]] and bool(found.isfinite().all()) and found[2, 0, 0] > 0


def test_draws_are_weighed_by_the_density_that_they_are_drawn_from():
    """The shares of all parts in r add up to 1 at every draw, and a tenth of the draws is the prior's."""
    ppca = PPCA(torch.zeros(2), torch.tensor([[1.0], [0.0]]), noise_variance=1.0)
    x = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double()
    far = lambda rows: torch.full((len(rows), 1), 77.0).double() + rows[:, None]  # noqa: E731
    joint, q = Joint(adapt_vae(ppca), x), Normal(x[:, :1], torch.ones(2, 1).double())
    made = proposals.Sampler(joint, q, ppca.prior, torch.zeros(1, 1).double(), far, rng())
    loc = torch.tensor([[[-1.0], [1.0]], [[0.0], [2.0]]]).double()
    proposal = proposals.Proposal(
        proposals.with_reserve(torch.tensor([[0.3, 0.7]] * 2).double()), loc, loc[..., None] * 0 + 0.5
    )
    z, log_ratio, log_prior, log_parts = made.weigh(proposal, 4_000)
    gaussians = Normal(loc[:, None, :, 0], 0.5).log_prob(z) + proposal.log_share[:, None]
    log_r = torch.logaddexp(gaussians.logsumexp(-1), math.log(proposals.RESERVE) + log_prior)
    torch.testing.assert_close(log_prior, ppca.prior.log_prob(z))
    torch.testing.assert_close(log_parts, gaussians - log_r[..., None])
    torch.testing.assert_close(log_ratio, ppca.decoder(z).log_prob(x[:, None]) - log_r)
    drawn = z[..., 0] > 70
    assert (z[0][drawn[0]] == 77).all() and (z[1][drawn[1]] == 78).all()  # each row its own
    assert float(drawn.double().mean()) == pytest.approx(proposals.RESERVE, abs=0.02)
    share = (z[..., 0] - loc[:, :1, 0]).abs() < (z[..., 0] - loc[:, 1:, 0]).abs()
    assert float(share[~drawn].double().mean()) == pytest.approx(0.9 * 0.3 + 0.05, abs=0.03)


def test_a_refit_is_a_step_of_em_that_remembers_the_old_gaussian():
    """Of one Gaussian and equal weights: its moments are mixed with those of the draws, which count by their number."""
    z = torch.randn(1, 400, 2, generator=rng(), dtype=torch.float64) * torch.tensor([1.0, 3.0]) + 5
    old = proposals.Proposal(
        torch.zeros(1, 1).double(), torch.zeros(1, 1, 2).double(), torch.eye(2).double()[None, None]
    )
    new = proposals.refit(old, z, torch.zeros(1, 400).double(), torch.zeros(1, 400, 1).double())
    kept = 20 / 420
    loc = (1 - kept) * z[0].mean(0)
    centred = z[0] - loc
    torch.testing.assert_close(new.loc[0, 0], loc)
    covariance = (1 - kept) * centred.mT @ centred / 400 + kept * torch.eye(2).double()
    torch.testing.assert_close(new.tril[0, 0] @ new.tril[0, 0].mT, covariance)
    assert float(new.log_share.exp()) == pytest.approx(1 - proposals.RESERVE)


class Quadratic:
    """A joint density whose log p(x|z) is -(z - x)ᵀ A (z - x) / 2, without moments."""

    def __init__(self, matrix, x):
        self.matrix, self.x = matrix, x

    def decode(self, z):
        log_prob = lambda x: -0.5 * torch.einsum("jbd,de,jbe->jb", z - x, self.matrix, z - x)  # noqa: E731
        return SimpleNamespace(has_moments=False, log_prob=log_prob)


@pytest.mark.parametrize(("pairs", "dim"), [(32, 3), (3, 3), (2, 3), (32, 1)])
@pytest.mark.parametrize("down", [False, True])
def test_curvature_of_a_density_is_taken_by_pairs_and_made_positive(monkeypatch, pairs, dim, down):
    """Of more latents than are paired only the diagonal; where the density curves up, as where it curves down."""
    monkeypatch.setattr(proposals, "PAIRS", pairs)
    matrix = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, -1.5 if down else 1.5]]).double()[:dim, :dim]
    joint = Quadratic(matrix, torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]).double()[:, :dim])
    z = torch.randn(4, 2, dim, generator=rng(), dtype=torch.float64)
    step = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.05]]).double()[:, :dim]
    slope, information = proposals._slope_and_information(joint, z, step)
    torch.testing.assert_close(slope, -(z - joint.x) @ matrix)
    for b in range(2):
        second = step[b][:, None] * (matrix if dim <= pairs else matrix.diag().diag()) * step[b]
        values, vectors = torch.linalg.eigh(second)
        wanted = (vectors * values.abs()) @ vectors.mT / step[b][:, None] / step[b]
        torch.testing.assert_close(information[:, b], wanted.expand(4, dim, dim), rtol=1e-6, atol=1e-8)


def test_information_of_a_decoder_with_moments_is_fishers_by_differences():
    """Wᵀ W / v, of variances below 1e-6 with that in their place; the slope is that of the density itself."""
    weight = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]]).double()
    variance = torch.tensor([0.25, 1e-8, 4.0]).double()
    x, z = torch.randn(2, 3, generator=rng(1)).double(), torch.randn(4, 2, 2, generator=rng()).double()

    def decode(at):
        mean = at @ weight.mT
        shown = torch.tensor([0.25, 1.0, 4.0]).double()
        return SimpleNamespace(
            has_moments=True,
            mean=mean,
            variance=variance.expand_as(mean),
            log_prob=lambda x: Normal(mean, shown.sqrt()).log_prob(x).sum(-1),
        )

    joint, step = SimpleNamespace(x=x, decode=decode), torch.tensor([[0.1, 0.2], [0.3, 0.1]]).double()
    slope, information = proposals._slope_and_information(joint, z, step)
    torch.testing.assert_close(slope, (x - z @ weight.mT) / torch.tensor([0.25, 1.0, 4.0]) @ weight)
    exact = weight.mT / variance.clamp_min(1e-6) @ weight
    torch.testing.assert_close(information, exact.expand(4, 2, 2, 2))


@pytest.mark.parametrize("full", [False, True])
def test_the_component_that_rules_a_point_is_the_likeliest_with_its_weight(full):
    """Half way between two of one width the heavier; nearer to the other that one. More points than go at once."""
    log_weight = torch.tensor([0.2, 0.7, 0.1]).double().log()
    loc = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 9.0]]).double()
    scale = torch.tensor([[1.0, 0.5], [1.0, 0.5], [2.0, 3.0]]).double()
    prior = from_components(log_weight, loc, torch.diag_embed(scale) if full else scale)
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.3, 8.0]]).double().repeat_interleave(50, 0).reshape(15, 10, 2)
    centre, precision = proposals._ruling_component(prior, z)
    index = torch.tensor([1, 0, 2]).repeat_interleave(50).reshape(15, 10)
    torch.testing.assert_close(centre, loc[index])
    torch.testing.assert_close(precision, torch.diag_embed(scale[index] ** -2))


def linear_sampler(**given):
    """What samples codes of probabilistic PCA, with an encoder of its own."""
    ppca = PPCA(torch.zeros(2), torch.tensor([[1.0], [0.0]]), noise_variance=1.0)
    x = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double()
    q = Normal(torch.tensor([[0.3], [-0.7]]).double(), torch.tensor([[0.2], [0.4]]).double())
    draws = torch.linspace(-2, 2, 41).double()[:, None]
    return proposals.Sampler(
        Joint(adapt_vae(ppca), x), q, ppca.prior, draws, lambda rows: draws[rows], rng(), **given
    ), q


@pytest.mark.parametrize("num", [4, 16])
def test_a_proposal_starts_with_the_encoder_at_three_widths_and_gaussians_a_fifth_wider_than_laplaces(num):
    """Of a linear model all of the latter are the posterior N(x/2, 1/2)."""
    made, q = linear_sampler(num_starts=num)
    found = made.start()
    assert found.loc.shape == (2, 3 + 1 + num, 1) and found.tril.shape == (2, 3 + 1 + num, 1, 1)
    torch.testing.assert_close(found.loc[:, :3], q.loc[:, None].expand(2, 3, 1))
    torch.testing.assert_close(found.tril[:, :3, 0], q.scale[:, None] * torch.tensor([1.0, 2.0, 4.0]).double()[:, None])
    posterior = torch.tensor([0.5, -1.0]).double()[:, None, None]
    torch.testing.assert_close(found.loc[:, 3:], posterior.expand(2, 1 + num, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.tril[:, 3:], torch.full((2, 1 + num, 1, 1), 1.2 * 0.5**0.5).double())
    share = torch.tensor([*[proposals.RESERVE] * 3, *[1 / (1 + num)] * (1 + num)]).double()
    wanted = proposals.with_reserve((share / share.sum())[None])
    torch.testing.assert_close(found.log_share, wanted.expand(2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num_samples", "sizes"), [(70, [30, 30, 10]), (60, [30, 30]), (7, [7])])
def test_a_proposal_is_fitted_twice_and_then_sampled_in_parts(monkeypatch, num_samples, sizes):
    made, _ = linear_sampler(num_starts=2, round_samples=30)
    asked, refits, weigh, refit = [], [], proposals.Sampler.weigh, proposals.refit
    monkeypatch.setattr(
        proposals.Sampler,
        "weigh",
        lambda own, proposal, num: asked.append((proposal, num)) or weigh(own, proposal, num),
    )
    monkeypatch.setattr(proposals, "refit", lambda *given: refits.append((given, refit(*given))) or refits[-1][1])
    parts = list(made.fresh(num_samples))
    assert [num for _, num in asked] == [30, 30, *sizes] and [z.shape[1] for z, *_ in parts] == sizes
    assert len(refits) == 2 and asked[0][0] is refits[0][0][0] and asked[1][0] is refits[0][1] is refits[1][0][0]
    assert all(proposal is refits[1][1] for proposal, _ in asked[2:]) and all(len(part) == 3 for part in parts)
    for (proposal, z, log_weight, log_parts), _ in refits:
        gaussian = Normal(proposal.loc[:, :1, 0], proposal.tril[:, :1, 0, 0]).log_prob(z[..., 0])
        log_r = proposal.log_share[:, :1] + gaussian - log_parts[..., 0]
        log_joint = made.joint.log_likelihood(z.transpose(0, 1)).mT + made.joint.log_prior(z)
        torch.testing.assert_close(log_weight, log_joint - log_r)


@pytest.mark.parametrize(("steep", "left"), [(0.0, 0.0), (1.0, 0.0), (4.0, 0.0), (100.0, 3.0)])
def test_a_step_that_is_too_long_is_shortened_and_one_that_does_not_lead_up_is_not_taken(steep, left):
    """A decoder whose moments tell nothing: under N(0, 1) a step is 1 + steep times as long as it should be."""

    def decode(z):
        log_prob = lambda x: -0.5 * steep * z[..., 0].square()  # noqa: E731
        return SimpleNamespace(has_moments=True, mean=0 * z, variance=1 + 0 * z, log_prob=log_prob)

    prior = DiagGaussianMixture(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    joint, start = SimpleNamespace(x=torch.zeros(2, 1), decode=decode), torch.full((1, 2, 1), 3.0).double()
    z, tril, log_share = proposals.laplace(joint, prior, start, torch.ones(2, 1).double())
    torch.testing.assert_close(z, torch.full_like(z, left), rtol=0, atol=1e-9)
    torch.testing.assert_close(tril, torch.ones(1, 2, 1, 1).double())
    assert not log_share.any()


def test_where_a_decoder_refuses_codes_or_gives_no_number_there_is_no_likelihood():
    def decode(z):
        if float(z.max()) > 9:
            raise ValueError("z: expected values up to 9")
        return SimpleNamespace(log_prob=lambda x: z[..., 0].log().float())

    joint = SimpleNamespace(x=torch.zeros(2, 1), decode=decode)
    found = proposals._log_likelihood(joint, torch.tensor([[[1.0], [-1.0]]]).double())
    assert found.tolist() == [[0.0, -math.inf]] and found.dtype == torch.float64
    assert proposals._log_likelihood(joint, torch.tensor([[[1.0], [10.0]]])).tolist() == [[-math.inf] * 2]
