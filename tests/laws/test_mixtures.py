"""Laws of mixtures: order, merging, splitting, precision, chunks, leaving out, normalisation, moments."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import generator, law, mixtures, normal, points, same, seeds

from vaebook.aggregate import aggregated_posterior, merge_duplicates
from vaebook.certificates import mmd_squared, mutual_information_bounds
from vaebook.information import decompose_kl, mutual_information, mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture


def permuted(q, order):
    return DiagGaussianMixture(q.loc[order], q.scale[order], q.double().log_weight[order])


@law
@given(mixtures(), seeds)
def test_order_of_components_does_not_matter(q, seed):
    order = torch.randperm(q.num_components, generator=generator(seed))
    r, z = permuted(q, order), points(q, seed)
    same(r.log_prob(z), q.log_prob(z))
    same(r.log_prob_marginals(z), q.log_prob_marginals(z))
    same(r.log_prob_and_score(z)[1], q.log_prob_and_score(z)[1], rtol=1e-7, atol=1e-7)
    same(r.mean, q.mean)
    same(r.covariance, q.covariance)


@law
@given(mixtures(), seeds)
def test_responsibilities_follow_the_order(q, seed):
    order = torch.randperm(q.num_components, generator=generator(seed))
    z, values = q.sample((5,), generator=generator(seed)), normal(seed, q.num_components, 2)
    same(permuted(q, order).responsibilities(z), q.responsibilities(z)[:, order])
    same(permuted(q, order).posterior_mean(z, values[order]), q.posterior_mean(z, values))


@law
@given(mixtures(), seeds)
def test_certificates_do_not_depend_on_the_order(q, seed):
    r = permuted(q, torch.randperm(q.num_components, generator=generator(seed)))
    same(torch.tensor(mutual_information_bounds(r)), torch.tensor(mutual_information_bounds(q)))
    same(mmd_squared(r, 1.0), mmd_squared(q, 1.0))


@law
@given(mixtures(max_components=6, dim=1), seeds)
def test_integrated_information_does_not_depend_on_the_order(q, seed):
    r = permuted(q, torch.randperm(q.num_components, generator=generator(seed)))
    same(mutual_information_quadrature(r, tolerance=1e-8), mutual_information_quadrature(q, tolerance=1e-8), atol=1e-7)


@law
@given(mixtures(max_components=8), seeds, st.integers(2, 4))
def test_a_component_split_in_parts_is_one(q, seed, parts):
    share = normal(seed, q.num_components, parts).log_softmax(1)
    log_weight = (q.double().log_weight[:, None] + share).flatten()
    r = DiagGaussianMixture(q.loc.repeat_interleave(parts, 0), q.scale.repeat_interleave(parts, 0), log_weight)
    z = points(q, seed)
    same(r.log_prob(z), q.log_prob(z))
    merged, counts = merge_duplicates(r)
    assert counts.tolist() == [parts] * q.num_components
    same(merged.log_weight, q.log_weight)
    same(merged.responsibilities(z[:5]), q.responsibilities(z[:5]))


@law
@given(mixtures(max_components=8, weighted=False), seeds)
def test_merging_twice_is_merging_once(q, seed):
    index = torch.randint(q.num_components, (20,), generator=generator(seed))
    once, counts = merge_duplicates(DiagGaussianMixture(q.loc[index], q.scale[index]))
    again, ones = merge_duplicates(once)
    assert bool((ones == 1).all())
    assert int(counts.sum()) == 20
    same(again.log_weight, once.log_weight)


@law
@given(mixtures(), seeds)
def test_a_component_of_weight_zero_is_none(q, seed):
    extra = torch.cat([q.double().log_weight, torch.tensor([-math.inf], dtype=torch.float64)])
    r = DiagGaussianMixture(torch.cat([q.loc, q.loc[:1]]), torch.cat([q.scale, q.scale[:1]]), extra)
    z = points(q, seed)
    same(r.log_prob(z), q.log_prob(z))
    same(r.mean, q.mean)
    assert float(r.responsibilities(z[:5])[:, -1].abs().max()) == 0


@law
@given(mixtures(min_components=3), seeds)
def test_leave_one_out_is_the_mixture_of_the_others(q, seed):
    z, index = points(q, seed), seed % q.num_components
    keep = torch.arange(q.num_components) != index
    others = DiagGaussianMixture(q.loc[keep], q.scale[keep], q.double().log_weight[keep].log_softmax(0))
    same(q.log_prob_leave_one_out(z, torch.full((len(z),), index)), others.log_prob(z), rtol=1e-8, atol=1e-8)


@law
@given(mixtures(min_components=3), seeds)
def test_leave_one_out_and_the_component_make_the_whole(q, seed):
    z = q.sample((6,), generator=generator(seed))
    index = torch.arange(6) % q.num_components
    weight = q.double().log_weight[index]
    own = DiagGaussianMixture(q.loc, q.scale)  # for its components only
    part = torch.distributions.Normal(own.loc[index], own.scale[index]).log_prob(z).sum(1)
    rest = q.log_prob_leave_one_out(z, index) + torch.log1p(-weight.exp())
    same(torch.logaddexp(rest, weight + part), q.log_prob(z), rtol=1e-8, atol=1e-8)
    asked = q.leave_one_out(index).log_prob(z.expand(2, 6, -1))
    same(asked, q.log_prob_leave_one_out(z, index).expand(2, 6), rtol=1e-12, atol=0)


@law
@given(mixtures(), seeds, st.integers(1, 7))
def test_points_in_chunks_are_the_points_at_once(q, seed, size):
    z = points(q, seed)
    same(torch.cat([q.log_prob(part) for part in z.split(size)]), q.log_prob(z), rtol=1e-12, atol=1e-12)
    same(q.log_prob(z.reshape(2, -1, z.shape[1])).flatten(), q.log_prob(z), rtol=1e-12, atol=1e-12)
    same(torch.cat([q.responsibilities(p) for p in z.split(size)]), q.responsibilities(z), rtol=1e-10, atol=1e-12)


@law
@given(mixtures(max_components=200, max_dim=3), seeds)
def test_many_points_are_what_few_are(q, seed):
    z = points(q, seed, 700)
    whole = q.log_prob(z)
    same(whole[::97], q.log_prob(z[::97]), rtol=1e-9, atol=1e-9)


@law
@given(mixtures(), seeds)
def test_single_precision_is_double_precision_rounded(q, seed):
    r = DiagGaussianMixture(q.loc.float(), q.scale.float(), q.log_weight)
    z = q.sample((9,), generator=generator(seed)).float()
    exact = DiagGaussianMixture(r.loc.double(), r.scale.double(), q.log_weight)
    assert r.log_prob(z).dtype == torch.float32
    same(r.log_prob(z).double(), exact.log_prob(z.double()), rtol=1e-5, atol=1e-5)
    same(r.double().log_prob(z.double()), exact.log_prob(z.double()), rtol=1e-9)
    same(r.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)
    same(r.responsibilities(z).double(), exact.responsibilities(z.double()), rtol=1e-4, atol=1e-5)


@law
@given(mixtures(weighted=False), seeds)
def test_information_in_single_precision(q, seed):
    r = DiagGaussianMixture(q.loc.float(), q.scale.float())
    one, two = mutual_information_bounds(r), mutual_information_bounds(r.double())
    same(torch.tensor(one), torch.tensor(two), rtol=1e-6, atol=1e-6)
    information = mutual_information(q, 400, generator=generator(seed))
    bounds = mutual_information_bounds(q)
    slack = 6 * information.stderr + 1e-9
    assert bounds[0] - slack <= information.value <= min(bounds[1], math.log(q.num_components)) + slack


@law
@given(mixtures(dim=1, max_components=8))
def test_it_integrates_to_one_and_to_its_moments(q):
    width = float(q.scale.min()) / 8
    low, high = (float(e) for e in ((q.loc - 9 * q.scale).min(), (q.loc + 9 * q.scale).max()))
    z = torch.linspace(low, high, min(400_000, int((high - low) / width) + 2), dtype=torch.float64)[:, None]
    step = float(z[1] - z[0])
    p = q.log_prob(z).exp() * step
    same(p.sum(), torch.ones(()).double(), rtol=1e-6)
    same((p @ z), q.mean, rtol=1e-6, atol=1e-6)
    same(p @ (z - q.mean).square(), q.variance, rtol=1e-6, atol=1e-6)
    log_marginal = q.log_prob_marginals(z)[:, 0]
    same(log_marginal, q.log_prob(z), rtol=1e-9)


@law
@given(mixtures(), seeds)
def test_moments_are_those_of_draws(q, seed):
    z = q.sample((4000,), generator=generator(seed))
    deviation = z - q.mean
    assert bool((deviation.mean(0).abs() <= 6 * (q.variance / 4000).sqrt()).all())
    square = deviation.square()
    assert bool(((square.mean(0) - q.variance).abs() <= 6 * square.std(0) / 4000**0.5 + 1e-12).all())
    product = deviation[:, 0] * deviation[:, -1]
    assert abs(float(product.mean() - q.covariance[0, -1])) <= 6 * float(product.std()) / 4000**0.5 + 1e-12


@law
@given(mixtures(), seeds)
def test_the_score_is_the_slope(q, seed):
    z = q.sample((5,), generator=generator(seed)).requires_grad_()
    (slope,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    log_prob, score = q.log_prob_and_score(z.detach())
    same(score, slope, rtol=1e-8, atol=1e-8)
    same(log_prob, q.log_prob(z.detach()), rtol=1e-12)


@law
@given(mixtures(), seeds)
def test_responsibilities_are_weights_and_ratios(q, seed):
    z = points(q, seed)
    r = q.responsibilities(z)
    same(r.sum(1), torch.ones(len(z)).double())
    part = torch.distributions.Normal(q.loc, q.scale).log_prob(z[:, None]).sum(-1)
    same(r, (q.double().log_weight + part - q.log_prob(z)[:, None]).exp(), rtol=1e-6, atol=1e-8)


@law
@given(mixtures(), seeds)
def test_the_parts_of_the_kl_add_up(q, seed):
    prior = torch.distributions.Independent(torch.distributions.Normal(q.mean, q.variance.sqrt()), 1)
    parts = decompose_kl(q, prior, num_samples=2000, generator=generator(seed))
    slack = 6 * (parts.mutual_information.stderr + parts.marginal_kl.stderr + parts.rate.stderr) + 1e-6
    assert abs(parts.rate.value - parts.mutual_information.value - parts.marginal_kl.value) <= slack
    assert parts.marginal_kl.value >= -6 * parts.marginal_kl.stderr - 1e-6


@law
@given(seeds, st.integers(1, 30), st.integers(1, 31))
def test_batches_do_not_matter(seed, num, size):
    x, w = normal(seed, num, 3), normal(seed + 1, 3, 2)
    encode = lambda x: (x @ w, (x @ w).cos() + 1.5)  # noqa: E731
    whole, parts = (aggregated_posterior(encode, x, batch_size=b) for b in (num, size))
    same(parts.loc, whole.loc, rtol=1e-12, atol=1e-12)
    stream = aggregated_posterior(encode, iter(x.split(size)))
    same(stream.scale, whole.scale, rtol=1e-12, atol=1e-12)


@law
@given(seeds, st.integers(2, 20))
def test_q_agg_of_all_is_the_average_of_parts(seed, num):
    x = normal(seed, 2 * num, 2)
    encode = lambda x: (x, x.sin() + 1.5)  # noqa: E731
    first, second, whole = (aggregated_posterior(encode, part) for part in (x[:num], x[num:], x))
    z = normal(seed + 1, 5, 2)
    same(torch.logaddexp(first.log_prob(z), second.log_prob(z)) - math.log(2), whole.log_prob(z))
