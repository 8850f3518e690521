"""Tilted mixtures against numerical integration, against each other, and samples against their density."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import GaussianMixture
from vaebook.tilted import Tilted, log_factor


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def diag(num=5, dim=2, seed=0):
    weight = normal(num, seed=seed + 2).log_softmax(0)
    return DiagGaussianMixture(normal(num, dim, seed=seed), 0.5 * normal(num, dim, seed=seed + 1).exp(), weight)


def full(num=4, dim=2, seed=0):
    tril = torch.tril(normal(num, dim, dim, seed=seed))
    tril.diagonal(dim1=1, dim2=2).abs_().add_(0.3)
    return GaussianMixture(normal(num, seed=seed).softmax(0), normal(num, dim, seed=seed + 1), tril)


def factors(rows=3, dim=2):
    return normal(rows, dim, seed=8).square(), 2 * normal(rows, dim, seed=9)


def grid(limit=14.0, nodes=701):
    axis = torch.linspace(-limit, limit, nodes, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * limit / (nodes - 1))


@pytest.mark.parametrize("base", [Tilted(diag()), Tilted(diag(), torch.tensor([2, 0, 4])), Tilted(full())])
def test_normaliser_is_the_integral(base):
    (h, eta), (nodes, log_cell) = factors(), grid()
    z = nodes.expand(3, -1, -1)
    integral = (base.log_prob(z) + log_factor(z, h, eta)).logsumexp(1) + log_cell
    torch.testing.assert_close(base.log_normaliser(h, eta), integral, rtol=0, atol=1e-6)


def test_own_components_are_left_out():
    q, (h, eta) = diag(), factors()
    base = Tilted(q, torch.tensor([2, 0, 4]))
    for row, own in enumerate([2, 0, 4]):
        keep = torch.arange(5) != own
        rest = DiagGaussianMixture(q.loc[keep], q.scale[keep], q.log_weight[keep].log_softmax(0))
        alone = Tilted(rest)
        torch.testing.assert_close(
            base.log_normaliser(h, eta)[row], alone.log_normaliser(h, eta)[row], rtol=0, atol=1e-12
        )
        z = normal(3, 7, 2, seed=4)
        torch.testing.assert_close(base.log_prob(z)[row], alone.log_prob(z)[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e8])
def test_diagonal_and_full_agree(strength):
    q, (h, eta) = diag(dim=3), factors(dim=3)
    one = Tilted(q)
    two = Tilted(GaussianMixture(q.log_weight.exp(), q.loc, torch.diag_embed(q.scale)))
    for tilted in (one, two):
        if strength == 0:
            torch.testing.assert_close(
                tilted.log_normaliser(0 * h, 0 * eta), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
            )
    a, b = (tilted.log_normaliser(strength * h, strength * eta) for tilted in (one, two))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", [Tilted(diag()), Tilted(diag(), torch.tensor([2, 0, 4])), Tilted(full())])
def test_samples_have_the_density(base):
    """Moments of the draws, and the importance identity E[1 / l(z)] = 1 / Z, against the grid."""
    (h, eta), (nodes, log_cell) = factors(), grid()
    z, log_normaliser = base.sample(h, eta, 20_000, seeded())
    assert torch.equal(log_normaliser, base.log_normaliser(h, eta))
    assert z.shape == (3, 20_000, 2)
    log_q = base.log_prob(nodes.expand(3, -1, -1)) + log_factor(nodes.expand(3, -1, -1), h, eta)
    weight = (log_q - base.log_normaliser(h, eta)[:, None] + log_cell).exp()
    for statistic in (lambda t: t, torch.square, torch.sin, lambda t: t.prod(-1, keepdim=True)):
        exact, drawn = weight @ statistic(nodes), statistic(z)
        error = (drawn.mean(1) - torch.stack([w @ statistic(nodes) for w in weight])).abs()
        assert bool((error < 5 * drawn.std(1) / 20_000**0.5).all()), exact


def test_parts_change_nothing(monkeypatch):
    (h, eta), q, own = factors(), diag(), torch.tensor([2, 0, 4])
    whole = [base.log_normaliser(h, eta) for base in (Tilted(q, own), Tilted(full()))]
    monkeypatch.setattr("vaebook.tilted.CELLS", 1)
    parts = [base.log_normaliser(h, eta) for base in (Tilted(q, own), Tilted(full()))]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("base", [Tilted(diag()), Tilted(full())])
def test_factors_that_overflow_are_refused(base):
    h, eta = factors()
    with pytest.raises(ValueError, match=r"^codes: expected values whose squares are finite, got (nan|inf)"):
        base.sample(h, 1e200 * eta, 3, seeded())


def test_one_gaussian_in_closed_form():
    h, eta = factors(rows=1)
    base = Tilted(DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2)))
    covariance = torch.diag_embed(1 / (1 + h[0]))
    posterior = MultivariateNormal(covariance @ eta[0], covariance)
    z = normal(1, 5, 2)
    got = base.log_prob(z) + log_factor(z, h, eta) - base.log_normaliser(h, eta)[:, None]
    torch.testing.assert_close(got[0], posterior.log_prob(z[0]), rtol=0, atol=1e-12)
