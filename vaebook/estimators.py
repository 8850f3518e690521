r"""Estimates with their standard errors; and log q_agg estimated from a minibatch, without the other data.

From B data, with a code z_i drawn for each, every estimator of the aggregated posterior below takes the form

    q̂(z_i) = sum_j w_ij q(z_i | x_j),

a weighted sum over the batch: it *is* its matrix of weights w, (B, B). `minibatch_weights` gives the five that are
in use. They are for training, when the other codes are out of date; once an encoder is fixed,
`DiagGaussianMixture.log_prob` is exact.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vaebook._checks import at_least_single, check_all, check_choice, check_int, check_positive, check_tensor

Scheme = Literal["in-batch", "leave-one-out", "weighted", "stratified", "equal"]
"""Ways to weight the members of a batch; see `minibatch_weights`."""


class Estimate(NamedTuple):
    """A Monte Carlo estimate: a mean of independent draws, its standard error, and how many draws it took."""

    value: float
    stderr: float
    num_samples: int


def estimate(draws: Tensor) -> Estimate:
    r"""Estimate an expectation from independent draws.

    $\bar v = \frac1S\sum_s v_s$ with standard error $\sqrt{\sum_s (v_s-\bar v)^2/(S(S-1))}$.

    Args:
        draws: independent draws v, (S), S at least 2.

    Returns:
        The mean, its standard error (in the units of the draws) and S.

    Raises:
        TypeError: draws is not a floating-point tensor.
        ValueError: it has another shape, fewer than two entries, or one that is not finite.

    Example:
        >>> import torch
        >>> estimate(torch.tensor([1.0, 2.0, 4.0, 5.0]).div(3).add(1)).num_samples
        4
        >>> estimate(torch.tensor([1.0, 5.0, 1.0, 5.0, 3.0]))
        Estimate(value=3.0, stderr=0.8944271909999159, num_samples=5)

    Source: the central limit theorem; any text on Monte Carlo, for example Owen, Monte Carlo theory, methods and
    examples (2013), section 2.3.
    """
    check_tensor("draws", draws, ("S",))
    if draws.numel() < 2:
        raise ValueError(f"draws: expected at least 2 draws for a standard error, got {draws.numel()}")
    draws = draws.detach().double()
    return Estimate(draws.mean().item(), (draws.std() / len(draws) ** 0.5).item(), len(draws))


class MinibatchDecomposition(NamedTuple):
    """The three parts of the KL term as a minibatch estimates them, in nats; see `minibatch_decomposition`."""

    information: Tensor
    total_correlation: Tensor
    dimensionwise_kl: Tensor


def minibatch_weights(scheme: Scheme, batch_size: int, num_data: int | None = None) -> Tensor:
    r"""Weights w of the estimate $\hat q(z_i)=\sum_j w_{ij}\,q(z_i\mid x_j)$ of q_agg(z_i) from a batch.

    =================  =======================  ===========================================  =============
    scheme             own datum, $j=i$         the others, $j\ne i$                         sum of a row
    =================  =======================  ===========================================  =============
    ``in-batch``       $1/B$                    $1/B$                                        1
    ``leave-one-out``  $0$                      $1/(B-1)$                                    1
    ``weighted``       $1/(NB)$                 $1/(NB)$                                     $1/N$
    ``stratified``     $1/N$                    $1/M$, but $(N-M)/(NM)$ for $j=i+1$; M = B-1  1
    ``equal``          $1/N$                    $(N-1)/(N(B-1))$                             1
    =================  =======================  ===========================================  =============

    "stratified" counts j cyclically. Under it and under "equal" the estimate of the density (not of its logarithm)
    is unbiased, for batches drawn without replacement in random order, z_i a code of the i-th member.

    Args:
        scheme: one of these names.
        batch_size: B, at least 2 except for "in-batch" and "weighted".
        num_data: N, the number of data that q_agg averages; "in-batch" and "leave-one-out" do not use it.

    Returns:
        w, (B, B), float64.

    Raises:
        TypeError: a number is not an int; num_data is None where it is needed.
        ValueError: there is no such scheme, a number is too small, or a batch for "stratified" or "equal" is larger
            than the data set.

    Example:
        >>> minibatch_weights("stratified", 3, num_data=10)
        tensor([[0.1000, 0.4000, 0.5000],
                [0.5000, 0.1000, 0.4000],
                [0.4000, 0.5000, 0.1000]], dtype=torch.float64)

    Source: Chen et al., Isolating sources of disentanglement in VAEs (2018), appendix C ("weighted", "stratified");
    Poole et al., On variational bounds of mutual information (2019) ("in-batch", "leave-one-out"); "equal": this
    book, chapter aggregated/estimators.
    """
    check_choice("scheme", scheme, get_args(Scheme))
    num = check_int("batch_size", batch_size, minimum=1 + (scheme not in ("in-batch", "weighted")), each=1, power=2)
    if scheme not in ("in-batch", "leave-one-out"):
        num_data = check_int("num_data", num_data, minimum=1 if scheme == "weighted" else num)
    own, other = {
        "in-batch": lambda: (1 / num, 1 / num),
        "leave-one-out": lambda: (0.0, 1 / (num - 1)),
        "weighted": lambda: (1 / (num_data * num), 1 / (num_data * num)),
        "stratified": lambda: (1 / num_data, 1 / (num - 1)),
        "equal": lambda: (1 / num_data, (num_data - 1) / (num_data * (num - 1))),
    }[scheme]()
    weights = torch.full((num, num), other, dtype=torch.float64).fill_diagonal_(own)
    if scheme == "stratified":
        row = torch.arange(num)
        weights[row, (row + 1) % num] = 1 / (num - 1) - 1 / num_data
    return weights


def pairwise_log_prob(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Log-density of every code of a batch under every Gaussian of the batch, one dimension at a time.

    $\log q(z_{id}\mid x_j)=\log\mathcal N(z_{id}\mid\mu_{jd},\sigma_{jd}^2)$

    Args:
        z: codes, (..., B, D).
        loc: means, (..., B, D).
        scale: standard deviations, (..., B, D), positive.

    Returns:
        The log-densities in nats, (..., D, B, B): dimension d, code i, Gaussian j. Their sum over d is
        log q(z_i|x_j). Differentiable in all three.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices disagree, a value is not finite, a scale is not positive, or a log-density is
            below the least number of the dtype.

    Example:
        >>> one = torch.ones(2, 1)
        >>> pairwise_log_prob(torch.tensor([[0.0], [3.0]]), 0 * one, one)
        tensor([[[-0.9189, -0.9189],
                 [-5.4189, -5.4189]]])

    Source: the definition.
    """
    check_tensor("z", z, ("...", "B", "D"))
    check_tensor("loc", loc, tuple(z.shape), like=z)
    check_positive("scale", check_tensor("scale", scale, tuple(z.shape), finite=False, like=z))
    code, mean, unit = (x.double() for x in (z.mT[..., :, None], loc.mT[..., None, :], scale.mT[..., None, :]))
    log_q = -0.5 * ((code - mean) / unit).square() - unit.log() - 0.5 * math.log(2 * math.pi)
    result = log_q.to(at_least_single(z.dtype))
    return check_all("z", result, result.isfinite(), "log-densities that are finite")


def minibatch_log_prob(log_q: Tensor, weights: Tensor) -> Tensor:
    r"""Estimate the log-density of the aggregated posterior at the codes of a batch.

    $\log\hat q(z_i)=\log\sum_j w_{ij}\,q(z_i\mid x_j)$

    Args:
        log_q: log q(z_i|x_j), (..., B, B), the code in the row, the datum in the column.
        weights: w, (B, B), from `minibatch_weights`.

    Returns:
        The estimates in nats, (..., B), in log_q's dtype, at least float32; differentiable in log_q.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: log_q is not square or not finite, weights has another shape or device, a negative or infinite
            entry, or a row of zeros.

    Example:
        >>> log_q = torch.tensor([[0.0, -1.0], [-1.0, 0.0]])
        >>> minibatch_log_prob(log_q, minibatch_weights("leave-one-out", 2))
        tensor([-1., -1.])

    Source: as `minibatch_weights`.
    """
    check_tensor("log_q", log_q, ("...", "B", "B"))
    if log_q.shape[-1] != log_q.shape[-2]:
        raise ValueError(f"log_q: expected shape (..., B, B), got {tuple(log_q.shape)}")
    check_tensor("weights", weights, tuple(log_q.shape[-2:]), finite=False, like=log_q)
    check_all("weights", weights, (weights >= 0) & weights.isfinite(), "finite values, none negative")
    check_all("weights", weights.sum(-1), weights.sum(-1) > 0, "a positive weight in every row")
    return (log_q.double() + weights.double().log()).logsumexp(-1).to(at_least_single(log_q.dtype))


def minibatch_information(log_q: Tensor, weights: Tensor) -> Tensor:
    r"""Estimate the mutual information I(n; z) from a batch, one value a batch.

    $\hat I=\frac1B\sum_i\bigl(\log q(z_i\mid x_i)-\log\hat q(z_i)\bigr)$

    The B terms of one batch are not independent, so that a standard error needs several batches: pass their values
    to `estimate`. It knows nothing of the bias: see the chapter aggregated/estimators for which way each scheme errs.

    Args:
        log_q: log q(z_i|x_j), (..., B, B), z_i drawn from q(.|x_i).
        weights: w, (B, B), from `minibatch_weights`.

    Returns:
        The estimates in nats, (...), in log_q's dtype, at least float32; differentiable in log_q.

    Raises:
        TypeError, ValueError: as `minibatch_log_prob`.

    Example:
        >>> log_q = torch.tensor([[0.0, -100.0], [-100.0, 0.0]])
        >>> minibatch_information(log_q, minibatch_weights("in-batch", 2))  # log 2
        tensor(0.6931)

    Source: as `minibatch_weights`.
    """
    precise = check_tensor("log_q", log_q, ("...", "B", "B")).double()
    log_hat = minibatch_log_prob(precise, weights)
    return (precise.diagonal(dim1=-2, dim2=-1) - log_hat).mean(-1).to(at_least_single(log_q.dtype))


def minibatch_decomposition(log_q: Tensor, log_prior: Tensor, weights: Tensor) -> MinibatchDecomposition:
    r"""Estimate the three parts of the KL term from a batch, for a prior that is a product over dimensions.

    $\hat I=\frac1B\sum_i\log\frac{q(z_i\mid x_i)}{\hat q(z_i)},\quad
    \widehat{TC}=\frac1B\sum_i\log\frac{\hat q(z_i)}{\prod_d\hat q_d(z_{id})},\quad
    \hat K=\frac1B\sum_i\log\frac{\prod_d\hat q_d(z_{id})}{p(z_i)}$

    They add up to the batch's mean of log q(z_i|x_i) - log p(z_i), whatever the weights: an error in one part is
    made up for by the others.

    Args:
        log_q: log q(z_id|x_j), (..., D, B, B), from `pairwise_log_prob`.
        log_prior: log p_d(z_id), (..., D, B).
        weights: w, (B, B), from `minibatch_weights`; used for the joint density and for each marginal.

    Returns:
        Information, total correlation and dimension-wise KL in nats, each (...), in log_q's dtype, at least float32;
        differentiable.

    Raises:
        TypeError, ValueError: as `minibatch_log_prob`; log_prior has another shape or is not finite.

    Example:
        >>> z, one = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.ones(2, 2)
        >>> log_q, log_prior = pairwise_log_prob(z, z, one), torch.distributions.Normal(0.0, 1.0).log_prob(z.mT)
        >>> parts = minibatch_decomposition(log_q, log_prior, minibatch_weights("in-batch", 2))
        >>> parts.information, parts.total_correlation  # log 2 each
        (tensor(0.6931), tensor(0.6931))

    Source: Chen et al., Isolating sources of disentanglement in VAEs (2018), equation 2.
    """
    check_tensor("log_q", log_q, ("...", "D", "B", "B"))
    check_tensor("log_prior", log_prior, tuple(log_q.shape[:-1]), like=log_q)
    precise = log_q.double()
    own, joint = precise.sum(-3).diagonal(dim1=-2, dim2=-1), minibatch_log_prob(precise.sum(-3), weights)
    marginals = minibatch_log_prob(precise, weights).sum(-2)
    parts = (own - joint, joint - marginals, marginals - log_prior.double().sum(-2))
    return MinibatchDecomposition(*(part.mean(-1).to(at_least_single(log_q.dtype)) for part in parts))
