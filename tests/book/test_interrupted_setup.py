"""Set-up is stopped at any moment, or runs twice at once, and the environment is that of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from fingerprint import ROOT
from test_interruption import WAITS, ended, limited

WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
BACKEND = f"""\
import zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        wheel.writestr("toy-1.0.dist-info/METADATA", {METADATA.format(name="toy")!r})
        wheel.writestr("toy-1.0.dist-info/WHEEL", {WHEEL!r})
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    return name
"""
PROJECT = """\
[project]
name = "toy"
version = "1.0"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
MODULES = 100


def pack(folder, name):
    """A wheel whose metadata comes first: of one that is half unpacked pip would say that it is installed."""
    about = f"{name}-1.0.dist-info"
    files = {f"{about}/METADATA": METADATA.format(name=name), f"{about}/WHEEL": WHEEL}
    files |= {f"{name}/part{i}.py": f"number = {i}\n" for i in range(MODULES)}
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)


@pytest.fixture
def tree(tmp_path):
    """A project that needs two packages, in a folder whose name has a space; what pip may take lies beside it."""
    wheels, root = tmp_path / "wheels", tmp_path / "a toy"
    (root / "book" / "_tools").mkdir(parents=True)
    wheels.mkdir()
    for name in ("torch", "other"):
        pack(wheels, name)
    for name in ("setup.sh", "run.py", "alone.py"):
        shutil.copy(ROOT / "book" / "_tools" / name, root / "book" / "_tools")
    (root / "requirements.txt").write_text("torch==1.0\nother==1.0\n")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "Makefile").write_text("setup:\n\t@sh book/_tools/setup.sh\n")
    return root


def start(tree, **settings):
    scratch = tree.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    here = {"PATH": os.environ["PATH"], "PYTHON": sys._base_executable, "HOME": str(tree.parent), "LC_ALL": "C"}
    here |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (tree.parent / "wheels").as_uri(), "PIP_CONFIG_FILE": os.devnull}
    here |= {"PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_COMPILE": "1", "TMPDIR": str(scratch)}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["make", "setup"], cwd=tree, env=here, start_new_session=True, **streams | settings)


def content(tree):
    """Names and sizes of all files but compiled ones."""
    paths = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(tree).as_posix(): path.stat().st_size for path in paths}


@pytest.mark.slow
def test_a_set_up_that_is_stopped_many_times_ends_as_if_undisturbed(tree):
    begin = time.monotonic()
    running = start(tree)
    said, took = running.communicate()[1], time.monotonic() - begin
    assert running.returncode == 0, said
    undisturbed = content(tree)
    moments, times = random.Random(0), 20
    for turn in range(times):
        number = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL][turn % 3]
        if turn % 2:  # an update, then; otherwise from nothing
            shutil.rmtree(tree / ".venv", ignore_errors=True)
        else:
            (tree / "requirements.txt").write_text(f"torch==1.0\nother==1.0\n# {turn}\n")
        running = start(tree)
        time.sleep(moments.random() * took)
        # From the keyboard an interruption comes to all, and of what is killed by a machine without memory one is.
        (os.kill if number == signal.SIGTERM else os.killpg)(running.pid, number)
        said = running.communicate()[1].removeprefix(WAITS)
        if number == signal.SIGKILL:
            continue
        assert ended(tree)
        if running.returncode:
            lines = [line for line in said.splitlines() if not line.startswith(("Setting up", "Bringing", "  "))]
            assert len(lines) == 1 and lines[0].startswith("make: *** "), said
            assert not (tree / ".venv" / "bin").exists() or (tree / ".venv" / ".made-from").exists()
        assert not list((tree.parent / "scratch").iterdir())
    running = start(tree)
    said = running.communicate()[1]
    assert running.returncode == 0, said
    ours = {"requirements.txt": 0}  # which this test changes
    assert content(tree) | ours == undisturbed | ours


@pytest.mark.slow
def test_two_set_ups_at_once_make_one_environment(tree):
    both = [start(tree) for _ in range(2)]
    said = sorted(one.communicate()[1] for one in both)
    assert [one.returncode for one in both] == [0, 0], said
    assert said[1] == WAITS and said[0].startswith("Setting up"), said
    assert len(list((tree / ".venv").glob("lib/python*/site-packages/*/part*.py"))) == 2 * MODULES


@pytest.mark.slow
def test_a_set_up_on_a_full_disk_says_so_and_leaves_nothing(tree):
    before = content(tree)
    running = start(tree, preexec_fn=limited)
    said = running.communicate()[1]
    assert running.returncode and "File too large" in said and "Traceback" not in said, said
    assert said.splitlines()[-2] == "Set-up failed; .venv was removed. Run the command again to retry."
    assert content(tree) == before
