"""What CONTRIBUTING tells to do can be done: its code runs, and the files and names that it sends one to are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from fingerprint import ROOT

import vaebook

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```\n(?:\n(?:prints\n\n)?```text\n(.*?)```)?", TEXT, re.DOTALL)
WHERE = TEXT.split("## Where is what?")[1].split("\n## ")[0]


@pytest.mark.parametrize(("code", "printed"), CODE, ids=range(len(CODE)))
def test_its_code_prints_what_it_says(code, printed):
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_modules_and_tests_that_it_names_are_there():
    rows = [row.split("|")[2:4] for row in WHERE.splitlines() if row.startswith("| ") and "look in" not in row]
    assert len(rows) > 10
    modules = set(re.findall(r"^`(\w+)`|`(\w+)`", vaebook.__doc__, re.MULTILINE))
    modules = {name for pair in modules for name in pair} | {"_checks"}
    for places, tests in rows:
        named = [name for name in re.findall(r"`([^`]+)`", places) if not re.match(r"make |UPGRADE", name)]
        assert named
        for name in named:
            module, _, attribute = name.partition(".")
            beside = [ROOT / name, ROOT / "vaebook" / name, ROOT / "tests" / "book" / name]
            if not any(path.exists() for path in beside) and name not in modules | {"adapt"}:
                assert module in modules and hasattr(__import__(f"vaebook.{module}", fromlist=[module]), attribute)
        for name in re.findall(r"`([\w/]+\.py)`", tests):
            assert (ROOT / "tests" / name).exists(), name


def test_make_targets_that_it_names_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
