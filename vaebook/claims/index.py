"""Claims of chapter mixture/index: what the sum over training data is, and how many components count."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook.aggregate import aggregated_posterior, merge_duplicates
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import estimate
from vaebook.information import mutual_information, mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture
from vaebook.modes import find_modes

GRID = torch.linspace(-12, 12, 2_401, dtype=torch.float64)
"""Codes at which densities are compared and integrated; every encoder here puts its mass well inside."""


def _encoder(x: Tensor) -> Normal:
    """Encode one-dimensional data by a fixed smooth map; any other would do."""
    return Normal(torch.sin(x) + x, 0.3 + 0.2 * torch.cos(x).square())


def _data_with_duplicates(generator: torch.Generator) -> Tensor:
    """Six distinct data, seen 1, 1, 2, 1, 3 and 1 times: N = 9."""
    distinct = torch.linspace(-3, 3, 6, dtype=torch.float64)
    distinct = distinct + 0.2 * torch.rand(6, generator=generator, dtype=torch.float64)
    return distinct.repeat_interleave(torch.tensor([1, 1, 2, 1, 3, 1]))[:, None]


def _joint(x: Tensor, data: Tensor) -> Tensor:
    """(1/N) sum_n delta(x, x_n) q(z|x_n) at one x, over the grid of codes."""
    density = _encoder(data).log_prob(GRID).exp()
    return (data == x).double().mT.mm(density)[0] / len(data)


def _mass(density: Tensor) -> Tensor:
    return torch.trapezoid(density, GRID, dim=-1)


@claim(
    "index/joint",
    falsehood="It is a conditional: it integrates to 1 over $z$.",
    kind="exact",
    source="definition of the empirical distribution; the formula is the asker's",
    section="mixture/index",
)
def joint(generator: torch.Generator) -> Measurement:
    """Compare the joint with p_emp(x) q(z|x) pointwise, and its masses with m/N."""
    data = _data_with_duplicates(generator)
    distinct, counts = data.unique(return_counts=True)
    joints = torch.stack([_joint(x, data) for x in distinct])
    share = counts.double() / len(data)
    product = share[:, None] * _encoder(distinct[:, None]).log_prob(GRID).exp()
    return Measurement(
        sides=[("mass of the joint over z", "share m/N of the datum")],
        lhs=torch.cat([_mass(joints), joints.flatten(), _mass(joints / share[:, None])]),
        rhs=torch.cat([share, product.flatten(), torch.ones_like(share)]),
        falsehood_lhs=_mass(joints),
        falsehood_rhs=torch.ones_like(share),
        tolerance=1e-10,
        neighbours={"its mass is 1/N at every datum": Neighbour(_mass(joints), 1 / len(data))},
    )


@claim(
    "index/unseen",
    falsehood="Dropping $1/N$ always gives the conditional (at a datum seen $m$ times the mass is then $m$).",
    kind="exact",
    source="this book; Gershman & Goodman (2014) on amortisation",
    section="mixture/index",
)
def unseen(generator: torch.Generator) -> Measurement:
    """Measure masses off the data and on it; the falsehood is tried at the data seen more than once."""
    data = _data_with_duplicates(generator)
    new = data.max() + torch.rand(3, generator=generator, dtype=torch.float64) + 0.1
    off = torch.stack([_joint(x, data) for x in new])
    encoded = _mass(_encoder(new[:, None]).log_prob(GRID).exp())
    values, counts = data.unique(return_counts=True)
    once, repeated = (torch.stack([_joint(x, data) for x in values[seen]]) for seen in (counts == 1, counts > 1))
    return Measurement(
        sides=[("largest density at a new x", "sum over no datum")],
        lhs=torch.cat([off.amax(-1), (data == new).double().mean(0), encoded, len(data) * _mass(once)]),
        rhs=torch.tensor([0.0] * 6 + [1.0] * (3 + len(once))),
        falsehood_lhs=len(data) * _mass(repeated),
        falsehood_rhs=torch.ones(len(repeated)),
        tolerance=1e-10,
        neighbours={
            "off the data the joint is the encoder's density over N": Neighbour(off.amax(-1), encoded / len(data))
        },
    )


@claim(
    "index/marginal",
    falsehood=r"Averaging the *parameters* gives it: one Gaussian with the mean of the $\mu_n$ and the $\sigma_n^2$.",
    kind="exact",
    source="Makhzani et al. (2016); Hoffman & Johnson (2016)",
    section="mixture/index",
)
def marginal(generator: torch.Generator) -> Measurement:
    """Sum the joint over the distinct data and compare with the package's mixture over the grid."""
    data = _data_with_duplicates(generator)
    q_agg = aggregated_posterior(_encode_rows, data)
    total = sum(_joint(x, data) for x in data.unique())
    averaged = Normal(q_agg.loc.mean(), q_agg.scale.square().mean().sqrt()).log_prob(GRID).exp()
    order = (total - averaged).abs().argsort(descending=True)  # the most telling code first
    return Measurement(
        sides=[("sum of the joint over the data", "density of q_agg")],
        lhs=total[order],
        rhs=q_agg.log_prob(GRID[order, None]).exp(),
        falsehood_lhs=total[order[0]],
        falsehood_rhs=averaged[order[0]],
        tolerance=1e-10,
        neighbours={
            "every distinct datum counts once": Neighbour(
                total, _encoder(data.unique()[:, None]).log_prob(GRID).exp().mean(0)
            )
        },
    )


def _encode_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    q = _encoder(x)
    return q.loc, q.scale


@claim(
    "index/duplicates",
    falsehood=r"With $\sigma$ small enough $I$ reaches $\log N$ whatever the data.",
    kind="bound",
    source="this book; Kolchinsky & Tracey (2017) bound I by the entropy of the weights",
    section="mixture/index",
)
def duplicates(generator: torch.Generator) -> Measurement:
    """Integrate I for shrinking scales: below H always, within 1e-9 of it in the end, merged or not."""
    data = _data_with_duplicates(generator)
    entropy, information, unmerged = math.nan, [], []
    for h in (1.0, 0.3, 0.1, 0.02):
        q_agg = DiagGaussianMixture(data, torch.full_like(data, h))
        merged, _ = merge_duplicates(q_agg)
        entropy = -float(merged.log_weight.exp() @ merged.log_weight)
        information.append(mutual_information_quadrature(merged))
        unmerged.append(mutual_information_quadrature(q_agg))  # one density, hence the same information
    log_n = math.log(len(data))
    return Measurement(
        sides=[("I(n; z) by quadrature", "entropy H(m/N)")],
        lhs=torch.tensor([*information, entropy, entropy - 1e-9, *information, *unmerged], dtype=torch.float64),
        rhs=torch.tensor([*[entropy] * 4, log_n, information[-1], *unmerged, *information], dtype=torch.float64),
        falsehood_lhs=log_n,
        falsehood_rhs=information[-1],
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "I is H(m/N), not below it": Neighbour(entropy, information[0]),
            "0.999 H(m/N) bounds it": Neighbour(information[-1], 0.999 * entropy),
            "H(m/N) is the log of the number of distinct codes": Neighbour(math.log(merged.num_components), entropy),
        },
    )


@claim(
    "index/effective-components",
    falsehood=r"$\exp(\mathbb E\,H(r))$ is that number (it is $N/\exp(I)$).",
    kind="MC",
    source="the chain rule of entropy, Cover & Thomas (2006), theorem 2.2.1",
    section="mixture/index",
)
def effective_components(generator: torch.Generator) -> Measurement:
    """Estimate both sides from separate draws in three dimensions."""
    loc = 1.5 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
    scale = (-1.0 + 0.3 * torch.randn(60, 3, generator=generator, dtype=torch.float64)).exp()
    q_agg = DiagGaussianMixture(loc, scale)
    r = q_agg.responsibilities(q_agg.sample((20_000,), generator=generator))
    entropy = estimate(torch.special.entr(r).sum(-1))
    information = mutual_information(q_agg, 20_000, generator=generator)
    unequal = DiagGaussianMixture(loc, scale, torch.linspace(-4, 0, 60, dtype=torch.float64).log_softmax(0))
    rest = estimate(torch.special.entr(unequal.responsibilities(unequal.sample((5_000,), generator=generator))).sum(-1))
    told = mutual_information(unequal, 5_000, generator=generator)
    return Measurement(
        sides=[("mean entropy of r(z)", "log N less I(n; z)")],
        lhs=entropy.value,
        rhs=math.log(60) - information.value,
        falsehood_rhs=information.value,
        stderr=math.hypot(entropy.stderr, information.stderr),
        neighbours={
            "log N also for unequal weights": Neighbour(
                rest.value, math.log(60) - told.value, unit=math.hypot(rest.stderr, told.stderr)
            ),
        },
    )


@claim(
    "index/modes",
    falsehood="A Gaussian mixture has at most as many modes as components.",
    kind="exact",
    source="Behboodian (1970) for the condition in 1-D; three modes after Carreira-Perpiñán & Williams (2003)",
    section="mixture/index",
)
def modes(generator: torch.Generator) -> Measurement:
    """Count modes just below and above the threshold, from the means and from random starts, and of two ellipses."""
    counts, s = [], 0.7
    for ratio in (1.5, 1.95, 2.05, 3.0):
        direction = torch.randn(3, generator=generator, dtype=torch.float64)
        half = 0.5 * ratio * s * direction / direction.norm()
        pair = DiagGaussianMixture(torch.stack([-half, half]), torch.full((2, 3), s).double())
        anywhere = 2 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        counts.append(len(find_modes(pair, torch.cat([pair.loc, anywhere]), tolerance=1e-6, separation=0.1)))
    means, variances = torch.tensor([[[0, 0], [1, 1]], [[1, 0.05], [0.05, 1]]], dtype=torch.float64)
    crossing = DiagGaussianMixture(means, variances.sqrt())
    axis = torch.linspace(-0.5, 1.5, 5, dtype=torch.float64)
    found = len(find_modes(crossing, torch.cartesian_prod(axis, axis)))
    slope = crossing.log_prob_and_score(torch.tensor([20 / 21, 1 / 21], dtype=torch.float64))[1].abs().sum()
    counted, expected = torch.tensor([*counts, found, slope]), torch.tensor([1, 1, 2, 2, 3, 0])
    return Measurement(  # equality of counts as two inequalities, so that "at most" can be tried by the same relation
        sides=[("modes found of two Gaussians 1.5 s apart", "modes promised")],
        lhs=torch.cat([counted, expected]),
        rhs=torch.cat([expected, counted]),
        falsehood_lhs=found,
        falsehood_rhs=crossing.num_components,
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "two modes only beyond 2.1 s": Neighbour(counts[2], 1),
            "two modes from 1.9 s on": Neighbour(2, counts[1]),
        },
    )


@claim(
    "index/limits",
    falsehood=r"As $h\to0$, $I\to\log N$, duplicates or not.",
    kind="MC",
    source="this book; kernel density estimation: Parzen (1962)",
    section="mixture/index",
)
def limits(generator: torch.Generator) -> Measurement:
    """Sample I at both ends; in the middle compare with scikit-learn's kernel density (to its rounding)."""
    data = _data_with_duplicates(generator)
    small, large = (
        mutual_information(DiagGaussianMixture(data, torch.full_like(data, h)), 20_000, generator=generator)
        for h in (1e-3, 1e3)
    )
    _, counts = data.unique(return_counts=True)
    share = counts.double() / len(data)
    entropy = float(torch.special.entr(share).sum())
    points = GRID[::100, None]
    from sklearn.neighbors import KernelDensity  # here, because it takes a second to import

    kernel_density = KernelDensity(bandwidth=0.5, rtol=1e-12).fit(data.numpy()).score_samples(points.numpy())
    log_prob = DiagGaussianMixture(data, torch.full_like(data, 0.5)).log_prob(points)
    off = float((log_prob - torch.from_numpy(kernel_density)).abs().max())
    return Measurement(
        sides=[
            ("I(n; z), narrow", "H(m/N)"),
            ("I(n; z), wide", "no information"),
            ("off scikit-learn's density", "none"),
        ],
        lhs=torch.tensor([small.value, large.value, off], dtype=torch.float64),
        rhs=torch.tensor([entropy, 0.0, 0.0], dtype=torch.float64),
        falsehood_lhs=small.value,
        falsehood_rhs=math.log(len(data)),
        neighbours={"the log of the number of distinct data": Neighbour(small.value, math.log(6), unit=small.stderr)},
        stderr=torch.tensor([small.stderr, large.stderr, 1e-10], dtype=torch.float64),
        falsehood_stderr=small.stderr,
    )
