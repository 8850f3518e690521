"""What every test starts from, whatever ran before it in the same process."""

import random

import numpy as np
import pytest
import torch
from torch.distributions import Distribution


def seed() -> None:
    """Seed the global generators: torch's modules draw their first weights from one, say."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what may draw from it is not ours
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a file's own statements, which make models, too."""
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test and what it asks for."""
    seed()


@pytest.fixture(autouse=True)
def distributions_check_their_arguments(monkeypatch):
    """As torch has it: importing zuko switches it off for the whole process, and for all tests that come later."""
    monkeypatch.setattr(Distribution, "_validate_args", __debug__)
