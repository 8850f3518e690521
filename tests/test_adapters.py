"""The doors: whatever form somebody's encoder, decoder and prior have, they mean the same behind them."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace as Object

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from vaebook.adapters import (
    AdaptedVAE,
    adapt,
    adapt_codes,
    adapt_decoder,
    adapt_encoder,
    adapt_prior,
    adapt_prior_of,
    adapt_vae,
)
from vaebook.bounds import elbo
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import PriorModule, components, gaussian_kl, optional
from vaebook.priors import StandardNormal

N, P, D = 7, 6, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draw(N, P)
GREY = X.sigmoid()
Z = draw(5, N, D, seed=1)
W, V = draw(P, D, seed=2), draw(D, P, seed=3)


def loc_scale(x):
    return x @ W, (x @ W).sin().exp()


@dataclass
class Found:
    mu: Tensor
    logvar: Tensor


class Methods(Found):
    """Some of its names are no tensors."""

    loc = None

    def mean(self):
        return 0

    std = mean


Pair = namedtuple("Pair", "loc scale")
Named = namedtuple("Named", "mu logvar")
LOC, SCALE = loc_scale(X)


class TestEncoders:
    @pytest.mark.parametrize(
        ("encode", "spread"),
        [
            (loc_scale, "std"),
            (lambda x: list(loc_scale(x)), "std"),
            (lambda x: Pair(*loc_scale(x)), "std"),
            (lambda x: (loc_scale(x)[0], loc_scale(x)[1] ** 2), "var"),
            (lambda x: (loc_scale(x)[0], 2 * loc_scale(x)[1].log()), "log_var"),
            (lambda x: Normal(*loc_scale(x)), "std"),
            (lambda x: Independent(Normal(*loc_scale(x)), 1), "std"),
            (lambda x: Independent(Independent(Normal(*loc_scale(x)), 1), 0), "std"),
            (lambda x: Independent(Normal(*(p.reshape(-1, 1, D, 1) for p in loc_scale(x))), 3), "std"),
            (lambda x: MultivariateNormal(loc_scale(x)[0], torch.diag_embed(loc_scale(x)[1] ** 2)), "std"),
            (lambda x: {"mean": loc_scale(x)[0], "std": loc_scale(x)[1]}, "std"),
            (lambda x: OrderedDict(embedding=loc_scale(x)[0], log_covariance=2 * loc_scale(x)[1].log()), "std"),
            (lambda x: {"z": x, "mu": loc_scale(x)[0], "logvar": 2 * loc_scale(x)[1].log()}, "log_var"),
            (lambda x: Object(loc=loc_scale(x)[0], variance=loc_scale(x)[1] ** 2), "std"),
            (lambda x: Found(loc_scale(x)[0], 2 * loc_scale(x)[1].log()), "std"),
            (lambda x: Named(loc_scale(x)[0], 2 * loc_scale(x)[1].log()), "std"),  # its names tell what it holds
            (lambda x: Methods(loc_scale(x)[0], 2 * loc_scale(x)[1].log()), "std"),
        ],
    )
    def test_every_form_means_the_same(self, encode, spread):
        q = adapt(encode, spread=spread).encode(X)
        assert (q.batch_shape, q.event_shape) == ((N,), (D,))
        torch.testing.assert_close(q.base_dist.loc, LOC, rtol=0, atol=0)
        torch.testing.assert_close(q.base_dist.scale, SCALE, rtol=1e-14, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_codes_are_at_least_single_precision(self, dtype):
        q = adapt(lambda x: (x, torch.ones_like(x))).encode(X.to(dtype))
        assert q.base_dist.loc.dtype == torch.promote_types(dtype, torch.float32) == q.base_dist.scale.dtype

    def test_gradients_pass(self):
        net = nn.Linear(P, 2 * D).double()
        adapt(lambda x: net(x).chunk(2, 1), spread="log_var").encode(X).rsample().sum().backward()
        assert bool(net.weight.grad.abs().sum() > 0)

    @pytest.mark.parametrize(
        ("encode", "spread", "match"),
        [
            (lambda x: (x, x.exp()), "log_var", "expected log_var as named.* every variance is above 1"),
            (lambda x: (x, x.exp() * 1e4), "std", "expected std as named.* ten times as wide"),
            (lambda x: (x, x.exp() * 1e6), "var", "expected var as named.* ten times as wide"),
        ],
    )
    def test_a_spread_that_looks_like_another_is_warned_about(self, encode, spread, match):
        with pytest.warns(UserWarning, match=match):
            adapt(encode, spread=spread).encode(X)

    @pytest.mark.parametrize(
        ("error", "match", "encode", "spread"),
        [
            (ValueError, "expected positive values, got none; .* log_var", lambda x: (x, -x.exp()), "std"),
            (ValueError, "expected positive values, got none; .* log_var", lambda x: (x, -x.exp()), "var"),
            (ValueError, "spread: expected 'std', which what .* is, got 'var'", lambda x: Normal(x, x.exp()), "var"),
            (ValueError, "spread: expected 'log_var'", lambda x: {"mu": x, "logvar": x}, "var"),
            (TypeError, "a mapping or object with one of loc.*got dict of 1 .mu.", lambda x: {"mu": x}, "std"),
            (TypeError, "got NoneType", lambda x: None, "std"),
            (TypeError, r"got tuple of 3 \(Tensor, Tensor, Tensor\)", lambda x: (x, x, x), "std"),
            (TypeError, "a diagonal covariance, got a MultivariateNormal with correlations",
             lambda x: MultivariateNormal(x, torch.eye(P, dtype=x.dtype) + 0.1), "std"),
            (TypeError, "got Laplace", lambda x: Laplace(x, x.exp()), "std"),
            (TypeError, "got StudentT", lambda x: StudentT(3.0, x, x.exp()), "std"),
            (TypeError, "encoder's loc: expected a floating-point", lambda x: (x.long(), x.long()), "std"),
            (ValueError, "encoder: expected it to take a batch .* got KeyError", lambda x: {}[0], "std"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused(self, error, match, encode, spread):
        with pytest.raises(error, match=match):
            adapt(encode, spread=spread).encode(X)

    def test_what_is_no_number_is_named_before_anything_else_is_run(self):
        vae = adapt(lambda x: (x * math.nan, torch.ones_like(x)))
        with pytest.raises(ValueError, match=r"^encoder's loc: expected finite values, got nan"), vae.evaluating(X):
            pass

    @pytest.mark.parametrize("name", ["x", "held_out"])
    def test_batches_name_the_argument_that_they_come_from(self, name):
        with pytest.raises(TypeError, match=rf"^{name}: expected a tensor, array or iterable"):
            next(adapt(loc_scale).batches(3, 5, name=name))

    @pytest.mark.parametrize("spread", ["scale", "log_std", None, 2, X])
    def test_unknown_spread(self, spread):
        with pytest.raises(ValueError, match="spread: expected one of std, var, log_var"):
            adapt(loc_scale, spread=spread)

    def test_an_adapted_encoder_keeps_its_spread(self):
        vae = adapt(lambda x: (x, x), spread="log_var")
        assert adapt_encoder(vae) is vae.encoder
        assert adapt_codes(vae).encoder is vae.encoder
        with pytest.raises(ValueError, match="spread: expected 'log_var', as it was adapted, got 'var'"):
            adapt_encoder(vae, "var")


def expected_log_prob(z, x):
    """Row by row, in the test's own words: grey Bernoulli of logits z V."""
    logits = z @ V
    return (x * logits - logits.exp().log1p()).sum(-1)


class OnlyDensity:
    """A likelihood that is no torch distribution and has no moments, and insists on as many data as codes."""

    def __init__(self, logits):
        self.logits = logits

    def log_prob(self, x):
        assert x.shape == self.logits.shape
        return (x * self.logits - self.logits.exp().log1p()).sum(-1)


class Silent(Distribution):
    """Without a mean: torch raises NotImplementedError."""


class TestDecoders:
    FORMS = (
        (lambda z: z @ V, "bernoulli_logits"),
        (lambda z: (z @ V).sigmoid(), "bernoulli"),
        (lambda z: OnlyDensity(z @ V), None),
        (lambda z: z @ V, OnlyDensity),
        (lambda z: (z @ V, 0), lambda logits, _: OnlyDensity(logits)),
    )

    @pytest.mark.parametrize(("decode", "likelihood"), FORMS)
    @pytest.mark.parametrize("shared", [False, True])
    def test_every_form_of_a_grey_likelihood(self, decode, likelihood, shared):
        vae = adapt(loc_scale, decode, likelihood=likelihood)
        vae.encode(GREY)
        z = Z[:, :1] if shared else Z
        value = vae.log_likelihood(z, GREY)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected_log_prob(z, GREY), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("likelihood", [None, "gaussian"])
    @pytest.mark.parametrize("rank", [0, 1])
    def test_gaussian(self, likelihood, rank):
        def decode(z):
            pair = z @ V, (z @ V).cos().exp()
            return pair if likelihood else Independent(Normal(*pair), rank)

        expected = Normal(Z @ V, (Z @ V).cos().exp()).log_prob(X).sum(-1)
        torch.testing.assert_close(adapt(loc_scale, decode, likelihood=likelihood).log_likelihood(Z, X), expected)

    @pytest.mark.parametrize("scale", [0.3, torch.tensor([0.3, 0.1, 0.2, 1.0, 2.0, 3.0], dtype=torch.float64)])
    def test_a_scale_may_be_shared(self, scale):
        scale = torch.as_tensor(scale, dtype=torch.float64)
        vae = adapt(loc_scale, lambda z: (z @ V, scale), likelihood="gaussian")
        torch.testing.assert_close(vae.log_likelihood(Z, X), Normal(Z @ V, scale).log_prob(X).sum(-1))

    @pytest.mark.parametrize("kind", ["categorical", "categorical_logits"])
    @pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.float64])
    def test_classes(self, kind, dtype):
        def decode(z):
            logits = (z @ V).reshape(-1, 3, 2)
            return logits if kind.endswith("logits") else logits.softmax(-1)

        x = (X[:, :3] > 0).to(dtype)
        log_p = (Z @ V).reshape(*Z.shape[:2], 3, 2).log_softmax(-1)
        expected = torch.where(x > 0, log_p[..., 1], log_p[..., 0]).sum(-1)
        vae = adapt(loc_scale, decode, likelihood=kind)
        torch.testing.assert_close(vae.log_likelihood(Z, x), expected)
        assert not vae.decoder(Z).has_moments

    @pytest.mark.parametrize("shape", [(P,), (1, 2, 3), (2, 3, 1)])
    def test_images_and_flat_data_meet(self, shape):
        vae = adapt(loc_scale, lambda z: Normal((z @ V).reshape(-1, *shape), 1.0))
        expected = Normal(Z @ V, 1.0).log_prob(X).sum(-1)
        for x in (X, X.reshape(N, *shape)):
            torch.testing.assert_close(vae.log_likelihood(Z, x), expected)
            torch.testing.assert_close(vae.log_likelihood(Z[:, :1], x), Normal(Z[:, :1] @ V, 1.0).log_prob(X).sum(-1))
        assert vae.decoder(Z).mean.shape == (*Z.shape[:2], *shape)

    def test_other_shapes_are_no_match(self):
        vae = adapt(loc_scale, lambda z: Normal((z @ V).reshape(-1, 2, 3), 1.0))
        with pytest.raises(ValueError, match=r"x: expected shape \(B, 2, 3\), got \(7, 3, 2\)"):
            vae.log_likelihood(Z, X.reshape(N, 3, 2))
        with pytest.raises(ValueError, match=r"x: expected shape \(B, 2, 3\), got \(7, 1\)"):
            vae.log_likelihood(Z, X[:, :1])

    def test_it_gets_rows_in_the_shape_of_codes(self):
        seen = []

        def decode(z):
            seen.append(z.shape)
            return Normal(z.flatten(1) @ V, 1.0)

        vae = adapt(lambda x: tuple(p.reshape(-1, 2, 1) for p in loc_scale(x)), decode)
        vae.encode(X)
        torch.testing.assert_close(vae.log_likelihood(Z, X), Normal(Z @ V, 1.0).log_prob(X).sum(-1))
        assert seen == [(5 * N, 2, 1)]

    def test_latent_shape_must_fit(self):
        vae = adapt(loc_scale, lambda z: Normal(z @ V, 1.0), latent_shape=(2,))
        with pytest.raises(ValueError, match=r"z: expected shape \(..., 2\), got \(5, 4\)"):
            vae.decoder(draw(5, 4))
        with pytest.raises(ValueError, match=r"encoder: expected codes of latent_shape \(1, 4\), got \(2,\)"):
            adapt(loc_scale, latent_shape=(1, 4)).encode(X)
        with pytest.raises(ValueError, match=r"encoder: expected codes of latent_shape \(1, 2\), got \(2,\)"):
            adapt(loc_scale, latent_shape=(1, 2)).encode(X)

    def test_moments(self):
        decoded = adapt(loc_scale, lambda z: Independent(Bernoulli(logits=z @ V), 1)).decoder(Z)
        p = (Z @ V).sigmoid()
        torch.testing.assert_close(decoded.mean, p)
        torch.testing.assert_close(decoded.variance, p * (1 - p))
        assert decoded.has_moments

    def test_a_mean_is_not_enough(self):
        decoded = adapt(loc_scale, lambda z: StudentT(1.5, z.to(V) @ V), latent_shape=(D,)).decoder(Z)
        assert bool(decoded.mean.isfinite().all()) and not decoded.has_moments

    @pytest.mark.parametrize(
        "made",
        [
            lambda z: StudentT(1.0, z.to(V) @ V),
            lambda z: OnlyDensity(z.to(V) @ V),
            lambda z: Silent(torch.Size(z.shape[:1]), torch.Size((P,)), validate_args=False),
        ],
    )
    def test_without_moments(self, made):
        vae = adapt(loc_scale, made, latent_shape=(D,))
        assert not vae.decoder(Z).has_moments
        with pytest.raises(ValueError, match=r"decoder: expected a distribution of x with a mean, got .*, without"):
            vae.sample(3)

    @pytest.mark.parametrize(
        ("error", "match", "decode", "likelihood"),
        [
            (TypeError, 'decoder: .* got Tensor; name the likelihood: adapt.*"bernoulli"', lambda z: z @ V, None),
            (TypeError, "decoder: .* got tuple", lambda z: (z @ V, z @ V), None),
            (TypeError, "one tensor for 'bernoulli', got tuple", lambda z: (z @ V, z @ V), "bernoulli"),
            (TypeError, r"\(mean, standard deviation\) for 'gaussian', got Tensor", lambda z: z @ V, "gaussian"),
            (ValueError, "probabilities.*bernoulli_logits", lambda z: z @ V, "bernoulli"),
            (ValueError, "decoder's scale: expected positive", lambda z: (z @ V, -(z @ V).exp()), "gaussian"),
            (ValueError, "decoder's scale: expected a standard dev", lambda z: (z @ V, z[:, :2].exp()), "gaussian"),
            (ValueError, "decoder's output: expected finite", lambda z: (z @ V).log(), "bernoulli_logits"),
            (ValueError, "likelihood: expected a function that takes", lambda z: z @ V, lambda a, b: a),
            (ValueError, r"expected a row for each of 35 codes, got \(1, 6\)", lambda z: Normal(V[:1], 1.0), None),
            (ValueError, r"expected a row for each of 35 codes, got \(70, 6\)",
             lambda z: Normal((z @ V).repeat(2, 1), 1.0), None),
            (ValueError, r"log_prob of shape \(35,\), got \(70,\)",
             lambda z: Object(log_prob=lambda x: torch.zeros(2 * len(x))), None),
            (ValueError, r"log_prob of shape \(35,\), got float", lambda z: Object(log_prob=lambda x: 0.0), None),
            (ValueError, r"log_prob of shape \(35,\)", lambda z: Independent(Normal(z @ V, 1.0), 2), None),
            (ValueError, "x: expected data of the decoder's dist.*support", lambda z: Bernoulli(logits=z @ V), None),
            (ValueError, "decoder: expected it to take a batch of shape", lambda z: nn.Linear(3, 3)(z), None),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused(self, error, match, decode, likelihood):
        with pytest.raises(error, match=match):
            adapt(loc_scale, decode, likelihood=likelihood).log_likelihood(Z, X)

    @pytest.mark.parametrize(("kind", "x"), [("bernoulli_logits", 3 * GREY), ("categorical_logits", GREY[:, :3])])
    def test_data_outside_of_the_likelihood(self, kind, x):
        vae = adapt(loc_scale, lambda z: z @ V if x.shape[1] == P else (z @ V).reshape(-1, 3, 2), likelihood=kind)
        with pytest.raises(ValueError, match="x: expected"):
            vae.log_likelihood(Z, x)

    @pytest.mark.parametrize("likelihood", ["normal", "Bernoulli", 3, X, ("a", "b")])
    def test_unknown_likelihood(self, likelihood):
        with pytest.raises(ValueError, match="likelihood: expected a callable or one of bernoulli"):
            adapt(loc_scale, lambda z: z, likelihood=likelihood)

    def test_a_decoder_in_single_precision_takes_codes_in_double(self):
        net = nn.Linear(D, P)
        hidden = [net]
        for decode in (net, lambda z: net(z), partial(lambda z, n: n(z), n=net), lambda z: hidden[0](z)):
            decoder = adapt(loc_scale, decode, likelihood="bernoulli_logits", modules=net).decoder
            assert decoder(Z).mean.dtype == torch.float32

    def test_any_code_is_decoded_and_values_are_in_double(self):
        vae = adapt(loc_scale, lambda z: Normal(z.float().sigmoid() @ V.float(), 1.0), latent_shape=(D,))
        assert vae.decoder(torch.full((3, D), math.inf)).batch_shape == (3,)
        for z in (Z, Z[:, :1]):
            assert vae.log_likelihood(z, X.float()).dtype == torch.float64

    def test_without_weights_codes_come_in_the_dtype_of_the_encoder_s(self):
        vae = adapt(loc_scale, lambda z: Normal(z, torch.ones_like(z)))
        vae.encode(X)
        assert vae.decoder(Z.float()).mean.dtype == torch.float64
        single = adapt(lambda x: (x[:, :D].float(), x[:, :D].float().exp()), lambda z: Normal(z, torch.ones_like(z)))
        single.encode(X)
        assert single.decoder(Z).mean.dtype == torch.float32


class Flow(nn.Module):
    """As zuko's: a module that returns a distribution of its present parameters."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    def forward(self, c=None):
        return Independent(Normal(self.loc, torch.ones(D)), 1)


class Stranger:
    """No torch distribution; its sample takes no generator."""

    def log_prob(self, z):
        return Normal(0.0, 2.0).log_prob(z).sum(-1)

    def sample(self, shape):
        return 2 * torch.randn(*shape, D)


class Nothing(nn.Module):
    """A module that returns no distribution."""

    def forward(self):
        return 1


def mixture_of(component):
    return MixtureSameFamily(Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)), component)


LOCS, SCALES = draw(3, D, seed=5), draw(3, D, seed=6).exp()
PRIORS = {
    "Independent": lambda: Independent(Normal(LOCS[0], SCALES[0]), 1),
    "MultivariateNormal": lambda: MultivariateNormal(LOCS[0], torch.eye(D, dtype=torch.float64) + 0.3),
    "MixtureSameFamily": lambda: mixture_of(Independent(Normal(LOCS, SCALES), 1)),
    "mixture of full covariances": lambda: mixture_of(
        MultivariateNormal(LOCS, (torch.eye(D, dtype=torch.float64) + 0.3).expand(3, D, D))
    ),
    "flow": Flow,
    "stranger": Stranger,
}


class TestPriors:
    @pytest.mark.parametrize("kind", PRIORS)
    def test_density_and_draws_belong_together(self, kind):
        source = PRIORS[kind]()
        prior = adapt_prior(source, D)
        assert prior.latent_dim == D
        z = prior.sample((20_000,), generator=torch.Generator().manual_seed(0))
        raw = source() if isinstance(source, Flow) else source
        torch.testing.assert_close(prior.log_prob(z), raw.log_prob(z))
        found = components(prior)
        if found is not None:
            log_weight, loc, scale = found
            full = scale.ndim == 3
            part = MultivariateNormal(loc, scale_tril=scale) if full else Independent(Normal(loc, scale), 1)
            own = MixtureSameFamily(Categorical(logits=log_weight), part)
            torch.testing.assert_close(own.log_prob(z[:50].to(loc)), prior.log_prob(z[:50].to(loc)))
            mean = log_weight.exp() @ loc
            assert float((z.to(mean).mean(0) - mean).detach().abs().max()) < 0.05
        assert (found is None) == (kind == "stranger")

    @pytest.mark.parametrize("kind", PRIORS)
    def test_a_generator_is_honoured_and_the_global_one_left_alone(self, kind):
        prior, before = adapt_prior(PRIORS[kind](), D), torch.get_rng_state()
        one, two, other = (prior.sample((3,), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.equal(prior.sample((3,)), prior.sample((3,)))

    def test_a_flow_keeps_learning(self):
        flow = Flow()
        prior = adapt_prior(flow)
        prior.log_prob(torch.ones(3, D)).sum().backward()
        assert torch.equal(flow.loc.grad, torch.full((D,), 3.0))
        with torch.no_grad():
            flow.loc += 5
        assert float(prior.sample((2000,)).detach().mean()) > 4

    def test_points_go_into_a_density_in_its_dtype_and_values_come_back_in_theirs(self):
        flow = Flow()
        prior, seen = adapt_prior(flow), []
        flow.register_forward_hook(lambda flow, _, density: seen.append(density.mean.dtype))
        for dtype in (torch.float32, torch.float64):
            flow.to(dtype)  # after it was adapted
            for z in (Z.float(), Z):
                torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z.to(dtype)).sum(-1).to(z))
        assert seen[-4:] == [torch.float32] * 2 + [torch.float64] * 2
        torch.testing.assert_close(prior.log_prob(Z), Normal(0.0, 1.0).log_prob(Z).sum(-1), rtol=1e-14, atol=0)
        strict = Object(
            log_prob=lambda z: (seen.append(z.dtype), z.sum(-1))[1], sample=lambda shape: torch.zeros(*shape, D)
        )
        adapt_prior(strict).log_prob(Z)
        assert seen[-1] == torch.float32

    def test_an_object_without_a_generator_gets_one(self):
        source = Stranger()
        source.latent_dim = D
        assert adapt_prior(source, D) is not source
        open_ended = Object(latent_dim=D, log_prob=lambda z: z.sum(-1), sample=lambda shape, **rest: None)
        assert adapt_prior(open_ended) is open_ended

    def test_adapting_draws_nothing_from_the_global_generator(self):
        before = torch.get_rng_state()
        adapt_prior(Flow())
        assert torch.equal(before, torch.get_rng_state())

    def test_draws_have_no_gradient(self):
        weight = nn.Parameter(torch.ones(D))
        source = Object(log_prob=lambda z: z.sum(-1), sample=lambda shape: weight * torch.ones(*shape, D))
        assert not adapt_prior(source).sample((3,)).requires_grad

    def test_a_density_must_give_one_value_a_point(self):
        prior = adapt_prior(Object(log_prob=lambda z: z.sum()[None], sample=lambda shape: torch.zeros(*shape, D)))
        with pytest.raises(ValueError, match=r"prior: expected log_prob of shape \(5,\), got \(1,\)"):
            prior.log_prob(torch.zeros(5, D))

    def test_only_a_product_of_dimensions_factorises(self):
        assert adapt_prior(PRIORS["Independent"]()).factorises
        correlated = PRIORS["MultivariateNormal"]()
        for source in (correlated, Independent(correlated, 0), PRIORS["MixtureSameFamily"]()):
            prior = adapt_prior(source)
            assert not prior.factorises and not hasattr(prior, "kl")

    def test_a_prior_shows_its_sizes(self):
        class Own(PriorModule):
            latent_dim = D

            def config(self):
                return {"num": 3}

        assert repr(Own()) == "Own(num=3, latent_dim=2)"

    def test_a_prior_of_another_encoder_is_refused(self):
        one, other = Sized(latent_dim=2), Sized(latent_dim=2)
        prior = StandardNormal(2)
        prior.encoder = one
        assert adapt_prior_of(one, Sized(), prior) is prior
        with pytest.raises(ValueError, match=r"^prior: expected one made of the codes of this encoder, got one of"):
            adapt_prior_of(other, Sized(), prior)

    def test_a_negative_scale_has_no_divergence(self):
        assert math.isnan(gaussian_kl(torch.tensor(0.0), torch.tensor(-1.0)))

    def test_zuko(self, monkeypatch):
        # its import switches the checks of torch.distributions off, for everything that runs later
        monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)
        zuko = pytest.importorskip("zuko")
        torch.manual_seed(0)
        flow = zuko.flows.NSF(D, transforms=1, hidden_features=(8,))
        prior = adapt_prior(flow)
        z = prior.sample((4,), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(prior.log_prob(z), flow().log_prob(z))
        assert (prior.latent_dim, components(prior)) == (D, None)

    def test_one_with_the_interface_stays_as_it_is(self):
        for prior in (StandardNormal(D), DiagGaussianMixture(LOCS, SCALES)):
            assert adapt_prior(prior, D) is prior

    def test_the_kl_of_a_diagonal_gaussian_is_exact(self):
        prior = adapt_prior(Independent(Normal(LOCS[0], SCALES[0]), 1))
        s, t = SCALE, SCALES[0]
        expected = ((t / s).log() + (s**2 + (LOC - LOCS[0]) ** 2) / (2 * t**2) - 0.5).sum(-1)
        torch.testing.assert_close(prior.kl(LOC, SCALE), expected)
        torch.testing.assert_close(
            adapt(loc_scale, latent_shape=(D,)).prior.kl(LOC, SCALE), StandardNormal(D).kl(LOC, SCALE)
        )
        assert not hasattr(adapt_prior(PRIORS["MixtureSameFamily"]()), "kl")

    @pytest.mark.parametrize(
        ("error", "match", "prior"),
        [
            (TypeError, "prior: expected a torch distribution over vectors.* got int", 3),
            (TypeError, "prior: expected a torch distribution.* got type", StandardNormal),
            (TypeError, "prior: expected a torch distribution.* got Simple", Object(log_prob=lambda z: z.sum(-1))),
            (TypeError, "prior: expected a torch distribution.* got Simple",
             Object(latent_dim=2, sample=lambda shape, generator=None: torch.zeros(*shape, 2))),
            (ValueError, r"prior: expected log_prob of shape .1,., got .1, 2.; .*Indep", Normal(LOCS[0], SCALES[0])),
            (ValueError, "prior's draws: expected shape .1, D., got .1, 3, 2.", Independent(Normal(LOCS, SCALES), 1)),
            (ValueError, "prior's draws: expected shape .1, D., got .1, 3, 2.", Independent(Normal(LOCS, SCALES), 2)),
            (ValueError, "prior: expected dimension 2, got 3", StandardNormal(3)),
            (ValueError, "prior: expected dimension 2, got 3", MultivariateNormal(torch.zeros(3), torch.eye(3))),
            (ValueError, "prior: expected a module that returns a distribution", nn.Linear(2, 2)),
            (TypeError, "prior: expected a torch distribution.* got Nothing", Nothing()),
            (ValueError, r"prior's draws: expected shape \(1, D\), got \(2,\)",
             Object(log_prob=lambda z: z.sum(-1), sample=lambda shape: torch.zeros(2))),
            (ValueError, "prior: expected draws from sample", Object(log_prob=lambda z: 0, sample=lambda: 1)),
            (ValueError, r"prior: expected log_prob of shape \(1,\)",
             Object(log_prob=lambda z: z, sample=lambda shape: torch.zeros(*shape, 2))),
        ],
    )  # fmt: skip
    def test_what_is_no_prior_is_refused_at_the_door(self, error, match, prior):
        with pytest.raises(error, match=match):
            adapt_prior(prior, D)
        if "dimension" not in match:
            with pytest.raises(error, match=match):
                adapt(loc_scale, latent_shape=(D,), prior=prior)

    @pytest.mark.parametrize("checks", [True, False])
    def test_the_support_of_a_prior_is_told(self, checks, monkeypatch):
        monkeypatch.setattr(Distribution, "_validate_args", checks)
        prior = adapt_prior(Independent(LogNormal(torch.zeros(D), torch.ones(D)), 1))
        with pytest.raises(ValueError, match="prior: expected a density over all of R"):
            prior.log_prob(-torch.ones(3, D))

    def test_dimensions_of_prior_and_codes_must_agree(self):
        for dim in (1, 3):
            with pytest.raises(ValueError, match=f"prior: expected dimension 2, got {dim}"):
                adapt(loc_scale, prior=StandardNormal(dim)).encode(X)
            with pytest.raises(ValueError, match=f"prior: expected dimension 2, got {dim}"):
                adapt_prior(StandardNormal(dim), 2)


class TestConditions:
    Y = torch.arange(N)

    @staticmethod
    def encode(x, y):
        return x @ W + y[:, None], torch.ones(len(x), D, dtype=x.dtype)

    @staticmethod
    def decode(z, y=None):
        return Normal(z.to(V) @ V + (0 if y is None else y[:, None]), 1.0)

    def check(self, vae, condition, loc_shift, mean_shift):
        x, condition = vae.data(X, condition)
        torch.testing.assert_close(vae.encode(x, condition).base_dist.loc, X @ W + loc_shift)
        expected = Normal(Z @ V + mean_shift, 1.0).log_prob(X).sum(-1)
        torch.testing.assert_close(vae.log_likelihood(Z, x, condition), expected)
        expected = Normal(Z[:, :1] @ V + mean_shift, 1.0).log_prob(X).sum(-1)
        torch.testing.assert_close(vae.log_likelihood(Z[:, :1], x, condition), expected)

    def test_both_parts_take_it(self):
        y = self.Y[:, None]
        for given in (self.Y, self.Y.numpy(), {"y": self.Y}):
            self.check(adapt(self.encode, self.decode), given, y, y)

    def test_only_one_part_takes_it(self):
        y = self.Y[:, None]
        self.check(adapt(self.encode, lambda z: self.decode(z)), self.Y, y, 0)
        self.check(adapt(lambda x: self.encode(x, torch.zeros(N)), self.decode), {"y": self.Y}, 0, y)

    def test_each_part_takes_its_own_by_name(self):
        def decode(z, *, library):
            return Normal(z @ V + library, 1.0)

        size = draw(N, 1, seed=9)
        self.check(adapt(self.encode, decode), {"y": self.Y, "library": size}, self.Y[:, None], size)

    def test_names_given_to_adapt(self):
        vae, y = adapt(self.encode, self.decode, condition="y"), self.Y[:, None]
        for given in (self.Y, {"y": self.Y}):
            self.check(vae, given, y, y)
        for given in (None, {}):
            with pytest.raises(ValueError, match="condition: expected y by name, got"):
                vae.data(X, given)
        with pytest.raises(
            ValueError, match=r"condition\['t'\]: expected an encoder or a decoder that takes it as 't'"
        ):
            vae.data(X, {"t": self.Y})
        vae = adapt(lambda x, y, t: self.encode(x, y + t), self.decode, condition=("y", "t"))
        self.check(vae, {"y": self.Y, "t": self.Y}, 2 * y, y)
        with pytest.raises(ValueError, match="condition: expected y, t by name, got Tensor"):
            vae.data(X, self.Y)
        with pytest.raises(ValueError, match=r"condition: expected y, t by name, got \['y'\]"):
            vae.data(X, {"y": self.Y})

    @pytest.mark.parametrize("num", [1, 15, 16, 17])
    def test_the_first_data_go_with_the_first_of_the_condition(self, num):
        seen = []
        vae = adapt(lambda x, y: (seen.append((len(x), y.tolist())), self.encode(x, y))[1])
        vae.data(draw(num, P), torch.arange(num))
        least = min(num, 16)
        assert seen == [(least, [*range(least)])]

    def test_no_condition_is_none(self):
        vae = adapt(loc_scale)
        assert vae.data(X)[1] is None is vae.data(X, {})[1]

    def test_one_given_to_adapt_stands_for_calls_without(self):
        vae, y = adapt(self.encode, self.decode, condition=self.Y), self.Y[:, None]
        self.check(vae, None, y, y)
        self.check(vae, self.Y * 2, 2 * y, 2 * y)
        with pytest.raises(ValueError, match="condition: expected 3 rows"):
            vae.data(X[:3])
        with pytest.raises(ValueError, match="condition: expected 3 rows"):
            vae.sample(3)

    def test_what_only_the_other_part_takes_may_be_left_out_or_given(self):
        vae = adapt(lambda x: self.encode(x, torch.zeros(N)), self.decode, condition="y")
        codes = adapt_codes(vae)
        for given in (None, self.Y, {"y": self.Y}):
            torch.testing.assert_close(codes.encode(*codes.data(X, given)).base_dist.loc, X @ W)
        for given in ({"t": self.Y}, self.Y[:3]):
            with pytest.raises(ValueError, match="condition"):
                codes.data(X, given)
        with pytest.raises(ValueError, match="condition: expected y by name, got"):
            vae.data(X)
        other = adapt_decoder(adapt(self.encode, lambda z: self.decode(z), condition="y"), StandardNormal(D))
        for given in (None, self.Y):
            expected = Normal(Z @ V, 1.0).log_prob(X).sum(-1)
            torch.testing.assert_close(other.log_likelihood(Z, *other.data(X, given)), expected)

    def test_a_decoder_keeps_its_condition_and_the_shape_of_data(self):
        def decode(z, y):
            return Independent(Normal((z @ V + y[:, None]).reshape(-1, 2, 3), 1.0), 2)

        vae = adapt(lambda x, y: loc_scale(x.flatten(1)), decode, data_shape=(2, 3), condition="y")
        x, condition = adapt_decoder(vae, StandardNormal(D)).data(X, self.Y)
        assert x.shape == (N, 2, 3) and set(condition) == {"y"}
        vae.encode(x, condition)
        assert adapt_decoder(vae, None).prior is vae.prior
        with pytest.raises(ValueError, match="prior: expected dimension 2, got 3"):
            adapt_decoder(vae, StandardNormal(3))

    def test_samples(self):
        vae = adapt(self.encode, self.decode, latent_shape=(D,))
        one, two = (
            vae.sample(N, condition=y, generator=torch.Generator().manual_seed(0)) for y in (self.Y, 0 * self.Y)
        )
        torch.testing.assert_close(one - two, self.Y[:, None].expand(N, P).to(one))

    def test_a_second_argument_that_is_an_option_is_no_condition(self):
        def decode(z, return_dict=True):
            assert return_dict is True
            return self.decode(z)

        self.check(adapt(self.encode, decode), self.Y, self.Y[:, None], 0)

    @pytest.mark.parametrize(
        ("error", "match", "condition"),
        [
            (ValueError, r"condition: expected 7 rows, one for each datum, got shape \(3,\)", Y[:3]),
            (ValueError, r"condition: expected 7 rows, .* got shape \(\)", torch.tensor(1)),
            (ValueError, r"condition\['y'\]: expected 7 rows", {"y": Y[:3]}),
            (TypeError, "condition: expected a tensor .*, got list", [0] * N),
            (TypeError, "condition: .* got str", "y"),
            (TypeError, r"condition\[0\]: .* got Tensor", {0: Y}),
            (ValueError, r"condition\['t'\]: expected an encoder or a decoder that takes it as 't'", {"t": Y}),
        ],
    )
    def test_bad(self, error, match, condition):
        with pytest.raises(error, match=match):
            adapt(self.encode, self.decode).data(X, condition)

    def test_nobody_takes_it(self):
        with pytest.raises(ValueError, match="condition: expected an encoder or a decoder that takes it as second"):
            adapt(loc_scale, lambda z: Normal(z @ V, 1.0)).data(X, self.Y)


class TestWhole:
    def test_an_object_with_three_parts(self):
        vae = Object(encoder=loc_scale, decoder=lambda z: Normal(z @ V, 1.0), prior=StandardNormal(D))
        adapted = adapt_vae(vae)
        assert isinstance(adapted, AdaptedVAE)
        assert adapt_vae(adapted) is adapted
        assert adapted.prior is vae.prior

    @pytest.mark.parametrize("part", ["encoder", "decoder", "prior"])
    def test_what_lacks_a_part(self, part):
        vae = Object(encoder=loc_scale, decoder=lambda z: Normal(z @ V, 1.0), prior=StandardNormal(D))
        delattr(vae, part)
        with pytest.raises(TypeError, match=f"vae: expected an object with .*adapt makes.* without .{part}"):
            adapt_vae(vae)

    def test_the_first_of_many_that_it_lacks_is_named(self):
        with pytest.raises(TypeError, match=r"got SimpleNamespace without \.encoder$"):
            adapt_vae(Object(prior=None))

    def test_without_a_prior_it_has_the_standard_normal(self):
        vae = adapt_vae(Object(encoder=loc_scale, decoder=lambda z: Normal(z @ V, 1.0), prior=None))
        assert vae.encode(X).event_shape == (D,)
        torch.testing.assert_close(vae.prior.log_prob(Z), StandardNormal(D).log_prob(Z))

    def test_its_own_module_holds_all_weights(self):
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.decoder, self.prior = nn.Linear(P, D), nn.Linear(D, P), StandardNormal(D)
                self.temperature = nn.Parameter(torch.ones(()))

        whole = Whole()
        assert adapt_vae(whole).holder is whole
        assert any(p is whole.temperature for p in adapt_vae(whole).parameters())
        parts = adapt(whole.encoder, whole.decoder)
        assert parts.holder is parts  # each of the two has only some

    def test_parts_that_are_not_there(self):
        with pytest.raises(ValueError, match="vae: expected one with its encoder, got none"):
            adapt_decoder(lambda z: Normal(z @ V, 1.0), StandardNormal(D)).encode(X)
        for run in (lambda vae: vae.log_likelihood(Z, X), lambda vae: vae.sample(3)):
            with pytest.raises(ValueError, match="vae: expected one with its decoder, got none"):
                run(adapt(loc_scale))

    def test_a_decoder_can_come_adapted(self):
        vae = adapt(lambda x: (x[:, :D, None], x[:, :D, None].exp()), lambda z: Normal(z[:, :, 0] @ V, 1.0))
        vae.encode(X)
        for decoder in (vae, vae.decoder):
            value = adapt_decoder(decoder, StandardNormal(D)).log_likelihood(Z, X)
            torch.testing.assert_close(value, Normal(Z @ V, 1.0).log_prob(X).sum(-1))

    def test_it_is_a_module_of_all_that_it_could_see(self):
        net, back, hidden = nn.Linear(P, 2 * D), nn.Linear(D, P), [nn.Linear(D, D)]
        vae = adapt(lambda x: net(x).chunk(2, 1), lambda z: back(hidden[0](z)), prior=Flow(), modules=hidden)
        names = {id(parameter) for parameter in vae.parameters()}
        flow = next(m for m in vae.modules() if isinstance(m, Flow))
        assert names == {id(p) for m in (net, back, hidden[0], flow) for p in m.parameters()}

    def test_flat_data_are_shaped(self):
        seen = []
        vae = adapt(lambda x: (seen.append(x.shape), loc_scale(x.flatten(1)))[1], data_shape=(1, 2, 3))
        vae.encode(*vae.data(X))
        assert set(seen) == {(N, 1, 2, 3)}
        with pytest.raises(ValueError, match=r"x: expected data of shape \(1, 2, 3\), got \(4,\)"):
            vae.data(X[:, :4])

    @pytest.mark.parametrize("x", [X[:, :4], draw(N, 7)])
    def test_data_of_another_size_are_refused_in_batches_too(self, x):
        vae = adapt(lambda x: loc_scale(x.flatten(1)), data_shape=(1, 2, 3))
        assert [x.shape for x, _ in vae.batches(X, 5)] == [(5, 1, 2, 3), (2, 1, 2, 3)]
        for run in (lambda: vae.data(x, name="held_out"), lambda: next(vae.batches(x, 5, name="held_out"))):
            with pytest.raises(ValueError, match=r"^held_out: expected data of shape \(1, 2, 3\), got"):
                run()

    def test_there_must_be_enough_data(self):
        assert len(adapt(loc_scale).data(X, least=N)[0]) == N
        with pytest.raises(ValueError, match=rf"^held_out: expected at least {N + 1} data, got {N}"):
            adapt(loc_scale).data(X, least=N + 1, name="held_out")

    def test_a_module_that_runs_in_training_mode_is_not_compared(self):
        net = nn.Sequential(nn.Linear(P, 2 * D), nn.Dropout()).double().eval()
        net[1].train()  # a part of it is enough
        vae = adapt(lambda x: net(x).chunk(2, 1), spread="log_var")
        assert vae.training
        vae.check(X)
        with vae.evaluating(X):
            assert not net[1].training
        assert net[1].training and not net[0].training

    def test_what_a_function_asks_of_a_module_is_answered_in_evaluation_mode(self):
        """Also of one that takes the place of another later, and is not called."""
        seen, net = [], nn.Linear(P, P)
        vae = adapt(lambda x: (seen.append(net.training), loc_scale(x))[1])
        vae.data(X)
        net = nn.Linear(P, P)
        with vae.evaluating():
            vae.encode(X)
        assert seen == [False, False] and net.training

    @pytest.mark.parametrize("encode", [loc_scale, None])
    def test_two_passes_record_nothing_and_leave_the_global_generator_alone(self, encode):
        seen, before = [], torch.get_rng_state()
        decode = lambda z: (seen.append((z.dtype, torch.is_grad_enabled())), Normal(z.to(V) @ V, 1.0))[1]  # noqa: E731
        vae = adapt(encode, decode) if encode else adapt_decoder(decode, StandardNormal(D))
        for x in (X, X.long()) if encode is None else (X,):
            with vae.evaluating(x):
                assert seen == [(torch.float64, False)] * 2
            seen.clear()
        assert torch.equal(before, torch.get_rng_state())

    def test_a_decoder_that_does_not_repeat_itself_is_refused(self):
        decode = lambda z: Normal(z.to(V) @ V + torch.randn(()), 1.0)  # noqa: E731
        for vae in (adapt(loc_scale, decode), adapt_decoder(decode, StandardNormal(D))):
            with pytest.raises(ValueError, match=r"^decoder: expected the same from two passes"), vae.evaluating(X):
                pass
            with pytest.raises(ValueError, match=r"^decoder: expected the same from two passes"):
                vae.sample(2)

    @pytest.mark.parametrize("num", [2, 3, 15, 16, 40])
    def test_the_second_pass_is_over_the_second_half_of_the_first_data(self, num):
        seen, x = [], draw(num, P)

        def encode(rows):
            seen.append(rows)
            return rows - rows.mean(0), torch.ones_like(rows)

        with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes"):
            adapt(encode).check(x)
        first = x[:16]
        assert [*map(len, seen)] == [len(first), len(first) - len(first) // 2]
        assert torch.equal(seen[0], first) and torch.equal(seen[1], first[len(first) // 2 :])

    def test_one_datum_is_passed_twice(self):
        seen = []
        adapt(lambda x: (seen.append(len(x)), (x, torch.ones_like(x)))[1]).check(draw(1, P))
        assert seen[:2] == [1, 1]

    def test_samples_are_made_in_evaluation_mode(self):
        back = nn.Sequential(nn.Linear(D, P), nn.Dropout())
        vae = adapt(loc_scale, back, likelihood="bernoulli_logits", latent_shape=(D,))
        seed = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        x = vae.sample(4, generator=seed())
        assert torch.equal(x, vae.sample(4, generator=seed())) and not x.requires_grad and back.training

    def test_means_of_samples(self):
        back = nn.Linear(D, P)
        vae = adapt(loc_scale, back, likelihood="bernoulli_logits", latent_shape=(D,))
        seed = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        x = vae.sample(4, generator=seed())
        torch.testing.assert_close(x, back(vae.prior.sample((4,), generator=seed())).sigmoid())
        mixture = DiagGaussianMixture(LOCS, SCALES)
        z = mixture.sample((4,), generator=seed())
        torch.testing.assert_close(vae.sample(4, latent=mixture, generator=seed()), back(z.float()).sigmoid())

    @pytest.mark.parametrize(
        ("error", "match", "named"),
        [
            (TypeError, "encoder: expected a callable, got int", {"encode": 3}),
            (TypeError, "decoder: expected a callable, got Tensor", {"decode": X}),
            (TypeError, "modules: expected a sequence of torch.nn.Module", {"modules": (3,)}),
            (TypeError, "modules: expected a sequence of torch.nn.Module", {"modules": 3}),
            (TypeError, "data_shape: expected a tuple of ints", {"data_shape": "a"}),
            (ValueError, "latent_shape: expected at least one size", {"latent_shape": ()}),
            (ValueError, r"data_shape\[0\]: expected an int at least 1, got 0", {"data_shape": (0, 2)}),
            (ValueError, r"latent_shape\[0\]: expected an int at least 1, got -1", {"latent_shape": (-1,)}),
        ],
    )
    def test_bad_arguments(self, error, match, named):
        with pytest.raises(error, match=match):
            adapt(**({"encode": loc_scale} | named))

    @pytest.mark.parametrize(
        ("error", "match", "named"),
        [
            (TypeError, "num_samples: expected an int", {"num_samples": 2.0}),
            (ValueError, "num_samples: expected an int at least 1", {"num_samples": 0}),
            (TypeError, "generator: expected a torch.Generator", {"generator": 3}),
            (TypeError, "latent: expected a torch distribution", {"latent": 3}),
            (ValueError, "latent: expected dimension 2, got 3", {"latent": StandardNormal(3)}),
        ],
    )
    def test_bad_samples(self, error, match, named):
        with pytest.raises(error, match=match):
            adapt(loc_scale, lambda z: Normal(z @ V, 1.0), latent_shape=(D,)).sample(**({"num_samples": 2} | named))

    def test_latent_dim_is_told_by_whatever_knows_it(self):
        vae = adapt(loc_scale)
        with pytest.raises(ValueError, match="prior: expected one, or latent_shape"):
            _ = vae.prior
        vae.data(X)
        assert vae.latent_dim == vae.prior.latent_dim == D
        assert vae.prior.log_prob(torch.zeros(D)) == pytest.approx(-D / 2 * math.log(2 * math.pi))


class Sized(nn.Module):
    """A part that tells its sizes."""

    def __init__(self, **sizes):
        super().__init__()
        self.__dict__.update(sizes)


def test_sizes_of_the_parts_and_of_the_prior_must_be_one():
    """Told by either part, by both, or by none, where the prior tells."""
    two = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    for encoder, decoder in ((Sized(latent_dim=2), Sized()), (Sized(), Sized(latent_dim=2)), (Sized(), Sized())):
        assert adapt_prior_of(encoder, decoder, two).latent_dim == 2
    for encoder, decoder in ((Sized(latent_dim=3), Sized()), (Sized(), Sized(latent_dim=3))):
        with pytest.raises(ValueError, match=r"^prior: expected dimension 3, got 2"):
            adapt_prior_of(encoder, decoder, two)
    for name in ("data_dim", "latent_dim"):
        with pytest.raises(ValueError, match=rf"^{name}: expected the same, got 2 in the encoder and 3 in the decoder"):
            adapt_prior_of(Sized(**{name: 2}), Sized(**{name: 3}), two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_standard_normal_of_a_model_in_half_precision_is_in_single(dtype):
    """Rounded to eight bits, the density of 64 coordinates was wrong by a quarter of a nat."""
    net = nn.Linear(6, 128).to(dtype)
    vae = adapt(lambda x: net(x).chunk(2, 1), spread="log_var")
    vae.data(torch.zeros(2, 6, dtype=dtype))
    z = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vae.prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    assert vae.prior.sample((2,)).dtype == torch.float32


def test_another_prior_for_a_decoder_does_not_take_the_place_of_the_models_own():
    """Both are modules, and the model in which one was exchanged shared its list of modules with the other."""
    own, other = StandardNormal(2), StandardNormal(2).double()
    vae = adapt(nn.Linear(6, 4), nn.Linear(2, 6), likelihood="bernoulli_logits", prior=own)
    changed = adapt_decoder(vae, other)
    assert (changed.prior, vae.prior) == (other, own)
    assert own in vae.children() and own not in changed.children()


def test_a_prior_that_a_part_of_a_model_makes_for_itself_is_not_the_models():
    vae = adapt(nn.Linear(6, 4), nn.Linear(2, 6), likelihood="bernoulli_logits", latent_shape=(2,))
    part = vae.only(encoder=None)
    assert part.prior in part.children()
    assert part.prior not in vae.children() and vae.prior is not part.prior


def test_the_standard_normal_of_a_model_in_double_is_in_double():
    net = nn.Linear(6, 4).double()
    vae = adapt(lambda x: net(x).chunk(2, 1), spread="log_var", latent_shape=(2,))
    assert vae.prior.sample((2,)).dtype == torch.float64


def test_data_and_conditions_are_brought_to_the_device_of_the_weights():
    vae = adapt(lambda x, y: (x, y), modules=nn.Linear(1, 1, device="meta"))
    for x, rows in vae.batches(X, 5, X):
        assert {x.device.type, *(value.device.type for value in rows.values())} == {"meta"} and len(x) <= 5
    assert adapt(lambda x: (x, x)).device is None


def test_the_standard_normal_is_made_where_the_weights_are():
    """On "meta" it has no values, so that making it fails."""
    far, near = (nn.Linear(1, 1, device=device) for device in ("meta", "cpu"))
    with pytest.raises(RuntimeError, match="meta"):
        adapt(lambda x: (x, x), latent_shape=(2,), modules=far).prior  # noqa: B018
    assert adapt(lambda x: (x, x), latent_shape=(2,), modules=near).prior.sample((3,)).device.type == "cpu"


def test_the_two_passes_get_the_condition_of_their_data():
    asked = []

    def encode(x, label):
        asked.append(("encode", len(x), label))
        return x + label, torch.ones_like(x)

    def decode(z, label):
        asked.append(("decode", len(z), label))
        return Independent(Normal(z + label, 1.0), 1)

    x = torch.arange(20.0)[:, None]
    vae = adapt(encode, decode, condition="label").eval()
    with vae.evaluating(x, {"label": 100 + x}):
        pass
    assert [one[:2] for one in asked] == [
        ("encode", 16), ("encode", 8), ("encode", 16), ("decode", 16), ("decode", 8),
    ]  # fmt: skip
    assert all(torch.equal(label, 100 + x[16 - num : 16]) for _, num, label in asked)


def test_a_divergence_is_asked_for_only_where_it_takes_means_and_scales():
    """One of (mu, logvar), or one that does not say what it takes, is another function."""
    for kl, taken in (
        (lambda loc, scale: 0, True),
        (lambda scale, loc, more=1: 0, True),
        (lambda **named: 0, True),
        (lambda mu, logvar: 0, False),
        (lambda loc, logvar: 0, False),
        (lambda mu, scale: 0, False),
        (max, False),
    ):
        prior = Object(kl=kl, leave_one_out=kl)
        assert optional(prior, "kl") is (kl if taken else None) and optional(prior, "leave_one_out") is kl
    assert optional(prior, "exemplars") is None


def test_a_divergence_is_asked_for_as_the_prior_has_it_now():
    """What a class was asked once is not asked again; other classes, and what is put in its place, are."""

    class Right(Object):
        def kl(self, loc, scale):
            return 0

    class Wrong(Object):
        def kl(self, mu, logvar):
            return 0

    for _ in range(2):
        assert callable(optional(Right(), "kl")) and optional(Wrong(), "kl") is None
    prior = Right()
    prior.kl = Wrong().kl
    assert optional(prior, "kl") is None
    prior.kl = {}  # of past divergences, say
    assert optional(prior, "kl") is None


def test_what_a_class_has_inherited_is_of_the_density_of_its_parent():
    """With another log_prob it has no closed form any more, unless it brings its own."""

    class Far(StandardNormal):
        def log_prob(self, z):
            return super().log_prob(z - 3)

        def sample(self, sample_shape=(), *, generator=None):
            return super().sample(sample_shape, generator=generator) + 3

    class Further(Far):
        """Inherits both."""

    class Told(Far):
        def kl(self, loc, scale):
            return StandardNormal.kl(self, loc - 3, scale)

        def components(self):
            log_weight, loc, scale = super().components()
            return log_weight, loc + 3, scale

    q = Normal(torch.full((4, 2), 2.0), 0.5)
    right, encode = StandardNormal(2).kl(q.loc - 3, q.scale), lambda x: (q.loc[: len(x)], q.scale[: len(x)])
    for kind in (Far, Further, Told):
        prior = kind(2)
        assert (optional(prior, "kl") is None) == (components(prior) is None) == (kind is not Told)
        vae = adapt(encode, lambda z: Independent(Normal(0 * z, 1.0), 1), prior=prior)
        value = elbo(vae, torch.zeros(4, 2), num_samples=20_000, generator=torch.Generator().manual_seed(0))
        fits = elbo(vae, torch.zeros(4, 2), beta=0, generator=torch.Generator().manual_seed(0))
        assert (fits - value - right).abs().max() < 0.1
    own = Far(2)
    own.kl = Told(2).kl
    assert optional(own, "kl") is own.kl

    class Other(DiagGaussianMixture):  # which itself has its components of its parent
        def log_prob(self, z):
            return super().log_prob(z - 3)

    codes = torch.zeros(2, 2), torch.ones(2, 2)
    assert components(DiagGaussianMixture(*codes)) is not None and components(Other(*codes)) is None


def test_components_are_those_of_a_prior_that_has_a_function_of_them():
    assert components(Object()) is None and components(Object(components=3)) is None
    assert components(Object(components=lambda: 3)) == 3
