"""The inference gap: against linear models, where everything is closed form, and against brute force."""

import math
from types import SimpleNamespace

import pytest
import scipy.optimize
import scipy.stats
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from vaebook import inference
from vaebook.adapters import adapt
from vaebook.inference import elbo_quadrature, inference_gap, posterior_moments
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal

F64 = {"dtype": torch.float64}


def linear(weight, noise=0.5):
    """A linear decoder, the exact posterior's mean as a function of x, and its precision."""
    dim = weight.shape[1]
    precision = torch.eye(dim, **F64) + weight.mT @ weight / noise**2
    gain = torch.linalg.solve(precision, weight.mT) / noise**2

    def decoder(z):
        return Independent(Normal(z @ weight.mT, noise), 1)

    marginal = MultivariateNormal(
        torch.zeros(len(weight), **F64), weight @ weight.mT + noise**2 * torch.eye(len(weight))
    )
    return decoder, lambda x: x @ gain.mT, precision, marginal


def correlated():
    weight = torch.tensor([[1.0, 0.8], [0.2, 1.0], [0.5, 0.5]], **F64)
    x = torch.tensor([[0.3, -1.0, 0.4], [2.0, 1.0, -0.5]], **F64)
    return x, linear(weight)


def two_valued(z):
    """z² up to a small tilt: the posterior has a mode on either side, one higher than the other."""
    return Independent(Normal(z.square() + 0.1 * z, 0.5), 1)


class TestElboQuadrature:
    @pytest.mark.parametrize("dim", [1, 2])
    def test_against_the_closed_form(self, dim):
        weight = torch.tensor([[1.0, 0.8], [0.2, 1.0], [0.5, 0.5]], **F64)[:, :dim]
        decoder, posterior_mean, precision, marginal = linear(weight)
        x = torch.tensor([[0.3, -1.0, 0.4], [2.0, 1.0, -0.5]], **F64)
        loc, scale = (
            torch.tensor([[0.1, -2.0], [0.0, 1.0]], **F64)[:, :dim],
            torch.tensor([[0.7, 0.1], [2.0, 1.0]], **F64),
        )
        scale = scale[:, :dim]
        q = MultivariateNormal(loc, torch.diag_embed(scale.square()))
        exact = marginal.log_prob(x) - kl_divergence(
            q, MultivariateNormal(posterior_mean(x), precision_matrix=precision)
        )
        found = elbo_quadrature(decoder, StandardNormal(dim), x, loc, scale)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
        assert found.dtype == torch.float64 and not found.requires_grad

    def test_of_a_network_against_scipy(self):
        decoder = BernoulliDecoder(1, 3, (8,)).double()
        x, loc, scale = torch.tensor([[0.0, 1.0, 1.0]], **F64), -0.4, 0.9

        def integrand(u):
            with torch.no_grad():
                log_p = decoder(torch.tensor([[u]], **F64)).log_prob(x).item()
            own = scipy.stats.norm.logpdf(u, loc, scale)
            return math.exp(own) * (log_p + scipy.stats.norm.logpdf(u) - own)

        exact, _ = scipy.integrate.quad(integrand, -10, 10, epsabs=1e-11, limit=200)
        q = (torch.tensor([[loc]], **F64), torch.tensor([[scale]], **F64))
        assert elbo_quadrature(decoder, StandardNormal(1), x, *q).item() == pytest.approx(exact, abs=1e-8)

    def test_a_general_prior(self):
        prior = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]], **F64), torch.tensor([[0.5], [0.8]], **F64))

        def flat(z):
            return Independent(Normal(0 * z, 1.0), 1)

        x, loc, scale = torch.zeros(1, 1, **F64), torch.full((1, 1), 0.3, **F64), torch.full((1, 1), 0.4, **F64)
        u = torch.linspace(-8, 8, 4001, **F64)[:, None]
        own = Normal(loc[0], scale[0]).log_prob(u[:, 0])
        kl = torch.trapezoid(own.exp() * (own - prior.log_prob(u)), u[:, 0])
        expected = -0.5 * math.log(2 * math.pi) - kl
        assert elbo_quadrature(flat, prior, x, loc, scale).item() == pytest.approx(float(expected), abs=1e-9)

    def test_refuses_what_it_cannot_integrate(self):
        def waves(z):
            return Independent(Normal(torch.sin(60 * z), 0.1), 1)

        one = torch.ones(1, 1, **F64)
        with pytest.raises(RuntimeError, match="max_nodes: expected enough for tolerance 1e-09, got 100"):
            elbo_quadrature(waves, StandardNormal(1), one, one, one)
        with pytest.raises(RuntimeError, match="got 8; raise one of them"):  # one rule alone proves nothing
            elbo_quadrature(two_valued, StandardNormal(1), one, one, one, max_nodes=8)
        assert elbo_quadrature(two_valued, StandardNormal(1), one, one, one, max_nodes=12).shape == (1,)


class TestPosteriorMoments:
    @pytest.mark.parametrize("dim", [1, 2])
    def test_of_linear_models(self, dim):
        x, _ = correlated()
        weight = torch.tensor([[1.0, 0.8], [0.2, 1.0], [0.5, 0.5]], **F64)[:, :dim]
        decoder, posterior_mean, precision, _ = linear(weight)
        mean, covariance = posterior_moments(decoder, StandardNormal(dim), x, tolerance=1e-10)
        torch.testing.assert_close(mean, posterior_mean(x), rtol=0, atol=1e-9)
        torch.testing.assert_close(covariance, precision.inverse().expand(2, dim, dim), rtol=0, atol=1e-9)

    def test_step_shrinks_until_narrow_posteriors_are_resolved(self):
        decoder, posterior_mean, precision, _ = linear(torch.tensor([[40.0]], **F64), noise=0.2)
        x = torch.tensor([[13.0]], **F64)  # posterior scale 1/200, less than the first step of 1/64
        mean, covariance = posterior_moments(decoder, StandardNormal(1), x, tolerance=1e-9)
        torch.testing.assert_close(mean, posterior_mean(x), rtol=0, atol=1e-7)
        torch.testing.assert_close(covariance[0], precision.inverse(), rtol=1e-4, atol=0)
        with pytest.raises(RuntimeError, match="max_nodes: expected enough for tolerance 1e-09, got 1200"):
            posterior_moments(decoder, StandardNormal(1), x, tolerance=1e-9, max_nodes=1_200)
        x, (decoder, *_) = correlated()
        with pytest.raises(RuntimeError, match="got 20000; raise one of them"):  # 129² nodes, but not 193²
            posterior_moments(decoder, StandardNormal(2), x, max_nodes=20_000)

    def test_the_box_is_the_limit(self):
        x, (decoder, *_) = correlated()
        mean, _ = posterior_moments(decoder, StandardNormal(2), x, limit=0.5, tolerance=1e-2)
        assert float(mean.abs().max()) < 0.5


class TestInferenceGap:
    def test_exact_encoder_has_none(self):
        model = PPCA(torch.zeros(3), torch.tensor([[1.5, 0.0], [0.0, 0.7], [0.0, 0.0]]), noise_variance=0.4)
        x = torch.tensor([[0.5, -1.0, 0.2], [3.0, 2.0, 1.0]], **F64)
        gap = inference_gap(model, x, tolerance=1e-9)
        q = model.posterior(x).base_dist
        for value in (gap.approximation, gap.amortisation):
            torch.testing.assert_close(value, torch.zeros(2, **F64), rtol=0, atol=1e-8)
        torch.testing.assert_close(gap.loc, q.loc, rtol=0, atol=1e-6)
        torch.testing.assert_close(gap.scale, q.scale, rtol=0, atol=1e-6)

    def test_correlated_posterior_against_the_closed_form(self):
        """The cost of a diagonal covariance is that of gen/diagonal-cost; the rest is the encoder's own."""
        x, (decoder, posterior_mean, precision, _) = correlated()

        def encode(x):
            return Independent(Normal(0.5 * x[:, :2] + 0.1, 0.6), 1)

        gap = inference_gap(
            SimpleNamespace(encoder=encode, decoder=decoder, prior=StandardNormal(2)), x, tolerance=1e-9
        )
        cost = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
        q = MultivariateNormal(encode(x).mean, 0.36 * torch.eye(2, **F64))
        total = kl_divergence(q, MultivariateNormal(posterior_mean(x), precision_matrix=precision))
        torch.testing.assert_close(gap.approximation, cost.expand(2), rtol=0, atol=1e-8)
        torch.testing.assert_close(gap.approximation + gap.amortisation, total, rtol=0, atol=1e-8)
        torch.testing.assert_close(gap.loc, posterior_mean(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(gap.scale, precision.diagonal().rsqrt().expand(2, 2), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("start", [1.0, -1.0])
    @pytest.mark.parametrize("side", [1.0, -1.0])
    def test_the_better_of_two_modes_is_found_from_the_worse(self, start, side):
        """The encoder sits on one mode; the moments lead to the other where that is better."""
        x = torch.full((1, 1), 1.5, **F64)

        def encode(x):
            return Independent(Normal(start * 1.2 + 0 * x, 0.2), 1)

        def decode(z):
            return two_valued(side * z)

        vae = SimpleNamespace(encoder=encode, decoder=decode, prior=StandardNormal(1))
        gap = inference_gap(vae, x, tolerance=1e-9, num_nodes=40)
        z = torch.linspace(-8, 8, 4001, **F64)[:, None]
        joint = decode(z[:, None]).log_prob(x)[:, 0] + StandardNormal(1).log_prob(z)
        posterior = joint - torch.trapezoid(joint.exp(), z[:, 0]).log()

        def kl(parameters):
            own = Normal(parameters[0], math.exp(parameters[1])).log_prob(z[:, 0])
            return float(torch.trapezoid(own.exp() * (own - posterior), z[:, 0]))

        best = min(scipy.optimize.minimize(kl, (s, -1.5), method="Nelder-Mead").fun for s in (-1.2, 1.2))
        assert gap.approximation.item() == pytest.approx(best, abs=1e-6)
        assert gap.amortisation.item() > 0.01

    def test_of_networks_and_leaves_their_gradients_alone(self):
        encoder, decoder = GaussianEncoder(6, 2, (8,)), BernoulliDecoder(2, 6, (8,))
        vae = VAE(encoder, decoder, StandardNormal(2)).double()
        x = Bernoulli(torch.full((4, 6), 0.5, **F64)).sample()
        with torch.no_grad():
            gap = inference_gap(vae, x)
        assert all(p.grad is None and p.requires_grad for p in vae.parameters())
        assert all(not value.requires_grad and value.dtype == torch.float64 for value in gap)
        assert float(gap.approximation.min()) > -2e-6 and float(gap.amortisation.min()) >= 0
        again = elbo_quadrature(decoder, vae.prior, x, gap.loc, gap.scale) + gap.approximation
        q = vae.encoder(x).base_dist
        own = elbo_quadrature(decoder, vae.prior, x, q.loc, q.scale) + gap.approximation + gap.amortisation
        torch.testing.assert_close(again, own, rtol=0, atol=1e-5)  # both are log p(x)

    def test_a_best_gaussian_is_never_worse_than_the_encoder_even_without_time_to_climb(self):
        x, (decoder, posterior_mean, precision, _) = correlated()

        def exact(x):
            return Independent(Normal(posterior_mean(x), precision.diagonal().rsqrt()), 1)

        gap = inference_gap(SimpleNamespace(encoder=exact, decoder=decoder, prior=StandardNormal(2)), x, max_steps=1)
        assert float(gap.amortisation.min()) >= 0 and float(gap.amortisation.max()) < 1e-9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.zeros(2, 1)},
            ValueError,
            r"x: expected dtype torch.float64 .* got torch.float32; use decoder.double\(\)",
        ),
        ({"x": torch.zeros(2, **F64)}, ValueError, r"x: expected shape \(N, ...\)"),
        ({"x": torch.full((2, 1), math.nan, **F64)}, ValueError, "x: expected finite values"),
        ({"loc": torch.zeros(3, 1, **F64)}, ValueError, r"loc: expected shape \(2, 1\)"),
        ({"scale": torch.zeros(2, 1, **F64)}, ValueError, "scale: expected positive values, got min 0"),
        ({"scale": torch.ones(2, 2, **F64)}, ValueError, r"scale: expected shape \(2, 1\)"),
        (
            {"loc": torch.zeros(2, 3, **F64), "scale": torch.ones(2, 3, **F64)},
            ValueError,
            r"loc: expected shape \(2, 1\), got \(2, 3\)",
        ),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a number >= 1e-14"),
        ({"max_nodes": 101}, ValueError, "max_nodes: expected an int between 2 and 100, got 101"),
        ({"max_nodes": 1}, ValueError, "max_nodes: expected an int between 2 and 100, got 1"),
        ({"decoder": lambda z: Normal(z[:1], 1.0)}, ValueError, "decoder: expected a row for each of .* codes"),
        (
            {"prior": StandardNormal(3), "decoder": lambda z: Normal(z[:, :1], 1.0)},
            ValueError,
            "prior: expected at most 2",
        ),
    ],
)
def test_bad_input_for_a_given_gaussian(change, error, message):
    one = torch.ones(2, 1, **F64)
    arguments = {"decoder": two_valued, "prior": StandardNormal(1), "x": one, "loc": one, "scale": one}
    with pytest.raises(error, match=message):
        elbo_quadrature(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 1)}, ValueError, "x: expected dtype torch.float64"),
        ({"limit": 0.0}, ValueError, "limit: expected a number > 0"),
        ({"tolerance": -1.0}, ValueError, "tolerance: expected a number >= 1e-14"),
        ({"tolerance": 1e-300}, ValueError, "tolerance: expected a number >= 1e-14"),
        ({"max_nodes": 1}, ValueError, "max_nodes: expected an int at least 2"),
        (
            {"prior": StandardNormal(3), "decoder": lambda z: Normal(z[:, :1], 1.0)},
            ValueError,
            "prior: expected at most 2",
        ),
        (
            {"decoder": lambda z: SimpleNamespace(log_prob=lambda x: x[:, 0] * 0 - torch.inf)},
            ValueError,
            r"log p\(x\): expected",
        ),
    ],
)
def test_bad_input_for_moments(change, error, message):
    arguments = {"decoder": two_valued, "prior": StandardNormal(1), "x": torch.ones(2, 1, **F64)}
    with pytest.raises(error, match=message):
        posterior_moments(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 1)}, "x: expected dtype torch.float64"),
        ({"limit": 0.0}, "limit: expected a number > 0"),
        ({"tolerance": -1.0}, "tolerance: expected a number >= 1e-14"),
        ({"num_nodes": 1}, "num_nodes: expected an int between 2 and 100, got 1"),
        ({"num_nodes": 101}, "num_nodes: expected an int between 2 and 100, got 101"),
        ({"max_steps": 0}, "max_steps: expected an int between 1 and 1000000, got 0"),
    ],
)
def test_bad_input_for_the_gap(change, message):
    def encode(x):
        return Independent(Normal(x, 0.5), 1)

    vae = SimpleNamespace(encoder=encode, decoder=two_valued, prior=StandardNormal(1))
    with pytest.raises(ValueError, match=message):
        inference_gap(vae, **({"x": torch.ones(2, 1, **F64)} | change))


def test_a_condition_moves_what_is_decoded_and_reaches_every_integral():
    """Of x - c without a condition the same is found as of x with c, whatever the rows' conditions are."""
    x, label = torch.tensor([[0.3], [-1.0], [2.0]], **F64), torch.tensor([[0.5], [-2.0], [1.0]], **F64)
    prior, loc, scale = StandardNormal(1).double(), torch.zeros(3, 1, **F64), torch.full((3, 1), 0.5, **F64)
    encode = lambda x, label: (0.5 * (x - label), torch.full_like(x, 0.6))  # noqa: E731
    plain = adapt(lambda x: encode(x, 0 * x), lambda z: Normal(z, 0.5), prior=prior)
    moved = adapt(encode, lambda z, label: Normal(z + label, 0.5), prior=prior)
    quick = {"tolerance": 1e-2}
    for function, with_label, without in (
        (elbo_quadrature, (moved.decoder, prior, x, loc, scale), (plain.decoder, prior, x - label, loc, scale)),
        (posterior_moments, (moved.decoder, prior, x), (plain.decoder, prior, x - label)),
        (inference_gap, (moved, x), (plain, x - label)),
    ):
        found, wanted = function(*with_label, condition=label, **quick), function(*without, **quick)
        torch.testing.assert_close(tuple(found), tuple(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tolerance", "used"), [(1e-9, 1e-4), (1e-2, 1e-2)])
def test_a_search_starts_from_the_encoder_the_moments_and_half_as_wide_on_either_side(tolerance, used, monkeypatch):
    """One pair of sides for each latent; a latent without variance in the posterior still has a width."""
    mean, covariance = torch.tensor([[1.0, 2.0]], **F64), torch.tensor([[[4.0, 0.1], [0.1, 0.0]]], **F64)
    asked = []
    monkeypatch.setattr(inference, "_moments", lambda *given: asked.append(given) or (mean, covariance))
    q = Normal(torch.tensor([[0.5, 0.25]]), torch.tensor([[0.7, 0.9]]))
    joint = SimpleNamespace(x="data", condition="of them", vae=SimpleNamespace())
    joint.vae.encode = lambda *given: asked.append(given) or Independent(q, 1)
    starts = inference._starts(joint, 7.0, tolerance)
    assert asked == [("data", "of them"), (joint, 7.0, used, 1_000_000)]
    spread = torch.tensor([[2.0, 1e-4]], **F64)
    wanted = [(q.loc.double(), q.scale.double()), (mean, spread)]
    for aside in (torch.tensor([[2.0, 0.0]], **F64), torch.tensor([[0.0, 1e-4]], **F64)):
        wanted += [(mean + aside, spread / 2), (mean - aside, spread / 2)]
    for one, other in zip(starts, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)


def test_a_climb_begins_where_it_is_told_and_ends_on_the_top():
    """Under a Gaussian posterior: at its mean and scale no step leads up, and from elsewhere it is found."""
    mean, spread = torch.tensor([[1.0, -2.0], [0.5, 3.0]], **F64), torch.tensor([[0.5, 2.0], [1.0, 0.1]], **F64)

    class Posterior:
        chunk = 7

        def __call__(self, z):
            return Normal(mean, spread).log_prob(z).sum(-1)

    stayed = inference._climb(Posterior(), mean, spread, 10, 1, 1e-6)
    assert torch.equal(stayed[0], mean) and torch.equal(stayed[1], spread)
    for steps, close in ((1, False), (50, True)):
        found = inference._climb(Posterior(), mean + spread, 2 * spread, 10, steps, 1e-9)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(found, (mean, spread), strict=True)) is close
