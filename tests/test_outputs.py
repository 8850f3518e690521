"""What encoders and decoders return: each limit of a warning or a refusal from both sides; shapes against loops."""

import math
import warnings

import pytest
import torch
from torch.distributions import Bernoulli, Cauchy, Independent, Normal

from vaebook._checks import to_scale
from vaebook.outputs import Decoded, GreyBernoulli, read_codes, read_likelihood


def full(value, *shape):
    return torch.full(shape, float(value), dtype=torch.float64)


WARNED = [
    # all logarithms positive: with 16 of them, one above 0.1, that is no chance
    ("log_var", full(0.11, 16, 1), True),
    ("log_var", full(0.11, 15, 1), False),
    ("log_var", full(0.1, 16, 1), False),
    ("log_var", torch.cat([full(0.01, 15, 1), full(0.11, 1, 1)]), True),
    ("log_var", torch.cat([full(5.0, 15, 1), full(0.0, 1, 1)]), False),
    # every code more than ten times as wide as 1 + |loc|, in every coordinate
    ("std", full(20.1, 4, 2), True),
    ("std", full(20.0, 4, 2), False),
    ("std", torch.cat([full(20.1, 4, 1), full(20.0, 4, 1)], 1), False),
    ("std", torch.cat([full(90.0, 3, 2), full(20.0, 1, 2)]), False),
    ("var", full(20.1**2, 4, 2), True),
    ("var", full(19.9**2, 4, 2), False),
    ("log_var", full(99.0, 4, 2), False),
]


@pytest.mark.parametrize(("spread", "value", "warned"), WARNED)
def test_when_a_spread_looks_like_another(spread, value, warned):
    loc = torch.cat([full(-1.0, 1, value.shape[1]), full(0.5, len(value) - 1, value.shape[1])])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scale = to_scale("encoder's scale", value, spread, loc)
    assert [str(w.message).startswith(f"encoder's scale: expected {spread} as named") for w in caught] == [
        True
    ] * warned
    wanted = {"std": lambda: value, "var": lambda: value**0.5, "log_var": lambda: (value / 2).exp()}[spread]()
    torch.testing.assert_close(scale, wanted)


def test_some_negative_values_are_left_to_the_check_of_scales_and_none_but_negative_ones_are_not():
    assert to_scale("scale", torch.tensor([[-1.0], [1.0]]), "std").tolist() == [[-1.0], [1.0]]
    with pytest.raises(ValueError, match=r"^scale: expected positive values, got none"):
        to_scale("scale", torch.tensor([[-1.0], [-2.0]]), "std")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((full(0, 3, 2), full(1, 3, 1)), r"^encoder's scale: expected shape \(3, 2\), got \(3, 1\)"),
        ((full(0, 4, 2), full(1, 4, 2)), r"^encoder's loc: expected shape \(3, ...\), .* got \(4, 2\)"),
        ((full(0, 3), full(1, 3)), r"^encoder's loc: expected shape \(3, ...\), .* got \(3,\)"),
    ],
)
def test_codes_of_another_shape_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        read_codes(codes, 3)


def test_a_grey_value_has_the_usual_loss():
    p, x = full(0.3, 3), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    value = GreyBernoulli(probs=p, validate_args=False).log_prob(x)
    torch.testing.assert_close(value, x * math.log(0.3) + (1 - x) * math.log(0.7))
    for bad in (-1e-6, 1 + 1e-6):
        with pytest.raises(ValueError, match=r"^x: expected values in \[0, 1\]"):
            GreyBernoulli(probs=p, validate_args=False).log_prob(full(bad, 3))


@pytest.mark.parametrize(("likelihood", "shape"), [("bernoulli", (2, 3)), ("categorical", (2, 3, 4))])
@pytest.mark.parametrize(("value", "good"), [(1 + 0.9e-5, True), (1 + 1.1e-5, False), (1.5, False), (-1e-9, False)])
def test_probabilities_may_exceed_one_by_rounding_alone(likelihood, shape, value, good):
    output = full(1 / shape[-1], *shape)
    output[0] = 0.0
    output[0, ..., 0] = value
    if good:
        assert read_likelihood(output, likelihood).batch_shape == (2,)
    else:
        with pytest.raises(ValueError, match=rf'^decoder\'s output: expected probabilities .*"{likelihood}_logits"'):
            read_likelihood(output, likelihood)


@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("own", [True, False], ids=["a code for each datum", "all data at each code"])
@pytest.mark.parametrize("joint", [True, False], ids=["event of two dimensions", "terms of each pixel"])
def test_log_densities_against_a_loop(batch, own, joint):
    last, num = (3 if own else 1), math.prod(batch)
    mean = torch.randn(num * last, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each = Normal(mean, 0.7)
    value = Decoded(Independent(each, 2) if joint else each, (*batch, last)).log_prob(x)
    rows = mean.reshape(num, last, 2, 5)
    wanted = [[Normal(rows[s, n if own else 0], 0.7).log_prob(x[n]).sum() for n in range(3)] for s in range(num)]
    torch.testing.assert_close(value, torch.tensor(wanted, dtype=torch.float64).reshape(*batch, 3))


def test_moments_have_the_shape_of_the_batch():
    decoded = Decoded(Independent(Normal(full(2, 6, 4), 3.0), 1), (2, 3))
    assert decoded.mean.shape == decoded.variance.shape == (2, 3, 4) and decoded.has_moments
    assert float(decoded.mean[1, 2, 3]) == 2 and float(decoded.variance[1, 2, 3]) == 9
    heavy = Decoded(Independent(Cauchy(full(2, 6, 4), 3.0), 1), (2, 3))
    assert not heavy.has_moments
    with pytest.raises(ValueError, match="decoder: expected a distribution of x with a mean, got Cauchy"):
        heavy.mean  # noqa: B018
    endless = Decoded(Independent(Normal(full(math.inf, 6, 4), 3.0, validate_args=False), 1, validate_args=False), (6,))
    assert not endless.has_moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(5,), (2, 3)])
def test_all_data_under_all_codes_is_the_sum_of_the_pixels(event, dtype):
    """Grey values, and logits from where a pixel is a coin to where nothing is left of its chance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, *event, generator=generator, dtype=dtype)
    x[0], x[1] = 0, 1
    logits = 10 * torch.randn(7, *event, generator=generator, dtype=dtype)
    logits[:3] = torch.tensor([1e3, -1e3, 25.0], dtype=dtype).reshape(3, *(1 for _ in event))
    each = GreyBernoulli(logits=logits, validate_args=False)
    pixels = GreyBernoulli(logits=logits.double(), validate_args=False).log_prob(x[:, None].double())
    decoded = Decoded(Independent(each, len(event), validate_args=False), (7, 1))
    torch.testing.assert_close(decoded.log_prob(x), pixels.flatten(2).sum(2).mT, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"^x: expected values in \[0, 1\]"):
        decoded.log_prob(x + 0.5)


def test_rows_and_data_must_be_as_many_as_codes():
    with pytest.raises(ValueError, match=r"^decoder: expected a row for each of 6 codes, got \(5, 4\)"):
        Decoded(Independent(Normal(full(0, 5, 4), 1.0), 1), (2, 3))
    with pytest.raises(ValueError, match=r"^x: expected 3 data, as many as there are codes, got 4"):
        Decoded(Independent(Normal(full(0, 6, 4), 1.0), 1), (2, 3)).log_prob(full(0, 4, 4))
    for shape in ((3, 5), (3, 2, 2, 2), (3, 4, 2)):
        with pytest.raises(ValueError, match=r"^x: expected shape \(B, 2, 4\)"):
            Decoded(Independent(Bernoulli(full(0.5, 3, 2, 4)), 2), (3,)).log_prob(full(0, *shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["bernoulli_logits", "bernoulli", "gaussian", "own"])
def test_in_half_precision_the_sum_over_pixels_is_not_rounded(dtype, family):
    """Only what the decoder returned is: a sum of 784 terms in bfloat16 was wrong by nats."""
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(5, 784, generator=generator).to(dtype).clamp(0.1, 0.9)
    x, spread = torch.rand(5, 784, generator=generator).to(dtype), torch.full((), 0.5, dtype=dtype)
    if family == "own":
        source = Independent(Normal(output, spread), 1)
    else:
        source = read_likelihood((output, spread) if family == "gaussian" else output, family)
    value = Decoded(source, (5,)).log_prob(x)
    exact = output.double(), x.double()
    if family == "own":
        wanted = source.base_dist.log_prob(x.float()).double().sum(1)
    elif family == "gaussian":
        wanted = Normal(exact[0], 0.5).log_prob(exact[1]).sum(1)
    else:
        each = GreyBernoulli(**{"logits" if family == "bernoulli_logits" else "probs": exact[0]}, validate_args=False)
        wanted = each.log_prob(exact[1]).sum(1)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-3)


def test_an_independent_of_one_s_own_keeps_its_density():
    class Masked(Independent):
        def log_prob(self, value):
            return 0.5 * super().log_prob(value)

    source, x = Masked(Normal(full(0, 3, 4), 1.0), 1), full(0.3, 3, 4)
    torch.testing.assert_close(Decoded(source, (3,)).log_prob(x), source.log_prob(x))


@pytest.mark.parametrize(
    "spread", ["scale std stddev sigma", "var variance", "log_var logvar log_variance log_covariance"]
)
def test_every_name_of_a_spread_means_what_it_says(spread):
    value = torch.tensor([[0.25, 0.5], [0.75, 1.5]])
    wanted = {"scale": value, "var": value.sqrt(), "log_var": (value / 2).exp()}[spread.split()[0]]
    for name in spread.split():
        for loc in ("loc", "mean", "mu", "embedding"):
            found = read_codes({loc: value + 1, name: value, "other": 3}, 2)
            torch.testing.assert_close(found, (value + 1, wanted))


def test_the_first_of_several_names_counts():
    one, two, three = full(1, 2, 2), full(2, 2, 2), full(3, 2, 2)
    found = read_codes({"mu": three, "loc": one, "log_var": two, "scale": three}, 2)
    torch.testing.assert_close(found, (one, three))


def test_codes_that_are_not_finite_are_read_and_left_to_those_who_use_them():
    """In training they say that it diverged."""
    good = full(1, 2, 2)
    for bad in (math.nan, math.inf):
        loc, scale = read_codes((bad * good, good), 2)
        assert not loc.isfinite().any() and torch.equal(scale, good)
    loc, scale = read_codes((good, math.nan * good), 2)
    assert torch.equal(loc, good) and scale.isnan().all()
