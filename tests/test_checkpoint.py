"""Saving and loading models whose priors have parameters, and weights of half precision."""

from __future__ import annotations

import copy
import json
import math

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaebook import checkpoint, storage
from vaebook.aggregate import aggregated_posterior
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm
from vaebook.training import fit, load, load_density, save, save_density


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(num=30, dim=6):
    return torch.rand(num, dim, generator=generator(9)).round()


def mixture(num=3, dim=2, dtype=torch.float32):
    q = DiagGaussianMixture(3 * torch.randn(num, dim, generator=generator(num)), torch.ones(num, dim))
    return fit_gmm(q, num, num_samples=500).to(dtype)


def vae(prior="vamp", *, num=4, dim=2, seed=0, data_dim=6):
    encoder = GaussianEncoder(data_dim, dim, (5,), generator=generator(seed))
    priors = {
        "normal": lambda: StandardNormal(dim),
        "vamp": lambda: VampPrior(encoder, torch.rand(num, data_dim, generator=generator(seed + 1))),
        "exemplar": lambda: ExemplarPrior(encoder, data(num, data_dim), scale=0.5 + seed),
        "gmm": lambda: mixture(num, dim),
        "gmm, float64": lambda: mixture(num, dim, torch.float64),
    }
    return VAE(encoder, BernoulliDecoder(dim, data_dim, (5,), generator=generator(seed)), priors[prior]())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def agree(a, b):
    """Same weights, and the same prior density and samples."""
    assert same(state(a), state(b))
    z = torch.randn(7, a.encoder.latent_dim, generator=generator(5)).to(a.encoder.loc.weight.dtype)
    with torch.no_grad():  # the same numbers at other addresses: sums may round otherwise
        torch.testing.assert_close(a.prior.log_prob(z), b.prior.log_prob(z))
    first, again = (model.prior.sample((7,), generator=generator()) for model in (a, b))
    torch.testing.assert_close(first, again)


REBUILT = ["vamp", "gmm", "gmm, float64"]
PRIORS = [*REBUILT, "exemplar"]


@pytest.mark.parametrize("prior", REBUILT)
def test_a_prior_with_parameters_is_rebuilt(prior, tmp_path):
    model, rng = vae(prior), torch.get_rng_state()
    save(tmp_path / "vae", model)
    again = load(tmp_path / "vae")
    assert type(again.prior) is type(model.prior)
    agree(model, again)
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("prior", ["vamp", "gmm", "normal"])
def test_all_parts_come_back_in_their_dtype(prior, tmp_path):
    model = vae(prior).double()
    save(tmp_path / "vae", model)
    agree(model, load(tmp_path / "vae"))
    assert load(tmp_path / "vae").prior.sample((2,)).dtype == torch.float64


@pytest.mark.parametrize("prior", PRIORS)
def test_weights_are_loaded_into_a_given_model(prior, tmp_path):
    model, into = vae(prior), vae(prior, seed=1)
    save(tmp_path / "vae", model)
    assert load(tmp_path / "vae", into) is into
    agree(model, into)


def test_a_rebuilt_vampprior_uses_and_trains_the_rebuilt_encoder(tmp_path):
    model = vae("vamp")
    save(tmp_path / "vae", model)
    again = load(tmp_path / "vae")
    assert again.prior.encoder is again.encoder is not model.encoder
    z = torch.zeros(1, 2)
    again.prior.log_prob(z).sum().backward()
    assert again.encoder.loc.weight.grad.any() and again.prior.pseudo_inputs.grad.any()
    before = model.prior.log_prob(z)
    settings = {"num_epochs": 2, "batch_size": 8, "progress": False}
    histories = [fit(m, data(), generator=generator(), **settings) for m in (again, model)]
    assert histories[0] == histories[1] and not torch.equal(before, model.prior.log_prob(z))
    agree(model, again)


def test_exemplars_are_not_in_the_file_and_have_to_be_given(tmp_path):
    path, model = tmp_path / "vae", vae("exemplar", num=20)
    save(path, model)
    assert "prior.exemplars" not in safetensors.torch.load_file(path)
    with pytest.raises(ValueError) as error:
        load(path)
    message = "; its exemplars are not in the file, build the model yourself and pass it as `vae`"
    assert str(error.value).startswith(f"{path}: prior: expected one of ") and "\n" not in str(error.value)
    assert "got ExemplarPrior(num_exemplars=20, sha256=" in str(error.value)
    assert str(error.value).endswith(message)


def test_other_exemplars_are_refused(tmp_path):
    path, other = tmp_path / "vae", vae("exemplar", seed=1)
    save(path, vae("exemplar"))
    other.prior.exemplars[-1, -1] = 1 - other.prior.exemplars[-1, -1]
    before = state(other)
    with pytest.raises(
        ValueError, match=r"prior: expected ExemplarPrior\(num_exemplars=4, sha256=\w{16}\), got Exempl"
    ):
        load(path, other)
    assert same(state(other), before)


OTHERS = {
    "another K": (vae("vamp"), vae("vamp", num=5), "prior: expected VampPrior(num_pseudo_inputs=5), got VampPrior("),
    "another D": (vae("vamp"), vae("vamp", dim=3), "encoder: expected GaussianEncoder(data_dim=6, latent_dim=3,"),
    "another P": (vae("vamp"), vae("vamp", data_dim=7), "encoder: expected GaussianEncoder(data_dim=7,"),
    "another prior": (
        vae("vamp"),
        vae("normal"),
        "prior: expected StandardNormal(latent_dim=2), got VampPrior(num_pseudo_inputs=4)",
    ),
    "another K of a mixture": (
        vae("gmm"),
        vae("gmm", num=2),
        "prior: expected GaussianMixture(num_components=2, latent_dim=2), got GaussianMixture(num_components=4,",
    ),
    "another dtype of a mixture": (vae("gmm"), vae("gmm, float64"), "prior.loc: expected float64 (4, 2), got float32"),
    "another number of exemplars": (
        vae("exemplar"),
        vae("exemplar", num=5),
        "prior: expected ExemplarPrior(num_exemplars=5, sha256=",
    ),
}


@pytest.mark.parametrize(("saved", "other", "message"), OTHERS.values(), ids=OTHERS)
def test_another_shape_is_named_and_left_alone(saved, other, message, tmp_path):
    save(tmp_path / "vae", saved)
    before = state(other)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "vae", other)
    assert str(error.value).startswith(f"{tmp_path / 'vae'}: {message}") and "\n" not in str(error.value)
    assert same(state(other), before)


def test_a_prior_that_uses_another_encoder_is_not_rebuilt(tmp_path):
    """The file holds one encoder: rebuilding would give the prior the wrong one."""
    foreign = GaussianEncoder(6, 2, (5,), generator=generator(7))
    model = vae("vamp")
    model.prior = VampPrior(foreign, torch.zeros(4, 6))
    save(tmp_path / "vae", model)
    with pytest.raises(ValueError, match=r"prior: expected one of .*, got VampPrior\(…\); build the model yourself"):
        load(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"prior: expected VampPrior\(num_pseudo_inputs=4\), got VampPrior\(…\)$"):
        load(tmp_path / "vae", vae("vamp"))


@pytest.mark.parametrize("cls", [VampPrior, GaussianMixture, ExemplarPrior])
def test_a_class_of_the_same_name_is_not_taken_for_ours(cls, tmp_path):
    model = vae({VampPrior: "vamp", GaussianMixture: "gmm", ExemplarPrior: "exemplar"}[cls])
    model.prior.__class__ = type(cls.__name__, (cls,), {})
    save(tmp_path / "vae", model)
    with pytest.raises(ValueError, match=rf"prior: expected one of .*, got {cls.__name__}\(…\); .*build the model"):
        load(tmp_path / "vae")


@pytest.mark.parametrize("prior", PRIORS)
def test_truncated_files_are_one_clear_error_and_touch_nothing(prior, tmp_path):
    path, into = tmp_path / "vae", vae(prior, seed=1)
    save(path, vae(prior))
    content, before = path.read_bytes(), state(into)
    for length in range(0, len(content), 199):
        path.write_bytes(content[:length])
        for arguments in ((path,), (path, into)):
            with pytest.raises(ValueError, match="expected a complete safetensors file written by vaebook") as error:
                load(*arguments)
            assert "\n" not in str(error.value)
    assert same(state(into), before)


@pytest.mark.parametrize("prior", PRIORS)
def test_flipped_bytes_are_noticed(prior, tmp_path):
    path, into = tmp_path / "vae", vae(prior, seed=1)
    save(path, vae(prior))
    content, before = path.read_bytes(), state(into)
    for i in [*range(0, len(content), 41), len(content) - 1]:
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(ValueError, match=r"^/"):
            load(path, into)
            pytest.fail(f"byte {i} of {len(content)}")
    assert same(state(into), before)


@pytest.mark.parametrize("change", [lambda t: t.pop("prior.pseudo_inputs"), lambda t: t.update({"prior.more": t["a"]})])
def test_tensors_that_do_not_fit_the_description(change, tmp_path, monkeypatch):
    """As a faulty program would write them: the checksum is right, the content is not."""
    path, model = tmp_path / "vae", vae("vamp")
    tensors = state(model) | {"a": torch.zeros(1)}
    change(tensors)
    tensors.pop("a")
    monkeypatch.setattr(model, "state_dict", lambda: tensors)
    save(path, model)
    with pytest.raises(ValueError, match=r"prior\.(pseudo_inputs|more)") as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("prior", ["normal", *PRIORS])
def test_half_precision_round_trips(prior, tmp_path):
    model = vae(prior)
    half = copy.deepcopy(model).half()
    save(tmp_path / "half", half)
    save(tmp_path / "single", model)
    into = vae("exemplar", seed=1).half() if prior == "exemplar" else None
    again = load(tmp_path / "half", into)
    assert same(state(half), state(again)) and again.encoder.loc.weight.dtype == torch.float16
    agree(half.float(), again.float())
    sizes = [sum(t.nbytes for t in safetensors.torch.load_file(tmp_path / n).values()) for n in ("half", "single")]
    assert sizes[0] == sizes[1] / 2 or prior == "gmm, float64"
    assert model.encoder.loc.weight.dtype == torch.float32
    x = data()
    with torch.no_grad():
        assert torch.allclose(model.encoder(x).mean, again.encoder(x).mean, atol=2e-3)


def test_files_of_models_without_such_a_prior_are_what_they_were(tmp_path):
    """The header's model part, spelled out: files of earlier versions and of this one are the same."""
    model = checkpoint._describe(vae("normal"))
    assert model == {
        "encoder": {"class": "GaussianEncoder", "arguments": {"data_dim": 6, "latent_dim": 2, "hidden": [5]}},
        "decoder": {"class": "BernoulliDecoder", "arguments": {"latent_dim": 2, "data_dim": 6, "hidden": [5]}},
        "prior": {"class": "StandardNormal", "arguments": {"latent_dim": 2}},
    }


# A prior that a file of the model would lose


class Plain:
    """A prior that is no module."""

    latent_dim = 2

    def log_prob(self, z):
        return StandardNormal(2).log_prob(z)

    def sample(self, sample_shape=(), *, generator=None):
        return StandardNormal(2).sample(sample_shape, generator=generator)


class Holds(nn.Module):
    """A module with a mixture beside its weights."""

    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.q = DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))
        self.log_prob, self.sample = self.q.log_prob, self.q.sample


class Keeps(Plain, nn.Module):
    """A module with a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.width = torch.ones(2)


LOST = {
    "Keeps": Keeps,
    "DiagGaussianMixture": lambda: DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2)),
    "Independent": lambda: Independent(Normal(torch.zeros(2), torch.ones(2)), 1),
    "Plain": Plain,
    "Holds": Holds,
}


@pytest.mark.parametrize("name", LOST)
def test_a_prior_that_would_be_lost_is_refused_with_a_remedy(name, tmp_path):
    model = vae("normal")
    model = VAE(model.encoder, model.decoder, LOST[name]())
    with pytest.raises(ValueError, match=rf"^vae: expected a prior .* got {name}, which would be lost; save_density\("):
        save(tmp_path / "vae", model)
    assert not list(tmp_path.iterdir())


# Densities


def full_mixture(dtype=torch.float64):
    tril = torch.randn(3, 2, 2, generator=generator(1), dtype=dtype).tril(-1) + 0.7 * torch.eye(2, dtype=dtype)
    weight = torch.rand(3, generator=generator(2), dtype=dtype)
    return GaussianMixture(weight / weight.sum(), torch.randn(3, 2, generator=generator(3), dtype=dtype), tril)


def diag_mixture(dtype=torch.float64, num=50, *, weighted=True):
    loc, scale = (torch.randn(num, 2, generator=generator(s), dtype=torch.float64).to(dtype) for s in (1, 2))
    log_weight = (3 * torch.randn(num, generator=generator(4), dtype=torch.float64)).log_softmax(0)
    log_weight[0] = -math.inf
    log_weight = log_weight.log_softmax(0) if weighted else None
    return DiagGaussianMixture(loc, scale.exp(), log_weight)


EXACT = {
    "standard normal": lambda: StandardNormal(3),
    "standard normal, float64": lambda: StandardNormal(3).double(),
    "q_agg": lambda: aggregated_posterior(vae().encoder, data(37)),
    "diagonal": diag_mixture,
    "diagonal, float32": lambda: diag_mixture(torch.float32),
    "one heavy component": lambda: DiagGaussianMixture(
        torch.eye(2), torch.ones(2, 2), torch.tensor([1 - 1e-9, 1e-9]).double().log()
    ),
    "equal weights": lambda: diag_mixture(num=49, weighted=False),
    "full": full_mixture,
    "full, float32": lambda: full_mixture(torch.float32),
    "full, fitted": lambda: mixture(dtype=torch.float64),
    "diagonal, fitted": lambda: fit_gmm(diag_mixture(), 3, covariance="diag", num_samples=500),
}


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
def test_a_density_comes_back_to_the_last_bit(make, tmp_path):
    density, rng = make(), torch.get_rng_state()
    save_density(tmp_path / "density", density)
    again = load_density(str(tmp_path / "density"))
    assert type(again) is type(density)
    for dtype in (torch.float32, torch.float64):
        z = torch.randn(20, density.latent_dim, generator=generator(8), dtype=torch.float64).to(dtype)
        assert torch.equal(again.log_prob(z), density.log_prob(z))
    one, other = (d.sample((9,), generator=generator()) for d in (density, again))
    assert one.dtype == other.dtype and torch.equal(one, other)
    save_density(tmp_path / "again", again)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "density").read_bytes()
    assert torch.equal(rng, torch.get_rng_state())


MIXTURES = {
    "vamp": lambda: vae("vamp").prior,
    "exemplar": lambda: vae("exemplar").prior,
    "normal": lambda: Independent(Normal(torch.ones(2), 2 * torch.ones(2)), 1),
    "multivariate": lambda: MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "mixture": lambda: MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])), Independent(Normal(torch.eye(2), torch.ones(2, 2)), 1)
    ),
    "mixture, full": lambda: MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])), MultivariateNormal(torch.eye(2), scale_tril=torch.eye(2).expand(2, 2, 2))
    ),
}


@pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)
def test_what_is_a_mixture_is_saved_as_one(make, tmp_path):
    density, z = make(), torch.randn(20, 2, generator=generator(8))
    save_density(tmp_path / "density", density)
    again = load_density(tmp_path / "density")
    assert isinstance(again, DiagGaussianMixture | GaussianMixture)
    with torch.no_grad():
        torch.testing.assert_close(again.log_prob(z), density.log_prob(z), rtol=1e-6, atol=1e-6)
    save_density(tmp_path / "again", again)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "density").read_bytes()


class NoMixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self):
        return Independent(torch.distributions.Laplace(torch.zeros(2), self.log_scale.exp()), 1)


@pytest.mark.parametrize(
    ("density", "error", "message"),
    [
        (
            NoMixture(),
            TypeError,
            "got NoMixture, which tells none; keep its state_dict, or save what vaebook.priors.fit_",
        ),
        (
            Plain(),
            TypeError,
            "^density: expected a mixture of Gaussians with components.., got Plain, which tells none",
        ),
        (torch.zeros(2), TypeError, "^density: expected a torch distribution over vectors, .* got Tensor"),
        (Normal(0.0, 1.0), ValueError, r"^density's draws: expected shape \(1, D\), got \(1,\)"),
        (
            DiagGaussianMixture(torch.full((1, 2), math.nan), torch.ones(1, 2), validate_args=False),
            ValueError,
            "^loc: expected finite values, got nan",
        ),
    ],
)
def test_what_cannot_be_loaded_is_not_saved(density, error, message, tmp_path):
    with pytest.raises(error, match=message):
        save_density(tmp_path / "density", density)
    assert not list(tmp_path.iterdir())


def test_models_and_densities_are_not_taken_for_one_another(tmp_path):
    save(tmp_path / "model", vae())
    save_density(tmp_path / "density", full_mixture())
    with pytest.raises(ValueError, match=r"written by vaebook.training.save, got one that holds density and no model$"):
        load(tmp_path / "density")
    with pytest.raises(
        ValueError,
        match=r"written by vaebook.training.save_density, got one that holds config, model and no density$",
    ):
        load_density(tmp_path / "model")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"^path: expected a complete safetensors file.*, which is no file$"
        ):
            load_density(path)
    for call in (lambda: save_density(3, full_mixture()), lambda: load_density(None)):
        with pytest.raises(TypeError, match=r"^path: expected a str or a PathLike, got"):
            call()
    with pytest.raises(ValueError, match=r"^path: expected a file in a folder that exists"):
        save_density(tmp_path / "nowhere" / "density", full_mixture())
    with pytest.raises(ValueError, match=r"^path: expected a file in a folder that exists"):
        save_density(tmp_path / "density" / "density", full_mixture())  # below a file


def test_a_density_of_which_a_byte_was_changed_or_lost_is_refused(tmp_path):
    path = tmp_path / "density"
    save_density(path, full_mixture())
    content = path.read_bytes()
    for i in range(0, len(content), 7):
        for bad in (content[:i], content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=rf"^{path}: "):
                load_density(path)


# What somebody with bad intent could write: the checksum is right, the content is not


def forge(path, content, tensors):
    storage.write(path, content, tensors)


BIG = 10**9
HUGE = {"data_dim": BIG, "latent_dim": BIG, "hidden": [BIG, BIG]}


def forged(change):
    """The description of a model, changed."""
    model = checkpoint._describe(vae("gmm"))
    changed = change(model)
    return model if changed is None else changed


FORGED = {
    "a number": lambda m: 3,
    "a list": lambda m: [],
    "no decoder": lambda m: m.pop("decoder") and None,
    "a part that is a list": lambda m: m.update(encoder=[1]),
    "a class that is a list": lambda m: m["encoder"].update({"class": ["GaussianEncoder"]}),
    "arguments that are a list": lambda m: m["encoder"].update(arguments=[6, 2]),
    "arguments that are a number": lambda m: m["prior"].update(arguments=7),
    "a size that is a word": lambda m: m["encoder"]["arguments"].update(data_dim="6"),
    "a size that is true": lambda m: m["encoder"]["arguments"].update(latent_dim=True),
    "a size of 0": lambda m: m["encoder"]["arguments"].update(hidden=[0]),
    "a size of 400 digits": lambda m: m["encoder"]["arguments"].update(data_dim=10**400),
    "a hidden width that is a list": lambda m: m["decoder"]["arguments"].update(hidden=[[5]]),
    "a number of hidden layers": lambda m: m["decoder"]["arguments"].update(hidden=5),
    "a hundred thousand hidden layers": lambda m: m["decoder"]["arguments"].update(hidden=[1] * 10**5),
    "a billion everywhere": lambda m: m["encoder"].update(arguments=HUGE),
    "a billion components": lambda m: m["prior"]["arguments"].update(num_components=BIG),
    "a billion dimensions": lambda m: m["prior"]["arguments"].update(latent_dim=BIG),
    "a standard normal of a billion": lambda m: m.update(
        prior={"class": "StandardNormal", "arguments": {"latent_dim": BIG}}
    ),
    "an argument of another name": lambda m: m["prior"]["arguments"].update(nothing=1),
    "another decoder": lambda m: m["decoder"].update({"class": "GaussianDecoder"}),
    "a scale that is negative": lambda m: m.update(
        decoder={"class": "GaussianDecoder", "arguments": {"latent_dim": 2, "data_dim": 6, "hidden": [5], "scale": -1}}
    ),
    "a generator": lambda m: m["encoder"]["arguments"].update(generator="x"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a_forged_model_is_one_error_before_memory_is_taken(change, tmp_path):
    path, into = tmp_path / "vae", vae("gmm", seed=1)
    forge(path, {"model": forged(change), "config": {}}, vae("gmm").state_dict())
    before = state(into)
    for arguments in ((path,), (path, into)):
        with pytest.raises(ValueError, match=rf"^{path}: ") as error:
            load(*arguments)
        assert "\n" not in str(error.value)
    assert same(state(into), before)


def test_wide_tensors_do_not_pay_for_a_wide_network(tmp_path):
    """Vectors of a million make the sizes plausible one by one; the matrix between them would take four terabytes."""
    model = checkpoint._describe(vae("normal"))
    model["encoder"]["arguments"]["hidden"] = [10**6, 10**6]
    tensors = vae("normal").state_dict() | {f"encoder.body.{i}.bias": torch.zeros(10**6) for i in (0, 2)}
    forge(tmp_path / "vae", {"model": model, "config": {}}, tensors)
    with pytest.raises(ValueError, match=r"encoder\..*: expected float32 \(1000000, "):
        load(tmp_path / "vae")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("prior", ["normal", "vamp", "gmm"])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(prior, value, tmp_path):
    path, model, into = tmp_path / "vae", vae(prior), vae(prior, seed=1)
    content = {"model": checkpoint._describe(model), "config": {}}
    name = list(model.state_dict())[-1]
    entry = model.state_dict()[name]
    entry[(0,) * entry.ndim] = value
    with pytest.raises(ValueError, match=rf"^vae's {name}: expected finite values, got {value}"):
        save(path, model)
    assert not list(tmp_path.iterdir())
    forge(path, content, model.state_dict())
    before = state(into)
    for arguments in ((path,), (path, into)):
        with pytest.raises(ValueError, match=rf"^{path}: {name}: expected finite values, got {value}"):
            load(*arguments)
    assert same(state(into), before)


DENSITIES = {
    "another kind": ("Laplace", lambda t: t),
    "a kind that is a list": (["GaussianMixture"], lambda t: t),
    "no kind": (None, lambda t: t),
    "a model": ("VAE", lambda t: t),
    "no tensors": ("GaussianMixture", lambda t: {}),
    "tensors of another kind": ("DiagGaussianMixture", lambda t: t),
    "one tensor more": ("GaussianMixture", lambda t: t | {"more": torch.zeros(1)}),
    "fewer weights": ("GaussianMixture", lambda t: t | {"weight": t["weight"][:1]}),
    "weights that sum to 2": ("GaussianMixture", lambda t: t | {"weight": 2 * t["weight"]}),
    "integers": ("GaussianMixture", lambda t: {name: value.long() for name, value in t.items()}),
    "nan": ("GaussianMixture", lambda t: t | {"loc": t["loc"] * math.nan}),
    "upper triangles": ("GaussianMixture", lambda t: t | {"scale_tril": t["scale_tril"].mT + 1}),
    "numbers": ("GaussianMixture", lambda t: {name: value.sum() for name, value in t.items()}),
    "a normal elsewhere": (
        "StandardNormal",
        lambda t: tensors_of(DiagGaussianMixture(torch.ones(1, 2), torch.ones(1, 2))),
    ),
    "a normal of no dimension": ("StandardNormal", lambda t: {"loc": torch.zeros(1, 0)}),
    "a normal of integers": ("StandardNormal", lambda t: {"loc": torch.zeros(1, 2).long()}),
    "rough weights": (
        "DiagGaussianMixture",
        lambda t: tensors_of(diag_mixture()) | {"log_weight": torch.full((50,), -3.91202)},
    ),
    "scales of 0": ("DiagGaussianMixture", lambda t: {k: 0 * v for k, v in tensors_of(diag_mixture()).items()}),
}


def tensors_of(density):
    return dict(zip(("log_weight", "loc", "scale"), density.components(), strict=True))


@pytest.mark.parametrize(("kind", "change"), DENSITIES.values(), ids=DENSITIES)
def test_a_forged_density_is_one_error(kind, change, tmp_path):
    path = tmp_path / "density"
    forge(path, {"density": kind}, change(full_mixture().state_dict()))
    with pytest.raises(ValueError, match=rf"^{path}: ") as error:
        load_density(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header", ["", "3", "[]", "null", "[1]", '"text"', "[" * 10**5, "{", '{"a": ' * 10**5, "9" * 9999]
)
def test_a_header_that_is_no_description_is_one_error(header, tmp_path):
    path = tmp_path / "vae"
    path.write_bytes(safetensors.torch.save(vae().state_dict(), {"vaebook": header}))
    for read in (load, load_density):
        with pytest.raises(
            ValueError, match=rf"^{path}: expected a complete safetensors file written by vaebook"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_density_is_stored_in_plain_safetensors_and_json(tmp_path):
    density = full_mixture()
    save_density(tmp_path / "density", density)
    assert same(safetensors.torch.load_file(tmp_path / "density"), density.state_dict())
    with safetensors.safe_open(tmp_path / "density", "pt") as file:
        content = json.loads(file.metadata()["vaebook"])
    assert content.pop("sha256") and content == {"format": 1, "density": "GaussianMixture"}


def test_a_mixture_of_a_class_of_its_own_is_saved_as_the_mixture_that_it_is(tmp_path):
    class Mine(DiagGaussianMixture):
        pass

    q, z = Mine(torch.eye(2), torch.ones(2, 2)), torch.zeros(1, 2)
    save_density(tmp_path / "density", q)
    found = load_density(tmp_path / "density")
    assert type(found) is DiagGaussianMixture and torch.equal(found.log_prob(z), q.log_prob(z))


def test_a_hundred_layers_are_saved_and_loaded(tmp_path):
    encoder = GaussianEncoder(3, 1, (1,) * 100)
    save(tmp_path / "vae", VAE(encoder, BernoulliDecoder(1, 3, ()), StandardNormal(1)))
    assert len(load(tmp_path / "vae").encoder.hidden) == 100


@pytest.mark.parametrize("make", [full_mixture, diag_mixture, lambda: StandardNormal(2)])
def test_a_density_with_a_tensor_too_many_is_refused(tmp_path, make):
    density = make()
    tensors = checkpoint._tensors(density)
    storage.write(tmp_path / "density", {"density": type(density).__name__}, tensors | {"more": torch.zeros(1)})
    with pytest.raises(ValueError, match="more"):
        load_density(tmp_path / "density")


@pytest.mark.parametrize("call", [lambda path, other: save(path, other), lambda path, other: load(path, other)])
@pytest.mark.parametrize("other", [nn.Linear(1, 1), StandardNormal(1)])
def test_what_is_no_model_of_this_package_is_told_how_to_be_kept(tmp_path, call, other):
    remedy = r"of what is no vaebook\.models\.VAE, keep the state_dict, and the prior by save_density"
    with pytest.raises(TypeError, match=rf"^vae: expected a VAE, got {type(other).__name__}; {remedy}$"):
        call(tmp_path / "vae", other)


@pytest.mark.parametrize("name", ["encoder.loc.weight", "decoder.logits.bias"])
def test_weights_that_are_whole_numbers_are_named(tmp_path, name):
    path = tmp_path / "vae"
    save(path, vae("normal"))
    content, tensors = storage.read(path, "model")
    assert name in tensors
    storage.write(path, content, tensors | {name: tensors[name].long()})
    with pytest.raises(ValueError, match=rf"^{path}: {name}: expected a floating-point tensor, got dtype torch.int64$"):
        load(path)


@pytest.mark.parametrize("config", [[], "", 0, False, ()])
def test_an_empty_thing_that_is_no_dict_is_no_config(tmp_path, config):
    with pytest.raises(TypeError, match=rf"^config: expected a dict, got {type(config).__name__}"):
        save(tmp_path / "vae", vae("normal"), config)


@pytest.mark.parametrize("config", [{1: 0, "a": (1, 2)}, {None: [], True: {}, "b": {"c": None, 2: 1}}])
def test_a_config_with_keys_of_several_kinds_is_kept_as_json_has_it(tmp_path, config):
    save(tmp_path / "vae", vae("normal"), config)
    assert storage.read(tmp_path / "vae", "model")[0]["config"] == json.loads(json.dumps(config))


@pytest.mark.parametrize(("shape", "got"), [((2, 2), "(2, 2)"), ((2,), "(2,)"), ((), "()"), ((0, 99), "(0, 99)")])
def test_a_standard_normal_has_one_row(tmp_path, shape, got):
    storage.write(tmp_path / "normal", {"density": "StandardNormal"}, {"loc": torch.zeros(shape)})
    with pytest.raises(ValueError) as error:
        load_density(tmp_path / "normal")
    assert str(error.value) == f"{tmp_path / 'normal'}: loc: expected shape (1, D), got {got}"


@pytest.mark.parametrize("off", [1e-6, -1e-6, 1e-10])
def test_a_mixture_whose_weights_are_normalised_again_is_not_the_one_in_the_file(tmp_path, off):
    q, told = diag_mixture(), "tensors: expected those of a normalised density, got others"
    storage.write(
        tmp_path / "density", {"density": "DiagGaussianMixture"}, tensors_of(q) | {"log_weight": q.log_weight + off}
    )
    with pytest.raises(ValueError, match=rf"density: {told}$"):
        load_density(tmp_path / "density")


@pytest.mark.parametrize("held", [torch.zeros(2), Normal(0.0, 1.0)])
@pytest.mark.parametrize("deep", [0, 1, 2])
def test_a_prior_is_lost_with_what_a_module_in_it_has_beside_its_weights(tmp_path, held, deep):
    model, inner = vae("gmm"), nn.Linear(1, 1)
    inner.held = held
    for _ in range(deep):
        inner = nn.Sequential(inner)
    model.prior.part = inner
    with pytest.raises(ValueError, match="which would be lost"):
        save(tmp_path / "vae", model)
    assert not list(tmp_path.iterdir())


def test_exemplars_are_told_by_their_values_however_they_lie_in_memory(tmp_path):
    encoder, rows = GaussianEncoder(6, 2, (5,), generator=generator()), data(6, 6)
    models = [
        VAE(encoder, BernoulliDecoder(2, 6, (5,), generator=generator()), ExemplarPrior(encoder, x))
        for x in (rows.mT, rows.mT.contiguous(), rows)
    ]
    save(tmp_path / "vae", models[0])
    assert load(tmp_path / "vae", models[1]) is models[1] and load(tmp_path / "vae", models[0]) is models[0]
    with pytest.raises(ValueError, match=r"prior: expected ExemplarPrior\(.*sha256="):
        load(tmp_path / "vae", models[2])


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("encoder", "GaussianEncoder, BernoulliDecoder, GaussianDecoder"),
        ("decoder", "GaussianEncoder, BernoulliDecoder, GaussianDecoder"),
        ("prior", "StandardNormal, VampPrior, GaussianMixture"),
    ],
)
def test_of_a_part_that_cannot_be_built_the_ones_that_can_are_told(tmp_path, part, allowed):
    content = checkpoint._describe(vae("gmm"))
    content[part]["class"] = "ExemplarPrior"
    forge(tmp_path / "vae", {"model": content, "config": {}}, vae("gmm").state_dict())
    with pytest.raises(ValueError, match=rf"vae: {part}: expected one of {allowed}, got ExemplarPrior\("):
        load(tmp_path / "vae")


@pytest.mark.parametrize("name", ["encoders.bias", "encoder_", "decoderx"])
def test_a_tensor_whose_name_only_begins_like_a_part_is_none_of_its_own(tmp_path, name):
    kept = vae("gmm")
    tensors = kept.state_dict() | {name: torch.zeros(1)}
    assert name not in checkpoint._of("encoder", tensors) | checkpoint._of("decoder", tensors)
    forge(tmp_path / "vae", {"model": checkpoint._describe(kept), "config": {}}, tensors)
    with pytest.raises(ValueError, match=rf"{name}"):
        load(tmp_path / "vae")


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_without_tensors_is_told_which_it_lacks(tmp_path, part):
    kept = vae("normal")
    tensors = {name: tensor for name, tensor in kept.state_dict().items() if not name.startswith(part)}
    forge(tmp_path / "vae", {"model": checkpoint._describe(kept), "config": {}}, tensors)
    with pytest.raises(ValueError, match=rf"vae: .*{part}\.\w+\.") as error:
        load(tmp_path / "vae")
    assert "StopIteration" not in str(error.value)
