"""Codes have no unit: under z → a z + b densities shift by log|a|, and what is said of the codes stays the same."""

from __future__ import annotations

from functools import cache

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import affine, factors, generator, law, mixtures, moved, normal, points, same, seeds, signs
from torch.distributions import Independent, Normal

from vaebook.adapters import adapt
from vaebook.aggregate import aggregated_posterior, merge_duplicates
from vaebook.bounds import elbo, iwae_bound
from vaebook.certificates import mmd_squared, mutual_information_bounds
from vaebook.estimators import Estimate, pairwise_log_prob
from vaebook.information import decompose_kl, mutual_information, mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture
from vaebook.modes import find_modes
from vaebook.priors import fit_gmm
from vaebook.selection import choose_prior


@st.composite
def pairs(draw, **sizes):
    """A mixture, the same in other units, and what leads there."""
    q = draw(mixtures(**sizes))
    a, b = draw(affine(q.loc.shape[1]))
    return q, moved(q, a, b), a, b


@law
@given(pairs(), seeds)
def test_log_prob_shifts(pair, seed):
    q, r, a, b = pair
    z = points(q, seed)
    same(r.log_prob(a * z + b), q.log_prob(z) - a.abs().log().sum(), rtol=1e-7, atol=1e-7)


@law
@given(pairs(), seeds)
def test_marginals_shift_each_by_its_own(pair, seed):
    q, r, a, b = pair
    z = points(q, seed)
    same(r.log_prob_marginals(a * z + b), q.log_prob_marginals(z) - a.abs().log(), rtol=1e-7, atol=1e-7)


@law
@given(pairs(), seeds)
def test_leave_one_out_shifts(pair, seed):
    q, r, a, b = pair
    z = points(q, seed)
    index = torch.arange(len(z)) % q.num_components
    got = r.log_prob_leave_one_out(a * z + b, index)
    same(got, q.log_prob_leave_one_out(z, index) - a.abs().log().sum(), rtol=1e-7, atol=1e-7)


@law
@given(pairs(), seeds)
def test_score_is_divided(pair, seed):
    q, r, a, b = pair
    z = q.sample((7,), generator=generator(seed))
    expected = q.log_prob_and_score(z)[1] / a
    same(a.abs() * r.log_prob_and_score(a * z + b)[1], a.abs() * expected, rtol=1e-6, atol=1e-6)


@law
@given(pairs(), seeds)
def test_responsibilities_stay(pair, seed):
    q, r, a, b = pair
    z = q.sample((7,), generator=generator(seed))
    same(r.responsibilities(a * z + b), q.responsibilities(z), rtol=1e-6)


@law
@given(pairs(), seeds)
def test_posterior_mean_stays(pair, seed):
    q, r, a, b = pair
    z, values = q.sample((7,), generator=generator(seed)), normal(seed, q.num_components, 3)
    same(r.posterior_mean(a * z + b, values), q.posterior_mean(z, values), rtol=1e-6)


@law
@given(pairs())
def test_moments_move_along(pair):
    q, r, a, b = pair
    same((r.mean - b) / a, q.mean)
    same(r.variance / a**2, q.variance, rtol=1e-8)
    same(r.covariance / a[:, None] / a, q.covariance, rtol=1e-7, atol=1e-9)


@law
@given(pairs(), seeds)
def test_samples_move_along(pair, seed):
    """With a > 0, draw by draw: the noise is the same."""
    q, _, a, b = pair
    a = a.abs()
    z, n = q.sample_with_index((11,), generator=generator(seed))
    y, m = moved(q, a, b).sample_with_index((11,), generator=generator(seed))
    assert torch.equal(n, m)
    same((y - b) / a, z)


@law
@given(pairs(weighted=False), seeds)
def test_pairwise_log_prob_shifts(pair, seed):
    q, r, a, b = pair
    z = q.loc + q.scale * normal(seed, *q.loc.shape)
    expected = pairwise_log_prob(z, q.loc, q.scale) - a.abs().log()[:, None, None]
    same(pairwise_log_prob(a * z + b, r.loc, r.scale), expected, rtol=1e-7, atol=1e-7)


@law
@given(pairs(), seeds)
def test_mutual_information_stays(pair, seed):
    q, _, a, b = pair
    a = a.abs()
    one, two = (mutual_information(p, 200, generator=generator(seed)) for p in (q, moved(q, a, b)))
    same(two.value, one.value, rtol=1e-6, atol=1e-7)
    same(two.stderr, one.stderr, rtol=1e-5, atol=1e-7)


@law
@given(pairs(max_dim=1, max_components=6))
def test_integrated_information_stays(pair):
    q, r, _, _ = pair
    same(mutual_information_quadrature(r, tolerance=1e-8), mutual_information_quadrature(q, tolerance=1e-8), atol=1e-7)


@law
@given(pairs())
def test_information_bounds_stay(pair):
    q, r, _, _ = pair
    one, two = mutual_information_bounds(q), mutual_information_bounds(r)
    same(torch.tensor(two), torch.tensor(one), rtol=1e-7, atol=1e-7)


@law
@given(pairs(), seeds)
def test_kl_parts_stay(pair, seed):
    q, _, a, b = pair
    a = a.abs()
    loc, scale = normal(seed, len(a)), normal(seed + 1, len(a)).exp()
    one = decompose_kl(q, Independent(Normal(loc, scale), 1), num_samples=200, generator=generator(seed))
    prior = Independent(Normal(a * loc + b, a * scale), 1)
    two = decompose_kl(moved(q, a, b), prior, num_samples=200, generator=generator(seed))
    for before, after in zip(one, two, strict=True):
        if isinstance(before, Estimate):
            same(after.value, before.value, rtol=1e-6, atol=1e-6)
            same(after.stderr, before.stderr, rtol=1e-4, atol=1e-6)


@law
@given(mixtures(), factors, signs, seeds)
def test_mmd_stays_when_its_bandwidth_goes_along(q, factor, sign, seed):
    """Against N(0, I) there is one unit; the kernel's part among codes is that of one mixture in another unit."""
    turn = torch.where(normal(seed, q.loc.shape[1]) > 0, 1.0, -1.0).double()
    same(mmd_squared(moved(q, turn, 0 * turn), 0.7), mmd_squared(q, 0.7), rtol=1e-9)


@law
@given(pairs(max_components=6, max_dim=2))
def test_modes_move_along(pair):
    q, _, _, _ = pair
    a, b = torch.full_like(q.loc[0], 37.0), normal(1, q.loc.shape[1])
    found, moved_modes = find_modes(q), find_modes(moved(q, a, b))
    one, two = (m[0] if isinstance(m, tuple) else m for m in (found, moved_modes))
    assert len(one) == len(two)
    distance = torch.cdist((two - b) / a, one).amin(1)
    assert float(distance.max()) < 1e-3 * float(q.variance.sqrt().max())


@law
@given(pairs(min_components=12), st.integers(1, 3), seeds, factors)
def test_fitted_mixtures_move_along(pair, size, seed, factor):
    """One unit for all coordinates: k-means, from which EM starts, goes by distances."""
    q = pair[0]
    a, b = torch.full_like(q.loc[0], factor), factor * normal(seed, q.loc.shape[1])
    one, two = (fit_gmm(p, size, num_samples=300, seed=seed % 1000) for p in (q, moved(q, a, b)))
    z = q.sample((20,), generator=generator(seed))
    same(two.log_prob(a * z + b), one.log_prob(z) - a.log().sum(), rtol=1e-4, atol=1e-3)


@law
@given(pairs(max_components=8))
def test_duplicates_stay_duplicates(pair):
    q, _, a, b = pair
    twice = DiagGaussianMixture(q.loc.repeat(2, 1), q.scale.repeat(2, 1))
    one, two = merge_duplicates(twice), merge_duplicates(moved(twice, a, b))
    assert torch.equal(one[1], two[1])
    same((two[0].loc - b) / a, one[0].loc)


def models(seed, a, b, num=12, dim=1, width=5):
    """A VAE of plain functions in the units z, and the same one in the units a z + b."""
    w, v = normal(seed, width, dim), normal(seed + 1, dim, width)

    def encode(x):
        return 0.3 * x @ w, (0.2 * x @ w).cos() * 0.3 + 0.6

    one = adapt(encode, lambda z: Normal(z @ v, 1.0), prior=Independent(Normal(0 * a, 0 * a + 1), 1))
    two = adapt(
        lambda x: (a * encode(x)[0] + b, a * encode(x)[1]),
        lambda z: Normal((z - b) / a @ v, 1.0),
        prior=Independent(Normal(b, a), 1),
    )
    return one, two, normal(seed + 2, num, dim) @ v + normal(seed + 3, num, width)


@law
@given(seeds, factors)
def test_bounds_stay(seed, factor):
    a = torch.full((1,), factor, dtype=torch.float64)
    one, two, x = models(seed, a, 2 * a)
    for bound in (elbo, iwae_bound):
        values = [bound(vae, x, num_samples=5, generator=generator(seed)) for vae in (one, two)]
        same(values[1], values[0], rtol=1e-6, atol=1e-6)


@law
@given(seeds, factors)
def test_aggregated_posteriors_move_along(seed, factor):
    a = torch.full((2,), factor, dtype=torch.float64)
    one, two, x = models(seed, a, 2 * a, dim=2)
    q, r = aggregated_posterior(one, x), aggregated_posterior(two, x)
    same((r.loc - 2 * a) / a, q.loc)
    same(r.scale / a, q.scale)


def chosen(seed, factor, which):
    a = torch.full((1,), factor, dtype=torch.float64)
    *both, x = models(seed, a, 2 * a, num=20)
    return choose_prior(both[which], x, num_components=(1, 2), generator=generator(seed))


@cache
def in_the_first_unit(seed):
    return chosen(seed, 1.0, 0)  # there the factor has no part


@law
@given(st.integers(0, 5), factors)
def test_choices_stay(seed, factor):
    choice, other = in_the_first_unit(seed), chosen(seed, factor, 1)
    assert (choice.num_components, choice.covariance) == (other.num_components, other.covariance)
    for name, gain in choice.gains.items():
        same(other.gains[name].value, gain.value, rtol=1e-3, atol=2e-3)
