"""Modes: against closed forms, and against a search on a grid that shares no code with the climb."""

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import torch

from vaebook import DiagGaussianMixture, modes
from vaebook.modes import find_modes


def pair(distance, scale=1.0, dim=1):
    loc = torch.zeros(2, dim).double()
    loc[0, 0], loc[1, 0] = -distance / 2, distance / 2
    return DiagGaussianMixture(loc, torch.full((2, dim), scale).double())


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 1), (1.0, 1), (1.97, 1), (2.03, 2), (6.0, 2)])
def test_threshold_at_two_standard_deviations(ratio, expected, dim):
    assert len(find_modes(pair(0.3 * ratio, 0.3, dim))) == expected


def test_position_solves_the_fixed_point_equation():
    root = scipy.optimize.brentq(lambda t: t - np.tanh(2.25 * t), 0.1, 1)
    np.testing.assert_allclose(sorted(find_modes(pair(3.0))[:, 0].tolist()), [-1.5 * root, 1.5 * root], rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_all_modes_in_one_dimension_with_a_common_scale(seed):
    g = torch.Generator().manual_seed(seed)
    q = DiagGaussianMixture(3 * torch.randn(12, 1, generator=g).double(), torch.full((12, 1), 0.4).double())
    line = np.linspace(-12, 12, 48_001)
    peaks, _ = scipy.signal.find_peaks(q.log_prob(torch.from_numpy(line)[:, None]).numpy())
    np.testing.assert_allclose(sorted(find_modes(q)[:, 0].tolist()), line[peaks], atol=6e-4)


@pytest.mark.parametrize(("far", "log_ratio"), [(6.0, 13.977), (8.0, 27.143), (12.0, 65.709)])
def test_a_mode_to_which_no_mean_leads_in_one_dimension_with_a_common_scale(far, log_ratio):
    """Components far out are so heavy that the middle's own means lie beyond the minima beside its mode."""
    log_weight = torch.tensor([log_ratio, 0.0, 0.0, log_ratio]).double().log_softmax(0)
    loc = torch.tensor([[-far], [-0.3], [0.3], [far]]).double()
    q = DiagGaussianMixture(loc, torch.ones(4, 1).double(), log_weight)
    np.testing.assert_allclose(sorted(find_modes(q)[:, 0].tolist()), [-far, far], atol=1e-3)
    np.testing.assert_allclose(find_modes(q, torch.zeros(1, 1).double()), [[0.0]], atol=1e-9)


def test_more_modes_than_components_need_more_starts():
    loc, variance = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([[1.0, 0.05], [0.05, 1.0]]).double()
    crossing = DiagGaussianMixture(loc, variance.sqrt())
    axis = torch.linspace(-0.5, 1.5, 5).double()
    modes = find_modes(crossing, torch.cartesian_prod(axis, axis))
    assert len(modes) == 3
    assert crossing.log_prob_and_score(modes)[1].abs().max() < 1e-6


def test_a_saddle_is_not_a_mode():
    modes = find_modes(pair(4.0, dim=2), torch.tensor([[0.0, 0.3]]).double())  # the climb ends at the origin
    assert len(modes) == 0


def test_too_few_steps_is_an_error(monkeypatch):
    monkeypatch.setattr(modes, "STEPS", 2)
    with pytest.raises(RuntimeError, match=r"tolerance: expected one that 2 steps reach .*, got 1e-10; raise it"):
        find_modes(pair(2.2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": torch.zeros(2)}, TypeError, "q: expected a DiagGaussianMixture, got Tensor"),
        ({"starts": torch.zeros(3, 2)}, ValueError, r"starts: expected shape \(S, 1\), got \(3, 2\)"),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a number > 0"),
        ({"separation": -1.0}, ValueError, "separation: expected a number > 0"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        find_modes(**{"q": pair(1.0), **arguments})


@pytest.mark.parametrize("offset", [(1e3, 1e3), (1e5, 1e5), (1e5, -1e5)])
def test_modes_far_from_the_origin(offset):
    offset = torch.tensor(offset).double()
    loc = 0.01 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = find_modes(DiagGaussianMixture(loc, torch.full_like(loc, 0.003)))
    far = find_modes(DiagGaussianMixture(loc + offset, torch.full_like(loc, 0.003)))
    torch.testing.assert_close(far - offset, near, atol=1e-9, rtol=0)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5, 0.9])
def test_weights_move_modes(weight):
    """Against a search on a grid, and by their number: a light component is a shoulder of the other."""
    log_weight = torch.tensor([weight, 1 - weight]).double().log()
    q = DiagGaussianMixture(
        torch.tensor([[-1.1], [1.1]]).double(), torch.ones(2, 1).double(), log_weight.log_softmax(0)
    )
    line = np.linspace(-4, 4, 80_001)
    peaks, _ = scipy.signal.find_peaks(
        np.logaddexp(np.log(weight) - (line + 1.1) ** 2 / 2, np.log(1 - weight) - (line - 1.1) ** 2 / 2)
    )
    np.testing.assert_allclose(sorted(find_modes(q)[:, 0].tolist()), line[peaks], atol=2e-4)


@pytest.mark.parametrize(("a", "b"), [(1e-200, 0.0), (1e-6, 0.0), (7.0, 1e4), (1e100, 0.0), (1e150, 1e151)])
def test_units_of_z_move_modes_and_nothing_else(a, b):
    loc = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 0.5], [0.7, 0.7], [1.0, 0.5]], dtype=torch.float64)
    want = find_modes(DiagGaussianMixture(loc, scale))
    starts = a * torch.cat([loc, loc + 0.3]) + b
    for given in (None, starts):
        got = find_modes(DiagGaussianMixture(a * loc + b, a * scale), given)
        assert len(got) == len(want) == 2
        torch.testing.assert_close((got - b) / a, want, rtol=1e-7, atol=1e-7)


def test_each_mode_is_listed_once_in_the_order_of_its_discovery():
    q = pair(6.0)
    starts = torch.tensor([[2.0], [-2.0], [2.5], [-2.5], [3.0]])
    found = find_modes(q, starts)
    assert found.dtype == torch.float64 and found[:, 0].sign().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_every_start_climbs_to_its_end_whichever_way_it_goes(sign):
    q = pair(6.0)
    want = find_modes(q)[:, 0].abs().max()
    for starts in ([[sign * 1.0]], [[sign * 5.0]], [[sign * float(want)], [sign * 1.0]]):
        found = find_modes(q, torch.tensor(starts).double())
        torch.testing.assert_close(found, sign * want.reshape(1, 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_separation_and_tolerance_are_in_units_of_the_smallest_scale(unit):
    loc = torch.tensor([[0.0, 0.0], [9.0, 0.0], [9.0, 7.0]]).double()
    scale = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]).double()
    q = DiagGaussianMixture(unit * loc, unit * scale)
    assert [len(find_modes(q, separation=s)) for s in (1.0, 6.0, 8.5, 20.0)] == [3, 3, 2, 1]  # 7 apart and 9
    close, start = pair(2.5 * unit, unit), torch.tensor([[0.5 * unit]]).double()
    rough, fine = (float(find_modes(close, start, tolerance=t)) / unit for t in (1e-1, 1e-10))
    assert 1e-2 < fine - rough < 0.3


def test_a_mixture_under_training_has_modes():
    loc = torch.tensor([[-3.0], [3.0]]).requires_grad_()
    assert not find_modes(DiagGaussianMixture(loc, torch.ones(2, 1))).requires_grad


def test_as_many_steps_are_taken_as_are_allowed(monkeypatch):
    t, num = 1.5, 0
    while True:  # the same climb, in the test's own words
        num, before, t = num + 1, t, 1.5 * np.tanh(1.5 * t)
        if abs(t - before) < 1e-6:
            break
    monkeypatch.setattr(modes, "STEPS", num)
    assert len(find_modes(pair(3.0), tolerance=1e-6)) == 2
    monkeypatch.setattr(modes, "STEPS", num - 1)
    with pytest.raises(RuntimeError, match=rf"^tolerance: expected one that {num - 1} steps reach"):
        find_modes(pair(3.0), tolerance=1e-6)
