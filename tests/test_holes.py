"""Holes: none in a perfect model, whatever D and N; those that were cut, found, of the right size and place."""

import math
from types import SimpleNamespace

import pytest
import sklearn.ensemble
import torch
from torch.distributions import Independent, Uniform

from vaebook import holes
from vaebook.holes import hole_mass
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def perfect(seed, num, dim, scale):
    """Codes of a population whose aggregated posterior is the prior: no hole, however rough their mixture is."""
    loc = math.sqrt(1 - scale**2) * torch.randn(num, dim, generator=seeded(seed), dtype=torch.float64)
    return DiagGaussianMixture(loc, torch.full_like(loc, scale))


def cut(seed, num, dim, keep):
    """Narrow codes of a population that is the prior without a part of it."""
    z = torch.randn(60 * num, dim, generator=seeded(seed), dtype=torch.float64)
    z = z[keep(z)][:num]
    assert len(z) == num
    return DiagGaussianMixture(z, torch.full_like(z, 0.02))


CUTS = {
    "half": (lambda z: z[:, 0] > 0, 0.5),
    "slab": (lambda z: z[:, 0].abs() > 0.5, math.erf(0.5 / math.sqrt(2))),
    "centre": (lambda z: z.square().sum(1) > z.shape[1], None),
}
SHAPES = [(60, 1, 0.3), (200, 2, 0.1), (500, 8, 0.5), (500, 64, 0.1), (1_000, 16, 0.9)]


@pytest.mark.parametrize(("num", "dim", "scale"), SHAPES)
def test_a_perfect_model_has_no_hole(num, dim, scale):
    for seed in range(2):
        q_agg = perfect(seed, num, dim, scale)
        assert hole_mass(q_agg, StandardNormal(dim), generator=seeded(seed + 100)).mass == 0


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 4, 8, 16, 32, 64])
def test_at_most_one_in_twenty_perfect_models_is_said_to_have_a_hole(dim):
    reported, trials = 0, 100 if dim < 16 else 40  # which take seconds each
    for seed in range(trials):
        scale = (0.1, 0.3, 0.6, 0.9)[seed % 4]
        q_agg = perfect(seed, (100, 300, 1_000)[seed % 3], dim, scale)
        reported += hole_mass(q_agg, StandardNormal(dim), generator=seeded(seed + 1_000)).mass > 0
    assert reported <= trials // 20


@pytest.mark.parametrize("dim", [1, 2, 16])
@pytest.mark.parametrize("name", CUTS)
def test_a_part_of_the_prior_that_was_cut_is_found(name, dim):
    keep, mass = CUTS[name]
    if mass is None:
        z = torch.randn(200_000, dim, generator=seeded(1))
        mass = 1 - float(keep(z).double().mean())
    found = hole_mass(cut(0, 600, dim, keep), StandardNormal(dim), generator=seeded(2))
    assert abs(found.mass - mass) < 0.08  # up to a tenth of the codes may lie in it
    assert found.codes <= 0.1 * found.mass
    inside = ~keep(found.points)
    assert float(inside.double().mean()) > 0.8
    assert len(found.points) == pytest.approx(found.mass * 6_000, rel=0.1)


def test_where_a_hole_is():
    found = hole_mass(cut(0, 600, 5, CUTS["slab"][0]), StandardNormal(5), generator=seeded(2))
    (place,) = found.where
    assert place.index == 0
    assert -0.6 < place.low < -0.2 < 0.2 < place.high < 0.6
    assert place.prior_high == pytest.approx(1.28, abs=0.06)


def of_scale(scale, spread=0.0, dim=4):
    return DiagGaussianMixture(spread * torch.randn(400, dim, generator=seeded(0)), torch.full((400, dim), scale))


FAR = DiagGaussianMixture(
    torch.tensor([0.0, 6.0, 0.0]) + 0.5 * torch.randn(400, 3, generator=seeded(1)), torch.ones(400, 3)
)
SHELL = DiagGaussianMixture(
    4 * torch.nn.functional.normalize(torch.randn(400, 3, generator=seeded(2))), torch.full((400, 3), 0.1)
)
NEARLY_ALL = {
    "one latent far away": (FAR, 1, 6 - 1.28 * 1.25**0.5, 6 + 1.28 * 1.25**0.5),
    "a shell": (SHELL, 3, 4 - 0.13, 4 + 0.13),
    "a point, in 64 latents": (of_scale(0.05, 0.05, 64), 64, 0.5, 0.65),
}


@pytest.mark.parametrize("name", NEARLY_ALL)
def test_of_a_hole_that_is_nearly_everything_the_codes_are_located(name):
    """Where they are, from 10 to 90 %; the last coordinate is the distance from the origin."""
    q_agg, index, low, high = NEARLY_ALL[name]
    found = hole_mass(q_agg, StandardNormal(q_agg.latent_dim), generator=seeded(3))
    assert found.mass > 0.9
    (place,) = [c for c in found.where if c.index == index]
    assert (place.low, place.high) == pytest.approx((low, high), abs=0.12)
    assert not place.low <= place.prior_low <= place.prior_high <= place.high


def test_holes_do_not_depend_on_the_unit():
    q_agg = cut(0, 300, 2, CUTS["half"][0])
    other = DiagGaussianMixture(1e-4 * q_agg.loc + 3, 1e-4 * q_agg.scale)
    prior = DiagGaussianMixture(torch.full((1, 2), 3.0).double(), torch.full((1, 2), 1e-4).double())
    one, two = (hole_mass(q, p, generator=seeded(2)) for q, p in ((q_agg, StandardNormal(2)), (other, prior)))
    assert one.mass == pytest.approx(two.mass, abs=0.06)


def test_fewer_data_see_larger_holes_only():
    few, many = (
        hole_mass(perfect(0, num, 2, 0.5), StandardNormal(2), generator=seeded(0)).least for num in (100, 1_000)
    )
    assert 8 * many < few < 12 * many


def test_the_smallest_hole_that_can_be_seen_is_that_of_no_code_in_it():
    """Six kinds of sets at 36 levels share the 0.01: the exact limit of 0 of N lies below half of the mass."""
    found = hole_mass(perfect(0, 100, 2, 0.5), StandardNormal(2), num_samples=1_000, generator=seeded(0))
    assert found.least == pytest.approx(2 * (1 - (0.01 / (6 * 36)) ** (1 / 100)))


def test_what_is_refused():
    with pytest.raises(TypeError, match="q_agg: expected a DiagGaussianMixture or a ShardedMixture, got int"):
        hole_mass(3, StandardNormal(2))
    with pytest.raises(ValueError, match="q_agg: expected at least 60 components"):
        hole_mass(perfect(0, 59, 2, 0.5), StandardNormal(2))
    with pytest.raises(ValueError, match="prior: expected dimension 2, got 3"):
        hole_mass(perfect(0, 60, 2, 0.5), StandardNormal(3))


@pytest.mark.parametrize("last", [-1e-3, -20.0, -torch.inf])
def test_weights_that_differ_are_refused_and_not_taken_for_equal(last):
    """Half of the prior without codes was no hole: each component counted as one datum."""
    loc = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weight = torch.where(loc[:, 0] > 0, 0.0, last).double().log_softmax(0)
    q = DiagGaussianMixture(loc, torch.full_like(loc, 0.3), log_weight)
    with pytest.raises(ValueError, match=r"^q_agg: expected components of equal weight, one for each datum"):
        hole_mass(q, StandardNormal(2))


NUM, DRAWS, LEVELS = 3_000, 2_000, len(holes.LEVELS)


def sets(shares, counts, folds=(0, 1, 2)):
    """Sets of one kind: the first draws and codes are in them, so many at each level; draws in these folds only."""
    found = []
    for fold in range(3):
        part = torch.zeros(LEVELS, NUM // 3 + DRAWS, dtype=torch.bool)
        for level, share in shares.items():
            part[level, : counts.get(level, 0) if fold == 0 else 0] = True
            part[level, NUM // 3 : NUM // 3 + round(share * DRAWS)] = fold in folds
        found.append((part[:, : NUM // 3].sum(1), part[:, NUM // 3 :]))
    return found


def largest(**inside):
    fresh = torch.randn(DRAWS, 1, generator=seeded(0), dtype=torch.float64)
    return holes._largest(inside, fresh, torch.zeros(NUM, 1).double()), fresh


def test_the_largest_set_with_at_most_a_tenth_of_the_codes_is_reported_with_its_errors():
    """At the third level too many codes lie, though fewer than half of what the prior says."""
    found, fresh = largest(one=sets({3: 0.05, 7: 0.5, 9: 0.9}, {7: 10, 9: 600}))
    share = 10 / NUM
    assert (found.mass, found.codes) == (0.5, share)
    assert found.stderr == pytest.approx((0.25 / (DRAWS - 1)) ** 0.5)
    assert found.codes_stderr == pytest.approx((share * (1 - share) / NUM) ** 0.5)
    assert torch.equal(found.points, fresh[: DRAWS // 2])
    assert found.least == pytest.approx(2 * (1 - (0.01 / LEVELS) ** (1 / NUM)))


def test_sets_of_the_folds_that_have_no_draw_in_common_are_no_hole():
    """Each fold finds another part: what their average certifies is no set, and has no points to show."""
    apart = [sets({3: 0.3}, {}, folds=(fold,))[fold] for fold in range(3)]
    for fold, (_, landed) in enumerate(apart):
        landed[3] = torch.arange(DRAWS) // (DRAWS // 3) == fold
    assert largest(one=apart)[0].mass == 0
    assert largest(one=apart, two=sets({5: 0.1}, {}))[0].mass == pytest.approx(0.1)


def test_of_two_kinds_of_sets_the_larger_counts_whichever_comes_first():
    one, two = sets({3: 0.3}, {}), sets({5: 0.6}, {})
    assert largest(one=one, two=two)[0].mass == largest(one=two, two=one)[0].mass == 0.6


@pytest.mark.parametrize(("count", "mass"), [(90, 0.3), (91, 0.0)])
def test_codes_may_be_a_tenth_as_many_as_the_prior_says(count, mass):
    assert largest(one=sets({3: 0.3}, {3: count}))[0].mass == mass


@pytest.mark.parametrize(("share", "found"), [(0.0075, False), (0.02, True)])
def test_the_error_of_the_mass_is_allowed_for(share, found):
    """No code is in either set, which leaves 0.0027 at most; of the smaller the mass itself is uncertain."""
    assert (largest(one=sets({3: share}, {}))[0].mass > 0) is found


def test_a_draw_lies_in_the_hole_if_most_folds_say_so():
    """Two folds of three see the first 600 draws, one the next 600: the draws are those of the two."""
    inside = sets({3: 0.3}, {}, (0, 1))
    inside[2][1][3, 600:1200] = True
    found, fresh = largest(one=inside)
    assert found.mass == pytest.approx(0.3) and torch.equal(found.points, fresh[:600])


def test_codes_in_every_set_are_no_hole_and_no_error():
    everywhere = [(torch.full((LEVELS,), NUM // 3), torch.ones(LEVELS, DRAWS, dtype=torch.bool))] * 3
    assert largest(one=everywhere)[0][:4] == (0.0, 0.0, 0.0, 0.0)


def test_features_are_coordinates_and_the_distance_from_the_origin():
    assert holes._features(torch.tensor([[3.0, -4.0]])).tolist() == [[3.0, -4.0, 5.0]]


def test_few_draws_and_codes_where_the_prior_has_no_density_are_refused():
    with pytest.raises(ValueError, match="num_samples: expected an int at least 100, got 99"):
        hole_mass(perfect(0, 60, 1, 0.5), StandardNormal(1), num_samples=99)
    square = Independent(Uniform(-torch.ones(1), torch.ones(1), validate_args=False), 1, validate_args=False)
    with pytest.raises(ValueError, match="expected finite values at draws of q_agg"):
        hole_mass(perfect(0, 60, 1, 0.5), square, generator=seeded(0))


def test_sets_are_found_with_two_thirds_of_some_codes_and_cut_by_draws_that_count_nothing(monkeypatch):
    """Of 99 data that repeat every third, 60 are taken, in another order; each third is judged by the other two."""
    monkeypatch.setattr(holes, "MOST", 60)
    loc = torch.arange(99).double()[:, None] % 3 + torch.arange(99).double()[:, None] / 1_000
    q_agg, calls = DiagGaussianMixture(loc, torch.full_like(loc, 1e-6)), []

    def scores(*given):
        calls.append(given)
        yield "place", given[1][:, 0]

    monkeypatch.setattr(holes, "_scores", scores)
    monkeypatch.setattr(holes, "_largest", lambda *given: given)
    inside, fresh, z = hole_mass(q_agg, StandardNormal(1), num_samples=200, generator=seeded(0))
    assert len(z) == 60 and len(fresh) == 200 and len(calls) == 3 and list(inside) == ["place"]
    data = (z.mT - loc).abs().argmin(0)
    assert len(set(data.tolist())) == 60 and len(set((data[::3] % 3).tolist())) == 3
    assert 0 < float((z[:, 0] - loc[data, 0]).abs().max()) < 1e-5
    for f, ((q, points, log_prior, codes, reference, seed), (count, landed)) in enumerate(
        zip(calls, inside["place"], strict=True)
    ):
        own = torch.arange(60) % 3 == f
        assert torch.equal(q.loc, loc[data[~own]]) and torch.equal(codes, z[~own]) and seed == calls[0][-1]
        assert torch.equal(points, torch.cat([z[own], reference, fresh])) and not torch.equal(reference, fresh)
        torch.testing.assert_close(log_prior, StandardNormal(1).log_prob(points))
        for level, share in enumerate(holes.LEVELS):
            cut = reference[:, 0].quantile(float(share))
            assert int(count[level]) == int((z[own, 0] < cut).sum())
            assert torch.equal(landed[level], fresh[:, 0] < cut)


class InTraining(StandardNormal):
    """A prior whose draws are others while it is trained, as those of a flow with batch normalisation are."""

    def sample(self, sample_shape=(), *, generator=None):
        return super().sample(sample_shape, generator=generator) + 5 * self.training


def test_a_prior_is_asked_in_evaluation_mode_and_left_as_it_was(monkeypatch):
    monkeypatch.setattr(holes, "_scores", lambda *given: [("place", given[1][:, 0])])
    monkeypatch.setattr(holes, "_largest", lambda inside, fresh, z: fresh)
    prior = InTraining(2).train()
    fresh = hole_mass(perfect(0, 90, 2, 0.5), prior, num_samples=100, generator=seeded(0))
    assert float(fresh.abs().max()) < 5 and prior.training


def test_estimates_are_made_of_other_codes_in_every_way(monkeypatch):
    """Mixtures of three sizes, with correlations where codes are many; what is estimated is log q less log p."""
    asked = []

    def fit(q, size, **options):
        asked.append((q, size, options))
        return SimpleNamespace(log_prob=lambda points: points.sum(1) + size)

    monkeypatch.setattr(holes, "fit_quietly", fit)
    points, log_prior = torch.randn(50, 2, generator=seeded(0)).double(), torch.linspace(-3, 0, 50).double()
    monkeypatch.setattr(holes, "_classifier", lambda *given: SimpleNamespace(decision_function=lambda x: (x, given)))
    monkeypatch.setattr(holes.torch, "from_numpy", lambda value: value)
    codes, reference = torch.zeros(7, 2), torch.ones(9, 2)
    monkeypatch.setattr(holes, "_marginals", lambda q, points: points[:, 0] * len(q.loc))
    for num, kinds in ((51, ("full", "full", "diag")), (50, ("full", "diag", "diag")), (10, ("diag", "diag", "diag"))):
        q = perfect(0, num, 2, 0.5)
        asked.clear()
        found = dict(holes._scores(q, points, log_prior, codes, reference, 5))
        assert list(found) == ["mixture of 1", "mixture of 5", "mixture of 20", "codes", "marginals", "classifier"]
        assert [(given is q, size) for given, size, _ in asked] == [(True, 1), (True, 5), (True, 20)]
        for kind, (_, size, options) in zip(kinds, asked, strict=True):
            assert options == {"covariance": kind, "num_samples": 20 * num, "seed": 5}
            torch.testing.assert_close(found[f"mixture of {size}"], points.sum(1) + size - log_prior)
        torch.testing.assert_close(found["codes"], q.log_prob(points) - log_prior)
        torch.testing.assert_close(found["marginals"], num * points[:, 0] - log_prior)
        features, given = found["classifier"]
        assert (features == holes._features(points)).all() and given == (codes, reference, 5)
    many = perfect(0, 700, 2, 0.5)
    found = dict(holes._scores(many, points, log_prior, codes, reference, 5))
    assert asked[-1][2]["num_samples"] == 5_000
    torch.testing.assert_close(found["marginals"], 500 * points[:, 0] - log_prior)


def test_the_product_of_the_marginals_is_interpolated_between_its_ends():
    q, points = perfect(0, 40, 3, 0.5), torch.randn(200, 3, generator=seeded(1), dtype=torch.float64)
    found = holes._marginals(q, points)
    torch.testing.assert_close(found, q.log_prob_marginals(points).sum(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("num", "drawn", "used", "least"), [(30, 100, 30, 6), (300, 100, 50, 10), (9, 100, 9, 2)])
def test_a_classifier_sees_as_many_codes_as_draws_and_at_most_half_of_these(monkeypatch, num, drawn, used, least):
    seen = {}

    class Classifier:
        def __init__(self, **settings):
            seen.update(settings)

        def fit(self, x, y):
            return x, y

    monkeypatch.setattr(sklearn.ensemble, "HistGradientBoostingClassifier", Classifier)
    codes, reference = torch.randn(num, 2, generator=seeded(0)), torch.randn(drawn, 2, generator=seeded(1))
    x, y = holes._classifier(codes, reference, 7)
    assert y.tolist() == [1] * used + [0] * used and seen["random_state"] == 7 and seen["min_samples_leaf"] == least
    assert (x[:used] == holes._features(codes[:used])).all() and (x[used:] == holes._features(reference[:used])).all()


def test_where_something_lies_is_told_by_the_coordinates_that_differ_most():
    """Three at most, that differ half as much as the first, and by 0.2; the last is the distance from 0."""
    others = torch.randn(4_000, 5, generator=seeded(0), dtype=torch.float64)
    for shifts, told in (
        ((0.0, 3.0, 0.0, 2.0, 2.5), [5, 1, 4]),
        ((0.0, 0.0, 1.0, 0.0, 0.3), [2]),
        ((0.0, 0.0, 0.8, 0.0, 0.6), [2, 4]),
        ((0.0, 0.0, 1.8, 0.0, 0.5), [2, 5]),
        ((0.1, 0.0, 0.2, 0.0, 0.0), []),
    ):
        points = others.flip(0) + torch.tensor(shifts).double()
        found = holes._where(points, others, others[:2_000])
        assert [place.index for place in found] == told
        for place in found:
            ends = [torch.from_numpy(holes._features(part))[:, place.index] for part in (points, others[:2_000])]
            wanted = [float(part.quantile(share)) for part in ends for share in (0.1, 0.9)]
            assert [*place[1:]] == pytest.approx(wanted)
