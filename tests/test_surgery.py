"""Mutual information: the sampled value, the integrated one, and cases known in closed form."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from vaebook import DiagGaussianMixture
from vaebook.surgery import mutual_information, mutual_information_quadrature


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scipy_information(loc, scale, weight):
    """I = h(q_agg) - sum of w h(N_n), by scipy's adaptive quadrature of the entropy: another formula altogether."""

    def minus_q_log_q(z):
        q = sum(w * scipy.stats.norm.pdf(z, m, s) for w, m, s in zip(weight, loc, scale, strict=True))
        return -q * np.log(q)

    entropy, _ = scipy.integrate.quad(minus_q_log_q, -15, 15, limit=500, epsabs=1e-12, points=sorted(loc))
    return entropy - sum(w * (0.5 * np.log(2 * np.pi * np.e) + np.log(s)) for w, s in zip(weight, scale, strict=True))


@pytest.mark.parametrize("weight", [[0.25] * 4, [0.5, 0.3, 0.15, 0.05]])
def test_quadrature_against_scipy(weight):
    loc, scale = [-3.0, -0.5, 0.2, 2.5], [0.3, 1.0, 0.2, 0.7]
    columns = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (loc, scale))
    q = DiagGaussianMixture(*columns, torch.tensor(weight, dtype=torch.float64).log())
    assert mutual_information_quadrature(q) == pytest.approx(scipy_information(loc, scale, weight), abs=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_sampling_against_quadrature(seed):
    g = seeded(seed)
    q = DiagGaussianMixture(
        2 * torch.randn(6, 1, generator=g).double(),
        torch.rand(6, 1, generator=g).double() + 0.2,
        torch.randn(6, generator=g).double().log_softmax(0),
    )
    sampled, exact = mutual_information(q, 20_000, generator=g), mutual_information_quadrature(q)
    assert abs(sampled.value - exact) < 4.5 * sampled.stderr < 0.1
    assert sampled.num_samples == 20_000


def test_equal_components_tell_nothing_and_far_ones_everything():
    same = DiagGaussianMixture(torch.zeros(5, 3), torch.ones(5, 3))
    assert mutual_information(same, 100, generator=seeded()).value == pytest.approx(0, abs=1e-6)
    far = DiagGaussianMixture(100 * torch.arange(5.0)[:, None], torch.ones(5, 1))
    assert mutual_information(far, 100, generator=seeded()).value == pytest.approx(math.log(5), abs=1e-6)
    assert mutual_information_quadrature(far) == pytest.approx(math.log(5), abs=1e-6)


@pytest.mark.parametrize("function", [mutual_information, mutual_information_quadrature])
def test_bad_input(function):
    with pytest.raises(TypeError, match="q_agg: expected a DiagGaussianMixture, got Tensor"):
        function(torch.zeros(3))
    good = DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises((TypeError, ValueError), match=r"\w+: expected an int"):
        function(good, **{("num_samples" if function is mutual_information else "max_nodes"): 1})
    with pytest.raises(TypeError, match=r"\w+: expected an int, got float"):
        function(good, **{("num_samples" if function is mutual_information else "max_nodes"): 1e4})


def test_quadrature_needs_one_dimension():
    with pytest.raises(ValueError, match="q_agg: expected dimension 1, got 2; use mutual_information"):
        mutual_information_quadrature(DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2)))


def test_quadrature_refines_until_narrow_components_are_seen():
    q = DiagGaussianMixture(torch.tensor([[0.0], [0.3]]).double(), torch.tensor([[1.0], [math.exp(-6)]]).double())
    fine = mutual_information_quadrature(q, tolerance=1e-12)
    assert mutual_information_quadrature(q) == pytest.approx(fine, abs=1e-9)
    assert mutual_information(q, 200_000, generator=seeded()).value == pytest.approx(fine, abs=5e-3)
    with pytest.raises(RuntimeError, match="max_nodes: expected enough for tolerance"):
        mutual_information_quadrature(q, max_nodes=3_000)


def test_draws_are_not_rounded_to_half_precision():
    loc, scale = torch.full((2, 1), 8.0), torch.tensor([[0.01], [0.04]])
    exact = mutual_information_quadrature(DiagGaussianMixture(loc.bfloat16(), scale.bfloat16()))
    found = mutual_information(DiagGaussianMixture(loc.bfloat16(), scale.bfloat16()), 100_000, generator=seeded())
    assert abs(found.value - exact) < 5 * found.stderr
