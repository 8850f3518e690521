"""A diagnosis made by hand, of which every number is known."""

import torch

from vaebook.estimators import Estimate
from vaebook.holes import Holes
from vaebook.memorisation import Memorisation
from vaebook.population import Interval
from vaebook.report import Diagnosis, Moments, Sampling


def about(value, stderr=0.1):
    return Estimate(value, stderr, 100)


def interval(low, high, **candidates):
    return Interval(low, high, low, 0.1, high, 0.1, candidates or {"leave-one-out": (-5.0, 0.1)})


def hole(mass=0.0, least=0.01):
    return Holes(mass, 0.001, 0.0005, 0.0001, least, torch.zeros(0, 2), ())


def memory(own=-1.0, left=-1.2, held=None, traced=0.1, stderr=0.1):
    held_out = None if held is None else about(held, stderr)
    cost = about(own - left, stderr)
    return Memorisation(about(own, stderr), about(left, stderr), held_out, about(traced), cost)


def sampling(chosen="prior", gains=(0.1, -9.0), stderr=0.01, effective=(99, 99, 99), copies=None, **changes):
    """Scores of the prior, of the mixture and of q_agg."""
    names = ("prior", "gmm", "q_agg")
    every = dict(zip(names, (Estimate(0.0, 0.0, 60), *(about(gain, stderr) for gain in gains)), strict=True))
    likelihood = {name: about(-50.0) for name in names}
    made = Sampling(
        "held-out data", chosen, every, likelihood, None, dict(zip(names, effective, strict=True)), copies or {}
    )
    return made._replace(**changes)


PLAIN = Diagnosis(
    num_data=2000,
    num_distinct=1000,
    latent_dim=2,
    prior="standard normal",
    rate=about(3.0),
    information=about(2.0),
    log_num_data=7.6,
    distinguishable=about(7.0),
    information_population=interval(1.0, 2.0),
    mismatch=about(1.0),
    mismatch_population=interval(0.0, 0.4),
    population_from="the codes at hand",
    total_correlation=about(0.1),
    kl_per_dimension=(1.0, 2.0),
    active=(True, True),
    holes=hole(),
    memorisation=memory(),
    moments=Moments(0.01, 1.01),
    sampling=None,
)
