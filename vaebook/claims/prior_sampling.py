"""Claims of chapter aggregated/sampling on which distribution of codes to sample from."""

from __future__ import annotations

import math

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
    rows, wrong = [], []
    for dim in (*WINS, *LOSES):
        q_agg, held_out, left_out, trained = _gains(x, len(data.train), dim)
        error = (held_out.stderr**2 + left_out.stderr**2) ** 0.5
        sign = 1.0 if dim in WINS else -1.0
        rows += [(held_out.value, left_out.value, error), (left_out.value, held_out.value, error)]
        rows += [(0.0, sign * held_out.value, held_out.stderr), (0.0, sign * left_out.value, left_out.stderr)]
        if dim in WINS:
            told = mutual_information(q_agg, SAMPLES, generator=generator)
            rows += [(math.log(q_agg.num_components) - NEAR, told.value, told.stderr)]
            wrong += [(held_out.value, 0.0, held_out.stderr)]
        wrong += [(trained.value, held_out.value, (held_out.stderr**2 + trained.stderr**2) ** 0.5)]
    lhs, rhs, stderr = torch.tensor(rows, dtype=torch.float64).unbind(1)
    falsehood_lhs, falsehood_rhs, falsehood_stderr = torch.tensor(wrong, dtype=torch.float64).unbind(1)
    return Measurement(
        lhs=lhs,
        rhs=rhs,
        stderr=stderr,
        falsehood_lhs=falsehood_lhs,
        falsehood_rhs=falsehood_rhs,
        falsehood_stderr=falsehood_stderr,
        relation="<=",
        neighbours={"it wins at 32 as well": Neighbour(0.0, held_out.value, unit=held_out.stderr)},
    )
