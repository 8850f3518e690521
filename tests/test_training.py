"""Fitting, saving and loading: reproducibility, what is kept when things go wrong, and bad input."""

from __future__ import annotations

import itertools
import json
import math
import os
import stat

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader, TensorDataset

from vaebook import bounds, checkpoint, data, training
from vaebook.adapters import adapt
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior
from vaebook.training import fit, load, save


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_vae(seed=0, hidden=(5,), decoder=BernoulliDecoder, **kwargs):
    g = generator(seed)
    return VAE(
        GaussianEncoder(6, 2, hidden, generator=g), decoder(2, 6, hidden, generator=g, **kwargs), StandardNormal(2)
    )


def two_images(n=40):
    """Two kinds of image, so that one bit of code is worth up to 6 log 2 - log 2 nats a datum."""
    return torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).repeat(n // 2, 1)


def state(vae):
    return {name: tensor.clone() for name, tensor in vae.state_dict().items()}


def same(a, b):
    """Bit for bit, kind included."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def quick(vae, x=None, **kwargs):
    settings = {"num_epochs": 3, "batch_size": 16, "generator": generator(), "progress": False} | kwargs
    return fit(vae, two_images() if x is None else x, **settings)


# Training


def code_vae(make, x=None, num=40):
    """A VAE under a prior made of its own codes, float64."""
    g = generator(3)
    encoder, decoder = GaussianEncoder(6, 2, (5,), generator=g), BernoulliDecoder(2, 6, (5,), generator=g)
    encoder, decoder = encoder.double(), decoder.double()
    return VAE(encoder, decoder, make(encoder, two_images(num).double() if x is None else x))


@pytest.mark.parametrize("make", [lambda encoder, x: VampPrior(encoder, x[:4] + 0.1), ExemplarPrior])
def test_priors_made_of_codes_are_trained_jointly_and_saved(make, tmp_path):
    vae, x = code_vae(make), two_images().double()
    own = next(vae.prior.parameters())
    before, codes = own.detach().clone(), vae.encoder.loc.weight.detach().clone()
    history = quick(vae, x, num_epochs=20)
    assert history.train_loss[-1] < history.train_loss[0]
    assert not torch.equal(own, before) and not torch.equal(vae.encoder.loc.weight, codes)
    assert own.grad is not None and vae.prior.encoder is vae.encoder
    save(tmp_path / "vae", vae)
    again = load(tmp_path / "vae", code_vae(make))
    z = torch.zeros(3, 2, dtype=torch.float64)
    assert torch.equal(again.prior.log_prob(z), vae.prior.log_prob(z))


def test_exemplars_leave_one_out_in_training_and_never_in_validation(monkeypatch):
    vae, x, seen, objective = code_vae(ExemplarPrior), two_images().double(), [], bounds.objective
    values = torch.rand(40, 6, generator=generator(5), dtype=torch.float64).round()
    monkeypatch.setattr(
        bounds, "objective", lambda v, b, **kw: seen.append((v.training, b, kw["index"])) or objective(v, b, **kw)
    )
    quick(vae, x, validation=values, num_epochs=2)
    training_steps = [(b, index) for training, b, index in seen if training]
    assert all(torch.equal(x[index], b) for b, index in training_steps)
    assert torch.equal(torch.cat([index for _, index in training_steps[:3]]).sort().values, torch.arange(40))
    assert [index for training, _, index in seen if not training] == [None] * 6


def test_exemplar_training_loss_is_that_of_a_direct_sum():
    x = torch.rand(12, 6, generator=generator(5), dtype=torch.float64).round()
    vae, replay = code_vae(ExemplarPrior, x), generator()
    order = torch.randperm(12, generator=replay)
    noise, q = torch.randn(12, 2, generator=replay, dtype=torch.float64), vae.encoder(x[order]).base_dist
    z = q.loc + q.scale * noise
    means, terms = vae.encoder(x).mean, []
    for row, own in enumerate(order.tolist()):
        others = [Normal(means[n], 1.0).log_prob(z[row]).sum() for n in range(12) if n != own]
        log_prior = torch.stack(others).logsumexp(0) - math.log(11)
        log_q = Normal(q.loc[row], q.scale[row]).log_prob(z[row]).sum()
        terms.append(vae.decoder(z[row]).log_prob(x[own]) + log_prior - log_q)
    expected = -float(torch.stack(terms).mean().detach())
    assert quick(vae, x, num_epochs=1, batch_size=12).train_loss == [pytest.approx(expected, abs=1e-12)]


def test_vamp_training_leaves_nothing_out(monkeypatch):
    seen, objective = [], bounds.objective
    monkeypatch.setattr(bounds, "objective", lambda v, b, **kw: seen.append(kw["index"]) or objective(v, b, **kw))
    quick(code_vae(VampPrior), two_images().double(), num_epochs=1)
    assert seen == [None] * 3


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (two_images().double().flip(0).roll(1, 0)[:20], r"shape \(20, 6\), torch.float64 on cpu"),
        (1 - two_images().double(), "other values"),
    ],
)
def test_exemplars_must_be_the_training_data(x, got):
    with pytest.raises(ValueError, match=f"x: expected the exemplars of vae.prior, in their order, got {got}"):
        quick(code_vae(ExemplarPrior), x)


def test_training_improves_the_elbo_and_stays_below_the_best_possible_value():
    x, vae = two_images(), small_vae(hidden=(20,))
    before = float(bounds.elbo(vae, x, num_samples=200, generator=generator()).mean().detach())
    history = quick(vae, num_epochs=300, learning_rate=1e-2)
    after = float(bounds.elbo(vae, x, num_samples=200, generator=generator()).mean().detach())
    best = -math.log(2)  # no density gives two images more than 1/2 each
    assert before < -4 and best - 0.6 < after < best
    assert history.train_loss[0] > 4 and -best < sum(history.train_loss[-50:]) / 50 < -best + 0.6
    assert history.best_epoch == len(history.train_loss) == 300 and history.validation_loss == []
    assert all(type(loss) is float for loss in history.train_loss)


def test_training_finds_the_closed_form_of_probabilistic_pca():
    """A linear VAE with one noise scale is probabilistic PCA, whose best likelihood is known."""
    x = (
        torch.randn(300, 2, generator=generator()) @ torch.tensor([[2.0, 0, 1, 0, 1, 0], [0, 1.0, 0, 1, 0, 0]])
    ).double()
    x += 0.3 * torch.randn(300, 6, generator=generator(1), dtype=torch.float64)
    best = float(PPCA.fit(x, 2).log_prob(x).mean())
    vae = small_vae(hidden=(), decoder=GaussianDecoder).double()
    fit(vae, x, num_epochs=150, batch_size=300, learning_rate=0.03, generator=generator(), progress=False)
    reached = float(bounds.elbo(vae, x, num_samples=100, generator=generator()).mean().detach())
    assert best - 0.15 < reached < best


def test_loss_is_minus_the_mean_elbo():
    """With all data in one batch and before the first step, by replaying the generator."""
    x, losses = two_images(), []
    for beta in (0.0, 1.0, 4.0):
        replay = generator()
        order = torch.randperm(len(x), generator=replay)
        expected = -bounds.elbo(small_vae(), x[order], beta=beta, generator=replay).detach().mean()
        losses.append(quick(small_vae(), x, beta=beta, batch_size=40, num_epochs=1).train_loss[0])
        assert losses[-1] == float(expected)
    assert losses[0] + 0.05 < losses[1] < losses[2] - 0.05


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_validation_loss_is_minus_the_mean_elbo_with_the_same_beta_and_noise(beta):
    x, vae = two_images(), small_vae()
    history = quick(vae, validation=x[:10], beta=beta, batch_size=40, num_epochs=2)
    with torch.no_grad():
        noise = [bounds.elbo(vae, x[:10], beta=b, generator=generator()) for b in (beta, beta + 1)]
    assert history.validation_loss[history.best_epoch - 1] == pytest.approx(-float(noise[0].mean()), rel=1e-6)
    assert abs(float(noise[0].mean() - noise[1].mean())) > 0.01


def test_every_datum_is_used_once_an_epoch(monkeypatch):
    x = torch.arange(23.0)[:, None].expand(23, 6) / 23
    seen = []
    monkeypatch.setattr(bounds, "objective", lambda vae, b, **_: seen.append(b[:, 0]) or vae(b).mean.sum(-1))
    quick(small_vae(), x, batch_size=5, num_epochs=2)
    assert [len(b) for b in seen] == [5, 5, 5, 5, 3] * 2
    epochs = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert all(torch.equal(epoch.sort().values, x[:, 0]) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_epoch_loss_weighs_data_not_batches(monkeypatch):
    """The last batch is smaller: a mean of batch means would be another number."""
    x = torch.arange(10.0)[:, None].expand(10, 6) / 10
    monkeypatch.setattr(bounds, "objective", lambda vae, b, **_: -b[:, 0] + 0 * vae(b).mean.sum(-1))
    history = quick(small_vae(), x, validation=x, batch_size=8)
    assert history.train_loss == pytest.approx([0.45] * 3, rel=1e-6)
    assert history.validation_loss == pytest.approx([0.45] * 3, rel=1e-6)


def test_training_is_reproducible_to_the_last_bit_and_leaves_the_global_state():
    before = torch.get_rng_state(), torch.get_default_dtype()
    x = data.digits().train[:100]
    runs = []
    for seed in (0, 0, 1):
        vae = VAE(GaussianEncoder(64, 2), BernoulliDecoder(2, 64), StandardNormal(2))
        history = quick(vae, x, generator=generator(seed), validation=x[:20])
        runs.append((state(vae), history))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_default_dtype()


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.AlphaDropout(0.3), nn.RReLU()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_dropout_too_draws_from_the_generator(dropout, scripted):
    """It knows torch's global one alone, whose state changed, so that no training was the same again."""
    runs, before = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = nn.Sequential(nn.Linear(6, 8), dropout, nn.Linear(8, 2))
            back = nn.Linear(1, 6)
        net = torch.jit.script(net) if scripted else net
        vae = adapt(lambda x, net=net: net(x).chunk(2, 1), back, spread="log_var", likelihood="bernoulli_logits")
        quick(vae, generator=generator(seed), num_epochs=2)
        runs.append({name: value.clone() for name, value in vae.state_dict().items()})
    assert torch.equal(before, torch.get_rng_state())
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_inside_of_inference_mode_training_is_refused_and_without_gradients_it_runs():
    vae = small_vae()
    before = {name: value.clone() for name, value in state(vae).items()}
    with (
        torch.inference_mode(),
        pytest.raises(
            ValueError, match=r"^vae: expected a loss that depends on weights, got none .torch.inference_mode"
        ),
    ):
        quick(vae)
    assert same(state(vae), before)
    with torch.no_grad():
        quick(vae)
    assert not same(state(vae), before)


def test_without_a_generator_torch_s_global_one_is_used():
    results = []
    with torch.random.fork_rng():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            vae = small_vae()
            quick(vae, generator=None)
            results.append(state(vae))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_validation_does_not_change_the_course_of_training():
    with_it, without = (quick(small_vae(), validation=v) for v in (two_images(10), None))
    assert with_it.train_loss == without.train_loss


def test_the_best_epoch_by_validation_is_restored():
    """Train on one kind of image, validate on the other: the first epoch is the best."""
    x, vae = two_images(), small_vae()
    history = quick(vae, x[::2], validation=x[1::2], num_epochs=20, learning_rate=0.05)
    assert len(history.train_loss) == len(history.validation_loss) == 20
    best = min(history.validation_loss)
    assert history.best_epoch == history.validation_loss.index(best) + 1 < 20
    shorter = small_vae()
    quick(shorter, x[::2], validation=x[1::2], num_epochs=history.best_epoch, learning_rate=0.05)
    assert same(state(vae), state(shorter))


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_counts_epochs_without_a_better_loss(monkeypatch, patience):
    losses = [5.0, 4.0, 4.5, 4.0, 4.2, 3.0, 2.0]
    feed = iter(losses)
    epoch = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda *args: next(feed) if "validation" in args[2] else epoch(*args))
    history = quick(small_vae(), validation=two_images(), num_epochs=7, patience=patience)
    assert history.best_epoch == 2 and history.validation_loss == losses[: 2 + patience]


def test_frozen_parameters_stay():
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    before = state(vae)
    quick(vae)
    after = state(vae)
    assert all(torch.equal(before[k], after[k]) == k.startswith("decoder") for k in before)


def test_training_mode_is_restored_and_used(monkeypatch):
    modes, objective = [], bounds.objective
    monkeypatch.setattr(bounds, "objective", lambda vae, b, **kw: modes.append(vae.training) or objective(vae, b, **kw))
    for was in (True, False):
        vae = small_vae().train(was)
        quick(vae, validation=two_images(), batch_size=40, num_epochs=2)
        assert vae.training is was
    assert modes == [True, False] * 4


def test_bar_goes_to_stderr_and_only_on_request(capsys):
    quick(small_vae())
    assert capsys.readouterr() == ("", "")
    quick(small_vae(), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "fit: 100%" in err and "loss=" in err


def test_all_dtypes_and_priors_train():
    q_agg = DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))
    quick(VAE(GaussianEncoder(6, 2), BernoulliDecoder(2, 6), q_agg))
    quick(small_vae().double(), two_images().double())
    for scale in ("shared", "free", 0.5):
        quick(small_vae(decoder=GaussianDecoder, scale=scale))


# What `adapt` makes


class Images(nn.Module):
    """A convolutional encoder and decoder with batch norm, dropout and a label."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten())
        self.heads, self.drop, self.up = nn.Linear(4 * 16 + 2, 4), nn.Dropout(0.2), nn.Linear(2 + 2, 16)

    def encode(self, x, label):
        return self.heads(torch.cat([self.drop(self.down(x)), label], 1)).chunk(2, 1)

    def decode(self, z, label):
        return self.up(torch.cat([z, label], 1)).reshape(-1, 1, 4, 4)


def images(num=60):
    label = torch.arange(num) % 2
    one = torch.eye(4).flip(1).reshape(1, 4, 4), torch.eye(4).reshape(1, 4, 4)
    return torch.stack([one[k] for k in label]), nn.functional.one_hot(label, 2).float()


def adapted():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Images()
    return adapt(net.encode, net.decode, likelihood="bernoulli_logits", spread="log_var", condition="label"), net


def test_an_adapted_model_of_images_with_a_condition_is_trained():
    (vae, net), (x, label) = adapted(), images()
    before, mean = state(net), net.down[1].running_mean.clone()
    settings = {"condition": label, "validation": x[:10], "validation_condition": label[:10], "learning_rate": 0.02}
    history = quick(vae, x, num_epochs=15, **settings)
    assert history.train_loss[-1] < history.train_loss[0] / 2
    changed = {name for name in before if not torch.equal(before[name], net.state_dict()[name])}
    assert {"down.0.weight", "heads.weight", "up.weight", "down.1.running_mean"} <= changed
    assert not torch.equal(net.down[1].running_mean, mean) and net.training
    assert vae.prior.latent_dim == 2


def forms(x, path):
    """The same data as whoever has them may have them."""
    array = np.memmap(path, dtype="float32", mode="w+", shape=tuple(x.shape))
    array[:] = x.numpy()
    loader = DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=7)
    return [x.numpy(), x.double().numpy(), array, loader, list(x.split(11)), (part for part in x.split(11))]


@pytest.mark.parametrize("form", range(6))
def test_data_may_come_as_an_array_or_in_batches(form, tmp_path):
    x, vae = two_images(), small_vae()
    expected = quick(vae, x, validation=x), state(vae)
    other = small_vae()
    assert quick(other, forms(x, tmp_path / "x")[form], validation=forms(x, tmp_path / "v")[form]) == expected[0]
    assert all(torch.equal(value, expected[1][name]) for name, value in state(other).items())
    for make in (VampPrior, ExemplarPrior):
        prior = make(vae.encoder, forms(x, tmp_path / "z")[form])
        assert torch.equal(prior.mixture().loc, make(vae.encoder, x).mixture().loc)
    x = torch.rand(30, 3, generator=generator())
    assert torch.equal(PPCA.fit(forms(x, tmp_path / "p")[form], 1).weight, PPCA.fit(x, 1).weight)


def test_a_condition_goes_with_its_data(monkeypatch):
    (vae, _), (x, _), seen, objective = adapted(), images(), [], bounds.objective
    label = torch.stack([torch.arange(60.0), torch.zeros(60)], 1)
    x = x + 0 * x
    x[:, 0, 0, 0] = torch.arange(60.0) / 60
    monkeypatch.setattr(
        bounds, "objective", lambda v, b, **kw: seen.append((b, kw["condition"])) or objective(v, b, **kw)
    )
    quick(vae, x, condition=label, validation=x[50:], validation_condition=label[50:], num_epochs=2)
    for batch, condition in seen:
        torch.testing.assert_close(60 * batch[:, 0, 0, 0], condition["label"][:, 0])
    assert len(seen) == 2 * (4 + 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"^condition: expected label"),
        (
            {"condition": torch.zeros(59, 2)},
            r"^condition\['label'\]: expected 60 rows, one for each datum, got .*\(59, 2\)",
        ),
        ({"condition": torch.zeros(60, 2), "validation": images(5)[0]}, r"^condition: expected label"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused_before_training(kwargs, message):
    vae, net = adapted()
    before = state(net)
    with pytest.raises(ValueError, match=message):
        quick(vae, images()[0], **kwargs)
    assert same(state(net), before)


def test_arrays_are_trained_on_as_tensors():
    one, other = small_vae(), small_vae()
    assert quick(one, two_images().numpy()) == quick(other) and same(state(one), state(other))


class Flow(nn.Module):
    """A density with parameters that is made anew at every call, as the flows of other libraries are."""

    def __init__(self, dim=2):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.full((dim,), 0.5))

    def forward(self):
        return Independent(Normal(self.loc, self.log_scale.exp()), 1)


def test_a_flow_as_prior_is_trained_saved_and_loaded(tmp_path):
    def build():
        return VAE(GaussianEncoder(6, 2, (5,)), BernoulliDecoder(2, 6, (5,)), Flow())

    vae, flow = build(), None
    flow = vae.prior.source
    before = state(flow)
    quick(vae, num_epochs=5, learning_rate=0.05)
    assert not any(torch.equal(before[name], value) for name, value in state(flow).items())
    save(tmp_path / "vae", vae)
    again = load(tmp_path / "vae", build())
    z = torch.randn(5, 2)
    assert torch.equal(vae.prior.log_prob(z), again.prior.log_prob(z))
    with pytest.raises(ValueError, match=r"prior: expected one of .*, got Flow\(…\); build the model yourself"):
        load(tmp_path / "vae")


def test_a_model_that_is_not_repeatable_is_refused_before_training():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = GaussianEncoder(6, 2)

        def forward(self, x):
            q = self.inner(x)
            return Independent(Normal(q.rsample(), q.stddev), 1)

    vae = VAE(Draws(), BernoulliDecoder(2, 6), StandardNormal(2))
    with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes over the same data"):
        quick(vae)


# When training goes wrong


class Explodes(nn.Module):
    """A decoder that answers nan from a given call on."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.calls, self.at = BernoulliDecoder(2, 6, (5,), generator=generator()), itertools.count(1), at

    def forward(self, z):
        p = self.inner(z)
        # Two passes over the data come before training.
        return (
            p
            if next(self.calls) - 2 < self.at
            else Independent(Normal(p.mean * torch.nan, 1.0, validate_args=False), 1)
        )


def explosive(at):
    return VAE(GaussianEncoder(6, 2, (5,), generator=generator()), Explodes(at), StandardNormal(2))


def test_loss_that_is_not_finite_names_the_batch_and_keeps_the_last_good_epoch():
    vae, good = explosive(at=9), explosive(at=999)  # three batches an epoch: epoch 3, batch 3
    message = (
        r"^fit: stopped in epoch 3, batch 3: decoder's log p\(x\|z\): expected values below infinity, got nan .*; "
        "the model has its best weights"
    )
    with pytest.raises(ValueError, match=message):
        quick(vae, num_epochs=9)
    quick(good, num_epochs=2)
    assert same(state(vae), state(good))


def test_loss_that_is_not_finite_at_once_keeps_the_initial_weights():
    vae = explosive(at=1)
    before = state(vae)
    with pytest.raises(ValueError, match="in epoch 1, batch 1"):
        quick(vae)
    assert same(state(vae), before)


def test_loss_that_is_not_finite_in_validation_is_named():
    with pytest.raises(ValueError, match=r"^fit: stopped in epoch 1, validation, batch 1: decoder's log p"):
        quick(explosive(at=6), validation=two_images())


@pytest.mark.parametrize("batch_size", [16, 40])
def test_divergence_leaves_finite_weights(batch_size):
    """At an absurd learning rate; whether weights, codes or loss are the first to overflow."""
    for rate in (1e4, 1e20, 1e38):
        vae = small_vae(decoder=GaussianDecoder, scale="free")
        before = state(vae)
        with pytest.raises(ValueError, match=r"^fit: stopped (in|after) epoch \d+") as error:
            quick(vae, num_epochs=50, batch_size=batch_size, learning_rate=rate)
        assert "\n" not in str(error.value)
        assert all(tensor.isfinite().all() for tensor in state(vae).values())
        assert before.keys() == state(vae).keys()


def test_weights_spoiled_by_the_last_batch_are_not_kept(monkeypatch):
    vae, objective = small_vae(), bounds.objective

    bias = vae.encoder.loc.bias

    def infinite_gradient(vae, b, **kw):
        return objective(vae, b, **kw) + (bias - bias.detach()).sum().abs().sqrt()

    before = state(vae)
    monkeypatch.setattr(bounds, "objective", infinite_gradient)
    with pytest.raises(
        ValueError,
        match=r"^fit: stopped after epoch 1 \(the model has its best weights .*: encoder\..*: expected finite values",
    ):
        quick(vae, batch_size=40)
    assert same(state(vae), before)


def test_interrupt_keeps_the_last_complete_epoch(monkeypatch):
    vae, good, calls, objective = small_vae(), small_vae(), itertools.count(1), bounds.objective

    def interrupted(*args, **kwargs):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return objective(*args, **kwargs)

    quick(good, num_epochs=2)
    monkeypatch.setattr(bounds, "objective", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(vae, num_epochs=5)
    assert same(state(vae), state(good))


BAD_FIT = [
    ({"vae": nn.Linear(6, 6)}, TypeError, "vae: expected an object with .encoder, .decoder and .prior"),
    ({"x": [[0.0] * 6]}, TypeError, "x: expected a tensor or an array"),
    (
        {"x": torch.zeros(5, 6, dtype=torch.uint8)},
        TypeError,
        "x: expected a floating-point tensor",
    ),
    (
        {"x": torch.zeros(5, 6).double()},
        TypeError,
        "x: expected the dtype of the weights, torch.float32, got torch.float64",
    ),
    ({"x": torch.zeros(6)}, ValueError, "x: expected shape (N, ...) with at least one value, got (6,)"),
    ({"x": torch.zeros(5, 7)}, ValueError, "x: expected shape (..., 6), got (5, 7)"),
    ({"x": torch.zeros(0, 6)}, ValueError, "x: expected shape (N, ...) with at least one value, got (0, 6)"),
    ({"x": torch.full((5, 6), torch.nan)}, ValueError, "x: expected finite values, got nan at index (0, 0)"),
    (
        {"x": torch.full((5, 6), 2.0)},
        ValueError,
        "x: expected values in [0, 1], got 2 at index (0, 0)",
    ),
    (
        {"validation": torch.zeros(5, 7)},
        ValueError,
        "validation: expected data as x, of shape (M, 6) and torch.float32, got (5, 7)",
    ),
    (
        {"validation": torch.zeros(0, 6)},
        ValueError,
        "validation: expected shape (N, ...) with at least one value, got (0, 6)",
    ),
    ({"validation": torch.full((5, 6), torch.inf)}, ValueError, "validation: expected finite values, got inf"),
    ({"validation": torch.full((5, 6), -1.0)}, ValueError, "validation: expected values in [0, 1], got -1"),
    ({"num_epochs": 0}, ValueError, "num_epochs: expected an int at least 1, got 0"),
    ({"num_epochs": 1.5}, TypeError, "num_epochs: expected an int, got float"),
    ({"batch_size": 0}, ValueError, "batch_size: expected an int at least 1, got 0"),
    ({"batch_size": None}, TypeError, "batch_size: expected an int, got NoneType"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate: expected a number > 0, got 0.0"),
    ({"learning_rate": float("inf")}, ValueError, "learning_rate: expected a finite number, got inf"),
    ({"beta": -1}, ValueError, "beta: expected a number >= 0, got -1"),
    ({"beta": "1"}, TypeError, "beta: expected a number, got str"),
    ({"generator": 0}, TypeError, "generator: expected a torch.Generator or None, got int"),
    ({"patience": 0, "validation": two_images()}, ValueError, "patience: expected an int at least 1, got 0"),
    ({"patience": 2}, ValueError, "patience: expected None without validation data, got 2"),
    ({"progress": "no"}, TypeError, "progress: expected a bool, got str"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_FIT)
def test_fit_rejects_and_leaves_the_model(arguments, error, message):
    arguments = {"vae": small_vae()} | arguments
    before = state(arguments["vae"])
    with pytest.raises(error) as caught:
        quick(**arguments)
    assert str(caught.value).startswith(message)
    assert same(before, state(arguments["vae"]))


def test_fit_rejects_a_model_without_anything_to_train():
    with pytest.raises(ValueError, match=r"^vae: expected parameters that require gradients, got none"):
        quick(small_vae().requires_grad_(False))


# Saving and loading


VAES = {
    "bernoulli": lambda: small_vae(3),
    "linear": lambda: small_vae(3, hidden=()),
    "shared": lambda: small_vae(3, decoder=GaussianDecoder, min_scale=0.125),
    "free": lambda: small_vae(3, decoder=GaussianDecoder, scale="free", hidden=(7, 4)),
    "fixed": lambda: small_vae(3, decoder=GaussianDecoder, scale=0.1),
    "float64": lambda: small_vae(3).double(),
    "bfloat16": lambda: small_vae(3, decoder=GaussianDecoder).bfloat16(),
}


@pytest.mark.parametrize("build", VAES.values(), ids=VAES)
def test_save_then_load_is_the_same_model_to_the_last_bit(build, tmp_path):
    vae, path, rng = build(), tmp_path / "vae.safetensors", torch.get_rng_state()
    save(path, vae)
    again = load(str(path))
    assert same(state(vae), state(again))
    into = build()
    with torch.no_grad():
        for parameter in into.parameters():
            parameter.zero_()
    assert load(path, into) is into and same(state(vae), state(into))
    assert torch.equal(rng, torch.get_rng_state())
    x, z = two_images(4).to(vae.encoder.loc.weight.dtype), torch.ones(4, 2, dtype=vae.encoder.loc.weight.dtype)
    assert torch.equal(vae.decoder(z).log_prob(x), again.decoder(z).log_prob(x))
    assert torch.equal(vae.sample(3, generator=generator()), again.sample(3, generator=generator()))
    assert [p.name for p in tmp_path.iterdir()] == ["vae.safetensors"]


def test_a_loaded_model_can_be_trained_on(tmp_path):
    a = small_vae()
    save(tmp_path / "a", a)
    b = load(tmp_path / "a")
    assert quick(a) == quick(b) and same(state(a), state(b))


def test_config_is_kept_and_the_file_is_plain_safetensors(tmp_path):
    path = tmp_path / "a"
    for config in ({"seed": 3, "note": "héllo", "rates": [0.1, None]}, {}):
        save(path, small_vae(), config)
        with safetensors.safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["vaebook"])["config"] == config
    assert same(safetensors.torch.load_file(path), state(small_vae()))
    with safetensors.safe_open(path, "pt") as file:
        model = json.loads(file.metadata()["vaebook"])["model"]
    assert model["encoder"] == {
        "class": "GaussianEncoder",
        "arguments": {"data_dim": 6, "latent_dim": 2, "hidden": [5]},
    }
    assert model["prior"] == {"class": "StandardNormal", "arguments": {"latent_dim": 2}}


def test_every_network_tells_the_arguments_that_make_it_again():
    for part in (GaussianEncoder(6, 2), BernoulliDecoder(2, 6, ()), GaussianDecoder(2, 6, (3,), scale=0.5)):
        again = type(part)(**part.config())
        assert again.config() == part.config() and same(state(again), state(part))


def test_saving_is_deterministic_and_respects_the_umask(tmp_path):
    save(tmp_path / "a", small_vae())
    save(tmp_path / "b", small_vae())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_saving_keeps_permissions_and_links(tmp_path):
    folder, path = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    (folder / "vae").write_bytes(b"old")
    (folder / "vae").chmod(0o600)
    path.symlink_to(folder / "vae")
    save(path, small_vae())
    assert path.is_symlink() and stat.S_IMODE((folder / "vae").stat().st_mode) == 0o600
    assert same(state(load(folder / "vae")), state(small_vae()))
    (folder / "vae").unlink()  # a link to a file that is not there yet
    save(path, small_vae())
    assert path.is_symlink() and [p.name for p in folder.iterdir()] == ["vae"]


@pytest.mark.parametrize("where", ["serialise", "write", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_save_leaves_the_old_file_and_nothing_else(monkeypatch, tmp_path, where, error):
    path, new = tmp_path / "vae.safetensors", tmp_path / "new.safetensors"
    save(path, small_vae(0))
    before = path.read_bytes()

    def fail(*_, **__):
        raise error

    owner, name = {"serialise": (safetensors.torch, "save"), "write": (os, "fsync"), "replace": (os, "replace")}[where]
    monkeypatch.setattr(owner, name, fail)
    for target in (path, new):
        with pytest.raises(type(error)):
            save(target, small_vae(1))
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["vae.safetensors"]
    assert same(state(load(path)), state(small_vae(0)))


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    """safetensors has no checksum of its own; ours must notice a change of any byte."""
    path = tmp_path / "vae"
    save(path, VAE(GaussianEncoder(2, 1, ()), BernoulliDecoder(1, 2, ()), StandardNormal(1)))
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(ValueError, match=r"^/"):
            load(path)
            pytest.fail(f"byte {i} of {len(content)}")


def test_truncated_or_foreign_files_are_one_clear_error(tmp_path):
    path = tmp_path / "vae"
    save(path, small_vae())
    content = path.read_bytes()
    vae = small_vae(5)
    for bad in (*(content[:n] for n in range(0, len(content), 97)), content + b"x", b"{}", b"\x80\x04pickle"):
        path.write_bytes(bad)
        for read in (load, lambda p: load(p, vae)):
            with pytest.raises(ValueError, match="expected a complete safetensors file written by vaebook") as error:
                read(path)
            assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    safetensors.torch.save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"written by vaebook.training.save, got format None where 1 is read"):
        load(path)
    assert same(state(vae), state(small_vae(5)))


def test_swapped_weights_are_noticed(tmp_path):
    """Tensors of the right names and shapes under another model's description."""
    path = tmp_path / "vae"
    save(path, small_vae(0))
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    safetensors.torch.save_file(state(small_vae(1)), path, header)
    with pytest.raises(ValueError, match=r"content: expected SHA-256 \w{64}, got \w{64}; the file is corrupted$"):
        load(path)


OTHERS = {
    "hidden": (
        lambda: small_vae(hidden=(6,)),
        "encoder: expected GaussianEncoder(data_dim=6, latent_dim=2, hidden=[6]), "
        "got GaussianEncoder(data_dim=6, latent_dim=2, hidden=[5])",
    ),
    "decoder": (lambda: small_vae(decoder=GaussianDecoder), "decoder: expected GaussianDecoder("),
    "prior": (
        lambda: VAE(
            GaussianEncoder(6, 2, (5,)),
            BernoulliDecoder(2, 6, (5,)),
            DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2)),
        ),
        "prior: expected DiagGaussianMixture(…), got StandardNormal(latent_dim=2)",
    ),
    "dtype": (lambda: small_vae().double(), "decoder.body.0.bias: expected float64 (5,), got float32 (5,)"),
}


@pytest.mark.parametrize(("build", "message"), OTHERS.values(), ids=OTHERS)
def test_another_architecture_is_named_and_left_alone(build, message, tmp_path):
    save(tmp_path / "vae", small_vae())
    other = build()
    before = state(other)
    with pytest.raises(ValueError) as error:
        load(tmp_path / "vae", other)
    assert str(error.value).startswith(f"{tmp_path / 'vae'}: {message}")
    assert same(state(other), before)


class OwnEncoder(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.loc = nn.Linear(width, 2)
        if width > 6:
            self.extra = nn.Linear(1, 1)

    def forward(self, x):
        return Independent(Normal(self.loc(x[:, : self.loc.in_features]), torch.ones(2)), 1)


def own(width=6):
    return VAE(OwnEncoder(width), BernoulliDecoder(2, 6), StandardNormal(2))


def test_parts_of_one_s_own_are_saved_but_not_rebuilt(tmp_path):
    path, vae = tmp_path / "vae", own()
    save(path, vae)
    assert same(state(load(path, own())), state(vae))
    with pytest.raises(ValueError, match=r"encoder: expected one of .*, got OwnEncoder\(…\); build the model yourself"):
        load(path)
    for other, message in (
        (own(5), r"encoder.loc.weight: expected float32 \(2, 5\), got float32 \(2, 6\)$"),
        (own(7), "encoder.extra.bias: expected float32 .*, got none$"),
    ):
        before = state(other)
        with pytest.raises(ValueError, match=message):
            load(path, other)
        assert same(state(other), before)


def test_a_class_of_the_same_name_is_not_taken_for_ours(tmp_path):
    impostor = type("StandardNormal", (StandardNormal,), {})
    save(tmp_path / "vae", VAE(GaussianEncoder(6, 2), BernoulliDecoder(2, 6), impostor(2)))
    with pytest.raises(ValueError, match=r"prior: expected one of .*, got StandardNormal\(…\)"):
        load(tmp_path / "vae")


def test_tied_and_strided_tensors_are_saved(tmp_path):
    vae = small_vae()
    vae.encoder.log_scale.weight = vae.encoder.loc.weight
    vae.decoder.logits.weight = nn.Parameter(torch.randn(5, 6, generator=generator()).T)
    save(tmp_path / "vae", vae)
    assert same(state(load(tmp_path / "vae")), state(vae))


def test_a_description_that_cannot_be_built_is_an_error(tmp_path, monkeypatch):
    """As from a later version of the package, whose classes take other arguments."""
    path = tmp_path / "vae"
    describe = checkpoint._describe

    def newer(vae):
        model = describe(vae)
        model["encoder"]["arguments"]["dropout"] = 0.1
        return model

    monkeypatch.setattr(checkpoint, "_describe", newer)
    save(path, small_vae())
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=rf"^{path}: expected a model that this version can build, got TypeError: .*dropout"
    ):
        load(path)


@pytest.mark.parametrize("path", [None, 3, b"x"])
def test_path_must_be_a_path(path):
    for call in (lambda: save(path, small_vae()), lambda: load(path)):
        with pytest.raises(TypeError, match=r"^path: expected a str or a PathLike, got"):
            call()


def test_bad_arguments_of_save_and_load(tmp_path):
    path = tmp_path / "vae"
    with pytest.raises(ValueError, match=r"^path: expected a file in a folder that exists, got .*nowhere"):
        save(tmp_path / "nowhere" / "vae", small_vae())
    for vae in (None, nn.Linear(2, 2), small_vae().state_dict()):
        with pytest.raises(TypeError, match=r"^vae: expected a VAE, got"):
            save(path, vae)
    for config, error in (([1], TypeError), ({"a": object()}, ValueError), ({"a": float("nan")}, ValueError)):
        with pytest.raises(error, match=r"^config: expected"):
            save(path, small_vae(), config)
    assert not list(tmp_path.iterdir())
    for missing in (path, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"^path: expected a complete safetensors file"):
            load(missing)
    save(path, small_vae())
    with pytest.raises(TypeError, match=r"^vae: expected a VAE, got Linear"):
        load(path, nn.Linear(2, 2))


def test_each_part_returns_to_its_own_mode_and_the_graph_of_x_is_left_alone():
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()
    vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
    vae.encoder.eval()
    fit(vae, x * torch.ones(6, requires_grad=True), num_epochs=2, batch_size=7, progress=False)
    assert not vae.encoder.training and vae.decoder.training


def one_layer(likelihood=None, last=nn.Identity, decode=None):
    torch.manual_seed(0)
    encoder, back = nn.Linear(3, 4), nn.Sequential(nn.Linear(2, 3), last())
    made = decode(back) if decode else back
    return adapt(
        lambda x: (encoder(x)[:, :2], encoder(x)[:, 2:].exp()), made, likelihood=likelihood, modules=(encoder, back)
    )


def test_a_likelihood_that_makes_another_distribution_is_trained_in_every_epoch():

    def decode(back):
        return lambda z: Independent(Normal(back(z), 1.0), 1)

    x = torch.rand(40, 3, generator=generator())
    vae = one_layer(lambda d: Independent(Normal(d.mean, 0.05), 1), decode=decode)
    losses = quick(vae, x, num_epochs=3, batch_size=40, learning_rate=1e-9).train_loss
    assert max(losses) < 3 * min(losses) and min(losses) > 100


def test_a_decoder_that_returns_another_distribution_in_training_is_trained_on_that():
    """Validation runs it in evaluation mode; what it returned there says nothing of training."""

    class Changing(nn.Linear):
        def forward(self, z):
            mean = Normal(super().forward(z), 1.0)
            return mean if self.training else Independent(mean, 1)

    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 4), Changing(2, 6)
    split = lambda x: (encoder(x)[:, :2], encoder(x)[:, 2:].exp())  # noqa: E731
    vae, x = adapt(split, decoder, modules=(encoder, decoder)), torch.rand(12, 6, generator=generator())
    given = {"num_epochs": 3, "batch_size": 6, "learning_rate": 1e-9}
    assert quick(vae, x, validation=x, **given).train_loss == quick(vae, x, **given).train_loss


def test_what_is_no_probability_is_refused_in_every_epoch():
    vae = one_layer("bernoulli", nn.ReLU)
    vae.decoder.source[0].bias.data.fill_(0.9)
    with pytest.raises(ValueError, match="decoder's output: expected probabilities"):
        quick(vae, torch.ones(40, 3), num_epochs=200, batch_size=40, learning_rate=0.02)


def test_a_scale_that_turns_negative_stops_training_in_every_epoch():
    torch.manual_seed(0)
    scale, back = nn.Parameter(torch.full((2,), 0.05)), nn.Linear(2, 3)
    encoder = nn.Linear(3, 2)
    encoder.register_parameter("spread", scale)
    vae = adapt(lambda x: (encoder(x), encoder.spread.expand(len(x), 2)), back, likelihood="bernoulli_logits",
                prior=Independent(Normal(torch.zeros(2), torch.full((2,), 0.01)), 1), modules=(encoder,))  # fmt: skip
    with pytest.raises(ValueError, match="fit: stopped in epoch"):
        quick(vae, torch.ones(40, 3), num_epochs=60, batch_size=40, learning_rate=0.03)


def test_validation_records_no_gradient():
    vae, seen = small_vae(), []
    vae.decoder.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    quick(vae, num_epochs=1, batch_size=40, validation=two_images())
    assert set(seen) == {(True, True), (False, False)} and seen[-1] == (False, False)
