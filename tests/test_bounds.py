"""Bounds against closed forms (probabilistic PCA), enumeration and numerical integration."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from vaebook import bounds
from vaebook.bounds import elbo, iwae_bound, prior_sample_log_prob, quadrature_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def toy(d=2, n=40, p=5):
    x = normal(n, p) @ normal(p, p, seed=1) + 1
    return x, PPCA.fit(x, d)


def linear_vae(model, shift=0.3, stretch=1.4, prior=None):
    """PPCA with an encoder that is wrong by a known amount."""

    def encoder(x):
        q = model.posterior(x).base_dist
        return Independent(Normal(q.loc + shift, q.scale * stretch), 1)

    return SimpleNamespace(
        encoder=encoder, decoder=model.likelihood, prior=prior or StandardNormal(model.weight.shape[1])
    )


def gap(vae, model, x):
    """KL(q(z|x) | p(z|x)) in closed form."""
    return torch.distributions.kl_divergence(vae.encoder(x), model.posterior(x))


def unnormalised(extra):
    """A prior of one's own, N(0, 1) times e^extra."""
    normal = StandardNormal(1)
    return SimpleNamespace(latent_dim=1, sample=normal.sample, log_prob=lambda z: normal.log_prob(z) + extra)


def sine_decoder(noise=0.3):
    """A nonlinear curve in two dimensions."""

    def decoder(z):
        return Independent(Normal(torch.cat([torch.sin(2 * z.sum(-1, keepdim=True)), z[..., :1]], -1), noise), 1)

    return decoder


class TestElbo:
    def test_index_leaves_the_own_component_out(self):
        loc = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
        prior = DiagGaussianMixture(loc, torch.full_like(loc, 0.7))
        vae, index = using(prior=prior), torch.tensor([2, 0, 0])
        got, whole = (elbo(vae, X, num_samples=4, index=i, generator=rng(1)) for i in (index, None))
        for row, own in enumerate(index.tolist()):
            others = [n for n in range(3) if n != own]
            rest = using(prior=DiagGaussianMixture(loc[others], torch.full((2, 1), 0.7, dtype=torch.float64)))
            expected = elbo(rest, X, num_samples=4, generator=rng(1))  # the same noise
            assert abs(float(got[row] - expected[row])) < 1e-12
        assert (got - whole).abs().min() > 1e-3

    @pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
    def test_expectation_is_the_closed_form(self, beta):
        x, model = toy()
        vae, n = linear_vae(model), 20_000
        q = vae.encoder(x[:6])
        kl = torch.distributions.kl_divergence(q, Independent(Normal(torch.zeros(6, 2), torch.ones(6, 2)), 1))
        exact = model.log_prob(x[:6]) - gap(vae, model, x[:6]) + (1 - beta) * kl
        draws = elbo(vae, x[:6].repeat_interleave(n, 0), beta=beta, generator=rng()).reshape(6, n)
        error = (draws.mean(1) - exact) / (draws.std(1) / math.sqrt(n))
        assert float(error.abs().max()) < 4
        wrong = (draws.mean(1) - model.log_prob(x[:6])) / (draws.std(1) / math.sqrt(n))  # forgetting the gap
        assert beta != 1 or float(wrong.max()) < -6

    def test_more_samples_keep_the_mean_and_shrink_the_noise(self):
        x, model = toy()
        vae, n = linear_vae(model), 4000
        rows = x[:1].expand(n, -1)
        one = elbo(vae, rows, generator=rng())
        ten = elbo(vae, rows, num_samples=10, generator=rng(1))
        assert abs(float(one.mean() - ten.mean())) < 4 * float((one.var() / n + ten.var() / n).sqrt())
        assert 7 < float(one.var() / ten.var()) < 13

    def test_a_general_prior_is_averaged_over_the_same_samples(self):
        """With the exact encoder of N(0, I), log p(x, z) - log q(z|x) = log p(x) for every sample."""
        x, model = toy()
        vae = SimpleNamespace(encoder=model.posterior, decoder=model.likelihood, prior=model.prior)
        torch.testing.assert_close(elbo(vae, x, num_samples=3), model.log_prob(x), rtol=0, atol=1e-10)
        closed = SimpleNamespace(encoder=model.posterior, decoder=model.likelihood, prior=StandardNormal(2))
        assert float((elbo(closed, x) - model.log_prob(x)).abs().min()) > 1e-6  # there only the mean agrees

    def test_both_ways_to_the_kl_have_one_expectation(self):
        x, model = toy()
        n = 50_000
        rows = x[:1].expand(n, -1)
        values = [elbo(linear_vae(model, prior=p), rows, generator=rng(s)) for s, p in enumerate((None, model.prior))]
        error = (values[0].mean() - values[1].mean()) / ((values[0].var() + values[1].var()) / n).sqrt()
        assert abs(float(error)) < 4

    def test_gradient_is_that_of_the_closed_form(self):
        """The mean gradient in the encoder's and the decoder's parameters, against autograd of the exact ELBO."""
        x, model = toy(d=1, p=3)
        x = x[:1]
        loc, log_scale, offset = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, -0.7, 0.2))
        weight, mean, noise = model.weight, model.mean, model.noise_variance
        n = 200_000

        def decoder(z):
            return Independent(Normal(z @ weight.T + mean + offset, math.sqrt(noise)), 1)

        def encoder(x):
            return Independent(Normal(loc.expand(len(x), 1), log_scale.exp().expand(len(x), 1)), 1)

        vae = SimpleNamespace(encoder=encoder, decoder=decoder, prior=StandardNormal(1))
        got = torch.autograd.grad(elbo(vae, x, num_samples=n, generator=rng()).sum(), [loc, log_scale, offset])
        variance = (2 * log_scale).exp()
        residual = x - mean - offset - loc * weight.T
        squares = residual.square().sum() + variance * weight.square().sum()
        exact = -squares / (2 * noise) - 0.5 * (loc**2 + variance) + log_scale
        expected = torch.autograd.grad(exact, [loc, log_scale, offset])
        torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=0.02, atol=0.02)

    def test_seed_and_dtype(self):
        x, model = toy()
        vae = linear_vae(model)
        before = torch.get_rng_state()
        assert torch.equal(elbo(vae, x, generator=rng(3)), elbo(vae, x, generator=rng(3)))
        assert not torch.equal(elbo(vae, x, generator=rng(3)), elbo(vae, x, generator=rng(4)))
        assert torch.equal(before, torch.get_rng_state())
        assert elbo(vae, x.float()).dtype == torch.float32


class TestIwae:
    def test_exact_encoder_has_no_noise(self):
        x, model = toy()
        vae = linear_vae(model, 0.0, 1.0)
        for k in (1, 2, 50):
            torch.testing.assert_close(iwae_bound(vae, x, k), model.log_prob(x), rtol=0, atol=1e-10)

    def test_grows_from_the_elbo_to_log_prob(self):
        """Expectations for K = 1, 4, 32; averaging K single-sample ELBOs does not grow."""
        x, model = toy()
        vae, n = linear_vae(model), 4000
        rows = x[:1].expand(n, -1)
        values = [iwae_bound(vae, rows, k, generator=rng(k)) for k in (1, 4, 32)]
        stderr = [float(v.std()) / math.sqrt(n) for v in values]
        mean = [float(v.mean()) for v in values]
        exact_elbo = float(model.log_prob(x[:1]) - gap(vae, model, x[:1]))
        assert abs(mean[0] - exact_elbo) < 4 * stderr[0]
        assert mean[1] - mean[0] > 6 * math.hypot(stderr[0], stderr[1])
        assert mean[2] - mean[1] > 6 * math.hypot(stderr[1], stderr[2])
        assert mean[2] <= float(model.log_prob(x[0])) + 4 * stderr[2]
        averaged = elbo(linear_vae(model, prior=model.prior), rows, num_samples=32, generator=rng())
        assert abs(float(averaged.mean()) - exact_elbo) < 4 * float(averaged.std()) / math.sqrt(n)

    def test_weight_is_unbiased(self):
        x, model = toy()
        vae, n = linear_vae(model), 20_000
        ratio = (iwae_bound(vae, x[:1].expand(n, -1), 3, generator=rng()) - model.log_prob(x[:1])).exp()
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(n)

    def test_chunks_change_nothing(self):
        x, model = toy()
        vae = linear_vae(model)
        whole = iwae_bound(vae, x, 37, generator=rng())
        for size in (1, 5, 36, 37, 1000):
            torch.testing.assert_close(
                iwae_bound(vae, x, 37, generator=rng(), chunk_size=size), whole, rtol=0, atol=1e-12
            )

    def test_decoder_never_sees_more_than_a_chunk(self):
        x, model = toy()
        seen = []

        def decoder(z):
            seen.append(len(z))
            return model.likelihood(z)

        vae = SimpleNamespace(encoder=model.posterior, decoder=decoder, prior=model.prior)
        iwae_bound(vae, x, 23, chunk_size=10)
        rows = len(x)  # every code is a row of its own
        assert seen[-3:] == [10 * rows, 10 * rows, 3 * rows]
        assert max(seen) == 10 * rows, "nor do the checks at the door"

    def test_differentiable(self):
        x, model = toy(d=1)
        shift = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

        def value(shift):
            return iwae_bound(linear_vae(model, shift), x[:3], 4, generator=rng(), chunk_size=2)

        assert torch.autograd.gradcheck(value, (shift,))

    def test_large_weights_neither_overflow_nor_vanish(self):
        x, model = toy()
        far = x + 1000  # log p(x) of some -1e6 nats: exp() of it is 0 in float64
        vae = linear_vae(model, 0.0, 1.0)
        torch.testing.assert_close(iwae_bound(vae, far, 4), model.log_prob(far), rtol=1e-12, atol=0)


class TestPriorSamples:
    def test_shared_draws_are_one_mixture_density(self):
        x, model = toy(d=1)
        got = prior_sample_log_prob(model.likelihood, model.prior, x, 4, generator=rng(7))
        z = model.prior.sample((4, 1), generator=rng(7))[:, 0]
        terms = [stats.multivariate_normal(m.numpy(), model.noise_variance).pdf(x) for m in model.likelihood(z).mean]
        np.testing.assert_allclose(got.exp(), np.mean(terms, 0), rtol=1e-11)

    def test_shared_density_integrates_to_one(self):
        model = PPCA(torch.zeros(1), torch.ones(1, 1), 0.1)
        axis = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
        for k in (1, 4, 64):
            mass = prior_sample_log_prob(model.decoder, StandardNormal(1), axis, k, generator=rng()).exp().sum() * 0.009
            assert abs(float(mass) - 1) < 1e-12

    def test_unbiased_density_and_biased_logarithm(self):
        model = PPCA(torch.zeros(1), torch.ones(1, 1), 0.5)
        n, k = 40_000, 20
        x = torch.full((n, 1), 0.7, dtype=torch.float64)
        log_ratio = prior_sample_log_prob(model.decoder, StandardNormal(1), x, k, shared=False, generator=rng())
        log_ratio = log_ratio - model.log_prob(x)
        ratio = log_ratio.exp()
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(n)
        assert float(log_ratio.mean()) < -6 * float(log_ratio.std()) / math.sqrt(n)
        squared, _ = integrate.quad(lambda z: stats.norm.pdf(0.7, z, 0.5**0.5) ** 2 * stats.norm.pdf(z), -9, 9)
        variance = squared / float(model.log_prob(x[:1]).exp()) ** 2 - 1  # Var / p² of one draw
        assert abs(float(ratio.var()) * k / variance - 1) < 0.05
        assert abs(float(log_ratio.mean()) / (-variance / (2 * k)) - 1) < 0.1

    def test_independent_rows_differ(self):
        model = PPCA(torch.zeros(1), torch.ones(1, 1), 0.5)
        x = torch.zeros(5, 1)
        for shared, distinct in ((True, 1), (False, 5)):
            value = prior_sample_log_prob(model.decoder, StandardNormal(1), x, 3, shared=shared, generator=rng())
            assert len(value.unique()) == distinct

    def test_many_samples_in_chunks(self):
        x, model = toy(n=400, p=30, d=1)
        value = prior_sample_log_prob(model.decoder, StandardNormal(1), x[:2], 100_000, generator=rng())
        assert float((value - model.log_prob(x[:2])).abs().max()) < 0.3


class TestQuadrature:
    @pytest.mark.parametrize("d", [1, 2])
    def test_ppca(self, d):
        x, model = toy(d=d)
        got = quadrature_log_prob(model.likelihood, StandardNormal(d), x)
        torch.testing.assert_close(got, model.log_prob(x), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("d", [1, 2])
    def test_under_a_mixture_prior(self, d):
        x, model = toy(d=d)
        q = model.aggregated_posterior(x)
        got = quadrature_log_prob(model.likelihood, q, x[:5])
        torch.testing.assert_close(got, model.log_prob_under(q, x[:5]), rtol=0, atol=1e-10)

    @pytest.mark.parametrize(("d", "noise"), [(1, 1e-4), (1, 1e-3), (2, 2e-2)])
    def test_sharply_peaked_posterior(self, d, noise):
        """A posterior a few nodes of the finest grid wide."""
        weight = torch.eye(3, d, dtype=torch.float64) * torch.tensor([1.0, 0.8])[:d]
        model = PPCA(torch.zeros(3), weight, noise**2)
        z = torch.tensor([[0.123456, -1.3], [2.2, 0.4]], dtype=torch.float64)[:, :d]
        x = model.likelihood(z).mean
        got = quadrature_log_prob(model.likelihood, StandardNormal(d), x)
        torch.testing.assert_close(got, model.log_prob(x), rtol=0, atol=1e-9)

    def test_nonlinear_decoder_against_scipy(self):
        decoder, x = sine_decoder(0.05), torch.tensor([[0.3, 0.1], [-0.9, 1.7]], dtype=torch.float64)
        got = quadrature_log_prob(decoder, StandardNormal(1), x)
        for value, (a, b) in zip(got, x.tolist(), strict=True):

            def density(z, a=a, b=b):
                return stats.norm.pdf(a, math.sin(2 * z), 0.05) * stats.norm.pdf(b, z, 0.05) * stats.norm.pdf(z)

            exact, _ = integrate.quad(density, b - 1, b + 1, epsabs=0, epsrel=1e-12, points=[b], limit=200)
            assert abs(float(value) - math.log(exact)) < 1e-9

    def test_many_modes(self):
        """A decoder that folds the line 16 times: the posterior has some twenty sharp modes."""

        def decoder(z):
            return Independent(Normal(torch.sin(10 * z), 0.01), 1)

        x = torch.tensor([[0.5]], dtype=torch.float64)
        got = quadrature_log_prob(decoder, StandardNormal(1), x)
        z = np.linspace(-8, 8, 4_000_001)
        exact = np.log((stats.norm.pdf(0.5, np.sin(10 * z), 0.01) * stats.norm.pdf(z)).sum() * (z[1] - z[0]))
        assert abs(float(got) - exact) < 1e-9

    def test_bernoulli_decoder_sums_to_one_over_all_images(self):
        """Enumeration: the probabilities of all 16 binary images of four pixels add up to 1."""
        weight, offset = normal(4, 2), normal(4, seed=1)

        def decoder(z):
            return Independent(Bernoulli(logits=(z @ weight.T).tanh() * 3 + offset), 1)

        x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
        total = quadrature_log_prob(decoder, StandardNormal(2), x).exp().sum()
        assert abs(float(total) - 1) < 1e-10

    def test_bounds_lie_below(self):
        """Exact ELBO <= log p for a nonlinear decoder, and IWAE approaches it."""
        n = 4000
        x = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
        vae = SimpleNamespace(
            encoder=lambda x: Independent(Normal(x[:, 1:], torch.full_like(x[:, 1:], 0.4)), 1),
            decoder=sine_decoder(),
            prior=StandardNormal(1),
        )
        exact = float(quadrature_log_prob(vae.decoder, vae.prior, x))
        low = elbo(vae, x.expand(n, -1), generator=rng())
        high = iwae_bound(vae, x.expand(n, -1), 64, generator=rng())
        assert float(low.mean()) < exact - 6 * float(low.std()) / math.sqrt(n)
        assert exact - 0.05 < float(high.mean()) < exact + 4 * float(high.std()) / math.sqrt(n)

    def test_single_precision(self):
        x, model = toy(d=1)
        got = quadrature_log_prob(model.likelihood, StandardNormal(1), x.float(), tolerance=1e-4)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, model.log_prob(x), rtol=0, atol=1e-3)
        with pytest.raises(ValueError, match=r"x: expected dtype torch.float64 .* use decoder.double\(\)"):
            quadrature_log_prob(model.likelihood, StandardNormal(1), x.float())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_refused_before_the_finest_grid_was_tried_in_vain(self, dtype):
        back, x = torch.nn.Linear(1, 3).to(dtype), torch.zeros(1, 3)
        decoder = lambda z: torch.distributions.Normal(back(z), 1.0)  # noqa: E731
        with pytest.raises(ValueError, match=r"^decoder: expected dtype torch.float64 .*single precision"):
            quadrature_log_prob(decoder, StandardNormal(1), x, tolerance=1e-2)
        with pytest.raises(ValueError, match=r"^x: expected dtype torch.float64"):
            quadrature_log_prob(toy(d=1)[1].likelihood, StandardNormal(1), x.to(dtype), tolerance=1e-2)

    def test_more_limit_finds_what_the_box_cut_off(self):
        model = PPCA(torch.zeros(1), torch.ones(1, 1), 1e-4)
        far = torch.tensor([[9.0]], dtype=torch.float64)  # its posterior is N(9, 0.01²)
        with pytest.raises(ValueError, match="limit: expected a box that holds all mass"):
            quadrature_log_prob(model.likelihood, StandardNormal(1), far)
        got = quadrature_log_prob(model.likelihood, StandardNormal(1), far, limit=12)
        torch.testing.assert_close(got, model.log_prob(far), rtol=0, atol=1e-8)

    @pytest.mark.parametrize("limit", [0.5, 3.0, 5.0])
    def test_a_box_that_cuts_the_prior(self, limit):
        x, model = toy(d=1)
        with pytest.raises(ValueError, match="limit: expected a box that holds all mass"):
            quadrature_log_prob(model.likelihood, StandardNormal(1), x, limit=limit)

    def test_prior_partly_outside_the_box(self):
        x, model = toy(d=1)
        prior = DiagGaussianMixture(torch.tensor([[0.0], [30.0]]).double(), torch.ones(2, 1).double())
        with pytest.raises(ValueError, match=r"prior: expected a density with mass 1 in the box, got 0\.5;"):
            quadrature_log_prob(model.likelihood, prior, x)

    def test_unnormalised_prior(self):
        x, model = toy(d=1)
        for extra in (0.5 * math.log(2 * math.pi), 0.1, -0.1, 1e-3, -1e-8):
            prior = unnormalised(extra)
            got = f"got {math.exp(extra):.6g}; raise"
            with pytest.raises(ValueError, match=f"prior: expected a density with mass 1 in the box, {re.escape(got)}"):
                quadrature_log_prob(model.likelihood, prior, x)
        exact = model.log_prob(x)  # what is below the tolerance passes
        got = quadrature_log_prob(model.likelihood, unnormalised(1e-5), x, tolerance=1e-4)
        torch.testing.assert_close(got, exact + 1e-5, rtol=0, atol=1e-9)

    def test_the_tolerance_is_blamed_for_what_it_asks_too_much(self):
        x, model = toy(d=1)
        for tolerance in (1e-300, 1e-15, 0, -1):
            with pytest.raises(ValueError, match=r"tolerance: expected a number >= 1e-14, got"):
                quadrature_log_prob(model.likelihood, StandardNormal(1), x, tolerance=tolerance)

    def test_data_that_no_code_explains(self):
        def decoder(z):  # a box of width 1 around z
            return SimpleNamespace(log_prob=lambda x: ((x - z).abs() < 0.5).log()[:, 0])

        x = torch.tensor([[0.0], [50.0]], dtype=torch.float64)
        got = quadrature_log_prob(decoder, StandardNormal(1), x, tolerance=1e-2)
        assert got[1] == -math.inf
        assert abs(float(got[0]) - math.log(stats.norm.cdf(0.5) - stats.norm.cdf(-0.5))) < 0.02

    def test_what_is_no_number_is_one_error(self):
        x = torch.zeros(2, 1, dtype=torch.float64)
        for bad in (math.nan, math.inf):  # far from the codes on which two passes are compared

            def decoder(z, bad=bad):
                return SimpleNamespace(log_prob=lambda x: torch.where(z[:, 0] > 5, bad, -(x - z).square().sum(-1)))

            with pytest.raises(ValueError, match=rf"log p\(x\|z\): expected values below infinity, got {bad} at index"):
                quadrature_log_prob(decoder, StandardNormal(1), x)

    def test_too_few_nodes(self):
        x, model = toy(d=2)
        with pytest.raises(RuntimeError, match="max_nodes: expected enough for tolerance 1e-09, got 20000"):
            quadrature_log_prob(model.likelihood, StandardNormal(2), x, max_nodes=20_000)

    def test_no_gradient(self):
        x, model = toy(d=1)
        assert not quadrature_log_prob(model.likelihood, StandardNormal(1), x.requires_grad_()).requires_grad


X = torch.zeros(3, 2)
MODEL = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), 1.0)
VAE = SimpleNamespace(encoder=MODEL.posterior, decoder=MODEL.likelihood, prior=StandardNormal(1))


def using(**parts):
    return SimpleNamespace(**{**vars(VAE), **parts})


def spread(scale):
    return using(encoder=lambda x: (x[:, :1], torch.full_like(x[:, :1], scale)))


CORRELATED = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
MIXED = using(prior=DiagGaussianMixture(torch.zeros(2, 1).double(), torch.ones(2, 1).double()))


@pytest.mark.parametrize("bound", [elbo, lambda vae, x: iwae_bound(vae, x, 2)])
@pytest.mark.parametrize(
    ("error", "match", "vae", "x"),
    [
        (TypeError, "x: expected a tensor or an array of real numbers, got float", VAE, [[0.0, 0.0]]),
        (ValueError, r"x: expected shape \(N, ...\) .*, got \(2,\)", VAE, X[0]),
        (ValueError, "x: expected shape .* at least one value", VAE, X[:0]),
        (ValueError, "x: expected finite", VAE, X * math.nan),
        (TypeError, "vae: expected an object with .encoder, .decoder and .prior", SimpleNamespace(), X),
        (ValueError, "encoder's scale: expected positive values, got min 0 at index", spread(0.0), X),
        (ValueError, "encoder's scale: expected positive values, got none", spread(-1.0), X),
        (ValueError, "encoder's scale: expected finite values, got nan", spread(math.nan), X),
        (
            ValueError,
            "encoder's loc: expected finite values, got nan",
            using(encoder=lambda x: (x[:, :1] * math.nan, 1 + x[:, :1])),
            X,
        ),
        (
            TypeError,
            "encoder: expected a diagonal covariance",
            using(encoder=lambda x: MultivariateNormal(x, CORRELATED)),
            X,
        ),
        (
            ValueError,
            r"encoder's loc: expected shape \(3, ...\), .* got \(2, 1\)",
            using(encoder=lambda x: MODEL.posterior(x[:2])),
            X,
        ),
        (ValueError, "prior: expected dimension 1, got 4", using(prior=StandardNormal(4)), X),
        (
            ValueError,
            r"log p\(x\|z\): expected values below infinity, got nan",
            using(decoder=lambda z: SimpleNamespace(log_prob=lambda x: x[:, 0] * z[:, 0] * math.nan)),
            X,
        ),
    ],
)
def test_bad_vae(bound, error, match, vae, x):
    with pytest.raises(error, match=match):
        bound(vae, x)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (
            ValueError,
            "num_samples: expected an int between 1 and 1000000000, got 0",
            lambda: elbo(VAE, X, num_samples=0),
        ),
        (ValueError, "num_samples: expected an int between", lambda: elbo(VAE, X, num_samples=10**400)),
        (ValueError, "beta: expected a number >= 0.*, got -1", lambda: elbo(VAE, X, beta=-1)),
        (TypeError, "beta: expected a number", lambda: elbo(VAE, X, beta="1")),
        (TypeError, "generator: expected", lambda: elbo(VAE, X, generator=3)),
        (
            TypeError,
            "index: expected None for priors without leave_one_out, got it for StandardNormal",
            lambda: elbo(VAE, X, index=torch.arange(3)),
        ),
        (TypeError, "index: expected a tensor of dtype torch.int64, got list", lambda: elbo(MIXED, X, index=[0, 1, 2])),
        (TypeError, "index: expected .* got torch.float32", lambda: elbo(MIXED, X, index=torch.ones(3))),
        (ValueError, r"index: expected shape \(3,\), got", lambda: elbo(MIXED, X, index=torch.zeros(3, 1).long())),
        (ValueError, r"index: expected values in \[0, 2\)", lambda: elbo(MIXED, X, index=torch.arange(3))),
        (ValueError, "num_samples: expected an int between 1", lambda: iwae_bound(VAE, X, 0)),
        (ValueError, "num_samples: expected an int between 1", lambda: iwae_bound(VAE, X, 10**400)),
        (TypeError, "num_samples: expected an int", lambda: iwae_bound(VAE, X, 2.0)),
        (ValueError, "chunk_size: expected an int at least 1", lambda: iwae_bound(VAE, X, 2, chunk_size=0)),
        (TypeError, "generator: expected", lambda: iwae_bound(VAE, X, 2, generator=3)),
        (ValueError, r"x: expected shape \(N, ...\)", lambda: prior_sample_log_prob(VAE.decoder, VAE.prior, X[0], 2)),
        (ValueError, "num_samples: expected", lambda: prior_sample_log_prob(VAE.decoder, VAE.prior, X, 0)),
        (TypeError, "^generator: expected", lambda: prior_sample_log_prob(VAE.decoder, VAE.prior, X, 2, generator=1)),
        (
            TypeError,
            "^shared: expected a bool, got int",
            lambda: prior_sample_log_prob(VAE.decoder, VAE.prior, X, 2, shared=1),
        ),
        (
            ValueError,
            r"^x: expected shape \(N, ...\) .*, got \(2,\)",
            lambda: quadrature_log_prob(VAE.decoder, VAE.prior, X.double()[0]),
        ),
        (
            ValueError,
            r"^prior: expected log_prob of shape \(6,\), got \(6, 1\); .*Independent",
            lambda: iwae_bound(
                using(prior=SimpleNamespace(latent_dim=1, sample=StandardNormal(1).sample, log_prob=lambda z: 0 * z)),
                X,
                2,
            ),
        ),
        (ValueError, "limit: expected a number > 0", lambda: quadrature_log_prob(VAE.decoder, VAE.prior, X, limit=0)),
        (ValueError, "tolerance: expe", lambda: quadrature_log_prob(VAE.decoder, VAE.prior, X, tolerance=0)),
        (TypeError, "max_nodes: expe", lambda: quadrature_log_prob(VAE.decoder, VAE.prior, X, max_nodes=1e6)),
        (
            ValueError,
            "prior: expected at most 2 latent dimensions, got 3; use vaebook.likelihood.importance",
            lambda: quadrature_log_prob(lambda z: Normal(z, 1.0), StandardNormal(3), X.new_zeros(2, 3).double()),
        ),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("width", [1, 3])
def test_data_of_another_width_are_not_repeated_over_the_pixels(width):
    model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), 1.0)
    x = torch.ones(5, width, dtype=torch.float64)
    for call in (
        lambda: prior_sample_log_prob(model.decoder, model.prior, x, 4),
        lambda: quadrature_log_prob(model.decoder, model.prior, x),
    ):
        with pytest.raises(ValueError, match=rf"x: expected shape \(B, 2\), got \(5, {width}\)"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_x(dtype):
    x, model = toy(d=1, n=5)
    vae = linear_vae(model)
    for value in (
        iwae_bound(vae, x.to(dtype), 3, generator=rng()),
        prior_sample_log_prob(vae.decoder, vae.prior, x.to(dtype), 3, generator=rng()),
    ):
        assert value.dtype == dtype
    assert quadrature_log_prob(vae.decoder, vae.prior, x.to(dtype), tolerance=1e-4).dtype == torch.float64


def test_shape_of_pixels_in_the_message():
    decoder = lambda z: Independent(Normal(torch.zeros(*z.shape[:-1], 2, 3), 1.0), 2)  # noqa: E731
    with pytest.raises(ValueError, match=r"^x: expected shape \(B, 2, 3\), got \(3, 2\)$"):
        prior_sample_log_prob(decoder, StandardNormal(1), X, 2)


def test_codes_come_in_the_dtype_of_x_and_a_decoder_needs_no_event_shape():
    seen = []

    def decoder(z):
        seen.append(z.dtype)
        return SimpleNamespace(log_prob=lambda x: torch.zeros(len(x)))

    value = prior_sample_log_prob(decoder, StandardNormal(1), X.double(), 3, generator=rng())
    assert set(seen) == {torch.float64} and value.tolist() == pytest.approx([0.0] * len(X), abs=1e-12)


def test_whole_numbers_may_be_large():
    """A number that no tensor takes as an int, 10^30, is taken as the float that it is."""
    one, other = (elbo(VAE, X, beta=b, generator=torch.Generator().manual_seed(0)) for b in (10**30, 1e30))
    assert torch.equal(one, other)


BOUNDS = {
    "elbo": lambda vae, x: elbo(vae, x, num_samples=2, generator=rng()),
    "iwae": lambda vae, x: iwae_bound(vae, x, 2, generator=rng()),
    "prior": lambda vae, x: prior_sample_log_prob(vae.decoder, vae.prior, x, 2, generator=rng()),
    "quadrature": lambda vae, x: quadrature_log_prob(vae.decoder, vae.prior, x, tolerance=1e-4),
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_part_that_does_not_repeat_itself_is_refused(name, part):
    x, model = toy(d=1, n=5)
    vae = linear_vae(model)
    noise = {
        "encoder": lambda x: Normal(x[:, :1] + torch.randn(()), 1.0),
        "decoder": lambda z: Normal(z + torch.randn(x.shape[1]), 1.0),
    }
    setattr(vae, part, noise[part])
    if part == "encoder" and name in ("prior", "quadrature"):  # they have no use for it
        assert len(BOUNDS[name](vae, x)) == 5
        return
    with pytest.raises(ValueError, match=rf"^{part}: expected the same from two passes"):
        BOUNDS[name](vae, x)


@pytest.mark.parametrize("name", ["prior", "quadrature"])
def test_a_decoder_in_training_mode_is_evaluated_without_its_dropout(name):
    x = normal(5, 5)
    net = torch.nn.Sequential(torch.nn.Linear(1, 5), torch.nn.Dropout()).double()
    vae = SimpleNamespace(decoder=lambda z: Normal(net(z), 1.0), prior=StandardNormal(1).double())
    value = BOUNDS[name](vae, x)
    assert net.training and net[1].training and not value.requires_grad
    net.eval()
    assert torch.equal(BOUNDS[name](vae, x), value)


@pytest.mark.parametrize("num", [1, 5, 16, 20])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 100])
def test_chunks_do_not_change_the_noise(num, chunk):
    x, model = toy(d=1, n=20)
    vae, x = linear_vae(model, prior=StandardNormal(1).double()), x[:num]
    want = iwae_bound(vae, x, 5, generator=rng())
    torch.testing.assert_close(iwae_bound(vae, x, 5, generator=rng(), chunk_size=chunk), want, rtol=1e-13, atol=0)


def test_the_divergence_of_each_datum_is_its_own():
    x, model = toy(d=2, n=6)
    vae, beta = linear_vae(model, prior=StandardNormal(2).double()), 3.0
    one, two = (elbo(vae, x, num_samples=4, beta=b, generator=rng()) for b in (0.0, beta))
    q = vae.encoder(x)
    torch.testing.assert_close((one - two) / beta, StandardNormal(2).kl(q.mean, q.stddev))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_of_a_draw_is_that_of_its_noise_in_double_precision(dtype):
    scale = torch.tensor([[1e-7, 0.5]], dtype=dtype)
    q = Normal(torch.tensor([[1e3, -1.0]], dtype=dtype), scale)
    z, log_q = bounds._draw(q, 3, rng())
    noise = torch.stack(
        [torch.empty(1, 2, dtype=dtype).normal_(generator=again) for again in [rng()] for _ in range(3)]
    )
    assert z.dtype == dtype and torch.equal(z, q.loc + scale * noise)
    want = Normal(0.0, 1.0).log_prob(noise.double()) - scale.double().log()
    torch.testing.assert_close(log_q(), want.sum(-1), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "bound",
    [
        lambda vae, x, **o: elbo(vae, x, num_samples=3, generator=rng(), **o),
        lambda vae, x, **o: iwae_bound(vae, x, 3, generator=rng(), chunk_size=2, **o),
        lambda vae, x, **o: prior_sample_log_prob(vae.decoder, vae.prior, x, 3, generator=rng(), **o),
        lambda vae, x, **o: prior_sample_log_prob(vae.decoder, vae.prior, x, 3, shared=False, generator=rng(), **o),
        lambda vae, x, **o: quadrature_log_prob(vae.decoder, vae.prior, x, tolerance=1e-5, **o),
    ],
)
def test_data_that_are_moved_with_their_condition_are_as_likely(bound):
    """Neither encoder nor decoder can do without it."""
    x, model = toy(d=1, n=6)
    vae, move = linear_vae(model, prior=StandardNormal(1).double()), 9 * normal(6, 5, seed=2)

    def decoder(z, move):
        return Independent(Normal(model.likelihood(z).mean + move, math.sqrt(model.noise_variance)), 1)

    moved = SimpleNamespace(encoder=lambda x, move: vae.encoder(x - move), decoder=decoder, prior=vae.prior)
    torch.testing.assert_close(bound(moved, x + move, condition=move), bound(vae, x), rtol=1e-8, atol=1e-8)
