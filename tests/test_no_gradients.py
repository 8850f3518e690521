"""What returns numbers keeps nothing for gradients, whatever its arguments keep: memory would grow with every block."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from vaebook import adapt, aggregated_posterior, diagnose
from vaebook.adapters import adapt_prior
from vaebook.holes import hole_mass
from vaebook.information import decompose_kl
from vaebook.memorisation import memorisation
from vaebook.mixture import DiagGaussianMixture
from vaebook.population import bracket_both, bracket_information, bracket_mismatch
from vaebook.priors import StandardNormal


def seeded():
    return torch.Generator().manual_seed(0)


LOC = torch.randn(70, 2, generator=seeded()).requires_grad_()
Q = DiagGaussianMixture(LOC, (0.5 * LOC[:, :1]).exp().expand(-1, 2))
SOME, MORE, GREY = Q[:12], Q[:60], LOC.sigmoid()
PRIOR = StandardNormal(2).double()
NET, BACK = nn.Linear(2, 4), nn.Linear(2, 2)
VAE = adapt(lambda x: NET(x).chunk(2, 1), BACK, spread="log_var", likelihood="bernoulli_logits")
LEARNED = Independent(Normal(LOC[0] ** 2, LOC[1].exp()), 1)
OUTSIDE = adapt_prior(SimpleNamespace(log_prob=LEARNED.log_prob, sample=LEARNED.rsample))
FEW = {"num_components": (), "num_samples": 70, "generator": seeded()}
CALLS = {
    "aggregated_posterior": lambda: aggregated_posterior(VAE, LOC),
    "diagnose": lambda: diagnose(SOME, prior=LEARNED, generator=seeded()),
    "hole_mass": lambda: hole_mass(MORE, PRIOR, generator=seeded()),
    "decompose_kl": lambda: decompose_kl(Q, PRIOR, num_samples=100, generator=seeded()),
    "memorisation": lambda: memorisation(Q, Q, num_samples=100, generator=seeded()),
    "bracket_mismatch": lambda: bracket_mismatch(Q, LEARNED, **FEW),
    "bracket_information": lambda: bracket_information(Q, densities=(LEARNED,), **FEW),
    "bracket_both": lambda: bracket_both(Q, LEARNED, (), (), seeded()),
    "AdaptedVAE.data": lambda: adapt(lambda x: NET(x).chunk(2, 1), spread="log_var").data(LOC),
    "AdaptedVAE.check": lambda: VAE.eval().check(GREY),
    "AdaptedVAE.sample": lambda: VAE.sample(20, generator=seeded()),
    "sample of a prior": lambda: OUTSIDE.sample((20,), generator=seeded()),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_kept(name):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = CALLS[name]()
    assert kept == [] and not getattr(found, "requires_grad", False)
