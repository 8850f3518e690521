"""Saving and loading models whose priors have parameters, and weights of half precision."""

from __future__ import annotations

import copy

import pytest
import safetensors
import safetensors.torch
import torch

from vaebook import checkpoint
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm
from vaebook.training import fit, load, save


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
    with torch.no_grad():
        assert torch.equal(a.prior.log_prob(z), b.prior.log_prob(z))
    assert torch.equal(a.prior.sample((7,), generator=generator()), b.prior.sample((7,), generator=generator()))


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
