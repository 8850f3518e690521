"""StandardNormal: density, sampler, and the two against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from vaebook.priors import StandardNormal


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_log_prob_is_that_of_scipy(dim):
    z = 3 * torch.randn(4, 5, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    expected = stats.multivariate_normal(np.zeros(dim), np.eye(dim)).logpdf(z.numpy().reshape(-1, dim))
    got = StandardNormal(dim).log_prob(z)
    assert got.shape == (4, 5)
    np.testing.assert_allclose(got.reshape(-1), np.atleast_1d(expected), rtol=1e-14, atol=1e-12)


def test_density_integrates_to_one():
    axis = torch.linspace(-9, 9, 401, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    mass = StandardNormal(2).log_prob(z).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-12


def test_float32_is_rounded_only_once():
    z = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    got, exact = StandardNormal(40).log_prob(z), StandardNormal(40).log_prob(z.double())
    assert got.dtype == torch.float32
    assert torch.equal(got, exact.float())


def test_sampler_agrees_with_density():
    dim, n = 3, 40_000
    prior = StandardNormal(dim)
    z = prior.sample((n,), generator=torch.Generator().manual_seed(1)).double()
    for j in range(dim):
        assert stats.kstest(z[:, j].numpy(), "norm").pvalue > 1e-4
    correlation = torch.corrcoef(z.T) - torch.eye(dim)
    assert correlation.abs().max() < 4.5 / math.sqrt(n)
    log_prob = prior.log_prob(z)  # its mean is minus the entropy, its variance D/2
    entropy = 0.5 * dim * math.log(2 * math.pi * math.e)
    assert abs(float(log_prob.mean()) + entropy) < 4 * math.sqrt(dim / 2 / n)
    assert not torch.allclose(log_prob.mean(), torch.tensor(-entropy - 0.05).double(), atol=4 * math.sqrt(dim / 2 / n))


def test_sample_shapes_dtype_and_seed():
    prior = StandardNormal(2).double()
    seeded = [prior.sample((3, 4), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert seeded[0].shape == (3, 4, 2)
    assert seeded[0].dtype == torch.float64
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert prior.sample().shape == (2,)
    assert prior.sample((0,)).shape == (0, 2)


def test_generator_leaves_global_state_alone():
    before = torch.get_rng_state()
    StandardNormal(2).sample((5,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_it_has_nothing_to_train_or_save():
    prior = StandardNormal(2)
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}
    assert repr(prior) == "StandardNormal(latent_dim=2)"


def test_score_by_autograd():
    z = torch.tensor([[1.0, -2.0]], requires_grad=True)
    StandardNormal(2).log_prob(z).sum().backward()
    assert torch.equal(z.grad, torch.tensor([[-1.0, 2.0]]))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "latent_dim: expected an int, got float", lambda: StandardNormal(2.0)),
        (TypeError, "latent_dim: expected an int, got bool", lambda: StandardNormal(True)),
        (ValueError, "latent_dim: expected an int at least 1, got 0", lambda: StandardNormal(0)),
        (
            ValueError,
            r"z: expected shape \(..., 2\), got \(4, 3\)",
            lambda: StandardNormal(2).log_prob(torch.ones(4, 3)),
        ),
        (TypeError, "z: expected a torch.Tensor, got list", lambda: StandardNormal(2).log_prob([0.0, 0.0])),
        (
            TypeError,
            "z: expected a floating-point",
            lambda: StandardNormal(2).log_prob(torch.zeros(2, dtype=torch.long)),
        ),
        (ValueError, "z: expected finite", lambda: StandardNormal(1).log_prob(torch.tensor([[math.nan]]))),
        (ValueError, "one device", lambda: StandardNormal(1).to("meta").log_prob(torch.ones(1, 1))),
        (TypeError, "generator: expected a torch.Generator", lambda: StandardNormal(1).sample((2,), generator=0)),
        (TypeError, "sample_shape: expected a tuple", lambda: StandardNormal(1).sample(5)),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()
