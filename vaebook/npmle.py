r"""The best prior for a fixed decoder: nonparametric maximum likelihood of the mixing distribution.

Keep p(x|z) and let the prior G be any distribution over z: p_G(x) = ∫ p(x|z) dG(z). Some best G is discrete, with at
most as many atoms as there are distinct data. Everything here works on log p(x_n|z_k), (N, K), and the one function

    D_G(z) = (1/N) sum_n p(x_n|z) / p_G(x_n).

The average of the true posteriors under G is D_G(z) dG(z), which is the prior after one step of EM. And no prior has
a mean log-likelihood above that of G by more than log max_z D_G(z): the *certificate* of G, nats per datum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from vaebook._checks import check_all, check_int, check_log_weight, check_number, check_tensor

LogLikelihood = Callable[[Tensor], Tensor]
"""Places z (K, D) → log p(x_n|z_k), (N, K), float64, differentiable in z."""


class DiscretePrior(NamedTuple):
    """A prior of finitely many atoms, and how good it is; made by `fit_npmle`."""

    atoms: Tensor  # (K, D)
    log_weight: Tensor  # (K)
    log_prob: Tensor  # (N), log p_G(x_n)
    certificate: float  # nats per datum; log of the largest D_G found


def em(log_likelihood: Tensor, num_steps: int, *, log_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Run EM for the weights of given atoms: each step replaces the prior by its aggregated true posterior.

    $w_k \leftarrow \frac1N\sum_n p_w(z_k\mid x_n) = w_k\,D_w(z_k)$

    The likelihood never falls. A weight of 0 stays 0, so that a fixed point need not be the best.

    Args:
        log_likelihood: log p(x_n|z_k), (N, K); -inf is allowed.
        num_steps: how many steps; 0 only evaluates.
        log_weight: where to start, (K), natural logarithms that log-sum to 0 within 1e-5; None means 1/K each.

    Returns:
        The log-weights, (K), and the mean log-likelihood before every step and after the last, (num_steps + 1),
        nats per datum; both float64.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a shape, or a value: nan, +inf, weights that do not sum to 1, a datum impossible under all atoms.

    Example:
        >>> log_weight, trace = em(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log(), 500)  # x = 1 and x = 0, once each
        >>> log_weight.exp()  # 0.9 w + 0.2 (1 - w) = 1/2
        tensor([0.4286, 0.5714], dtype=torch.float64)

    Source: Laird, JASA 73 (1978); as a statement about aggregated posteriors, this book.
    """
    terms = _check_log_likelihood(log_likelihood)
    check_int("num_steps", num_steps, minimum=0)
    current = _check_log_weight(log_weight, terms)
    trace = []
    for step in range(num_steps + 1):
        joint = terms + current
        log_prob = joint.logsumexp(1)
        check_all("log_likelihood", log_prob, log_prob.isfinite(), "each datum possible under atoms of positive weight")
        trace.append(log_prob.mean())
        if step < num_steps:
            current = (joint - log_prob[:, None]).logsumexp(0) - math.log(len(terms))
    return current, torch.stack(trace)


def log_gradient(log_likelihood: Tensor, log_prob: Tensor) -> Tensor:
    r"""Logarithm of D_G at some places: what moving mass there gains.

    $\log D_G(z) = \log\frac1N\sum_n \frac{p(x_n\mid z)}{p_G(x_n)}$

    D_G(z) - 1 is the derivative of the mean log-likelihood along $(1-\varepsilon)G+\varepsilon\delta_z$ at 0, and the
    maximum of log D_G over *all* z bounds what any other prior can gain, in nats per datum.

    Args:
        log_likelihood: log p(x_n|z_m), (N, M), at the places asked for.
        log_prob: log p_G(x_n), (N), finite.

    Returns:
        log D_G(z_m), (M), float64. Differentiable.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape is wrong or a value is nan, +inf or (in log_prob) not finite.

    Example:
        >>> log_gradient(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log(), torch.tensor([0.9, 0.1]).log()).exp()
        tensor([1.0000, 4.1111], dtype=torch.float64)

    Source: Lindsay, The geometry of mixture likelihoods, Annals of Statistics 11 (1983).
    """
    terms = _check_log_likelihood(log_likelihood, possible=False)
    check_tensor("log_prob", log_prob, (len(terms),), like=terms)
    return (terms - log_prob.double()[:, None]).logsumexp(0) - math.log(len(terms))


def fit_weights(log_likelihood: Tensor, *, tolerance: float = 1e-9, max_steps: int = 200) -> Tensor:
    r"""Find the best weights of given atoms, by Newton steps on the simplex.

    $\max_w \frac1N\sum_n\log\sum_k w_k\,p(x_n\mid z_k)$, which is concave

    Each step maximises the second-order expansion exactly (a non-negative least-squares problem), then halves its
    way back until the likelihood rises enough. Weights that are not needed come out as 0 exactly.

    Args:
        log_likelihood: log p(x_n|z_k), (N, K); -inf is allowed.
        tolerance: nats per datum that the best weights could at most gain, by the certificate over these atoms.
        max_steps: the most steps to take.

    Returns:
        The log-weights, (K), float64, -inf for weights 0.

    Raises:
        TypeError, ValueError: as `em`.
        RuntimeError: max_steps do not reach the tolerance.

    Example:
        >>> fit_weights(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log()).exp()
        tensor([0.4286, 0.5714], dtype=torch.float64)

    Source: Wang, JRSS B 69 (2007), the constrained Newton method.
    """
    terms = _check_log_likelihood(log_likelihood).detach()
    check_number("tolerance", tolerance, above=0)
    check_int("max_steps", max_steps, minimum=0)
    # A factor for each datum changes neither the weights nor D: with the largest term at 1 nothing overflows.
    likelihood = (terms - terms.amax(1, keepdim=True)).exp().cpu().numpy()
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(max_steps + 1):
        ratio = likelihood / (likelihood @ weight)[:, None]
        if math.log(ratio.mean(0).max()) <= tolerance:
            return torch.from_numpy(weight).log().to(terms.device)
        weight = _line_search(likelihood, weight, _newton_target(ratio) - weight, ratio.mean(0))
    raise RuntimeError(f"max_steps: expected enough for tolerance {tolerance:g}, got {max_steps}; raise one of them")


def fit_npmle(
    log_likelihood: LogLikelihood,
    candidates: Tensor,
    *,
    tolerance: float = 1e-4,
    separation: float = 1e-3,
    max_rounds: int = 50,
) -> DiscretePrior:
    r"""Find the best prior of all: how many atoms, where, and with which weights.

    $\max_G \frac1N\sum_n\log\int p(x_n\mid z)\,dG(z)$

    Every round adds, near each atom, the place where D_G is largest; finds the best weights and drops atoms of
    weight 0; moves the atoms uphill; and merges those that meet. It stops once log D_G exceeds the tolerance nowhere.
    The likelihoods are then determined up to the tolerance, but not the number of atoms: whether the lightest are
    there at all can depend on rounding.

    Args:
        log_likelihood: places (K, D) → log p(x_n|z_k), (N, K), float64 and differentiable.
        candidates: where D_G is first evaluated, (M, D): a grid, finer than the peaks of p(x_n|z). The latent space
            is the box that it spans.
        tolerance: nats per datum. The certificate is the largest log D_G over the candidates and over the peaks
            climbed to from the best of them: a numerical maximum, which misses what a grid can miss.
        separation: atoms nearer than this are merged.
        max_rounds: the most rounds to take.

    Returns:
        The prior, with log p_G(x_n) and its certificate; float64.

    Raises:
        TypeError, ValueError: an argument, or what log_likelihood returns, is of the wrong kind, shape or value.
        RuntimeError: max_rounds do not reach the tolerance.

    Example:
        >>> x, grid = torch.tensor([-2.0, 2.0]).double(), torch.linspace(-3, 3, 25).double()[:, None]
        >>> prior = fit_npmle(lambda z: torch.distributions.Normal(z[:, 0], 1.0).log_prob(x[:, None]), grid)
        >>> prior.atoms.flatten().sort().values, prior.log_weight.exp()  # b = 2 tanh(2 b)
        (tensor([-1.9987,  1.9987], dtype=torch.float64), tensor([0.5000, 0.5000], dtype=torch.float64))

    Source: Lindsay (1983) for the theory; Wang (2007) for the rounds; climbing and moving, this book.
    """
    candidates = check_tensor("candidates", candidates, ("M", "D")).detach().double()
    check_number("tolerance", tolerance, above=0)
    check_number("separation", separation, minimum=0)
    check_int("max_rounds", max_rounds, minimum=1)
    with torch.no_grad():
        table = _evaluate(log_likelihood, candidates)
    atoms = candidates[table.argmax(1).unique()]  # for each datum the place that likes it best
    for _ in range(max_rounds):
        atoms, log_weight, _ = _needed(log_likelihood, atoms, tolerance)
        atoms = _merge(*_move(log_likelihood, atoms, log_weight, candidates), separation)
        atoms, log_weight, terms = _needed(log_likelihood, atoms, 0.01 * tolerance)
        log_prob = (terms + log_weight).logsumexp(1)
        peaks, height = _peaks(log_likelihood, candidates, table, atoms, log_prob)
        certificate = max(0.0, float(height.max()))
        if certificate <= tolerance:
            return DiscretePrior(atoms, log_weight, log_prob, certificate)
        atoms = torch.cat([atoms, peaks[height > 0]])
    raise RuntimeError(
        f"max_rounds: expected enough for tolerance {tolerance:g}, got {max_rounds} and certificate {certificate:.3g}; "
        "raise one of them, or refine the candidates"
    )


def _needed(log_likelihood: LogLikelihood, atoms: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best weights; return the atoms of positive weight, the logarithms of these, and log p(x|z) there."""
    with torch.no_grad():
        terms = _evaluate(log_likelihood, atoms)
    log_weight = fit_weights(terms, tolerance=tolerance)
    kept = log_weight > -torch.inf
    return atoms[kept], log_weight[kept], terms[:, kept]


def _move(
    log_likelihood: LogLikelihood, atoms: Tensor, log_weight: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Move atoms uphill together with their weights; return both."""

    def mean_log_prob(columns: Tensor) -> Tensor:
        terms = _evaluate(log_likelihood, columns[:, :-1]) + columns[:, -1].log_softmax(0)
        return terms.logsumexp(1).mean()

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
    with torch.no_grad():
        return peaks, log_gradient(_evaluate(log_likelihood, peaks), log_prob)


def _climb(objective: Callable[[Tensor], Tensor], start: Tensor, candidates: Tensor) -> Tensor:
    """Maximise over the rows of a matrix, the first D columns of which stay in the box of the candidates."""

    def negative(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).reshape(start.shape).to(start.device).requires_grad_()
        value = -objective(point)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.cpu().numpy().ravel()

    limits = [*zip(candidates.amin(0).tolist(), candidates.amax(0).tolist(), strict=True)]
    limits = (limits + [(None, None)] * (start.shape[1] - len(limits))) * len(start)
    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(negative, start.cpu().numpy().ravel(), jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return torch.from_numpy(found.x).reshape(start.shape).to(start.device)


def _newton_target(ratio: np.ndarray) -> np.ndarray:
    r"""Maximise the second-order expansion of the mean log-likelihood over the simplex.

    It is $-\frac1{2N}\lVert Su-2\rVert^2$ up to a constant, S the ratios. On the simplex Su - 2 = (S - 2)u, and the
    minimum of a homogeneous square there is, up to its length, that of non-negative least squares with one row more.
    """
    num_data, num_atoms = ratio.shape
    rows = np.vstack([(ratio - 2) / num_data**0.5, np.ones(num_atoms)])
    orthogonal, triangular = np.linalg.qr(rows)
    solution, _ = nnls(triangular, orthogonal[-1], maxiter=30 * num_atoms)
    return solution / solution.sum()


def _line_search(likelihood: np.ndarray, weight: np.ndarray, step: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Halve the step until the likelihood rises by a third of what its slope promises, up to rounding."""
    value, slope, size = np.log(likelihood @ weight).mean(), gradient @ step, 1.0
    # Near the maximum the likelihood rises by less than its rounding error, which must not refuse the step.
    value -= 8 * np.finfo(float).eps * (1 + abs(value))
    for _ in range(50):
        tried = np.clip(weight + size * step, 0, None)
        probability = likelihood @ tried
        if (probability > 0).all() and np.log(probability).mean() >= value + size * slope / 3:
            break
        size /= 2
    return tried / tried.sum()


def _evaluate(log_likelihood: LogLikelihood, z: Tensor) -> Tensor:
    if not callable(log_likelihood):
        raise TypeError(f"log_likelihood: expected a callable, got {type(log_likelihood).__name__}")
    terms = check_tensor("log_likelihood's value", log_likelihood(z), ("N", len(z)), finite=False)
    if terms.dtype != torch.float64:
        raise TypeError(f"log_likelihood's value: expected dtype torch.float64, got {terms.dtype}")
    return _check_log_likelihood(terms, possible=False)


def _check_log_likelihood(value: Tensor, *, possible: bool = True) -> Tensor:
    """Check (N, K), neither nan nor +inf; and, if so asked, that no datum is impossible under all atoms."""
    terms = check_tensor("log_likelihood", value, ("N", "K"), finite=False).double()
    check_all("log_likelihood", terms, ~(terms.isnan() | terms.isposinf()), "log-densities below infinity")
    if possible:
        best = terms.amax(1)
        check_all("log_likelihood", best, best.isfinite(), "each datum possible under some atom")
    return terms


def _check_log_weight(log_weight: Tensor | None, terms: Tensor) -> Tensor:
    if log_weight is None:
        return terms.new_full(terms.shape[1:], -math.log(terms.shape[1]))
    check_tensor("log_weight", log_weight, tuple(terms.shape[1:]), finite=False, like=terms)
    return log_weight.double() - check_log_weight(log_weight)
