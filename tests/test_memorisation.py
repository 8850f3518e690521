"""Own, left-out and held-out codes: against closed forms, copies, and what is refused."""

import math

import pytest
import torch
from torch.distributions import Normal

from vaebook.memorisation import _over_data, memorisation
from vaebook.mixture import DiagGaussianMixture


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def line(places, scale=1.0):
    loc = torch.tensor(places, dtype=torch.float64)[:, None]
    return DiagGaussianMixture(loc, torch.full_like(loc, scale))


def test_two_components_against_integrals():
    q, z = line([-1.0, 1.0]), torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    one, two = (Normal(m, 1.0).log_prob(z) for m in (-1.0, 1.0))
    both = torch.logaddexp(one, two) - math.log(2)
    average = lambda values: float(torch.trapezoid(one.exp() * values, z))  # noqa: E731 (the other side is its mirror)
    found = memorisation(q, line([0.5]), num_samples=40_000, generator=seeded(0))
    new = float(torch.trapezoid(Normal(0.5, 1.0).log_prob(z).exp() * both, z))
    exact = (average(both), average(two), new, average((one - math.log(2) - both).exp()), average(both - two))
    for got, wanted in zip(found, exact, strict=True):
        assert abs(got.value - wanted) < 4 * got.stderr
        assert got.stderr < 0.02


def test_weights_count_in_what_can_be_traced():
    """All codes at one place: a draw is traced to its datum with the probability of its weight, squared and summed."""
    weight = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    loc = torch.tensor([[0.0], [1e-9], [2e-9]], dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.ones_like(loc), weight.log())
    found = memorisation(q, num_samples=20_000, generator=seeded(0))
    assert found.traced.value == pytest.approx(float(weight @ weight), abs=0.01)


def test_the_error_over_data_counts_draws_of_one_datum_once():
    """Two data of which the draws tell all: ten times the draws are no better."""
    q = DiagGaussianMixture(torch.tensor([[0.0], [50.0]]).double(), torch.tensor([[1e-3], [1.0]]).double())
    few, many = (memorisation(q, num_samples=num, generator=seeded(0)).own for num in (400, 4_000))
    half = 0.5 * math.log(1e3)  # how far each datum's log-density lies from the mean
    assert [few.stderr, many.stderr] == pytest.approx([half / 2**0.5] * 2, rel=0.1)


def test_standard_errors_are_those_of_the_data():
    """Narrow codes of one population: held out or left out, they differ by what the choice of the data does."""
    far = 0
    for seed in range(20):
        loc = torch.randn(150, 4, generator=seeded(seed), dtype=torch.float64)
        one, two = (DiagGaussianMixture(part, torch.full_like(part, 0.02)) for part in (loc[:100], loc[100:]))
        found = memorisation(one, two, num_samples=500, generator=seeded(seed + 100))
        gap = found.leave_one_out.value - found.held_out.value
        far += abs(gap) > 2.5 * math.hypot(found.leave_one_out.stderr, found.held_out.stderr)
    assert far <= 2


def test_copies_do_not_hide_memorisation():
    once, thrice = line([0.0, 5.0, 10.0], 0.1), line([0.0, 5.0, 10.0] * 3, 0.1)
    one, many = (memorisation(q, generator=seeded(0)) for q in (once, thrice))
    assert many.leave_one_out.value == pytest.approx(one.leave_one_out.value, rel=0.05)
    assert many.traced.value == pytest.approx(1.0)


def test_one_code_for_all_traces_nothing():
    with pytest.raises(ValueError, match="q_agg: expected at least 2 distinct components, got 1"):
        memorisation(line([1.0] * 5))
    same = memorisation(line([0.0, 1e-9, 2e-9, 3e-9]), generator=seeded(0))
    assert same.traced.value == pytest.approx(0.25)
    assert same.own.value == pytest.approx(same.leave_one_out.value)


def test_what_is_refused():
    with pytest.raises(TypeError, match="held_out: expected a DiagGaussianMixture, got int"):
        memorisation(line([0.0, 1.0]), 3)
    with pytest.raises(ValueError, match="held_out: expected dimension 1, got 2"):
        memorisation(line([0.0, 1.0]), DiagGaussianMixture(torch.zeros(2, 2), torch.ones(2, 2)))
    with pytest.raises(ValueError, match="q_agg: expected at least 2 distinct components, got 1"):
        memorisation(DiagGaussianMixture(torch.eye(2), torch.ones(2, 2), torch.tensor([0.0, -torch.inf])))
    with pytest.raises(ValueError, match="num_samples: expected an int at least 2, got 1"):
        memorisation(line([0.0, 1.0]), num_samples=1)


def test_the_generator_is_all_there_is():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two = (memorisation(line([0.0, 1.0]), line([0.5, 2.0]), num_samples=9, generator=seeded(1)) for _ in range(2))
    assert one == two and torch.equal(torch.get_rng_state(), state)


def test_single_precision_is_computed_in_double():
    """Far from the origin, where float32 has no digits left for what leaving out costs."""
    loc = 1e4 + torch.tensor([[0.0], [0.5], [1.5]])
    q = DiagGaussianMixture(loc, torch.full_like(loc, 0.01))
    one, two = (memorisation(part, generator=seeded(0)) for part in (q, q.double()))
    assert one == two


def test_an_error_is_never_smaller_than_that_of_the_draws_alone():
    """Ten draws of each datum that happen to cancel: their sum by datum is zero, their spread is not."""
    index = torch.arange(20) // 10
    values = torch.tensor([-1.0, 1.0]).repeat(10).double()
    found = _over_data(values, index)
    assert found.stderr == pytest.approx(float(values.std()) / 20**0.5) and found.value == 0


def test_held_out_codes_in_half_the_precision_are_drawn_as_those_in_all_of_it():
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(20, 2, generator=generator)
    q, new = (DiagGaussianMixture(part, torch.full_like(part, 0.5)) for part in (loc, loc + 0.1))
    one, two = (memorisation(q, part, generator=torch.Generator().manual_seed(1)) for part in (new, new.double()))
    assert one.held_out == two.held_out
