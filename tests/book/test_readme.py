"""What the README promises is what happens."""

import re
import subprocess
import sys

import pytest
from compare import same_text
from fingerprint import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_first_example_prints_what_stands_below_it():
    block = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL)
    assert block is not None, "expected a python block and its output in a text block"
    command = [sys.executable, "-W", "error::UserWarning", "-c", block.group(1)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert same_text(block.group(2).strip(), done.stdout.strip()), done.stdout


def test_ci_runs_the_commands_that_the_readme_names():
    run = (ROOT / ".ci" / "run").read_text()
    for command in ("make test", "make test-slow"):
        assert re.search(rf"^\s*{command} ", run, re.MULTILINE)
    assert "make book" in README
    assert "make test" in README


def test_every_command_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} is in the README only"


def dead(text, page):
    """Links of a page to files and headings that are not there."""
    found = []
    for path, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", re.sub(r"`[^`\n]*`", "", text)):
        target = ROOT / path if path else page
        headings = (
            re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE) if place and target.is_file() else []
        )
        places = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not target.exists() or (place and place not in places):
            found.append(f"{path}#{place}")
    return found


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_everything_that_a_page_links_to_exists(name):
    assert dead((ROOT / name).read_text(encoding="utf-8"), ROOT / name) == []


def test_a_link_to_what_is_not_there_is_noticed():
    text = "[a](README.md#the-package) [b](book/intro.md) [c](#how-to-cite) [d](gone.md) [e](README.md#gone) [f](#gone)"
    assert dead(text, ROOT / "README.md") == ["gone.md#", "README.md#gone", "#gone"]
