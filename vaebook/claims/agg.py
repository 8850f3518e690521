"""Claims of the chapters aggregated/*: what the average encoding distribution is, and what it is not."""

from __future__ import annotations

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from vaebook.bounds import quadrature_log_prob
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA


@claim(
    "agg/moments",
    falsehood=r"The covariance is the mean of the $\Sigma_n$.",
    kind="exact",
    source="law of total variance, for example Blitzstein & Hwang (2019)",
    section="aggregated/posterior",
)
def moments(generator: torch.Generator) -> Measurement:
    """Compare with Gauss-Hermite quadrature, exact for polynomials of this degree."""
    q_agg = _random_mixture(7, 2, generator)
    nodes, weights = (torch.from_numpy(a) for a in hermegauss(4))
    grid, grid_weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(-1)
    z = q_agg.loc[:, None] + q_agg.scale[:, None] * grid  # (N, 16, 2)
    weight = q_agg.log_weight.exp()[:, None] * grid_weight / grid_weight.sum()
    mean = (weight[..., None] * z).sum((0, 1))
    covariance = torch.einsum("ng,ngi,ngj->ij", weight, z - mean, z - mean)
    within = q_agg.log_weight.exp() @ q_agg.scale.square()
    return Measurement(
        sides=[("mean of q_agg", "mean by Gauss-Hermite quadrature")],
        lhs=torch.cat([q_agg.mean, q_agg.covariance.flatten()]),
        rhs=torch.cat([mean, covariance.flatten()]),
        falsehood_lhs=q_agg.variance,
        falsehood_rhs=within,
        tolerance=1e-10,
        neighbours={
            "the spread of the means alone": Neighbour(q_agg.variance, q_agg.variance - within),
            "equal weights": Neighbour(q_agg.variance, DiagGaussianMixture(q_agg.loc, q_agg.scale).variance),
        },
    )


@claim(
    "agg/reconstruct",
    falsehood="The two KL are equal: the decoder passes every mismatch on.",
    kind="MC",
    source="data-processing inequality, Cover & Thomas (2006), section 2.8; for VAEs, this book",
    section="aggregated/posterior",
)
def reconstruct(generator: torch.Generator) -> Measurement:
    """Compare both KL on a mixture by sampling and for Gaussians in closed form, there with what is lost between them.

    And the density of decoded codes, by quadrature, with the average over the data of encode, sample, decode.
    """
    in_x, in_z, lost = _gaussian_kls(generator)
    sharp_x, sharp_z, _ = _gaussian_kls(generator, noise=1e-5)  # next to nothing is lost
    mixture_in_x, mixture_in_z, each, p_agg = _mixture_kls(generator)
    paired = estimate(mixture_in_x - mixture_in_z)
    means = [float(mixture_in_x.mean()), float(mixture_in_z.mean())]
    exact = 1e-10  # what rounding may change in a closed form
    return Measurement(  # the two inequalities, then two equalities as pairs of them
        sides=[
            ("KL in data space, Gaussians", "KL in latent space"),
            ("KL in data space, mixture", "KL in latent space"),
            ("KL in latent space", "KL in data space plus loss"),
            ("KL in data space plus loss", "KL in latent space"),
            ("density of reconstructions", "density of decoded codes"),
            ("density of decoded codes", "density of reconstructions"),
        ],
        lhs=torch.tensor([in_x, means[0], in_z, in_x + lost, each, p_agg], dtype=torch.float64),
        rhs=torch.tensor([in_z, means[1], in_x + lost, in_z, p_agg, each], dtype=torch.float64),
        falsehood_lhs=torch.tensor([in_z, means[1]], dtype=torch.float64),
        falsehood_rhs=torch.tensor([in_x, means[0]], dtype=torch.float64),
        relation="<=",
        stderr=torch.tensor([exact, paired.stderr, *4 * [exact]], dtype=torch.float64),
        falsehood_stderr=torch.tensor([exact, paired.stderr], dtype=torch.float64),
        neighbours={"at most 0.95 of it": Neighbour(sharp_x, 0.95 * sharp_z, unit=exact)},
    )


def _gaussian_kls(generator: torch.Generator, noise: float = 0.5) -> tuple[float, float, float]:
    """KL in data and in latent space when q_agg is one Gaussian, through a random linear decoder to three pixels.

    The third number is the expected KL between the two posteriors of z given x, which the chain rule says is lost.
    """
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    mean, eye = torch.randn(2, generator=generator, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    covariance = torch.diag(0.2 + torch.rand(2, generator=generator, dtype=torch.float64))
    noise = noise * torch.eye(3, dtype=torch.float64)

    def decoded(loc: Tensor, covariance: Tensor) -> MultivariateNormal:
        return MultivariateNormal(weight @ loc, weight @ covariance @ weight.mT + noise)

    def posterior(loc: Tensor, covariance: Tensor, x: Tensor) -> MultivariateNormal:
        gain = covariance @ weight.mT @ torch.linalg.inv(weight @ covariance @ weight.mT + noise)
        return MultivariateNormal(loc + (x - weight @ loc) @ gain.mT, covariance - gain @ weight @ covariance)

    in_x = kl_divergence(decoded(mean, covariance), decoded(0 * mean, eye))
    in_z = kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(0 * mean, eye))
    # The KL of the posteriors is quadratic in x: two points for each direction of x average it exactly.
    root = decoded(mean, covariance).scale_tril.mT * 3**0.5
    points = weight @ mean + torch.cat([root, -root])
    lost = kl_divergence(posterior(mean, covariance, points), posterior(0 * mean, eye, points)).mean()
    return float(in_x), float(in_z), float(lost)


def _mixture_kls(generator: torch.Generator) -> tuple[Tensor, Tensor, float, float]:
    """Draws of the two log-ratios for a finite q_agg and a pPCA decoder; and p_agg at one x, computed in two ways."""
    model = PPCA(torch.zeros(3).double(), torch.tensor([[1.0, 0.0], [0.0, 0.7], [0.0, 0.0]]).double(), 0.3)
    data = 2 * torch.randn(5, 3, generator=generator, dtype=torch.float64) + 1
    q_agg, prior = model.aggregated_posterior(data), model.prior
    z = q_agg.sample((20_000,), generator=generator)  # pick a datum, encode, sample
    x = model.likelihood(z).mean + model.noise_variance**0.5 * torch.randn(
        len(z), 3, generator=generator, dtype=torch.float64
    )
    p_agg = model.log_prob_under(q_agg, x)
    each = torch.stack([model.log_prob_under(model.aggregated_posterior(row[None]), x[:1]) for row in data])
    limit = float((q_agg.loc.abs() + 12 * q_agg.scale).max())
    decoded = quadrature_log_prob(model.likelihood, q_agg, x[:1], limit=limit, tolerance=1e-11)
    two_ways = float(each.exp().mean()), float(decoded.exp())
    return p_agg - model.log_prob(x), q_agg.log_prob(z) - prior.log_prob(z), *two_ways


def _random_mixture(num: int, dim: int, generator: torch.Generator) -> DiagGaussianMixture:
    loc = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    scale = (0.3 * torch.randn(num, dim, generator=generator, dtype=torch.float64)).exp()
    log_weight = torch.randn(num, generator=generator, dtype=torch.float64).log_softmax(0)
    return DiagGaussianMixture(loc, scale, log_weight)
