"""The parts of the KL term: the sampled values, the integrated ones, and cases known in closed form."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaebook import DiagGaussianMixture, information
from vaebook.certificates import mismatch_bound
from vaebook.estimators import estimate
from vaebook.information import (
    active_units,
    decompose_kl,
    kl_per_dimension,
    mutual_information,
    mutual_information_quadrature,
)
from vaebook.priors import StandardNormal


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
    with pytest.raises(TypeError, match=r"q_agg: expected a DiagGaussianMixture.*, got Tensor"):
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
        mutual_information_quadrature(q, max_nodes=5_000)
    assert mutual_information_quadrature(q, tolerance=0.5, max_nodes=5_000) == pytest.approx(fine, abs=0.5)


def test_draws_are_not_rounded_to_half_precision():
    loc, scale = torch.full((2, 1), 8.0), torch.tensor([[0.01], [0.04]])
    exact = mutual_information_quadrature(DiagGaussianMixture(loc.bfloat16(), scale.bfloat16()))
    found = mutual_information(DiagGaussianMixture(loc.bfloat16(), scale.bfloat16()), 100_000, generator=seeded())
    assert abs(found.value - exact) < 5 * found.stderr


def codes(num=12, dim=3, seed=0):
    g = seeded(seed)
    loc = torch.randn(num, dim, generator=g).double() @ (torch.eye(dim) + 0.5).double() + 0.4
    scale = (0.3 * torch.randn(num, dim, generator=g) - 0.5).double().exp()
    return DiagGaussianMixture(loc, scale, torch.randn(num, generator=g).double().log_softmax(0))


def close(estimate, exact):
    return abs(estimate.value - exact) < 4.5 * estimate.stderr + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_the_kl_against_integrals(seed):
    """One dimension, where everything can be integrated: the mismatch from its own densities."""
    q = codes(dim=1, seed=seed)
    parts = decompose_kl(q, StandardNormal(1), num_samples=20_000, marginals=True, generator=seeded(seed))
    z = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    log_q, log_p = q.log_prob(z[:, None]), StandardNormal(1).log_prob(z[:, None])
    mismatch = float(torch.trapezoid(log_q.exp() * (log_q - log_p), z))
    information = mutual_information_quadrature(q)
    assert parts.rate == pytest.approx((information + mismatch, 0.0, 0), abs=1e-9)
    assert close(parts.mutual_information, information) and close(parts.marginal_kl, mismatch)
    assert close(parts.dimension_wise_kl, mismatch) and parts.total_correlation.value == pytest.approx(0, abs=1e-12)
    assert parts.marginal_kl.num_samples == parts.mutual_information.num_samples == 20_000
    assert parts.marginal_kl.stderr < 0.02


def test_total_correlation_and_marginals_in_two_dimensions():
    q = codes(dim=2)
    parts = decompose_kl(q, StandardNormal(2), num_samples=40_000, marginals=True, generator=seeded())
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    log_q, single = q.log_prob(z), q.log_prob_marginals(z)
    cell = float(axis[1] - axis[0]) ** 2
    total = float((log_q.exp() * (log_q - single.sum(1))).sum()) * cell
    alone = float((log_q.exp() * (single.sum(1) - StandardNormal(2).log_prob(z))).sum()) * cell
    assert total > 0.1 and alone > 0.1
    assert close(parts.total_correlation, total) and close(parts.dimension_wise_kl, alone)
    both = parts.total_correlation.value + parts.dimension_wise_kl.value
    assert both == pytest.approx(parts.marginal_kl.value, abs=1e-12)


def test_the_total_correlation_is_surer_for_what_is_known_of_the_rate():
    q = codes(dim=5, seed=1)
    parts = decompose_kl(q, StandardNormal(5), num_samples=2_000, marginals=True, generator=seeded())
    z = q.sample((2_000,), generator=seeded())
    plain = estimate(q.log_prob(z) - q.log_prob_marginals(z).sum(-1))
    assert parts.total_correlation.stderr < 0.6 * plain.stderr


def diagonal_priors():
    loc, scale = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.7])
    return [Independent(Normal(loc, scale), 1), DiagGaussianMixture(loc[None], scale[None])]


@pytest.mark.parametrize("prior", diagonal_priors(), ids=["independent", "one component"])
def test_rate_under_a_diagonal_gaussian_is_exact(prior):
    q = codes(dim=2)
    parts = decompose_kl(q, prior, num_samples=20_000, generator=seeded(1))
    each = scipy_gaussian_kl(q.loc.numpy(), q.scale.numpy(), np.array([0.5, -1.0]), np.array([2.0, 0.7]))
    assert parts.rate.value == pytest.approx(float(q.log_weight.exp().numpy() @ each), abs=1e-6)
    assert parts.rate[1:] == (0.0, 0)
    total = parts.mutual_information.value + parts.marginal_kl.value
    assert total == pytest.approx(parts.rate.value, abs=1e-12) and parts.how == "combined"


def scipy_gaussian_kl(loc, scale, prior_loc, prior_scale, axis=1):
    cross = 0.5 * ((loc - prior_loc) ** 2 + scale**2) / prior_scale**2 + np.log(prior_scale) + 0.5 * np.log(2 * np.pi)
    each = cross - scipy.stats.norm(0, scale).entropy()
    return each if axis is None else each.sum(axis)


def test_other_priors_are_sampled_and_split_only_if_they_factorise():
    q = codes(dim=2)
    laplace = Independent(torch.distributions.Laplace(torch.zeros(2).double(), torch.ones(2).double()), 1)
    parts = decompose_kl(q, laplace, marginals=True, generator=seeded())
    assert parts.rate.num_samples == 10_000 and parts.rate.stderr > 0
    total = parts.mutual_information.value + parts.marginal_kl.value
    assert parts.rate.value == pytest.approx(total, abs=1e-12)  # the same draws
    exact = torch.distributions.kl_divergence(Normal(q.loc, q.scale), laplace.base_dist).sum(1)
    assert close(parts.rate, float(q.log_weight.exp() @ exact))
    assert parts.dimension_wise_kl is not None
    correlated = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double() + 0.5)
    for prior in (q, correlated, Independent(correlated, 0)):
        parts = decompose_kl(q, prior, num_samples=100, marginals=True, generator=seeded())
        assert parts.dimension_wise_kl is None and parts.total_correlation.stderr > 0
    own = decompose_kl(q, q, num_samples=100, generator=seeded())
    assert own.marginal_kl.value == pytest.approx(0, abs=1e-12)


def test_decomposition_needs_no_gradient_and_no_float64():
    q = DiagGaussianMixture(torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1))
    assert decompose_kl(q, StandardNormal(1), num_samples=10, generator=seeded()).rate == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (None, StandardNormal(1)),
            TypeError,
            "q_agg: expected a DiagGaussianMixture or a ShardedMixture, got NoneType",
        ),
        ((codes(), None), TypeError, "prior: expected a torch distribution over vectors"),
        ((codes(), StandardNormal(2)), ValueError, "prior: expected dimension 3, got 2"),
        ((codes(), codes(dim=2)), ValueError, "prior: expected dimension 3, got 2"),
        ((codes(), Normal(0.0, 1.0)), ValueError, r"prior's draws: expected shape \(1, D\), got \(1,\)"),
        (
            (codes(), Independent(torch.distributions.Uniform(torch.zeros(3), torch.ones(3), validate_args=False), 1)),
            ValueError,
            r"prior.log_prob\(z\): expected finite values at the draws of q_agg, got -inf",
        ),
    ],
)
def test_bad_decompositions(arguments, error, message):
    with pytest.raises(error, match=message):
        decompose_kl(*arguments, generator=seeded())
    with pytest.raises(ValueError, match="num_samples: expected an int at least 2, got 1"):
        decompose_kl(codes(), StandardNormal(3), num_samples=1)


@pytest.mark.parametrize(
    "function", [mutual_information, lambda q, n, **g: decompose_kl(q, StandardNormal(1), num_samples=n, **g)]
)
def test_draws_come_from_the_generator_alone(function):
    q = DiagGaussianMixture(torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
    state = torch.get_rng_state()
    one, two, other = (function(q, 50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: mutual_information_quadrature(q, tolerance=0), ValueError, "^tolerance: expected a number > 0"),
        (lambda q: mutual_information_quadrature(q, tolerance="1"), TypeError, "^tolerance: "),
        (lambda q: mutual_information_quadrature(q, max_nodes=2), ValueError, "^max_nodes: expected an int at least 3"),
        (lambda q: decompose_kl(q, 3), TypeError, r"^prior: expected a torch distribution .* got int"),
        (lambda q: mutual_information(q, 1), ValueError, "^num_samples: expected an int at least 2"),
    ],
)
def test_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1)))


def test_two_samples_and_equal_scale_are_allowed():
    assert mutual_information(DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1)), 2).num_samples == 2


@pytest.mark.parametrize(
    ("far", "scale"), [(1e14, 1.0), (1e15, 3.0), (1.0, 1e-14), (1.0, 1e-20), (1e160, 1e100), (0.5, 1e-300)]
)
def test_quadrature_where_the_scale_is_lost_in_the_digits_of_the_mean(far, scale):
    """Two components at the same place, two far apart: log 2 and no more, wherever they stand."""
    step = max(scale, far * 2.0**-40)
    for loc, want in (([far, far], 0.0), ([far, far + 1e3 * step], math.log(2)), ([far, -far], math.log(2))):
        mean = torch.tensor(loc, dtype=torch.float64)[:, None]
        q = DiagGaussianMixture(mean, torch.full_like(mean, scale))
        assert mutual_information_quadrature(q) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(1e-200, 0.0), (1e-6, 0.0), (2.0, 2.0**52), (1e100, 0.0)])
def test_units_of_z_change_no_information(a, b):
    loc, scale = torch.tensor([[0.0], [2.0], [3.0]]).double(), torch.tensor([[1.0], [0.5], [2.0]]).double()
    want = mutual_information_quadrature(DiagGaussianMixture(loc, scale))
    assert mutual_information_quadrature(DiagGaussianMixture(a * loc + b, a * scale)) == pytest.approx(want, rel=1e-8)


def two_estimates(q, prior, seed, num_samples=2_000):
    """The mismatch from the same draws, directly and as R - I, with their standard errors."""
    z, n = q.sample_with_index((num_samples,), generator=seeded(seed))
    log_own, log_agg, log_prior = Normal(q.loc[n], q.scale[n]).log_prob(z).sum(1), q.log_prob(z), prior.log_prob(z)
    return estimate(log_agg - log_prior), estimate(log_own - log_agg)


@pytest.mark.parametrize(("dim", "spread", "winner"), [(8, 3.0, 1), (1, 0.866, 0)], ids=["all told", "prior filled"])
def test_the_better_of_two_estimates_has_the_weight(dim, spread, winner):
    loc = spread * torch.randn(1000, dim, generator=seeded(), dtype=torch.float64)
    q, prior = DiagGaussianMixture(loc, torch.full_like(loc, 0.5)), StandardNormal(dim)
    both = two_estimates(q, prior, 3)
    parts = decompose_kl(q, prior, num_samples=2_000, generator=seeded(3))
    least = min(found.stderr for found in both)
    assert least == both[winner].stderr and parts.marginal_kl.stderr < 1.05 * least < 0.2 * both[1 - winner].stderr


def test_between_the_two_the_combination_is_better_than_either_and_its_error_is_right():
    """Many runs: their spread is the standard error that each of them tells, and their mean is the integral."""
    q, prior = codes(num=6, dim=1, seed=4), StandardNormal(1)
    z = torch.linspace(-15, 15, 30_001, dtype=torch.float64)
    log_q = q.log_prob(z[:, None])
    exact = float(torch.trapezoid(log_q.exp() * (log_q - prior.log_prob(z[:, None])), z))
    for num_samples in (20, 400):
        runs = [decompose_kl(q, prior, num_samples=num_samples, generator=seeded(s)).marginal_kl for s in range(600)]
        values, errors = (torch.tensor(v, dtype=torch.float64) for v in zip(*[r[:2] for r in runs], strict=True))
        assert abs(values.mean() - exact) < 4 * values.std() / 600**0.5
        assert values.std() == pytest.approx(float(errors.square().mean().sqrt()), rel=0.15)
    direct, told = two_estimates(q, prior, 0, 400)
    assert values.std() < 0.8 * min(direct.stderr, told.stderr)


def test_many_dimensions_cost_no_accuracy_where_every_code_names_its_datum():
    loc = torch.randn(500, 512, generator=seeded(), dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.full_like(loc, 0.1))
    parts = decompose_kl(q, StandardNormal(512), num_samples=2_000, generator=seeded())
    direct, _ = two_estimates(q, StandardNormal(512), 0)
    assert direct.stderr > 0.1 and parts.marginal_kl.stderr < 1e-12
    assert parts.marginal_kl.value == pytest.approx(parts.rate.value - math.log(500), abs=1e-11)
    assert parts.total_correlation is parts.dimension_wise_kl is None


def test_a_rare_code_far_out_is_not_certain_before_it_is_drawn():
    """The log-ratio to the prior is 0 but for one draw in a hundred thousand; information is bounded."""
    rare = torch.tensor([1 - 1e-5, 1e-5], dtype=torch.float64).log()
    q = DiagGaussianMixture(torch.tensor([[0.0], [2000.0]]).double(), torch.ones(2, 1).double(), rare)
    parts = decompose_kl(q, StandardNormal(1), num_samples=1_000, generator=seeded())
    entropy = -float(rare.exp() @ rare)
    assert parts.rate.value == pytest.approx(20.0) and 20 - entropy <= parts.marginal_kl.value <= 20


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5, 10, 100])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0])
def test_no_estimate_contradicts_what_is_certain(num_samples, seed, spread):
    loc = spread * torch.randn(7, 3, generator=seeded(seed), dtype=torch.float64)
    weight = torch.randn(7, generator=seeded(seed + 1), dtype=torch.float64).log_softmax(0)
    for log_weight in (None, weight):
        q = DiagGaussianMixture(loc, torch.ones_like(loc), log_weight)
        entropy = -float(q.log_weight.exp() @ q.log_weight)
        parts = decompose_kl(q, StandardNormal(3), num_samples=num_samples, generator=seeded(seed))
        assert parts.marginal_kl.value >= mismatch_bound(parts.rate.value, 7)
        assert max(0.0, parts.rate.value - entropy) - 1e-12 <= parts.marginal_kl.value <= parts.rate.value
        assert -1e-12 <= parts.mutual_information.value <= min(entropy + 1e-12, math.log(7))
        assert parts.how in ("combined", "bounded")
        assert mutual_information(q, num_samples, generator=seeded(seed)).value <= min(entropy + 1e-12, math.log(7))


def test_an_estimate_beyond_its_bound_is_cut_and_said_to_be():
    q = DiagGaussianMixture(torch.tensor([[0.01], [-0.01]]).double(), torch.ones(2, 1).double())
    found = {decompose_kl(q, StandardNormal(1), num_samples=10, generator=seeded(s)).how for s in range(20)}
    assert "bounded" in found
    assert decompose_kl(codes(), codes(seed=1), num_samples=10, generator=seeded()).how == "sampled"


def test_torchs_priors_and_those_of_the_package_are_one():
    q, loc, scale = codes(dim=2), torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.7]).double()
    one, two, three = (
        decompose_kl(q, prior, num_samples=50, marginals=True, generator=seeded())
        for prior in (
            Independent(Normal(loc, scale), 1),
            DiagGaussianMixture(loc[None], scale[None]),
            MixtureSameFamily(Categorical(torch.ones(1)), Independent(Normal(loc[None], scale[None]), 1)),
        )
    )
    for other in (two, three):
        for part, same in zip(one[:5], other[:5], strict=True):
            assert part == pytest.approx(same, abs=1e-12)


def test_rates_of_dimensions_sum_to_the_rate():
    q, (prior, _) = codes(dim=2), diagonal_priors()
    each = scipy_gaussian_kl(q.loc.numpy(), q.scale.numpy(), np.array([0.5, -1.0]), np.array([2.0, 0.7]), axis=None)
    torch.testing.assert_close(kl_per_dimension(q, prior), q.log_weight.exp() @ torch.from_numpy(each))
    total = decompose_kl(q, StandardNormal(2), num_samples=2, generator=seeded()).rate.value
    assert float(kl_per_dimension(q).sum()) == pytest.approx(total, abs=1e-12)
    with pytest.raises(ValueError, match=r"^prior: expected one Gaussian with independent dimensions"):
        kl_per_dimension(q, q)
    with pytest.raises(ValueError, match=r"^prior: expected dimension 2, got 3"):
        kl_per_dimension(q, StandardNormal(3))


def test_active_units():
    loc = torch.tensor([[0.2, 1.0, 0.0], [-0.2, 1.0, 0.4], [0.2, 1.0, 0.0]], dtype=torch.float16)
    q = DiagGaussianMixture(loc, torch.ones_like(loc), torch.tensor([0.25, 0.5, 0.25]).half().log())
    assert active_units(q).tolist() == [True, False, True]  # variances 0.04, 0 and 0.04
    assert active_units(q, 0.05).tolist() == [False] * 3
    with pytest.raises(ValueError, match=r"^threshold: expected a number >= 0"):
        active_units(q, -1)
    for function in (active_units, kl_per_dimension):
        with pytest.raises(TypeError, match=r"^q_agg: expected a DiagGaussianMixture or a ShardedMixture, got int"):
            function(3)


@pytest.mark.parametrize(("threshold", "active"), [(0.99, True), (1.0, False), (0.0, True)])
def test_a_unit_is_active_above_the_threshold(threshold, active):
    q = DiagGaussianMixture(torch.tensor([[-1.0, 2.0], [1.0, 2.0]]), torch.ones(2, 2))
    assert active_units(q, threshold).tolist() == [active, False]


def test_all_is_computed_in_double_precision():
    loc = torch.randn(6, 1, generator=torch.Generator().manual_seed(0))
    single = DiagGaussianMixture(loc + 100, 1e-3 + loc.abs(), loc[:, 0].log_softmax(0))
    seed = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    for told in (
        lambda q: mutual_information(q, 50, generator=seed()),
        lambda q: decompose_kl(q, StandardNormal(1).double(), num_samples=50, generator=seed()),
        lambda q: mutual_information_quadrature(q, tolerance=1e-6),
    ):
        assert told(single) == told(single.double())


def test_marginals_are_computed_only_if_they_are_asked_for(monkeypatch):
    q = DiagGaussianMixture(torch.zeros(2, 3), torch.ones(2, 3))
    monkeypatch.setattr(DiagGaussianMixture, "log_prob_marginals", None)
    assert decompose_kl(q, StandardNormal(3), num_samples=4).total_correlation is None


def test_each_half_of_the_draws_takes_its_share_from_the_other():
    control = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    draws = torch.stack([control[::2], 0 * control[::2]], 1).flatten()  # follows it in one half, not in the other
    before = draws.clone()
    found = information._with_control(draws, control)
    torch.testing.assert_close(found[::2], draws[::2], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1::2], -control[1::2], rtol=0, atol=1e-12)
    assert torch.equal(draws, before)


@pytest.mark.parametrize(("slope", "share"), [(-1.0, 0.0), (0.25, 0.25), (3.0, 1.0)])
def test_the_share_of_a_control_lies_between_none_and_all(slope, share):
    control = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    found = information._with_control(slope * control + 5, control + 7)
    torch.testing.assert_close(found, slope * control + 5 - share * (control + 7), rtol=0, atol=1e-12)
    assert torch.equal(information._with_control(control, 0 * control), control)


def test_no_estimate_is_surer_than_its_rounding():
    q = DiagGaussianMixture(torch.full((1, 1), 1e3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    parts = decompose_kl(q, StandardNormal(1).double(), num_samples=10)
    assert parts.rate.value == 5e5 and parts.marginal_kl.stderr >= 2**-52 * 5e5


@pytest.mark.parametrize("far", [1e8, 1e30, 1e60])
@pytest.mark.parametrize("num", [2, 50])
def test_an_outlier_does_not_drown_the_information_in_the_rounding_of_the_rate(far, num):
    """log N nats are told of N codes far from each other, however large the rate; it was 0 with an error of 1e44."""
    loc = 100 * torch.arange(num, dtype=torch.float64)[:, None]
    loc[0] = far
    q = DiagGaussianMixture(loc, torch.ones_like(loc))
    parts = decompose_kl(q, StandardNormal(1).double(), num_samples=1_000, generator=seeded())
    assert parts.mutual_information.value == pytest.approx(math.log(num), abs=1e-6)
    assert parts.mutual_information.stderr < 1e-6
    assert parts.marginal_kl.value == pytest.approx(parts.rate.value - math.log(num), rel=1e-12)
    assert parts.marginal_kl.stderr >= 2**-52 * parts.rate.value


def test_rates_whose_squares_overflow_are_refused():
    far = DiagGaussianMixture(torch.full((2, 1), 1e80, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^q_agg: expected rates below 1e150 nats, got 5e\+159 at index \(0,\)$"):
        decompose_kl(far, StandardNormal(1).double(), num_samples=10)


def test_a_component_without_weight_does_not_lift_the_bound_on_information():
    weight = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
    loc = 100 * torch.arange(3, dtype=torch.float64)[:, None]
    q = DiagGaussianMixture(loc, torch.ones_like(loc), weight.log())
    found = max(mutual_information(q, 10, generator=seeded(seed)).value for seed in range(9))
    assert found == pytest.approx(float(torch.special.entr(weight).sum()), abs=1e-12)


def test_an_estimate_above_its_bound_is_said_to_be_cut_too():
    weight, loc = torch.tensor([0.9, 0.1], dtype=torch.float64), torch.tensor([[-100.0], [100.0]], dtype=torch.float64)
    q, entropy = DiagGaussianMixture(loc, torch.ones_like(loc), weight.log()), float(torch.special.entr(weight).sum())
    found = [decompose_kl(q, StandardNormal(1).double(), num_samples=10, generator=seeded(seed)) for seed in range(9)]
    cut = [parts.how == "bounded" for parts in found]
    assert cut == [parts.mutual_information.value == pytest.approx(entropy, abs=1e-12) for parts in found]
    assert 0 < sum(cut) < len(cut)


def test_of_a_control_that_varies_by_rounding_next_to_nothing_is_subtracted():
    noise = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    draws, control = 2**-52 * noise, 7 + 2**-50 * noise
    for sign in (1, -1):
        assert float((information._with_control(draws, sign * control) - draws).abs().max()) < 0.012


@pytest.mark.parametrize("sign", [1, -1])
def test_a_control_is_rounded_as_its_largest_value_is_whatever_the_sign_of_that(sign):
    """One far out rounds away what all others hold: hardly any of it is subtracted."""
    draws = 2**-40 * torch.tensor([1.0, 1.0, -1.0, -1.0] * 2, dtype=torch.float64)
    control = draws.clone()
    control[0] = sign * 1e6
    assert float((information._with_control(draws, control) - draws)[2::2].abs().max()) < 1e-3 * 2**-40
