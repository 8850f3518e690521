"""Encoders, decoders and the VAE: densities against scipy and enumeration, shapes, seeds, bad input."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from vaebook import networks, training
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.priors import StandardNormal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform(*shape, dtype=torch.float64):
    return torch.rand(shape, generator=generator(7), dtype=dtype)


def small_vae(**kwargs):
    return VAE(GaussianEncoder(6, 2, (5,)), BernoulliDecoder(2, 6, (5,)), kwargs.get("prior", StandardNormal(2)))


def forward_by_hand(layers, x):
    """SiLU(Wx + b) once more, in numpy."""
    for weight, bias in layers:
        x = x @ weight.T + bias
        x = x / (1 + np.exp(-x))
    return x


def gated_by_hand(layers, x):
    """(Wx + a) / (1 + exp(-Vx - b)) once more, in numpy; W and V lie in one matrix."""
    for weight, bias in layers:
        h, g = np.split(x @ weight.T + bias, 2, axis=-1)
        x = h / (1 + np.exp(-g))
    return x


def arrays(layer):
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


# Densities


def test_gates_and_clamp_are_what_their_formulas_say():
    encoder = GaussianEncoder(6, 2, (5, 4), gated=True, log_scale_range=(-0.1, 0.2)).double()
    decoder = BernoulliDecoder(2, 6, (5,), gated=True).double()
    with torch.no_grad():
        encoder.log_scale.weight.mul_(50)
    encoder.log_scale.bias.data += 0.05 - encoder.log_scale(encoder.body(uniform(30, 6))).mean(0).data  # see raw
    x, z = uniform(30, 6), uniform(3, 2)
    h = gated_by_hand([arrays(m) for m in encoder.body if isinstance(m, nn.Linear)], x.numpy())
    (a, a0), (b, b0) = arrays(encoder.loc), arrays(encoder.log_scale)
    raw = h @ b.T + b0
    assert (raw < -0.1).any() and (raw > 0.2).any() and ((raw > -0.1) & (raw < 0.2)).any()
    q = encoder(x).base_dist
    np.testing.assert_allclose(q.loc.detach(), h @ a.T + a0, rtol=1e-12)
    np.testing.assert_allclose(q.scale.log().detach(), raw.clip(-0.1, 0.2), atol=1e-12)
    h = gated_by_hand([arrays(m) for m in decoder.body if isinstance(m, nn.Linear)], z.numpy())
    weight, bias = arrays(decoder.logits)
    np.testing.assert_allclose(decoder(z).base_dist.logits.detach(), h @ weight.T + bias, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gated": 1}, TypeError, "gated: expected a bool, got int"),
        ({"log_scale_range": 3.0}, TypeError, "log_scale_range: expected a tuple or a list, got float"),
        ({"log_scale_range": (1.0,)}, ValueError, "log_scale_range: expected two numbers, got 1"),
        ({"log_scale_range": (1.0, 1.0)}, ValueError, r"log_scale_range\[1\]: expected a number > 1.0, got 1.0"),
        ({"log_scale_range": ("a", 1.0)}, TypeError, r"log_scale_range\[0\]: expected a number, got str"),
    ],
)
def test_gates_and_clamp_refuse_what_they_are_not(arguments, error, message):
    with pytest.raises(error, match=message):
        GaussianEncoder(6, 2, **arguments)


def test_a_gated_model_is_saved_with_its_gates(tmp_path):
    encoder = GaussianEncoder(6, 2, (5,), gated=True, log_scale_range=(-3, 1))
    vae = VAE(encoder, BernoulliDecoder(2, 6, (5,), gated=True), StandardNormal(2))
    training.save(tmp_path / "x.safetensors", vae)
    again = training.load(tmp_path / "x.safetensors")
    assert again.encoder.config() == encoder.config() | {"hidden": (5,)}
    x = uniform(3, 6, dtype=torch.float32)
    assert torch.equal(again.decoder(again.encoder(x).mean).mean, vae.decoder(encoder(x).mean).mean)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_encoder_is_the_gaussian_that_its_formula_says(hidden):
    encoder = GaussianEncoder(6, 2, hidden).double()
    x, z = uniform(3, 6), uniform(3, 2)
    h = forward_by_hand([arrays(m) for m in encoder.body if isinstance(m, nn.Linear)], x.numpy())
    (a, a0), (b, b0) = arrays(encoder.loc), arrays(encoder.log_scale)
    expected = stats.norm(h @ a.T + a0, np.exp(h @ b.T + b0)).logpdf(z.numpy()).sum(1)
    q = encoder(x)
    assert isinstance(q, Independent) and isinstance(q.base_dist, Normal)
    assert (q.batch_shape, q.event_shape) == ((3,), (2,))
    np.testing.assert_allclose(q.log_prob(z).detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("value", [-60.0, 60.0])
def test_log_scale_is_not_clamped(value):
    encoder = GaussianEncoder(6, 2)
    nn.init.constant_(encoder.log_scale.bias, value)
    nn.init.zeros_(encoder.log_scale.weight)
    torch.testing.assert_close(encoder(torch.zeros(1, 6)).base_dist.scale.log(), torch.full((1, 2), value))


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_bernoulli_decoder_is_a_probability_over_all_images(hidden):
    decoder = BernoulliDecoder(2, 6, hidden).double()
    z = uniform(4, 2)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    p = decoder(z[:, None])
    log_prob = p.log_prob(images)
    assert (p.batch_shape, p.event_shape, log_prob.shape) == ((4, 1), (6,), (4, 64))
    torch.testing.assert_close(log_prob.logsumexp(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_prob.exp() @ images, p.mean[:, 0], rtol=1e-12, atol=0)


def test_bernoulli_decoder_takes_grey_values_but_nothing_outside():
    p = BernoulliDecoder(2, 3).double()(uniform(1, 2))
    grey = torch.tensor([[0.25, 0.0, 1.0]], dtype=torch.float64)
    expected = (grey * p.mean.log() + (1 - grey) * (1 - p.mean).log()).sum(-1)
    torch.testing.assert_close(p.log_prob(grey), expected, rtol=1e-12, atol=0)
    for bad, message in ((1.01, r"^x: expected values in \[0, 1\], got 1.01 at index \(0, 1\)"), (-1e-3, "got -0.001")):
        with pytest.raises(ValueError, match=message):
            p.log_prob(torch.tensor([[0.0, bad, 1.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^x: expected .*values.*, got nan at index \(0, 0\)"):
        p.log_prob(grey * torch.nan)


def test_bernoulli_decoder_survives_expand_and_sampling():
    p = BernoulliDecoder(2, 3)(torch.zeros(1, 2)).expand((4,))
    assert p.batch_shape == (4,) and p.log_prob(torch.full((4, 3), 0.5)).shape == (4,)
    assert set(p.sample((50,)).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("scale", "min_scale"), [(0.3, 0.0), ("shared", 0.0), ("shared", 0.5), ("free", 0.0), ("free", 0.5)]
)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_gaussian_decoder_is_the_gaussian_that_its_formula_says(scale, min_scale, hidden):
    decoder = GaussianDecoder(2, 6, hidden, scale=scale, min_scale=min_scale).double()
    z, x = uniform(3, 2), uniform(3, 6)
    h = forward_by_hand([arrays(m) for m in decoder.body if isinstance(m, nn.Linear)], z.numpy())
    (a, a0), sigma = arrays(decoder.loc), scale
    if scale == "shared":
        nn.init.constant_(decoder.log_scale, -0.7)
        sigma = min_scale + np.exp(-0.7)
    elif scale == "free":
        b, b0 = arrays(decoder.log_scale)
        sigma = min_scale + np.exp(h @ b.T + b0)
    p = decoder(z)
    assert (p.batch_shape, p.event_shape) == ((3,), (6,))
    expected = stats.norm(h @ a.T + a0, sigma).logpdf(x.numpy()).sum(1)
    np.testing.assert_allclose(p.log_prob(x).detach().numpy(), expected, rtol=1e-12)


def test_min_scale_bounds_the_likelihood():
    """(P/2) log 1/(2π ξ²) and no more, however small the learned part becomes."""
    for scale in ("shared", "free"):
        decoder = GaussianDecoder(2, 4, (), scale=scale, min_scale=0.1).double()
        for parameter in [decoder.log_scale] if scale == "shared" else decoder.log_scale.parameters():
            nn.init.constant_(parameter, -800.0)
        z = torch.ones(1, 2, dtype=torch.float64)
        at_mode = decoder(z).log_prob(decoder(z).mean)
        torch.testing.assert_close(at_mode[0].detach().item(), -2 * np.log(2 * np.pi * 0.01), rtol=1e-12, atol=0)


@pytest.mark.parametrize("decoder", [BernoulliDecoder(2, 3), GaussianDecoder(2, 3), GaussianDecoder(2, 3, scale=1.0)])
def test_decoders_take_any_number_of_leading_dimensions(decoder):
    z = uniform(5, 4, 2, dtype=torch.float32)
    assert decoder(z).batch_shape == (5, 4)
    assert decoder(z[0, 0]).batch_shape == ()
    torch.testing.assert_close(decoder(z).mean[3, 2], decoder(z[3, 2]).mean)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_first_layer_of_a_decoder_is_affine_with_a_bias(hidden):
    """What agg/stationarity needs, together with free biases in the heads."""
    for decoder in (BernoulliDecoder(2, 6, hidden), GaussianDecoder(2, 6, hidden)):
        first = next(m for m in decoder.modules() if isinstance(m, nn.Linear))
        assert first.in_features == 2 and first.bias is not None
        assert not hidden or decoder.body[0] is first
    encoder = GaussianEncoder(6, 2, hidden)
    assert encoder.loc.bias is not None and encoder.log_scale.bias is not None


# Initial weights


BUILD = {
    "encoder": lambda g: GaussianEncoder(6, 2, (50, 40), generator=g),
    "bernoulli": lambda g: BernoulliDecoder(2, 6, (50, 40), generator=g),
    "gaussian": lambda g: GaussianDecoder(2, 6, (50, 40), scale="free", generator=g),
}


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_initial_weights_come_from_the_generator_alone(build):
    state = torch.get_rng_state()
    first, same, other = (build(generator(seed)).state_dict() for seed in (3, 3, 4))
    default, zero = build(None).state_dict(), build(generator(0)).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    for name in first:
        assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])
        assert torch.equal(default[name], zero[name])


def test_one_generator_makes_different_layers():
    g = generator()
    a, b = GaussianEncoder(6, 2, generator=g), GaussianEncoder(6, 2, generator=g)
    assert not torch.equal(a.loc.weight, b.loc.weight)


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_initial_weights_are_distributed_as_those_of_torch(build):
    for layer in build(generator()).modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel() > 200:
            bound = layer.in_features**-0.5
            weights = layer.weight.detach().double().flatten().numpy()
            assert abs(layer.bias).max() <= bound
            assert stats.kstest(weights, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
            torch_bound = float(nn.Linear(layer.in_features, 4000).weight.detach().abs().max())
            assert abs(torch_bound / bound - 1) < 0.01


def test_importing_and_building_change_no_global_state():
    """In a process of its own, because here everything is imported already."""
    code = """
import torch
before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
validate = torch.distributions.Distribution._validate_args
from vaebook import data, models, priors, training
vae = models.VAE(models.GaussianEncoder(4, 2), models.GaussianDecoder(2, 4), priors.StandardNormal(2))
vae(torch.zeros(3, 4)), vae.decoder(torch.zeros(3, 2)), vae.sample(3, generator=torch.Generator().manual_seed(0))
after = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
assert validate == torch.distributions.Distribution._validate_args
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_constructor_arguments_are_kept_as_attributes():
    """`vaebook.training.save` reads them from there."""
    encoder = GaussianEncoder(6, 2, [5, 4])
    assert (encoder.data_dim, encoder.latent_dim, encoder.hidden) == (6, 2, (5, 4))
    decoder = GaussianDecoder(2, 6, [5], scale="free", min_scale=1)
    assert (decoder.latent_dim, decoder.data_dim, decoder.hidden) == (2, 6, (5,))
    assert (decoder.scale, decoder.min_scale) == ("free", 1.0)


# The VAE


def test_vae_is_its_encoder():
    vae = small_vae()
    x = uniform(3, 6, dtype=torch.float32)
    assert torch.equal(vae(x).mean, vae.encoder(x).mean) and torch.equal(vae(x).stddev, vae.encoder(x).stddev)


def test_sample_decodes_draws_from_the_prior_or_from_another_distribution():
    vae = small_vae()
    q_agg = DiagGaussianMixture(torch.tensor([[5.0, 5.0]]), torch.full((1, 2), 0.1))
    for latent, source in ((None, vae.prior), (q_agg, q_agg)):
        means = vae.sample(7, latent=latent, generator=generator(1))
        expected = vae.decoder(source.sample((7,), generator=generator(1))).mean
        assert torch.equal(means, expected) and not means.requires_grad
    assert not torch.equal(vae.sample(7, generator=generator(1)), vae.sample(7, generator=generator(2)))


def test_sample_uses_the_global_source_only_without_a_generator():
    vae, state = small_vae(), torch.get_rng_state()
    vae.sample(3, generator=generator())
    assert torch.equal(state, torch.get_rng_state())
    vae.sample(3)
    assert not torch.equal(state, torch.get_rng_state())


def test_vae_follows_its_dtype():
    vae = small_vae().double()
    assert vae.sample(3, generator=generator()).dtype == torch.float64
    assert vae(uniform(3, 6)).mean.dtype == torch.float64


def test_modules_show_up_in_the_vae():
    vae = small_vae()
    assert {name.split(".")[0] for name, _ in vae.named_parameters()} == {"encoder", "decoder"}
    assert [name for name, _ in vae.named_children()] == ["encoder", "decoder", "prior"]


def test_a_prior_need_not_be_a_module():
    q_agg = DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))
    assert small_vae(prior=q_agg).sample(4, generator=generator()).shape == (4, 6)


# Bad input


@pytest.mark.parametrize("cls", [GaussianEncoder, BernoulliDecoder, GaussianDecoder])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 2), ValueError, r"_dim: expected an int at least 1, got 0$"),
        ((2, -1), ValueError, r"_dim: expected an int at least 1, got -1$"),
        ((2.0, 2), TypeError, r"_dim: expected an int, got float$"),
        ((2, True), TypeError, r"_dim: expected an int, got bool$"),
        ((2, 2, 5), TypeError, r"^hidden: expected a tuple of ints, got int$"),
        ((2, 2, "55"), TypeError, r"^hidden: expected a tuple of ints, got str$"),
        ((2, 2, (5, 0)), ValueError, r"^hidden\[1\]: expected an int at least 1, got 0$"),
        ((2, 2, (5.0,)), TypeError, r"^hidden\[0\]: expected an int, got float$"),
    ],
)
def test_constructors_reject(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(*arguments)


@pytest.mark.parametrize("cls", [GaussianEncoder, BernoulliDecoder, GaussianDecoder])
def test_constructors_reject_a_seed_for_a_generator(cls):
    with pytest.raises(TypeError, match=r"^generator: expected a torch.Generator or None, got int$"):
        cls(2, 2, generator=0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scale": "learned"}, ValueError, r'^scale: expected a number, "shared" or "free", got "learned"$'),
        ({"scale": 0.0}, ValueError, r"^scale: expected a number > 0, got 0.0$"),
        ({"scale": -1}, ValueError, r"^scale: expected a number > 0, got -1$"),
        ({"scale": float("nan")}, ValueError, r"^scale: expected .*, got nan$"),
        ({"scale": float("inf")}, ValueError, r"^scale: expected a finite number, got inf$"),
        ({"scale": None}, TypeError, r"^scale: expected a number, got NoneType$"),
        ({"scale": torch.ones(6)}, TypeError, r"^scale: expected a number, got Tensor$"),
        ({"min_scale": -0.1}, ValueError, r"^min_scale: expected a number >= 0, got -0.1$"),
        ({"min_scale": "0"}, TypeError, r"^min_scale: expected a number, got str$"),
        ({"scale": 1.0, "min_scale": 0.1}, ValueError, r"^min_scale: expected 0 where scale is fixed, got 0.1$"),
    ],
)
def test_gaussian_decoder_rejects_scales(kwargs, error, message):
    with pytest.raises(error, match=message):
        GaussianDecoder(2, 6, **kwargs)


@pytest.mark.parametrize(
    ("module", "name", "dim"),
    [
        (GaussianEncoder(6, 2), "x", 6),
        (BernoulliDecoder(2, 6), "z", 2),
        (GaussianDecoder(2, 6), "z", 2),
        (small_vae(), "x", 6),
    ],
)
def test_forward_rejects(module, name, dim):
    nan = torch.zeros(3, dim)
    nan[1, 1] = torch.nan
    cases = [
        ([[0.0] * dim], TypeError, "expected a torch.Tensor, got list"),
        (torch.zeros(3, dim, dtype=torch.int64), TypeError, "expected a floating-point tensor"),
        (
            torch.zeros(3, dim).double(),
            TypeError,
            "expected the dtype of the weights, torch.float32, got torch.float64",
        ),
        (torch.zeros(3, dim + 1), ValueError, f"expected shape (..., {dim}), got (3, {dim + 1})"),
        (torch.zeros(()), ValueError, f"expected shape (..., {dim}), got ()"),
        (torch.zeros(0, dim), ValueError, f"expected at least one element, got shape (0, {dim})"),
        (nan, ValueError, "expected finite values, got nan at index (1, 1)"),
        (torch.full((1, dim), torch.inf), ValueError, "expected finite values, got inf at index (0, 0)"),
        (torch.zeros(3, dim, device="meta"), ValueError, "expected all arguments on one device, cpu, got meta"),
    ]
    for value, error, message in cases:
        with pytest.raises(error) as caught:
            module(value)
        assert str(caught.value).startswith(f"{name}: {message}")


def test_vae_rejects_parts_that_do_not_fit():
    encoder, decoder, prior = GaussianEncoder(6, 2), BernoulliDecoder(2, 6), StandardNormal(2)
    cases = [
        ((lambda x: x, decoder, prior), TypeError, "encoder: expected a Module, got function"),
        ((encoder, None, prior), TypeError, "decoder: expected a Module, got NoneType"),
        (
            (encoder, decoder, nn.Linear(2, 2)),
            (TypeError, ValueError),
            "prior: expected a module that returns a distribution when called without arguments, got ",
        ),
        (
            (encoder, decoder, None),
            TypeError,
            "prior: expected a torch distribution over vectors, or an object with latent_dim, log_prob(z) and "
            "sample(shape, generator=…), got NoneType",
        ),
        (
            (encoder, BernoulliDecoder(2, 7), prior),
            ValueError,
            "data_dim: expected the same, got 6 in the encoder and 7 in the decoder",
        ),
        (
            (encoder, BernoulliDecoder(3, 6), prior),
            ValueError,
            "latent_dim: expected the same, got 2 in the encoder and 3 in the decoder",
        ),
        (
            (encoder, decoder, StandardNormal(3)),
            ValueError,
            "prior: expected dimension 2, got 3",
        ),
        (
            (encoder, decoder, DiagGaussianMixture(torch.zeros(1, 4), torch.ones(1, 4))),
            ValueError,
            "prior: expected dimension 2, got 4",
        ),
    ]
    for parts, error, message in cases:
        with pytest.raises(error) as caught:
            VAE(*parts)
        assert str(caught.value).startswith(message)


def test_vae_takes_modules_that_do_not_tell_their_sizes():
    class Encoder(nn.Module):
        def forward(self, x):
            return Independent(Normal(x, torch.ones_like(x)), 1)

    vae = VAE(Encoder(), BernoulliDecoder(2, 6), StandardNormal(2))
    assert vae(torch.zeros(3, 2)).event_shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "kwargs", "error", "message"),
    [
        ((0,), {}, ValueError, "num_samples: expected an int at least 1, got 0"),
        ((2.0,), {}, TypeError, "num_samples: expected an int, got float"),
        ((2,), {"generator": 3}, TypeError, "generator: expected a torch.Generator or None, got int"),
        (
            (2,),
            {"latent": torch.zeros(2)},
            TypeError,
            "latent: expected a torch distribution over vectors, or an object with latent_dim, log_prob(z) and "
            "sample(shape, generator=…), got Tensor",
        ),
        (
            (2,),
            {"condition": torch.zeros(2)},
            ValueError,
            "condition: expected an encoder or a decoder that takes it as second argument, got none",
        ),
        ((2,), {"latent": StandardNormal(3)}, ValueError, "z: expected shape (..., 2), got (2, 3)"),
    ],
)
def test_sample_rejects(arguments, kwargs, error, message):
    with pytest.raises(error) as caught:
        small_vae().sample(*arguments, **kwargs)
    assert str(caught.value) == message


class Flow(nn.Module):
    """A density with parameters that is made anew at every call, as the flows of other libraries are."""

    def __init__(self, dim=2):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((dim,), 0.3))

    def forward(self):
        return Independent(Normal(torch.zeros_like(self.log_scale), self.log_scale.exp()), 1)


EYE = torch.eye(2)
OUTSIDE = {
    "independent": lambda: Independent(Normal(torch.zeros(2), 2 * torch.ones(2)), 1),
    "multivariate": lambda: MultivariateNormal(torch.ones(2), scale_tril=EYE + 0.5 * EYE.roll(1, 0).tril(-1)),
    "mixture": lambda: MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])), Independent(Normal(torch.randn(2, 2), torch.ones(2, 2)), 1)
    ),
    "flow": Flow,
}


@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE)
def test_a_prior_from_outside_is_adapted_and_draws_from_the_generator(make):
    source = make()
    density, z = source() if isinstance(source, Flow) else source, torch.randn(3, 2)
    vae, rng = small_vae(prior=source), torch.get_rng_state()
    assert vae.prior.latent_dim == 2
    torch.testing.assert_close(vae.prior.log_prob(z), density.log_prob(z))
    one, same, other = (vae.sample(5, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(rng, torch.get_rng_state())


def test_a_flow_is_a_part_of_the_model():
    flow = Flow()
    vae = small_vae(prior=flow)
    assert any(parameter is flow.log_scale for parameter in vae.parameters())
    assert torch.equal(vae.state_dict()["prior.source.log_scale"], flow.log_scale)
    native = StandardNormal(2)
    assert small_vae(prior=native).prior is native


def test_a_prior_from_outside_of_another_dimension_is_refused_at_once():
    for source in (Flow(3), Independent(Normal(torch.zeros(3), torch.ones(3)), 1)):
        with pytest.raises(ValueError, match=r"^prior: expected dimension 2, got 3$"):
            small_vae(prior=source)
    with pytest.raises(
        ValueError, match=r"^prior: expected log_prob of shape \(1,\), got \(1, 2\); torch.distributions.Independent"
    ):
        small_vae(prior=Normal(torch.zeros(2), torch.ones(2)))


class Decodes(nn.Module):
    """A decoder that returns whatever one likes."""

    def __init__(self, make):
        super().__init__()
        self.make, self.drop = make, nn.Dropout(0.5)

    def forward(self, z, shift=None):
        return self.make(self.drop(torch.cat([z, z], 1)) + (0 if shift is None else shift))


def decodes(make):
    return VAE(GaussianEncoder(4, 2), Decodes(make), StandardNormal(2))


def test_sample_runs_in_evaluation_mode_and_puts_the_modes_back():
    vae = decodes(lambda mean: Independent(Normal(mean, 1.0), 1))
    means = vae.sample(9, generator=generator())
    z = vae.prior.sample((9,), generator=generator())
    assert torch.equal(means, torch.cat([z, z], 1)) and vae.training and vae.decoder.drop.training


def test_sample_carries_a_condition_and_images():
    vae = decodes(lambda mean: Independent(Normal(mean.reshape(-1, 1, 2, 2), 1.0), 3))
    shift = torch.arange(3.0)[:, None]
    means = vae.sample(3, condition=shift, generator=generator())
    z = vae.prior.sample((3,), generator=generator())
    assert torch.equal(means, (torch.cat([z, z], 1) + shift).reshape(3, 1, 2, 2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda mean: mean, TypeError, "^decoder: expected it to return a distribution of x, got Tensor; name the lik"),
        (lambda mean: (mean, mean.exp()), TypeError, "^decoder: expected it to return a distribution of x, got tuple"),
        (lambda mean: Independent(StudentT(1.0, mean), 1), ValueError, "with a mean, got StudentT, without$"),
        (lambda mean: Categorical(logits=mean), ValueError, "with a mean, got Categorical, without$"),
        (lambda mean: None, TypeError, "decoder: expected it to return a distribution of x, got NoneType"),
    ],
)
def test_sample_says_what_has_no_mean(make, error, message):
    with pytest.raises(error, match=message):
        decodes(make).sample(3, generator=generator())


@pytest.mark.parametrize("scale", ["shared", "free"])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, -200.0),
        (torch.float64, -400.0),
        (torch.float32, 60.0),
        (torch.float32, -46.0),
        (torch.float64, -360.0),
    ],
)
def test_a_scale_whose_square_is_no_number_is_refused(scale, dtype, value):
    decoder = GaussianDecoder(2, 4, (), scale=scale).to(dtype)
    for parameter in [decoder.log_scale] if scale == "shared" else [decoder.log_scale.weight, decoder.log_scale.bias]:
        nn.init.constant_(parameter, value)
    if scale == "free":
        nn.init.zeros_(decoder.log_scale.weight)
    with pytest.raises(ValueError, match=rf"^decoder's scale: expected a scale whose square {dtype} can hold"):
        decoder(torch.zeros(3, 2, dtype=dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_fixed_scale_is_held_to_the_same(scale):
    decoder = GaussianDecoder(2, 4, (), scale=scale)
    with pytest.raises(ValueError, match=r"^decoder's scale: expected a scale whose square torch.float32 can hold"):
        decoder(torch.zeros(3, 2))
    z = torch.zeros(3, 2, dtype=torch.float64)
    mode = decoder.double()(z)  # which float64 can hold
    torch.testing.assert_close(
        mode.log_prob(mode.mean), torch.full((3,), -4 * np.log(scale * np.sqrt(2 * np.pi))).double()
    )


def test_sample_takes_what_was_fitted_in_double_precision():
    vae = VAE(GaussianEncoder(4, 2, (3,)), BernoulliDecoder(2, 4, (3,)), StandardNormal(2))
    latent = StandardNormal(2).double()
    got = vae.sample(3, latent=latent, generator=torch.Generator().manual_seed(0))
    z = latent.sample((3,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(got, vae.decoder(z.float()).mean)


def test_networks_that_are_made_without_memory_are_on_meta_whole():
    with torch.device("meta"):
        made = GaussianEncoder(4, 2, (3,)), BernoulliDecoder(2, 4, (3,)), GaussianDecoder(2, 4, (3,))
    assert {parameter.device.type for module in made for parameter in module.parameters()} == {"meta"}


def test_layers_are_made_where_their_generator_is(monkeypatch):
    """On "meta", whose numbers nobody draws."""
    monkeypatch.setattr(nn.init, "uniform_", lambda *_: None)
    monkeypatch.setattr(networks, "check_generator", lambda generator: generator)
    generator = SimpleNamespace(device=torch.device("meta"))
    for scale in ("shared", "free"):
        made = GaussianDecoder(2, 3, (4,), scale=scale, generator=generator)
        assert {parameter.device.type for parameter in made.parameters()} == {"meta"}


def test_the_configuration_leaves_out_what_is_off():
    sizes = {"data_dim": 4, "latent_dim": 2, "hidden": (3,)}
    assert GaussianEncoder(4, 2, (3,)).config() == sizes
    more = {"gated": True, "log_scale_range": (-1.0, 0.0)}
    assert GaussianEncoder(4, 2, (3,), **more).config() == sizes | more
