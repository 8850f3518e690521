"""The test of densities against samplers: right ones pass, toys of the mistakes that were shipped do not."""

import math
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, StudentT

from vaebook import gmm, testing
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


def apart(num):
    """A few narrow components of equal weight, far from each other on a line."""
    return MixtureSameFamily(
        Categorical(torch.ones(num)), Independent(Normal(10.0 * torch.arange(num)[:, None], 1.0), 1)
    )


def in_turn(size, num):
    return 10.0 * (torch.arange(size) % num)[:, None] + torch.randn(size, 1)


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
    **{
        f"{name} components in turn": (apart(num).log_prob, lambda shape, num=num: in_turn(shape[0], num))
        for num, name in ((2, "two"), (3, "three"), (5, "five"))
    },
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
    for chance in (0.0, 1.0):
        with pytest.raises(ValueError, match="false_alarm: expected"):
            assert_density_matches_sampler(GOOD, false_alarm=chance)


@pytest.mark.parametrize("num", range(2, 6))
def test_draws_in_no_order_and_in_any(num):
    """By hand: parts at random, in turn, in halves; and one part alone, of which nothing can be tested."""
    chance = torch.randint(num, (4_001,), generator=seeded(0))
    each, half = "each depends on the one before it", "the first half differs from the second"
    assert min(dict(testing._order(chance)).values()) > 1e-3
    assert dict(testing._order(torch.arange(4_001) % num))[each] < 1e-6
    assert dict(testing._order(chance.sort().values))[half] < 1e-6
    assert testing._order(torch.zeros(1_001, dtype=torch.long)) == []


def test_rare_parts_are_counted_together():
    """Two parts of one draw in twenty each, the one in the first half, the other in the second: as one they pass."""
    rare = torch.zeros(4_000, dtype=torch.long)
    rare[::20] = 1
    rare[2_000::20] = 2
    assert dict(testing._order(rare))["the first half differs from the second"] > 0.5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda z: z.fill_(torch.inf), "draws are not finite"),
        (lambda z: z.fill_(torch.nan), "draws are not finite"),
        (lambda z: z.copy_(z[torch.arange(len(z)) // 2]), "draws repeat: 500 of 1000 are distinct"),
        (lambda z: z.copy_(z[torch.arange(len(z)) * 17 // 20]), "draws repeat: 850 of 1000 are distinct"),
        (lambda z: z.copy_(z[torch.arange(len(z)) * 19 // 20]), None),
        (lambda z: z[:, 0].copy_(z[:, 0].round()), None),  # one coordinate of whole numbers
        (lambda z: z.copy_(1e6 + z.round()), None),  # rounding repeats what is far from the origin
        (lambda z: z.copy_(torch.tensor([1e6, -1e6]) + z.round()), None),  # on either side of it
        (lambda z: z.copy_(torch.tensor([1e6, 0.0]) + z[torch.arange(len(z)) // 2]), "draws repeat: 500 of 1000"),
        (lambda z: z.zero_(), None),  # all in one place, of which the density tells
    ],
)
def test_draws_that_repeat_or_are_no_numbers(spoil, message):
    z = torch.randn(1_000, 2, generator=seeded(0))
    spoil(z)
    with pytest.raises(AssertionError, match=message) if message else nullcontext():
        testing._check_draws(z)


def test_draws_of_either_turn_are_looked_at():
    turn = iter([torch.randn(1_000, 1, generator=seeded(0)), torch.full((1_000, 1), torch.nan)])
    both = SimpleNamespace(
        log_prob=lambda z: z[:, 0], sample=lambda shape: next(turn) if shape[0] > 1 else torch.zeros(shape[0], 1)
    )
    with pytest.raises(AssertionError, match="draws are not finite"):
        assert_density_matches_sampler(both, num_samples=1_000)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "a density over all of"), (torch.inf, "is not a number, or infinite")]
)
def test_a_density_that_is_no_number_is_said(value, message):
    wild = SimpleNamespace(
        log_prob=lambda z: torch.where(z[:, 0] > 3, value, 0.0), sample=RIGHT["one dimension"].sample
    )
    with pytest.raises((AssertionError, ValueError), match=message):
        assert_density_matches_sampler(wild, num_samples=1_000, generator=seeded(0))


def test_the_reference_is_a_density_with_a_third_for_each_of_its_widths():
    z = torch.randn(1_500, 1, generator=seeded(0), dtype=torch.float64)
    reference, few = testing._reference(z, 0)
    line = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(reference.log_prob(line).exp(), line[:, 0])) == pytest.approx(1, abs=1e-6)
    weight, scale = reference.log_weight.exp(), reference.scale[:, 0] / z.std()
    assert few.num_components == testing.PARTS == 5 and len(weight) == 5 + 2 * testing.KERNELS
    wide, narrow = scale[5 : 5 + testing.KERNELS], scale[5 + testing.KERNELS :]
    assert [float(part.sum()) for part in weight.split([5, 1_000, 1_000])] == pytest.approx([1 / 3] * 3)
    assert float(wide[0]) == pytest.approx(1_000 ** (-1 / 5)) and float(narrow[0]) == pytest.approx(
        0.2 * 1_000 ** (-1 / 5)
    )


def test_where_the_density_is_the_reference_every_coin_is_fair():
    """On both sides, everywhere and in each part; and if it is twice as dense, one of three agrees, or two."""
    z = torch.randn(4_000, 1, generator=seeded(0), dtype=torch.float64)
    reference, few = testing._reference(z, 0)
    for factor, ours, theirs in ((1.0, 0.5, 0.5), (2.0, 1 / 3, 2 / 3)):
        counts = testing._compare(lambda z, f=factor: reference.log_prob(z) + math.log(f), reference, few, z, 0)
        (where, got, expected), *parts = counts
        assert where == "everywhere" and [name for name, *_ in parts] == [f"in part {k} of 5" for k in range(1, 6)]
        assert (got / 4_000, expected / 4_000) == pytest.approx((ours, theirs), abs=0.03)
        assert (sum(g for _, g, _ in parts), sum(e for *_, e in parts)) == (got, expected)
        part = torch.cat([few.responsibilities(reference.sample((4_000,), generator=seeded(0))).argmax(1)])
        assert [e / int((part == k).sum()) for k, (*_, e) in enumerate(parts)] == pytest.approx([theirs] * 5, abs=0.12)


def test_the_same_seed_gives_the_same_counts_whatever_was_drawn_elsewhere():
    few, z = DiagGaussianMixture(torch.arange(5.0)[:, None], torch.ones(5, 1)), torch.randn(500, 1, generator=seeded(0))
    state = torch.get_rng_state()
    one, two, other = (testing._compare(few.log_prob, few, few, z, seed) for seed in (0, 0, 1))
    assert one == two != other and torch.equal(torch.get_rng_state(), state)


def test_how_the_reference_was_fitted_warns_of_nothing(monkeypatch, recwarn):
    def fit(z, *_, **__):
        warnings.warn("fit_gmm: expected EM to converge", stacklevel=1)
        return DiagGaussianMixture(z[:5], torch.ones_like(z[:5]))

    monkeypatch.setattr(gmm, "fit_gmm", fit)
    testing._reference(torch.randn(1_000, 1, generator=seeded(0)), 0)
    assert not recwarn
