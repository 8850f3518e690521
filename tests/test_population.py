"""Brackets for the population: against populations of known answers, for coverage, and what is refused."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaebook import population
from vaebook.estimators import estimate
from vaebook.information import mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture
from vaebook.population import FEWEST, bracket_both, bracket_information, bracket_mismatch
from vaebook.priors import StandardNormal

QUICK = {"num_components": (1,), "num_samples": 200}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(seed, num=80, dim=1, shift=0.0, spread=0.8, scale=0.6):
    """Codes of a population whose aggregated posterior is one Gaussian; its mismatch and information."""
    loc = shift + spread * torch.randn(num, dim, generator=seeded(seed), dtype=torch.float64)
    variance = spread**2 + scale**2
    mismatch = 0.5 * dim * (variance + shift**2 - 1 - math.log(variance))
    information = 0.5 * dim * math.log(variance / scale**2)
    return DiagGaussianMixture(loc, torch.full_like(loc, scale)), mismatch, information


def finite(seed, num=80, places=(-1.5, -0.2, 0.6, 1.4), scales=(0.4, 0.7, 0.5, 0.6), share=(0.3, 0.2, 0.4, 0.1)):
    """Draws from a few possible data with codes on a line; mismatch and information by quadrature."""
    places, scales = (torch.tensor(side, dtype=torch.float64)[:, None] for side in (places, scales))
    share = torch.tensor(share, dtype=torch.float64)
    everything = DiagGaussianMixture(places, scales, share.log())
    z = torch.linspace(-10, 10, 8_001, dtype=torch.float64)
    log_q = everything.log_prob(z[:, None])
    mismatch = float(torch.trapezoid(log_q.exp() * (log_q - Normal(0.0, 1.0).log_prob(z)), z))
    drawn = torch.multinomial(share, num, replacement=True, generator=seeded(seed))
    q_agg = DiagGaussianMixture(places[drawn], scales[drawn])
    return q_agg, mismatch, mutual_information_quadrature(everything)


POPULATIONS = {
    "the prior itself": lambda seed: gaussian(seed),
    "shifted": lambda seed: gaussian(seed, shift=0.7),
    "nearly collapsed": lambda seed: gaussian(seed, spread=0.15, scale=0.99),
    "four dimensions": lambda seed: gaussian(seed, dim=4, spread=0.95, scale=0.31),
    "four data": finite,
    "twenty data": lambda seed: gaussian(seed, num=20, shift=0.7),
    "twenty of four": lambda seed: finite(seed, num=20),
    "rare": lambda seed: finite(seed, num=80, places=(0.0, 3.0, -3.0), scales=(0.5, 0.3, 0.3), share=(0.9, 0.05, 0.05)),
    "32 dimensions": lambda seed: gaussian(seed, num=40, dim=32, spread=0.71, scale=0.7),
}


def share_covered(make, trials):
    """How often the bracket of the mismatch, and that of the information, contains the truth."""
    held = torch.zeros(2)
    for seed in trials:
        q_agg, mismatch, information = make(seed)
        one = bracket_mismatch(q_agg, StandardNormal(q_agg.loc.shape[1]), generator=seeded(seed + 10_000), **QUICK)
        two = bracket_information(q_agg, generator=seeded(seed + 20_000), **QUICK)
        held += torch.tensor([one.low <= mismatch <= one.high, two.low <= information <= two.high]).float()
    return (held / len(trials)).tolist()


def test_both_brackets_at_once_are_the_two():
    q_agg, prior, outside = gaussian(0)[0], StandardNormal(1), gaussian(1)[0]
    options = {"densities": (outside,), "num_components": (1, 2), "num_samples": 5_000}
    both = bracket_both(q_agg, prior, (outside,), (1, 2), seeded(3))
    assert both == (
        bracket_mismatch(q_agg, prior, **options, generator=seeded(3)),
        bracket_information(q_agg, **options, generator=seeded(3)),
    )


@pytest.mark.parametrize("name", POPULATIONS)
def test_brackets_contain_the_truth(name):
    """Of 25 brackets at 95 % more than four miss once in 350 times; the ends err on the safe side besides."""
    assert min(share_covered(POPULATIONS[name], range(25))) >= 21 / 25


@pytest.mark.slow
@pytest.mark.parametrize("name", POPULATIONS)
def test_coverage_over_many_trials(name):
    assert min(share_covered(POPULATIONS[name], range(500))) >= 0.95


def test_a_perfect_model_has_no_certified_mismatch_where_plug_in_sees_many_nats():
    q_agg, mismatch, _ = gaussian(0, num=400, dim=16, spread=0.995, scale=0.1)
    interval = bracket_mismatch(q_agg, StandardNormal(16), num_components=(1,), generator=seeded(1))
    assert abs(mismatch) < 1e-3
    assert interval.low == 0 and interval.high_estimate > 10
    assert interval.candidates["leave-one-out"][0] < -10


def test_a_smooth_density_certifies_what_leaving_one_out_cannot():
    q_agg, mismatch, _ = gaussian(0, num=400, dim=12, shift=0.5, spread=0.99, scale=0.1)
    interval = bracket_mismatch(q_agg, StandardNormal(12), num_components=(1,), generator=seeded(1))
    assert interval.candidates["leave-one-out"][0] < 0 < 0.5 * mismatch < interval.low <= mismatch


def test_a_density_of_ones_own_is_a_candidate():
    q_agg, mismatch, _ = gaussian(3, num=300, shift=0.7)
    truth = Independent(Normal(torch.full((1,), 0.7, dtype=torch.float64), 1.0), 1)
    interval = bracket_mismatch(
        q_agg, StandardNormal(1), densities=[truth], num_components=(), num_samples=3_000, generator=seeded(1)
    )
    value, stderr = interval.candidates["densities[0]"]
    assert abs(value - mismatch) < 4 * stderr
    assert set(interval.candidates) == {"leave-one-out", "densities[0]"}


def test_a_mixture_that_cannot_be_fitted_is_no_candidate():
    """Twenty draws a datum in 32 dimensions: clusters of one datum have no covariance of full rank."""
    scale = torch.linspace(0.2, 0.95, 32, dtype=torch.float64)
    for seed in range(3):
        loc = (1 - scale.square()).sqrt() * torch.randn(40, 32, generator=seeded(seed), dtype=torch.float64)
        q_agg = DiagGaussianMixture(loc, scale.expand(40, 32).contiguous())
        interval = bracket_mismatch(q_agg, StandardNormal(32), num_components=(1, 5), generator=seeded(seed))
        assert interval.low == 0 and "mixture of 1" in interval.candidates


def test_a_mixture_has_at_most_half_as_many_components_as_its_data():
    """Ten data in three folds of 4, 4 and 2: without one of the larger folds there are six, enough for three."""
    q_agg, _, _ = gaussian(0, num=10)
    found = bracket_mismatch(
        q_agg, StandardNormal(1), num_components=(3, 4), num_samples=100, generator=seeded(0)
    ).candidates
    assert set(found) == {"leave-one-out", "mixture of 3"}


def test_mixtures_are_scored_on_data_that_they_were_not_fitted_to():
    """Twelve components for sixty narrow codes of the prior: far worse than it on other data, not so on their own."""
    q_agg, mismatch, _ = gaussian(2, num=60, dim=2, spread=1.0, scale=0.02)
    found = bracket_mismatch(
        q_agg, StandardNormal(2), num_components=(12,), num_samples=600, generator=seeded(0)
    ).candidates
    assert mismatch < 1e-3 and found["mixture of 12"][0] < -2


def test_the_upper_limit_is_johnsons_with_what_the_jackknife_shows():
    """Codes that are points, of which one lies 50 units out: of 20 groups of two data, one mean is 625 and none else.

    So the standard error is 625/20, and the skewness of 19 zeros and a number is 18/√19.
    """
    loc = 1e-3 * torch.arange(40.0, dtype=torch.float64)[:, None]
    loc[7] = 50
    q_agg = DiagGaussianMixture(loc, torch.full_like(loc, 1e-9))
    found = bracket_mismatch(q_agg, StandardNormal(1), num_components=(), num_samples=4_000, generator=seeded(1))
    t, skew = stats.t.isf(0.05 / 4, 19), 18 / 19**0.5 / 20**0.5
    assert found.high_stderr == pytest.approx(625 / 20, rel=0.005)
    assert found.high - found.high_estimate == pytest.approx(625 / 20 * (t + skew * (1 + 2 * t**2) / 6), rel=0.005)


def test_choosing_the_best_is_paid_for():
    q_agg, _, _ = gaussian(3, num=300, shift=0.7)
    prior = StandardNormal(1)
    few, many = (
        bracket_mismatch(q_agg, prior, densities=d, num_components=(), num_samples=3_000, generator=seeded(1))
        for d in ([], [prior] * 20)
    )
    assert many.low < few.low and many.low_estimate == few.low_estimate


@pytest.mark.parametrize(("scale", "skewed"), [(10.0, -1), (0.5, 1)])
def test_the_lower_limit_is_johnsons(scale, skewed):
    """Where codes are points, the terms of a density of one's own are known: log c - log p of each datum."""
    loc = torch.randn(240, 1, generator=seeded(6), dtype=torch.float64)
    prior, density = (Independent(Normal(torch.zeros(1).double(), s), 1) for s in (scale, 1.0))
    options = {"num_components": (), "num_samples": 720, "confidence": 0.9, "generator": seeded(1)}
    points = DiagGaussianMixture(loc, torch.full_like(loc, 1e-9))
    interval = bracket_mismatch(points, prior, densities=[density], **options)
    terms = (density.log_prob(loc) - prior.log_prob(loc)).numpy()
    stderr, skew = stats.sem(terms), stats.skew(terms) / 240**0.5
    assert skew * skewed > 0.1
    assert interval.candidates["densities[0]"] == pytest.approx((terms.mean(), stderr), abs=1e-6)
    t = stats.t.isf(0.1 / 4 / 2, 19)  # a quarter of what 0.9 leaves, for the better of two densities; 20 groups
    limit = terms.mean() - stderr * (t + max(0.0, -skew) * (1 + 2 * t**2) / 6)
    assert interval.low == pytest.approx(limit, abs=1e-6) and limit > 0.1


def test_codes_that_are_all_the_prior_have_no_mismatch_and_no_error():
    """Whatever the sizes of the groups that the jackknife leaves out: 25 data make twelve of them, of two and three."""
    for num in (10, 25, 41):
        q_agg = DiagGaussianMixture(torch.zeros(num, 2).double(), torch.ones(num, 2).double())
        interval = bracket_mismatch(q_agg, StandardNormal(2), num_components=(), num_samples=100, generator=seeded(0))
        assert interval[:6] == pytest.approx((0.0,) * 6, abs=1e-12)
        assert interval.candidates["leave-one-out"] == pytest.approx((0.0, 0.0), abs=1e-12)


def test_a_density_that_is_the_prior_certifies_nothing_and_has_no_error():
    found = bracket_mismatch(gaussian(0)[0], StandardNormal(1), densities=(StandardNormal(1),), generator=seeded(0))
    assert found.candidates["densities[0]"] == (0.0, 0.0)
    assert math.isfinite(found.low) and 0 <= found.low <= found.high


def test_ends_agree_with_their_definitions():
    q_agg, _, _ = finite(5, num=60)
    interval = bracket_mismatch(q_agg, StandardNormal(1), num_components=(), num_samples=60_000, generator=seeded(1))
    z, own = q_agg.sample_with_index((60_000,), generator=seeded(2))
    log_p = StandardNormal(1).log_prob(z)
    plug_in = estimate(q_agg.log_prob(z) - log_p)
    left_out = estimate(q_agg.log_prob_leave_one_out(z, own) - log_p)
    assert abs(interval.high_estimate - plug_in.value) < 5 * math.hypot(plug_in.stderr, plug_in.stderr)
    assert abs(interval.candidates["leave-one-out"][0] - left_out.value) < 5 * math.hypot(
        left_out.stderr, left_out.stderr
    )
    information = bracket_information(q_agg, num_components=(), num_samples=60_000, generator=seeded(1))
    assert information.low_estimate == pytest.approx(mutual_information_quadrature(q_agg), abs=0.02)


def test_the_band_closes_as_data_are_added():
    widths = []
    for num in (80, 800, 8_000):
        q_agg, _, _ = gaussian(1, num=num, shift=0.7)
        interval = bracket_mismatch(
            q_agg, StandardNormal(1), num_components=(1,), num_samples=8_000, generator=seeded(1)
        )
        widths.append(interval.high - interval.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize(("a", "b"), [(1e-4, 0.0), (3.0, -7.0)])
def test_equivariance(a, b):
    q_agg, _, _ = gaussian(1, dim=2, shift=0.3)
    moved = DiagGaussianMixture(a * q_agg.loc + b, a * q_agg.scale)
    prior, moved_prior = (Independent(Normal(torch.full((2,), c).double(), s), 1) for c, s in ((0.0, 1.0), (b, a)))
    one = bracket_mismatch(q_agg, prior, generator=seeded(1), **QUICK)
    two = bracket_mismatch(moved, moved_prior, generator=seeded(1), **QUICK)
    assert two[:6] == pytest.approx(one[:6], rel=1e-6, abs=1e-6)
    three, four = (bracket_information(q, generator=seeded(1), **QUICK) for q in (q_agg, moved))
    assert four[:6] == pytest.approx(three[:6], rel=1e-6, abs=1e-6)


def test_a_torch_mixture_is_a_prior():
    parts = Independent(Normal(torch.zeros(2, 1).double(), torch.ones(2, 1).double()), 1)
    prior = MixtureSameFamily(Categorical(torch.ones(2).double()), parts)
    q_agg, _, _ = gaussian(1)
    one, two = (bracket_mismatch(q_agg, p, generator=seeded(1), **QUICK) for p in (prior, StandardNormal(1)))
    assert one[:6] == pytest.approx(two[:6], abs=1e-6)


GOOD = gaussian(0)[0]
ONE = torch.ones(FEWEST - 1, 1)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "^q_agg: expected a DiagGaussianMixture", lambda: bracket_information(3)),
        (
            ValueError,
            "^q_agg: expected at least 10 components",
            lambda: bracket_information(DiagGaussianMixture(ONE, ONE)),
        ),
        (
            ValueError,
            "^q_agg: expected components of equal weight",
            lambda: bracket_information(
                DiagGaussianMixture(GOOD.loc, GOOD.scale, torch.linspace(0, 1, 80).double().log_softmax(0))
            ),
        ),
        (TypeError, "^prior: expected", lambda: bracket_mismatch(GOOD, 3)),
        (ValueError, "^prior: expected dimension 1, got 2", lambda: bracket_mismatch(GOOD, StandardNormal(2))),
        (TypeError, r"^densities\[0\]: expected", lambda: bracket_information(GOOD, densities=[3])),
        (ValueError, r"^num_components\[0\]: expected", lambda: bracket_information(GOOD, num_components=(0,))),
        (ValueError, "^num_samples: ", lambda: bracket_information(GOOD, num_samples=10)),
        (ValueError, "^confidence: ", lambda: bracket_information(GOOD, confidence=1.0)),
        (TypeError, "^generator: ", lambda: bracket_information(GOOD, generator=0)),
    ],
)
def test_bad_input(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_inputs_are_left_alone_and_seeds_repeat():
    q_agg, _, _ = gaussian(0)
    loc, state = q_agg.loc.clone(), torch.get_rng_state()
    one, two = (bracket_information(q_agg, generator=seeded(4), **QUICK) for _ in range(2))
    assert one == two and torch.equal(q_agg.loc, loc) and torch.equal(torch.get_rng_state(), state)


def steps(drawn, **values):
    """Log-densities at the draws that exceed the reference 0 by a constant and a spread."""
    sign = (-1.0) ** torch.arange(len(drawn.z), dtype=torch.float64)
    return {name: value + spread * sign for name, (value, spread) in values.items()}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_candidate_of_the_best_limit_is_chosen_and_what_is_no_number_is_passed_over(sign):
    """The highest score may be the least certain; and a density that overflows is no candidate."""
    drawn = population._Drawn(gaussian(0)[0], 80, seeded(0))
    outside = steps(drawn, steady=(1.0, 0.01), wild=(1.1, 5.0)) | {"huge": torch.full((80,), torch.inf).double()}
    reference = torch.full((80,), -1.4).double()  # at 0 it would have more mass than one
    outside = {name: values + reference for name, values in outside.items()}
    found = population._bracket(drawn, reference, sign, outside, 0.95)
    estimate = found.low_estimate if sign > 0 else found.high_estimate
    assert estimate == pytest.approx(sign * 1.0) and set(found.candidates) == {"leave-one-out", "steady", "wild"}
    assert found.candidates["wild"] == pytest.approx((sign * 1.1, 5.0 / 79**0.5))


def test_codes_of_which_nothing_is_a_number_are_refused():
    drawn = population._Drawn(gaussian(0)[0], 80, seeded(0))
    with pytest.raises(ValueError, match="q_agg: expected finite log-densities at its draws"):
        population._bracket(drawn, torch.full((80,), torch.inf).double(), 1, {}, 0.95)


@pytest.mark.parametrize(("num", "groups"), [(10, 5), (11, 5), (25, 12), (39, 19), (40, 20), (90, 20)])
def test_groups_hold_two_data_or_more(num, groups):
    sizes = population._Drawn(gaussian(0, num=num)[0], 40, seeded(0)).sizes
    assert (
        len(sizes) == groups
        and int(sizes.sum()) == num
        and 2 <= int(sizes.min()) <= int(sizes.max()) <= sizes.min() + 1
    )


def test_of_very_many_components_some_are_fitted_drawn_by_the_generator_alone(monkeypatch):
    monkeypatch.setattr(population, "MOST", 20)
    q_agg, state = gaussian(0)[0], torch.get_rng_state()
    one, two = (population._Drawn(q_agg, 80, seeded(0)).some(torch.arange(40, 80)) for _ in range(2))
    assert (
        one.num_components == 20
        and torch.equal(one.loc, two.loc)
        and bool((one.loc[:, None] == q_agg.loc[40:]).any(1).all())
    )
    assert torch.equal(population._Drawn(q_agg, 80, seeded(0)).some(torch.arange(20)).loc, q_agg.loc[:20])
    assert torch.equal(torch.get_rng_state(), state)


def test_less_confidence_is_a_narrower_bracket_of_either_kind():
    q_agg = gaussian(0)[0]
    for bracket in (
        lambda **o: bracket_mismatch(q_agg, StandardNormal(1), **o),
        lambda **o: bracket_information(q_agg, **o),
    ):
        wide, narrow = (bracket(confidence=c, generator=seeded(1), **QUICK) for c in (0.95, 0.5))
        assert narrow.high < wide.high and (narrow.low, narrow.high_estimate) >= (wide.low, wide.high_estimate)


def test_one_gaussian_is_fitted_with_its_correlations():
    """Codes whose population is N(0, [[1, r], [r, 1]]): its mismatch is that of r alone."""
    r = 0.9
    z = (
        torch.randn(400, 2, generator=seeded(0), dtype=torch.float64)
        @ torch.tensor([[1.0, r], [0.0, (1 - r**2) ** 0.5]]).double()
    )
    found = bracket_mismatch(
        DiagGaussianMixture(z, torch.full_like(z, 0.01)), StandardNormal(2), generator=seeded(1), **QUICK
    )
    assert found.candidates["mixture of 1"][0] == pytest.approx(-0.5 * math.log(1 - r**2), abs=0.15)


class Heavier(StandardNormal):
    """A "density" of mass e^shift, as one is whose constant was forgotten."""

    def __init__(self, dim, shift):
        super().__init__(dim)
        self.shift = shift

    def log_prob(self, z):
        return super().log_prob(z) + self.shift


@pytest.mark.parametrize(
    ("num", "shift", "refused"), [(80, 0.92, True), (80, 30.0, True), (10, 20.0, True), (80, -1.0, False)]
)
def test_a_prior_with_more_mass_than_one_is_refused(num, shift, refused):
    """Its divergence is negative, which the interval, from 0 on, would not show."""
    q_agg = gaussian(0, num=num)[0]
    prior = Heavier(1, shift)
    if not refused:
        assert bracket_mismatch(q_agg, prior, generator=seeded(1), **QUICK).high > 0.9
        return
    with pytest.raises(ValueError, match=r"^prior: expected a normalised density, got a negative KL"):
        bracket_mismatch(q_agg, prior, generator=seeded(1), **QUICK)


@pytest.mark.parametrize("num", [10, 12, 20, 80])
def test_a_prior_that_the_codes_follow_is_not_refused(num):
    """Few data make a standard error uncertain, and the divergence is as near to 0 as it can be."""
    for seed in range(6):
        for q_agg in (gaussian(seed, num=num, spread=0.0, scale=1.0)[0], gaussian(seed, num=num)[0]):
            assert bracket_mismatch(q_agg, StandardNormal(1), generator=seeded(seed), **QUICK).low >= 0
