"""Notebooks that run away from the repository: those that the site offers, and those that its launch buttons open.

When the site is built each gets a first cell that installs the package from the repository named in _config.yml, and
puts the results that the chapter reads where it looks for them. Small results travel in the cell, large ones come from
the site, and each is checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import posixpath
from pathlib import Path

import yaml
from nbformat.v4 import new_code_cell
from sphinx.application import Sphinx

MOST, LARGE = 100_000, 1_000_000  # bytes that a result may add to a notebook, and of one that is not even tried
FIRST = """\
# @title Set-up, run this first: it is not part of the chapter, and lets the notebook run anywhere
import base64
import hashlib
import importlib
import importlib.util
import lzma
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

PACKAGE = {package!r}
if importlib.util.find_spec("vaebook") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    importlib.invalidate_caches()
# Results that the chapter reads: the file, its checksum, and what it holds or where it lies.
RESULTS = {results}
if not all(Path(name).exists() for name, _, _ in RESULTS):
    os.makedirs({folder!r}, exist_ok=True)
    os.chdir({folder!r})
for name, checksum, held in RESULTS:
    fetched = held.startswith(("https:", "http:", "file:"))
    data = urllib.request.urlopen(held).read() if fetched else lzma.decompress(base64.b85decode(held))
    if hashlib.sha256(data).hexdigest() != checksum:
        raise ValueError(f"{{name}} is not the file that this chapter was made with")
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data)
"""


def first_cell(page: str, marks: dict[str, str], root: Path, site: Path) -> dict:
    """Write the cell for a chapter, and put the large results that it reads on the site."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    repository, address = config["repository"], config["html"]["baseurl"]
    results = []
    for file in marks:
        if not file.startswith("book/results/"):
            continue
        data = (root / file).read_bytes()
        held = base64.b85encode(lzma.compress(data[:LARGE])).decode()
        if len(data) > LARGE or len(held) > MOST:
            (site / "results").mkdir(exist_ok=True)
            (site / "results" / posixpath.basename(file)).write_bytes(data)
            held = f"{address}results/{posixpath.basename(file)}"
        # What it holds now is what the site shows; a chapter whose results changed since is named as stale.
        checksum = hashlib.sha256(data).hexdigest()
        results.append((posixpath.relpath(file, posixpath.dirname(page)), checksum, held))
    rows = "".join(f"    {row!r},\n" for row in results)
    folder = posixpath.join("vaebook-files", posixpath.dirname(page))
    package = f"vaebook @ git+{repository['url']}@{repository['branch']}"
    source = FIRST.format(package=package, results=f"[\n{rows}]" if rows else "[]", folder=folder)
    hidden = {"cellView": "form", "jupyter": {"source_hidden": True}}
    return new_code_cell(source.rstrip("\n"), id="set-up", metadata=hidden)


def make_portable(app: Sphinx, exception: Exception | None) -> None:
    """Put the first cell into every notebook that the site offers."""
    if exception or app.builder.name != "html":
        return
    sources = Path(app.outdir, "_sources")
    for path in sources.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        marks = notebook["metadata"].get("vaebook", {}).get("fingerprint", {})
        page = path.relative_to(sources).as_posix()
        notebook["cells"].insert(0, first_cell(page, marks, Path(app.srcdir), Path(app.outdir)))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the one listener."""
    app.connect("build-finished", make_portable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
