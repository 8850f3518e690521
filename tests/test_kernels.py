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
    got = kernels.logsumexp_terms(z, kernels.prepare(loc, scale, log_weight)).numpy()
    want = oracle_log_prob(z, loc, scale, log_weight)
    assert (np.abs(got - want) <= np.maximum(1e-8, 1e-12 * np.abs(want))).all()


@pytest.mark.parametrize("log_scale", [0.0, -3.0, -6.0])
def test_the_bound_holds_for_the_expanded_form_and_is_not_vacuous(log_scale):
    loc, scale, log_weight, _ = components(200, 20, log_scale)
    z, held = loc[:100] + scale[:100], kernels.prepare(loc, scale, log_weight)
    wrong = np.abs(kernels.log_terms(z, held, direct=False).numpy() - oracle_terms(z, loc, scale, log_weight))
    relevant = oracle_terms(z, loc, scale, log_weight) > -100  # terms that can matter to the sum
    bound = np.broadcast_to(kernels.rounding_bound(z, held).numpy()[:, None], wrong.shape)
    assert (wrong <= bound)[relevant].all()
    assert bound.max() < 1e-4 * np.exp(-2 * log_scale) / 100


def test_the_expanded_form_alone_would_be_wrong_where_the_bound_refuses_it():
    loc, scale, log_weight, _ = components(50, 2, -12.0)
    z, held = loc + scale, kernels.prepare(loc, scale, log_weight)
    want = oracle_log_prob(z, loc, scale, log_weight)
    expanded = kernels.log_terms(z, held, direct=False).logsumexp(-1).numpy()
    assert np.abs(expanded - want).max() > 1e-8
    assert np.abs(kernels.logsumexp_terms(z, held).numpy() - want).max() < 1e-11


@pytest.mark.parametrize("direct", [True, False])
def test_both_forms_agree_with_the_oracle_term_by_term(direct):
    loc, scale, log_weight, g = components(100, 7, -1.0)
    z = torch.randn(30, 7, generator=g, dtype=torch.float64)
    got = kernels.log_terms(z, kernels.prepare(loc, scale, log_weight), direct=direct).numpy()
    want = oracle_terms(z, loc, scale, log_weight).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-10)


@pytest.mark.parametrize("block", [1, 7 * 11, 10**6])
def test_block_and_tile_sizes_change_nothing(monkeypatch, block):
    loc, scale, log_weight, g = components(11, 3, -5.0)
    z, values = torch.randn(29, 3, generator=g, dtype=torch.float64), torch.randn(11, 4, generator=g).double()
    held = kernels.prepare(loc, scale, log_weight)
    want_log, want_score = kernels.logsumexp_and_score(z, held)
    want_mean, want_soft = kernels.average_terms(z, held, values), kernels.softmax_terms(z, held)
    monkeypatch.setattr(kernels, "BLOCK", block)
    monkeypatch.setattr(kernels, "TILE", block)
    got_log, got_score = kernels.logsumexp_and_score(z, held)
    torch.testing.assert_close(got_log, want_log, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(got_score, want_score, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(kernels.average_terms(z, held, values), want_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernels.softmax_terms(z, held), want_soft, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])  # the expanded and the direct form
@pytest.mark.parametrize("block", [1, 10**6])  # with and without recomputation
def test_derivatives_of_both_forms_with_and_without_recomputation(monkeypatch, block, log_scale):
    monkeypatch.setattr(kernels, "BLOCK", block)
    loc, scale, log_weight, g = components(4, 2, log_scale)
    z = loc[:3] + scale[:3] * torch.randn(3, 2, generator=g, dtype=torch.float64)
    # In units of the scale, so that gradcheck's finite steps suit both cases.
    shift, unit = torch.zeros_like(z), scale.mean()
    arguments = [
        x.clone().requires_grad_() for x in (shift, torch.zeros_like(loc), torch.zeros_like(scale), log_weight)
    ]

    def log_prob(shift, move, stretch, log_weight):
        held = kernels.prepare(loc + unit * move, scale * stretch.exp(), log_weight)
        return kernels.logsumexp_terms(z + unit * shift, held)

    assert torch.autograd.gradcheck(log_prob, arguments, atol=2e-5, rtol=1e-4)
    if log_scale == 0.0:
        assert torch.autograd.gradgradcheck(log_prob, arguments, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])  # the expanded and the direct form
@pytest.mark.parametrize("tracked", [False, True])
def test_averages_of_more_components_than_are_taken_at_once(tracked, log_scale):
    loc, scale, log_weight, g = components(kernels.COLUMNS + 500, 2, log_scale)
    z = loc[:20] + scale[:20] * torch.randn(20, 2, generator=g, dtype=torch.float64)
    values = torch.randn(len(loc), 3, generator=g)  # float32
    terms = oracle_terms(z, loc, scale, log_weight)
    r = np.exp(terms - terms.max(-1, keepdims=True))
    want = torch.from_numpy((r @ values.numpy().astype(np.longdouble) / r.sum(-1, keepdims=True)).astype(np.float64))
    got = kernels.average_terms(z.requires_grad_(tracked), kernels.prepare(loc, scale, log_weight), values)
    assert got.dtype == torch.float64 and got.requires_grad == tracked
    torch.testing.assert_close(got.detach(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("log_scale", [0.0, -9.0])
def test_derivatives_of_averages(monkeypatch, block, log_scale):
    monkeypatch.setattr(kernels, "BLOCK", block)
    loc, scale, log_weight, g = components(4, 2, log_scale)
    z, values = loc[:3] + scale[:3], torch.randn(4, 3, generator=g, dtype=torch.float64)
    unit = scale.mean()
    arguments = [x.clone().requires_grad_() for x in (torch.zeros_like(z), torch.zeros_like(loc), log_weight, values)]

    def average(shift, move, log_weight, values):
        held = kernels.prepare(loc + unit * move, scale, log_weight)
        return kernels.average_terms(z + unit * shift, held, values)

    assert torch.autograd.gradcheck(average, arguments, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 10**6])
@pytest.mark.parametrize("tracked", [False, True])
def test_each_point_leaves_out_its_own_component_in_every_block(monkeypatch, tracked, block):
    monkeypatch.setattr(kernels, "BLOCK", block)
    loc, scale, log_weight, _ = components(6, 2, -9.0)  # so sharp that the direct form is taken
    index = torch.tensor([5, 0, 3, 3])
    z = loc[index] + 3 * scale[index]
    held = kernels.prepare(loc, scale.requires_grad_(tracked), log_weight)
    got = kernels.logsumexp_terms(z, held, exclude=index)
    for k, n in enumerate(index):
        keep = torch.arange(6) != n
        want = oracle_log_prob(z[[k]], loc[keep], scale[keep], log_weight[keep])
        assert got[k].item() == pytest.approx(want.item(), rel=1e-12)


def test_rows_at_once_are_fewer_where_derivatives_are_kept(monkeypatch):
    """A block of t has at most BLOCK entries; with derivatives, which keep one array for every dimension, BLOCK / D."""
    monkeypatch.setattr(kernels, "BLOCK", 120)
    loc, scale, log_weight, g = components(10, 3, 0.0)
    z, seen = torch.randn(25, 3, generator=g, dtype=torch.float64), []

    def block(part, exclude):
        seen.append(len(part))
        return part.sum(1, keepdim=True)

    for requires, sizes in ((False, [12, 12, 1]), (True, [4] * 6 + [1])):
        seen.clear()
        held = kernels.prepare(loc.clone().requires_grad_(requires), scale, log_weight)
        result = kernels._by_rows(block, z, None, held)
        assert seen == sizes
        torch.testing.assert_close(result, z.sum(1, keepdim=True))
    seen.clear()
    kernels._by_rows(block, z.requires_grad_(), None, kernels.prepare(loc, scale, log_weight))
    kernels._by_rows(block, z.detach(), None, kernels.prepare(loc, scale, log_weight), loc.requires_grad_())
    assert seen == 2 * ([4] * 6 + [1])


def test_log_terms_choose_the_form_by_the_bound():
    loc, scale, log_weight, _ = components(50, 2, -12.0)
    z, held = loc + scale, kernels.prepare(loc, scale, log_weight)
    want = oracle_terms(z, loc, scale, log_weight).astype(np.float64)
    np.testing.assert_allclose(kernels.log_terms(z, held).numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [0.0, -9.0])
def test_the_component_left_out_stays_out_of_every_derivative(log_scale):
    loc, scale, log_weight, _ = components(6, 2, log_scale)
    index, unit = torch.tensor([5, 0, 3]), scale.mean()
    held, start = kernels.prepare(loc, scale, log_weight), loc[index] + scale[index]
    others = [kernels.prepare(loc[k], scale[k], log_weight[k]) for k in (torch.arange(6) != n for n in index)]

    def left_out(shift):
        return kernels.logsumexp_terms(start + unit * shift, held, exclude=index)

    def rest(shift):
        z = start + unit * shift
        return torch.cat([kernels.logsumexp_terms(z[[k]], other) for k, other in enumerate(others)])

    results = []
    for function in (left_out, rest):
        shift = torch.zeros_like(start).requires_grad_()
        value = function(shift)
        (first,) = torch.autograd.grad(value.sum(), shift, create_graph=True)
        results.append((value, first, *torch.autograd.grad(first.sum(), shift)))
    for mine, want in zip(*results, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-9)
    value, score = kernels.logsumexp_and_score(start, held, exclude=index)
    torch.testing.assert_close(value, results[1][0].detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(unit * score, results[1][1].detach(), rtol=1e-9, atol=1e-9)
    tracked = kernels.prepare(loc.clone().requires_grad_(), scale, log_weight)
    value, score = kernels.logsumexp_and_score(start, tracked, exclude=index)
    assert value.requires_grad and score.requires_grad
    torch.testing.assert_close(unit * score.detach(), results[1][1].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["z", "loc", "values"])
def test_averages_know_what_is_tracked(which):
    loc, scale, log_weight, g = components(5, 2, 0.0)
    arguments = {"z": loc[:2] + 1, "loc": loc, "values": torch.randn(5, 3, generator=g, dtype=torch.float64)}
    arguments[which] = arguments[which].clone().requires_grad_()
    held = kernels.prepare(arguments["loc"], scale, log_weight)
    average = kernels.average_terms(arguments["z"], held, arguments["values"])
    (slope,) = torch.autograd.grad(average.square().sum(), arguments[which])
    assert slope.abs().max() > 1e-3


def test_averages_take_the_direct_form_where_the_bound_asks_for_it():
    sigma = math.exp(-12.0)
    loc = torch.tensor([[1.0], [1.0 + sigma], [-1.0]], dtype=torch.float64)
    held = kernels.prepare(loc, torch.full_like(loc, sigma), torch.zeros_like(loc[:, 0]))
    average = kernels.average_terms(loc[:1] + 0.3 * sigma, held, torch.tensor([[0.0], [1.0], [5.0]]))
    log_odds = 0.5 * (0.3**2 - 0.7**2)  # of the second against the first
    assert average.item() == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-9)
