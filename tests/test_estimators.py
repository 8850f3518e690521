"""Estimates and their standard errors; densities and information from a minibatch, against enumeration."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from vaebook import DiagGaussianMixture, _checks
from vaebook.estimators import (
    Estimate,
    estimate,
    minibatch_decomposition,
    minibatch_information,
    minibatch_log_prob,
    minibatch_weights,
    pairwise_log_prob,
)
from vaebook.information import mutual_information_quadrature


def test_against_scipy():
    draws = torch.randn(50, generator=torch.Generator().manual_seed(0))
    got = estimate(draws)
    assert got == Estimate(
        pytest.approx(float(draws.double().mean())), pytest.approx(scipy.stats.sem(draws.double())), 50
    )


def test_the_standard_error_covers_as_often_as_it_should():
    draws = torch.rand(4_000, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covered = np.mean([abs(e.value - 0.5) < 2 * e.stderr for e in map(estimate, draws)])
    assert abs(covered - 0.9545) < 4 * (0.9545 * 0.0455 / 4_000) ** 0.5


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "draws: expected a torch.Tensor, got list"),
        (torch.zeros(3, dtype=torch.int), TypeError, "draws: expected a floating-point tensor"),
        (torch.zeros(2, 2), ValueError, r"draws: expected shape \(S,\)"),
        (torch.zeros(1), ValueError, "draws: expected at least 2 draws for a standard error, got 1$"),
        (torch.tensor([0.0, torch.inf]), ValueError, r"draws: expected finite values, got inf at index \(1,\)"),
    ],
)
def test_bad_input(draws, error, message):
    with pytest.raises(error, match=message):
        estimate(draws)


def enumerated(loc, scale, size, weights):
    """Expected information of Gaussian codes in one dimension, over all ordered subsets: trapezoid rule, numpy only."""
    u = np.linspace(-9, 9, 1201)
    mass = scipy.stats.norm.pdf(u) * (u[1] - u[0])
    total, batches = 0.0, list(itertools.permutations(range(len(loc)), size))
    for batch in batches:
        for i, own in enumerate(batch):
            z = loc[own] + scale[own] * u
            others = [weights[i, j] * scipy.stats.norm.pdf(z, loc[n], scale[n]) for j, n in enumerate(batch)]
            total += mass @ (scipy.stats.norm.logpdf(z, loc[own], scale[own]) - np.log(sum(others)))
    return total / size / len(batches)


LOC, SCALE = np.array([-1.0, 0.2, 0.9, 2.5]), np.array([0.6, 1.1, 0.4, 0.8])
SCHEMES = ["in-batch", "leave-one-out", "weighted", "stratified", "equal"]


def batch_of_codes(batches=(), size=5, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batches, size, dim, generator=g, dtype=torch.float64)
    scale = 0.3 + torch.rand(*batches, size, dim, generator=g, dtype=torch.float64)
    return loc + scale * torch.randn(*batches, size, dim, generator=g, dtype=torch.float64), loc, scale


def test_weights_written_out():
    quarter, third = (torch.full((4, 4), value, dtype=torch.float64) for value in (1 / 4, 1 / 3))
    expected = {
        "in-batch": quarter,
        "leave-one-out": third.clone().fill_diagonal_(0),
        "weighted": quarter / 10,
        "equal": (third * 0.9).fill_diagonal_(0.1),
        "stratified": torch.tensor(
            [
                [3 / 30, 7 / 30, 10 / 30, 10 / 30],
                [10 / 30, 3 / 30, 7 / 30, 10 / 30],
                [10 / 30, 10 / 30, 3 / 30, 7 / 30],
                [7 / 30, 10 / 30, 10 / 30, 3 / 30],
            ],
            dtype=torch.float64,
        ),
    }
    for scheme, weights in expected.items():
        got = minibatch_weights(scheme, 4, 10)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, weights, atol=1e-15, rtol=0)


@pytest.mark.parametrize("scheme", ["in-batch", "leave-one-out", "stratified", "equal"])
@pytest.mark.parametrize(("size", "num"), [(2, 2), (2, 9), (6, 6), (5, 40)])
def test_rows_sum_to_one(scheme, size, num):
    torch.testing.assert_close(minibatch_weights(scheme, size, num).sum(1), torch.ones(size, dtype=torch.float64))


def test_smallest_batches():
    assert minibatch_weights("in-batch", 1).tolist() == [[1.0]]
    assert minibatch_weights("weighted", 1, 1).tolist() == [[1.0]]
    assert minibatch_weights("weighted", 4, 2)[0, 0] == 1 / 8  # independent draws: a batch larger than the data
    assert (
        minibatch_weights("stratified", 2, 2).tolist() == minibatch_weights("equal", 2, 2).tolist() == [[0.5] * 2] * 2
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("in-the-batch", 4), ValueError, "^scheme: expected one of in-batch, .*, got 'in-the-batch'$"),
        (("in-batch", 0), ValueError, "batch_size: expected an int at least 1, got 0"),
        (("weighted", 0, 3), ValueError, "batch_size: expected an int at least 1, got 0"),
        (("leave-one-out", 1), ValueError, "batch_size: expected an int at least 2, got 1"),
        (("stratified", 1, 5), ValueError, "batch_size: expected an int at least 2, got 1"),
        (("equal", 1, 5), ValueError, "batch_size: expected an int at least 2, got 1"),
        (("in-batch", 4.0), TypeError, "batch_size: expected an int, got float"),
        (("weighted", 4), TypeError, "num_data: expected an int, got NoneType"),
        (("weighted", 4, 0), ValueError, "num_data: expected an int at least 1, got 0"),
        (("stratified", 4, 3), ValueError, "num_data: expected an int at least 4, got 3"),
        (("equal", 4, 3), ValueError, "num_data: expected an int at least 4, got 3"),
    ],
)
def test_bad_weights(arguments, error, message):
    with pytest.raises(error, match=message):
        minibatch_weights(*arguments)


def test_pairwise_against_scipy():
    z, loc, scale = batch_of_codes((2,))
    got = pairwise_log_prob(z, loc, scale)
    assert got.shape == (2, 3, 5, 5)
    for batch, d, i, j in [(0, 0, 1, 4), (1, 2, 4, 1), (1, 1, 3, 3)]:
        expected = scipy.stats.norm.logpdf(z[batch, i, d], loc[batch, j, d], scale[batch, j, d])
        assert float(got[batch, d, i, j]) == pytest.approx(expected, abs=1e-12)


def test_pairwise_bad_input():
    z, loc, scale = batch_of_codes()
    for position, name in enumerate(("z", "loc", "scale")):
        arguments = [z, loc, scale]
        arguments[position] = z.tolist()
        with pytest.raises(TypeError, match=f"^{name}: expected a torch.Tensor"):
            pairwise_log_prob(*arguments)
        arguments[position] = torch.full_like(z, torch.nan)
        with pytest.raises(ValueError, match=f"^{name}: expected finite values"):
            pairwise_log_prob(*arguments)
    with pytest.raises(ValueError, match=r"z: expected shape \(..., B, D\), got \(5,\)"):
        pairwise_log_prob(z[:, 0], loc, scale)
    with pytest.raises(ValueError, match=r"loc: expected shape \(5, 3\), got \(4, 3\)"):
        pairwise_log_prob(z, loc[:4], scale)
    with pytest.raises(ValueError, match="scale: expected positive values, got min -1"):
        pairwise_log_prob(z, loc, -torch.ones_like(z))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_log_prob_against_a_loop(scheme):
    log_q = pairwise_log_prob(*batch_of_codes((2,))).sum(-3)
    weights = minibatch_weights(scheme, 5, 30)
    got = minibatch_log_prob(log_q, weights)
    assert got.shape == (2, 5)
    for b, i in itertools.product(range(2), range(5)):
        expected = math.log(sum(float(weights[i, j]) * math.exp(float(log_q[b, i, j])) for j in range(5)))
        assert float(got[b, i]) == pytest.approx(expected, abs=1e-12)
    information = (log_q[1].diagonal() - got[1]).mean()
    assert float(minibatch_information(log_q, weights)[1]) == pytest.approx(float(information), abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_expectation_over_all_batches_against_numpy(scheme, size):
    """The claims enumerate discrete codes; here Gaussian ones, by quadrature on both sides."""
    loc, scale = torch.from_numpy(LOC)[:, None], torch.from_numpy(SCALE)[:, None]
    u = torch.linspace(-8, 8, 401, dtype=torch.float64)
    mass = torch.exp(-0.5 * u**2) / math.sqrt(2 * math.pi) * (u[1] - u[0])
    batches = torch.tensor(list(itertools.permutations(range(4), size)))
    m, s = (t[batches].expand(401, -1, -1, -1) for t in (loc, scale))
    log_q = pairwise_log_prob(m + s * u[:, None, None, None], m, s).sum(-3)
    weights = minibatch_weights(scheme, size, 4)
    got = float(mass @ minibatch_information(log_q, weights).mean(1))
    assert got == pytest.approx(enumerated(LOC, SCALE, size, weights.numpy()), abs=1e-9)
    exact = mutual_information_quadrature(DiagGaussianMixture(loc, scale))
    if size == 4 and scheme in ("in-batch", "equal"):
        assert got == pytest.approx(exact, abs=1e-9)
    elif scheme == "in-batch":
        assert got < exact - 0.01
    else:
        assert got > exact + 0.001


def test_results_keep_the_dtype_and_are_computed_in_float64():
    log_q = pairwise_log_prob(*batch_of_codes()).sum(-3)
    weights = minibatch_weights("equal", 5, 30)
    for function in (minibatch_log_prob, minibatch_information):
        rough = function(log_q.float(), weights.float())
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough.double(), function(log_q, weights), atol=1e-5, rtol=1e-5)
    far = torch.tensor([[0.0, -2000.0], [-2000.0, 0.0]])  # densities that underflow
    assert minibatch_log_prob(far, minibatch_weights("leave-one-out", 2)).tolist() == [-2000.0, -2000.0]
    assert minibatch_information(far - 3000, minibatch_weights("in-batch", 2)).item() == pytest.approx(math.log(2))


def test_gradient_is_the_softmax_and_skips_weights_of_zero():
    log_q = pairwise_log_prob(*batch_of_codes()).sum(-3).requires_grad_()
    weights = minibatch_weights("leave-one-out", 5)
    (gradient,) = torch.autograd.grad(minibatch_log_prob(log_q, weights).sum(), log_q)
    masked = log_q.detach().masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(gradient, masked.softmax(1))


@pytest.mark.parametrize("function", [minibatch_log_prob, minibatch_information])
def test_bad_matrices(function):
    good, weights = torch.zeros(3, 3), minibatch_weights("in-batch", 3)
    cases = [
        ([[0.0]], weights, TypeError, "log_q: expected a torch.Tensor, got list"),
        (good.int(), weights, TypeError, "log_q: expected a floating-point tensor"),
        (good[:2], weights, ValueError, r"log_q: expected shape \(..., B, B\), got \(2, 3\)"),
        (good - torch.inf, weights, ValueError, "log_q: expected finite values"),
        (good, weights[:2], ValueError, r"weights: expected shape \(3, 3\), got \(2, 3\)"),
        (good, weights - 1, ValueError, "weights: expected finite values, none negative, got -0.66"),
        (good, weights * torch.nan, ValueError, "weights: expected finite values"),
        (good, weights * torch.inf, ValueError, "weights: expected finite values, none negative, got inf"),
        (good, weights.to("meta"), ValueError, "weights: expected all arguments on one device"),
        (good, weights * torch.tensor([[1.0], [0], [1]]), ValueError, "weights: expected a positive weight in every"),
        (good, weights.tolist(), TypeError, "weights: expected a torch.Tensor, got list"),
    ]
    for log_q, w, error, message in cases:
        with pytest.raises(error, match=message):
            function(log_q, w)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decomposition_against_its_parts(scheme):
    z, loc, scale = batch_of_codes((2,))
    log_q, log_prior = pairwise_log_prob(z, loc, scale), torch.distributions.Normal(0.5, 2.0).log_prob(z.mT)
    weights = minibatch_weights(scheme, 5, 30)
    parts = minibatch_decomposition(log_q, log_prior, weights)
    assert all(part.shape == (2,) and part.dtype == torch.float64 for part in parts)
    torch.testing.assert_close(parts.information, minibatch_information(log_q.sum(-3), weights))
    each = sum(minibatch_information(log_q[:, d], weights) for d in range(3))  # information of one coordinate at a time
    torch.testing.assert_close(parts.total_correlation, each - parts.information)
    rate = (torch.distributions.Normal(loc, scale).log_prob(z).sum(-1) - log_prior.sum(-2)).mean(-1)
    torch.testing.assert_close(parts.information + parts.total_correlation + parts.dimensionwise_kl, rate)
    rough = minibatch_decomposition(log_q.float(), log_prior.float(), weights)
    assert all(part.dtype == torch.float32 for part in rough)


def test_decomposition_bad_input():
    log_q, log_prior, weights = torch.zeros(2, 3, 3), torch.zeros(2, 3), minibatch_weights("in-batch", 3)
    with pytest.raises(ValueError, match=r"log_q: expected shape \(..., D, B, B\), got \(3, 3\)"):
        minibatch_decomposition(log_q[0], log_prior, weights)
    with pytest.raises(ValueError, match=r"log_q: expected shape \(..., B, B\), got \(3, 2\)"):
        minibatch_decomposition(log_q[..., :2], log_prior, weights)
    with pytest.raises(ValueError, match=r"log_prior: expected shape \(2, 3\), got \(3, 2\)"):
        minibatch_decomposition(log_q, log_prior.mT, weights)
    with pytest.raises(TypeError, match="log_prior: expected a torch"):
        minibatch_decomposition(log_q, 0.0, weights)
    with pytest.raises(ValueError, match="log_prior: expected finite values"):
        minibatch_decomposition(log_q, log_prior - torch.inf, weights)
    with pytest.raises(ValueError, match=r"weights: expected shape \(3, 3\)"):
        minibatch_decomposition(log_q, log_prior, weights[:2])


def test_decomposition_is_computed_in_float64():
    far = torch.tensor([[-3000.0, -4000.0], [-4000.0, -3000.0]]).expand(2, 2, 2)
    parts = minibatch_decomposition(far, torch.full((2, 2), -3000.0), minibatch_weights("in-batch", 2))
    assert [part.item() for part in parts] == pytest.approx([math.log(2), math.log(2), -2 * math.log(2)], rel=1e-6)


def test_two_draws_are_enough():
    assert estimate(torch.tensor([1.0, 3.0])) == (2.0, 1.0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-23, 1e-7, 1.0, 1e4])
def test_log_densities_in_low_precision_are_right_or_an_error(dtype, scale):
    spread = torch.full((2, 1), scale, dtype=torch.float64).to(dtype)
    if not bool((spread > 0).all()) or not bool(spread.isfinite().all()):
        return  # no number of this dtype
    z, loc = torch.tensor([[0.5], [2.0]]).to(dtype), torch.tensor([[0.5], [2.0]]).to(dtype)
    gap = (z.double()[:, 0, None] - loc.double()[:, 0]) / spread.double()[0, 0]
    want = -0.5 * gap**2 - spread.double()[0, 0].log() - 0.5 * math.log(2 * math.pi)
    least = torch.promote_types(dtype, torch.float32)
    if float(want.min()) < torch.finfo(least).min:
        with pytest.raises(ValueError, match=r"^z: expected log-densities that are finite, got -inf at index"):
            pairwise_log_prob(z, loc, spread)
        z, want = loc[[0, 0]], want[[0, 0]][:, [0, 0]]
        loc = z
    got = pairwise_log_prob(z, loc, spread)
    assert got.dtype == least
    torch.testing.assert_close(got[0], want.to(least), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_are_at_least_single_precision(dtype):
    log_q, weights = torch.zeros(3, 4, 4).to(dtype), minibatch_weights("in-batch", 4)
    parts = minibatch_decomposition(log_q, torch.zeros(3, 4).to(dtype), weights)
    for result in (minibatch_log_prob(log_q, weights), minibatch_information(log_q, weights), *parts):
        assert result.dtype == torch.float32


def test_units_of_z_shift_log_densities_and_change_no_information():
    g = torch.Generator().manual_seed(0)
    z, loc = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    scale = torch.rand(6, 3, generator=g, dtype=torch.float64) + 0.2
    weights = minibatch_weights("equal", 6, 20)
    want = pairwise_log_prob(z, loc, scale)
    for a, b in ((1e-200, 0.0), (1e-5, 0.0), (3.0, 50.0), (1e150, 0.0)):
        got = pairwise_log_prob(a * z + b, a * loc + b, a * scale)
        torch.testing.assert_close(got + math.log(a), want, rtol=1e-9, atol=1e-9)
        info = minibatch_information(got.sum(-3), weights)
        torch.testing.assert_close(info, minibatch_information(want.sum(-3), weights), rtol=1e-9, atol=1e-9)


def test_all_is_computed_in_double_precision_whatever_came():
    g = torch.Generator().manual_seed(0)
    draws, log_q = torch.randn(999, generator=g) + 1e4, torch.randn(64, 5, 5, generator=g) * 10
    log_prior, weights = torch.randn(64, 5, generator=g), torch.rand(5, 5, generator=g)
    log_prior[::2] += 1e5
    log_prior[1::2] -= 1e5
    assert estimate(draws) == estimate(draws.double())
    one, other = (minibatch_log_prob(log_q.double(), w) for w in (weights, weights.double()))
    assert torch.equal(one, other)
    double = minibatch_decomposition(log_q.double(), log_prior.double(), weights)
    for found, want in zip(minibatch_decomposition(log_q, log_prior, weights), double, strict=True):
        assert torch.equal(found, want.float())


def test_a_datum_may_have_no_weight_but_every_code_has_some():
    weights = torch.tensor([[0.5, 0.0], [0.5, 0.0]])
    assert bool(minibatch_log_prob(torch.zeros(2, 2), weights).isfinite().all())
    with pytest.raises(ValueError, match=r"^weights: expected a positive weight in every row, got 0 at index \(1,\)"):
        minibatch_log_prob(torch.zeros(2, 2), weights.mT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_is_refused_whose_square_does_not_fit_into_memory(monkeypatch, scheme):
    monkeypatch.setattr(_checks, "room", lambda: 100)
    assert minibatch_weights(scheme, 10, 10**6).shape == (10, 10)
    with pytest.raises(ValueError, match=r"^batch_size: expected a size that fits into memory, got 11$"):
        minibatch_weights(scheme, 11, 10**6)


@pytest.mark.parametrize("moved", [1, 2])
def test_arguments_on_two_devices_name_the_one_that_is_elsewhere(moved):
    z, loc, scale = batch_of_codes()
    log_q, log_prior, weights = pairwise_log_prob(z, loc, scale), z.mT, minibatch_weights("in-batch", 5)
    for function, arguments, names in (
        (pairwise_log_prob, [z, loc, scale], ("z", "loc", "scale")),
        (minibatch_decomposition, [log_q, log_prior, weights], ("log_q", "log_prior", "weights")),
    ):
        arguments[moved] = arguments[moved].to("meta")
        with pytest.raises(ValueError, match=f"^{names[moved]}: expected all arguments on one device, cpu, got meta"):
            function(*arguments)


def test_a_shape_that_is_refused_is_told_whole():
    with pytest.raises(ValueError, match=r"^log_q: expected shape \(\.\.\., B, B\), got \(2, 7, 3, 4\)$"):
        minibatch_log_prob(torch.zeros(2, 7, 3, 4), minibatch_weights("in-batch", 3))


@pytest.mark.parametrize("scheme", ["leave-one-out", "equal"])
def test_derivatives_go_through_every_argument_and_both_terms(scheme):
    arguments = tuple(x.requires_grad_() for x in batch_of_codes((2,), size=3, dim=2))
    weights, log_prior = minibatch_weights(scheme, 3, 9), torch.zeros(2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(pairwise_log_prob, arguments)
    log_q = pairwise_log_prob(*arguments).detach().requires_grad_()
    for function in (minibatch_log_prob, minibatch_information):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, weights), (log_q,))
    assert torch.autograd.gradcheck(lambda x, y: minibatch_decomposition(x, y, weights), (log_q, log_prior))
