"""Fashion-MNIST: the stored numbers come out again from the stored weights and images."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vaebook import bounds, data, training
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, StandardNormal

BOOK = Path(__file__).resolve().parents[2] / "book"
RESULT = json.loads((BOOK / "results" / "fashion.json").read_text(encoding="utf-8"))
TOLERANCE = 0.02
"""Nats an image: the decoder runs in float32, whose sums differ between machines."""


@pytest.fixture(scope="module")
def fashion():
    folder = str(BOOK / "experiments")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("fashion", BOOK / "experiments" / "fashion.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def images():
    return safetensors.torch.load_file(BOOK / "results" / "fashion-images.safetensors")["images"].float()


def slice_of(prior):
    return next(entry["log_prob"] for entry in RESULT["slice"] if entry["prior"] == prior)


def agrees(got, stored):
    return max(abs(a - b) for a, b in zip(got, stored, strict=True)) < TOLERANCE


def installed():
    return next((f for f in (data.FASHION_SYSTEM_FOLDER,) if f.is_dir()), None)


def test_the_script_is_the_one_that_made_the_results(fashion):
    assert RESULT["config"] == json.loads(json.dumps(fashion.CONFIG))


@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_slice_comes_out_of_the_stored_weights(fashion, prior):
    vae = training.load(BOOK / "results" / f"fashion-{prior}.safetensors").float()
    got = fashion.score(vae, images(), 0, RESULT["config"]["num_samples"])["log_prob"]
    assert agrees(got, slice_of(prior))
    tampered = copy.copy(slice_of(prior))
    tampered[7] += 0.05
    assert not agrees(got, tampered)


@pytest.mark.slow
def test_slice_of_the_exemplar_prior_comes_out_of_weights_and_training_images(fashion):
    if installed() is None:
        pytest.skip(f"needs the training images in {data.FASHION_SYSTEM_FOLDER} (package dataset-fashion-mnist)")
    x = data.fashion_mnist(installed()).train
    vae = fashion.build("normal", 0, x)
    vae = VAE(vae.encoder, vae.decoder, ExemplarPrior(vae.encoder, x)).half()
    training.load(BOOK / "results" / "fashion-exemplar.safetensors", vae)
    vae = vae.float()
    vae.prior.exemplars = x  # those of the half-precision model are rounded
    got = fashion.score(vae, images(), 0, RESULT["config"]["num_samples"])["log_prob"]
    assert agrees(got, slice_of("exemplar"))


def state(fashion, path, hidden=3):
    generator = torch.Generator().manual_seed(0)
    encoder = GaussianEncoder(4, 2, (hidden,), generator=generator)
    vae = VAE(encoder, BernoulliDecoder(2, 4, (hidden,), generator=generator), StandardNormal(2))
    return fashion.State(path, vae, torch.optim.Adam(vae.parameters(), lr=1e-2), generator)


def take_a_step(made):
    x = torch.bernoulli(torch.full((5, 4), 0.5), generator=made.generator)
    loss = -bounds.elbo(made.vae, x, generator=made.generator).mean()
    made.optimizer.zero_grad()
    loss.backward()
    made.optimizer.step()
    return loss.item()


def test_training_goes_on_where_it_was_interrupted(fashion, tmp_path):
    made = state(fashion, tmp_path / "x.safetensors")
    take_a_step(made)
    made.log["epoch"], made.best = 7, {"a": torch.ones(2)}
    made.save()
    expected = [take_a_step(made) for _ in range(3)]
    again = state(fashion, tmp_path / "x.safetensors")
    again.resume()
    assert again.log["epoch"] == 7
    assert torch.equal(again.best["a"], torch.ones(2))
    assert [take_a_step(again) for _ in range(3)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_truncated_checkpoint_is_reported_and_removed(fashion, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    state(fashion, path).save()
    path.write_bytes(path.read_bytes()[:-100])
    made = state(fashion, path)
    made.resume()
    assert made.log["epoch"] == 0
    assert not path.exists()
    assert "truncated or corrupted" in capsys.readouterr().err


def test_checkpoint_of_other_shapes_is_one_error_and_changes_nothing(fashion, tmp_path):
    path = tmp_path / "x.safetensors"
    state(fashion, path, hidden=5).save()
    made = state(fashion, path)
    before = {name: t.clone() for name, t in made.vae.state_dict().items()}
    with pytest.raises(ValueError, match=r"decoder.body.0.bias: expected shape \(3,\), got \(5,\)"):
        made.resume()
    assert all(torch.equal(t, before[name]) for name, t in made.vae.state_dict().items())
    assert path.exists()


def test_stored_images_are_the_first_test_images(fashion):
    if installed() is None:
        pytest.skip(f"needs the images in {data.FASHION_SYSTEM_FOLDER} (package dataset-fashion-mnist)")
    assert torch.equal(images(), fashion.test_images(data.fashion_mnist(installed()))[: len(images())])


def test_rows_agree_with_the_slice_and_with_each_other():
    for row in RESULT["rows"]:
        assert row["images"] == RESULT["config"]["test_images"][row["prior"]]
        assert row["negative_elbo"] > row["nll"]
        assert row["best_epoch"] <= row["epochs"] == RESULT["config"]["epochs"][row["prior"]]
    num = RESULT["config"]["slice_images"]
    for entry in RESULT["slice"]:
        mean = -sum(entry["log_prob"]) / num
        row = next(row for row in RESULT["rows"] if row["prior"] == entry["prior"])
        # The slice is a sample of the images: its mean lies near that of all.
        spread = row["stderr"] * math.sqrt(row["images"] / num)
        assert abs(mean - row["nll"]) < 5 * spread


def test_doubling_the_samples_moves_the_score_by_less_than_a_tenth_of_a_nat():
    for prior in RESULT["config"]["priors"]:
        curve = {r["num_samples"]: r["nll"] for r in RESULT["doubling"] if r["model"].startswith(prior)}
        num = RESULT["config"]["num_samples"]
        assert abs(curve[2 * num] - curve[num]) < 0.1
