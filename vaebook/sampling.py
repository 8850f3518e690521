"""Compare candidate densities of codes by the log-likelihood of data, and by how samples copy training data."""

from __future__ import annotations

import torch
from torch import Tensor

from vaebook._checks import check_generator
from vaebook.adapters import AdaptedVAE
from vaebook.estimators import Estimate, estimate
from vaebook.evaluation import Condition, take
from vaebook.likelihood import compare_priors
from vaebook.report import Sampling
from vaebook.selection import CLEAR, NUM_SAMPLES, Choice, choose_prior

SCORED = 64
"""Training data whose log-likelihood is estimated beside that of held-out data."""
SAMPLES = 400
"""Decoded samples from each candidate."""
AGAINST = 20_000
"""The largest number of training data that they are compared with."""

Given = tuple[Tensor, Condition]
"""Data and their condition."""


@torch.no_grad()
def decode_candidates(
    vae: AdaptedVAE, given: Given, new: Given | None, num_data: int, generator: torch.Generator | None
) -> Sampling:
    """Score the candidates of `vaebook.selection.choose_prior` and compare their samples with training data.

    The candidate of largest gain is chosen, or the prior if that gain is within two standard errors of 0; chapter
    aggregated/sampling measures such choices.

    Args:
        vae: the model, adapted.
        given: the training data and their condition.
        new: held-out data and their condition, or None.
        num_data: how many data to score for the choice.
        generator: the source of randomness.

    Returns:
        The log-likelihoods and gains of the candidates, and the shares of samples that copy training data.
    """
    x, condition = given
    generator = check_generator(generator, x.device)
    held = {} if new is None else {"held_out": new[0], "held_out_condition": new[1]}
    choice = choose_prior(vae, x, condition=condition, **held, num_data=num_data, generator=generator)
    data = "training data, each left out" if new is None else "held-out data"
    # A conditional decoder needs a condition for each sample, and codes that belong to it.
    copies = {} if condition is not None else _copies(vae, given, new, choice, generator)
    known = None if new is None else _log_likelihood(vae, given, generator)
    chosen, gain = max(choice.gains.items(), key=lambda item: item[1].value)
    chosen = chosen if gain.value > CLEAR * gain.stderr else "prior"
    return Sampling(data, chosen, choice.gains, choice.log_likelihood, known, choice.effective_samples, copies)


def _log_likelihood(vae: AdaptedVAE, given: Given, generator: torch.Generator | None) -> Estimate:
    x, condition = given
    rows = torch.randperm(len(x), generator=generator, device=x.device)[:SCORED]
    prior, options = {"prior": vae.prior}, {"condition": take(condition, rows), "generator": generator}
    return estimate(compare_priors(vae, x[rows], prior, NUM_SAMPLES, **options)["prior"].log_prob)


def _copies(
    vae: AdaptedVAE, given: Given, new: Given | None, choice: Choice, generator: torch.Generator | None
) -> dict[str, Estimate]:
    """Compare samples' distances to the nearest training datum with those of reconstructions of other data.

    Both sides are means of the decoder, without its noise. Without held-out data, training data are reconstructed,
    and the distance is that to the nearest *other* training datum.
    """
    x = given[0][torch.randperm(len(given[0]), generator=generator, device=given[0].device)[:AGAINST]]
    flat, probe = x.flatten(1).double(), (x if new is None else new[0])[:SAMPLES]
    with vae.evaluating():
        if not vae.decoder(vae.encode(x[:2]).base_dist.loc).has_moments:
            return {}
        again = vae.decoder(vae.encode(probe).base_dist.loc).mean.flatten(1).double()
        near, found = _nearest(again, flat, left_out=new is None).quantile(0.05), {}
        for name, candidate in choice.candidates.items():
            z = candidate.sample((SAMPLES,), generator=generator).to(x.device)
            found[name] = estimate((_nearest(vae.decoder(z).mean.flatten(1).double(), flat) < near).double())
    return found


def _nearest(points: Tensor, data: Tensor, *, left_out: bool = False) -> Tensor:
    distance = torch.cdist(points, data)
    if left_out:  # the first of the data are the points' own
        distance.fill_diagonal_(torch.inf)
    return distance.amin(1)
