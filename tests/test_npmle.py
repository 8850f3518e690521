"""The best prior for a fixed decoder: closed forms, brute force over the simplex, and solvers that share no code."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.distributions import Normal

from vaebook import npmle
from vaebook import weights as finding
from vaebook.npmle import DiscretePrior, em, fit_npmle, fit_weights, log_gradient

COIN = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_terms(num_data=12, num_atoms=4, seed=0):
    return 2 * torch.randn(num_data, num_atoms, generator=seeded(seed), dtype=torch.float64)


def mean_log_prob(terms, weight):
    return (terms.exp() @ torch.as_tensor(weight, dtype=torch.float64)).log().mean().item()


def gaussian(x, scale=1.0):
    return lambda z: Normal(z[:, 0], scale).log_prob(x[:, None])


def line(limit, count):
    return torch.linspace(-limit, limit, count, dtype=torch.float64)[:, None]


# EM


def test_em_is_bayes_rule_averaged_over_the_data():
    terms, start = random_terms(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    log_weight, trace = em(terms, 1, log_weight=start.log())
    joint = terms.exp().numpy() * start.numpy()
    np.testing.assert_allclose(log_weight.exp(), (joint / joint.sum(1, keepdims=True)).mean(0), rtol=1e-12)
    expected = [mean_log_prob(terms, start), mean_log_prob(terms, log_weight.exp())]
    np.testing.assert_allclose(trace, expected, rtol=1e-12)


def test_em_starts_from_equal_weights_and_climbs():
    terms = random_terms(30, 6)
    log_weight, trace = em(terms, 50)
    assert trace[0].item() == pytest.approx(mean_log_prob(terms, [1 / 6] * 6), abs=1e-12)
    assert len(trace) == 51 and bool((trace.diff() >= -1e-14).all()) and trace[-1] > trace[0] + 0.01
    assert log_weight.logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    assert torch.equal(em(terms, 0)[0], torch.full((6,), -math.log(6), dtype=torch.float64))
    again, _ = em(terms, 25, log_weight=em(terms, 25)[0])
    torch.testing.assert_close(again, log_weight, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shift", [0.0, -2000.0, 900.0])
def test_em_counts_where_every_datum_has_its_atom_whatever_the_scale(shift):
    terms = torch.eye(3, dtype=torch.float64)[[0, 0, 0, 1, 1, 2]].log() + shift
    log_weight, trace = em(terms, 1)
    np.testing.assert_allclose(log_weight.exp(), [1 / 2, 1 / 3, 1 / 6], rtol=1e-12)
    entropy = -sum(p * math.log(p) for p in (1 / 2, 1 / 3, 1 / 6))
    assert trace[-1].item() == pytest.approx(shift - entropy, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_em_gains_at_least_the_divergence_of_its_step(seed):
    terms = random_terms(20, 5, seed)
    log_weight, trace = em(terms, 1)
    divergence = (log_weight.exp() * (log_weight + math.log(5))).sum()
    assert trace[1] - trace[0] >= divergence > 1e-3


def test_em_cannot_bring_back_a_weight_of_zero():
    start = torch.tensor([0.0, 1.0]).log()
    log_weight, _ = em(COIN.log(), 100, log_weight=start)
    assert log_weight.exp().tolist() == [0, pytest.approx(1, abs=1e-12)]
    assert log_gradient(COIN.log(), COIN[:, 1].log()).max().exp().item() == pytest.approx(0.5 * (0.9 / 0.2 + 0.1 / 0.8))


# The gradient


def test_gradient_is_a_directional_derivative():
    terms, weight = random_terms(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    places = random_terms(12, 5, seed=1)
    found = log_gradient(places, (terms + weight.log()).logsumexp(1)).exp() - 1
    for m in range(5):
        mixture, atom = terms.exp() @ weight, places[:, m].exp()
        eps = 1e-6
        up, down = (((1 - e) * mixture + e * atom).log().mean() for e in (eps, -eps))
        assert found[m].item() == pytest.approx(((up - down) / (2 * eps)).item(), rel=1e-6)


def test_gradient_averages_to_one_under_the_prior_and_has_derivatives():
    terms, weight = random_terms(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    log_prob = (terms + weight.log()).logsumexp(1)
    assert (weight @ log_gradient(terms, log_prob).exp()).item() == pytest.approx(1, abs=1e-12)
    assert torch.autograd.gradcheck(lambda t: log_gradient(t, log_prob), terms.clone().requires_grad_())


# Weights


@pytest.mark.parametrize(
    ("counts", "expected"), [((1, 1), 3 / 7), ((19, 1), 1.0), ((1, 9), 0.0), ((4, 1), 6 / 7), ((1, 4), 0.0)]
)
def test_weights_of_two_coins(counts, expected):
    """0.9 w + 0.2 (1 - w) is the share of heads where that can be, and else w is at an end."""
    terms = COIN.log().repeat_interleave(torch.tensor(counts), 0)
    np.testing.assert_allclose(fit_weights(terms).exp(), [expected, 1 - expected], atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_weights_against_all_of_a_simplex(seed):
    terms, steps = random_terms(8, 3, seed), 60
    best = max(
        mean_log_prob(terms, np.array([i, j, steps - i - j]) / steps)
        for i, j in itertools.product(range(steps + 1), repeat=2)
        if i + j <= steps
    )
    found = mean_log_prob(terms, fit_weights(terms).exp())
    assert best - 1e-9 <= found <= best + 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_weights_against_scipy(seed):
    terms = random_terms(40, 9, seed)
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    oracle = scipy.optimize.minimize(
        lambda w: -np.log(terms.exp().numpy() @ w).mean(),
        np.full(9, 1 / 9),
        bounds=[(0, 1)] * 9,
        constraints=simplex,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weight = fit_weights(terms, tolerance=1e-12).exp()
    np.testing.assert_allclose(weight, oracle.x, atol=1e-5)
    assert mean_log_prob(terms, weight) >= -oracle.fun - 1e-12
    assert weight.sum().item() == pytest.approx(1, abs=1e-12)
    assert log_gradient(terms, (terms.exp() @ weight).log()).max() <= 1e-11


def test_weights_do_not_change_with_the_scale_of_a_datum_and_survive_extremes():
    terms = random_terms(10, 5)
    shifted = terms + torch.linspace(-3000, 3000, 10).double()[:, None]
    torch.testing.assert_close(fit_weights(shifted).exp(), fit_weights(terms).exp(), atol=1e-6, rtol=0)
    identity = torch.eye(4, dtype=torch.float64)[[0, 1, 1, 2]].log()
    np.testing.assert_allclose(fit_weights(identity).exp(), [0.25, 0.5, 0.25, 0], atol=1e-8)
    assert fit_weights(torch.zeros(3, 1).double()).tolist() == [0.0]


@pytest.mark.parametrize("seed", range(10))
def test_weights_are_found_where_whole_steps_overshoot(seed):
    """Likelihoods of very different data: for most of these a Newton step in full lowers the likelihood."""
    terms = 50 * random_terms(60, 20, seed)
    likelihood = (terms - terms.amax(1, keepdim=True)).exp().numpy()
    weight, before, shorter, certificate = np.full(20, 1 / 20), -np.inf, 0, np.inf
    while certificate > 1e-9:
        value, ratio = np.log(likelihood @ weight).mean(), likelihood / (likelihood @ weight)[:, None]
        assert value > before - 1e-12
        step, certificate = finding._newton_target(ratio) - weight, math.log(ratio.mean(0).max())
        moved = finding._line_search(likelihood, weight, step, ratio.mean(0))
        shorter += not np.allclose(moved, weight + step)
        weight, before = moved, value
    assert shorter
    assert mean_log_prob(terms, fit_weights(terms).exp()) == pytest.approx(mean_log_prob(terms, weight), abs=1e-8)


def test_weights_that_need_more_steps_say_so(monkeypatch):
    monkeypatch.setattr(finding, "STEPS", 0)
    with pytest.raises(RuntimeError, match=r"tolerance: expected one that 0 steps reach, got 1e-09; raise it"):
        fit_weights(COIN.log())


# Places and weights


@pytest.mark.parametrize("half", [0.5, 0.99, 1.1, 1.5, 3.0])
def test_two_data_have_one_atom_up_to_two_scales_and_two_beyond(half):
    """N(±a | z, 1): one atom in the middle for a <= 1; beyond, atoms at ±b with b = a tanh(ab)."""
    x = torch.tensor([-half, half], dtype=torch.float64)
    prior = fit_npmle(gaussian(x), line(4, 41), tolerance=1e-9)
    expected = [0.0]
    if half > 1:
        b = scipy.optimize.brentq(lambda b: b - half * math.tanh(half * b), 0.1, half + 1)
        expected = [-b, b]
    np.testing.assert_allclose(prior.atoms[:, 0].sort().values, expected, atol=2e-4)
    np.testing.assert_allclose(prior.log_weight.exp(), [1 / len(expected)] * len(expected), atol=1e-4)


def test_duplicates_weigh_and_far_data_have_an_atom_each():
    x = torch.tensor([-20.0, 0.0, 0.0, 0.0, 30.0], dtype=torch.float64)
    prior = fit_npmle(gaussian(x), line(35, 71), tolerance=1e-9)
    order = prior.atoms[:, 0].argsort()
    np.testing.assert_allclose(prior.atoms[order, 0], [-20, 0, 30], atol=1e-5)
    np.testing.assert_allclose(prior.log_weight.exp()[order], [0.2, 0.6, 0.2], atol=1e-7)
    share = torch.tensor([0.2, 0.6, 0.6, 0.6, 0.2], dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob, share.log() - 0.5 * math.log(2 * math.pi), atol=1e-7, rtol=0)


def test_fit_against_weights_on_a_fine_grid():
    """A convex problem on a grid of 401 places, by another route, comes as near as the grid allows, from below."""
    x = torch.linspace(-4, 4, 12, dtype=torch.float64) + 0.3 * torch.randn(12, generator=seeded(), dtype=torch.float64)
    prior = fit_npmle(gaussian(x, 0.4), line(5, 61), tolerance=1e-8)
    fine = gaussian(x, 0.4)(line(5, 401))
    on_grid = (fine + fit_weights(fine)).logsumexp(1).mean()
    assert 0 <= prior.log_prob.mean() - on_grid <= 1e-3
    torch.testing.assert_close((gaussian(x, 0.4)(prior.atoms) + prior.log_weight).logsumexp(1), prior.log_prob)
    assert isinstance(prior, DiscretePrior) and 0 <= prior.certificate <= 1e-8
    assert log_gradient(fine, prior.log_prob).max() <= 1e-8
    assert 1 < int((prior.log_weight.exp() > 1e-6).sum()) <= 12  # lighter ones come and go with rounding


def test_fit_in_two_dimensions_finds_the_corners():
    corners = torch.tensor([[-5.0, -5.0], [-5.0, 5.0], [5.0, 5.0]], dtype=torch.float64)
    side = torch.linspace(-6, 6, 14, dtype=torch.float64)  # the corners are not on the grid
    prior = fit_npmle(lambda z: -(corners[:, None] - z).square().sum(-1), torch.cartesian_prod(side, side))
    assert len(prior.atoms) == 3
    assert torch.cdist(corners, prior.atoms).amin(1).max() < 1e-4
    np.testing.assert_allclose(prior.log_weight.exp(), [1 / 3] * 3, atol=1e-6)


def test_atoms_stay_in_the_box_of_the_candidates():
    x = torch.tensor([-5.0, 5.0], dtype=torch.float64)
    prior = fit_npmle(gaussian(x), line(2, 21))
    assert prior.atoms[:, 0].sort().values.tolist() == pytest.approx([-2, 2], abs=1e-12)


def test_separation_merges(monkeypatch):
    monkeypatch.setattr(npmle, "ROUNDS", 3)
    x = torch.tensor([-1.5, 1.5], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"tolerance: expected one that 3 rounds reach, got 0.0001 and certificate"):
        fit_npmle(gaussian(x), line(4, 41), separation=10.0)
    assert len(fit_npmle(gaussian(x), line(4, 41), separation=10.0, tolerance=5.0).atoms) == 1


def test_merging_takes_the_weighted_mean():
    x = torch.tensor([-3.0, -3.0, -3.0, 3.0], dtype=torch.float64)
    prior = fit_npmle(gaussian(x), line(4, 41), separation=10.0, tolerance=20.0)
    assert prior.atoms.tolist() == [[pytest.approx(-1.5, abs=1e-3)]]
    gradient = log_gradient(gaussian(x)(line(4, 4001)), prior.log_prob).max()
    assert prior.certificate == pytest.approx(float(gradient), abs=1e-5)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4])
def test_a_certificate_bounds_how_far_every_datum_is_from_its_best(tolerance):
    """|log p_best - log p| <= sqrt(2 d) + d with d = N (e^c - 1): chapter continuous/npmle, part 4."""
    x = torch.linspace(-4, 4, 12, dtype=torch.float64)
    best = fit_npmle(gaussian(x, 0.4), line(5, 61), tolerance=1e-9)
    rough = fit_npmle(gaussian(x, 0.4), line(5, 61), tolerance=tolerance)
    d = 12 * math.expm1(rough.certificate + 1e-9)
    assert (best.log_prob - rough.log_prob).abs().max() <= math.sqrt(2 * d) + d
    assert 0 <= best.log_prob.mean() - rough.log_prob.mean() + 1e-12 <= rough.certificate + 1e-9


# Bad input

GOOD = torch.zeros(3, 2)


@pytest.mark.parametrize("function", [lambda t: em(t, 1), fit_weights, lambda t: log_gradient(t, torch.zeros(3))])
@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ([[0.0]], TypeError, "log_likelihood: expected a torch.Tensor, got list"),
        (torch.zeros(3, 2, dtype=torch.long), TypeError, "floating-point"),
        (torch.zeros(3), ValueError, r"log_likelihood: expected shape \(N, K\), got \(3,\)"),
        (torch.zeros(0, 2), ValueError, "at least one element"),
        (torch.tensor([[0.0, math.nan]] * 3), ValueError, r"below infinity, got nan at index \(0, 1\)"),
        (torch.tensor([[0.0, math.inf]] * 3), ValueError, "below infinity, got inf"),
    ],
)
def test_bad_matrices(function, terms, error, message):
    with pytest.raises(error, match=message):
        function(terms)


@pytest.mark.parametrize("function", [lambda t: em(t, 1), fit_weights])
def test_a_datum_that_no_atom_allows(function):
    terms = torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]])
    with pytest.raises(ValueError, match=r"each datum possible under some atom, got -inf at index \(1,\)"):
        function(terms)


def test_a_datum_that_no_atom_of_positive_weight_allows():
    terms = torch.tensor([[0.0, 0.0], [-math.inf, 0.0]])
    with pytest.raises(ValueError, match=r"possible under atoms of positive weight, got -inf at index \(1,\)"):
        em(terms, 1, log_weight=torch.tensor([1.0, 0.0]).log())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: em(GOOD, 1.0), TypeError, "num_steps: expected an int, got float"),
        (lambda: em(GOOD, -1), ValueError, "num_steps: expected an int at least 0, got -1"),
        (lambda: em(GOOD, 1, log_weight=torch.zeros(3)), ValueError, r"log_weight: expected shape \(2,\), got \(3,\)"),
        (lambda: em(GOOD, 1, log_weight=torch.zeros(2)), ValueError, "log-sum to 0 within 1e-05, got 0.693147"),
        (lambda: em(GOOD, 1, log_weight=torch.full((2,), math.nan)), ValueError, "log-sum to 0 within 1e-05, got nan"),
        (lambda: log_gradient(GOOD, torch.zeros(2)), ValueError, r"log_prob: expected shape \(3,\), got \(2,\)"),
        (lambda: log_gradient(GOOD, torch.full((3,), -math.inf)), ValueError, "log_prob: expected finite values"),
        (lambda: fit_weights(GOOD, tolerance=0), ValueError, "tolerance: expected a number > 0, got 0"),
        (lambda: fit_npmle(3, line(1, 3)), TypeError, "log_likelihood: expected a callable, got int"),
        (lambda: fit_npmle(lambda z: z, [1.0]), TypeError, "candidates: expected a torch.Tensor, got list"),
        (lambda: fit_npmle(lambda z: z, torch.zeros(3)), ValueError, r"candidates: expected shape \(M, D\)"),
        (lambda: fit_npmle(lambda z: z, line(1, 3), tolerance=-1), ValueError, "tolerance: expected a number > 0"),
        (lambda: fit_npmle(lambda z: z, line(1, 3), separation=-1), ValueError, "separation: expected a number >= 0"),
        (lambda: fit_npmle(lambda z: z, line(1, 3)), ValueError, r"log_likelihood's value: expected shape \(N, 3\)"),
        (lambda: fit_npmle(lambda z: z.mT.float(), line(1, 3)), TypeError, "expected dtype torch.float64, got torch.f"),
        (lambda: fit_npmle(lambda z: z.mT.log(), line(1, 3)), ValueError, "log-densities below infinity, got nan"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_rounding_refuses_no_step():
    """Near the maximum a step gains less than the rounding error of the likelihood; seed 142 was stuck there."""
    for seed in range(200):
        terms = random_terms(seed=seed)
        log_prob = (terms + fit_weights(terms, tolerance=1e-12)).logsumexp(1)
        assert log_gradient(terms, log_prob).max() < 1e-11, seed


def test_no_step_is_taken_where_none_is_needed_and_none_beyond_the_limit(monkeypatch):
    monkeypatch.setattr(finding, "STEPS", 0)
    equal = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double().log()
    torch.testing.assert_close(fit_weights(equal).exp(), torch.full((2,), 0.5).double())
    with pytest.raises(RuntimeError, match=r"^tolerance: "):
        fit_weights(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log(), tolerance=1e-2)
    monkeypatch.setattr(finding, "STEPS", 1)
    one_step = fit_weights(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log(), tolerance=1e-2)
    torch.testing.assert_close(one_step.exp(), torch.tensor([3, 4]).double() / 7, rtol=0.05, atol=0)


def test_weights_are_normalised_exactly():
    terms = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).double().log()
    log_weight = torch.tensor([0.5, 0.5]).double().log() + 5e-6
    assert abs(float(em(terms, 0, log_weight=log_weight)[0].logsumexp(0))) < 1e-12


@pytest.mark.parametrize(
    ("atoms", "weight", "separation", "count"),
    [
        ([0.0, 0.9, 1.8], [0.1, 0.8, 0.1], 1.0, 1),  # the heaviest takes both; the lightest would take one
        ([0.0, 5.0, 0.1], [0.5, 0.3, 0.2], 1.0, 2),  # what was merged once is not met again
        ([1.0, 1.0, 2.0], [0.5, 0.3, 0.2], 0.0, 2),  # equal atoms are at distance 0
    ],
)
def test_which_atoms_meet(atoms, weight, separation, count):
    merged = npmle._merge(torch.tensor(atoms)[:, None].double(), torch.tensor(weight).double(), separation)
    assert len(merged) == count


@pytest.mark.parametrize(
    "call",
    [
        lambda: em(torch.tensor([[torch.nan, 0.0]]), 1),
        lambda: em(torch.tensor([[torch.inf, 0.0]]), 1),
        lambda: em(torch.tensor([[-torch.inf, -torch.inf]]), 1),
        lambda: em(torch.tensor([[0.0, -torch.inf]]), 1, log_weight=torch.tensor([-torch.inf, 0.0])),
    ],
)
def test_the_matrix_is_named(call):
    with pytest.raises(ValueError, match=r"^log_likelihood: expected"):
        call()


def test_a_step_is_halved_until_the_likelihood_rises_by_a_third_of_its_slope():
    likelihood, weight = np.array([[0.9, 0.2], [0.1, 0.8]]), np.array([0.2, 0.8])
    step = np.array([0.45, -0.45])  # ends a little higher than it starts, on the other side of the maximum
    gradient = (likelihood / (likelihood @ weight)[:, None]).mean(0)
    np.testing.assert_allclose(finding._line_search(likelihood, weight, step, gradient), [0.425, 0.575], rtol=1e-12)
    np.testing.assert_allclose(finding._line_search(likelihood, weight, step / 2, gradient), [0.425, 0.575], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_is_computed_in_double_precision_and_needs_no_gradient(dtype):
    likelihood = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log().to(dtype)
    start = torch.tensor([0.25, 0.75]).log().to(dtype)
    for log_weight in (None, start):
        found = em(likelihood, 3, log_weight=log_weight)
        want = em(likelihood.double(), 3, log_weight=None if log_weight is None else log_weight.double())
        assert [part.dtype for part in found] == [torch.float64] * 2
        torch.testing.assert_close(found, want, rtol=0, atol=1e-15)
    assert torch.equal(fit_weights(likelihood.requires_grad_()), fit_weights(likelihood.detach().double()))


def test_an_atom_that_was_merged_has_no_part_in_the_next_mean():
    atoms, weight = torch.tensor([[0.0], [0.9], [1.8]]).double(), torch.tensor([0.5, 0.2, 0.3]).double()
    merged = npmle._merge(atoms, weight, 1.0)
    torch.testing.assert_close(merged, torch.tensor([[0.18 / 0.7], [1.8]]).double())


def test_every_peak_is_climbed_to_its_top():
    x, atoms = torch.tensor([-3.0, 2.5]).double(), torch.tensor([[-1.0], [1.0]]).double()
    log_likelihood, grid = gaussian(x), line(4, 12)
    log_prob = (log_likelihood(atoms) - math.log(2)).logsumexp(1)
    peaks, height = npmle._peaks(log_likelihood, grid, log_likelihood(grid), atoms, log_prob)
    fine = log_gradient(log_likelihood(line(4, 80_001)), log_prob)
    for side, place, top in zip((slice(0, 40_000), slice(40_000, None)), peaks[:, 0], height, strict=True):
        assert float(top) == pytest.approx(float(fine[side].max()), abs=1e-9)
        assert float(place) == pytest.approx(float(line(4, 80_001)[side][fine[side].argmax()]), abs=1e-3)


@pytest.mark.parametrize("x", [-1.9, -0.3, 0.0, 0.7, 1.3])
def test_no_certificate_is_negative(x):
    assert fit_npmle(gaussian(torch.tensor([x, x]).double()), line(2, 21)).certificate >= 0


def test_derivatives_of_the_gradient_reach_the_prior():
    terms = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    log_prob = terms.logsumexp(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda log_prob: log_gradient(terms, log_prob), log_prob)


def test_a_climb_goes_on_where_the_slope_is_small():
    top, curvature = torch.tensor([1.3, -0.7]).double(), torch.tensor([1e-6, 3e-7]).double()
    box = torch.tensor([[-2.0, -2.0], [2.0, 2.0]]).double()
    found = npmle._climb(lambda z: -(curvature * (z - top) ** 2).sum(), torch.zeros(1, 2).double(), box)
    torch.testing.assert_close(found, top[None], rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_found_roughly_before_atoms_move_and_well_afterwards(dtype, monkeypatch):
    """A hundredth of the tolerance afterwards; and all of it in double precision, whatever the candidates are."""
    asked, original = [], npmle.fit_weights
    monkeypatch.setattr(
        npmle,
        "fit_weights",
        lambda terms, *, tolerance: asked.append(tolerance) or original(terms, tolerance=tolerance),
    )
    found = fit_npmle(gaussian(torch.tensor([-2.0, 2.0]).double()), line(3, 25).to(dtype), tolerance=1e-3)
    assert asked == [1e-3, 1e-5] * (len(asked) // 2) and asked
    assert {part.dtype for part in found[:3]} == {torch.float64}


@pytest.mark.parametrize(
    ("heights", "climbed"), [((-0.009, -0.011, 0.1), [0, 2]), ((-3.0, -0.011, -2.0), [1]), ((-9.0, -9.0, 0.5), [2])]
)
def test_a_climb_begins_near_every_atom_where_there_is_nearly_something_to_gain(heights, climbed, monkeypatch):
    """Above -0.01 nats; where none is, at the highest of all."""
    places, seen = torch.tensor([[0.0], [10.0], [20.0]]).double(), []
    monkeypatch.setattr(npmle, "_climb", lambda objective, start, candidates: seen.append(start) or start)
    table, atoms = torch.tensor([heights]).double(), places + 0.1
    peaks, height = npmle._peaks(lambda z: -z.mT, places, table, atoms, torch.zeros(1).double())
    assert torch.equal(seen[0], places[climbed]) and torch.equal(peaks, places[climbed])
    assert torch.equal(height, -places[climbed, 0])
