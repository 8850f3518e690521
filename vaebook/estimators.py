"""Estimates with their standard errors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vaebook._checks import check_tensor


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
