"""A model on a graphics card: data are brought to it, draws are made there, and results are those of the processor."""

from __future__ import annotations

from dataclasses import astuple, is_dataclass

import pytest
import torch
from second_device import CARD, Generator, There, move, second_device
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaebook import (
    DiagGaussianMixture,
    adapt,
    aggregated_posterior,
    bounds,
    diagnose,
    holes,
    inference,
    information,
    likelihood,
    memorisation,
    modes,
    population,
    selection,
    testing,
    training,
)
from vaebook.aggregate import merge_duplicates
from vaebook.certificates import gaussian_cap, mmd_squared, mutual_information_bounds
from vaebook.code_priors import ExemplarPrior, VampPrior
from vaebook.data import binarize
from vaebook.distributed import ShardedMixture
from vaebook.estimators import minibatch_decomposition, minibatch_log_prob, minibatch_weights, pairwise_log_prob
from vaebook.gmm import fit_gmm
from vaebook.npmle import fit_npmle
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal

X = torch.rand(120, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(there: bool, prior=None):
    torch.manual_seed(0)
    nets = [
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double(),
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6)).double(),
    ]
    nets[0][2].weight.data *= 6  # codes that differ
    if there:
        nets = [move(net) for net in nets]

    def encode(x):
        loc, log_var = nets[0](x).chunk(2, 1)
        return loc, log_var - 2

    return adapt(
        encode, nets[1], spread="log_var", likelihood="bernoulli_logits", latent_shape=(2,), modules=nets, prior=prior
    )


def numbers(result):
    """All numbers of a result, in order."""
    if isinstance(result, Tensor):
        return (result.held if isinstance(result, There) else result).detach().double().flatten().tolist()
    if is_dataclass(result):
        result = astuple(result)
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, tuple | list):
        return [number for part in result for number in numbers(part)]
    return [float(result)] if isinstance(result, int | float) else []


def trained(vae, g):
    history = training.fit(vae, X, num_epochs=2, batch_size=40, generator=g, validation=X[:20], progress=False)
    return history.train_loss, history.validation_loss, vae.encode(vae.data(X[:3])[0]).mean


def codes(vae):
    return aggregated_posterior(vae, X, batch_size=50)


def shards(q, z, g):
    """Two parts where the model is, and one on the processor."""
    log_weight, *rest = q.components()
    parts = [[x[:40], x[40:70], x[70:].cpu()] for x in (*rest, log_weight)]
    some = ShardedMixture(*parts)
    index = torch.arange(30, 120, 10, device=z.device)
    told = some.log_prob(z), *some.log_prob_and_score(z), some.log_prob_leave_one_out(z, index)
    assert all(value.device == z.device for value in told)
    drawn, number = some.sample_with_index((20,), generator=g)
    return (
        *told,
        some.log_prob_given(z, index),
        some.log_prob_marginals(z),
        some.mean,
        some.covariance,
        drawn,
        number + 0.0,
        some[index].loc,
        information.active_units(some) + 0.0,
        information.kl_per_dimension(some),
        population.bracket_mismatch(
            ShardedMixture(*parts[:2]), StandardNormal(2).double(), num_components=(1,), num_samples=60, generator=g
        )[:6],
    )


def line(q):
    return DiagGaussianMixture(q.loc[:, :1], q.scale[:, :1])


def minibatch(vae):
    q = codes(vae)[:6]
    log_q = pairwise_log_prob(q.loc + 0.1, q.loc, q.scale)
    weights = minibatch_weights("equal", 6, 9).to(q.loc.device)
    return minibatch_log_prob(log_q.sum(0), weights), minibatch_decomposition(log_q, log_q[..., 0], weights)


def likeliest_prior(vae):
    x = vae.data(X[:6])[0]

    def log_likelihood(z):
        return Normal(z @ x[:2, :3], 0.3).log_prob(x[:, None, :3]).sum(-1)

    found = fit_npmle(log_likelihood, codes(vae).loc[:20], tolerance=1e-2)
    return found.log_prob


CALLS = {
    "slices and draws": lambda vae, g: (
        codes(vae)[[2, 0, 2]].components(), codes(vae)[2:9].sample_with_index((5,), generator=g)
    ),
    "leave one out": lambda vae, g: codes(vae).log_prob_leave_one_out(
        codes(vae).loc, torch.arange(120, device=codes(vae).loc.device)
    ),
    "responsibilities": lambda vae, g: (codes(vae).responsibilities(codes(vae).loc[:5]), codes(vae).covariance),
    "merge_duplicates": lambda vae, g: (
        merge_duplicates(codes(vae))[1] + codes(vae).loc[:, 0].gt(1e9),
        merge_duplicates(codes(vae)[[3, 1, 3]])[0].components(),
    ),
    "certificates": lambda vae, g: (
        mutual_information_bounds(codes(vae)), gaussian_cap(codes(vae)), mmd_squared(codes(vae), 1.0)
    ),
    "mutual_information": lambda vae, g: (
        information.mutual_information(codes(vae), num_samples=50, generator=g),
        information.mutual_information_quadrature(line(codes(vae)[:3])),
        information.active_units(codes(vae)),
    ),
    "minibatch": lambda vae, g: minibatch(vae),
    "fit_npmle": lambda vae, g: likeliest_prior(vae),
    "aggregated_posterior": lambda vae, g: (codes(vae).loc, codes(vae).scale),
    "log_prob_and_score": lambda vae, g: codes(vae).log_prob_and_score(codes(vae).loc[:9] + 0.1),
    "elbo": lambda vae, g: bounds.elbo(vae, X[:5], num_samples=3, generator=g),
    "iwae_bound": lambda vae, g: bounds.iwae_bound(vae, X[:5], 4, generator=g),
    "prior_sample_log_prob": lambda vae, g: bounds.prior_sample_log_prob(
        vae.decoder, StandardNormal(2).double(), vae.data(X[:5])[0], 4, generator=g
    ),
    "quadrature_log_prob": lambda vae, g: bounds.quadrature_log_prob(
        vae.decoder, vae.prior, vae.data(X[:2])[0], tolerance=1e-4
    ),
    "posterior_moments": lambda vae, g: inference.posterior_moments(
        vae.decoder, vae.prior, vae.data(X[:2])[0], tolerance=1e-4
    ),
    "inference_gap": lambda vae, g: inference.inference_gap(vae, X[:1], tolerance=1e-3, max_steps=3)[:2],
    "importance_log_prob": lambda vae, g: likelihood.importance_log_prob(vae, X[:2], 60, generator=g),
    "importance_log_prob, prior": lambda vae, g: likelihood.importance_log_prob(
        vae, X[:2], 60, prior=StandardNormal(2), generator=g
    ),
    "compare_priors": lambda vae, g: likelihood.compare_priors(
        vae, X[:2], {"own": vae.prior, "q": codes(vae)}, 200, leave_out={"q": torch.tensor([0, 1])},
        generator=g,
    ),
    "choose_prior": lambda vae, g: selection.choose_prior(
        vae, X, num_components=(1,), num_data=5, generator=g
    ).gains,
    "decompose_kl": lambda vae, g: information.decompose_kl(
        codes(vae), vae.prior, num_samples=50, marginals=True, generator=g
    ),
    "kl_per_dimension": lambda vae, g: information.kl_per_dimension(codes(vae)),
    "bracket_mismatch": lambda vae, g: population.bracket_mismatch(
        codes(vae), vae.prior, num_components=(1, 2), num_samples=60, densities=(codes(vae),), generator=g
    )[:6],
    "bracket_information": lambda vae, g: population.bracket_information(
        codes(vae), num_components=(1,), num_samples=60, generator=g
    )[:6],
    "hole_mass": lambda vae, g: holes.hole_mass(codes(vae), codes(vae), num_samples=150, generator=g)[:5],
    "memorisation": lambda vae, g: memorisation.memorisation(codes(vae), codes(vae), num_samples=50, generator=g),
    "shards": lambda vae, g: shards(codes(vae), vae.data(X[:9, :2])[0], g),
    "find_modes": lambda vae, g: modes.find_modes(codes(vae))[0],
    "fit_gmm": lambda vae, g: fit_gmm(codes(vae), 2).loc,
    "sample": lambda vae, g: vae.sample(3, generator=g),
    "fit": trained,
    "VampPrior": lambda vae, g: VampPrior(vae, vae.data(X[:9])[0]).log_prob(codes(vae).loc[:5]),
    "ExemplarPrior": lambda vae, g: ExemplarPrior(vae, vae.data(X[:9])[0]).log_prob(codes(vae).loc[:5]),
    "PPCA": lambda vae, g: PPCA.fit(vae.data(X)[0], 2).log_prob(vae.data(X[:5])[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_the_processor(name):
    """With torch's global generator, of which both draw the same."""
    call = CALLS[name]
    vae = model(False)
    torch.manual_seed(3)
    expected = numbers(call(vae, None))
    with second_device():
        vae = model(True)
        torch.manual_seed(3)
        got = numbers(call(vae, None))
    assert expected and all(value == value for value in expected)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_sampler_that_is_wrong_is_found_on_the_card():
    class Wide(StandardNormal):
        def sample(self, shape=(), *, generator=None):
            return 3 * super().sample(shape, generator=generator)

    with second_device():
        testing.assert_density_matches_sampler(codes(model(True)), num_samples=1000, generator=torch.Generator())
        with pytest.raises(AssertionError, match="draws do not follow"):
            testing.assert_density_matches_sampler(
                move(Wide(2).double()), num_samples=1000, generator=torch.Generator().manual_seed(0)
            )


def test_a_bound_does_not_depend_on_its_chunks():
    with second_device():
        vae = model(True)
        one, many = (
            bounds.iwae_bound(vae, X[:3], 6, chunk_size=size, generator=torch.Generator().manual_seed(0)).detach()
            for size in (6, 2)
        )
        assert numbers(one) == pytest.approx(numbers(many))
        assert binarize(vae.data(X[:3])[0], torch.Generator().manual_seed(0)).device == CARD


DRAWING = ("elbo", "prior_sample_log_prob", "importance_log_prob", "compare_priors", "decompose_kl", "memorisation",
           "bracket_mismatch", "sample", "fit")  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", CARD])
@pytest.mark.parametrize("name", DRAWING)
def test_a_generator_of_either_device_repeats_its_draws(name, device):
    with second_device():
        first, again, other = (
            numbers(CALLS[name](model(True), Generator(device).manual_seed(seed))) for seed in (1, 1, 2)
        )
    assert first == again != other


@pytest.mark.slow
def test_a_model_on_the_card_is_diagnosed():
    reports = []
    for there in (False, True):
        with second_device():
            vae = model(there, Independent(Normal(torch.zeros(2).double(), torch.ones(2).double()), 1))
            report = diagnose(vae, X[:90], held_out=X[90:], num_data=10, generator=torch.Generator().manual_seed(0))
            reports.append(report)
    here, there = reports
    assert here.sampling is not None and not [text for text in there.unknown if "device" in text]
    assert here.unknown == there.unknown
    assert numbers(there.rate) == pytest.approx(numbers(here.rate))
    assert numbers(there.mismatch_population) == pytest.approx(numbers(here.mismatch_population), rel=1e-6)
    for name, value in here.sampling.gains.items():
        error = (value.stderr**2 + there.sampling.gains[name].stderr ** 2) ** 0.5
        assert abs(there.sampling.gains[name].value - value.value) <= 6 * error + 1e-9


def test_the_second_device_is_as_strict_as_a_card():
    with second_device():
        there = torch.ones(3, device=CARD)
        assert there.device == CARD and (there + 1).device == CARD and float(there.sum()) == 3
        for wrong in (
            lambda: there + torch.ones(3),
            lambda: torch.ones(3)[there.long()],
            lambda: torch.randn(3, generator=torch.Generator(), device=CARD),
            lambda: torch.randn(3, generator=Generator(CARD)),
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert torch.randn(3, generator=Generator(CARD), device=CARD).device == CARD
        assert there.cpu().tolist() == [1, 1, 1]
