"""The names of the repository, the site and the authors stand in _config.yml; everything else follows it."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from fingerprint import ROOT

import vaebook

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
REPOSITORY, SITE, AUTHORS = CONFIG["repository"]["url"], CONFIG["html"]["baseurl"], CONFIG["author"]
SKIPPED = {".venv", ".git", "_build", "mathjax", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
TEXT = {".md", ".yml", ".yaml", ".toml", ".py", ".cff", ".txt", ".sh", ".css", ".json", ".ipynb", ".bib", ""}


def project_files():
    for folder, inner, files in os.walk(ROOT):
        inner[:] = sorted(set(inner) - SKIPPED)  # not looked into: .venv has tens of thousands of files
        yield from (Path(folder, name).relative_to(ROOT) for name in sorted(files) if Path(name).suffix in TEXT)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_citation():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["repository-code"] == REPOSITORY
    assert citation["url"] == SITE
    assert [author["name"] for author in citation["authors"]] == [AUTHORS]
    assert citation["version"] == tomllib.loads(read("pyproject.toml"))["project"]["version"] == vaebook.__version__


def test_license_and_package_name_the_authors():
    assert AUTHORS in read("LICENSE")
    assert tomllib.loads(read("pyproject.toml"))["project"]["authors"] == [{"name": AUTHORS}]
    assert str(CONFIG["copyright"]) in read("LICENSE")


def test_names_stand_once_in_the_configuration():
    text = read("_config.yml")
    for name in (REPOSITORY, SITE, AUTHORS):
        assert len(re.findall(rf"{re.escape(name)}\s*$", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", [str(path) for path in project_files()])
def test_every_mention_is_the_configured_one(name):
    if name == "tests/book/test_names.py":
        return
    text = read(name)
    for url in re.findall(r"https://example\.org/[\w./-]*", text):
        assert url.rstrip("./").startswith((REPOSITORY.rstrip("/"), SITE.rstrip("/")))
    for target in re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([\w.-]+)/", text):
        assert f"https://github.com/{target[0]}" == REPOSITORY
        assert target[1] == CONFIG["repository"]["branch"]


def test_launch_buttons_wait_for_a_real_repository():
    assert CONFIG["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert "github.com/" in REPOSITORY or REPOSITORY.startswith("https://example.org/")


def test_workflows_name_no_owner_and_build_the_configured_branch():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        assert not re.search(r"github\.com/|example\.org", text), f"{path.name}: use the github context"
        workflow = yaml.safe_load(text)
        triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
        branches = (triggers.get("push") or {}).get("branches", [CONFIG["repository"]["branch"]])
        assert branches == [CONFIG["repository"]["branch"]]
        assert all("runs-on" in job and job["steps"] for job in workflow["jobs"].values())
