"""Bounds and the closed-form MMD against torch's pairwise divergences, against integrals, and by hand."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaebook import DiagGaussianMixture, certificates
from vaebook.aggregate import merge_duplicates
from vaebook.certificates import gaussian_cap, mismatch_bound, mmd_squared, mutual_information_bounds
from vaebook.information import mutual_information, mutual_information_quadrature


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_mixture(num=7, dim=3, seed=0):
    g = seeded(seed)
    loc = torch.randn(num, dim, generator=g).double()
    scale = (0.5 * torch.randn(num, dim, generator=g)).double().exp()
    return DiagGaussianMixture(loc, scale, torch.randn(num, generator=g).double().log_softmax(0))


def slow_bounds(q):
    """Pair by pair: KL from torch, the Bhattacharyya coefficient from the densities' product, integrated."""
    weight, pairs = q.log_weight.exp(), range(q.num_components)
    near, overlap = torch.zeros(len(pairs), len(pairs)).double(), torch.ones(len(pairs), len(pairs)).double()
    u = torch.linspace(-40, 40, 8_001, dtype=torch.float64)
    for i, j in product(pairs, pairs):
        p, r = Normal(q.loc[i], q.scale[i]), Normal(q.loc[j], q.scale[j])
        near[i, j] = (-kl_divergence(p, r).sum()).exp()
        root = 0.5 * (p.log_prob(u[:, None]) + r.log_prob(u[:, None]))
        overlap[i, j] = torch.trapezoid(root.exp(), u, dim=0).prod()
    return float(-weight @ (overlap @ weight).log()), float(-weight @ (near @ weight).log())


@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_those_of_every_pair(seed):
    q = random_mixture(5, 3, seed)
    bounds = mutual_information_bounds(q)
    assert (bounds.lower, bounds.pairwise_upper) == pytest.approx(slow_bounds(q), abs=1e-10)
    assert bounds.gaussian_upper == gaussian_cap(q)
    assert bounds.upper == min(bounds.pairwise_upper, bounds.gaussian_upper)
    exact = mutual_information(q, 20_000, generator=seeded(seed))
    assert bounds.lower - 4 * exact.stderr < exact.value < bounds.upper + 4 * exact.stderr


def test_either_upper_bound_can_be_the_smaller():
    blurred = mutual_information_bounds(DiagGaussianMixture(torch.linspace(-1, 1, 9)[:, None], torch.ones(9, 1)))
    assert blurred.upper == blurred.gaussian_upper < blurred.pairwise_upper
    apart = mutual_information_bounds(DiagGaussianMixture(100 * torch.arange(9.0)[:, None], torch.ones(9, 1)))
    assert apart.upper == apart.pairwise_upper < apart.gaussian_upper
    assert apart.lower == pytest.approx(apart.upper) == pytest.approx(math.log(9))


def test_blocks_of_rows_change_nothing(monkeypatch):
    q = random_mixture(50, 2)
    whole, discrepancy = mutual_information_bounds(q), mmd_squared(q, 0.7)
    monkeypatch.setattr(certificates, "BLOCK", 160)  # three rows at a time, two in the last block
    assert [len(rows) for rows in certificates._row_blocks(q.loc)] == [3] * 16 + [2]
    assert mutual_information_bounds(q) == pytest.approx(whole, abs=1e-13)
    assert mmd_squared(q, 0.7) == pytest.approx(discrepancy, abs=1e-15)
    monkeypatch.setattr(certificates, "BLOCK", 1)  # one row is the least
    assert mutual_information_bounds(q) == pytest.approx(whole, abs=1e-13)


def test_duplicates_count_once_and_bound_the_information_by_their_entropy():
    loc = torch.tensor([[0.0], [50.0], [50.0], [99.0]])
    q = DiagGaussianMixture(loc, torch.ones(4, 1))
    merged, _ = merge_duplicates(q)
    assert mutual_information_bounds(q) == pytest.approx(mutual_information_bounds(merged), abs=1e-6)
    assert mutual_information_bounds(q).upper == pytest.approx(1.5 * math.log(2), abs=1e-6)  # weights ¼, ½, ¼


def test_components_of_weight_zero_are_ignored():
    q, dead = random_mixture(4, 2), torch.full((1,), -torch.inf).double()
    far = DiagGaussianMixture(
        torch.cat([q.loc, torch.full((1, 2), 1e200, dtype=torch.float64)]),
        torch.cat([q.scale, torch.full((1, 2), 1e-3).double()]),
        torch.cat([q.log_weight, dead]),
    )
    assert mutual_information_bounds(far) == pytest.approx(mutual_information_bounds(q), abs=1e-12)
    assert mmd_squared(far, 1.0) == pytest.approx(mmd_squared(q, 1.0), abs=1e-14)


def test_one_component_tells_nothing():
    one = DiagGaussianMixture(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.2, 5.0]]))
    assert mutual_information_bounds(one) == pytest.approx((0, 0, 0, 0), abs=1e-12)


def test_extreme_scales_stay_finite():
    q = DiagGaussianMixture(torch.zeros(2, 1).double(), torch.tensor([[1e-100], [1.0]], dtype=torch.float64))
    bounds = mutual_information_bounds(q)
    assert (bounds.lower, bounds.upper) == pytest.approx((math.log(2), math.log(2)))


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_cap_is_the_rate_under_the_moment_matched_gaussian(seed):
    q = random_mixture(6, 3, seed)
    components = MultivariateNormal(q.loc, scale_tril=torch.diag_embed(q.scale))
    each = kl_divergence(components, MultivariateNormal(q.mean, q.covariance))
    assert gaussian_cap(q) == pytest.approx(float(q.log_weight.exp() @ each), abs=1e-12)


def test_gaussian_cap_is_sharp_for_many_codes_of_a_gaussian():
    loc = Normal(0.0, 1.0).icdf((torch.arange(400).double() + 0.5) / 400)[:, None]
    q = DiagGaussianMixture(loc, torch.full_like(loc, 0.5))
    assert gaussian_cap(q) == pytest.approx(mutual_information_quadrature(q), abs=3e-3)


def test_mismatch_bound():
    assert mismatch_bound(10.0, 1000) == pytest.approx(10 - math.log(1000))
    assert mismatch_bound(10, 1) == 10.0
    assert mismatch_bound(6.9, 1000) == 0.0


def integrated_mmd(q, bandwidth):
    """The double integral over the difference of the two densities, in one dimension."""
    z = torch.linspace(-12, 12, 2_401, dtype=torch.float64)
    difference = q.log_prob(z[:, None]).exp() - Normal(0.0, 1.0).log_prob(z).exp()
    kernel = (-0.5 * (z[:, None] - z).square() / bandwidth**2).exp()
    return float(difference @ kernel @ difference) * float(z[1] - z[0]) ** 2


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
def test_mmd_against_its_double_integral(bandwidth):
    q = random_mixture(5, 1, seed=2)
    assert mmd_squared(q, bandwidth) == pytest.approx(integrated_mmd(q, bandwidth), abs=1e-12)


def test_mmd_in_several_dimensions_is_a_product_of_kernels():
    q, total = random_mixture(2, 3, seed=1), 0.0
    sides = [(q.loc[0], q.scale[0] ** 2, q.log_weight[0].exp()), (q.loc[1], q.scale[1] ** 2, q.log_weight[1].exp())]
    sides.append((torch.zeros(3).double(), torch.ones(3).double(), -1.0))
    for (a, u, v), (b, s, w) in product(sides, sides):  # E k is a Gaussian density at 0, times its normaliser
        density = Normal(a - b, (u + s + 0.49).sqrt()).log_prob(torch.zeros(3)) + 0.5 * math.log(2 * math.pi * 0.49)
        total += float(v * w * density.sum().exp())
    assert mmd_squared(q, 0.7) == pytest.approx(total, abs=1e-14)


def test_mmd_of_the_prior_itself_is_zero_and_never_negative():
    for num, bandwidth in product((1, 3, 7, 11, 49), (0.3, 0.9, 2.7)):
        assert 0 <= mmd_squared(DiagGaussianMixture(torch.zeros(num, 2), torch.ones(num, 2)), bandwidth) < 1e-14


def test_pairs_are_never_all_held_at_once():
    largest = []
    original = certificates._pairwise

    def watched(loc, scale, *others):
        largest.append(len(loc) * len(others[0]))
        return original(loc, scale, *others)

    q = DiagGaussianMixture(torch.randn(3_000, 1, generator=seeded()), torch.ones(3_000, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_pairwise", watched)
        mutual_information_bounds(q)
    assert max(largest) <= certificates.BLOCK < 3_000**2


def test_no_gradients_are_left_behind():
    q = DiagGaussianMixture(torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1, requires_grad=True))
    assert mutual_information_bounds(q).upper == gaussian_cap(q) == mmd_squared(q, 1.0) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mutual_information_bounds(torch.ones(2)), TypeError, "q_agg: expected a DiagGaussianMixture, got T"),
        (lambda: gaussian_cap(None), TypeError, "q_agg: expected a DiagGaussianMixture, got NoneType"),
        (lambda: mmd_squared(None, 1.0), TypeError, "q_agg: expected a DiagGaussianMixture, got NoneType"),
        (lambda: mmd_squared(random_mixture(), 0.0), ValueError, "bandwidth: expected a number > 0, got 0"),
        (lambda: mmd_squared(random_mixture(), "1"), TypeError, "bandwidth: expected a number, got str"),
        (lambda: mismatch_bound(-0.1, 5), ValueError, "rate: expected a number >= 0, got -0.1"),
        (lambda: mismatch_bound(math.inf, 5), ValueError, "rate: expected a finite number"),
        (lambda: mismatch_bound("r", 5), TypeError, "rate: expected a number, got str"),
        (lambda: mismatch_bound(1.0, 0), ValueError, "num_data: expected an int at least 1, got 0"),
        (lambda: mismatch_bound(1.0, 5.0), TypeError, "num_data: expected an int, got float"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9, 1e-30, 1e-154, 1e-200, 1e-300])
@pytest.mark.parametrize("loc", [[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], [[2.0, -1.0]] * 3])
def test_bounds_hold_and_are_numbers_down_to_the_smallest_scales(loc, scale):
    loc = torch.tensor(loc, dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.full_like(loc, scale))
    bounds = mutual_information_bounds(q)
    assert all(map(math.isfinite, bounds))
    assert 0 <= bounds.lower + 1e-12 and bounds.lower <= bounds.upper <= bounds.gaussian_upper
    if scale < 1e-2:
        _, counts = merge_duplicates(q)
        share = counts.double() / counts.sum()
        assert (bounds.lower, bounds.upper) == pytest.approx([float(-share @ share.log())] * 2, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1e-5, 0.1])
@pytest.mark.parametrize("dim", [2, 6])
def test_gaussian_cap_of_means_on_a_line_against_many_digits(dim, scale):
    """All variance along one direction: the determinant is that of a matrix of rank one and a small multiple of I."""
    direction = torch.arange(1.0, dim + 1).double()
    loc = torch.linspace(-1, 1, 5).double()[:, None] * direction
    variance = float(direction.square().sum() * torch.linspace(-1, 1, 5).double().square().mean())
    want = 0.5 * math.log1p(variance / scale**2)
    assert gaussian_cap(DiagGaussianMixture(loc, torch.full_like(loc, scale))) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), [(1e-200, 0.0), (1e-9, 0.0), (5.0, 1e3), (1e-4, 1e4), (1e100, 0.0)])
def test_units_of_z_change_no_information(a, b):
    q = random_mixture(9, 3)
    moved = DiagGaussianMixture(a * q.loc + b, a * q.scale, q.log_weight)
    close = pytest.approx(mutual_information_bounds(q), rel=1e-9, abs=1e-12 * max(1, abs(b / a)))
    assert mutual_information_bounds(moved) == close


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160])
def test_mmd_at_extreme_scales_is_a_number(scale):
    q = DiagGaussianMixture(torch.zeros(2, 2).double(), torch.full((2, 2), scale, dtype=torch.float64))
    for bandwidth in (1e-200, 1e-3, 1.0, 1e3, 1e200):
        assert 0 <= mmd_squared(q, bandwidth) <= 2
    # A point against N(0, I) in two dimensions, or what is spread so thin that it meets nothing.
    want = 1 - 2 * 0.25 / 1.25 + 0.25 / 2.25 if scale < 1 else 0.25 / 2.25
    assert mmd_squared(q, 0.5) == pytest.approx(want, rel=1e-12)


def test_further_apart_than_the_largest_number():
    loc = torch.tensor([[0.0], [1e200]], dtype=torch.float64)
    bounds = mutual_information_bounds(DiagGaussianMixture(loc, torch.full_like(loc, 1e-200)))
    assert bounds[:3] == pytest.approx([math.log(2)] * 3) and bounds.gaussian_upper == math.inf


@pytest.mark.parametrize("number", [10**30, -(10**30), 10**400, -(10**400)])
def test_integers_of_many_digits(number):
    with pytest.raises(ValueError, match=r"^num_data: expected an int at .*, got one of (31|401) digits"):
        mismatch_bound(1.0, number)
    if abs(number) > 10**300:
        for call in (lambda: mismatch_bound(number, 10), lambda: mmd_squared(random_mixture(), number)):
            with pytest.raises(ValueError, match=r"^(rate|bandwidth): expected a finite number, got one of 401 digits"):
                call()


def test_no_lower_bound_is_above_an_upper_one_by_rounding():
    """Of equal components all bounds are 0, but for the last digits of three sums."""
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        num, dim = (int(torch.randint(1, most, (), generator=g)) for most in (5, 4))
        scale = (torch.rand(1, dim, generator=g).double() + 0.5).expand(num, dim)
        log_weight = torch.randn(num, generator=g).double().log_softmax(0)
        found = mutual_information_bounds(DiagGaussianMixture(torch.zeros_like(scale), scale, log_weight))
        assert found.lower <= found.upper == min(found.pairwise_upper, found.gaussian_upper)
        assert max(map(abs, found)) < 1e-14


@pytest.mark.parametrize("unit", [-600, -300, 300, 500])
def test_bounds_are_the_same_in_the_smallest_and_the_largest_units(unit):
    g = torch.Generator().manual_seed(0)
    loc, scale = (torch.randn(6, 2, generator=g).double() for _ in range(2))
    one, other = (DiagGaussianMixture(u * loc, u * scale.exp()) for u in (1.0, 2.0**unit))
    torch.testing.assert_close(
        torch.tensor(mutual_information_bounds(other)), torch.tensor(mutual_information_bounds(one)), rtol=1e-12, atol=0
    )


def test_scales_whose_ratio_is_no_number_have_bounds():
    scale = torch.tensor([[1e-200], [1e200]], dtype=torch.float64)
    found = mutual_information_bounds(DiagGaussianMixture(torch.zeros(2, 1).double(), scale))
    assert found.lower == pytest.approx(math.log(2)) == found.pairwise_upper


def test_a_small_rate_certifies_nothing():
    assert mismatch_bound(3.0, 60_000) == 0.0 == mismatch_bound(math.log(5), 5)


def test_the_cap_of_equal_components_is_zero_at_the_largest_numbers():
    loc = torch.full((3, 2), 1.7e308, dtype=torch.float64)
    assert gaussian_cap(DiagGaussianMixture(loc, torch.ones_like(loc))) == pytest.approx(0.0, abs=1e-14)


def test_codes_far_from_the_origin_lose_no_digits():
    """Each dimension in its own place, at which sums keep half of the digits and differences all of them."""
    near = torch.tensor([[0.0, 5.0], [1.0, 3.0], [2.0, 4.0], [5.0, 0.0]], dtype=torch.float64)
    far = near + torch.tensor([2.0**40, -(2.0**41)], dtype=torch.float64)
    one, two = (gaussian_cap(DiagGaussianMixture(loc, torch.full_like(loc, 0.5))) for loc in (near, far))
    assert two == pytest.approx(one, rel=1e-12)


def test_the_cap_is_none_below_what_fractions_say_where_one_spread_is_all_but_lost():
    """Codes on a diagonal, up to 2^60 scales apart, and beside it by units in the last place."""
    generator, above = torch.Generator().manual_seed(0), []
    for power in range(44, 61):
        size = 2.0**power
        along, beside = (torch.randint(-3, 4, (6,), generator=generator).double() for _ in range(2))
        loc = torch.stack([size * along, size * along + max(1.0, size * 2**-52) * beside], 1)
        rows = [[Fraction(float(value)) for value in row] for row in loc]
        mean = [sum(column) / 6 for column in zip(*rows, strict=True)]
        (a, b), (_, d) = (
            [(i == j) + sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / 6 for j in range(2)]
            for i in range(2)
        )
        exact = a * d - b * b
        log_det = math.log(exact.numerator) - math.log(exact.denominator)
        above.append(gaussian_cap(DiagGaussianMixture(loc, torch.ones_like(loc))) - 0.5 * log_det)
    assert min(above) > -1e-9 and max(above) < 5
