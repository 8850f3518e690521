"""The table of the doors: every public function that takes a model, on every kind of model, against row-by-row values.

A kind comes with an oracle of its own: the raw module in evaluation mode, called on one row at a time, and formulas
written out here, integrated over a grid. `python book/_tools/doors.py` writes book/results/doors.json, which the book
shows; tests/test_doors_table.py computes every cell anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS, Kind, log_normal
from torch import Tensor

from vaebook import bounds, inference, information, likelihood, selection, training
from vaebook.adapters import adapt_prior
from vaebook.aggregate import aggregated_posterior
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, VampPrior
from vaebook.storage import write_atomically

FILE = Path(__file__).parents[1] / "results" / "doors.json"
ROWS = 3
"""Data on which single values are compared; `choose_prior` takes all."""


def seed(number: int = 0) -> torch.Generator:
    """Return a fresh generator."""
    return torch.Generator().manual_seed(number)


class Oracle:
    """What is known of a kind, row by row, on a grid of codes: (nodes), (nodes, N)."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.num = kind, len(kind.x)
        codes = [kind.codes(*kind.row(n)) for n in range(self.num)]
        self.loc, self.scale = (torch.cat(part).flatten(1) for part in zip(*codes, strict=True))

    @cached_property
    def z(self) -> Tensor:
        """Nodes: a fine line for one dimension."""
        return torch.linspace(-9, 9, 361, dtype=torch.float64)[:, None]

    @cached_property
    def log_lik(self) -> Tensor:
        """Log p(x_n|z) at every node, one row at a time."""
        return torch.tensor([[self.at(z, n) for n in range(self.num)] for z in self.z], dtype=torch.float64)

    def at(self, z: Tensor, n: int) -> float:
        """Log p(x_n|z) at one code."""
        return float(self.kind.log_lik(z[None], *self.kind.row(n)))

    def integrate(self, log_values: Tensor) -> Tensor:
        """Integrate exp over z, by the trapezoid rule."""
        return log_values.logsumexp(0) + math.log(float(self.z[1] - self.z[0]))

    def evidence(self, log_density: Tensor) -> Tensor:
        """Log p(x_n) under a density of z, given at the nodes, (N)."""
        return self.integrate(self.log_lik + log_density.reshape(len(self.z), -1))

    def log_mixture(self, leave_out: int | None = None) -> Tensor:
        """Log q_agg at the nodes, with all components or without one."""
        keep = [n for n in range(self.num) if n != leave_out]
        return log_normal(self.z, self.loc[keep, 0], self.scale[keep, 0]).logsumexp(1) - math.log(len(keep))

    def elbo(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over q of log p(x|z) p(z) / q(z), (N)."""
        log_q = log_normal(self.z, self.loc[:, 0], self.scale[:, 0])
        value = self.log_lik + self.kind.log_prior(self.z)[:, None] - log_q
        weight = log_q.exp() * float(self.z[1] - self.z[0])
        mean = (weight * value).sum(0)
        return mean, (weight * (value - mean).square()).sum(0)


def near(got: Any, expected: Tensor, error: Any = 0.0, rounding: float = 1e-6) -> None:
    """Compare within six standard errors and rounding."""
    got, error = torch.as_tensor(got).double(), torch.as_tensor(error).double()
    if got.shape != expected.shape or not bool(((got - expected).abs() <= 6 * error + rounding).all()):
        raise AssertionError(f"expected {expected}, got {got}")


def _few(kind: Kind) -> tuple[Tensor, dict[str, Any]]:
    return kind.x[:ROWS], kind.named(ROWS)


def _prior(kind: Kind) -> Any:
    """Return the prior, once data have told how many dimensions codes have."""
    kind.vae.data(kind.x, **kind.named())
    return kind.vae.prior


@contextmanager
def _evaluating(vae: Any) -> Iterator[None]:
    """Put a model in evaluation mode for what is part of a loss, and taken in the mode that the model is in."""
    modes = [(module, module.training) for module in vae.modules()]
    vae.eval()
    yield
    for module, mode in modes:
        module.training = mode


def check_aggregated_posterior(kind: Kind, o: Oracle) -> None:
    """Compare all codes."""
    q = aggregated_posterior(kind.vae, kind.x, batch_size=5, **kind.named())
    near(q.loc, o.loc)
    near(q.scale, o.scale)


def check_elbo(kind: Kind, o: Oracle) -> None:
    """Compare with its expectation."""
    x, named = _few(kind)
    mean, variance = o.elbo()
    with _evaluating(kind.vae):
        value = bounds.elbo(kind.vae, x, num_samples=500, generator=seed(), **named)
    near(value, mean[:ROWS], (variance[:ROWS] / 500).sqrt())


def check_iwae_bound(kind: Kind, o: Oracle) -> None:
    """Compare with log p(x), which it is near to."""
    x, named = _few(kind)
    with _evaluating(kind.vae):
        value = bounds.iwae_bound(kind.vae, x, 500, generator=seed(), **named)
    log_prior = kind.log_prior(o.z)
    expected = o.evidence(log_prior)
    second = o.integrate(2 * (o.log_lik + log_prior[:, None]) - log_normal(o.z, o.loc[:, 0], o.scale[:, 0]))
    relative = (second - 2 * expected).exp()[:ROWS] - 1  # variance of a weight
    near(value, expected[:ROWS], (relative / 500).sqrt(), rounding=float(relative.max()) / 500)


def check_prior_sample_log_prob(kind: Kind, o: Oracle) -> None:
    """Compare with log p(x)."""
    x, named = _few(kind)
    log_prior, num = kind.log_prior(o.z), 4000
    expected = o.evidence(log_prior)
    second = o.integrate(2 * o.log_lik + log_prior[:, None])
    error = (((second - 2 * expected).exp() - 1) / num).sqrt()
    value = bounds.prior_sample_log_prob(kind.vae.decoder, _prior(kind), x, num, generator=seed(), **named)
    near(value, expected[:ROWS], error[:ROWS])


def check_quadrature_log_prob(kind: Kind, o: Oracle) -> None:
    """Compare with log p(x)."""
    x, named = _few(kind)
    value = bounds.quadrature_log_prob(kind.vae.decoder, _prior(kind), x, limit=9.0, tolerance=1e-6, **named)
    near(value, o.evidence(kind.log_prior(o.z))[:ROWS])


def _posterior(kind: Kind, o: Oracle) -> tuple[Tensor, Tensor]:
    weight = (o.log_lik + kind.log_prior(o.z)[:, None]).softmax(0)[:, :ROWS]
    mean = weight.mT @ o.z
    return mean, (weight * (o.z - mean[:, 0]).square()).sum(0)


def check_posterior_moments(kind: Kind, o: Oracle) -> None:
    """Compare mean and variance."""
    x, named = _few(kind)
    mean, covariance = inference.posterior_moments(kind.vae.decoder, _prior(kind), x, limit=9.0, **named)
    expected = _posterior(kind, o)
    near(mean, expected[0], rounding=1e-5)
    near(covariance[:, 0, 0], expected[1], rounding=1e-5)


def check_inference_gap(kind: Kind, o: Oracle) -> None:
    """Compare the sum of both gaps."""
    x, named = _few(kind)
    gap = inference.inference_gap(kind.vae, x, limit=9.0, tolerance=1e-4, max_steps=30, **named)
    near(gap.approximation + gap.amortisation, (o.evidence(kind.log_prior(o.z)) - o.elbo()[0])[:ROWS], rounding=1e-3)


def check_importance_log_prob(kind: Kind, o: Oracle) -> None:
    """Compare with log p(x)."""
    x, named = _few(kind)
    found = likelihood.importance_log_prob(kind.vae, x, 500, generator=seed(), **named)
    near(found.log_prob, o.evidence(kind.log_prior(o.z))[:ROWS], found.stderr)
    assert float(found.stderr.max()) < 0.2


def check_choose_prior(kind: Kind, o: Oracle) -> None:
    """Compare the gain of q_agg without the datum's own component."""
    choice = selection.choose_prior(kind.vae, kind.x, num_components=(1,), generator=seed(), **kind.named())
    each = torch.stack([o.log_mixture(leave_out=n) for n in range(o.num)], 1)
    gain = (o.evidence(each) - o.evidence(kind.log_prior(o.z))).mean()
    near(choice.gains["q_agg"].value, gain, rounding=0.1)


def check_decompose_kl(kind: Kind, o: Oracle) -> None:
    """Compare the mismatch."""
    parts = information.decompose_kl(
        DiagGaussianMixture(o.loc, o.scale), _prior(kind), num_samples=4000, generator=seed()
    )
    log_q = o.log_mixture()
    expected = (log_q.exp() * (log_q - kind.log_prior(o.z))).sum() * float(o.z[1] - o.z[0])
    near(parts.marginal_kl.value, expected, parts.marginal_kl.stderr, rounding=1e-4)


def check_sample(kind: Kind, o: Oracle) -> None:
    """Compare the means at the codes that the prior draws."""
    named = kind.named(ROWS)
    z = adapt_prior(_prior(kind)).sample((ROWS,), generator=seed()).double()
    got = kind.vae.sample(ROWS, generator=seed(), **named)
    near(got, torch.cat([kind.mean(z[[n]], *kind.row(n)[1:]) for n in range(ROWS)]))


def check_fit(kind: Kind, o: Oracle) -> None:
    """Compare the validation loss, at a learning rate of next to nothing, with the ELBO of the model as it is."""
    state = {name: value.clone() for name, value in kind.vae.state_dict().items()}
    mean, variance = o.elbo()
    rows, named = torch.arange(o.num).repeat(60), kind.named()
    if named:
        named["validation_condition"] = {name: value[rows] for name, value in kind.condition.items()}
    settings = {"num_epochs": 1, "batch_size": 12, "learning_rate": 1e-12, "generator": seed(), "progress": False}
    momentum = [(m, m.momentum) for m in kind.vae.modules() if hasattr(m, "momentum")]
    for module, _ in momentum:
        module.momentum = 0.0  # training may move running statistics; not here
    history = training.fit(kind.vae, kind.x, validation=kind.x[rows], **settings, **named)
    near(-history.validation_loss[0], mean.mean(), (variance.mean() / len(rows)).sqrt(), rounding=1e-5)
    for module, value in momentum:
        module.momentum = value
    kind.vae.load_state_dict(state)


def check_vamp_prior(kind: Kind, o: Oracle) -> None:
    """Compare the density with q_agg."""
    with _evaluating(kind.vae):
        value = VampPrior(kind.vae, kind.x).log_prob(o.z)
    near(value, o.log_mixture())


def check_exemplar_prior(kind: Kind, o: Oracle) -> None:
    """Compare the density."""
    expected = log_normal(o.z, o.loc[:, 0], torch.full_like(o.loc[:, 0], 0.7)).logsumexp(1) - math.log(o.num)
    with _evaluating(kind.vae):
        value = ExemplarPrior(kind.vae, kind.x, scale=0.7).log_prob(o.z)
    near(value, expected)


def check_ppca(kind: Kind, o: Oracle) -> None:
    """Compare the closed form with the integral over the prior."""
    dim = _prior(kind).latent_dim
    weight = torch.eye(dim + 1, dim, dtype=torch.float64) * torch.arange(1, dim + 1)
    x = torch.linspace(-1, 1, 2 * (dim + 1), dtype=torch.float64).reshape(2, -1)
    value = PPCA(torch.zeros(dim + 1).double(), weight, noise_variance=0.5).log_prob_under(_prior(kind), x)
    scale = torch.tensor(0.5**0.5, dtype=torch.float64)
    log_lik = torch.stack([log_normal(o.z @ weight.mT, row, scale).sum(1) for row in x], 1)
    near(value, o.integrate(log_lik + kind.log_prior(o.z)[:, None]))


FUNCTIONS: dict[str, Callable[[Kind, Oracle], None]] = {
    "aggregate.aggregated_posterior": check_aggregated_posterior,
    "bounds.elbo": check_elbo,
    "bounds.iwae_bound": check_iwae_bound,
    "bounds.prior_sample_log_prob": check_prior_sample_log_prob,
    "bounds.quadrature_log_prob": check_quadrature_log_prob,
    "inference.posterior_moments": check_posterior_moments,
    "inference.inference_gap": check_inference_gap,
    "likelihood.importance_log_prob": check_importance_log_prob,
    "selection.choose_prior": check_choose_prior,
    "information.decompose_kl": check_decompose_kl,
    "training.fit": check_fit,
    "priors.VampPrior": check_vamp_prior,
    "priors.ExemplarPrior": check_exemplar_prior,
    "ppca.PPCA.log_prob_under": check_ppca,
    "VAE.sample": check_sample,
}
ORACLES: dict[str, Oracle] = {}


def cell(name: str, function: str) -> str:
    """Compute one cell: "value", or the error without what it got.

    Raises:
        AssertionError: the value is another than the oracle's.
    """
    if name not in ORACLES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ORACLES[name] = Oracle(KINDS[name]())
    oracle = ORACLES[name]
    try:
        FUNCTIONS[function](oracle.kind, oracle)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("max_nodes"):  # which the integrals document
            raise
        return f"{type(error).__name__}: {str(error).split(', got')[0]}"
    return "value"


def main() -> None:
    """Write the table."""
    cells = {kind: {function: cell(kind, function) for function in FUNCTIONS} for kind in KINDS}
    write_atomically(FILE, (json.dumps({"cells": cells}, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
