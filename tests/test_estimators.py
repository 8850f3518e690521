"""Estimates and their standard errors."""

import numpy as np
import pytest
import scipy.stats
import torch

from vaebook.estimators import Estimate, estimate


def test_against_scipy():
    draws = torch.randn(50, generator=torch.Generator().manual_seed(0))
    got = estimate(draws)
    assert got == Estimate(
        pytest.approx(float(draws.double().mean())), pytest.approx(scipy.stats.sem(draws.double())), 50
    )


def test_the_standard_error_covers_as_often_as_it_should():
    draws = torch.rand(4_000, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    covered = np.mean([abs(e.value - 0.5) < 2 * e.stderr for e in map(estimate, draws)])
    assert abs(covered - 0.9545) < 4 * (0.9545 * 0.0455 / 4_000) ** 0.5


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "draws: expected a torch.Tensor, got list"),
        (torch.zeros(3, dtype=torch.int), TypeError, "draws: expected a floating-point tensor"),
        (torch.zeros(2, 2), ValueError, r"draws: expected shape \(S,\)"),
        (torch.zeros(1), ValueError, "draws: expected at least 2 draws"),
        (torch.tensor([0.0, torch.inf]), ValueError, r"draws: expected finite values, got inf at index \(1,\)"),
    ],
)
def test_bad_input(draws, error, message):
    with pytest.raises(error, match=message):
        estimate(draws)
