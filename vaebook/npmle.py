r"""The best prior for a fixed decoder: nonparametric maximum likelihood of the mixing distribution.

Keep p(x|z) and let the prior G be any distribution over z: p_G(x) = ∫ p(x|z) dG(z). Some best G is discrete, with at
most as many atoms as there are distinct data. Everything here works on log p(x_n|z_k), (N, K), and the one function

    D_G(z) = (1/N) sum_n p(x_n|z) / p_G(x_n).

The average of the true posteriors under G is D_G(z) dG(z), the prior after one step of EM. No prior exceeds the mean
log-likelihood of G by more than log max_z D_G(z), which is the *certificate* of G, in nats per datum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from vaebook._checks import check_number, check_tensor, explained
from vaebook.weights import check_log_likelihood, em, fit_weights, log_gradient

__all__ = ["DiscretePrior", "em", "fit_npmle", "fit_weights", "log_gradient"]

ROUNDS = 50
"""The most rounds."""
LogLikelihood = Callable[[Tensor], Tensor]
"""Places z (K, D) → log p(x_n|z_k), (N, K), float64, differentiable in z."""


class DiscretePrior(NamedTuple):
    """A prior of finitely many atoms, with its likelihoods and certificate; made by `fit_npmle`."""

    atoms: Tensor  # (K, D)
    log_weight: Tensor  # (K)
    log_prob: Tensor  # (N), log p_G(x_n)
    certificate: float  # nats per datum; log of the largest D_G found


@torch.no_grad()
def fit_npmle(
    log_likelihood: LogLikelihood, candidates: Tensor, *, tolerance: float = 1e-4, separation: float = 1e-3
) -> DiscretePrior:
    r"""Find the best of all priors: the number of its atoms, their places and their weights.

    $\max_G \frac1N\sum_n\log\int p(x_n\mid z)\,dG(z)$

    Every round adds, near each atom, the place where D_G is largest; finds the best weights and drops atoms of
    weight 0; moves the atoms uphill; and merges atoms that meet. It stops when log D_G is nowhere found above the
    tolerance. The likelihoods are then determined up to the tolerance. The number of atoms is not: whether the
    lightest are kept can depend on rounding.

    Args:
        log_likelihood: places (K, D) → log p(x_n|z_k), (N, K), float64 and differentiable.
        candidates: a grid, (M, D), on which D_G is first evaluated; finer than the peaks of p(x_n|z). The latent
            space is the box that it spans.
        tolerance: nats per datum. The certificate is the largest log D_G over the candidates and over the peaks
            climbed to from the best of them: a numerical maximum, which can miss peaks narrower than the grid.
        separation: atoms closer than this are merged.

    Returns:
        The prior, with log p_G(x_n) and its certificate; float64.

    Raises:
        TypeError, ValueError: an argument, or what log_likelihood returns, is of the wrong kind, shape or value.
        RuntimeError: the tolerance is not reached within 50 rounds.

    Example:
        >>> x, grid = torch.tensor([-2.0, 2.0]).double(), torch.linspace(-3, 3, 25).double()[:, None]
        >>> prior = fit_npmle(lambda z: torch.distributions.Normal(z[:, 0], 1.0).log_prob(x[:, None]), grid)
        >>> prior.atoms.flatten().sort().values, prior.log_weight.exp()  # b = 2 tanh(2 b)
        (tensor([-1.9987,  1.9987], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))

    Source: Lindsay (1983) for the theory; Wang (2007) for the rounds; climbing and moving, this book.
    """
    candidates = check_tensor("candidates", candidates, ("M", "D")).double()
    tolerance = check_number("tolerance", tolerance, above=0)
    separation = check_number("separation", separation, minimum=0)
    table = _evaluate(log_likelihood, candidates)
    atoms = candidates[table.argmax(1).unique()]  # for each datum the place of its largest likelihood
    for _ in range(ROUNDS):
        atoms, log_weight, _ = _needed(log_likelihood, atoms, tolerance)
        atoms = _merge(*_move(log_likelihood, atoms, log_weight, candidates), separation)
        atoms, log_weight, terms = _needed(log_likelihood, atoms, 0.01 * tolerance)
        log_prob = (terms + log_weight).logsumexp(1)
        peaks, height = _peaks(log_likelihood, candidates, table, atoms, log_prob)
        certificate = max(0.0, float(height.max()))
        if certificate <= tolerance:
            return DiscretePrior(atoms, log_weight, log_prob, certificate)
        atoms = torch.cat([atoms, peaks[height > 0]])
    got = f"{tolerance:g} and certificate {certificate:.3g}; raise it, or refine the candidates"
    raise RuntimeError(f"tolerance: expected one that {ROUNDS} rounds reach, got {got}")


def _needed(log_likelihood: LogLikelihood, atoms: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best weights; return the atoms of positive weight, the logarithms of these, and log p(x|z) there."""
    terms = _evaluate(log_likelihood, atoms)
    log_weight = fit_weights(terms, tolerance=tolerance)
    kept = log_weight > -torch.inf
    return atoms[kept], log_weight[kept], terms[:, kept]


def _move(
    log_likelihood: LogLikelihood, atoms: Tensor, log_weight: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Move atoms uphill together with their weights; return both."""

    def mean_log_prob(columns: Tensor) -> Tensor:
        return (_evaluate(log_likelihood, columns[:, :-1]) + columns[:, -1].log_softmax(0)).logsumexp(1).mean()

    moved = _climb(mean_log_prob, torch.cat([atoms, log_weight[:, None]], 1), candidates)
    return moved[:, :-1], moved[:, -1].softmax(0)


def _merge(atoms: Tensor, weight: Tensor, separation: float) -> Tensor:
    """Replace atoms within a distance of a heavier one by their weighted mean."""
    kept: list[Tensor] = []
    free = torch.ones_like(weight, dtype=torch.bool)
    for k in weight.argsort(descending=True).tolist():
        if free[k]:
            group = free & ((atoms - atoms[k]).norm(dim=1) <= separation)
            kept.append(weight[group] @ atoms[group] / weight[group].sum())
            free &= ~group
    return torch.stack(kept)


def _peaks(
    log_likelihood: LogLikelihood, candidates: Tensor, table: Tensor, atoms: Tensor, log_prob: Tensor
) -> tuple[Tensor, Tensor]:
    """Climb from the best candidate around each atom; return places and log D_G there."""
    values, nearest = log_gradient(table, log_prob), torch.cdist(candidates, atoms).argmin(1)
    best = values.new_full((len(atoms),), -torch.inf).scatter_reduce(0, nearest, values, "amax")
    starts = candidates[(values == best[nearest]) & (values > -1e-2)]
    if not len(starts):
        starts = candidates[values.argmax()][None]
    peaks = _climb(lambda z: log_gradient(_evaluate(log_likelihood, z), log_prob).sum(), starts, candidates)
    return peaks, log_gradient(_evaluate(log_likelihood, peaks), log_prob)


def _climb(objective: Callable[[Tensor], Tensor], start: Tensor, candidates: Tensor) -> Tensor:
    """Maximise over the rows of a matrix, the first D columns of which stay in the box of the candidates."""

    @torch.enable_grad()
    def negative(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).reshape(start.shape).to(start.device).requires_grad_()
        value = -objective(point)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.cpu().numpy().ravel()

    limits = [*zip(candidates.amin(0).tolist(), candidates.amax(0).tolist(), strict=True)]
    limits = (limits + [(None, None)] * (start.shape[1] - len(limits))) * len(start)
    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-15, "gtol": 1e-10}
    # With limits this is L-BFGS-B.
    found = scipy.optimize.minimize(negative, start.cpu().numpy().ravel(), jac=True, bounds=limits, options=options)
    return torch.from_numpy(found.x).reshape(start.shape).to(start.device)


def _evaluate(log_likelihood: LogLikelihood, z: Tensor) -> Tensor:
    if not callable(log_likelihood):
        raise TypeError(f"log_likelihood: expected a callable, got {type(log_likelihood).__name__}")
    with explained("log_likelihood", "a function of points (M, D) that returns (N, M)"):
        terms = check_tensor("log_likelihood's value", log_likelihood(z), ("N", len(z)), finite=False)
    if terms.dtype != torch.float64:
        raise TypeError(f"log_likelihood's value: expected dtype torch.float64, got {terms.dtype}")
    return check_log_likelihood(terms, possible=False)
