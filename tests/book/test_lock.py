"""The lock is exact, portable and complete."""

import re
import tomllib

import pytest
from fingerprint import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINES = [line.split(" #")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
LINES = [line for line in LINES if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [*PROJECT["dependencies"], *(r for extra in ("book", "test") for r in PROJECT["optional-dependencies"][extra])]
LOCKED = {canonicalize_name(Requirement(line).name): line.partition("==")[2] for line in LINES}


@pytest.mark.parametrize("line", LINES)
def test_line_is_an_exact_public_version(line):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)  # no local builds, files, paths, options


def test_nothing_for_cuda_is_forced_on_those_who_have_none():
    assert [name for name in LOCKED if name.startswith(("nvidia-", "cuda-", "triton"))] == []


@pytest.mark.parametrize("requirement", [Requirement(line) for line in WANTED], ids=str)
def test_every_dependency_is_locked_in_its_range(requirement):
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_set_up_finds_torch_in_the_lock():
    assert sum(line.startswith("torch==") for line in LINES) == 1
