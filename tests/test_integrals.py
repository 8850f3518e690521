"""log p(x, z), rules that refine, and laws that everything which integrates it obeys."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
)

from vaebook import integrals
from vaebook.adapters import adapt, adapt_decoder
from vaebook.bounds import elbo, iwae_bound, prior_sample_log_prob, quadrature_log_prob
from vaebook.inference import elbo_quadrature, inference_gap, posterior_moments
from vaebook.integrals import Joint, refine
from vaebook.likelihood import importance_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior

F64 = {"dtype": torch.float64}
FEW = settings(max_examples=10, deadline=None, derandomize=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), **F64)


def curve(z):
    """A bent decoder of one latent dimension."""
    return Independent(Normal(torch.cat([torch.sin(2 * z), z, z.square() / 3], -1), 0.4), 1)


def encode(x):
    return 0.8 * x[:, 1:2], torch.full_like(x[:, :1], 0.5)


PRIOR = DiagGaussianMixture(torch.tensor([[-0.6], [0.2], [0.9]], **F64), torch.tensor([[0.8], [1.0], [0.7]], **F64))
VAE = SimpleNamespace(encoder=encode, decoder=curve, prior=PRIOR)
X = curve(normal(12, 1)).mean + 0.2 * normal(12, 3, seed=1)


def everything(vae, x, **kw):
    """Every function on one model of one latent dimension, (B) each."""
    loc, scale = 0 * x[:, :1] + 0.2, 0 * x[:, :1] + 0.6
    given = (vae.decoder, vae.prior, x)
    moments = posterior_moments(*given, tolerance=1e-8, **kw)
    gap = inference_gap(vae, x, num_nodes=20, tolerance=1e-8, **kw)
    return {
        "quadrature_log_prob": quadrature_log_prob(*given, **kw),
        "elbo_quadrature": elbo_quadrature(*given, loc, scale, tolerance=1e-8, **kw),
        "mean": moments[0][:, 0],
        "variance": moments[1][:, 0, 0],
        "approximation": gap.approximation,
        "amortisation": gap.amortisation,
    }


@functools.cache
def exact():
    return everything(VAE, X)


class TestRefine:
    def test_grows_by_half_and_stops_where_two_agree(self):
        seen = []

        def rule(steps):
            seen.append(steps)
            return torch.tensor([1.0 / min(steps, 20), math.inf])

        assert refine(rule, 8, tolerance=1e-3, max_nodes=1000)[0] == 1 / 20
        assert seen == [8, 12, 18, 27, 40]

    def test_counts_nodes(self):
        seen = []

        def rule(steps):
            seen.append(steps)
            return torch.tensor([float(steps)])

        with pytest.raises(RuntimeError, match=r"max_nodes: expected enough for tolerance 0.5, got 200; raise one"):
            refine(rule, 8, tolerance=0.5, max_nodes=200, num_nodes=lambda steps: (steps + 1) ** 2)
        assert seen == [8, 12]  # 81 and 169 nodes; 18 steps would need 361
        with pytest.raises(RuntimeError, match="got 8"):
            refine(rule, 8, tolerance=math.inf, max_nodes=8)


@FEW
@given(some.floats(0.3, 3.0), some.floats(-1.0, 1.0))
def test_integrates_a_gaussian(scale, loc):
    def rule(steps):
        z = torch.linspace(-30, 30, steps + 1, **F64)
        return torch.trapezoid((-0.5 * ((z - loc) / scale) ** 2).exp(), z)

    assert abs(float(refine(rule, 256, tolerance=1e-12, max_nodes=100_000)) / scale - math.sqrt(2 * math.pi)) < 1e-10


@pytest.mark.parametrize("order", [list(range(11, -1, -1)), [5, 0, 7, 3, 11, 1, 2, 10, 4, 6, 9, 8]])
def test_permuting_data_permutes_values(order):
    for name, value in everything(VAE, X[order]).items():
        torch.testing.assert_close(value, exact()[name][order], rtol=0, atol=2e-8, msg=name)
    shared = [prior_sample_log_prob(curve, PRIOR, x, 50, generator=rng(3)) for x in (X, X[order])]
    torch.testing.assert_close(shared[1], shared[0][order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [5, 11])
def test_splitting_a_batch_changes_nothing(size):
    parts = [everything(VAE, x) for x in X.split(size)]
    for name, whole in exact().items():
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), whole, rtol=0, atol=2e-8, msg=name)
    whole, *shared = (prior_sample_log_prob(curve, PRIOR, x, 50, generator=rng(3)) for x in (X, *X.split(size)))
    torch.testing.assert_close(torch.cat(shared), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cells", [60, 1000, 5000])
def test_chunks_of_nodes_and_samples_change_nothing(cells, monkeypatch):
    x = X[:2]
    few = {"max_nodes": 3000}
    whole = [
        iwae_bound(VAE, x, 30, generator=rng()),
        importance_log_prob(VAE, x, 100, generator=rng()).log_prob,
        quadrature_log_prob(curve, PRIOR, x, tolerance=1e-4, **few),
        *posterior_moments(curve, PRIOR, x, tolerance=1e-4, **few),
    ]
    monkeypatch.setattr(integrals, "CELLS", cells)
    parts = [
        iwae_bound(VAE, x, 30, generator=rng()),
        importance_log_prob(VAE, x, 100, generator=rng()).log_prob,
        quadrature_log_prob(curve, PRIOR, x, tolerance=1e-4, **few),
        *posterior_moments(curve, PRIOR, x, tolerance=1e-4, **few),
    ]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def moved(a, b):
    """The same model with codes a z + b."""
    return SimpleNamespace(
        encoder=lambda x: (a * encode(x)[0] + b, abs(a) * encode(x)[1]),
        decoder=lambda z: curve((z - b) / a),
        prior=DiagGaussianMixture(a * PRIOR.loc + b, abs(a) * PRIOR.scale),
    )


@FEW
@given(some.floats(0.3, 3.0), some.floats(-2.0, 2.0))
def test_codes_that_are_stretched_and_moved_change_no_likelihood(a, b):
    vae = moved(a, b)
    for estimate in (
        lambda vae: elbo(vae, X, num_samples=3, generator=rng()),
        lambda vae: iwae_bound(vae, X, 10, generator=rng()),
        lambda vae: importance_log_prob(vae, X, 100, generator=rng()).log_prob,
        lambda vae: prior_sample_log_prob(vae.decoder, vae.prior, X, 20, generator=rng()),
    ):
        torch.testing.assert_close(estimate(vae), estimate(VAE), rtol=0, atol=1e-8)
    box = {"limit": 8 * a + abs(b)}
    torch.testing.assert_close(
        quadrature_log_prob(vae.decoder, vae.prior, X, **box), exact()["quadrature_log_prob"], rtol=0, atol=1e-8
    )
    loc, scale = a * torch.full((12, 1), 0.2, **F64) + b, a * torch.full((12, 1), 0.6, **F64)
    value = elbo_quadrature(vae.decoder, vae.prior, X, loc, scale, tolerance=1e-8)
    torch.testing.assert_close(value, exact()["elbo_quadrature"], rtol=0, atol=1e-8)
    mean, covariance = posterior_moments(vae.decoder, vae.prior, X, tolerance=1e-8, **box)
    torch.testing.assert_close(mean[:, 0], a * exact()["mean"] + b, rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance[:, 0, 0], a * a * exact()["variance"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("a", [0.4, -2.5])
def test_the_gap_does_not_depend_on_units_and_signs_of_codes(a):
    gap, box = (
        inference_gap(moved(a, 0.5), X, num_nodes=20, tolerance=1e-8, limit=8 * abs(a) + 0.5),
        {"rtol": 0, "atol": 1e-7},
    )
    torch.testing.assert_close(gap.approximation, exact()["approximation"], **box)
    torch.testing.assert_close(gap.amortisation, exact()["amortisation"], **box)


def test_single_precision_agrees_as_far_as_it_can():
    prior = DiagGaussianMixture(PRIOR.loc.float(), PRIOR.scale.float())
    vae = SimpleNamespace(encoder=encode, decoder=curve, prior=prior)
    x, rough = X.float(), {"rtol": 0, "atol": 1e-3}
    given = (curve, prior, x)
    torch.testing.assert_close(quadrature_log_prob(*given, tolerance=1e-4), exact()["quadrature_log_prob"], **rough)
    loc, scale = torch.full((12, 1), 0.2, **F64), torch.full((12, 1), 0.6, **F64)
    torch.testing.assert_close(elbo_quadrature(*given, loc, scale, tolerance=1e-4), exact()["elbo_quadrature"], **rough)
    mean, covariance = posterior_moments(*given, tolerance=1e-4)
    torch.testing.assert_close(mean[:, 0], exact()["mean"], **rough)
    torch.testing.assert_close(covariance[:, 0, 0], exact()["variance"], **rough)
    gap = inference_gap(vae, x, num_nodes=20, tolerance=1e-4)
    torch.testing.assert_close(gap.approximation, exact()["approximation"], **rough)
    torch.testing.assert_close(gap.amortisation, exact()["amortisation"], **rough)
    for call in (lambda: posterior_moments(*given), lambda: inference_gap(vae, x)):
        with pytest.raises(ValueError, match=r"x: expected dtype torch.float64 for tolerance 1e-06, got torch.float32"):
            call()


def test_weights_in_single_precision_are_named():
    decoder = nn.Linear(1, 3)
    vae = adapt(encode, lambda z: Independent(Normal(decoder(z), 0.4), 1), prior=PRIOR, modules=[decoder])
    with pytest.raises(ValueError, match=r"decoder: expected dtype torch.float64 .* use decoder.double\(\)"):
        quadrature_log_prob(vae, PRIOR, X)


class Flow(nn.Module):
    """A flow in ten lines: x = exp(s) z + t, as a module that returns a distribution."""

    def __init__(self):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.tensor([0.3], **F64)), nn.Parameter(torch.tensor([0.2], **F64))

    def forward(self):
        return torch.distributions.TransformedDistribution(
            Independent(Normal(torch.zeros(1, **F64), torch.ones(1, **F64)), 1),
            [torch.distributions.transforms.AffineTransform(self.shift, self.log_scale.exp(), event_dim=1)],
        )


class Encoder(nn.Module):
    data_dim, latent_dim = 3, 1

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1, **F64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.2, 0.6, -0.1]]))

    def forward(self, x):
        return Independent(Normal(self.linear(x), torch.full_like(x[:, :1], 0.5)), 1)


def priors():
    parts = (torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.8]]), torch.tensor([[0.6], [0.9]]))  # single precision
    one = (parts[1][0], parts[2][0])
    mixing = Categorical(probs=parts[0])
    return {
        "Independent": Independent(Normal(*one), 1),
        "MultivariateNormal": MultivariateNormal(one[0], scale_tril=one[1][None]),
        "MixtureSameFamily": MixtureSameFamily(mixing, Independent(Normal(*parts[1:]), 1)),
        "full MixtureSameFamily": MixtureSameFamily(
            mixing, MultivariateNormal(parts[1], scale_tril=parts[2][..., None])
        ),
        "Laplace": Independent(Laplace(torch.zeros(1, **F64), torch.full((1,), 0.8, **F64)), 1),
        "flow": Flow(),
        "StandardNormal": StandardNormal(1),
        "GaussianMixture": GaussianMixture(parts[0], parts[1], parts[2][..., None]),
        "VampPrior": VampPrior(Encoder(), X[:4]),
        "ExemplarPrior": ExemplarPrior(Encoder(), X, 0.5),
    }


@pytest.mark.parametrize("name", list(priors()))
def test_every_prior_everywhere(name):
    """Against a sum over a grid, in float64, of the density that the prior itself gives."""
    prior, x = priors()[name], X[:3]
    vae = SimpleNamespace(encoder=encode, decoder=curve, prior=prior)
    z = torch.linspace(-9, 9, 6001, **F64)[:, None]
    density = prior() if isinstance(prior, Flow) else prior
    single = isinstance(density, torch.distributions.Distribution) and name not in ("Laplace", "flow")
    with torch.no_grad():
        log_prior = density.log_prob(z.float() if single else z).double()
    joint = curve(z[:, None]).log_prob(x) + log_prior[:, None]
    truth = torch.trapezoid(joint.exp(), z[:, 0], dim=0).log()
    tolerance = 1e-4 if name == "Laplace" else 1e-9  # whose density has a kink
    got = quadrature_log_prob(curve, prior, x, limit=16.0, tolerance=tolerance)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-4)
    estimate = importance_log_prob(vae, x, 2000, generator=rng())
    assert bool(((estimate.log_prob - truth).abs() < 5 * estimate.stderr).all())
    assert float(estimate.effective_samples.min()) > 500
    naive = prior_sample_log_prob(curve, prior, x, 20_000, generator=rng())
    # Its relative variance is E p(x|z)² / p(x)² - 1 for one draw.
    squares = torch.trapezoid((2 * joint - log_prior[:, None]).exp(), z[:, 0], dim=0)
    assert bool(((naive - truth).abs() < 5 * ((squares / (2 * truth).exp() - 1) / 20_000).sqrt()).all())
    mean, _ = posterior_moments(curve, prior, x, tolerance=1e-4)
    torch.testing.assert_close(mean, joint.softmax(0).mT @ z, rtol=0, atol=1e-3)
    weighted = iwae_bound(vae, x, 2000, generator=rng())
    assert bool(((weighted - truth).abs() < 0.2).all())
    q = encode(x)
    lower = elbo_quadrature(curve, prior, x, *q, tolerance=1e-3) if name != "Laplace" else None
    drawn = elbo(vae, x, num_samples=4000, generator=rng())
    assert lower is None or bool(((drawn - lower).abs() < 0.3).all())
    assert bool((drawn < truth + 1e-3).all())


class Conditional(nn.Module):
    """Codes of shape (1, 1, 1), images of shape (1, 2, 2), a label, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        generator = torch.random.fork_rng()
        with generator:
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
            self.outer = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
        self.double()
        self.rows = []

    def encode(self, x, label):
        assert x.shape[1:] == (1, 2, 2)
        loc, log_var = self.inner(torch.cat([x.flatten(1), label[:, None]], 1)).chunk(2, 1)
        return loc[..., None, None], log_var[..., None, None]

    def decode(self, z, label):
        assert z.shape[1:] == (1, 1, 1)
        self.rows.append(len(z))
        logits = self.outer(torch.cat([z.flatten(1), label[:, None]], 1)).reshape(-1, 1, 2, 2)
        return Independent(torch.distributions.Bernoulli(logits=logits), 3)


def test_conditional_images_with_batch_norm_and_dropout():
    model = Conditional()
    vae = adapt(
        model.encode,
        model.decode,
        spread="log_var",
        condition="label",
        prior=StandardNormal(1),
        latent_shape=(1, 1, 1),
        modules=[model],
    )
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), **F64).reshape(-1, 1, 2, 2)
    label = normal(16, seed=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.training
    with torch.no_grad():  # row by row, in evaluation mode, on a grid
        model.eval()
        z = torch.linspace(-8, 8, 2001, **F64)
        rows = []
        for one, own in zip(x, label, strict=True):
            log_p = model.decode(z.reshape(-1, 1, 1, 1), own.expand(2001)).log_prob(one)
            rows.append(torch.trapezoid((log_p + Normal(0.0, 1.0).log_prob(z)).exp(), z).log())
        truth = torch.stack(rows)
        model.train()
    got = quadrature_log_prob(vae, vae.prior, x, condition=label)
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-7)
    estimate = importance_log_prob(vae, x, 1000, condition=label, generator=rng())
    assert bool(((estimate.log_prob - truth).abs() < 5 * estimate.stderr).all())
    torch.testing.assert_close(
        estimate.log_prob, importance_log_prob(vae, x, 1000, condition=label, generator=rng()).log_prob, rtol=0, atol=0
    )
    naive = prior_sample_log_prob(vae, vae.prior, x, 20_000, condition=label, generator=rng())
    torch.testing.assert_close(naive, truth, rtol=0, atol=0.05)
    gap = inference_gap(vae, x, condition=label, tolerance=1e-7)
    assert float(gap.approximation.min()) > -1e-6 and float(gap.amortisation.min()) >= 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    training = elbo(vae, x, condition=label, generator=rng())  # in the mode that the model is in
    assert not torch.equal(model.state_dict()["outer.1.running_mean"], before["outer.1.running_mean"])
    model.load_state_dict(before)
    model.eval()
    lower = elbo(vae, x, condition=label, num_samples=500, generator=rng())
    assert training.requires_grad and bool((lower < truth + 0.1).all())
    with pytest.raises(ValueError, match="condition: expected label"):
        elbo(vae, x)


def test_a_condition_that_only_one_part_takes():
    label = normal(12, seed=2)
    vae = adapt(lambda x, label: (encode(x)[0] + label[:, None], encode(x)[1]), curve, prior=PRIOR)
    gap = inference_gap(vae, X, condition=label, num_nodes=20, tolerance=1e-8)
    torch.testing.assert_close(gap.approximation, exact()["approximation"], rtol=0, atol=1e-6)
    assert float((gap.amortisation - exact()["amortisation"]).abs().min()) > 1e-3
    estimate = importance_log_prob(vae, X, 500, condition=label, generator=rng())
    assert bool(((estimate.log_prob - exact()["quadrature_log_prob"]).abs() < 5 * estimate.stderr).all())


def test_classes_as_integers():
    """Categorical data need not be floating-point numbers."""

    def decoder(z):
        return Independent(Categorical(logits=torch.stack([z, -z, 0 * z], -1).expand(*z.shape[:-1], 2, 3)), 1)

    x = torch.tensor(list(itertools.product(range(3), repeat=2)))
    total = quadrature_log_prob(decoder, StandardNormal(1), x).logsumexp(0)
    assert abs(float(total)) < 1e-9
    vae = SimpleNamespace(
        encoder=lambda x: (0.5 * (x == 0).double().sum(1, keepdim=True), torch.full((len(x), 1), 0.8, **F64)),
        decoder=decoder,
        prior=StandardNormal(1),
    )
    truth = quadrature_log_prob(decoder, StandardNormal(1), x)
    estimate = importance_log_prob(vae, x, 1000, generator=rng())
    assert bool(((estimate.log_prob - truth).abs() < 5 * estimate.stderr).all())
    assert elbo(vae, x, generator=rng()).dtype == torch.float32
    assert bool((elbo(vae, x, num_samples=2000, generator=rng()) < truth + 0.05).all())


def test_the_prior_that_is_left_out_is_the_standard_normal():
    vae = adapt(encode, curve)
    truth = quadrature_log_prob(curve, StandardNormal(1), X)
    torch.testing.assert_close(
        inference_gap(vae, X, tolerance=1e-7).approximation.clamp(min=0),
        inference_gap(adapt(encode, curve, prior=StandardNormal(1)), X, tolerance=1e-7).approximation,
        rtol=0,
        atol=1e-5,
    )
    estimate = importance_log_prob(adapt(encode, curve), X, 1000, generator=rng())
    assert bool(((estimate.log_prob - truth).abs() < 5 * estimate.stderr).all())
    assert bool((elbo(adapt(encode, curve), X, num_samples=500, generator=rng()) < truth + 0.05).all())


def test_heavy_tails_have_no_moments_but_a_likelihood():
    def decoder(z):
        return Independent(StudentT(1.0, curve(z).mean, 0.3), 1)

    vae = SimpleNamespace(encoder=encode, decoder=decoder, prior=PRIOR)
    truth = quadrature_log_prob(decoder, PRIOR, X)
    estimate = importance_log_prob(vae, X, 1000, generator=rng())
    assert bool(((estimate.log_prob - truth).abs() < 5 * estimate.stderr).all())
    assert float(estimate.effective_samples.min()) > 300


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        (math.inf, 1.0, "encoder's loc: expected finite values, got inf"),
        (math.nan, 1.0, "encoder's loc: expected finite values, got nan"),
        (0.0, 0.0, "encoder's scale: expected positive values, got min 0"),
        (0.0, math.nan, "encoder's scale: expected finite values, got nan"),
    ],
)
def test_codes_are_numbers_before_they_are_integrated_over(loc, scale, message):
    vae = adapt(lambda x: (torch.full_like(x, loc), torch.full_like(x, scale)), latent_shape=(1,))
    with pytest.raises(ValueError, match=f"^{message}"):
        vae.encode(torch.zeros(3, 1))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_joint_density_says_whose_value_is_no_number(value):
    flat = SimpleNamespace(log_prob=lambda x: torch.full((len(x),), value))
    joint = Joint(adapt_decoder(lambda z: flat, StandardNormal(1)), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"^decoder's log p\(x\|z\): expected values below infinity"):
        joint.log_likelihood(torch.zeros(2, 3, 1))
    prior = SimpleNamespace(latent_dim=1, log_prob=lambda z: torch.full(z.shape[:-1], value))
    with pytest.raises(ValueError, match=r"^prior's log p\(z\): expected values below infinity"):
        Joint(joint.vae, joint.x, prior=prior).log_prior(torch.zeros(2, 3, 1))


def test_a_prior_gives_one_value_a_code():
    prior = SimpleNamespace(latent_dim=1, log_prob=lambda z: torch.zeros(len(z) + 1, *z.shape[1:-1]))
    joint = Joint(adapt_decoder(lambda z: Normal(z, 1.0), StandardNormal(1)), torch.zeros(3, 1), prior=prior)
    with pytest.raises(ValueError, match=r"^prior: expected log_prob of shape \(6,\), got \(7,\)"):
        joint.log_prior(torch.zeros(2, 3, 1))
    assert Joint(joint.vae, joint.x).log_prior(torch.zeros(2, 3, 1)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_come_in_the_dtype_of_the_weights_or_of_the_data(dtype):
    function, x = adapt_decoder(lambda z: Normal(z, 1.0), StandardNormal(1)), torch.zeros(3, 1, dtype=dtype)
    assert Joint(function, x).dtype == dtype
    assert Joint(function, x.long()).dtype == torch.float64
    net = nn.Linear(1, 1).to(dtype)
    decoder = adapt_decoder(lambda z: Normal(net(z), 1.0), StandardNormal(1))
    assert {Joint(decoder, torch.zeros(3, 1).to(other)).dtype for other in (torch.float32, torch.long)} == {dtype}
