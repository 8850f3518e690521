"""Models and data that were not made here: what once went wrong with them, by kind."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import (
    Independent,
    NegativeBinomial,
    Normal,
    Poisson,
    TransformedDistribution,
)
from torch.distributions.transforms import Transform
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from vaebook.adapters import adapt, adapt_prior
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import elbo, iwae_bound, prior_sample_log_prob, quadrature_log_prob
from vaebook.diagnosis import diagnose
from vaebook.evaluation import as_data, modules_of
from vaebook.holes import hole_mass
from vaebook.information import decompose_kl
from vaebook.likelihood import compare_priors, importance_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, GaussianDecoder, GaussianEncoder
from vaebook.population import bracket_mismatch
from vaebook.priors import StandardNormal, VampPrior
from vaebook.training import fit


def seed(number=0):
    return torch.Generator().manual_seed(number)


X = torch.randn(80, 4, generator=seed())
CODES = DiagGaussianMixture(X[:, :2].double(), torch.full((80, 2), 0.5, dtype=torch.float64))


def encode(x):
    return x.float()[:, :2] * 0.0, torch.full((len(x), 2), 0.5)


def decode(z):
    return Independent(Normal(torch.cat([z, z], 1), 1.0), 1)


class Whiten(Transform, nn.Module):
    """A batch norm that a library calls as a transform, so that no hook of modules sees the call."""

    bijective = True
    domain = codomain = torch.distributions.constraints.real_vector
    event_dim = 1

    def __init__(self):
        Transform.__init__(self)
        nn.Module.__init__(self)
        self.register_buffer("scale", torch.full((2,), 2.0))
        self.calls = 0

    def __hash__(self):
        return nn.Module.__hash__(self)

    def __eq__(self, other):
        return self is other

    def _call(self, x):
        return x * self.scale

    def _inverse(self, y):
        if self.training:
            self.calls += 1
            self.scale = y.reshape(-1, 2).std(0)  # nan for a single row
        return y / self.scale

    def log_abs_det_jacobian(self, x, y):
        return self.scale.log().sum().expand(x.shape[:-1])


def flow(transform):
    return TransformedDistribution(Independent(Normal(torch.zeros(2), 1.0), 1), [transform])


class Normalised(nn.Module):
    """A prior with the whole interface, whose density has the statistics of its batch in training mode."""

    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.norm.running_mean += 1.0

    def log_prob(self, z):
        return Normal(0.0, 1.0).log_prob(self.norm(z.reshape(-1, 2).float())).sum(-1).reshape(z.shape[:-1]).to(z)

    def sample(self, sample_shape=(), *, generator=None):
        return torch.randn(*sample_shape, 2, generator=generator)


class BatchNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.drop = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.3)

    def forward(self, x):
        loc, log_scale = self.linear(self.drop(self.norm(x))).chunk(2, 1)
        return Independent(Normal(loc, log_scale.exp()), 1)


def state(*modules):
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


USES = {
    "decompose_kl": lambda p: decompose_kl(CODES, p, num_samples=200, generator=seed()).rate.value,
    "hole_mass": lambda p: hole_mass(CODES, p, num_samples=200, generator=seed()).mass,
    "bracket_mismatch": lambda p: bracket_mismatch(CODES, p, num_samples=200, generator=seed()).low,
    "a density": lambda p: bracket_mismatch(
        CODES, StandardNormal(2), densities=(p,), num_samples=200, generator=seed()
    ).candidates["densities[0]"][0],
    "diagnose": lambda p: diagnose(CODES, prior=p, generator=seed()).rate.value,
    "importance_log_prob": lambda p: float(
        importance_log_prob(adapt(encode, decode), X[:5], 200, prior=p, generator=seed()).log_prob.sum()
    ),
    "compare_priors": lambda p: float(
        compare_priors(adapt(encode, decode), X[:5], {"p": p, "own": None}, 200, generator=seed())["p"].log_prob.sum()
    ),
    "prior_sample_log_prob": lambda p: float(prior_sample_log_prob(decode, p, X[:5], 100, generator=seed()).sum()),
}


@pytest.mark.filterwarnings("ignore:num_samples")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["a transform", "the whole interface", "pseudo-inputs"])
def test_a_prior_in_training_mode_is_used_as_in_evaluation_mode_and_left_as_it_was(kind, use):
    torch.manual_seed(0)
    encoder = BatchNormed()
    for _ in range(5):
        encoder(X)
    module = {"a transform": Whiten(), "the whole interface": Normalised(), "pseudo-inputs": encoder}[kind]
    made = {"a transform": flow, "pseudo-inputs": lambda e: VampPrior(e, X[:3])}.get(kind, lambda m: m)
    wanted = USES[use](made(module.eval()))
    module.train()
    before, noise = state(module), torch.get_rng_state()
    assert USES[use](made(module)) == wanted and math.isfinite(wanted)
    assert all(map(torch.equal, before, state(module))) and torch.equal(noise, torch.get_rng_state())
    assert all(part.training for part in module.modules())


def test_a_flow_is_looked_at_in_evaluation_mode():
    whiten = Whiten()
    vae = adapt(encode, decode, prior=flow(whiten))
    assert whiten.calls == 0 and whiten.training and torch.equal(whiten.scale, torch.full((2,), 2.0))
    with vae.evaluating():
        assert not whiten.training
    assert whiten.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_keep_their_digits_where_the_weights_have_few(dtype):
    net = nn.Linear(2, 2).to(dtype)
    nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    counts = np.array([[301.0, 1001.0]], np.float32)

    def decode(z):
        return NegativeBinomial(torch.tensor(50.0), logits=(z.float() + 1.5).expand(-1, 2))

    vae = adapt(lambda x: net(x).float().chunk(2, 1), decode, spread="log_var", modules=(net,))
    found = [importance_log_prob(vae, x, 500, generator=seed()).log_prob for x in (counts, torch.from_numpy(counts))]
    exact = importance_log_prob(
        adapt(lambda x: (0 * x[:, :1], torch.ones(len(x), 1)), decode), torch.from_numpy(counts), 500, generator=seed()
    )
    assert torch.equal(*found) and float((found[0] - exact.log_prob).abs()) < 0.2
    assert torch.equal(as_data("x", counts, dtype), torch.from_numpy(counts))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_counts_of_any_dtype_have_one_likelihood(dtype):
    x = torch.tensor([[255, 250]]).clamp(max=torch.iinfo(dtype).max if not dtype.is_floating_point else 300).to(dtype)
    vae = adapt(
        lambda x: (x.float()[:, :1] * 0.0, torch.ones(len(x), 1)), lambda z: Poisson((z + 5).exp().expand(-1, 2))
    )
    found = elbo(vae, x, num_samples=3, generator=seed())
    assert found.isfinite().all()
    torch.testing.assert_close(found, elbo(vae, x.double(), num_samples=3, generator=seed()).float())


def test_a_kl_of_other_arguments_is_not_taken_for_the_divergence():
    class Own:
        latent_dim = 2
        components = 3  # how many, not what

        def log_prob(self, z):
            return Normal(0.0, 1.0).log_prob(z).sum(-1)

        def sample(self, sample_shape=(), *, generator=None):
            return torch.randn(*sample_shape, 2, generator=generator)

        def kl(self, mu, logvar):
            return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)

    class Named(Own):
        def kl(self, loc, scale):
            return StandardNormal(2).kl(loc, scale)

    x = torch.zeros(400, 4)
    mean = {
        kind: float(elbo(adapt(encode, decode, prior=kind()), x, num_samples=50, generator=seed()).mean())
        for kind in (Own, Named)
    }
    exact = float(elbo(adapt(encode, decode), x, num_samples=50, generator=seed()).mean())
    assert mean[Named] == exact and mean[Own] == pytest.approx(exact, abs=0.05)
    assert decompose_kl(CODES, Own(), num_samples=100, generator=seed()).how == "sampled"


LOADERS = {
    "shuffle": lambda data: DataLoader(data, batch_size=2, shuffle=True),
    "a random subset": lambda data: DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(range(6))),
    "weights": lambda data: DataLoader(data, batch_size=2, sampler=WeightedRandomSampler([1.0] * 6, 6)),
    "shuffled batches": lambda data: DataLoader(
        data, batch_sampler=torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(data), 2, False)
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_that_shuffles_has_no_condition_beside_it(loader):
    x = torch.arange(6.0)[:, None]
    given = LOADERS[loader](TensorDataset(x))

    def own(x, c):
        return x - c, torch.ones_like(x)

    for use in (
        lambda data: aggregated_posterior(own, data, condition=x),
        lambda data: aggregated_posterior(adapt(own, condition=x), data),
        lambda data: elbo(adapt(own, lambda z: Independent(Normal(z, 1.0), 1)), data, condition=x),
    ):
        with pytest.raises(ValueError, match=r"^x: expected data in the order of their condition"):
            use(given)
        use(DataLoader(TensorDataset(x), batch_size=2))
    assert len(aggregated_posterior(lambda x: (x, torch.ones_like(x)), given).loc) == 6


def test_modules_that_were_frozen_stay_so_while_the_model_is_trained():
    encoder = BatchNormed()
    vae = VAE(encoder, GaussianDecoder(2, 4, (4,)), StandardNormal(2))
    encoder.norm.eval()
    frozen = state(encoder.norm)[2:]  # its statistics
    fit(vae, X, num_epochs=2, batch_size=40, generator=seed(), progress=False)
    assert all(map(torch.equal, frozen, state(encoder.norm)[2:]))
    assert not encoder.norm.training and encoder.drop.training and vae.training
    vae.eval()  # a model that is in evaluation mode as a whole is trained as a whole
    fit(vae, X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
    assert not any(map(torch.equal, frozen, state(encoder.norm)[2:])) and not vae.training


MASKED = np.ma.array([[1.0, 999.0], [2.0, 3.0]], mask=[[0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("x", lambda: aggregated_posterior(lambda x: (x, torch.ones_like(x)), MASKED)),
        ("condition", lambda: aggregated_posterior(lambda x, c: (x, torch.ones_like(x)), X[:2], condition=MASKED)),
        ("loc", lambda: DiagGaussianMixture.from_arrays(MASKED, scale=np.ones((2, 2)))),
        ("scale", lambda: DiagGaussianMixture.from_arrays(np.ones((2, 2)), scale=MASKED)),
    ],
)
def test_what_lies_under_a_mask_is_not_taken(name, use):
    with pytest.raises(TypeError, match=f"^{name}: expected .*MaskedArray"):
        use()


def test_a_mask_that_hides_nothing_is_none():
    x = np.ma.array([[1.0, 2.0]], mask=False)
    assert torch.equal(as_data("x", x), torch.tensor([[1.0, 2.0]], dtype=torch.float64))


class Half(nn.Module):
    """A prior with the whole interface that works in single precision only, or returns a value for each latent."""

    latent_dim = 2

    def __init__(self, total=True):
        super().__init__()
        self.linear, self.total = nn.Linear(2, 2), total

    def log_prob(self, z):
        value = Normal(0.0, 1.0).log_prob(self.linear(z) if self.total else z)
        return value.sum(-1) if self.total else value

    def sample(self, sample_shape=(), *, generator=None):
        return torch.randn(*sample_shape, 2, generator=generator)


@pytest.mark.parametrize(("total", "told"), [(True, "a density over all of R"), (False, "log_prob of shape")])
@pytest.mark.parametrize(
    "use", ["decompose_kl", "hole_mass", "bracket_mismatch", "a density", "importance_log_prob", "compare_priors"]
)
def test_a_prior_that_cannot_take_codes_is_named(use, total, told):
    name = {"a density": r"densities\[0\]", "compare_priors": r"priors\['p'\]"}.get(use, "prior")
    with pytest.raises(ValueError, match=f"^{name}: expected {told}"):
        USES[use](Half(total))


@dataclass(slots=True)
class Slots:
    net: nn.Module

    def encode(self, x):
        return self.net(x).chunk(2, 1)


class Tuple(NamedTuple):
    net: nn.Module

    def encode(self, x):
        return self.net(x).chunk(2, 1)


class Called:
    def __init__(self, net):
        self.nets = [net]

    def __call__(self, x):
        return self.nets[0](x).chunk(2, 1)


class Named:
    def __init__(self, net):
        self.nets = {"encoder": net, "size": 4}

    def encode(self, x):
        return self.nets["encoder"](x).chunk(2, 1)


def late(net):
    def encode(x):
        return later(x).chunk(2, 1)

    holder = adapt(lambda x: net(x).chunk(2, 1), None, spread="log_var")
    empty = modules_of(encode)  # the name has no value yet
    later = net
    return holder, empty, encode


@pytest.mark.parametrize(
    "made",
    [lambda n: Slots(n).encode, lambda n: Tuple(n).encode, lambda n: Named(n).encode, Called, lambda n: late(n)[2]],
)
def test_the_modules_of_any_callable_are_found(made):
    net = nn.Linear(4, 4)
    assert modules_of(made(net)) == [net]
    vae = adapt(made(net), decode, spread="log_var")
    assert vae.dtype == torch.float32 and sum(p.numel() for p in vae.parameters()) == 20
    assert aggregated_posterior(vae, X.numpy().astype(float)).loc.shape == (80, 2)


def test_a_name_that_has_no_value_yet_holds_no_module():
    assert late(nn.Linear(4, 4))[1] == []


def test_modules_within_distributions_are_found_once_and_classes_are_none():
    whiten, encoder = Whiten(), GaussianEncoder(4, 2, ())
    assert modules_of(flow(whiten), whiten) == [whiten]
    assert modules_of(Independent(Normal(0.0, torch.ones(2)), 1), nn.Linear, [encoder]) == [encoder]
    assert modules_of(adapt_prior(flow(whiten)))[1:] == [whiten]
    assert modules_of(encoder.forward) == modules_of(encoder) == [encoder]


def test_a_frozen_module_of_torchscript_is_an_encoder():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    frozen = torch.jit.freeze(torch.jit.script(net.eval()))
    found = aggregated_posterior(adapt(lambda x: frozen(x).chunk(2, 1), None, spread="log_var", modules=(frozen,)), X)
    assert torch.equal(found.loc, net(X).chunk(2, 1)[0].detach())


class OverRows:
    """A prior as people write it for a batch (B, D): the sum is over dimension 1."""

    latent_dim = 2

    def log_prob(self, z):
        return Normal(0.0, 1.0).log_prob(z - torch.tensor([0.0, 3.0])).sum(1)

    def sample(self, sample_shape=(), *, generator=None):
        return torch.randn(*sample_shape, 2, generator=generator) + torch.tensor([0.0, 3.0])


class Plain:
    def __init__(self):
        self.log_prob = OverRows().log_prob

    def sample(self, shape):
        return OverRows().sample(shape)


class Batch(nn.Module):
    """The same by batch norm, which takes dimension 1 for the features."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False, eps=0.0).eval()
        self.norm.running_mean[1] = 3.0

    def log_prob(self, z):
        return Normal(0.0, 1.0).log_prob(self.norm(z)).sum(-1)

    def sample(self, shape):
        return OverRows().sample(shape)


class Right(Plain):
    """The same as it should be, without a divergence in closed form."""

    def __init__(self):
        self.log_prob = Independent(Normal(torch.tensor([0.0, 3.0]), 1.0), 1).log_prob


@pytest.mark.parametrize("num", [2, 3])  # two data, as many as there are dimensions, hid it
@pytest.mark.parametrize("prior", [OverRows, Plain, Batch])
def test_a_prior_is_given_rows(prior, num):
    def estimates(prior):
        vae = adapt(lambda x: (x[:, :2], 0.5 + x[:, 2:].abs()), decode, prior=prior)
        return elbo(vae, X[:num], num_samples=9, generator=seed()), iwae_bound(vae, X[:num], 9, generator=seed())

    for found, wanted in zip(estimates(prior()), estimates(Right()), strict=True):
        torch.testing.assert_close(found, wanted)
    z = torch.randn(5, num, 2, generator=seed())
    torch.testing.assert_close(adapt_prior(Plain()).log_prob(z), Right().log_prob(z))


class Truncated(Normal):
    """A subclass of torch's with another density."""

    def log_prob(self, z):
        return super().log_prob(z) - math.log(0.997)


class Correlated:
    """It tells its means and variances, and more."""

    def __init__(self, mean, scale):
        self.mean, self.variance = mean, scale.square()
        self.tril = torch.diag_embed(scale) @ torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=scale.dtype)

    def log_prob(self, z):
        return torch.distributions.MultivariateNormal(self.mean, scale_tril=self.tril).log_prob(z)


class Tailed:
    def __init__(self, loc, scale):
        self.loc, self.scale, self.log_prob = loc, scale, torch.distributions.StudentT(5.0, loc, scale).log_prob


class Same(Normal):
    """A subclass, as Pyro has one."""


class Other:
    """What it tells the log-probability of are labels."""

    def __init__(self, mu, scale):
        self.mu, self.logvar, self.log_prob = mu, 2 * scale.log(), torch.distributions.Categorical(logits=mu).log_prob


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Truncated, Correlated, Tailed, Same, Other])
def test_what_tells_another_density_than_that_of_its_means_and_scales_is_refused(kind, dtype):
    scale = (0.5 + X[:, 2:].abs()).to(dtype)
    forms = [lambda q: q] + [lambda q: Independent(q, 1)] * issubclass(kind, Normal)
    for form in forms if dtype != torch.bfloat16 or kind in (Same, Other) else ():  # which is too rough to tell
        codes = lambda x: form(kind(x[:, :2].to(dtype), (0.5 + x[:, 2:].abs()).to(dtype)))  # noqa: E731, B023
        use = lambda: aggregated_posterior(codes, X)  # noqa: E731, B023
        if kind in (Same, Other):
            torch.testing.assert_close(use().scale.to(dtype), scale)
        else:
            with pytest.raises(
                TypeError, match=r"^encoder: expected independent Gaussians, got .* with another log_prob"
            ):
                use()


class OneInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x).chunk(2, 1)


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, z, label):
        return Independent(Normal(self.linear(torch.cat([z, label], 1)), 1.0), 1)


class Compiled(nn.Module):
    """What torch.compile makes of a module."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, *args, **kwargs):
        return self._orig_mod(*args, **kwargs)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, Compiled, partial, lambda m: Compiled(partial(m))])
@pytest.mark.parametrize("name", ["label", None])
def test_a_condition_goes_to_the_part_that_takes_it_through_any_wrapper(wrap, name):
    parts, label = (OneInput(), Labelled()), X[:5, :1]
    options = {"spread": "log_var", "condition": name}
    plain, wrapped = (adapt(*(made(part) for part in parts), **options) for made in (lambda m: m, wrap))
    found = elbo(wrapped, X[:5], condition=label, generator=seed())
    assert torch.equal(found, elbo(plain, X[:5], condition=label, generator=seed()))


def test_training_that_would_change_nothing_is_refused():
    encoder, decoder = OneInput(), nn.Linear(2, 4)
    vae = adapt(encoder, lambda z: Independent(Normal(decoder(z), 1.0), 1), spread="log_var")
    free = adapt(torch.no_grad()(encoder.forward), lambda z: decode(z.detach()), spread="log_var", modules=(encoder,))
    hidden = adapt(lambda x: encoder(x), lambda z: Independent(Normal(decoder(z), 1.0), 1), spread="log_var")
    before = state(encoder, decoder)
    for model, told in (
        (copy.deepcopy(hidden), "a loss of its own weights alone"),
        (free, "a loss that depends on weights"),
    ):
        with pytest.raises(ValueError, match=f"^vae: expected {told}"):
            fit(model, X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
    assert all(map(torch.equal, before, state(encoder, decoder)))
    fit(vae, X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
    assert not any(map(torch.equal, before, state(encoder, decoder)))


def test_a_model_may_ask_for_gradients_in_its_input():
    """As those do that are computed again on the way back."""
    encoder, decoder = OneInput(), nn.Linear(2, 4)
    vae = adapt(
        lambda x: checkpoint(encoder, x.requires_grad_(), use_reentrant=True),
        decoder,
        spread="log_var",
        likelihood=lambda mean: Independent(Normal(mean, 1.0), 1),
        modules=(encoder,),
    )
    before = state(encoder, decoder)
    fit(vae, X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
    assert not any(map(torch.equal, before, state(encoder, decoder)))


class Holder:
    """A library's object: what it computes with lies deeper than anybody looks."""

    def __init__(self, module):
        self.inner = SimpleNamespace(module=module)

    def __call__(self, rows):
        return self.inner.module(rows)


@pytest.mark.parametrize("part", ["encoder", "decoder", "one layer", "a parameter", "prior"])
def test_weights_that_would_stay_as_they_are_while_others_are_trained_are_refused(part):
    encoder, decoder, prior, modules = OneInput(), nn.Linear(2, 4), None, ()
    extra, shift = nn.Linear(2, 2), nn.Parameter(torch.zeros(4))
    decode = Holder(decoder) if part == "decoder" else decoder
    if part == "one layer":
        first = Holder(extra)
        decode, modules = (lambda z: decoder(first(z))), (extra,)
    if part == "a parameter":
        decode, modules = (lambda z: decoder(z) + shift), (nn.ParameterList([shift]),)
    if part == "prior":
        loc = nn.Parameter(torch.zeros(2))
        prior = Independent(Normal(loc, 1.0), 1)
    encode = Holder(encoder) if part == "encoder" else encoder
    modules = modules or ((encoder,) if part == "encoder" else (decoder,))
    options = {"spread": "log_var", "likelihood": lambda mean: Independent(Normal(mean, 1.0), 1), "prior": prior}
    weights = [p for m in (encoder, decoder, extra) for p in m.parameters()] + [shift]
    before = [p.detach().clone() for p in weights]
    told = set()
    for _ in range(3):
        with pytest.raises(
            ValueError, match=r"^vae: expected a loss of its own weights .*\]; name .* modules="
        ) as caught:
            fit(adapt(encode, decode, **options), X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
        told.add(str(caught.value))
    assert len(told) == 1
    assert all(map(torch.equal, before, weights))
    if part != "prior":
        named = adapt(encode, decode, modules=modules, **options)
        fit(named, X, num_epochs=1, batch_size=40, generator=seed(), progress=False)
        assert not torch.equal(torch.cat([p.flatten() for p in before]), torch.cat([p.flatten() for p in weights]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_whose_precision_changes_after_it_was_adapted_is_used_in_the_new_one(dtype):
    encoder, decoder = OneInput(), nn.Linear(2, 4)
    vae = adapt(encoder, lambda z: Independent(Normal(decoder(z), 1.0), 1), spread="log_var")
    vae.to(dtype)
    assert vae.dtype == vae.decoder.dtype == vae.encoder.dtype == dtype
    assert elbo(vae, X.numpy(), generator=seed()).isfinite().all() if dtype == torch.float64 else True
    assert elbo(vae, X.to(dtype), generator=seed()).isfinite().all()
    assert vae.sample(2, generator=seed()).dtype == torch.promote_types(dtype, torch.float32)
    if dtype == torch.float64:
        quadrature_log_prob(vae, vae.prior, X[:2].double(), limit=9.0, tolerance=1e-3)


def test_what_was_computed_in_single_precision_may_be_returned_in_double():
    torch.manual_seed(0)
    net, back = nn.Linear(300, 4), nn.Linear(2, 300)
    x = torch.randn(16, 300, generator=seed())

    def rows(apart):  # sums may be taken in another order in the second, smaller batch
        return lambda x: net(x * (1 + apart * (len(x) < 16))).double().chunk(2, 1)

    def decode(z):
        return Independent(Normal((back(z) * (1 + 1e-6 * (len(z) < 16))).double(), 1.0), 1)

    vae = adapt(rows(1e-6), decode, modules=(net, back), spread="log_var")
    assert prior_sample_log_prob(vae, StandardNormal(2), x, 2, generator=seed()).isfinite().all()
    aggregated_posterior(vae, x)
    with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes"):
        aggregated_posterior(adapt(rows(0.01), spread="log_var"), x)


def meta(*size):
    return nn.Linear(*size, device="meta")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("encoder's loc", lambda: aggregated_posterior(lambda x: (x.to("meta"), x.to("meta")), X)),
        ("encoder's loc", lambda: elbo(adapt((lambda n: lambda x: n(x).chunk(2, 1))(meta(4, 4)), decode), X)),
        (
            "z",
            lambda: prior_sample_log_prob((lambda n: lambda z: Normal(n(z), 1.0))(meta(2, 4)), StandardNormal(2), X, 5),
        ),
        ("encoder's scale", lambda: aggregated_posterior(lambda x, c: (x, c), X, condition=X.to("meta"))),
        (
            "condition",
            lambda: aggregated_posterior((lambda net: lambda x, c: net(x + c))(OneInput()), X, condition=X.to("meta")),
        ),
    ],
)
def test_what_is_on_the_meta_device_is_named(name, use):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*meta"):
        use()


def test_memory_is_no_iterable_of_batches():
    with pytest.raises(TypeError, match=r"^x: expected a tensor, array or iterable of batches .* got memoryview"):
        aggregated_posterior(encode, memoryview(X.numpy()))


class OverBatch(nn.Module):
    """Something that takes the batch for a sequence: row n depends on those before it, or on how many there are."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.cell = kind, nn.LSTM(2, 4) if kind == "a sequence" else nn.Linear(2, 4)
        with torch.no_grad():
            for n, weight in enumerate(self.parameters()):
                weight.copy_(torch.rand(weight.shape, generator=seed(n)) - 0.5)

    def forward(self, rows):
        rows = rows[:, :2]
        if self.kind == "a sequence":  # batch_first=False
            return self.cell(rows[:, None])[0][:, 0]
        if self.kind == "places":
            return self.cell(rows) + 0.1 * torch.arange(len(rows))[:, None]
        return self.cell(rows).cumsum(0)


@pytest.mark.parametrize("kind", ["a sequence", "places", "sums"])
def test_a_batch_that_is_taken_for_a_sequence_is_seen(kind):
    """The first rows of a batch are the same in every batch that begins with them."""
    part = OverBatch(kind).eval()  # a decoder that is being trained may differ
    with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes .* order of the batch"):
        aggregated_posterior(lambda x: part(x).chunk(2, 1), X, spread="log_var")
    model = adapt(encode, lambda z: Normal(part(z), 1.0), modules=[part])
    with pytest.raises(ValueError, match=r"^decoder: expected the same from two passes .* order of the batch"):
        elbo(model, X)


@dataclass
class Energy:
    """A density up to a factor, and where its draws lie."""

    factor: float
    latent_dim: int = 2

    def log_prob(self, z):
        return math.log(self.factor) - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)

    def sample(self, shape, *, generator=None):
        return torch.randn(*shape, 2, generator=generator)


def test_a_prior_that_misses_a_rare_code_has_no_more_mass_than_one():
    """Where no draw comes from the code that it misses, log q/p is below 0 at every one, by the same, hence surely."""
    loc = torch.randn(1000, 1, generator=seed())
    codes, most = (DiagGaussianMixture(part, torch.ones_like(part)) for part in (torch.cat([loc, loc[:1] + 30]), loc))
    found = [decompose_kl(codes, most, num_samples=1000, generator=torch.Generator().manual_seed(s)) for s in range(9)]
    assert min(parts.marginal_kl.value for parts in found) == pytest.approx(math.log(1000 / 1001), abs=1e-9)


def test_a_prior_of_more_mass_than_one_is_told_of_where_a_divergence_is_negative():
    q = DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2))
    shifted = DiagGaussianMixture(torch.full((1, 2), 0.3), torch.ones(1, 2))
    for codes, factor, num in [(shifted, 1.5, 5_000), (CODES, 2 * math.pi, 100), (CODES, 2 * math.pi, 5_000)]:
        with pytest.warns(UserWarning, match=r"^prior: expected a normalised density, got a negative KL"):
            found = decompose_kl(codes, Energy(factor), num_samples=num, generator=seed())
        assert found.marginal_kl.value < 0
    with pytest.warns(UserWarning, match=r"^prior: expected a normalised density"):
        diagnose(CODES, prior=Energy(2 * math.pi), generator=seed())
    same = CODES[torch.randperm(80, generator=seed())]  # but for rounding no draw differs
    decompose_kl(CODES, same, num_samples=5_000, generator=seed())
    for codes, factor, num in [(q, 1.0, 5_000), (CODES, 1.0, 5_000), (shifted, 1.0, 100), (CODES, 0.5, 5_000)]:
        decompose_kl(codes, Energy(factor), num_samples=num, generator=seed())  # a warning would be an error here


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 2, np.float64(0.3), torch.tensor(0.1, dtype=torch.float64), torch.ones(4)])
def test_the_standard_deviation_of_pixels_may_be_a_number(scale, dtype):
    x, z = X[:5].to(dtype), X[:5, :2].to(dtype)
    model = adapt(encode, lambda z: (torch.cat([z, z], 1), scale), likelihood="gaussian", latent_shape=(2,))
    told, digits = torch.as_tensor(scale, dtype=dtype), 1e-14 if dtype == torch.float64 else 1e-6
    want = Normal(torch.cat([z, z], 1), told).log_prob(x).double().sum(1)
    torch.testing.assert_close(model.log_likelihood(z[None], x)[0], want, rtol=digits, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_probabilities_of_classes_that_do_not_sum_to_one_are_refused_and_rounded_ones_taken(dtype):
    """They would be normalised; so would those whose classes are not in the last dimension."""
    x, z = torch.arange(10).reshape(5, 2) % 3, X[:5, :2].to(dtype)
    weight = torch.randn(2, 6, generator=seed()).to(dtype)
    logits = lambda z: (z @ weight).unflatten(1, (2, 3))  # noqa: E731
    told = lambda f: adapt(encode, f, likelihood="categorical", latent_shape=(2,), modules=[Dtype(weight)])  # noqa: E731
    right = told(lambda z: logits(z).softmax(-1)).log_likelihood(z[None], x)[0]
    want = torch.distributions.Categorical(logits=logits(z).double()).log_prob(x).sum(1)
    torch.testing.assert_close(right, want, rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=4 * torch.finfo(dtype).eps)
    wrong = [lambda z: logits(z).sigmoid(), lambda z: 0.5 * logits(z).softmax(-1), lambda z: logits(z).softmax(1)]
    for probabilities in (*wrong, lambda z: logits(z).softmax(-1).mT):
        with pytest.raises(
            ValueError, match=r"^decoder's output: expected probabilities .* of sum 1, got \d\.\d+ off$"
        ):
            told(probabilities).log_likelihood(z[None], x)


class Dtype(nn.Module):
    """A module whose weights have a dtype."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)


@pytest.mark.parametrize("scale", [0.0, -1, math.nan, "wide", None, [0.1, 0.2], torch.ones(3), torch.ones(5, 4, 1)])
def test_what_is_no_standard_deviation_is_named(scale):
    model = adapt(encode, lambda z: (torch.cat([z, z], 1), scale), likelihood="gaussian", latent_shape=(2,))
    with pytest.raises(ValueError, match=r"^decoder's scale: expected "):
        model.log_likelihood(X[None, :5, :2], X[:5])


@pytest.mark.parametrize("bad", ["a text", StandardNormal(3), Half(), Independent(Normal(torch.zeros(3), 1.0), 1)])
@pytest.mark.parametrize("name", ["new", "prior", "a'b"])
def test_which_of_several_priors_is_wrong_is_told(name, bad):
    model = adapt(encode, decode)
    with pytest.raises((TypeError, ValueError)) as told:
        compare_priors(model, X[:3], {"own": None, name: bad}, 10, generator=seed())
    assert str(told.value).startswith(f"priors[{name!r}]: expected ")
    with pytest.raises((TypeError, ValueError), match=r"^prior: expected "):
        importance_log_prob(model, X[:3], 10, prior=bad, generator=seed())
