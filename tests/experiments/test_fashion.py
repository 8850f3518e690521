"""Fashion-MNIST: the stored numbers come out again from the stored weights and images."""

from __future__ import annotations

import copy
import importlib
import json
import math
import statistics
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vaebook import data, training
from vaebook.models import VAE
from vaebook.priors import ExemplarPrior

BOOK = Path(__file__).resolve().parents[2] / "book"
RESULT = json.loads((BOOK / "results" / "fashion.json").read_text(encoding="utf-8"))
PUBLISHED = {"normal": 228.70, "vamp": 227.35, "exemplar": 226.75}
"""Of Norouzi, Fleet & Norouzi (2020)."""
TOLERANCE = 0.02
"""Nats an image: the decoder runs in float32, whose sums differ between machines."""


@pytest.fixture(scope="module")
def fashion():
    folder = str(BOOK / "experiments")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("fashion")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def batched(fashion):
    return importlib.import_module("_batched")


def images():
    return safetensors.torch.load_file(BOOK / "results" / "fashion-images.safetensors")["images"].float()


def slice_of(prior, key="log_prob"):
    return next(entry[key] for entry in RESULT["slice"] if entry["prior"] == prior)


def agrees(got, stored):
    return max(abs(a - b) for a, b in zip(got, stored, strict=True)) < TOLERANCE


def installed():
    return next((f for f in (data.FASHION_SYSTEM_FOLDER,) if f.is_dir()), None)


def test_the_script_is_the_one_that_made_the_results(fashion):
    assert RESULT["config"] == json.loads(json.dumps(fashion.CONFIG))


@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_slice_comes_out_of_the_stored_weights(fashion, prior, monkeypatch):
    monkeypatch.setattr(fashion, "BATCH", 50)  # the slice was scored on a CPU
    monkeypatch.setattr(fashion, "CHUNK", None)
    vae = training.load(BOOK / "results" / f"fashion-{prior}.safetensors").float()
    got = fashion.score(fashion.frozen(vae), images(), RESULT["config"]["num_samples"])["log_prob"]
    assert agrees(got, slice_of(prior))
    tampered = copy.copy(slice_of(prior))
    tampered[7] += 0.05
    assert not agrees(got, tampered)


@pytest.mark.slow
def test_slice_of_the_exemplar_prior_comes_out_of_weights_and_training_images(fashion, monkeypatch):
    if installed() is None:
        pytest.skip(f"needs the training images in {data.FASHION_SYSTEM_FOLDER} (package dataset-fashion-mnist)")
    monkeypatch.setattr(fashion, "BATCH", 50)
    monkeypatch.setattr(fashion, "CHUNK", None)
    x = data.fashion_mnist(installed()).train
    vae = fashion.build("exemplar", x).half()
    training.load(BOOK / "results" / "fashion-exemplar.safetensors", vae)
    vae = vae.float()
    vae = VAE(vae.encoder, vae.decoder, _with(vae.prior, x))
    got = fashion.score(fashion.frozen(vae), images(), RESULT["config"]["num_samples"])["log_prob"]
    assert agrees(got, slice_of("exemplar"))


def _with(prior, x):
    prior.exemplars = x  # those of the half-precision model are rounded
    return prior


def test_scores_of_the_device_are_those_of_the_package_on_a_cpu():
    """Other noise, another processor, and for exemplars float32: the means differ by less than the noise of both."""
    for prior in RESULT["config"]["priors"]:
        gaps = [a - b for a, b in zip(slice_of(prior), slice_of(prior, "log_prob_on_device"), strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        assert error < 0.1
        assert abs(statistics.mean(gaps)) < 4 * error


def test_exemplar_prior_in_single_precision_is_the_package_s(fashion):
    torch.manual_seed(0)
    encoder = fashion.build("normal", torch.zeros(1, 784)).encoder
    prior = ExemplarPrior(encoder, torch.rand(300, 784), scale=0.3)
    z = torch.randn(7, 3, 40)
    got = fashion.InSingle(prior.mixture()).log_prob(z)
    torch.testing.assert_close(got, prior.log_prob(z), atol=2e-3, rtol=0)
    assert not torch.allclose(got, ExemplarPrior(encoder, prior.exemplars, scale=0.31).log_prob(z), atol=2e-3)


def test_stored_images_are_the_first_test_images(fashion):
    if installed() is None:
        pytest.skip(f"needs the images in {data.FASHION_SYSTEM_FOLDER} (package dataset-fashion-mnist)")
    assert torch.equal(images(), fashion.test_images(data.fashion_mnist(installed()))[: len(images())])


# The numbers among themselves


def test_rows_agree_with_the_slice_and_with_each_other():
    config = RESULT["config"]
    for row in RESULT["rows"]:
        assert row["images"] == config["num_test"]
        assert row["negative_elbo"] > row["nll"]
        assert row["best_epoch"] <= row["epochs"] <= config["max_epochs"]
        assert row["patience_ended"] == (row["epochs"] - row["best_epoch"] == config["patience"] + 1)
    for entry in RESULT["slice"]:
        mean = -statistics.mean(entry["log_prob"])
        row = next(row for row in RESULT["rows"] if row["prior"] == entry["prior"])
        # The slice is a sample of the images: its mean lies near that of all.
        spread = row["stderr"] * math.sqrt(row["images"] / config["slice_images"])
        assert abs(mean - row["nll"]) < 5 * spread


def test_means_and_errors_over_seeds_follow_from_the_rows():
    nll = {p: [row["nll"] for row in RESULT["rows"] if row["prior"] == p] for p in RESULT["config"]["priors"]}
    for entry in RESULT["summary"]:
        values = nll[entry["prior"]]
        assert entry["seeds"] == len(values) == len(RESULT["config"]["seeds"]) >= 3
        assert entry["mean"] == pytest.approx(statistics.mean(values), abs=1e-3)
        assert entry["sd"] == pytest.approx(statistics.stdev(values), abs=1e-3)
    for gap in RESULT["gaps"]:
        a, b = nll[gap["from"]], nll[gap["to"]]
        assert gap["nats"] == pytest.approx(statistics.mean(a) - statistics.mean(b), abs=2e-3)
        assert gap["stderr"] == pytest.approx(
            math.sqrt((statistics.variance(a) + statistics.variance(b)) / 3), abs=2e-3
        )


def test_published_values_and_order_are_reached():
    means = {entry["prior"]: entry["mean"] for entry in RESULT["summary"]}
    assert all(abs(means[prior] - value) < 1.0 for prior, value in PUBLISHED.items())
    for gap in RESULT["gaps"]:
        assert gap["nats"] > 2 * gap["stderr"], gap


def test_leave_one_out_on_training_codes_tells_what_test_codes_get():
    for entry in RESULT["afterwards"]:
        if entry["instead"] == "q_agg":
            assert abs(entry["training"] - entry["test"]) < 0.5, entry
            assert entry["test"] < entry["log_likelihood"] < 0, entry


def test_doubling_the_samples_moves_the_score_by_less_than_a_tenth_of_a_nat():
    for prior in RESULT["config"]["priors"]:
        curve = {r["num_samples"]: r["nll"] for r in RESULT["doubling"] if r["prior"] == prior}
        num = RESULT["config"]["num_samples"]
        assert abs(curve[2 * num] - curve[num]) < 0.1


# Training


SMALL = {
    "hidden": [6, 5],
    "latent_dim": 3,
    "log_variance_range": [-6, 2],
    "num_pseudo_inputs": 4,
    "num_exemplars": 30,
    "neighbours": 2,
    "seeds": [0, 1],
    "max_epochs": 3,
    "patience": 50,
    "warm_up": 2,
    "batch_size": 4,
    "learning_rate": 1e-2,
}
PRIORS = ("normal", "vamp", "exemplar")


def group(batched, folder, prior, **changes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (40, 12), generator=generator, dtype=torch.uint8)
    validation = torch.bernoulli(torch.full((10, 12), 0.5), generator=generator)
    return batched.Batched(prior, SMALL | changes, x, validation, folder / f"{prior}.safetensors")


def package_model(fashion, made, r, monkeypatch):
    monkeypatch.setattr(fashion, "CONFIG", fashion.CONFIG | SMALL)
    x = made.images.float() / 255
    vae = fashion.build(made.prior, x)
    weights = {name: value.float() for name, value in made.weights(r).items()}
    vae.load_state_dict(weights)
    return vae.double(), x


@pytest.mark.parametrize("prior", PRIORS)
def test_models_in_a_batch_are_models_of_the_package(fashion, batched, prior, tmp_path, monkeypatch):
    made = group(batched, tmp_path, prior)
    batched.train([made])
    for name, value in made.parameters.items():  # float16, as they are stored
        value.data = value.data.half().float()
        made.best[name] = value.detach().clone()
    made.refresh()
    x, z = made.validation.expand(2, -1, -1), torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
    loc, log_variance = made.encode(x)
    for r in range(2):
        vae, exemplars = package_model(fashion, made, r, monkeypatch)
        if prior == "exemplar":
            vae.prior.exemplars = exemplars.double()
        q = vae.encoder(made.validation.double()).base_dist
        torch.testing.assert_close(loc[r].double(), q.loc, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close((0.5 * log_variance[r]).exp().double(), q.scale, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            made.log_prior(z)[r].double(), vae.prior.log_prob(z[r].double()), atol=0.02, rtol=1e-3
        )
        log_x = made.log_likelihood(z, x[:, :7])[r].double()
        torch.testing.assert_close(
            log_x, vae.decoder(z[r].double()).log_prob(made.validation[:7].double()), atol=1e-3, rtol=1e-3
        )


def test_exemplars_of_training_leave_the_datum_out_and_count_each_place_once(batched, tmp_path, monkeypatch):
    made = group(batched, tmp_path, "exemplar", seeds=[0], num_exemplars=40, neighbours=40)
    made.parameters["prior.log_scale"].data.fill_(-5)  # so narrow that a datum's own component would outweigh others
    made.refresh()
    index = torch.tensor([[3, 11]])
    some = torch.arange(40)[None]
    monkeypatch.setattr(torch, "randint", lambda *_, **__: some)
    loc = made.cache[:, [3, 11]].clone()
    z = loc + 0.1
    got = made.log_prior_of_training(z, loc, index)
    terms = made.log_terms(z, made.cache)[0]
    for row, own in enumerate(index[0].tolist()):
        others = [n for n in range(40) if n != own]
        expected = terms[row, others].logsumexp(0) - math.log(39)
        torch.testing.assert_close(got[0, row], expected, atol=1e-3, rtol=0)
        assert (terms[row].logsumexp(0) - math.log(40) - expected).detach().abs() > 0.01  # with itself it is another


@pytest.mark.parametrize("prior", PRIORS)
def test_training_goes_on_where_it_was_interrupted(batched, prior, tmp_path):
    whole, begun = group(batched, tmp_path / "a", prior), group(batched, tmp_path / "b", prior, max_epochs=1)
    for made in (whole, begun):
        made.path.parent.mkdir()
        assert batched.train([made])
    again = group(batched, tmp_path / "b", prior)
    assert again.log["epoch"] == 1
    assert batched.train([again])
    assert again.log["validation"] == whole.log["validation"]
    assert all(torch.equal(again.best[name], value) for name, value in whole.best.items())


def test_the_clock_ends_training_and_says_so(batched, tmp_path):
    made = group(batched, tmp_path, "normal")
    assert not batched.train([made], stop_after=0)
    assert made.running == [0, 1] and made.path.exists()


def test_a_broken_or_foreign_checkpoint_is_an_error(batched, tmp_path):
    made = group(batched, tmp_path, "normal")
    made.save()
    with pytest.raises(ValueError, match=r"expected shape \(2, 14, 12\), got \(2, 12, 12\); remove it"):
        group(batched, tmp_path, "normal", hidden=[7, 5])
    made.path.write_bytes(made.path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a complete checkpoint"):
        group(batched, tmp_path, "normal")


def test_patience_is_that_of_the_public_code(batched):
    config = {"warm_up": 3, "patience": 2, "max_epochs": 10}
    assert batched.best_and_end([5.0, 4.0, 6.0, 6.0, 6.0], config) == (2, 5)
    assert batched.best_and_end([5.0, 4.0, 6.0, 6.0], config) == (2, None)
    assert batched.best_and_end([5.0, 6.0, 6.0, 6.0, 4.0], config) == (5, None)
    assert batched.best_and_end([5.0] * 10, config | {"patience": 20}) == (1, 10)


def test_gradients_are_divided_by_their_norms(batched, tmp_path):
    made = group(batched, tmp_path, "normal")
    made.begin()
    made.step()
    for name, value in made.parameters.items():
        parts = value.grad.reshape(4 if ".body." in name else 2, -1)
        torch.testing.assert_close(parts.norm(dim=1), torch.ones(len(parts)), atol=1e-4, rtol=0)
