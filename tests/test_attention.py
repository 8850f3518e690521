"""Attention in blocks and by clusters against the whole matrix, and what may be left out of it."""

import math

import pytest
import torch

from vaebook import attention, kernels
from vaebook.attention import attend, attend_clusters, cluster
from vaebook.mixture import DiagGaussianMixture


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [(1, 1), (3, 7), (512, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_any_size_give_the_whole(monkeypatch, block, dtype):
    monkeypatch.setattr(attention, "ROWS", block[0])
    monkeypatch.setattr(attention, "COLUMNS", block[1])
    queries, keys, values = (3 * normal(11, 5), normal(23, 5, seed=1), normal(23, 2, seed=2))
    scores = (queries @ keys.mT).to(dtype)
    got = attend(queries.to(dtype), keys.to(dtype), values=values)
    want = torch.cat([scores.logsumexp(1, keepdim=True), scores.softmax(1) @ values.to(dtype)], 1)
    torch.testing.assert_close(got, want, atol=1e-5 if dtype is torch.float32 else 1e-13, rtol=1e-5)


def test_one_key_a_query_can_be_left_out_wherever_it_stands(monkeypatch):
    monkeypatch.setattr(attention, "COLUMNS", 4)
    queries, keys, out = normal(9, 3), normal(9, 3, seed=1), torch.arange(9)
    scores = (queries @ keys.mT).masked_fill(torch.eye(9, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(attend(queries, keys, exclude=out)[:, 0], scores.logsumexp(1))


@pytest.mark.parametrize("num", [1, 5, 256, 257, 1000, 2048, 3000])
def test_clusters_hold_every_point_once(num):
    order, clusters = cluster(normal(num, 3))
    assert sorted(order[order < num].tolist()) == list(range(num))
    assert len(order) % clusters == 0
    assert len(order) // clusters <= attention.CLUSTER
    assert len(order) - num < clusters


def test_clusters_are_neighbours():
    points = normal(4096, 2)
    order, clusters = cluster(points)
    within = points[order].view(clusters, -1, 2).var(1).mean()
    assert within < 0.15 * points.var(0).mean()


def mixture(num=3000, dim=4, log_scale=-2.0, seed=0):
    loc = 2 * normal(num, dim, seed=seed)
    scale = (log_scale + 0.5 * normal(num, dim, seed=seed + 1)).exp()
    log_weight = torch.log_softmax(8 * normal(num, seed=seed + 2), 0)  # down to e^-30 and below
    log_weight[::7] = -torch.inf
    return DiagGaussianMixture(loc, scale, log_weight.log_softmax(0))


def dense(q, z):
    terms = torch.distributions.Normal(q.loc, q.scale).log_prob(z[:, None]).sum(-1) + q.log_weight
    pull = (q.loc - z[:, None]) / q.scale.square()
    return terms.logsumexp(1), (terms.softmax(1)[..., None] * pull).sum(1)


@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize("log_scale", [0.0, -2.0, -4.0])
def test_the_density_by_clusters_is_the_dense_one_to_what_was_promised(dim, log_scale):
    q = mixture(dim=dim, log_scale=log_scale)
    z = torch.cat([q.sample((600,), generator=seeded()), q.loc[:100], q.loc[:100] + 40 * q.scale[:100]])
    chosen = kernels.plan(z, q._components(len(z)))
    assert (chosen.precision > 0).sum() > 500
    want, score = dense(q, z)
    got, got_score = q.log_prob_and_score(z)
    assert (q.log_prob(z) - want).abs().max() <= max(1e-8, 1e-12 * want.abs().max())
    assert (got - want).abs().max() <= max(1e-8, 1e-12 * want.abs().max())
    assert ((got_score - score) * q.scale.amin()).abs().max() < 1e-7


def test_leaving_clusters_out_costs_no_more_than_the_bound_and_saves_work(monkeypatch):
    q = mixture(num=20_000, dim=3, log_scale=-3.0)
    z, seen = q.sample((400,), generator=seeded()), []
    inner = attention._exp
    monkeypatch.setattr(attention, "_exp", lambda scores: (seen.append(scores.numel()), inner(scores))[1])
    got = q.log_prob(z)
    assert sum(seen) < 0.2 * len(z) * q.num_components
    assert (got - dense(q, z)[0]).abs().max() < 2 * attention.NEGLIGIBLE


def test_a_threshold_that_is_too_high_would_be_seen(monkeypatch):
    q = mixture(num=20_000, dim=3, log_scale=-1.0)
    z = q.sample((400,), generator=seeded())
    monkeypatch.setattr(attention, "NEGLIGIBLE", 1e5)
    assert (q.log_prob(z) - dense(q, z)[0]).abs().max() > 1e-8


def test_plan_avoids_float32_where_it_would_mislead():
    q = mixture(log_scale=-3.0)
    z = torch.cat([q.loc[:1000], q.loc[:10] + 1e4])
    chosen = kernels.plan(z, q._components(len(z)))
    assert not (chosen.precision[1000:] == 32).any()
    assert (chosen.precision[:1000] > 0).all()
    assert not kernels.plan(z[:5], q._components(5)).precision.any()  # too few to pay


def test_derivatives_in_the_points_come_from_the_score_and_can_be_taken_again():
    q = DiagGaussianMixture(normal(5, 2), (0.3 * normal(5, 2, seed=1)).exp())
    z = normal(4, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(q.log_prob, z)
    assert torch.autograd.gradgradcheck(q.log_prob, z)
    index = torch.arange(4)
    assert torch.autograd.gradcheck(lambda z: q.log_prob_leave_one_out(z, index), z)


@pytest.mark.parametrize("far", [1e3, 1e5])
def test_derivative_far_off_the_data(far):
    scale = math.exp(-6)
    for tracked in (False, True):
        loc = torch.zeros(6, 1, dtype=torch.float64, requires_grad=tracked)
        z = torch.tensor([[far]], dtype=torch.float64, requires_grad=True)
        q = DiagGaussianMixture(loc, torch.full((6, 1), scale, dtype=torch.float64))
        (slope,) = torch.autograd.grad(q.log_prob(z).sum(), z)
        torch.testing.assert_close(slope, torch.tensor([[-far / scale**2]], dtype=torch.float64), rtol=1e-12, atol=0)


def test_score_where_the_direct_form_is_chosen():
    loc = torch.tensor([[0.3], [1e6]], dtype=torch.float64)
    q = DiagGaussianMixture(loc, torch.full((2, 1), math.exp(-6), dtype=torch.float64))
    z = loc[:1] + 1e-6
    torch.testing.assert_close(q.log_prob_and_score(z)[1], (loc[:1] - z) * math.exp(12), rtol=1e-12, atol=0)


def test_attend_clusters_alone():
    keys = normal(2000, 3)
    order, clusters = cluster(keys)
    rows, places = 5 * normal(50, 3, seed=1), order.clamp(max=1999)
    padded = torch.cat([keys[places], torch.where(order == 2000, -torch.inf, 0.0)[:, None].double()], 1)
    queries = torch.cat([rows, torch.ones(50, 1, dtype=torch.float64)], 1)
    got = attend_clusters(queries, padded, clusters, torch.zeros(50))
    torch.testing.assert_close(got[:, 0], (rows @ keys.mT).logsumexp(1), atol=1e-9, rtol=0)


def test_sums_of_several_blocks_do_not_overflow():
    """Each of three blocks sums to nearly the largest number about the maximum of the first one."""
    keys = torch.zeros(4 * attention.COLUMNS, 1, dtype=torch.float64)
    keys[attention.COLUMNS :] = 701.9
    found = attention.attend(torch.ones(1, 1, dtype=torch.float64), keys)
    assert found.item() == pytest.approx(701.9 + math.log(3 * attention.COLUMNS), rel=1e-14)


def test_nothing_but_the_log_sum_exp_unless_averages_are_asked_for():
    keys = torch.randn(600, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order, count = attention.cluster(keys)
    keys = keys[order.clamp(max=599)]
    assert attention.attend_clusters(keys[:5], keys, count, torch.zeros(5)).shape == (5, 1)
    assert attention.attend(keys[:5], keys).shape == (5, 1)


@pytest.mark.parametrize(("log_scale", "precision"), [(-1.0, 32), (-5.0, 64)])
def test_clusters_are_chosen_with_the_error_of_the_scores_that_choose_them(monkeypatch, log_scale, precision):
    """What is left out wrongly would be far too small to see in the result, so look at what is asked for."""
    loc = 3 * normal(6_000, 3)
    held = kernels.prepare(loc, torch.full_like(loc, math.exp(log_scale)), loc.new_zeros(6_000), order=cluster(loc))
    z = loc[:500] + 0.1
    assert set(kernels.plan(z, held).precision.tolist()) == {precision}
    asked = []
    monkeypatch.setattr(kernels, "share_needed", lambda *a: 0.0)
    original = kernels.attend_clusters
    monkeypatch.setattr(kernels, "attend_clusters", lambda *a, **k: asked.append(a) or original(*a, **k))
    kernels.logsumexp_terms(z, held)
    ((queries, keys, _, error, _),) = asked
    dtype, bound = {32: (torch.float32, kernels._rough_error), 64: (torch.float64, kernels.rounding_bound)}[precision]
    assert queries.dtype == keys.dtype == dtype
    torch.testing.assert_close(error, bound(z, held), rtol=0, atol=0)


def test_the_last_component_keeps_its_place_in_the_direct_form_by_clusters():
    loc = normal(5_000, 2)
    loc[-1] = 40.0
    held = kernels.prepare(loc, torch.full_like(loc, math.exp(-8.5)), loc.new_zeros(5_000), order=cluster(loc))
    z = loc[-1] + torch.zeros(600, 1)
    chosen = kernels.plan(z, held)
    value, score = kernels.logsumexp_and_score(z, held)
    want = 2 * 8.5 - math.log(2 * math.pi)
    torch.testing.assert_close(value, torch.full((600,), want, dtype=torch.float64), rtol=1e-12, atol=0)
    assert bool(chosen.direct.all()) and bool(chosen.precision.bool().all()) and float(score.abs().max()) < 1e-200


def test_the_bound_on_rough_scores_written_out():
    loc, scale, log_weight = normal(50, 3), 0.1 + normal(50, 3, seed=1).abs(), normal(50, seed=2).log_softmax(0)
    log_weight[0] = -torch.inf
    held = kernels.prepare(loc, scale, log_weight)
    z = normal(4, 3, seed=3)
    middle = (loc.amin(0) + loc.amax(0)) / 2
    reach = (z - middle).abs() + (loc - middle).abs().amax(0)
    size = (reach.square() / scale.amin(0).square()).sum(1)
    normaliser = log_weight[1:] - 1.5 * math.log(2 * math.pi) - scale[1:].log().sum(1)
    want = (2 * 3 + 4) * 2.0**-23 * (size + normaliser.abs().max())
    torch.testing.assert_close(kernels._rough_error(z, held), want, rtol=1e-12, atol=0)
    exact = kernels.log_terms(z, held, direct=True)[:, 1:]
    rough = (kernels._queries(z, held).float() @ held.keys[1:].float().mT).double()
    assert bool(((rough - exact).abs() <= want[:, None]).all())


def test_few_points_are_one_cluster():
    assert [cluster(normal(n, 2))[1] for n in (1, 256, 257, 512, 513)] == [1, 1, 2, 2, 4]


def test_the_direct_form_is_never_traded_for_the_expanded_one(monkeypatch):
    monkeypatch.setattr(kernels, "share_needed", lambda *a: 1.0)
    loc = normal(5_000, 2)
    scale = torch.full_like(loc, math.exp(-12.0))
    held = kernels.prepare(loc, scale, loc.new_zeros(5_000), order=cluster(loc))
    z = loc[:600] + scale[:600]
    want = kernels.logsumexp_terms(z, kernels.prepare(loc, scale, loc.new_zeros(5_000)))
    torch.testing.assert_close(kernels.logsumexp_terms(z, held), want, rtol=1e-12, atol=1e-12)


def test_clusters_are_considered_from_so_many_pairs_on():
    loc = normal(2**13, 2)
    held = kernels.prepare(loc, torch.ones_like(loc), loc.new_zeros(2**13), order=cluster(loc))
    assert kernels.MANY == 256 * 2**13
    assert bool(kernels.plan(loc[:256], held).precision.bool().all())
    assert not kernels.plan(loc[:255], held).precision.any()
