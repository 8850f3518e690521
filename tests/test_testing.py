"""The test of densities against samplers: right ones pass, toys of the mistakes that were shipped do not."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, StudentT

from vaebook import testing
from vaebook.mixture import DiagGaussianMixture
from vaebook.testing import assert_density_matches_sampler

K, D = 10, 4


def seeded(seed):
    return torch.Generator().manual_seed(seed)


LOC = 2 * torch.randn(K, D, generator=seeded(0))
LOG_VAR = 0.5 * torch.randn(K, D, generator=seeded(1)) - 2
STD = (0.5 * LOG_VAR).exp()
WEIGHT = torch.rand(K, generator=seeded(2)).softmax(0)


def mixture(scale, weight=WEIGHT):
    return MixtureSameFamily(Categorical(probs=weight), Independent(Normal(LOC, scale), 1))


def draw(component):
    return LOC[component] + STD[component] * torch.randn(len(component), D)


def some(num):
    return torch.multinomial(WEIGHT, num, replacement=True)


def each(z):
    """Log-density of each coordinate under each component, (S, K, D)."""
    return Normal(LOC, STD).log_prob(z[:, None])


GOOD, EVEN = mixture(STD), mixture(STD, torch.full((K,), 1 / K))
BUGS = {
    "variance as scale in the sampler": (GOOD.log_prob, mixture(LOG_VAR.exp()).sample),
    "variance as scale in the density": (mixture(LOG_VAR.exp()).log_prob, GOOD.sample),
    "log-variance as scale": (mixture(LOG_VAR.abs()).log_prob, GOOD.sample),
    "tanh of the log-variance in the sampler": (GOOD.log_prob, mixture((0.5 * LOG_VAR.tanh()).exp()).sample),
    "product of mixtures": (lambda z: (WEIGHT.log()[:, None] + each(z)).logsumexp(1).sum(-1), GOOD.sample),
    "log-weight once a coordinate": (lambda z: (WEIGHT.log()[:, None] + each(z)).sum(-1).logsumexp(1), GOOD.sample),
    "weights sum to 1.2": (lambda z: GOOD.log_prob(z) + 0.1823, GOOD.sample),
    "weights sum to 0.8": (lambda z: GOOD.log_prob(z) - 0.2231, GOOD.sample),
    "draws sorted by component": (GOOD.log_prob, lambda shape: draw(some(shape[0]).sort().values)),
    "components in turn": (EVEN.log_prob, lambda shape: draw(torch.arange(shape[0]) % K)),
    "the first components only": (EVEN.log_prob, lambda shape: draw(torch.randint(K - 2, shape))),
    "coordinates from different components": (
        GOOD.log_prob,
        lambda shape: torch.stack([draw(some(shape[0]))[:, j] for j in range(D)], 1),
    ),
    "means without noise": (GOOD.log_prob, lambda shape: LOC[some(shape[0])]),
}
RIGHT = {
    "mixture": GOOD,
    "one dimension": Independent(Normal(torch.tensor([3.0]), torch.tensor([1e-3])), 1),
    "heavy tails": Independent(StudentT(torch.full((2,), 2.0)), 1),
    "correlated": MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.9 * (1 - torch.eye(3))),
    "codes": DiagGaussianMixture(torch.randn(300, 16, generator=seeded(3)), torch.full((300, 16), 0.1)),
}


def alarm(log_prob, sample, seed):
    try:
        assert_density_matches_sampler(SimpleNamespace(log_prob=log_prob, sample=sample), generator=seeded(seed))
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass(name):
    assert_density_matches_sampler(RIGHT[name], generator=seeded(0))


@pytest.mark.parametrize("name", BUGS)
def test_mistakes_are_found(name):
    assert all(alarm(*BUGS[name], seed) for seed in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_mistakes_are_found_in_99_of_100(name):
    assert sum(alarm(*BUGS[name], seed) for seed in range(100)) >= 99


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    """At a stated 0.05, which can be counted, and at the stated 0.001."""
    often = rare = 0
    for seed in range(400):
        right = RIGHT[("mixture", "one dimension", "heavy tails", "correlated")[seed % 4]]
        for limit in (0.05, 1e-3):
            try:
                assert_density_matches_sampler(right, num_samples=2_000, false_alarm=limit, generator=seeded(seed))
            except AssertionError:
                often, rare = often + (limit == 0.05), rare + (limit == 1e-3)
    assert often <= 33  # 20 are expected at most; 3 standard deviations above
    assert rare <= 2


def test_the_message_says_what_is_wrong():
    with pytest.raises(AssertionError, match="draws do not follow the density: everywhere"):
        alarm_free = SimpleNamespace(log_prob=BUGS["weights sum to 0.8"][0], sample=GOOD.sample)
        assert_density_matches_sampler(alarm_free, generator=seeded(0))
    with pytest.raises(AssertionError, match="draws repeat: 10 of 20000 are distinct"):
        assert_density_matches_sampler(
            SimpleNamespace(log_prob=GOOD.log_prob, sample=BUGS["means without noise"][1]), generator=seeded(0)
        )


@pytest.mark.parametrize(("p", "alarmed"), [(1.01e-3 / 8, False), (0.99e-3 / 8, True)])
def test_a_false_alarm_is_shared_by_all_eight_comparisons(p, alarmed, monkeypatch):
    """Six counts and two orders: each may raise it with an eighth of the probability that is stated."""
    monkeypatch.setattr(testing.scipy.stats, "fisher_exact", lambda *_, **__: SimpleNamespace(pvalue=p))
    with pytest.raises(AssertionError, match=r"^draws ") if alarmed else nullcontext():
        assert_density_matches_sampler(RIGHT["one dimension"], num_samples=1_000, false_alarm=1e-3, generator=seeded(0))


def test_what_is_refused():
    with pytest.raises(TypeError, match="distribution: expected a torch distribution"):
        assert_density_matches_sampler(3)
    with pytest.raises(ValueError, match="num_samples: expected an int at least 1000"):
        assert_density_matches_sampler(GOOD, num_samples=3)
