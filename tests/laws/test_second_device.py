"""The tests of `on_a_card`, in a process of their own: torch keeps a second device for good once it has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="torch is too old"
)
FILE = Path(__file__).with_name("on_a_card.py")


@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_a_model_on_a_graphics_card(marks):
    plugins = [part for name in ("no:cacheprovider", "no:nbval", "tests.running.parallel") for part in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-m", marks, str(FILE)]
    done = subprocess.run(command, cwd=FILE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
