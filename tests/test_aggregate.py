"""The aggregated posterior of an encoder, whatever form the encoder has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, LogNormal, MultivariateNormal, Normal

from vaebook.aggregate import aggregated_posterior, as_codes, merge_duplicates
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def codes(x):
    return x[:, :2], x[:, 2:4].abs() + 0.1


class Dropping(nn.Module):
    """An encoder whose codes are random in training mode."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 4))
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x):
        loc, raw = self.net(self.frozen(x)).chunk(2, -1)
        return Independent(Normal(loc, raw.exp()), 1)

    def encode(self, x):
        return self(x)


X = normal(23, 4)


@pytest.mark.parametrize(
    "encoder",
    [
        codes,
        lambda x: list(codes(x)),
        lambda x: Normal(*codes(x)),
        lambda x: Independent(Normal(*codes(x)), 1),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5, 23, 1000])
def test_every_form_of_encoder_and_batch(encoder, batch_size):
    q = aggregated_posterior(encoder, X, batch_size=batch_size)
    loc, scale = codes(X)
    assert isinstance(q, DiagGaussianMixture)
    assert torch.equal(q.loc, loc)
    assert torch.equal(q.scale, scale)
    torch.testing.assert_close(q.log_weight, torch.full((23,), -math.log(23), dtype=torch.float64))


def test_it_is_the_average_density():
    z = normal(7, 2, seed=2)
    q = Independent(Normal(*codes(X)), 1)
    expected = q.log_prob(z[:, None]).logsumexp(1) - math.log(23)
    torch.testing.assert_close(aggregated_posterior(codes, X).log_prob(z), expected, rtol=0, atol=1e-12)


def test_it_is_that_of_ppca():
    model = PPCA.fit(X, 2)
    expected = model.aggregated_posterior(X)
    got = aggregated_posterior(model.posterior, X, batch_size=4)
    torch.testing.assert_close(got.loc, expected.loc, rtol=0, atol=1e-14)
    torch.testing.assert_close(got.scale, expected.scale, rtol=0, atol=0)


def test_images_are_fine():
    images = normal(5, 1, 2, 2)
    assert torch.equal(aggregated_posterior(lambda x: codes(x.flatten(1)), images).loc, images.flatten(1)[:, :2])


def test_dtype_is_the_encoders():
    assert aggregated_posterior(codes, X.float()).loc.dtype == torch.float32


@pytest.mark.parametrize("method", [False, True])
def test_dropout_is_off_for_the_pass_and_modes_come_back(method):
    torch.manual_seed(0)
    module = Dropping().double()
    module.train()
    module.frozen.eval()
    encoder = module.encode if method else module
    before = [m.training for m in module.modules()]
    first, second = (aggregated_posterior(encoder, X, batch_size=8) for _ in range(2))
    assert torch.equal(first.loc, second.loc)
    torch.testing.assert_close(first.loc, module.eval()(X).mean)  # batches may round otherwise than the whole
    module.train()
    module.frozen.eval()
    assert [m.training for m in module.modules()] == before
    assert not torch.equal(module(X).mean, module(X).mean)  # in training mode it is random: the test can fail


def test_modes_come_back_after_an_error():
    module = Dropping()
    module.frozen.train()
    with pytest.raises(
        ValueError, match=r"encoder: expected it to take a batch of shape \(3, 9\) and torch.float32, got"
    ):
        aggregated_posterior(module, torch.ones(3, 9))
    assert all(m.training for m in module.modules())


def test_no_gradient_is_recorded():
    module = Dropping()
    q = aggregated_posterior(module, X.float())
    assert not q.loc.requires_grad
    assert torch.is_grad_enabled()


class TestMerge:
    def test_weights_add_and_density_stays(self):
        loc, scale = codes(X)
        index = torch.tensor([3, 0, 3, 7, 0, 3, 11])
        q = DiagGaussianMixture(loc[index], scale[index], normal(7, seed=4).log_softmax(0))
        merged, counts = merge_duplicates(q)
        assert torch.equal(merged.loc, loc[[3, 0, 7, 11]])
        assert torch.equal(merged.scale, scale[[3, 0, 7, 11]])
        assert counts.tolist() == [3, 2, 1, 1]
        w = q.log_weight.exp()
        expected = torch.stack([w[0] + w[2] + w[5], w[1] + w[4], w[3], w[6]])
        torch.testing.assert_close(merged.log_weight.exp(), expected, rtol=0, atol=1e-15)
        z = normal(9, 2, seed=5)
        torch.testing.assert_close(merged.log_prob(z), q.log_prob(z), rtol=0, atol=1e-12)

    def test_equal_weights_become_multiplicities(self):
        q = aggregated_posterior(codes, X[[0, 1, 0, 0, 2]])
        merged, counts = merge_duplicates(q)
        assert counts.tolist() == [3, 1, 1]
        torch.testing.assert_close(merged.log_weight.exp(), counts.double() / 5, rtol=0, atol=1e-15)

    def test_nothing_to_merge(self):
        q = aggregated_posterior(codes, X)
        merged, counts = merge_duplicates(q)
        assert torch.equal(merged.loc, q.loc)
        assert torch.equal(merged.scale, q.scale)
        assert torch.equal(counts, torch.ones(23, dtype=torch.long))

    @pytest.mark.parametrize(
        ("loc", "scale"),
        [
            ([[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]),
            ([[0.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]]),
            ([[0.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 2.0]]),
            ([[1.0, 0.0], [1.0 + 1e-12, 0.0]], [[1.0, 1.0], [1.0, 1.0]]),
        ],
    )
    def test_what_is_distinct_stays_itself(self, loc, scale):
        q = DiagGaussianMixture(*(torch.tensor(part, dtype=torch.float64) for part in (loc, scale)))
        assert merge_duplicates(q)[0] is q

    def test_means_whose_sums_overflow_are_compared_one_by_one(self):
        far = torch.tensor([[1.7e308, 1.7e308, -1.7e308]], dtype=torch.float64).repeat(2, 1)
        assert merge_duplicates(DiagGaussianMixture(far, torch.ones_like(far)))[1].tolist() == [2]

    def test_derivatives_reach_the_components_that_stay(self):
        loc = torch.tensor([[1.0], [0.0], [1.0]], requires_grad=True)
        scale = torch.ones(3, 1, requires_grad=True)
        merged, _ = merge_duplicates(DiagGaussianMixture(loc, scale))
        (merged.loc.sum() + 2 * merged.scale.sum()).backward()
        assert (loc.grad.flatten().tolist(), scale.grad.flatten().tolist()) == ([1, 1, 0], [2, 2, 0])

    def test_same_mean_other_scale_stays_apart(self):
        loc = torch.zeros(2, 1)
        assert merge_duplicates(DiagGaussianMixture(loc, torch.tensor([[1.0], [1.0 + 1e-7]])))[0].num_components == 2

    def test_tiny_and_zero_weights(self):
        loc = torch.tensor([[0.0], [1.0], [1.0], [2.0], [2.0]], dtype=torch.float64)
        log_weight = torch.tensor([0.0, -900.0, -900.0, -math.inf, -math.inf], dtype=torch.float64)
        merged, counts = merge_duplicates(DiagGaussianMixture(loc, torch.ones_like(loc), log_weight))
        expected = torch.tensor([0.0, math.log(2) - 900, -math.inf], dtype=torch.float64)
        torch.testing.assert_close(merged.log_weight, expected, rtol=0, atol=1e-12)
        assert counts.tolist() == [1, 2, 2]

    def test_single_precision_digits_worth_of_components(self):
        loc = normal(2000, 3, dtype=torch.float32).repeat(3, 1)
        merged, counts = merge_duplicates(DiagGaussianMixture(loc, torch.ones_like(loc)))
        assert merged.num_components == 2000
        assert bool((counts == 3).all())
        assert torch.equal(merged.loc, loc[:2000])

    def test_bad_input(self):
        with pytest.raises(TypeError, match="q_agg: expected a DiagGaussianMixture, got tuple"):
            merge_duplicates((torch.zeros(1, 1), torch.ones(1, 1)))


EYE = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "match", "encoder"),
    [
        (TypeError, "encoder: expected a callable, got Tensor", EYE),
        (
            TypeError,
            "encoder: expected a diagonal covariance, got a MultivariateNormal with correlations",
            lambda x: MultivariateNormal(x[:, :2], EYE + 0.5),
        ),
        (TypeError, r"encoder: expected it to return \(loc, scale\), .* got LogNormal", lambda x: LogNormal(*codes(x))),
        (TypeError, "got LogNormal", lambda x: Independent(LogNormal(*codes(x)), 1)),
        (TypeError, "got Tensor", lambda x: x),
        (TypeError, "got tuple of 3", lambda x: (*codes(x), x)),
        (TypeError, "got tuple of 2", lambda x: (x.numpy(), x.numpy())),
        (ValueError, r"encoder's loc: expected shape \(8, ...\), .* got \(8,\)", lambda x: Normal(x[:, 0], 1.0)),
        (ValueError, r"encoder's loc: expected shape \(8, ...\), .* got \(1, 2\)", lambda x: codes(x[:1])),
        (ValueError, r"encoder's scale: expected shape \(8, 2\), got \(8, 1\)", lambda x: (x[:, :2], x[:, :1])),
        (ValueError, r"encoder's scale: expected positive values, got min -.* at", lambda x: (x[:, :2], x[:, 2:])),
        (ValueError, r"got min 0 at index \(0, 0\)", lambda x: (x, torch.zeros_like(x))),
        (ValueError, "got none; logarithms of variances are named log_var", lambda x: (x, -torch.ones_like(x))),
        (ValueError, r"encoder's loc: expected finite values, got nan", lambda x: (x.log(), x.exp())),
        (
            ValueError,
            r"encoder's scale: expected finite values, got inf",
            lambda x: (x, x.abs().where(x.abs() > 0.1, torch.inf)),
        ),
        (ValueError, r"encoder: expected the same from two passes", lambda x: (x - x.mean(0), torch.ones_like(x))),
        (ValueError, r"encoder: expected codes of latent_shape \(2,\), got \(1,\)", lambda x: codes_of_width(x)),
    ],
)
def test_bad_encoder(error, match, encoder):
    with pytest.raises(error, match=match):
        aggregated_posterior(encoder, X, batch_size=8)


def codes_of_width(x):
    width = 2 if len(x) == 8 else 1
    return x[:, :width], x[:, :width].exp()


def test_index_of_a_bad_scale_is_that_of_the_datum():
    scale = torch.ones(23, 4, dtype=torch.float64)
    scale[17, 3] = -0.25
    x = torch.cat([X, scale], 1)
    with pytest.raises(ValueError, match=r"got min -0.25 at index \(17, 3\)"):
        aggregated_posterior(lambda x: (x[:, :4], x[:, 4:]), x, batch_size=5)


@pytest.mark.parametrize(
    ("error", "match", "x", "batch_size"),
    [
        (TypeError, "x: expected a tensor or an array of real numbers, got float", [[1.0]], 8),
        (TypeError, r"x: expected a tensor, array or iterable of batches \(DataLoader\), got int", 3, 8),
        (TypeError, "x: expected a dense tensor of real numbers", torch.ones(2, 2) * 1j, 8),
        (ValueError, "x: expected shape", torch.ones(4), 8),
        (ValueError, "x: expected shape", torch.tensor(1.0), 8),
        (ValueError, r"x: expected shape \(N, ...\) with at least one value, got \(0, 4\)", torch.ones(0, 4), 8),
        (ValueError, "x: expected finite", torch.full((2, 4), math.inf), 8),
        (ValueError, "batch_size: expected an int at least 1", X, 0),
        (TypeError, "batch_size: expected an int", X, 8.0),
    ],
)
def test_bad_data(error, match, x, batch_size):
    with pytest.raises(error, match=match):
        aggregated_posterior(codes, x, batch_size=batch_size)


LOC, SCALE = codes(X)


@pytest.mark.parametrize(
    "given",
    [
        {"scale": SCALE},
        {"scale": SCALE.numpy()},
        {"scale": SCALE.tolist(), "loc": LOC.tolist()},
        {"var": SCALE**2},
        {"log_var": 2 * SCALE.log()},
        {"scale": SCALE.reshape(23, 1, 2), "loc": LOC.reshape(23, 2, 1)},  # flattened
        {"scale": SCALE, "log_weight": torch.full((23,), -math.log(23), dtype=torch.float64)},
    ],
)
def test_codes_from_arrays(given):
    q = as_codes("subject", {"loc": LOC} | given)
    assert torch.equal(q.loc, LOC) and as_codes("subject", q) is q
    torch.testing.assert_close(q.scale, SCALE, rtol=1e-14, atol=0)
    torch.testing.assert_close(q.log_weight, torch.full((23,), -math.log(23), dtype=torch.float64))


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (TypeError, "expected codes of the same kind, a mapping or a mixture, got tuple", (LOC, SCALE)),
        (ValueError, "expected loc and exactly one of scale, var, log_var, got loc$", {"loc": LOC}),
        (ValueError, "expected loc and exactly one of .* got scale$", {"scale": SCALE}),
        (ValueError, "expected loc and exactly one of .* got loc, scale, var$",
         {"loc": LOC, "scale": SCALE, "var": SCALE}),
        (ValueError, "expected loc and exactly one of .* got loc, scale, logvar$",
         {"loc": LOC, "scale": SCALE, "logvar": SCALE}),
        (ValueError, "expected loc and exactly one of .* got loc, scale, 3$", {"loc": LOC, "scale": SCALE, 3: SCALE}),
        (ValueError, "loc: expected a dense array of real numbers, got T", {"loc": LOC.to_sparse(), "scale": SCALE}),
        (ValueError, "loc: expected a dense array of real numbers, got N", {"loc": LOC.to("meta"), "scale": SCALE}),
    ],
)  # fmt: skip
def test_what_are_no_codes_is_refused(error, match, given):
    with pytest.raises(error, match=f"^(held_out: )?{match}"):
        as_codes("held_out", given)


def test_no_codes_are_refused_in_words():
    with pytest.raises(ValueError, match=r"^loc: expected shape \(N, D\), got \(0, 2, 1\)$"):
        as_codes("held_out", {"loc": LOC[:0].reshape(0, 2, 1), "scale": SCALE[:0].reshape(0, 2, 1)})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_codes_of_a_model_refuse_points_that_are_no_numbers(bad):
    q_agg = aggregated_posterior(lambda x: (x, torch.ones_like(x)), torch.eye(3))
    for mixture in (q_agg, q_agg.double(), q_agg[:2], merge_duplicates(q_agg)[0]):
        with pytest.raises(ValueError, match="z: expected finite values"):
            mixture.log_prob(torch.full((1, 3), bad))
