"""What every test starts from."""

import pytest
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def distributions_check_their_arguments(monkeypatch):
    """As torch has it: importing zuko switches it off for the whole process, and for all tests that come later."""
    monkeypatch.setattr(Distribution, "_validate_args", __debug__)
