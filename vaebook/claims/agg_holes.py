"""Claims of chapter aggregated/holes: what certifies a mismatch, and what a mismatch says about holes."""

from __future__ import annotations

import math
from itertools import product

import scipy
import torch
from torch import Tensor

from vaebook.aggregate import merge_duplicates
from vaebook.certificates import mismatch_bound
from vaebook.claims.agg_surgery import integrated_kl
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.information import decompose_kl
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal

CHAPTER = "aggregated/holes"


@claim(
    "agg/hole-bound",
    falsehood=r"$\mathrm{KL}\ge R$; or $\mathrm{KL}\ge R-\log B$ with the size $B$ of a batch.",
    kind="bound",
    source="this book; from Hoffman & Johnson (2016), and I <= H of Kolchinsky & Tracey (2017)",
    section=CHAPTER,
)
def hole_bound(generator: torch.Generator) -> Measurement:
    """Integrate KL(q_agg | p) for 12 separated codes of 20 data and compare with the certificates, which bite."""
    places = 2.0 * torch.arange(-6, 6, dtype=torch.float64) + torch.rand(12, generator=generator, dtype=torch.float64)
    loc = places.repeat_interleave(torch.tensor([1, 1, 2, 1, 3, 1, 1, 2, 1, 4, 2, 1]))[:, None]
    q_agg, batch = DiagGaussianMixture(loc, torch.full_like(loc, 0.2)), 4
    rate = decompose_kl(q_agg, StandardNormal(1), num_samples=2, generator=generator).rate.value
    weight = merge_duplicates(q_agg)[0].log_weight
    by_entropy, by_number = rate + float(weight.exp() @ weight), mismatch_bound(rate, len(loc))
    mismatch = integrated_kl(q_agg)
    return Measurement(  # the last: the certificate is no empty one
        sides=[("mismatch", "bound R - H(m/N)")],
        lhs=torch.tensor([mismatch, by_entropy, by_number], dtype=torch.float64),
        rhs=torch.tensor([by_entropy, by_number, 0.5 * mismatch], dtype=torch.float64),
        falsehood_lhs=mismatch,
        falsehood_rhs=torch.tensor([rate, rate - math.log(batch)], dtype=torch.float64),
        relation=">=",
        tolerance=1e-9,
        neighbours={"R - 0.99 H(m/N)": Neighbour(mismatch, rate - 0.99 * (rate - by_entropy))},
    )


@claim(
    "agg/mismatch-is-not-hole",
    falsehood=r"$R\gg\log N$ means that most draws of the prior are bad.",
    kind="quadrature",
    source="this book",
    section=CHAPTER,
)
def mismatch_is_not_hole(generator: torch.Generator) -> Measurement:
    """Put one code of N far out; integrate KL and total variation over both neighbourhoods."""
    num = int(torch.randint(800, 1200, (), generator=generator))
    far = 200.0 + 20 * float(torch.rand((), generator=generator))
    loc, share = torch.tensor([[0.0], [far]], dtype=torch.float64), 1 / num
    log_weight = torch.tensor([1 - share, share], dtype=torch.float64).log()
    q_agg = DiagGaussianMixture(loc, torch.ones_like(loc), log_weight)
    rate = share * far**2 / 2
    z = torch.linspace(-15, far + 15, 40_001, dtype=torch.float64)
    log_q, log_p = q_agg.log_prob(z[:, None]), StandardNormal(1).log_prob(z[:, None])
    variation = float(0.5 * torch.trapezoid((log_q.exp() - log_p.exp()).abs(), z))
    mismatch = float(torch.trapezoid(log_q.exp() * (log_q - log_p), z))
    entropy = -float(log_weight.exp() @ log_weight)
    return Measurement(
        sides=[("total variation", "share 1/N of the far code")],
        lhs=torch.tensor([variation, rate - entropy, mismatch_bound(rate, num), 9.0], dtype=torch.float64),
        rhs=torch.tensor([share, mismatch, rate - entropy, mismatch_bound(rate, num)], dtype=torch.float64),
        falsehood_lhs=0.5,
        falsehood_rhs=variation,
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "the variation is at most half of that": Neighbour(variation, share / 2),
            "with 0.99 of the entropy of the coin": Neighbour(rate - 0.99 * entropy, mismatch),
        },
    )


@claim(
    "agg/small-kl-hole",
    falsehood=r"Prior mass that $q$ misses makes $\mathrm{KL}(q\,\|\,p)$ infinite.",
    kind="quadrature",
    source="this book; the data-processing inequality for the event A, Cover & Thomas (2006), section 2.8",
    section=CHAPTER,
)
def small_kl_hole(generator: torch.Generator) -> Measurement:
    """Cut a half-line out of N(0, 1): the KL is -log(1 - h) for the rest of the prior, more for another density."""
    edge = float(torch.rand((), generator=generator)) - 0.5
    z = torch.linspace(edge, edge + 16, 400_001, dtype=torch.float64)
    log_p = torch.from_numpy(scipy.stats.norm.logpdf(z.numpy()))

    def kl(density: scipy.stats.rv_continuous) -> float:
        log_q = torch.from_numpy(density.logpdf(z.numpy()))
        return float(torch.trapezoid(log_q.exp() * (log_q - log_p), z))

    rest = kl(scipy.stats.truncnorm(edge, math.inf))
    other = kl(scipy.stats.truncnorm((edge - 0.4) / 0.9, math.inf, loc=0.4, scale=0.9))
    bound = -math.log(1 - scipy.stats.norm.cdf(edge))  # -log(1 - h)
    return Measurement(  # equality as two inequalities; e^-KL is 0 if KL is infinite
        sides=[("KL(prior without the hole ‖ prior)", "bound -log(1 - h)")],
        lhs=torch.tensor([rest, bound, bound + 1e-3], dtype=torch.float64),
        rhs=torch.tensor([bound, rest, other], dtype=torch.float64),
        falsehood_lhs=math.exp(-rest),
        falsehood_rhs=0.0,
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "a bound larger by a twentieth": Neighbour(1.05 * bound, rest),
            "equality for every density outside the hole": Neighbour(other, bound),
        },
    )


@claim(
    "agg/hole-mass",
    falsehood="A small KL leaves no hole.",
    kind="exact",
    source="data processing and Pinsker's inequality: Cover & Thomas (2006); the reading: this book",
    section=CHAPTER,
)
def hole_mass(generator: torch.Generator) -> Measurement:
    """Take densities over 12 cells, all events but the trivial two, a random decoder; and the cases of equality."""
    p, q = (torch.randn(12, generator=generator, dtype=torch.float64).softmax(0) for _ in range(2))
    events = torch.tensor(list(product([0.0, 1.0], repeat=12)), dtype=torch.float64)[1:-1]
    decoder = torch.randn(12, 5, generator=generator, dtype=torch.float64).softmax(1)
    divergence = (q * (q / p).log()).sum()
    hole = events[torch.randint(len(events), (), generator=generator)]
    mass = hole @ p
    rest = p * (1 - hole) / (1 - mass)  # what is left of p outside the hole: q(A) = 0, and equality
    rare = torch.cat([1e-12 * p[:1], p[1:]])
    rare = rare / rare.sum()
    small = torch.tensor([0.5, 0.505], dtype=torch.float64)  # Pinsker's inequality is nearly attained
    pinsker = _binary(small[1], small[0])
    tv = 0.5 * (p - q).abs().sum()
    return Measurement(
        sides=[("KL of the probabilities of one event", "KL(q ‖ p)")],
        lhs=torch.cat(
            [
                _binary(events @ q, events @ p),
                torch.stack([mass, 0.5 * (p @ decoder - q @ decoder).abs().sum(), tv, small[1] - small[0]]),
            ]
        ),
        rhs=torch.cat(
            [
                divergence.expand(len(events)),
                torch.stack([-torch.expm1(-_discrete_kl(rest, p)), tv, (divergence / 2).sqrt(), (pinsker / 2).sqrt()]),
            ]
        ),
        falsehood_lhs=mass,  # a hole at a finite divergence
        falsehood_rhs=0.0,
        relation="<=",
        tolerance=1e-12,
        neighbours={
            "the hole is at most 1 - exp(-0.95 KL)": Neighbour(mass, -torch.expm1(-0.95 * _discrete_kl(rest, p))),
            "TV is at most the root of KL / 2.1": Neighbour(small[1] - small[0], (pinsker / 2.1).sqrt()),
            "with q(A) and p(A) exchanged": Neighbour(_binary(p[0], rare[0]), _discrete_kl(rare, p)),
            "decoding keeps the distance": Neighbour(tv, 0.5 * (p @ decoder - q @ decoder).abs().sum()),
        },
    )


def _binary(q: Tensor, p: Tensor) -> Tensor:
    """Divergence of the two-point distributions with these probabilities."""
    return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()


def _discrete_kl(q: Tensor, p: Tensor) -> Tensor:
    return torch.where(q > 0, q * (q / p).log(), 0.0).sum()
