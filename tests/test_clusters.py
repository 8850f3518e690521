"""The density by clusters against the whole matrix, and what may be left out of it."""

import math

import pytest
import torch

from vaebook import clusters, kernels
from vaebook.clusters import cluster
from vaebook.mixture import DiagGaussianMixture


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("num", [1, 5, 256, 257, 1000, 2048, 3000])
def test_clusters_hold_every_point_once(num):
    places = cluster(normal(num, 3))
    flat = places.flatten()
    assert sorted(flat[flat < num].tolist()) == list(range(num))
    assert bool((flat <= num).all())
    assert places.shape[1] <= clusters.SIZE
    assert places.numel() - num < len(places)


def test_clusters_are_neighbours():
    points = normal(4096, 2)
    within = points[cluster(points)].var(1).mean()
    assert within < 0.15 * points.var(0).mean()


def test_few_points_are_one_cluster():
    assert [len(cluster(normal(n, 2))) for n in (1, 256, 257, 512, 513)] == [1, 1, 2, 2, 4]


def mixture(num=3000, dim=4, log_scale=-2.0, seed=0):
    loc = 2 * normal(num, dim, seed=seed)
    scale = (log_scale + 0.5 * normal(num, dim, seed=seed + 1)).exp()
    log_weight = torch.log_softmax(8 * normal(num, seed=seed + 2), 0)  # down to e^-30 and below
    log_weight[::7] = -torch.inf
    return DiagGaussianMixture(loc, scale, log_weight.log_softmax(0))


def in_clusters(q):
    return clusters.prepare(*q.components()[1:], q.components()[0], cluster(q.loc))


def dense(q, z):
    terms = torch.distributions.Normal(q.loc, q.scale).log_prob(z[:, None]).sum(-1) + q.log_weight
    pull = (q.loc - z[:, None]) / q.scale.square()
    return terms.logsumexp(1), (terms.softmax(1)[..., None] * pull).sum(1)


@pytest.fixture
def chosen(monkeypatch):
    """The precisions of the calls that choose clusters, and how many points each has."""
    calls, original = [], clusters._chosen

    def watched(z, held, error, dtype, **how):
        calls.append((dtype, len(z)))
        return original(z, held, error, dtype, **how)

    monkeypatch.setattr(clusters, "_chosen", watched)
    return calls


@pytest.mark.parametrize("dim", [1, 2, 10])
@pytest.mark.parametrize("log_scale", [0.0, -2.0, -4.0])
def test_the_density_by_clusters_is_the_dense_one_to_what_was_promised(chosen, dim, log_scale):
    q = mixture(dim=dim, log_scale=log_scale)
    z = torch.cat([q.sample((600,), generator=seeded()), q.loc[:100], q.loc[:100] + 40 * q.scale[:100]])
    want, score = dense(q, z)
    for call in (lambda: (q.log_prob(z), score), lambda: q.log_prob_and_score(z)):
        chosen.clear()
        got, got_score = call()
        assert sum(num for _, num in chosen) > 500
        assert (got - want).abs().max() <= max(1e-8, 1e-12 * want.abs().max())
        assert ((got_score - score) * q.scale.amin()).abs().max() < 1e-7


def test_float32_is_good_enough_for_the_choice_where_float64_is_for_the_sum():
    ratio = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    assert kernels.TOLERANCE * ratio <= clusters.ROUGH


def test_both_precisions_are_met(chosen):
    met = set()
    for log_scale, dim in ((-1.0, 3), (-5.0, 3), (-8.0, 2)):
        loc = 3 * normal(6_000, dim)
        given = loc, torch.full_like(loc, math.exp(log_scale)), loc.new_zeros(6_000)
        z = torch.cat([loc[:300] + 0.3 * given[1][:300], loc[:20] + 1e8])
        for score in (False, True):
            chosen.clear()
            got = clusters.evaluate(z, clusters.prepare(*given, cluster(loc)), score=score)
            want = kernels.all_pairs(z, kernels.prepare(*given), score=score)
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-8 * math.exp(-log_scale))
            met |= {dtype for dtype, _ in chosen}
            assert sum(num for _, num in chosen) == 300  # the far ones are summed over all pairs
    assert met == {torch.float32, torch.float64}


def test_leaving_clusters_out_costs_no_more_than_the_bound_and_saves_work(monkeypatch):
    q = mixture(num=20_000, dim=3, log_scale=-3.0)
    z, seen = q.sample((400,), generator=seeded()), []
    inner = kernels.weigh
    monkeypatch.setattr(kernels, "weigh", lambda terms, *a, **k: seen.append(terms.numel()) or inner(terms, *a, **k))
    got = q.log_prob(z)
    assert 0 < sum(seen) < 0.2 * len(z) * q.num_components
    assert (got - dense(q, z)[0]).abs().max() < 2 * clusters.NEGLIGIBLE


def test_a_threshold_that_is_too_high_would_be_seen(monkeypatch):
    q = mixture(num=20_000, dim=3, log_scale=-1.0)
    z = q.sample((400,), generator=seeded())
    monkeypatch.setattr(clusters, "NEGLIGIBLE", 1e5)
    assert (q.log_prob(z) - dense(q, z)[0]).abs().max() > 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [0.0, 3.0, 20.0])
def test_no_cluster_is_left_out_that_the_rounding_error_might_have_hidden(dtype, error):
    """What is left out wrongly would be far too small to see in a density, so look at which are needed."""
    held = in_clusters(mixture(num=4_000, dim=2, log_scale=-3.0))
    z = 2 * normal(50, 2, seed=5)
    points = kernels.queries(z, held.components) / math.log(2)
    maxima = (points.to(dtype) @ held.keys[dtype].mT).view(50, -1, held.size).amax(2)
    reach = (math.log(len(held.components.loc)) + math.log(1e10) + 2 * error) / math.log(2)
    want = maxima >= maxima.amax(1, keepdim=True) - reach
    top, needed = clusters.needed(points, held, torch.full((50,), error, dtype=torch.float64), dtype)
    assert top.dtype == torch.float64 and torch.equal(top, maxima.amax(1, keepdim=True).double())
    assert 0 < int(needed.sum()) < needed.numel() and torch.equal(needed, want)


def given_for(z, held):
    """What `needed` and `bounded` take."""
    points = kernels.queries(z, held.components) / math.log(2)
    return points, held, kernels.rounding_bound(z, held.components, torch.float64), torch.float64


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("unequal", [0.0, 0.3, 2.0])
def test_bounds_leave_out_no_cluster_that_can_matter(monkeypatch, dim, spread, unequal):
    """At points near and far, of components whose widths and weights differ by factors of thousands."""
    monkeypatch.setattr(clusters, "WITHIN", math.inf)
    loc, log_weight = normal(3_000, dim), 5 * normal(3_000, seed=2)
    log_weight[::7] = -torch.inf
    scale = (unequal * normal(3_000, dim, seed=1) - 3).exp()
    held = clusters.prepare(loc, scale, log_weight.log_softmax(0), cluster(loc))
    z = torch.cat([spread * normal(300, dim, seed=3), loc[:50]])
    given = given_for(z, held)
    maxima = (given[0] @ held.components.keys.mT).view(len(z), -1, held.size).amax(2)
    top, wanted = clusters.bounded(*given)
    assert bool((top <= maxima.amax(1, keepdim=True) + 1e-6).all()) and bool(top.isfinite().all())
    reach = math.log2(len(held.components.loc) * 1e10)
    assert bool((wanted | (maxima < maxima.amax(1, keepdim=True) - reach)).all())
    if unequal < 1 and spread == 1.0 and dim < 5:
        assert not bool(wanted.all())  # so they do leave some out


def test_a_cluster_whose_best_term_could_just_matter_is_kept_by_bounds():
    """Of clusters of one point each, where the bound from above is the term itself."""
    loc = torch.linspace(0, 100, 1024, dtype=torch.float64)[:, None].repeat_interleave(256, 0)
    log_weight = torch.full((len(loc),), -math.log(len(loc)), dtype=torch.float64)
    held = clusters.prepare(loc, torch.ones_like(loc), log_weight, cluster(loc))
    given = given_for(loc[:1], held)
    maxima = (given[0] @ held.components.keys.mT).view(1, -1, held.size).amax(2)
    top, wanted = clusters.bounded(*given)
    reach = math.log2(len(loc) / clusters.NEGLIGIBLE)
    assert torch.equal(wanted, maxima >= top - reach - 1) and bool((maxima < top - reach - 1).any())
    torch.testing.assert_close(top, maxima.amax(1, keepdim=True), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("place", [0, 1])
def test_a_box_reaches_to_its_outermost_means(sign, place):
    """One cluster is at the point, wide; of the other, sharp, only one end is, and no component in the middle."""
    ends = sign * torch.tensor([[0.0], [100.0]], dtype=torch.float64)
    loc = torch.cat([ends[[place, place]], ends])
    scale, log_weight = torch.tensor([[1.0], [1.0], [0.1], [0.1]], dtype=torch.float64), torch.zeros(4).double()
    held = clusters.prepare(loc, scale, log_weight, torch.tensor([[0, 1], [2, 3]]))
    assert clusters.bounded(*given_for(ends[[place]], held))[1].tolist() == [[True, True]]


def test_a_component_that_is_near_the_middle_of_a_cluster_has_weight():
    loc, log_weight = torch.linspace(-1, 1, 513, dtype=torch.float64)[:, None], torch.zeros(513).double()
    log_weight[1::2] = -torch.inf
    held = clusters.prepare(loc, torch.ones_like(loc), log_weight, cluster(loc))
    assert bool(held.central[:, -1].isfinite().all())


def test_points_whose_bound_is_no_number_are_summed_over_all_pairs():
    """The largest precision is infinite, and a point lies in the middle of all means: 0 times infinity."""
    loc = torch.cat([normal(3_000, 2), -normal(3_000, 2)])
    scale = torch.full_like(loc, 0.1)
    scale[7] = 1e-170
    held, z = clusters.prepare(loc, scale, loc[:, 0] * 0, cluster(loc)), torch.zeros(500, 2, dtype=torch.float64)
    z[250:] = loc[:250]
    bound = kernels.rounding_bound(z, held.components)
    assert bool(bound[:250].isnan().all())
    torch.testing.assert_close(clusters.evaluate(z, held), kernels.all_pairs(z, held.components), rtol=0, atol=0)


def test_what_fills_a_cluster_does_not_widen_its_box():
    loc = torch.cat([normal(4_000, 2), 1e3 * torch.ones(1, 2, dtype=torch.float64)])
    held = clusters.prepare(loc, torch.ones_like(loc), loc[:, 0] * 0, cluster(loc))
    assert int((held.components.normaliser == -torch.inf).sum()) == len(held.components.loc) - len(loc) > 1
    assert int((held.box[:, 1] > 100).any(0).sum()) == 1


def test_bounds_choose_where_they_are_tight_and_terms_where_not():
    for dim, scale, want in ((2, 0.05, "bounded"), (12, 0.3, "needed"), (2, 3.0, None)):
        loc = normal(20_000, dim)
        held = clusters.prepare(loc, torch.full_like(loc, scale), loc[:, 0] * 0, cluster(loc))
        assert getattr(clusters.cheapest(*given_for(loc[:1_000], held)), "__name__", None) == want


def test_where_bounds_lie_far_apart_terms_choose_so_that_nothing_overflows(monkeypatch):
    """Few sharp components in large boxes: at its own component a point's term is thousands above the others."""
    monkeypatch.setattr(clusters, "MORE", 1.0)
    loc = normal(4_000, 2)
    held = clusters.prepare(loc, torch.full_like(loc, 0.01), loc[:, 0] * 0, cluster(loc))
    z = loc[:700] + 0.003
    want, given = kernels.all_pairs(z, held.components, score=True), given_for(z, held)
    torch.testing.assert_close(clusters.evaluate(z, held, score=True), want, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(clusters.bounded(*given), clusters.needed(*given), rtol=0, atol=0)
    monkeypatch.setattr(clusters, "WITHIN", math.inf)
    assert not bool(clusters.evaluate(z, held).isfinite().all())  # so the case is one


@pytest.mark.parametrize(("log_scale", "dtype"), [(-1.0, torch.float32), (-8.0, torch.float64)])
def test_clusters_are_chosen_with_the_error_of_the_terms_that_choose_them(monkeypatch, log_scale, dtype):
    loc = 3 * normal(6_000, 3)
    given = loc, torch.full_like(loc, math.exp(log_scale)), loc.new_zeros(6_000)
    held, z, asked = clusters.prepare(*given, cluster(loc)), loc[:500] + 0.1, []
    original = clusters.needed
    monkeypatch.setattr(clusters, "WORTH", 1.0)
    monkeypatch.setattr(clusters, "needed", lambda *a: asked.append(a) or original(*a))
    clusters.evaluate(z, held)
    bound = kernels.rounding_bound(z, held.components, dtype)
    tried = (
        [bound[:: 500 // clusters.SAMPLE]] if dtype is torch.float32 else []
    )  # squares are never traded for products
    for (_, _, error, precision), want in zip(asked, [*tried, bound], strict=True):
        assert precision == dtype
        torch.testing.assert_close(error, want, rtol=0, atol=0)


def test_the_last_component_keeps_its_place_in_the_direct_form():
    loc = normal(5_000, 2)
    loc[-1] = 40.0
    held = clusters.prepare(loc, torch.full_like(loc, math.exp(-8.5)), loc.new_zeros(5_000), cluster(loc))
    both = clusters.evaluate(loc[-1] + torch.zeros(600, 1), held, score=True)
    want = 2 * 8.5 - math.log(2 * math.pi)
    torch.testing.assert_close(both[:, 0], torch.full((600,), want, dtype=torch.float64), rtol=1e-12, atol=0)
    assert float(both[:, 1:].abs().max()) < 1e-200


def test_the_direct_form_is_never_traded_for_the_expanded_one(monkeypatch):
    monkeypatch.setattr(clusters, "WORTH", -1.0)
    loc = normal(5_000, 2)
    given = loc, torch.full_like(loc, math.exp(-12.0)), loc.new_zeros(5_000)
    z = loc[:600] + given[1][:600]
    want = kernels.all_pairs(z, kernels.prepare(*given))
    got = clusters.evaluate(z, clusters.prepare(*given, cluster(loc)))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_where_nearly_all_clusters_are_needed_all_pairs_are_visited(monkeypatch):
    visited, original = [], kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda z, *a, **k: visited.append(len(z)) or original(z, *a, **k))
    loc = normal(5_000, 2)
    for scale, count in ((3.0, [700]), (0.05, [])):
        given = loc, torch.full_like(loc, scale), loc.new_zeros(5_000)
        visited.clear()
        got = clusters.evaluate(loc[:700], clusters.prepare(*given, cluster(loc)))
        assert [num for num in visited if num] == count
        torch.testing.assert_close(got, kernels.all_pairs(loc[:700], kernels.prepare(*given)), rtol=0, atol=1e-9)


def test_clusters_are_considered_from_so_many_pairs_on():
    device = torch.device("cpu")
    assert clusters.PAIRS == 256 * 2**13
    assert clusters.worth(2**13, 256, device) and not clusters.worth(2**13, 255, device)
    assert clusters.worth(2_049, 10_000, device) and not clusters.worth(2_048, 10_000, device)
    assert not any(clusters.worth(2**13, 256, torch.device(other)) for other in ("cuda", "mps", "xpu", "meta"))


def test_bands_of_points_change_nothing(monkeypatch):
    q = mixture()
    z = q.sample((50,), generator=seeded())
    want = clusters.evaluate(z, in_clusters(q), score=True)
    for name in ("BAND", "ROWS", "COLUMNS"):
        monkeypatch.setattr(clusters, name, 7)
    got = clusters.evaluate(z, in_clusters(q), score=True)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_derivatives_in_the_points_come_from_the_score_and_can_be_taken_again():
    q = DiagGaussianMixture(normal(5, 2), (0.3 * normal(5, 2, seed=1)).exp())
    z = normal(4, 2, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(q.log_prob, z)
    assert torch.autograd.gradgradcheck(q.log_prob, z)
    index = torch.arange(4)
    assert torch.autograd.gradcheck(lambda z: q.log_prob_leave_one_out(z, index), z)


def test_derivatives_by_clusters_are_the_dense_ones():
    q = mixture()
    z = q.sample((800,), generator=seeded()).requires_grad_()
    score = dense(q, z)[1]
    value = q.log_prob(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    torch.testing.assert_close(slope, score, rtol=1e-7, atol=1e-7)
    (curved,) = torch.autograd.grad(slope.square().sum(), z)
    (wanted,) = torch.autograd.grad(score.square().sum(), z)
    torch.testing.assert_close(curved, wanted, rtol=1e-6, atol=1e-5)


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


def test_another_default_device_changes_nothing():
    q, z = mixture(), mixture().sample((800,), generator=seeded())
    want = mixture().log_prob(z)
    with torch.device("meta"):
        got = q.log_prob(z)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_bounds_that_are_tight_at_each_point_need_no_terms(monkeypatch):
    """One point is among the components, another far from all of them: only its own terms matter to it."""
    loc = 0.1 * normal(3_000, 2)
    held = clusters.prepare(loc, torch.ones_like(loc), loc[:, 0] * 0, cluster(loc))
    given = given_for(torch.tensor([[0.0, 0.0], [60.0, 0.0]], dtype=torch.float64), held)
    top, wanted = clusters.needed(*given)
    monkeypatch.setattr(clusters, "needed", None)
    least, kept = clusters.bounded(*given)
    assert bool((least <= top + 1e-6).all()) and bool((kept | ~wanted).all())
    assert float(top[0] - top[1]) > 2 * clusters.WITHIN


@pytest.mark.parametrize("outlier", [[], [0], [350], [-1]])
@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0])
def test_a_box_holds_the_means_of_its_cluster_and_no_more(outlier, shift):
    loc, scale, log_weight = normal(701, 2) + shift, normal(701, 2, seed=1).exp(), normal(701, seed=2)
    loc[outlier] = 1e3
    log_weight[::3] = -torch.inf
    places = cluster(loc)
    held, unit = clusters.prepare(loc, scale, log_weight, places), math.log2(math.e)
    for members, (middle, half, sharpness), central in zip(
        places, held.box.permute(2, 1, 0), held.central, strict=True
    ):
        own = members[members < len(loc)]
        low, high = (loc[own] - held.components.middle).aminmax(dim=0)
        torch.testing.assert_close(middle / unit, (low + high) / 2)
        torch.testing.assert_close(half / unit, (high - low) / 2)
        torch.testing.assert_close(sharpness, (2 * unit) ** -0.5 / scale[own].amax(0))
        live = own[log_weight[own] > -torch.inf]
        away = (loc[live] - held.components.middle - middle / unit).square().sum(1)
        nearest = scale[live[away.argmin()]]
        torch.testing.assert_close(central[:2], -0.5 * nearest**-2)


@pytest.mark.parametrize("log_scale", [-1.0, -8.0])
@pytest.mark.parametrize("num", [1, 2, 9])
def test_each_point_is_summed_with_the_error_of_its_own_band(monkeypatch, log_scale, num):
    """In both precisions, also a single point, and where the errors of points differ."""
    loc = 3 * normal(6_000, 3)
    given = loc, torch.full_like(loc, math.exp(log_scale)), loc.new_zeros(6_000)
    held, z, asked = clusters.prepare(*given, cluster(loc)), loc[:num] * torch.linspace(1, 1.1, num)[:, None], []
    original = clusters.needed
    monkeypatch.setattr(clusters, "BAND", 4)
    monkeypatch.setattr(clusters, "cheapest", lambda *_: clusters.needed)
    monkeypatch.setattr(clusters, "bounded", None)
    monkeypatch.setattr(clusters, "needed", lambda *a: asked.append(a) or original(*a))
    want = kernels.all_pairs(z, held.components)
    torch.testing.assert_close(clusters.evaluate(z, held), want, rtol=1e-9, atol=1e-9)
    bound = kernels.rounding_bound(z, held.components, asked[0][3])
    assert torch.equal(torch.cat([error for _, _, error, _ in asked]), bound)
    assert [len(points) for points, *_ in asked] == [4] * (num // 4) + [num % 4] * bool(num % 4)


def test_points_with_other_errors_need_other_clusters():
    held = in_clusters(mixture(num=4_000, dim=2, log_scale=-3.0))
    points = (kernels.queries(2 * normal(1, 2, seed=5), held.components) / math.log(2)).expand(3, -1)
    errors = torch.tensor([0.0, 20.0, 200.0], dtype=torch.float64)
    counts = clusters.needed(points, held, errors, torch.float64)[1].sum(1).tolist()
    alone = [int(clusters.needed(points[:1], held, error[None], torch.float64)[1].sum()) for error in errors]
    assert counts == alone == sorted(set(alone))


def test_bounds_that_lie_too_far_apart_hand_all_on_as_it_came(monkeypatch):
    held = in_clusters(mixture(num=600, dim=2))
    given = given_for(normal(5, 2), held)
    monkeypatch.setattr(clusters, "WITHIN", -math.inf)
    monkeypatch.setattr(clusters, "needed", lambda *a: a)
    assert all(one is other for one, other in zip(clusters.bounded(*given), given, strict=True))


def test_a_point_whose_error_is_just_the_largest_is_summed_once(monkeypatch, chosen):
    loc = 3 * normal(600, 3)
    given = loc, torch.full_like(loc, math.exp(-8.0)), loc.new_zeros(600)
    held, z = clusters.prepare(*given, cluster(loc)), loc[:9]
    monkeypatch.setattr(clusters, "ROUGH", float(kernels.rounding_bound(z, held.components, torch.float64).max()))
    got = clusters.evaluate(z, held)
    assert sum(num for _, num in chosen) == 9
    torch.testing.assert_close(got, kernels.all_pairs(z, held.components), rtol=1e-12, atol=1e-12)
