"""Claims of chapter aggregated/sampling on which distribution of codes to sample from."""

from __future__ import annotations

import math
from itertools import permutations, product

import torch
from torch import Tensor

from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.data import digits
from vaebook.estimators import Estimate, estimate
from vaebook.information import mutual_information
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA

CHAPTER = "aggregated/sampling"
SAMPLES = 1_000
WINS, LOSES = (16, 20), (32,)
"""Latent dimensions at which q_agg beats the prior on held-out digits, and at which it loses."""
NEAR = 0.1
"""Nats by which I may fall short of log N where it is called close."""


@claim(
    "prior/gain",
    falsehood="The gain is what the ELBO changes by when the prior is exchanged and the encoder kept.",
    kind="exact",
    source="Bayes' rule and Jensen's inequality; this book",
    section=CHAPTER,
)
def gain(generator: torch.Generator) -> Measurement:
    """Sum over six codes, for five outcomes of a random decoder and two random distributions of codes."""
    decoder = (1.5 * torch.randn(6, 5, generator=generator, dtype=torch.float64)).softmax(1)
    p, c = (1.5 * torch.randn(2, 6, generator=generator, dtype=torch.float64)).softmax(1)
    gained, mean_ratio, bound = _gain(decoder, p, c)
    # Two codes: the posterior prefers the first, and so does c, too much for the mean of the logarithm.
    likelihood, half = torch.tensor([[0.7], [0.3]], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    wins, _, loses = _gain(likelihood, half, torch.tensor([0.99, 0.01], dtype=torch.float64))
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    beyond, within, _ = _gain(likelihood, one, half)
    return Measurement(  # the equality as two inequalities, and the bound; in the example it is below 0
        sides=[("gain log p_c(x)/p(x)", "log of the posterior mean of c/p")],
        lhs=torch.cat([gained, mean_ratio, bound, loses]),
        rhs=torch.cat([mean_ratio, gained, gained, torch.zeros(1, dtype=torch.float64)]),
        falsehood_lhs=gained,
        falsehood_rhs=bound,
        relation="<=",
        tolerance=1e-12,
        neighbours={
            "no gain where the ELBO falls": Neighbour(wins, 0.0),
            "the mean is over the prior": Neighbour(gained, 0.0, "=="),
            "the same where c reaches beyond p": Neighbour(beyond, within, "=="),
        },
    )


def _gain(decoder: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p_c(x)/p(x), log of the posterior mean of c/p, and posterior mean of log c/p, for every outcome x."""
    posterior = decoder * p[:, None] / (p @ decoder)
    ratio = torch.where(p > 0, c / p, 1.0)
    return (c @ decoder / (p @ decoder)).log(), (ratio @ posterior).log(), ratio.log() @ posterior


@claim(
    "prior/left-out",
    falsehood="Leaving one out is unbiased for new data under the whole mixture.",
    kind="exact",
    source="this book; the score: Duin (1976) for kernels",
    section=CHAPTER,
)
def left_out(generator: torch.Generator) -> Measurement:
    """Enumerate three data and a new one: independent draws, and splits of five data of which two are equal."""
    encoder = (2 * torch.randn(4, 3, generator=generator, dtype=torch.float64)).softmax(1)  # q(z | x)
    decoder = (2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)).softmax(1)  # p(x | z)
    share = torch.randn(4, generator=generator, dtype=torch.float64).softmax(0)
    drawn = torch.tensor(list(product(range(4), repeat=4)))
    split = torch.tensor(list(permutations([0, 0, 1, 2, 3], 4)))
    lhs, rhs, whole, own = [], [], [], []
    for x, mass in (
        (drawn, share[drawn].prod(1)),
        (split, torch.full((len(split),), 1 / len(split), dtype=torch.float64)),
    ):

        def score(members: Tensor, at: Tensor, x: Tensor = x, mass: Tensor = mass) -> Tensor:
            """Return the mean log-probability of a datum under the aggregated posterior of some places."""
            codes = (encoder[x] * members[..., None]).sum(1) / members.sum(1, keepdim=True)
            return mass @ (codes @ decoder).gather(1, at[:, None]).log()[:, 0]

        first, fewer, three = (
            torch.tensor(m).double().expand(len(x), 4) for m in ([0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0])
        )
        left, right = score(first, x[:, 0]), score(fewer, x[:, 2])
        whole.append(score(three, x[:, 3]))
        own.append(score(three, x[:, 0]))
        lhs += [left, right, left]
        rhs += [right, left, whole[-1]]
    others = (split != split[:, :1]).double() * torch.tensor([1.0, 1.0, 1.0, 0.0])  # no copy of the value is kept
    copies = score(others, split[:, 0])
    return Measurement(  # the equality as two inequalities, and the inequality, for both kinds of samples
        sides=[("mean leave-one-out score", "mean score of a new datum, one fewer in the mixture")],
        lhs=torch.stack(lhs),
        rhs=torch.stack(rhs),
        falsehood_lhs=torch.stack(whole),
        falsehood_rhs=torch.stack([lhs[0], lhs[3]]),
        relation="<=",
        tolerance=1e-12,
        neighbours={
            "the same with the own component": Neighbour(torch.stack(own), torch.stack(whole), "=="),
            "every copy of the value left out": Neighbour(copies, rhs[3], "=="),
        },
    )


def _gains(x: Tensor, num_train: int, dim: int) -> tuple[DiagGaussianMixture, Estimate, Estimate, Estimate]:
    """Return q_agg and its gains over the prior: held out, and on the training set without and with own components."""
    train, held_out = x[:num_train], x[num_train:]
    model = PPCA.fit(train, dim)
    q_agg, own = model.aggregated_posterior(train), torch.arange(num_train)
    return (
        q_agg,
        estimate(model.log_prob_under(q_agg, held_out) - model.log_prob(held_out)),
        estimate(model.log_prob_under(q_agg, train, leave_out_index=own) - model.log_prob(train)),
        estimate(model.log_prob_under(q_agg, train) - model.log_prob(train)),
    )


@claim(
    "prior/overfit",
    falsehood=r"$I\approx\log N$ means that $q_\mathrm{agg}$ loses (at $D=16$ and 20); the gain on the training set "
    "with the own component predicts the gain.",
    kind="empirical",
    source="this book; the score: Duin (1976) for kernels, van den Burg & Williams (2021) for VAEs",
    section=CHAPTER,
)
def overfit(generator: torch.Generator) -> Measurement:
    """Split the digits at random, fit, and compare the gains; all relations are inequalities, both ways."""
    data = digits()
    x = torch.cat(data[:3]).double()
    x = x[torch.randperm(len(x), generator=generator)]
    rows, wrong, names = [], [], []
    for dim in (*WINS, *LOSES):
        q_agg, held_out, left_out, trained = _gains(x, len(data.train), dim)
        error = (held_out.stderr**2 + left_out.stderr**2) ** 0.5
        sign = 1.0 if dim in WINS else -1.0
        rows += [(held_out.value, left_out.value, error), (left_out.value, held_out.value, error)]
        rows += [(0.0, sign * held_out.value, held_out.stderr), (0.0, sign * left_out.value, left_out.stderr)]
        gains = [f"held-out gain in {dim} dimensions", f"leave-one-out gain in {dim} dimensions"]
        lost = [f"minus the {gain}" for gain in gains]
        names += [tuple(gains), tuple(gains[::-1]), *(("zero", name) for name in (gains if dim in WINS else lost))]
        if dim in WINS:
            names += [(f"log N less {NEAR}", f"I(n; z) in {dim} dimensions")]
            told = mutual_information(q_agg, SAMPLES, generator=generator)
            rows += [(math.log(q_agg.num_components) - NEAR, told.value, told.stderr)]
            wrong += [(held_out.value, 0.0, held_out.stderr)]
        wrong += [(trained.value, held_out.value, (held_out.stderr**2 + trained.stderr**2) ** 0.5)]
    lhs, rhs, stderr = torch.tensor(rows, dtype=torch.float64).unbind(1)
    falsehood_lhs, falsehood_rhs, falsehood_stderr = torch.tensor(wrong, dtype=torch.float64).unbind(1)
    return Measurement(
        sides=names,
        lhs=lhs,
        rhs=rhs,
        stderr=stderr,
        falsehood_lhs=falsehood_lhs,
        falsehood_rhs=falsehood_rhs,
        falsehood_stderr=falsehood_stderr,
        relation="<=",
        neighbours={"it wins at 32 as well": Neighbour(0.0, held_out.value, unit=held_out.stderr)},
    )
