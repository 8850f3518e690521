"""`DiagGaussianMixture` against independent oracles: direct sums in extended precision, scipy, torch, enumeration."""

import copy
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.test_kernels import oracle_log_prob, oracle_terms
from vaebook import DiagGaussianMixture, clusters, kernels
from vaebook.gaussians import draw_indices


def make(num=5, dim=3, seed=0, dtype=torch.float64, weighted=True, log_scale=-0.5):
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(num, dim, generator=g, dtype=dtype)
    scale = (log_scale + 0.4 * torch.randn(num, dim, generator=g, dtype=dtype)).exp()
    log_weight = torch.log_softmax(torch.randn(num, generator=g, dtype=dtype), 0) if weighted else None
    return DiagGaussianMixture(loc, scale, log_weight), g


def oracle(q, z):
    return oracle_log_prob(z.reshape(-1, z.shape[-1]), q.loc, q.scale, q.log_weight.double()).reshape(z.shape[:-1])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0, 3)])
def test_shapes_and_values_of_log_prob(shape):
    q, g = make()
    z = torch.randn(*shape, 3, generator=g, dtype=torch.float64)
    assert q.log_prob(z).shape == shape
    np.testing.assert_allclose(q.log_prob(z).numpy(), oracle(q, z), rtol=1e-13, atol=1e-12)


def test_agrees_with_torch_distributions():
    q, g = make()
    theirs = MixtureSameFamily(Categorical(logits=q.log_weight), Independent(Normal(q.loc, q.scale), 1))
    z = torch.randn(100, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), theirs.log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(q.mean, theirs.mean)
    torch.testing.assert_close(q.variance, theirs.variance)


@pytest.mark.parametrize("log_scale", [0.0, -6.0])
@pytest.mark.parametrize("num", [1, 60_000])
def test_accuracy_at_both_ends_of_scale_and_size(num, log_scale):
    q, g = make(num=num, dim=2, log_scale=log_scale)
    z = torch.cat([q.loc[:5], q.sample((5,), generator=g), q.loc[:5] + 40 * q.scale[:5]])
    want = oracle(q, z)
    assert (np.abs(q.log_prob(z).numpy() - want) <= np.maximum(1e-8, 1e-12 * np.abs(want))).all()


def test_tiny_and_zero_weights_count_for_what_they_are():
    log_weight = torch.tensor([0.0, -30.0, -torch.inf], dtype=torch.float64)
    loc, scale = torch.tensor([[0.0], [50.0], [90.0]]).double(), torch.ones(3, 1).double()
    q = DiagGaussianMixture(loc, scale, log_weight)
    alone = Normal(0.0, 1.0).log_prob(torch.tensor(0.0, dtype=torch.float64)).item()
    norm = -np.log1p(np.exp(-30.0))
    assert q.log_prob(loc[1]).item() == pytest.approx(-30 + norm + alone, abs=1e-12)
    assert q.log_prob(loc[2]).item() == pytest.approx(-30 + norm + alone - 40**2 / 2, abs=1e-9)
    assert q.responsibilities(loc)[:, 2].tolist() == [0, 0, 0]
    assert not (q.sample((1000,), generator=torch.Generator().manual_seed(0)) > 20).any()


def test_weights_are_normalised_so_that_density_and_sampler_agree():
    log_weight = torch.tensor([np.log(0.25), np.log(0.75) + 5e-6], dtype=torch.float64)
    q = DiagGaussianMixture(torch.zeros(2, 1).double(), torch.ones(2, 1).double(), log_weight)
    assert q.log_prob(torch.zeros(1).double()).item() == pytest.approx(-0.5 * np.log(2 * np.pi), abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_computed_in_float64_and_returned_in_the_dtype_of_z_or_float32(dtype):
    q, _ = make(log_scale=-4.0)
    z = q.loc[:2].to(dtype)
    log_prob, score = q.log_prob_and_score(z)
    for got in (q.log_prob(z), log_prob, score, q.responsibilities(z), q.log_prob_marginals(z)):
        assert got.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_array_equal(q.log_prob(z), q.log_prob(z.double()).to(q.log_prob(z).dtype))


def test_score_is_the_gradient():
    q, g = make()
    z = torch.randn(20, 3, generator=g, dtype=torch.float64, requires_grad=True)
    log_prob, score = q.log_prob_and_score(z)
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    torch.testing.assert_close(score, gradient, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(log_prob, q.log_prob(z))


def test_gradients_reach_every_parameter_through_the_normalisation():
    loc, scale = torch.randn(3, 2).double().requires_grad_(), torch.rand(3, 2).double().add(0.5).requires_grad_()
    logits, z = torch.randn(3).double().requires_grad_(), torch.randn(4, 2).double()

    def ours(loc, scale, logits):
        return DiagGaussianMixture(loc, scale, logits.log_softmax(0)).log_prob(z)

    assert torch.autograd.gradcheck(ours, (loc, scale, logits))


def test_leave_one_out_is_the_renormalised_mixture_of_the_others():
    q, g = make(num=6)
    z, index = torch.randn(2, 6, 3, generator=g, dtype=torch.float64), torch.arange(6).expand(2, 6)
    got = q.log_prob_leave_one_out(z, index)
    for i in range(6):
        keep = [n for n in range(6) if n != i]
        rest = DiagGaussianMixture(q.loc[keep], q.scale[keep], q.log_weight[keep].log_softmax(0))
        torch.testing.assert_close(got[:, i], rest.log_prob(z[:, i]), rtol=1e-12, atol=1e-12)


def test_derivatives_of_leave_one_out_are_those_of_the_mixture_of_the_others():
    """In points and in components, where these are trained and where they are not; a prior leaves out alike."""
    q, g = make(num=6)
    index = torch.tensor([4, 0, 4])
    for trained in (False, True):
        given = [t.clone().requires_grad_(trained) for t in (q.loc, q.scale, q.log_weight)]
        own = DiagGaussianMixture(*given, validate_args=False)
        z = torch.randn(3, 3, generator=g, dtype=torch.float64, requires_grad=True)
        others = [DiagGaussianMixture(*(t[torch.arange(6) != i] for t in given), validate_args=False) for i in index]
        want = torch.stack([rest.log_prob(point) for rest, point in zip(others, z, strict=True)])
        wrt = [z, *(given if trained else ())]
        slopes = torch.autograd.grad(want.sum(), wrt)
        for got in (own.log_prob_leave_one_out(z, index), own.leave_one_out(index).log_prob(z)):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(
                torch.autograd.grad(got.sum(), wrt, retain_graph=True), slopes, rtol=1e-10, atol=1e-10
            )


def test_leave_one_out_keeps_its_accuracy_when_almost_all_weight_leaves():
    log_weight = torch.tensor([0.0, -60.0, -61.0], dtype=torch.float64).log_softmax(0)
    q = DiagGaussianMixture(torch.tensor([[0.0], [1.0], [5.0]]).double(), torch.ones(3, 1).double(), log_weight)
    rest = DiagGaussianMixture(q.loc[1:], q.scale[1:], log_weight[1:].log_softmax(0))
    z = torch.tensor([[2.0]]).double()
    torch.testing.assert_close(q.log_prob_leave_one_out(z, torch.tensor([0])), rest.log_prob(z))


def test_marginals_are_one_dimensional_mixtures_and_their_product_is_not_q():
    q, g = make()
    z = torch.randn(10, 3, generator=g, dtype=torch.float64)
    for j in range(3):
        want = oracle_log_prob(z[:, [j]], q.loc[:, [j]], q.scale[:, [j]], q.log_weight)
        np.testing.assert_allclose(q.log_prob_marginals(z)[:, j].numpy(), want, rtol=1e-12)
    assert (q.log_prob_marginals(z).sum(-1) - q.log_prob(z)).abs().min() > 1e-3


def test_responsibilities_and_posterior_mean():
    q, g = make()
    z, values = torch.randn(10, 3, generator=g, dtype=torch.float64), torch.randn(5, 7, generator=g).double()
    terms = oracle_terms(z, q.loc, q.scale, q.log_weight)
    want = np.exp(terms - terms.max(-1, keepdims=True))
    want = (want / want.sum(-1, keepdims=True)).astype(np.float64)
    np.testing.assert_allclose(q.responsibilities(z).numpy(), want, rtol=1e-11)
    np.testing.assert_allclose(q.posterior_mean(z, values).numpy(), want @ values.numpy(), rtol=1e-11)


def test_moments_against_the_enumerated_mixture():
    q, _ = make()
    w, loc, scale = q.log_weight.exp().numpy(), q.loc.numpy(), q.scale.numpy()
    second = sum(w[n] * (np.diag(scale[n] ** 2) + np.outer(loc[n], loc[n])) for n in range(5))
    np.testing.assert_allclose(q.mean.numpy(), w @ loc, rtol=1e-13)
    np.testing.assert_allclose(q.covariance.numpy(), second - np.outer(w @ loc, w @ loc), rtol=1e-12)
    np.testing.assert_allclose(q.variance.numpy(), np.diag(q.covariance), rtol=1e-12)
    np.testing.assert_allclose(q.stddev.numpy() ** 2, q.variance.numpy(), rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_sampler_against_density(seed):
    """The probability integral transform of each coordinate is uniform, and indices have the weights."""
    q, _ = make(num=3, dim=2)
    z, n = q.sample_with_index((20_000,), generator=torch.Generator().manual_seed(seed))
    w = q.log_weight.exp().numpy()
    for j in range(2):
        cdf = sum(w[k] * scipy.stats.norm.cdf(z[:, j], q.loc[k, j], q.scale[k, j]) for k in range(3))
        assert scipy.stats.kstest(cdf, "uniform").pvalue > 1e-4
        wrong = sum(w[k] * scipy.stats.norm.cdf(z[:, j], q.loc[k, j], q.scale[k, j] ** 2) for k in range(3))
        assert scipy.stats.kstest(wrong, "uniform").pvalue < 1e-10  # a variance taken for a scale is seen
    counts = np.bincount(n.numpy(), minlength=3)
    assert scipy.stats.chisquare(counts, 20_000 * w).pvalue > 1e-4
    within = (z - q.loc[n]) / q.scale[n]
    assert scipy.stats.kstest(within.flatten().numpy(), "norm").pvalue > 1e-4


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone():
    q, _ = make(dtype=torch.float32)
    state = torch.get_rng_state()
    one = q.sample((2, 3), generator=torch.Generator().manual_seed(1))
    two = q.sample((2, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(one, two) and one.shape == (2, 3, 3) and one.dtype == torch.float32
    assert q.sample(generator=torch.Generator()).shape == (3,)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_points", [3, 3_000])  # without clusters and with them
def test_what_is_kept_between_calls_follows_the_tensors(num_points):
    q, g = make(num=1_000)
    z = q.sample((num_points,), generator=g)
    before = q.log_prob(z)
    assert torch.equal(q.log_prob(z), before)
    q.loc.add_(0.5)
    torch.testing.assert_close(q.log_prob(z + 0.5), before)
    q.scale = 2 * q.scale
    fresh = DiagGaussianMixture(q.loc.clone(), q.scale.clone(), q.log_weight)
    torch.testing.assert_close(q.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-12)


def test_parameters_under_training_are_followed():
    q, g = make(num=1_000)
    loc = q.loc.clone().requires_grad_()
    mine, z = DiagGaussianMixture(loc, q.scale), q.sample((3_000,), generator=g)
    for _ in range(2):
        with torch.no_grad():
            held = mine.log_prob(z)
            loc.data += 0.1  # behind the back of the version counter
            torch.testing.assert_close(mine.log_prob(z + 0.1), held)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_an_average_in_parts_is_that_of_the_whole(num):
    """In so many dimensions two components are a part."""
    g = torch.Generator().manual_seed(0)
    loc, weight = torch.randn(num, 2**19, generator=g), torch.randn(num, generator=g).double().log_softmax(0)
    q = DiagGaussianMixture(loc, torch.ones_like(loc), weight)
    asked = []
    found = q.average(lambda w, m, s: (asked.append(len(m)), m.square() + s * w[:, None])[1])
    assert asked == [2] * (num // 2) + [1] * (num % 2)
    torch.testing.assert_close(found, weight.exp() @ (loc.double().square() + weight[:, None]))


MEMORY = """
import resource, sys, torch
from vaebook import DiagGaussianMixture, clusters, kernels

num, points, dim = map(int, sys.argv[1:])
g = torch.Generator().manual_seed(0)
q = DiagGaussianMixture(torch.randn(num, dim, generator=g), (torch.randn(num, dim, generator=g) - 2).exp())
z = q.sample((points,), generator=g)
small = DiagGaussianMixture(q.loc[:2_000], q.scale[:2_000])
small.log_prob(z[:1_500])  # what the libraries take once, for both ways
small.log_prob(z[:3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
q.log_prob_and_score(z)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(("num", "points", "most"), [(30_000, 10_000, 200), (10_000, 30_000, 200), (600, 12_000, 85)])
def test_memory_stays_flat(num, points, most):
    """In MiB; in a process of its own, because a peak that was reached before would hide this one."""
    command = [sys.executable, "-c", MEMORY, str(num), str(points), "40"]
    extra = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert extra < most, f"{extra:.0f} MiB"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.0]], torch.ones(1, 1)), TypeError, "loc: expected a torch.Tensor, got list"),
        ((torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1)), TypeError, "loc: expected a floating-point tensor"),
        ((torch.zeros(2), torch.ones(2)), ValueError, r"loc: expected shape \(N, D\), got \(2,\)"),
        ((torch.zeros(0, 2), torch.ones(0, 2)), ValueError, r"loc: expected at least one element, got shape \(0, 2\)"),
        ((torch.zeros(2, 2), torch.ones(2, 1)), ValueError, r"scale: expected shape \(2, 2\), got \(2, 1\)"),
        ((torch.zeros(2, 1), torch.tensor([[1.0], [-0.3]])), ValueError, r"scale: .* min -0.3 at index \(1, 0\)"),
        ((torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])), ValueError, r"scale: .* min 0 at index \(1, 0\)"),
        ((torch.zeros(2, 1), torch.tensor([[1.0], [torch.nan]])), ValueError, r"scale: .* got nan at index \(1, 0\)"),
        ((torch.tensor([[torch.inf]]), torch.ones(1, 1)), ValueError, r"loc: .* got inf at index \(0, 0\)"),
        ((torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2)), ValueError, "log_weight: .* torch.log_softmax"),
        ((torch.zeros(2, 1), torch.ones(2, 1), torch.full((2,), 0.5)), ValueError, "log_weight: .* torch.log_softmax"),
        ((torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, torch.nan])), ValueError, "log_weight: .* got nan"),
        ((torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(3)), ValueError, r"log_weight: expected shape \(2,\)"),
        ((torch.zeros(2, 1), torch.ones(2, 1, device="meta")), ValueError, "scale: expected all arguments on one"),
    ],
)
def test_bad_components(arguments, error, message):
    with pytest.raises(error, match=message):
        DiagGaussianMixture(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: q.log_prob([0.0, 0.0, 0.0]), TypeError, "z: expected a torch.Tensor, got list"),
        (lambda q: q.log_prob(torch.zeros(3, dtype=torch.int)), TypeError, "z: expected a floating-point tensor"),
        (lambda q: q.log_prob(torch.zeros(4, 2)), ValueError, r"z: expected shape \(\.\.\., 3\), got \(4, 2\)"),
        (lambda q: q.log_prob(torch.tensor(0.0)), ValueError, r"z: expected shape \(\.\.\., 3\), got \(\)"),
        (lambda q: q.log_prob(torch.full((3,), torch.nan)), ValueError, "z: expected finite values, got nan"),
        (lambda q: q.log_prob_and_score(torch.zeros(4)), ValueError, "z: expected shape"),
        (lambda q: q.log_prob_marginals(torch.zeros(4)), ValueError, "z: expected shape"),
        (lambda q: q.responsibilities(torch.zeros(3)), ValueError, r"z: expected shape \(S, 3\), got \(3,\)"),
        (
            lambda q: q.posterior_mean(torch.zeros(2, 3), torch.zeros(4, 2)),
            ValueError,
            r"values: expected shape \(5, P",
        ),
        (lambda q: q.posterior_mean(torch.zeros(3), torch.zeros(5, 2)), ValueError, r"z: expected shape \(S, 3\)"),
        (lambda q: q.sample((2,), generator=3), TypeError, "generator: expected a torch.Generator or None, got int"),
        (lambda q: q.log_prob_leave_one_out(torch.zeros(2, 3), [0, 1]), TypeError, "index: .* got list"),
        (lambda q: q.log_prob_leave_one_out(torch.zeros(2, 3), torch.ones(2)), TypeError, "index: .* torch.float32"),
        (
            lambda q: q.log_prob_leave_one_out(torch.zeros(2, 3), torch.tensor([0])),
            ValueError,
            r"index: expected shape \(2,\), got \(1,\)",
        ),
        (
            lambda q: q.log_prob_leave_one_out(torch.zeros(2, 3), torch.tensor([0, 5])),
            ValueError,
            r"index: expected values in \[0, 5\), got 0 to 5",
        ),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call(make()[0])


@pytest.mark.parametrize("log_weight", [None, torch.tensor([0.0, -torch.inf])])
def test_leave_one_out_of_the_only_component_is_an_error(log_weight):
    num = 1 if log_weight is None else 2
    q = DiagGaussianMixture(torch.zeros(num, 1), torch.ones(num, 1), log_weight)
    with pytest.raises(
        ValueError, match=r"^index: expected other components of positive weight to remain, .* \(N = \d\)$"
    ):
        q.log_prob_leave_one_out(torch.zeros(1, 1), torch.tensor([0]))


def test_validation_can_be_switched_off():
    q = DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1), validate_args=False)
    assert torch.isnan(q.log_prob(torch.full((1,), torch.nan)))


def test_it_is_a_torch_distribution():
    q, _ = make()
    assert q.batch_shape == () and q.event_shape == (3,) and not q.has_rsample
    assert repr(q) == "DiagGaussianMixture(num_components=5, dim=3)"
    for name in ("rsample", "entropy", "cdf", "icdf", "enumerate_support", "expand"):
        with pytest.raises(NotImplementedError):
            getattr(q, name)(*[(2,)] * (name not in ("entropy", "enumerate_support")))
    with pytest.raises(NotImplementedError):
        _ = q.mode


def test_draws_of_nothing_and_malformed_shapes():
    q = DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2).double())
    assert q.sample((0,)).shape == (0, 2)
    assert q.sample((2, 0)).shape == (2, 0, 2)
    assert q.sample((4,)).dtype == torch.float32  # loc's, though scale has another
    with pytest.raises(ValueError, match=r"sample_shape\[0\]: expected an int at least 0, got -"):
        q.sample((-1,))
    for bad in (5, (2.5,), (True,), None):
        with pytest.raises(TypeError, match=r"sample_shape(: expected a tuple of ints|\[0\]: expected an int), got"):
            q.sample(bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_taken_back(dtype):
    q = DiagGaussianMixture(torch.zeros(3, 2, dtype=dtype), torch.ones(3, 2, dtype=dtype))
    assert DiagGaussianMixture(q.loc, q.scale, q.log_weight).log_prob(torch.zeros(2)).isfinite()


def test_leave_one_out_is_differentiable_beside_weights_of_zero():
    log_weight = torch.tensor([0.5, 0.5, 0.0]).double().log().requires_grad_()
    q = DiagGaussianMixture(torch.zeros(3, 1).double(), torch.ones(3, 1).double(), log_weight)
    value = q.log_prob_leave_one_out(torch.zeros(1, 1).double(), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value.sum(), log_weight)
    assert gradient.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("log_scale", [-0.5, -6.0])  # expanded and direct form
def test_graphics_card_agrees_and_results_stay_on_it(log_scale):
    q, g = make(num=5_000, dim=4, log_scale=log_scale)
    z, n = q.sample_with_index((1_000,), generator=g)
    there = DiagGaussianMixture(q.loc.cuda(), q.scale.cuda(), q.log_weight.cuda())
    calls = {
        "log_prob": lambda q, z, n: q.log_prob(z),
        "score": lambda q, z, n: q.log_prob_and_score(z)[1] * q.scale.min() ** 2,
        "leave one out": lambda q, z, n: q.log_prob_leave_one_out(z, n),
        "marginals": lambda q, z, n: q.log_prob_marginals(z),
        "average": lambda q, z, n: q.posterior_mean(z, q.loc),
    }
    for name, call in calls.items():
        result = call(there, z.cuda(), n.cuda())
        assert result.is_cuda, name
        torch.testing.assert_close(result.cpu(), call(q, z, n), rtol=1e-12, atol=1e-8, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_result_has_the_dtype_of_z_and_empty_z_give_empty_results(dtype):
    q, g = make()
    z = q.sample((4,), generator=g).to(dtype)
    n, values = torch.arange(4), torch.ones(5, 2)
    results = [
        q.log_prob(z),
        *q.log_prob_and_score(z),
        q.log_prob_leave_one_out(z, n),
        q.log_prob_marginals(z),
        q.responsibilities(z),
        q.posterior_mean(z, values),
    ]
    assert all(result.dtype == dtype for result in results)
    assert q.responsibilities(z[:0]).shape == (0, 5) and q.posterior_mean(z[:0], values).shape == (0, 2)
    assert q.log_prob(z[:0]).shape == (0,) and q.log_prob_leave_one_out(z[:0], n[:0]).shape == (0,)


def test_without_validation_nan_goes_through():
    q = DiagGaussianMixture(torch.zeros(2, 1), torch.ones(2, 1), validate_args=False)
    nan = torch.full((1, 1), torch.nan)
    assert q.responsibilities(nan).isnan().all() and q.posterior_mean(nan, torch.ones(2, 1)).isnan().all()
    with pytest.raises(ValueError, match="scale"):
        DiagGaussianMixture(torch.zeros(2, 1), -torch.ones(2, 1))
    doubled = DiagGaussianMixture(torch.zeros(2, 1), -torch.ones(2, 1), validate_args=False).double()
    assert doubled.scale.dtype == torch.float64  # taken as it is, like the original


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, z: q.log_prob_leave_one_out(z, torch.zeros(2, 2).long()), r"index: expected shape \(2, 3\)"),
        (lambda q, z: q.log_prob_leave_one_out(z, torch.zeros(2, 3, device="meta").long()), "index"),
    ],
)
def test_shapes_and_devices_of_arguments(call, message):
    q, g = make()
    with pytest.raises(ValueError, match=f"^{message}"):
        call(q, q.sample((2, 3), generator=g))


def test_message_for_the_only_component():
    q = DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"^index: expected other components of positive weight to remain"):
        q.log_prob_leave_one_out(torch.zeros(1, 1), torch.zeros(1).long())


def test_what_is_prepared_is_kept_and_by_clusters_only_where_there_are_many_pairs():
    q, _ = make(num=2**12, dim=2)
    few, many = clusters.PAIRS // 2**12 - 1, clusters.PAIRS // 2**12
    assert q._prepared(few) is q._prepared(0) and isinstance(q._prepared(0), kernels.Components)
    assert q._prepared(many) is q._prepared(2 * many) and isinstance(q._prepared(many), clusters.Clusters)
    q.scale = q.scale.clone()
    assert q._prepared(0) is q._prepared(0)
    tracked = DiagGaussianMixture(q.loc.clone().requires_grad_(), q.scale)
    assert isinstance(tracked._prepared(many), kernels.Components)
    with torch.no_grad():
        assert isinstance(tracked._prepared(many), clusters.Clusters)
        assert isinstance(tracked._prepared(0), kernels.Components)


def test_draws_have_all_the_bits_of_their_dtype():
    z = DiagGaussianMixture(torch.zeros(1, 1).double(), torch.ones(1, 1).double()).sample(
        (50,), generator=torch.Generator()
    )
    assert bool((z != z.float().double()).any())


def test_without_validation_components_may_be_anything():
    q = DiagGaussianMixture(torch.full((2, 1), torch.nan), torch.ones(2, 1), validate_args=False)
    assert q.num_components == 2


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num", [5, 3_000])
@pytest.mark.parametrize("first_call_inside", [False, True])
def test_mixtures_made_in_inference_mode_work_outside_it(dtype, num, first_call_inside):
    plain, g = make(num=num, dim=2, dtype=torch.float64)
    z = plain.sample((1_000,), generator=g)
    with torch.inference_mode():
        given = [x.to(dtype) * 1 for x in (plain.loc, plain.scale, plain.log_weight)]
        q = DiagGaussianMixture(*given)
        if first_call_inside:
            q.log_prob(z)
    want = DiagGaussianMixture(*(x.to(dtype) for x in (plain.loc, plain.scale, plain.log_weight)))
    inside, z = z.clone().requires_grad_(), z.requires_grad_()
    torch.testing.assert_close(q.log_prob(z), want.log_prob(z))
    for mixture, points in ((q, inside), (want, z)):
        (slope,) = torch.autograd.grad(mixture.log_prob(points).sum(), points, create_graph=True)
        slope.square().sum().backward()
    torch.testing.assert_close(inside.grad, z.grad)
    torch.testing.assert_close(q.double().covariance, want.double().covariance)
    assert not any(x.is_inference() for x in (q.loc, q.scale, q.log_weight, q.sample((2,)), q.variance))
    q.loc += 1.0
    torch.testing.assert_close(q.log_prob(z + 1), DiagGaussianMixture(q.loc, q.scale, q.log_weight).log_prob(z + 1))


CHANGES = {
    "loc in place": lambda q, array: q.loc.add_(0.5),
    "loc behind the version counter": lambda q, array: q.loc.data.fill_(0.25),
    "a single mean": lambda q, array: q.loc.data[-1].mul_(1.5),
    "a detached alias": lambda q, array: q.loc.detach().numpy().__imul__(1.25),
    "the array that loc was made of": lambda q, array: array.__iadd__(0.5),
    "two means change places": lambda q, array: q.loc.data.copy_(q.loc.data.flip(0)),
    "scale in place": lambda q, array: q.scale.mul_(1.5),
    "a single scale": lambda q, array: q.scale.data[0].mul_(1.5),
    "scale behind the version counter": lambda q, array: q.scale.data.mul_(0.75),
    "another loc": lambda q, array: setattr(q, "loc", q.loc + 0.5),
    "another scale": lambda q, array: setattr(q, "scale", 2 * q.scale),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("num_points", [3, 3_000])  # without clusters and with them
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_result_is_of_components_that_were_changed_since(change, num_points, dtype):
    start, g = make(num=2_500, dim=2, dtype=dtype)
    array = start.loc.numpy().copy()
    q = DiagGaussianMixture(torch.from_numpy(array), start.scale.clone(), start.log_weight)
    z, copy_before = start.sample((num_points,), generator=g), q.double()
    before = q.log_prob(z)
    torch.testing.assert_close(copy_before.log_prob(z), before)
    CHANGES[change](q, array)
    fresh = DiagGaussianMixture(q.loc.clone(), q.scale.clone(), q.log_weight)
    torch.testing.assert_close(q.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)
    torch.testing.assert_close(q.log_prob_and_score(z)[1], fresh.log_prob_and_score(z)[1])
    torch.testing.assert_close(q.posterior_mean(z[:9], q.loc), fresh.posterior_mean(z[:9], q.loc))
    assert (q.log_prob(z) - before).abs().max() > 1e-5


def test_copies_and_slices_keep_their_clusters(monkeypatch):
    q, g = make(num=6_000, dim=2, dtype=torch.float32)
    z, found, original = q.sample((2_000,), generator=g), [], clusters.cluster
    monkeypatch.setattr(clusters, "cluster", lambda points: found.append(len(points)) or original(points))
    want = q.log_prob(z)
    for same in (q.double(), q.double().double(), copy.copy(q), copy.deepcopy(q), q.to("cpu"), q[:]):
        torch.testing.assert_close(same.log_prob(z), want)
    assert found == [6_000]
    later, _ = make(num=6_000, dim=2, dtype=torch.float32, seed=1)
    torch.testing.assert_close(later.double().log_prob(z), later.log_prob(z))  # what a copy found serves the original
    assert found == [6_000, 6_000]
    mask = torch.rand(6_000, generator=g) < 0.8
    for rows in (slice(0, 4_500), slice(None, None, 1), mask, torch.randperm(6_000, generator=g)[:4_000]):
        part = q[rows]
        fresh = DiagGaussianMixture(part.loc, part.scale, part.double().log_weight)
        torch.testing.assert_close(part.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-5)
        assert found.pop() == part.num_components  # by the fresh one alone
        assert found == [6_000, 6_000]
    for rows in (slice(0, 2_500), torch.cat([torch.arange(3_000)] * 2)):  # too few, or twice the same
        part = q[rows]
        fresh = DiagGaussianMixture(part.loc, part.scale, part.double().log_weight)
        torch.testing.assert_close(part.log_prob(z), fresh.log_prob(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kept", "inherits"), [(6, True), (3, True), (2, False)])
@pytest.mark.parametrize("divided", [True, False])
def test_half_of_the_components_inherit_a_division_that_was_made(divided, kept, inherits):
    q, _ = make(num=6)
    if divided:
        q._held["places"] = torch.tensor([[0, 2, 4], [1, 3, 5]])
    places = q[:kept]._held.get("places")
    assert (places is not None) is (divided and inherits)
    if places is not None:
        assert sorted(places.flatten().tolist()) == sorted([*range(kept), *[kept] * (6 - kept)])


def test_some_components_by_their_places():
    q, g = make(num=6)
    z = torch.randn(4, 3, generator=g, dtype=torch.float64)
    for rows in (
        slice(1, 4),
        torch.tensor([True, False, True, True, False, False]),
        torch.tensor([4, 0]),
        [2, 3, 3],
        5,
    ):
        part, index = q[rows], torch.arange(6)[rows].reshape(-1)
        assert torch.equal(part.loc, q.loc[index]) and torch.equal(part.scale, q.scale[index])
        np.testing.assert_allclose(part.log_weight.logsumexp(0).item(), 0, atol=1e-15)
        whole = oracle_log_prob(z, q.loc[index], q.scale[index], q.log_weight[index].log_softmax(0))
        np.testing.assert_allclose(part.log_prob(z).numpy(), whole, rtol=1e-12)
    none = DiagGaussianMixture(q.loc[:2], q.scale[:2], torch.tensor([0.0, -torch.inf]).double())
    for empty in (slice(0, 0), slice(1, 2)):
        with pytest.raises(ValueError, match=r"^rows: expected at least one component of positive weight"):
            none[empty]


@pytest.mark.parametrize("num", [4, 50])
def test_draws_from_more_components_than_multinomial_takes(monkeypatch, num):
    q, _ = make(num=num, dim=1)
    log_weight = q.log_weight.clone()
    log_weight[[0, -1]] = -torch.inf
    q = DiagGaussianMixture(q.loc, q.scale, log_weight.log_softmax(0))
    monkeypatch.setattr("vaebook.gaussians.CATEGORIES", num - 1)
    z, n = q.sample_with_index((20_000,), generator=torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 1) and not bool(((n == 0) | (n == num - 1)).any())
    counts = np.bincount(n.numpy(), minlength=num)[1:-1]
    assert scipy.stats.chisquare(counts, 20_000 * q.log_weight.exp().numpy()[1:-1]).pvalue > 1e-4
    assert q.sample((0,)).shape == (0, 1)
    # A mark at an end belongs to the first or last that has weight.
    for mark, place in ((0.0, 1), (1.0, num - 2)):
        always = torch.full((1,), mark, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *shape, always=always, **_: always)
        assert q.sample_with_index((1,))[1].tolist() == [place]


def test_draws_from_more_components_than_2_to_the_24():
    num = 2**24 + 1
    q = DiagGaussianMixture(torch.arange(num)[:, None].float(), torch.full((1, 1), 1e-3).expand(num, 1))
    z, n = q.sample_with_index((1_000,), generator=torch.Generator().manual_seed(0))
    assert bool(((z[:, 0] - n).abs() <= 1.0).all()) and 0.4 < float((n > num // 2).float().mean()) < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_at_least_single_precision_and_moments_safe(dtype):
    loc = torch.tensor([[-300.0, 0.5], [300.0, 0.25], [300.0, 0.0]], dtype=dtype)
    q = DiagGaussianMixture(loc, torch.full_like(loc, 300.0))
    exact = DiagGaussianMixture(loc.double(), torch.full_like(loc, 300.0).double())
    least = torch.promote_types(dtype, torch.float32)
    z = loc.clone()
    results = {
        "mean": (q.mean, exact.mean),
        "variance": (q.variance, exact.variance),
        "stddev": (q.stddev, exact.stddev),
        "covariance": (q.covariance, exact.covariance),
        "log_weight": (q.log_weight, exact.log_weight),
        "log_prob": (q.log_prob(z), exact.log_prob(z.double())),
        "score": (q.log_prob_and_score(z)[1], exact.log_prob_and_score(z.double())[1]),
        "marginals": (q.log_prob_marginals(z), exact.log_prob_marginals(z.double())),
        "responsibilities": (q.responsibilities(z), exact.responsibilities(z.double())),
        "posterior_mean": (q.posterior_mean(z, loc), exact.posterior_mean(z.double(), loc.double())),
        "leave one out": (
            q.log_prob_leave_one_out(z, torch.arange(3)),
            exact.log_prob_leave_one_out(z.double(), torch.arange(3)),
        ),
    }
    for name, (got, want) in results.items():
        assert got.dtype == least, name
        torch.testing.assert_close(got, want.to(least), rtol=1e-5, atol=1e-5, msg=name)
    draws = q.sample((2_000,), generator=torch.Generator().manual_seed(0))
    assert draws.dtype == least and bool(draws.isfinite().all()) and len(draws[:, 0].unique()) > 1_900


def test_half_precision_in_many_dimensions():
    """8,192 dimensions of scale 1e-3: the density and its draws are beyond float16."""
    loc = torch.randn(3, 8192, generator=torch.Generator().manual_seed(0)).half()
    q = DiagGaussianMixture(loc, torch.full_like(loc, 1e-3))
    z = q.sample((4,), generator=torch.Generator().manual_seed(1))
    want = oracle_log_prob(z.double(), q.loc.double(), q.scale.double(), q.double().log_weight)
    np.testing.assert_allclose(q.log_prob(z).numpy(), want, rtol=1e-6)


UNITS = [(1e-200, 0.0), (1e-30, 0.0), (3.0, -7.0), (0.1, 1e6), (1e30, 1e31), (1e150, 0.0)]


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_units_of_z_change_nothing_but_the_unit(a, b):
    q, g = make(num=7, dim=3)
    z, index = q.sample((20,), generator=g), torch.arange(7)[torch.arange(20) % 7]
    other, moved = DiagGaussianMixture(a * q.loc + b, a * q.scale, q.log_weight), a * z + b
    close = {"rtol": 1e-6, "atol": max(1e-8, 1e-13 * abs(b / a))}  # a and b are no powers of two
    shift = 3 * np.log(a)
    torch.testing.assert_close(other.log_prob(moved) + shift, q.log_prob(z), **close)
    torch.testing.assert_close(
        other.log_prob_leave_one_out(moved, index) + shift, q.log_prob_leave_one_out(z, index), **close
    )
    torch.testing.assert_close(other.log_prob_marginals(moved) + shift / 3, q.log_prob_marginals(z), **close)
    torch.testing.assert_close(a * other.log_prob_and_score(moved)[1], q.log_prob_and_score(z)[1], **close)
    torch.testing.assert_close(other.responsibilities(moved), q.responsibilities(z), **close)
    torch.testing.assert_close((other.mean - b) / a, q.mean, **close)
    torch.testing.assert_close(other.stddev / a, q.stddev, **close)
    if 1e-150 < a < 1e150:
        torch.testing.assert_close(other.covariance / a / a, q.covariance, **close)
        torch.testing.assert_close(other.variance / a / a, q.variance, **close)
    draws = [m.sample((50,), generator=torch.Generator().manual_seed(3)) for m in (q, other)]
    torch.testing.assert_close((draws[1] - b) / a, draws[0], **close)


@pytest.mark.parametrize("far", [1e20, 1e150, 1e155, 1e160, 1e300])
def test_far_away_a_result_is_right_or_an_error(far):
    q = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]]).double(), torch.ones(2, 1).double())
    z = torch.tensor([[far], [-far]], dtype=torch.float64)
    torch.testing.assert_close(q.responsibilities(z), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
    torch.testing.assert_close(q.posterior_mean(z, q.loc), torch.tensor([[1.0], [-1.0]]).double())
    torch.testing.assert_close(q.log_prob_and_score(z)[1], -z, rtol=1e-15, atol=0)
    want = torch.full((2,), -(far**2) / 2 if far < 1e154 else -torch.inf, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), want)
    point = z.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(q.log_prob(point).sum(), point)[0], -z)


@pytest.mark.parametrize("scale", [1e-100, 1e-155, 1e-200, 1e-300])
def test_score_at_tiny_scales_is_right_or_an_error(scale):
    q = DiagGaussianMixture(torch.tensor([[0.0], [1.0]]).double(), torch.full((2, 1), scale, dtype=torch.float64))
    z = torch.tensor([[3 * scale], [-scale]], dtype=torch.float64)
    torch.testing.assert_close(scale * q.log_prob_and_score(z)[1], -z / scale, rtol=1e-14, atol=0)
    torch.testing.assert_close(q.responsibilities(z), torch.tensor([[1.0, 0.0]]).double().expand(2, 2))
    if scale < 1e-154:
        with pytest.raises(ValueError, match=r"^score: expected finite values, got one too large for torch.float64"):
            q.log_prob_and_score(z + 0.5)


def test_moments_that_are_no_numbers_are_errors_and_others_right():
    for far in (1e160, 1e300):
        loc = torch.tensor([[-far], [far]], dtype=torch.float64)
        apart = DiagGaussianMixture(loc, torch.ones_like(loc))
        assert apart.stddev.item() == pytest.approx(far) and apart.mean.item() == 0
        for name in ("variance", "covariance"):
            with pytest.raises(ValueError, match=f"^{name}: expected finite values"):
                getattr(apart, name)
        together = DiagGaussianMixture(loc.abs(), torch.ones_like(loc))
        for moment in (together.variance, together.covariance, together.stddev):
            assert moment.item() == pytest.approx(1, rel=1e-15)
    single = DiagGaussianMixture(torch.tensor([[-1e20], [1e20]]), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"^variance: .* too large for torch.float32"):
        _ = single.variance
    assert single.double().variance.item() == pytest.approx(1e40)


@pytest.mark.parametrize("error", [1e-2, 1e-3, 3e-5])
def test_weights_that_are_off_are_refused(error):
    loc = torch.zeros(2, 1).double()
    for sign in (1, -1):
        with pytest.raises(ValueError, match="log_weight: expected natural logarithms that log-sum to 0 within 1e-05"):
            DiagGaussianMixture(loc, loc + 1, torch.tensor([0.25, 0.75]).double().log() + sign * error)


@pytest.mark.parametrize(
    ("name", "make_bad", "error"),
    [
        ("sparse", lambda: torch.eye(2).to_sparse(), TypeError),
        ("compressed", lambda: torch.eye(2).to_sparse_csr(), TypeError),
        ("float8", lambda: torch.ones(2, 2).to(torch.float8_e4m3fn), TypeError),
        ("complex", lambda: torch.ones(2, 2, dtype=torch.complex64), TypeError),
        ("bool", lambda: torch.ones(2, 2, dtype=torch.bool), TypeError),
        ("nested", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(2)]), (TypeError, ValueError)),
        ("meta", lambda: torch.ones(2, 2, device="meta"), (TypeError, ValueError)),
        ("numpy", lambda: np.ones((2, 2)), TypeError),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(name, make_bad, error):
    bad, good = make_bad(), torch.ones(2, 2)
    q = DiagGaussianMixture(good, good)
    for argument, call in {
        "loc": lambda: DiagGaussianMixture(bad, bad if name == "meta" else good),
        "(scale|loc)": lambda: DiagGaussianMixture(good, bad),
        "z": lambda: q.log_prob(bad),
        "(values|z)": lambda: q.posterior_mean(good, bad),
    }.items():
        with pytest.raises(error, match=f"^{argument}: expected"):
            call()


def test_shapes_of_draws_may_be_lists_sizes_and_ints_of_numpy():
    q, _ = make()
    for shape in ((5,), [5], torch.Size([5]), (np.int64(5),), [np.uint8(5)]):
        assert q.sample(shape).shape == (5, 3)
    assert q.sample([]).shape == (3,) and q.sample([2, np.int32(3)]).shape == (2, 3, 3)
    for bad in ((10**30,), [10**400], (2**62, 2**62)):
        with pytest.raises(
            ValueError, match=r"sample_shape(\[0\])?: expected (a size that fits into memory|an int at most)"
        ):
            q.sample(bad)


def test_a_mixture_is_a_prior():
    q, g = make(num=4)
    log_weight, loc, scale = q.components()
    assert q.latent_dim == 3 and q.config() == {} and log_weight.dtype == loc.dtype == scale.dtype == torch.float64
    z = torch.randn(5, 3, generator=g, dtype=torch.float64)
    np.testing.assert_allclose(q.log_prob(z).numpy(), oracle_log_prob(z, loc, scale, log_weight))


def test_another_dtype_or_device():
    q, _ = make()
    assert q.double() is q and q.to("cpu") is q and q.to(torch.float64) is q
    single = q.to(torch.float32)
    assert single.loc.dtype == single.scale.dtype == torch.float32
    assert torch.equal(single.double().log_weight, q.log_weight)
    z = q.loc[:1]
    torch.testing.assert_close(single.log_prob(z), q.log_prob(z), rtol=0, atol=1e-5)
    torch.testing.assert_close(q.log_prob(z), DiagGaussianMixture(q.loc, q.scale, q.log_weight).log_prob(z))
    off = DiagGaussianMixture(q.loc.float(), q.scale.float(), validate_args=False).double()
    assert torch.isnan(off.log_prob(torch.full((3,), torch.nan)))


class Array:
    def __array__(self, dtype=None, copy=None):
        return np.full((3, 2), 0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64])
def test_mixtures_of_arrays(dtype, tmp_path):
    loc = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "loc.npy", loc)
    mapped = np.load(tmp_path / "loc.npy", mmap_mode="r")
    spreads = [
        {"scale": np.full((3, 2), 0.5)},
        {"var": np.full((3, 2), 0.25)},
        {"log_var": np.full((3, 2), 2 * np.log(0.5))},
        {"scale": Array()},
        {"scale": [[0.5, 0.5]] * 3},
        {"scale": torch.full((3, 2), 0.5, requires_grad=True)},
    ]
    for given, spread in itertools.product((loc, mapped, loc[::-1][::-1]), spreads):
        q = DiagGaussianMixture.from_arrays(given, **spread)
        assert q.loc.dtype == (torch.float64 if np.dtype(dtype).itemsize == 8 else torch.float32)
        np.testing.assert_array_equal(q.loc.numpy(), loc.astype(float))
        np.testing.assert_allclose(q.scale.numpy(), 0.5, rtol=1e-15)
    q = DiagGaussianMixture.from_arrays(loc, scale=Array(), log_weight=np.log([0.5, 0.25, 0.25]))
    before = q.log_prob(torch.zeros(2))
    loc += 1
    assert q.log_prob(torch.zeros(2)) == before  # it has its own
    np.testing.assert_allclose(q.log_weight.exp().numpy(), [0.5, 0.25, 0.25], rtol=1e-6)


def test_spreads_that_look_like_others():
    loc, wide = np.zeros((3, 2)), np.full((3, 2), 2.0)
    for name in ("scale", "var"):
        with pytest.raises(ValueError, match=f"^{name}: expected positive values, got none; .* log_var"):
            DiagGaussianMixture.from_arrays(loc, **{name: -wide})
    with pytest.warns(UserWarning, match="^log_var: expected log_var as named, .*: all values are positive"):
        assert DiagGaussianMixture.from_arrays(loc, log_var=wide).scale[0, 0].item() == pytest.approx(np.e)
    tiny = DiagGaussianMixture.from_arrays(loc.astype(np.float32), log_var=np.full((3, 2), -400.0, np.float32))
    assert tiny.scale[0, 0].item() == pytest.approx(np.exp(-200.0))
    for bad, error, message in (
        ({}, TypeError, "scale: expected exactly one of scale, var and log_var, got none"),
        ({"var": wide, "scale": wide}, TypeError, r"scale: expected exactly one .*, got \['scale', 'var'\]"),
        ({"scale": "wide"}, TypeError, "scale: expected an array of real numbers"),
        ({"scale": wide > 1}, TypeError, "scale: expected an array of real numbers"),
        ({"scale": wide * 1j}, TypeError, "scale: expected an array of real numbers"),
        ({"scale": [object()]}, TypeError, "scale: expected an array of real numbers"),
        ({"var": 0 * wide}, ValueError, "var: expected positive values, got min 0"),
        ({"var": wide[:2]}, ValueError, r"scale: expected shape \(3, 2\)"),
        ({"log_var": np.nan * wide}, ValueError, "log_var: expected finite values"),
        ({"log_var": -1e6 * wide}, ValueError, "scale: expected positive values"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            DiagGaussianMixture.from_arrays(loc, **bad)
    with pytest.raises(TypeError, match=r"^loc: expected an array of real numbers"):
        DiagGaussianMixture.from_arrays("wide", scale=wide)
    with pytest.raises(TypeError, match=r"^log_weight: expected an array of real numbers"):
        DiagGaussianMixture.from_arrays(loc, scale=wide, log_weight="wide")


def test_leaving_one_out_is_the_same_where_derivatives_are_wanted():
    loc, z = (torch.randn(5, 2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    q, index = DiagGaussianMixture(loc, torch.ones_like(loc)), torch.arange(5)
    wanted = q.log_prob_leave_one_out(z, index)
    got = q.log_prob_leave_one_out(z.clone().requires_grad_(), index)
    torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: q.log_prob_leave_one_out(z, index), z.clone().requires_grad_())


@pytest.mark.parametrize("z", [1e154, 1e200, 1e308, -1e308, torch.finfo(torch.float64).max])
@pytest.mark.parametrize("scale", [1e-3, 0.7, 10.0])
@pytest.mark.parametrize("tracked", ["loc", "scale", "z"])
def test_at_the_end_of_the_numbers_a_density_with_derivatives_is_that_without(z, scale, tracked):
    loc = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
    given = {"loc": loc, "scale": torch.full_like(loc, scale), "z": loc.new_tensor([[z, 1.0], [1.0, z], [z, -z]])}
    plain = DiagGaussianMixture(given["loc"], given["scale"]).log_prob(given["z"])
    given[tracked].requires_grad_()
    found = DiagGaussianMixture(given["loc"], given["scale"]).log_prob(given["z"])
    assert found.requires_grad and torch.allclose(found, plain, rtol=1e-12)


def test_derivatives_reach_weights_of_marginals_and_averaged_values():
    loc, z = (torch.randn(4, 2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    scale, raw = loc.cos().exp(), loc.sum(1)
    of_weights = lambda raw: DiagGaussianMixture(loc, scale, raw.log_softmax(0)).log_prob_marginals(z)  # noqa: E731
    assert torch.autograd.gradcheck(of_weights, raw.clone().requires_grad_())
    q = DiagGaussianMixture(loc, scale)
    assert torch.autograd.gradcheck(lambda values: q.posterior_mean(z, values), scale.clone().requires_grad_())


@pytest.mark.parametrize("score", [False, True])
def test_one_component_is_left_out_where_all_together_would_be_in_clusters(score):
    q, g = make(num=2_500, dim=2)
    z = q.sample((1_000,), generator=g)
    index = torch.randint(2_500, (1_000,), generator=g)
    assert clusters.worth(q.num_components, len(z), z.device)
    terms = Independent(Normal(q.loc, q.scale), 1).log_prob(z[:, None]) + q.log_weight
    own = torch.arange(len(z)), index
    rest = q.log_weight.expand(len(z), -1).clone()
    terms[own], rest[own] = -torch.inf, -torch.inf
    found = q.log_prob_leave_one_out(z.clone().requires_grad_(score), index)
    torch.testing.assert_close(found.detach(), terms.logsumexp(1) - rest.logsumexp(1), rtol=0, atol=1e-9)


def test_clusters_can_be_switched_off(monkeypatch):
    q, g = make(num=2_500, dim=2)
    z = q.sample((1_000,), generator=g)
    q.in_clusters = False
    monkeypatch.setattr(clusters, "cluster", None)
    with_none = q.log_prob(z)
    monkeypatch.undo()
    q.in_clusters = True
    torch.testing.assert_close(q.log_prob(z), with_none, rtol=0, atol=1e-9)


def test_each_row_of_a_batch_leaves_out_its_own():
    q, g = make(num=4)
    z, index = q.sample((5, 2), generator=g), torch.tensor([3, 1])
    found = q.leave_one_out(index).log_prob(z)
    assert found.shape == (5, 2)
    for row, one in enumerate(index.tolist()):
        others = q[[n for n in range(4) if n != one]]
        torch.testing.assert_close(found[:, row], others.log_prob(z[:, row]))


@pytest.mark.parametrize("seed", range(5))
def test_weights_that_are_normalised_but_for_rounding_keep_every_bit(seed):
    q, _ = make()
    log_weight = torch.randn(len(q.loc), generator=torch.Generator().manual_seed(seed)).double().log_softmax(0)
    nearly = log_weight + 3e-15
    assert torch.equal(DiagGaussianMixture(q.loc, q.scale, nearly).components()[0], nearly)
    off = DiagGaussianMixture(q.loc, q.scale, log_weight + 3e-14).components()[0]
    torch.testing.assert_close(off, log_weight, rtol=0, atol=5e-15)


@pytest.mark.parametrize("off", [0.0, 1e-7])
def test_a_density_does_not_change_where_all_weights_grow(off):
    """So the derivatives in log-weights sum to 0, whether they were normalised or not."""
    q, g = make()
    log_weight = (q.log_weight + off).requires_grad_()
    density = DiagGaussianMixture(q.loc, q.scale, log_weight).log_prob(q.sample((7,), generator=g))
    (slope,) = torch.autograd.grad(density.sum(), log_weight)
    assert abs(float(slope.sum())) < 1e-12 and float(slope.abs().max()) > 0.1


@pytest.mark.parametrize("made", [lambda q: q.float(), lambda q: q.to(torch.float32), lambda q: q[:2], lambda q: q[:]])
def test_what_is_made_of_a_mixture_checks_what_that_checks(made):
    q, _ = make()
    q.float = lambda: q.to(torch.float32)
    nan = torch.full((1, 3), torch.nan, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^z: expected finite values"):
        made(q).log_prob(nan)
    free = DiagGaussianMixture(q.loc, q.scale, validate_args=False)
    free.float = lambda: free.to(torch.float32)
    assert made(free).log_prob(nan).isnan().all()


def test_means_and_scales_of_two_dtypes_become_one():
    q, _ = make()
    for loc, scale in ((q.loc, q.scale.float()), (q.loc.float(), q.scale)):
        double = DiagGaussianMixture(loc, scale).double()
        assert double.loc.dtype == double.scale.dtype == torch.float64


def test_a_far_component_of_tiny_weight_has_a_finite_variance():
    loc = torch.tensor([[0.0], [1e160]], dtype=torch.float64)
    log_weight = torch.tensor([0.0, math.log(1e-20)], dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.ones_like(loc), log_weight)
    for found in (q.variance, q.covariance[0], q.stddev.square()):
        torch.testing.assert_close(found, torch.tensor([1e300], dtype=torch.float64))


def test_what_is_averaged_is_in_float64_and_without_gradient():
    dim = 2**20 + 1  # one component is more than a part
    loc = torch.ones(2, dim).requires_grad_()
    q, seen = DiagGaussianMixture(loc, torch.ones(2, dim)), []
    found = q.average(lambda *given: (seen.extend(x.dtype for x in given), given[1][:, :1])[1])
    assert set(seen) == {torch.float64} and not found.requires_grad and found.tolist() == [1.0]


def test_the_density_under_one_component_each_has_all_digits():
    q, _ = make()
    index = torch.tensor([1, 0, 1])
    z = q.loc[index] + 0.1
    want = Independent(Normal(q.loc[index], q.scale[index]), 1)
    for points in (z, z.float()):
        assert torch.equal(q.log_prob_given(points, index), want.log_prob(points.double()))


def test_moments_of_components_close_together_and_far_from_the_origin_keep_their_digits():
    near = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64) / 2**25
    q, same = (DiagGaussianMixture(loc, near[1:2].expand(3, 1)) for loc in (near + 1e8, near))
    torch.testing.assert_close(q.variance, same.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.covariance, same.covariance, rtol=1e-12, atol=0)


def test_draws_record_no_gradient():
    q = DiagGaussianMixture(torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1, requires_grad=True))
    assert not q.sample((3,)).requires_grad and torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_are_read(dtype):
    loc = torch.tensor([[0.5], [1.5]], dtype=dtype)
    q = DiagGaussianMixture.from_arrays(loc, scale=torch.ones_like(loc))
    assert q.loc.dtype == torch.promote_types(dtype, torch.float32) and q.loc.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.int64])
def test_whole_numbers_keep_all_digits(dtype):
    loc = np.array([[min(2**24 + 1, np.iinfo(dtype).max)]], dtype)
    q = DiagGaussianMixture.from_arrays(loc, scale=np.ones((1, 1), np.float32))
    assert q.loc.dtype == torch.float64 and q.loc.tolist() == loc.tolist()


@pytest.mark.parametrize("num", [5, 3_000])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_kept_for_sums_holds_no_graph(mode, num):
    """A mixture of parameters that is evaluated without gradients, as q_agg of a model in training is."""
    q = DiagGaussianMixture(torch.zeros(num, 1).double().requires_grad_(), torch.ones(num, 1).double().requires_grad_())
    with mode():
        q.log_prob(torch.zeros(1_000, 1).double())
    kept = q._held.get("all") or q._held["some"].components
    assert not any(part.requires_grad for part in (*kept, *q._held["given"]))


def test_a_density_may_be_changed_in_place_before_its_derivative_is_taken():
    q, z = DiagGaussianMixture(torch.zeros(2, 1).double(), torch.ones(2, 1).double()), torch.ones(3, 1).double()
    value = q.log_prob(z.requires_grad_())
    value += 1
    value.sum().backward()
    assert z.grad.tolist() == [[-1.0]] * 3


def test_tiny_weights_remain_where_a_large_one_is_left_out():
    """Of the others, of weights e^-2000 and e^-2001, the shares are those of 1 and 1/e."""
    loc = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.ones_like(loc), torch.tensor([0.0, -2_000.0, -2_001.0], dtype=torch.float64))
    rest = DiagGaussianMixture(loc[1:], torch.ones(2, 1).double(), torch.tensor([0.0, -1.0]).double().log_softmax(0))
    z = torch.tensor([[0.5]], dtype=torch.float64)
    torch.testing.assert_close(q.log_prob_leave_one_out(z, torch.tensor([0])), rest.log_prob(z), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_components_are_drawn_where_the_sum_of_weights_passes_a_mark_with_all_bits(monkeypatch, dtype):
    monkeypatch.setattr("vaebook.gaussians.CATEGORIES", 10)
    weight = 4 * torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=dtype)  # of any sum
    index = draw_indices(weight, 500, torch.Generator().manual_seed(1))
    total = weight.cumsum(0)
    mark = total[-1] * torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert torch.equal(index, torch.searchsorted(total, mark, right=True))


@pytest.mark.parametrize(
    "given", [{"dtype": torch.float32}, {"device": "cpu", "dtype": torch.float32}, {"tensor": torch.ones(1)}]
)
def test_another_dtype_is_given_by_name_too(given):
    single = make()[0].to(**given)
    assert single.loc.dtype == single.scale.dtype == torch.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scales_from_arrays_keep_their_precision_and_others_become_double(dtype):
    """The root or exponential of another spread has more digits than the spread."""
    one = np.ones((1, 1), dtype)
    scale = DiagGaussianMixture.from_arrays(one, scale=one).scale
    assert scale.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    for spread in ({"var": one}, {"log_var": 0 * one}):
        assert DiagGaussianMixture.from_arrays(one, **spread).scale.dtype == torch.float64
