"""Claims of chapter mixture/dimensions: D coordinates are not D components, and what tells them apart."""

from __future__ import annotations

import math

import scipy
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from vaebook.bounds import quadrature_log_prob
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import estimate
from vaebook.information import mutual_information, mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture
from vaebook.modes import find_modes


@claim(
    "dims/product",
    falsehood="It is a mixture of $D$ components.",
    kind="exact",
    source="this book; the second part rests on dims/identifiability",
    section="mixture/dimensions",
)
def product(generator: torch.Generator) -> Measurement:
    """Compare the package's single component with torch's full-covariance Gaussian and the sum over coordinates."""
    loc, scale = torch.randn(2, 1, 3, generator=generator, dtype=torch.float64)
    scale = (0.3 * scale).exp()
    q = DiagGaussianMixture(loc, scale)
    z = loc + 2 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    each = Normal(loc, scale).log_prob(z)
    joint = MultivariateNormal(loc[0], torch.diag(scale[0].square())).log_prob(z)
    counts = torch.tensor([q.num_components, len(find_modes(q, z))])
    aside = torch.cat([0.6 * scale[:, :1], 0 * scale[:, 1:]], 1)  # 0.6² + 0.8² = 1
    narrow = torch.cat([0.8 * scale[:, :1], scale[:, 1:]], 1)
    halves = DiagGaussianMixture(torch.cat([loc - aside, loc + aside]), narrow.repeat(2, 1))
    return Measurement(
        sides=[("log-density of the Gaussian", "sum over its coordinates")],
        lhs=torch.cat([q.log_prob(z), joint, counts]),
        rhs=torch.cat([each.sum(1), each.sum(1), torch.ones(2)]),
        falsehood_lhs=torch.cat([joint, counts]),
        falsehood_rhs=torch.cat([each.logsumexp(1) - math.log(3), torch.tensor([3, 3])]),
        tolerance=1e-10,
        neighbours={"two narrower Gaussians with its moments are the same": Neighbour(joint, halves.log_prob(z))},
    )


@claim(
    "dims/ghost-modes",
    falsehood="The two are interchangeable.",
    kind="MC",
    source="this book; scverse/scvi-tools issue 3188 for the formulas side by side",
    section="mixture/dimensions",
)
def ghost_modes(generator: torch.Generator) -> Measurement:
    """Write the product of marginals as its 16 Gaussians, count the modes of both, and integrate the total correlation.

    Its Monte Carlo estimate uses the package's densities, its integral a grid and scipy's.
    """
    q, points = _scattered_codes(generator), torch.arange(4)
    which = torch.cartesian_prod(points, points)
    coordinate = torch.arange(2)
    ghosts = DiagGaussianMixture(q.loc[which, coordinate], q.scale[which, coordinate], q.log_weight[which].sum(1))
    z = q.sample((20_000,), generator=generator)
    gained = estimate(q.log_prob(z) - q.log_prob_marginals(z).sum(1))
    product_of_sums, at_ghosts = q.log_prob_marginals(z[:30]).sum(1), ghosts.loc[which[:, 0] != which[:, 1]]
    exact = 1e-10
    loc, scale = q.loc.clone(), q.scale.clone()
    loc[1, 0], scale[1, 0] = loc[0, 0], scale[0, 0]  # two codes that share their first coordinate
    distinct = torch.cat([loc[which, coordinate], scale[which, coordinate]], 1).unique(dim=0).shape[0]
    counts = torch.tensor([len(find_modes(q)), len(find_modes(ghosts)), distinct])
    return Measurement(
        sides=[("log-density of N^D Gaussians", "sum of the marginals' logs")] * 30
        + [
            ("modes of q_agg", "N"),
            ("modes of the product", "N^D"),
            ("distinct products", "those left by a shared code"),
        ]
        + [("total correlation, sampled", "total correlation, integrated")],
        lhs=torch.cat([ghosts.log_prob(z[:30]), counts, torch.tensor([gained.value])]),
        rhs=torch.cat([product_of_sums, torch.tensor([4, 16, 12, _total_correlation(q)])]),
        falsehood_lhs=torch.cat([q.log_prob(at_ghosts), torch.tensor([gained.value])]),
        falsehood_rhs=torch.cat([ghosts.log_prob(at_ghosts), torch.zeros(1)]),
        stderr=torch.tensor([exact] * 33 + [gained.stderr]),
        falsehood_stderr=torch.tensor([exact] * 12 + [gained.stderr]),
        neighbours={
            "N D modes": Neighbour(counts[1], 8, unit=exact),
            "all of the products are distinct, whatever the codes": Neighbour(distinct, 16, unit=exact),
        },
    )


def _scattered_codes(generator: torch.Generator) -> DiagGaussianMixture:
    """Four codes in the plane, no two of which share a place in either coordinate."""
    places = torch.tensor([[-6.0, 2.0], [-2.0, -6.0], [2.0, 6.0], [6.0, -2.0]], dtype=torch.float64)
    jitter, width = torch.rand(2, 4, 2, generator=generator, dtype=torch.float64)
    log_weight = 0.3 * torch.randn(4, generator=generator, dtype=torch.float64)
    return DiagGaussianMixture(places + 0.6 * jitter - 0.3, 0.4 + 0.3 * width, log_weight.log_softmax(0))


def _total_correlation(q: DiagGaussianMixture) -> float:
    """Integrate log q - log q_1 - log q_2 under q on a grid, the marginals by summing rows and columns."""
    side = torch.linspace(-11, 11, 441, dtype=torch.float64)
    first, second = (scipy.stats.norm.pdf(side[:, None], q.loc[:, j], q.scale[:, j]) for j in range(2))
    density = torch.from_numpy((q.log_weight.exp().numpy() * first) @ second.T)
    step = float(side[1] - side[0])
    marginals = density.sum(1, keepdim=True) * density.sum(0, keepdim=True) * step**2
    return float((density * (density / marginals).log()).sum() * step**2)


@claim(
    "dims/information-adds",
    falsehood=r"The coordinates are independent under $q_\mathrm{agg}$ too, so that information adds: "
    r"$I(n;z)=\sum_jI(n;z_j)$.",
    kind="MC",
    source="this book; total correlation: Watanabe (1960)",
    section="mixture/dimensions",
)
def information_adds(generator: torch.Generator) -> Measurement:
    """Estimate the left side and I(n; z) from separate draws; integrate the I(n; z_j), one coordinate at a time."""
    shared = 2 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    loc = shared + 0.5 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
    scale = (0.3 * torch.randn(30, 3, generator=generator, dtype=torch.float64) - 1).exp()
    q = DiagGaussianMixture(loc, scale)
    z = q.sample((20_000,), generator=generator)
    correlation = estimate(q.log_prob(z) - q.log_prob_marginals(z).sum(1))
    together = mutual_information(q, 20_000, generator=generator)
    coordinates = (DiagGaussianMixture(loc[:, [j]], scale[:, [j]]) for j in range(3))
    separately = sum(mutual_information_quadrature(one, tolerance=1e-7) for one in coordinates)
    return Measurement(
        sides=[("total correlation", "sum of the I(n; z_j) less I(n; z)")],
        lhs=correlation.value,
        rhs=separately - together.value,
        falsehood_lhs=together.value,
        falsehood_rhs=separately,
        stderr=math.hypot(correlation.stderr, together.stderr),
        falsehood_stderr=together.stderr,
        neighbours={
            "the other way round": Neighbour(correlation.value, together.value - separately),
            "the same for tilted codes": Neighbour(*_tilted(), unit=1e-6),
        },
    )


def _tilted() -> tuple[Tensor, Tensor]:
    """Total correlation and minus the information of two codes with the same marginals and opposite correlations.

    Neither coordinate tells anything alone.
    """
    line = torch.linspace(-8, 8, 401, dtype=torch.float64)
    z, cell = torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2
    covariance = torch.tensor([[[1.0, c], [c, 1.0]] for c in (0.8, -0.8)], dtype=torch.float64)
    parts = MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(z[:, None])
    log_q = parts.logsumexp(1) - math.log(2)
    correlation = (log_q.exp() * (log_q - Normal(0.0, 1.0).log_prob(z).sum(1))).sum() * cell
    return correlation, -(parts.exp() * (parts - log_q[:, None])).sum() * cell / 2


@claim(
    "dims/identifiability",
    falsehood=r"$\mathcal N(0,v)=\int\mathcal N(\cdot\mid z,1)\,\mathcal N(z\mid0,t^2)\,dz$ for every $t$.",
    kind="quadrature",
    source="Teicher (1963) in one dimension, Yakowitz & Spragins (1968) in several; fixed covariance: deconvolution",
    section="mixture/dimensions",
)
def identifiability(generator: torch.Generator) -> Measurement:
    """Split one Gaussian in three ways; recover the weights of a finite mixture, and a mixing law at a fixed scale."""
    v = 2.2 + 0.8 * float(torch.rand((), generator=generator, dtype=torch.float64))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    shares = (0.25, 0.5, 0.9)
    split = torch.stack([_blurred(x, share * v, (1 - share) * v) for share in shares])
    whole = torch.from_numpy(scipy.stats.norm.logpdf(x[:, 0], scale=v**0.5))
    kept = torch.cat([_blurred(x[3:4], share * v, 1.0) for share in shares])  # at 0, where it differs most
    solved, weight = _recovered_weights(generator)
    found, law = _recovered_law(generator)
    return Measurement(
        sides=[("log-density of a blurred Gaussian", "log-density of N(0, v)")],
        lhs=torch.cat([split.flatten(), solved, found]),
        rhs=torch.cat([whole.repeat(3), weight, law]),
        falsehood_lhs=kept,
        falsehood_rhs=whole[3],
        tolerance=1e-9,
        neighbours={"mixtures with the same five moments are the same": Neighbour(*_same_moments(x, v))},
    )


def _same_moments(x: Tensor, v: float) -> tuple[Tensor, Tensor]:
    """Log-densities of N(0, v) and of three narrower Gaussians at the nodes of Gauss and Hermite's rule."""
    loc = (3 * v / 2) ** 0.5 * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    weight = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    return DiagGaussianMixture(loc, torch.full_like(loc, (v / 2) ** 0.5), weight.log()).log_prob(x), torch.from_numpy(
        scipy.stats.norm.logpdf(x[:, 0], scale=v**0.5)
    )


def _blurred(x: Tensor, mixing_variance: float, variance: float) -> Tensor:
    """Integrate log of ∫ N(x|z, variance) N(z|0, mixing variance) dz."""
    mixing = DiagGaussianMixture(torch.zeros_like(x[:1]), torch.full_like(x[:1], mixing_variance**0.5))
    return quadrature_log_prob(lambda z: Independent(Normal(z, variance**0.5), 1), mixing, x, limit=16.0)


def _recovered_weights(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Solve for the weights of four Gaussians from the density of their mixture, with two others on offer.

    Distinct Gaussians are linearly independent: their Gram matrix in L² has an inverse.
    """
    loc = torch.tensor([-3.0, -1.0, -1.0, 1.0, 3.0, 3.0]) + 0.2 * torch.rand(
        6, generator=generator, dtype=torch.float64
    )
    variance = torch.tensor([0.5, 1.0, 0.4, 0.6, 0.5, 1.2]).double().square()
    weight = torch.rand(6, generator=generator, dtype=torch.float64) * torch.tensor([1, 0, 1, 1, 0, 1])
    weight = weight / weight.sum()
    z = torch.linspace(-12, 12, 2_401, dtype=torch.float64)[:, None]
    density = DiagGaussianMixture(loc[:, None], variance[:, None].sqrt(), weight.log()).log_prob(z).exp()
    offered = Normal(loc, variance.sqrt()).log_prob(z).exp()
    products = torch.trapezoid(density[:, None] * offered, z, dim=0)
    gram = Normal(0.0, (variance + variance[:, None]).sqrt()).log_prob(loc - loc[:, None]).exp()
    return torch.linalg.solve(gram, products), weight


def _recovered_law(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide the characteristic function of a mixture with one fixed scale by the component's, at four frequencies."""
    atoms, scale = torch.randn(3, 1, generator=generator, dtype=torch.float64), 0.6
    q = DiagGaussianMixture(atoms, torch.full_like(atoms, scale))
    z = torch.linspace(-12, 12, 2_401, dtype=torch.float64)[:, None]
    u = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    waves = torch.cat([(u * z).cos(), (u * z).sin()], 1)
    transform = torch.trapezoid(q.log_prob(z).exp()[:, None] * waves, z, dim=0)
    law = torch.cat([(u * atoms).cos(), (u * atoms).sin()], 1).mean(0)
    return transform * (0.5 * (scale * u).square()).exp().repeat(2), law


@claim(
    "dims/rotation",
    falsehood="The coordinates that were found are those of the data.",
    kind="quadrature",
    source="Locatello et al. (2019), theorem 1, and Khemakhem et al. (2020), for the consequence; the statement is a "
    "change "
    "of variables",
    section="mixture/dimensions",
)
def rotation(generator: torch.Generator) -> Measurement:
    """Turn a bent decoder by an angle, and by one that grows with the radius; integrate over the plane."""
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    mixing = torch.eye(2, dtype=torch.float64) + 0.5 * torch.rand(2, 2, generator=generator, dtype=torch.float64)
    line = torch.linspace(-9, 9, 541, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)

    def turned(z: Tensor, angle: float, twist: float, sign: int) -> Tensor:
        angles = sign * (angle + twist * z.square().sum(-1, keepdim=True))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos * z[:, :1] - sin * z[:, 1:], sin * z[:, :1] + cos * z[:, 1:]], 1)

    def integrals(codes: Tensor) -> tuple[Tensor, Tensor]:
        """Log of p(x), (4), and posterior means of z, (4, 2), where z decodes as the code beside it."""
        loc = torch.tanh(codes @ mixing) + 0.3 * codes
        joint = Normal(loc[:, None], 0.5).log_prob(x).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(1)[:, None]
        weight = joint.softmax(0)
        return joint.logsumexp(0) + 2 * math.log(float(line[1] - line[0])), weight

    first, weight = integrals(z)
    moved = [(0.7, 0.0), (0.3, 0.15)]
    others = [integrals(turned(z, *by, -1)) for by in moved]
    means = torch.stack([w.mT @ z for _, w in others])  # of T(z) under the first posterior
    promised = torch.stack([weight.mT @ turned(z, *by, 1) for by in moved])
    sheared = integrals(torch.cat([z[:, :1], z[:, 1:] + 0.5 * z[:, :1]], 1))[0]
    return Measurement(
        sides=[("log p(x) with codes turned", "log p(x) before")],
        lhs=torch.cat([torch.stack([p for p, _ in others]).flatten(), means.flatten()]),
        rhs=torch.cat([first.repeat(2), promised.flatten()]),
        falsehood_lhs=(means - weight.mT @ z).abs().amax((1, 2)),
        falsehood_rhs=0.0,
        tolerance=1e-8,
        neighbours={"any map that keeps volumes, a shear": Neighbour(sheared, first)},
    )
