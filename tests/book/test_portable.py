"""Notebooks of the site run away from the repository: in an empty folder, with the network closed."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from fingerprint import ROOT, read_ipynb


def extension(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


portable, repairs = extension("portable"), extension("repairs")
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())


@pytest.fixture
def offered(tmp_path):
    """A function that gives a chapter's notebook as the site offers it."""

    def offer(page):
        path = tmp_path / "site" / "_sources" / page
        path.parent.mkdir(parents=True)
        path.write_bytes((ROOT / page).read_bytes())
        portable.make_portable(
            SimpleNamespace(outdir=tmp_path / "site", srcdir=ROOT, builder=SimpleNamespace(name="html")), None
        )
        return read_ipynb(path)

    return offer


def run(cells, folder):
    """Run code as a plain script, without a kernel and without a network; what it prints."""
    folder.mkdir()
    script = "import socket\nsocket.socket.connect = None  # no network\n" + "\n\n".join(cells)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_chapter_that_reads_results_runs_in_an_empty_folder(offered, tmp_path):
    notebook = offered("book/appendix/published.ipynb")
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    reads = [part for cell in cells[1:] for part in cell.split('"') if part.startswith("../results/")]
    assert reads
    folder = tmp_path / "empty"
    cells[1:1] = ["from IPython.display import display"]
    run(cells, folder)
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert made >= {f"vaebook-files/book/results/{name.rpartition('/')[2]}" for name in reads}


def test_large_results_come_from_the_site_and_only_as_they_were(offered, tmp_path):
    first = offered("book/aggregated/priors.ipynb").cells[0].source
    site = (tmp_path / "site").as_uri() + "/"
    assert CONFIG["html"]["baseurl"] in first
    local = first.replace(CONFIG["html"]["baseurl"], site)
    run([local], tmp_path / "empty")
    name = "results/fashion-vamp.safetensors"
    assert (tmp_path / "empty" / "vaebook-files" / "book" / name).read_bytes() == (ROOT / "book" / name).read_bytes()
    (tmp_path / "site" / name).write_bytes(b"something else")
    with pytest.raises(AssertionError, match=r"fashion-vamp\.safetensors is not the file"):
        run([local], tmp_path / "other")


def test_the_first_cell_installs_from_the_configured_repository(offered):
    first, *rest = offered("book/mixture/index.ipynb").cells
    assert f"git+{CONFIG['repository']['url']}@{CONFIG['repository']['branch']}" in first.source
    assert rest == read_ipynb(ROOT / "book" / "mixture" / "index.ipynb").cells


@pytest.mark.parametrize("url", [CONFIG["repository"]["url"], "https://github.com/us/vaebook"])
def test_launch_buttons_open_notebooks_that_run_by_themselves(url):
    """The theme makes its links from these; without a repository on a host that it knows there are none."""
    options = {"repository_url": url, "repository_branch": "main", "launch_buttons": CONFIG["launch_buttons"]}
    config = SimpleNamespace(html_baseurl=CONFIG["html"]["baseurl"], html_theme_options=options)
    repairs.follow_names(None, config)
    assert ("launch_buttons" in options) is ("github.com" in url)
    assert options.get("use_issues_button", False) is ("github.com" in url)
    assert options.get("repository_branch", "notebooks") == "notebooks"
    assert "refs/heads/notebooks" in (ROOT / ".ci" / "notebooks").read_text()
