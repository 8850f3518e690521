r"""The weights of given atoms: EM, and the best ones of all by Newton steps.

Everything here works on log p(x_n|z_k), (N, K), and on D_G, the function that `vaebook.npmle` is about.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
import torch
from torch import Tensor

from vaebook._checks import check_all, check_int, check_log_weight, check_number, check_tensor

STEPS = 200
"""The most Newton steps."""


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
    terms = check_log_likelihood(log_likelihood)
    num_steps = check_int("num_steps", num_steps, minimum=0)
    current, trace = terms.new_full(terms.shape[1:], -math.log(terms.shape[1])), []
    if log_weight is not None:
        check_tensor("log_weight", log_weight, tuple(terms.shape[1:]), finite=False, like=terms)
        current = log_weight.double() - check_log_weight(log_weight)
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
    terms = check_log_likelihood(log_likelihood, possible=False)
    check_tensor("log_prob", log_prob, (len(terms),), like=terms)
    return (terms - log_prob.double()[:, None]).logsumexp(0) - math.log(len(terms))


def fit_weights(log_likelihood: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    r"""Find the best weights of given atoms, by Newton steps on the simplex.

    $\max_w \frac1N\sum_n\log\sum_k w_k\,p(x_n\mid z_k)$, which is concave

    Each step maximises the second-order expansion exactly (a non-negative least-squares problem), then halves its
    way back until the likelihood rises enough. Weights that are not needed come out as 0 exactly.

    Args:
        log_likelihood: log p(x_n|z_k), (N, K); -inf is allowed.
        tolerance: nats per datum that the best weights could at most gain, by the certificate over these atoms.

    Returns:
        The log-weights, (K), float64, -inf for weights 0.

    Raises:
        TypeError, ValueError: as `em`.
        RuntimeError: 200 steps do not reach the tolerance.

    Example:
        >>> fit_weights(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log()).exp()
        tensor([0.4286, 0.5714], dtype=torch.float64)

    Source: Wang, JRSS B 69 (2007), the constrained Newton method.
    """
    terms = check_log_likelihood(log_likelihood).detach()
    tolerance = check_number("tolerance", tolerance, above=0)
    # A factor for each datum changes neither the weights nor D: with the largest term at 1 nothing overflows.
    likelihood = (terms - terms.amax(1, keepdim=True)).exp().cpu().numpy()
    weight = np.full(likelihood.shape[1], 1 / likelihood.shape[1])
    for _ in range(STEPS + 1):
        ratio = likelihood / (likelihood @ weight)[:, None]
        if math.log(ratio.mean(0).max()) <= tolerance:
            return torch.from_numpy(weight).log().to(terms.device)
        weight = _line_search(likelihood, weight, _newton_target(ratio) - weight, ratio.mean(0))
    raise RuntimeError(f"tolerance: expected one that {STEPS} steps reach, got {tolerance:g}; raise it")


def _newton_target(ratio: np.ndarray) -> np.ndarray:
    r"""Maximise the second-order expansion of the mean log-likelihood over the simplex.

    It is $-\frac1{2N}\lVert Su-2\rVert^2$ up to a constant, S the ratios. On the simplex Su - 2 = (S - 2)u, and the
    minimum of a homogeneous square there is, up to its length, that of non-negative least squares with one row more.
    """
    num_data, num_atoms = ratio.shape
    orthogonal, triangular = np.linalg.qr(np.vstack([(ratio - 2) / num_data**0.5, np.ones(num_atoms)]))
    solution, _ = scipy.optimize.nnls(triangular, orthogonal[-1], maxiter=30 * num_atoms)
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


def check_log_likelihood(value: Tensor, *, possible: bool = True) -> Tensor:
    """Check (N, K), neither nan nor +inf; and, if so asked, that no datum is impossible under all atoms."""
    terms = check_tensor("log_likelihood", value, ("N", "K"), finite=False).double()
    check_all("log_likelihood", terms, ~(terms.isnan() | terms.isposinf()), "log-densities below infinity")
    if possible:
        best = terms.amax(1)
        check_all("log_likelihood", best, best.isfinite(), "each datum possible under some atom")
    return terms
