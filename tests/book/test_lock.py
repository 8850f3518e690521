"""The lock is exact, portable and complete."""

import re
import tomllib
from importlib.metadata import metadata

import pytest
from fingerprint import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

LINES = [line.split(" #")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
LINES = [line for line in LINES if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
LOCKED = {canonicalize_name(Requirement(line).name): line.partition("==")[2] for line in LINES}


@pytest.mark.parametrize("line", LINES)
def test_line_is_an_exact_public_version(line):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)  # no local builds, files, paths, options


def test_nothing_for_cuda_is_forced_on_those_who_have_none():
    assert [name for name in LOCKED if name.startswith(("nvidia-", "cuda-", "triton"))] == []


@pytest.mark.parametrize("requirement", [Requirement(line) for line in dict.fromkeys(WANTED)], ids=str)
def test_every_dependency_is_locked_in_its_range(requirement):
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_what_the_lock_says_is_wanted_here_is_wanted_here():
    """Each line is followed by those that want it: nothing stays in the lock that was taken out of pyproject.toml."""
    text = (ROOT / "requirements.txt").read_text()
    blocks = re.findall(r"^(\S+)==\S+\n((?: +# .*\n)+)", text, re.MULTILINE)
    assert len(blocks) == len(LOCKED)
    ours = {canonicalize_name(name) for name, why in blocks if re.search(r"\bvaebook\b", why)}
    assert ours == {canonicalize_name(Requirement(line).name) for line in WANTED}
    known = {canonicalize_name(name) for name in LOCKED} | {"vaebook"}
    for name, why in blocks:
        wanting = re.findall(r"[\w.-]+", re.sub(r"\(.*?\)", "", why.replace("# via", "").replace("#", "")))
        assert wanting and {canonicalize_name(one) for one in wanting} <= known, name


def test_the_oldest_python_that_the_project_allows_can_install_the_lock():
    """In soupsieve 4 it could not: Debian 12 has Python 3.11.2, and that asks for 3.11.5."""
    (oldest,) = re.findall(r">=(\d+\.\d+)", PROJECT["requires-python"])
    found = {name: metadata(name) for name in LOCKED}
    asked = {name: told["Requires-Python"] for name, told in found.items() if told["Version"] == LOCKED[name]}
    assert asked
    assert [name for name, versions in asked.items() if not SpecifierSet(versions or "").contains(f"{oldest}.0")] == []


def test_set_up_finds_torch_in_the_lock():
    assert sum(line.startswith("torch==") for line in LINES) == 1
