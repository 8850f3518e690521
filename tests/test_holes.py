"""Holes: none in a perfect model, whatever D and N; those that were cut, found, of the right size and place."""

import math

import pytest
import torch

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
    holes = hole_mass(cut(0, 600, dim, keep), StandardNormal(dim), generator=seeded(2))
    assert abs(holes.mass - mass) < 0.08  # up to a tenth of the codes may lie in it
    assert holes.codes <= 0.1 * holes.mass
    inside = ~keep(holes.points)
    assert float(inside.double().mean()) > 0.8
    assert len(holes.points) == pytest.approx(holes.mass * 6_000, rel=0.1)


def test_where_a_hole_is():
    holes = hole_mass(cut(0, 600, 5, CUTS["slab"][0]), StandardNormal(5), generator=seeded(2))
    (place,) = holes.where
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
    holes = hole_mass(q_agg, StandardNormal(q_agg.latent_dim), generator=seeded(3))
    assert holes.mass > 0.9
    (place,) = [c for c in holes.where if c.index == index]
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
