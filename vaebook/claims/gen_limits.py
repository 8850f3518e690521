"""Claims of chapter continuous/limits: which decoders have a bounded likelihood."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook.bounds import quadrature_log_prob
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.models import BernoulliDecoder, GaussianDecoder
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal

DEPTHS = (10.0, 20.0, 40.0)
"""log(1/t) for the scales t that the unbounded decoder takes."""


@claim(
    "gen/unbounded",
    falsehood="The KL term keeps the ELBO bounded.",
    kind="exact",
    source="Mattei & Frellsen (2018) for the likelihood and the bound by the variances; the rest: this book",
    section="continuous/limits",
)
def unbounded(generator: torch.Generator) -> Measurement:
    """Let z > 0 decode to the first datum, exactly; then try random models of the three bounded kinds."""
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    found = [_memorise(x, depth) for depth in DEPTHS]
    log_prob, elbo, promised = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    fitted, limit = zip(_under_a_floor(generator), _linear(generator), strict=True)
    # By what a nat of depth raises it in the end: P/N; and without full rank, a pPCA by (P - rank)/2 a nat of log 1/s².
    slope = torch.stack([(log_prob[2] - log_prob[1]) / (DEPTHS[2] - DEPTHS[1]), _slope_without_rank(generator)])
    grows = torch.tensor([3 / 5, 1.0], dtype=torch.float64)
    mean, minus_entropy, reached = _discrete(generator)
    found, allowed = zip(*[_smooth_step(x[0].norm(), depth) for depth in DEPTHS[:2]], strict=True)
    bounded = torch.stack([*fitted, mean, reached, minus_entropy])
    bounds = torch.stack([*limit, minus_entropy, minus_entropy, reached])
    return Measurement(  # promise <= ELBO <= likelihood; three bounds, the last an equality if p = p_emp; a network
        sides=[("lower bound of the proof", "ELBO")],
        lhs=torch.cat([promised, elbo, bounded, slope, grows, *found]),
        rhs=torch.cat([elbo, log_prob, bounds, grows, slope, *allowed]),
        falsehood_lhs=elbo[1:],
        falsehood_rhs=elbo[:-1],
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "under a floor, a nat less": Neighbour(fitted[0], limit[0] - 1),
            "probabilistic PCA, a hundredth less": Neighbour(fitted[1], limit[1] - 0.01),
            "discrete data, a hundredth less": Neighbour(reached, minus_entropy - 0.01),
            "probabilistic PCA is bounded whatever the rank": Neighbour(slope[1], 0.0),
            "it is unbounded wherever S_x lacks full rank": Neighbour(0.0, _slope_without_rank(generator, rank=3)),
        },
    )


def _memorise(x: Tensor, depth: float) -> tuple[float, float, float]:
    """Mean log-likelihood, ELBO and the growth promised by the proof, for D = 1 and standard deviation exp(-depth).

    z > 0 decodes to N(x_1, t² I), z <= 0 to N(0, I); x_1 is encoded as N(1, v), the others as N(-1, v).
    """
    own, other = Normal(x[0], math.exp(-depth)).log_prob(x).sum(1), Normal(0.0, 1.0).log_prob(x).sum(1)
    log_prob = torch.logaddexp(own, other) - math.log(2)
    v = torch.tensor(1 / (8 * depth), dtype=torch.float64)
    centre = -torch.ones(len(x), dtype=torch.float64)
    centre[0] = 1.0
    kl = 0.5 * (1 + v - 1 - v.log())
    inside, outside = (torch.special.log_ndtr(sign * centre / v.sqrt()).exp() for sign in (1, -1))
    elbo = inside * own + outside * other - kl
    miss = 2**0.5 * math.exp(-2 * depth)  # bounds the mass that an encoder leaves on the wrong side
    away = (x - x[0]).square().sum(1)
    lost = 2**0.5 * away[1:] / 2 - other[1:]
    constant = -0.5 * x.shape[1] * math.log(2 * math.pi)
    kept = (1 - miss) * (x.shape[1] * depth + constant) + miss * other[0]
    return float(log_prob.mean()), float(elbo.mean()), float((kept - lost.sum()) / len(x) - kl)


def _smooth_step(length: Tensor, depth: float) -> tuple[Tensor, Tensor]:
    """Return what a network of two SiLU units for D = 1 does on both balls and between, and what the theorem allows.

    U is (1, 3), U' is (-3, -1); f = h x_1 and s = t^h with t = exp(-depth), where h goes from 0 to 1.
    """
    z, k = torch.linspace(-3, 3, 6_001, dtype=torch.float64), 4 * depth**2
    h = (torch.nn.functional.silu(k * (z + 0.5)) - torch.nn.functional.silu(k * (z - 0.5))) / k
    log_s = -depth * h
    on_a, on_b, two = z >= 1, z <= -1, torch.tensor(math.log(2), dtype=torch.float64)
    missed = ((h[on_a] - 1).abs().max() * length).log()
    found = [missed, (log_s[on_a] + depth).abs().max(), (-log_s[on_b]).max(), (-depth - log_s).max(), log_s.max()]
    return torch.stack(found), torch.stack([-depth + 0 * two, two, two, two, two])


def _under_a_floor(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Log-likelihood of a datum at the decoder's mean, and its bound, for a network with scales near its floor."""
    floor = 0.05 + 0.1 * float(torch.rand((), generator=generator))
    network = GaussianDecoder(1, 3, (8,), scale="free", min_scale=floor, generator=generator).double()
    with torch.no_grad():
        network.loc.weight.mul_(floor)
        network.log_scale.bias.sub_(20.0)
    x = network(torch.zeros(1, 1, dtype=torch.float64)).mean.detach()
    mean = quadrature_log_prob(network, StandardNormal(1), x, tolerance=1e-10).mean()
    return mean, -0.5 * x.shape[1] * torch.tensor(2 * math.pi * floor**2, dtype=torch.float64).log()


def _linear(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean log-likelihood of a fitted pPCA and that of the best Gaussian of full covariance."""
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 0.1])
    covariance = (x - x.mean(0)).mT @ (x - x.mean(0)) / len(x)
    bound = -0.5 * (4 * math.log(2 * math.pi) + covariance.logdet() + 4)
    return PPCA.fit(x, 3).log_prob(x).mean(), bound  # with P - 1 latents the noise is the last eigenvalue: equality


def _slope_without_rank(generator: torch.Generator, rank: int = 2) -> Tensor:
    """Rise of the log-likelihood a nat of log 1/s²: pPCA with two latents, data of some rank in four pixels."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0][:, :rank]
    x = torch.randn(20, rank, generator=generator, dtype=torch.float64) @ turn.mT
    x = x - x.mean(0)
    value, vector = (part[..., -2:] for part in torch.linalg.eigh(x.mT @ x / len(x)))
    found = [
        PPCA(torch.zeros(4).double(), vector * (value - noise).sqrt(), noise).log_prob(x).mean()
        for noise in (1e-2, 1e-4)
    ]
    return (found[1] - found[0]) / math.log(100)


def _discrete(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-likelihood of nine binary data under a random network, -H(m/N), and it again for p = p_emp."""
    images = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    share = torch.tensor([0, 3, 1, 0, 2, 0, 1, 2], dtype=torch.float64) / 9
    network = BernoulliDecoder(1, 3, (8,), generator=generator).double()
    log_prob = quadrature_log_prob(network, StandardNormal(1), images, tolerance=1e-10)
    seen = share > 0
    # Codes cut into intervals of prior mass m/N, each of which decodes to one image for certain.
    edges = torch.special.ndtri(torch.cat([torch.zeros(1).double(), share[seen].cumsum(0)]).clamp(max=1.0))
    mass = torch.special.ndtr(edges[1:]) - torch.special.ndtr(edges[:-1])
    return share @ log_prob, -torch.special.entr(share).sum(), share[seen] @ mass.log()
