"""Both forms of a log-term against an oracle in extended precision, and the bound that chooses between them."""

import math

import numpy as np
import pytest
import torch

from vaebook import kernels


def oracle_terms(z, loc, scale, log_weight):
    """Direct sums in numpy's extended precision (80 bits on x86-64), with no tensor code in common."""
    z, loc, scale, log_weight = (np.asarray(x.detach(), np.longdouble) for x in (z, loc, scale, log_weight))
    squares = ((z[:, None] - loc) / scale) ** 2
    normaliser = log_weight - np.log(scale).sum(-1) - 0.5 * loc.shape[1] * np.log(2 * np.longdouble(np.pi))
    return normaliser - 0.5 * squares.sum(-1)


def oracle_log_prob(z, loc, scale, log_weight):
    terms = oracle_terms(z, loc, scale, log_weight)
    top = terms.max(-1)
    return (top + np.log(np.exp(terms - top[:, None]).sum(-1))).astype(np.float64)


def log_prob(z, held, exclude=None):
    method = kernels.dense if kernels.tracked(z, *held) else kernels.all_pairs
    return method(z, held, exclude)[:, 0]


def log_prob_and_score(z, held, exclude=None):
    method = kernels.dense if kernels.tracked(z, *held) else kernels.all_pairs
    both = method(z, held, exclude, score=True)
    return both[:, 0], both[:, 1:]


def all_terms(z, held, *, direct):
    """The matrix of log-terms in either form, whatever the bound says."""
    if not direct:
        return kernels.queries(z, held) @ held.keys.mT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "TOLERANCE", -1.0)
        terms, reference = kernels.log_terms(z, held)
    return terms + reference


def components(num, dim, log_scale, offset=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    loc = torch.randn(num, dim, generator=g, dtype=torch.float64) + offset
    scale = (log_scale + 0.5 * torch.randn(num, dim, generator=g, dtype=torch.float64)).exp()
    log_weight = torch.log_softmax(3 * torch.randn(num, generator=g, dtype=torch.float64), 0)
    return loc, scale, log_weight, g


@pytest.mark.parametrize("log_scale", [0.0, -2.0, -4.0, -6.0])
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("dim", [1, 2, 40])
def test_the_chosen_form_is_accurate_near_on_and_far_off_the_components(dim, offset, log_scale):
    loc, scale, log_weight, g = components(300, dim, log_scale, offset)
    near = loc[:50] + scale[:50] * torch.randn(50, dim, generator=g, dtype=torch.float64)
    far = loc[:50] + 40 * scale[:50]
    z = torch.cat([near, loc[:50], far])
    got = log_prob(z, kernels.prepare(loc, scale, log_weight)).numpy()
    want = oracle_log_prob(z, loc, scale, log_weight)
    assert (np.abs(got - want) <= np.maximum(1e-8, 1e-12 * np.abs(want))).all()


@pytest.mark.parametrize("log_scale", [0.0, -3.0, -6.0])
@pytest.mark.parametrize("dim", [20, 40, 100, 400])
def test_the_bound_holds_for_the_expanded_form_and_is_not_vacuous(dim, log_scale):
    loc, scale, log_weight, _ = components(200, dim, log_scale)
    z, held = loc[:100] + scale[:100], kernels.prepare(loc, scale, log_weight)
    want = oracle_terms(z, loc, scale, log_weight)
    wrong = np.abs(all_terms(z, held, direct=False).numpy() - want)
    bound = np.broadcast_to(kernels.rounding_bound(z, held).numpy()[:, None], wrong.shape)
    assert (wrong <= bound).all()
    assert bound.max() < dim**2 * 1e-4 * np.exp(-2 * log_scale) / 100 / 400


@pytest.mark.parametrize("dim", [1, 40, 100, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_holds_where_all_coordinates_are_as_bad_as_it_allows(dim, dtype):
    """Equal scales and coordinates of one size: the sizes add up to what the bound takes them for, nearly."""
    g = torch.Generator().manual_seed(dim)
    loc = torch.randn(300, dim, generator=g, dtype=torch.float64).sign() * (1 + torch.rand(300, dim, generator=g) / 8)
    scale, log_weight = torch.full_like(loc, 0.013), torch.zeros(300, dtype=torch.float64)
    z, held = loc[:150] + 0.01, kernels.prepare(loc, scale, log_weight)
    got = (kernels.queries(z, held).to(dtype) @ held.keys.to(dtype).mT).double().numpy()
    error = np.abs(got - oracle_terms(z, loc, scale, log_weight)).max(1)
    bound = kernels.rounding_bound(z, held, dtype).numpy()
    assert (error <= bound).all()
    assert (error > bound / (400 * dim)).any()


def test_the_bound_takes_the_worst_component():
    loc = torch.tensor([[3.0, 0.0], [-3.0, 0.5], [0.0, -0.5]], dtype=torch.float64)
    scale = torch.tensor([[0.1, 1.0], [1.0, 0.01], [2.0, 3.0]], dtype=torch.float64)
    held = kernels.prepare(loc, scale, torch.tensor([0.0, -torch.inf, -3.0]).double())
    z = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    normaliser = [-math.log(2 * math.pi) - math.log(0.1), -math.log(2 * math.pi) - math.log(6.0) - 3.0]
    point, means = 0.5 * (1 / 0.1**2 + 4 / 0.01**2), 0.5 * max(9 / 0.1**2, 9 + 0.25 / 0.01**2, 0.25 / 9)
    size = (point**0.5 + means**0.5) ** 2 + max(map(abs, normaliser))
    assert kernels.rounding_bound(z, held).item() == pytest.approx((3 * 2 + 14) * 2.0**-53 * size, rel=1e-12)
    assert kernels.rounding_bound(z, held, torch.float32).item() == pytest.approx((3 * 2 + 14) * 2.0**-24 * size)


def test_the_expanded_form_alone_would_be_wrong_where_the_bound_refuses_it():
    loc, scale, log_weight, _ = components(50, 2, -12.0)
    z, held = loc + scale, kernels.prepare(loc, scale, log_weight)
    want = oracle_log_prob(z, loc, scale, log_weight)
    expanded = all_terms(z, held, direct=False).logsumexp(-1).numpy()
    assert np.abs(expanded - want).max() > 1e-8
    assert np.abs(log_prob(z, held).numpy() - want).max() < 1e-11


@pytest.mark.parametrize("direct", [True, False])
def test_both_forms_agree_with_the_oracle_term_by_term(direct):
    loc, scale, log_weight, g = components(100, 7, -1.0)
    z = torch.randn(30, 7, generator=g, dtype=torch.float64)
    got = all_terms(z, kernels.prepare(loc, scale, log_weight), direct=direct).numpy()
    want = oracle_terms(z, loc, scale, log_weight).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("block", [1, 7 * 11, 10**6])
def test_block_and_tile_sizes_change_nothing(monkeypatch, block):
    loc, scale, log_weight, g = components(11, 3, -5.0)
    z, values = torch.randn(29, 3, generator=g, dtype=torch.float64), torch.randn(11, 4, generator=g).double()
    held = kernels.prepare(loc, scale, log_weight)
    want_log, want_score = log_prob_and_score(z, held)
    want_mean, want_soft = kernels.responsibilities(z, held, values), kernels.responsibilities(z, held)
    monkeypatch.setattr(kernels, "ENTRIES", block)
    monkeypatch.setattr(kernels, "POINTS", block)
    monkeypatch.setattr(kernels, "ROWS", max(1, block // 7))
    monkeypatch.setattr(kernels, "COLUMNS", max(1, block // 7))
    got_log, got_score = log_prob_and_score(z, held)
    torch.testing.assert_close(got_log, want_log, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got_score, want_score, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(kernels.responsibilities(z, held, values), want_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernels.responsibilities(z, held), want_soft, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])  # the expanded and the direct form
@pytest.mark.parametrize("block", [1, 10**6])  # with and without recomputation
def test_derivatives_of_both_forms_with_and_without_recomputation(monkeypatch, block, log_scale):
    monkeypatch.setattr(kernels, "ENTRIES", block)
    loc, scale, log_weight, g = components(4, 2, log_scale)
    z = loc[:3] + scale[:3] * torch.randn(3, 2, generator=g, dtype=torch.float64)
    # In units of the scale, so that gradcheck's finite steps suit both cases.
    shift, unit = torch.zeros_like(z), scale.mean()
    arguments = [
        x.clone().requires_grad_() for x in (shift, torch.zeros_like(loc), torch.zeros_like(scale), log_weight)
    ]

    def moved(shift, move, stretch, log_weight):
        held = kernels.prepare(loc + unit * move, scale * stretch.exp(), log_weight)
        return log_prob(z + unit * shift, held)

    assert torch.autograd.gradcheck(moved, arguments, atol=2e-5, rtol=1e-4)
    if log_scale == 0.0:
        assert torch.autograd.gradgradcheck(moved, arguments, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])  # the expanded and the direct form
@pytest.mark.parametrize("tracked", [False, True])
def test_averages_of_more_components_than_are_taken_at_once(tracked, log_scale):
    loc, scale, log_weight, g = components(kernels.COLUMNS + 500, 2, log_scale)
    z = loc[:20] + scale[:20] * torch.randn(20, 2, generator=g, dtype=torch.float64)
    values = torch.randn(len(loc), 3, generator=g)  # float32
    terms = oracle_terms(z, loc, scale, log_weight)
    r = np.exp(terms - terms.max(-1, keepdims=True))
    want = torch.from_numpy((r @ values.numpy().astype(np.longdouble) / r.sum(-1, keepdims=True)).astype(np.float64))
    held = kernels.prepare(loc, scale, log_weight)
    got = kernels.responsibilities(z.requires_grad_(tracked), held, values.double())
    assert got.dtype == torch.float64 and got.requires_grad == tracked
    torch.testing.assert_close(got.detach(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("log_scale", [0.0, -9.0])
def test_derivatives_of_averages(monkeypatch, block, log_scale):
    monkeypatch.setattr(kernels, "ENTRIES", block)
    loc, scale, log_weight, g = components(4, 2, log_scale)
    z, values = loc[:3] + scale[:3], torch.randn(4, 3, generator=g, dtype=torch.float64)
    unit = scale.mean()
    arguments = [x.clone().requires_grad_() for x in (torch.zeros_like(z), torch.zeros_like(loc), log_weight, values)]

    def average(shift, move, log_weight, values):
        held = kernels.prepare(loc + unit * move, scale, log_weight)
        return kernels.responsibilities(z + unit * shift, held, values)

    assert torch.autograd.gradcheck(average, arguments, atol=2e-5, rtol=1e-4)


def test_each_point_leaves_out_its_own_component_where_both_forms_are_taken():
    """Among points some of which take the expanded form and some the direct one, in every order."""
    loc, scale, log_weight, _ = components(6, 2, -2.0)
    held, index = kernels.prepare(loc, scale, log_weight), torch.tensor([5, 0, 3, 3, 1, 2])
    z = loc[index] + 3 * scale[index]
    z[::2] += 1e5  # far enough away for the direct form
    rough = kernels.too_rough(z, held)
    assert rough.tolist() == [True, False] * 3
    got, score = log_prob_and_score(z, held, index)
    torch.testing.assert_close(log_prob(z, held, index), got, rtol=0, atol=0)
    for k, n in enumerate(index):
        keep = torch.arange(6) != n
        want = oracle_log_prob(z[[k]], loc[keep], scale[keep], log_weight[keep])
        assert got[k].item() == pytest.approx(want.item(), rel=1e-12, abs=1e-9)
        rest = kernels.prepare(loc[keep], scale[keep], log_weight[keep])
        torch.testing.assert_close(score[[k]], log_prob_and_score(z[[k]], rest)[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("tracked", [False, True])
def test_each_point_leaves_out_its_own_component_in_every_block(monkeypatch, tracked, block):
    monkeypatch.setattr(kernels, "ENTRIES", block)
    loc, scale, log_weight, _ = components(6, 2, -9.0)  # so sharp that the direct form is taken
    index = torch.tensor([5, 0, 3, 3])
    z = loc[index] + 3 * scale[index]
    held = kernels.prepare(loc, scale.requires_grad_(tracked), log_weight)
    got = log_prob(z, held, exclude=index)
    for k, n in enumerate(index):
        keep = torch.arange(6) != n
        want = oracle_log_prob(z[[k]], loc[keep], scale[keep], log_weight[keep])
        assert got[k].item() == pytest.approx(want.item(), rel=1e-12)


def test_rows_at_once_are_fewer_where_derivatives_are_kept(monkeypatch):
    """An array has at most ENTRIES entries; with derivatives, or squares of all coordinates, ENTRIES / D rows of it."""
    monkeypatch.setattr(kernels, "ENTRIES", 120)
    loc, scale, log_weight, g = components(10, 3, 0.0)
    z, seen = torch.randn(25, 3, generator=g, dtype=torch.float64), []
    original = kernels.log_terms
    monkeypatch.setattr(kernels, "log_terms", lambda z, *rest: seen.append(len(z)) or original(z, *rest))
    plain, follow = (
        kernels.prepare(loc, scale, log_weight),
        kernels.prepare(loc.clone().requires_grad_(), scale, log_weight),
    )
    many, few = [12, 12, 1], [4] * 6 + [1]
    values = torch.ones(10, 2, dtype=torch.float64)
    for call, sizes in (
        (lambda: kernels.responsibilities(z, plain), many),
        (lambda: kernels.responsibilities(z, follow), few),
        (lambda: kernels.responsibilities(z, plain, values), many),
        (lambda: kernels.responsibilities(z, plain, values.clone().requires_grad_()), few),
        (lambda: kernels.dense(z, plain), many),
        (lambda: kernels.dense(z, plain, score=True), few),
        (lambda: kernels.dense(z.requires_grad_(), plain), few),
        (lambda: kernels.dense(z.detach() + 1e7, plain), few),  # so far away that squares are summed
    ):
        seen.clear()
        call()
        assert seen == sizes


def test_log_terms_choose_the_form_by_the_bound():
    loc, scale, log_weight, _ = components(50, 2, -12.0)
    z, held = loc + scale, kernels.prepare(loc, scale, log_weight)
    want = oracle_terms(z, loc, scale, log_weight).astype(np.float64)
    terms, reference = kernels.log_terms(z, held)
    np.testing.assert_allclose((terms + reference).numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])
def test_the_component_left_out_stays_out_of_every_derivative(log_scale):
    loc, scale, log_weight, _ = components(6, 2, log_scale)
    index, unit = torch.tensor([5, 0, 3]), scale.mean()
    held, start = kernels.prepare(loc, scale, log_weight), loc[index] + scale[index]
    others = [kernels.prepare(loc[k], scale[k], log_weight[k]) for k in (torch.arange(6) != n for n in index)]

    def left_out(shift):
        return log_prob(start + unit * shift, held, exclude=index)

    def rest(shift):
        z = start + unit * shift
        return torch.cat([log_prob(z[[k]], other) for k, other in enumerate(others)])

    results = []
    for function in (left_out, rest):
        shift = torch.zeros_like(start).requires_grad_()
        value = function(shift)
        (first,) = torch.autograd.grad(value.sum(), shift, create_graph=True)
        results.append((value, first, *torch.autograd.grad(first.sum(), shift)))
    for mine, want in zip(*results, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-9)
    value, score = log_prob_and_score(start, held, exclude=index)
    torch.testing.assert_close(value, results[1][0].detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(unit * score, results[1][1].detach(), rtol=1e-9, atol=1e-9)
    tracked = kernels.prepare(loc.clone().requires_grad_(), scale, log_weight)
    value, score = log_prob_and_score(start, tracked, exclude=index)
    assert value.requires_grad and score.requires_grad
    torch.testing.assert_close(unit * score.detach(), results[1][1].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["z", "loc", "values"])
def test_averages_know_what_is_tracked(which):
    loc, scale, log_weight, g = components(5, 2, 0.0)
    arguments = {"z": loc[:2] + 1, "loc": loc, "values": torch.randn(5, 3, generator=g, dtype=torch.float64)}
    arguments[which] = arguments[which].clone().requires_grad_()
    held = kernels.prepare(arguments["loc"], scale, log_weight)
    average = kernels.responsibilities(arguments["z"], held, arguments["values"])
    (slope,) = torch.autograd.grad(average.square().sum(), arguments[which])
    assert slope.abs().max() > 1e-3


def test_averages_take_the_direct_form_where_the_bound_asks_for_it():
    sigma = math.exp(-12.0)
    loc = torch.tensor([[1.0], [1.0 + sigma], [-1.0]], dtype=torch.float64)
    held = kernels.prepare(loc, torch.full_like(loc, sigma), torch.zeros_like(loc[:, 0]))
    average = kernels.responsibilities(loc[:1] + 0.3 * sigma, held, torch.tensor([[0.0], [1.0], [5.0]]).double())
    log_odds = 0.5 * (0.3**2 - 0.7**2)  # of the second against the first
    assert average.item() == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-9)


def exact_responsibilities(z, loc, scale, log_weight):
    """In exact rationals, then in numbers of 700 digits: no square overflows and no digit is lost."""
    from decimal import Decimal, localcontext
    from fractions import Fraction

    with localcontext() as context:
        context.prec, rows = 700, []
        context.Emax, context.Emin = 10**9, -(10**9)
        for point in z.tolist():
            terms = []
            for mu, sigma, weight in zip(loc.tolist(), scale.tolist(), log_weight.tolist(), strict=True):
                square = sum(
                    ((Fraction(x) - Fraction(m)) / Fraction(s)) ** 2 for x, m, s in zip(point, mu, sigma, strict=True)
                )
                exact = Decimal(square.numerator) / Decimal(square.denominator)
                terms.append(Decimal(weight) - sum(Decimal(s).ln() for s in sigma) - exact / 2)
            top = max(terms)
            weights = [(t - top).exp() for t in terms]
            rows.append([float(w / sum(weights)) for w in weights])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("far", [1e5, 1e9, 1e17, 1e100, 1e155, 1e160, 1e300])
@pytest.mark.parametrize("equal", [True, False])
def test_responsibilities_and_score_however_far_away(far, equal):
    loc = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-2.0, -2.0]], dtype=torch.float64)
    scale = torch.ones_like(loc) if equal else torch.tensor([[1.0, 2.0], [1.5, 1.5], [1.5, 1.5], [3.0, 0.1]]).double()
    log_weight = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().log()
    held = kernels.prepare(loc, scale, log_weight)
    z = far * torch.tensor([[1.0, 0.5], [-1.0, -1.0], [0.25, 1.0], [1.0, 1.0]], dtype=torch.float64)
    want = exact_responsibilities(z, loc, scale, log_weight)
    got = kernels.responsibilities(z, held)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    value, score = log_prob_and_score(z, held)
    slopes = (want[..., None] * ((loc - z[:, None]) / scale / scale)).sum(1)
    torch.testing.assert_close(score, slopes, rtol=1e-6, atol=0)
    assert bool((value.isneginf() if far > 1e154 else value < -1e9).all())
    tracked = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernels.dense(tracked, held).sum(), tracked)
    torch.testing.assert_close(slope, slopes, rtol=1e-6, atol=0)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-155, 1e-30, 1e30, 1e150])
def test_units_of_z_change_nothing_but_the_unit(unit):
    loc, scale, log_weight, g = components(20, 3, -1.0)
    z = torch.randn(15, 3, generator=g, dtype=torch.float64)
    unit = 2.0 ** round(math.log2(unit))  # a power of two: so that nothing is rounded
    one, other = kernels.prepare(loc, scale, log_weight), kernels.prepare(unit * loc, unit * scale, log_weight)
    value, score = log_prob_and_score(z, one)
    moved, slope = log_prob_and_score(unit * z, other)
    torch.testing.assert_close(moved + 3 * math.log(unit), value, rtol=0, atol=1e-8)
    torch.testing.assert_close(slope * unit, score, rtol=1e-7, atol=1e-9)
    ours, theirs = kernels.responsibilities(z, one), kernels.responsibilities(unit * z, other)
    torch.testing.assert_close(theirs, ours, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("block", [(1, 1), (3, 7), (512, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leave_out", [False, True])
def test_blocks_of_any_size_give_the_whole(monkeypatch, block, dtype, leave_out):
    monkeypatch.setattr(kernels, "ROWS", block[0])
    monkeypatch.setattr(kernels, "COLUMNS", block[1])
    loc, scale, log_weight, _ = components(23, 2, 0.0)
    z, out = 2 * loc[:11], torch.arange(11).flip(0) if leave_out else None
    held = kernels.prepare(loc, scale, log_weight)
    want = kernels.dense(z, held, out, score=True)
    same = kernels.Components(*(x.to(dtype) for x in held))
    for score in (False, True):
        got = kernels.attend(z.to(dtype), same, out, score=score)
        assert got.dtype == dtype and got.shape == (11, 1 + 2 * score)
        exact = want[:, : 1 + 2 * score].to(dtype)
        torch.testing.assert_close(got, exact, atol=1e-4 if dtype is torch.float32 else 1e-12, rtol=1e-4)


def test_sums_of_several_blocks_do_not_overflow():
    """Each of three blocks sums to nearly the largest number about the maximum of the first one."""
    num, block = 4 * kernels.COLUMNS, kernels.COLUMNS
    log_weight = torch.zeros(num, dtype=torch.float64)
    log_weight[block:] = 701.9
    zero = torch.zeros(num, 1, dtype=torch.float64)
    found = kernels.attend(zero[:1], kernels.prepare(zero, zero + 1, log_weight), score=True)
    assert found[0, 0].item() == pytest.approx(701.9 + math.log(3 * block) - 0.5 * math.log(2 * math.pi), rel=1e-14)
    assert found[0, 1].item() == 0


def test_blocks_without_any_weight_are_passed_over():
    num, block = 3 * kernels.COLUMNS, kernels.COLUMNS
    zero = torch.zeros(num, 1, dtype=torch.float64)
    log_weight = torch.full((num,), -torch.inf, dtype=torch.float64)
    log_weight[block] = -5000.0
    value = kernels.attend(zero[:2], kernels.prepare(zero, zero + 1, log_weight))
    want = -5000.0 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value, torch.full((2, 1), want, dtype=torch.float64), rtol=1e-14, atol=0)


def test_points_pass_in_parts(monkeypatch):
    monkeypatch.setattr(kernels, "POINTS", 4)
    loc, scale, log_weight, _ = components(9, 2, 0.0)
    held, index, seen = kernels.prepare(loc, scale, log_weight), torch.arange(9).flip(0), []
    original = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda z, *a, **k: seen.append(len(z)) or original(z, *a, **k))
    got = kernels.all_pairs(loc, held, index, score=True)
    assert seen == [4, 4, 1]
    torch.testing.assert_close(got, kernels.dense(loc, held, index, score=True), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kernels.all_pairs(loc, held, index), got[:, :1], rtol=1e-12, atol=1e-12)


def test_the_bound_on_rounding_does_not_know_where_the_origin_is():
    loc, scale, z = torch.tensor([[-1.0], [3.0]]).double(), torch.tensor([[0.5], [2.0]]).double(), torch.ones(5, 1)
    z = z.double().cumsum(0)
    log_weight = torch.tensor([0.25, 0.75]).double().log()
    near = kernels.rounding_bound(z, kernels.prepare(loc, scale, log_weight))
    for shift in (-1024.0, 2.0**20):
        far = kernels.rounding_bound(z + shift, kernels.prepare(loc + shift, scale, log_weight))
        torch.testing.assert_close(far, near, rtol=1e-12, atol=0)
    assert bool((near > 0).all()) and bool((near < 1e-12).all())


def test_the_middle_of_the_largest_numbers_is_a_number():
    loc = torch.tensor([[1.7e308, -1.7e308], [1.7e308, 1.7e308]], dtype=torch.float64)
    prepared = kernels.prepare(loc, torch.ones_like(loc), torch.zeros(2, dtype=torch.float64))
    assert prepared.middle.tolist() == [1.7e308, 0.0]


@pytest.mark.parametrize("apart", [1e5, 1e17, 1e160])
def test_a_point_is_as_right_among_others_as_alone(apart):
    """On a component, near it, and far from all: what one of them needs spoils no other."""
    loc = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-2.0, -2.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 2.0], [1.5, 1.5], [3.0, 0.1]]).double()
    log_weight = torch.tensor([0.2, 0.3, 0.5]).double().log()
    held = kernels.prepare(loc, scale, log_weight)
    z = torch.cat([loc[:1], apart * torch.tensor([[1.0, 0.5]]).double(), loc[2:], loc[1:2] + 0.25])
    want = exact_responsibilities(z, loc, scale, log_weight)
    torch.testing.assert_close(kernels.responsibilities(z, held), want, rtol=1e-9, atol=1e-12)
    slopes = (want[..., None] * ((loc - z[:, None]) / scale / scale)).sum(1)
    torch.testing.assert_close(kernels.dense(z, held, score=True)[:, 1:], slopes, rtol=1e-9, atol=1e-12)
    tracked = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernels.dense(tracked, held).sum(), tracked)
    torch.testing.assert_close(slope, slopes, rtol=1e-9, atol=1e-12)


def test_where_every_term_overflows_the_density_is_zero_and_not_nan():
    held = kernels.prepare(*(torch.tensor(part).double() for part in ([[0.0], [1.0]], [[1.0], [1.0]], [-0.7, -0.7])))
    z = torch.tensor([[1e200], [0.5]], dtype=torch.float64)
    for value in (kernels.dense(z, held), kernels.all_pairs(z, held), kernels.all_pairs(z, held, score=True)[:, :1]):
        assert value[0].isneginf() and value[1].isfinite()


def test_rows_that_need_the_direct_form_get_it_among_others_that_do_not():
    sigma = math.exp(-12.0)
    loc, scale = torch.tensor([[1.0], [1.0 + sigma], [-1.0]]).double(), torch.tensor([[sigma], [sigma], [1.0]]).double()
    held = kernels.prepare(loc, scale, torch.zeros(3).double())
    z = torch.tensor([[1.0 + 0.3 * sigma], [1.0 + 40 * sigma], [0.0], [-1.0]], dtype=torch.float64)
    want = exact_responsibilities(z, loc, scale, torch.zeros(3))
    torch.testing.assert_close(kernels.responsibilities(z, held), want, rtol=1e-9, atol=1e-12)


def test_what_is_tracked_asks_for_derivatives_that_are_recorded():
    plain, weight = torch.ones(1), torch.ones(1, requires_grad=True)
    assert kernels.tracked(plain, None, weight) and not kernels.tracked(plain, None, 3) and not kernels.tracked()
    with torch.no_grad():
        assert not kernels.tracked(weight)


@pytest.mark.parametrize(("nearest", "passes"), [((0.0, 0.0, 0.0), 3), ((0.0, 20.0, 0.0), 3), ((40.0, 0.0, 40.0), 4)])
def test_a_block_is_summed_again_only_where_its_sum_would_nearly_overflow(monkeypatch, nearest, passes):
    """So many standard deviations are between the point and the components of a block; 800 nats are too many."""
    monkeypatch.setattr(kernels, "COLUMNS", 2)
    loc, seen = torch.tensor(nearest).double().repeat_interleave(2)[:, None], []
    held = kernels.prepare(loc, torch.ones_like(loc), torch.zeros(6).double())
    original = kernels.weigh
    monkeypatch.setattr(kernels, "weigh", lambda *a, **k: seen.append(1) or original(*a, **k))
    kernels.attend(torch.zeros(1, 1).double(), held)
    assert len(seen) == passes


@pytest.mark.parametrize(("score", "tracked", "apart"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_differences_are_taken_apart_where_score_or_derivatives_need_them(monkeypatch, score, tracked, apart):
    seen, original = [], kernels.log_terms
    monkeypatch.setattr(kernels, "log_terms", lambda *given: seen.append((*given, True)[3]) or original(*given))
    loc, scale, log_weight, _ = components(3, 2, 0.0)
    kernels.dense((loc + 1e5).requires_grad_(bool(tracked)), kernels.prepare(loc, scale, log_weight), score=bool(score))
    assert seen == [apart]
