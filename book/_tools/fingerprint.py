"""What a chapter's stored outputs depend on, and whether any of it has changed since they were computed.

A chapter is a MyST file with a kernelspec, `NAME.md`, beside its executed twin, `NAME.ipynb`. Two hashes are kept in
the twin's metadata under `vaebook`: `source` covers all cells, `fingerprint` everything that the outputs depend on: the
code cells, the package, the lock and the results files that the chapter reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_configuration_file
from nbformat import NotebookNode

MYST = {"extension": ".md", "format_name": "myst"}
ROOT = Path(__file__).resolve().parents[2]
RESULTS = re.compile(r"results/([\w./-]+?\.json)|load_results\(\s*[\"']([\w./-]+?)(?:\.json)?[\"']")
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def is_chapter(md: Path) -> bool:
    """Whether a Markdown file is a chapter (it names a kernel) rather than prose."""
    header = FRONT_MATTER.match(md.read_text(encoding="utf-8"))
    return header is not None and "kernelspec:" in header.group(1)


def chapters(root: Path = ROOT) -> list[Path]:
    """List the Markdown files of all chapters, in alphabetical order."""
    pages = (page for page in (root / "book").rglob("*.md") if ".ipynb_checkpoints" not in page.parts)
    return sorted(page for page in pages if is_chapter(page))


def read_md(md: Path) -> NotebookNode:
    """Read a chapter's Markdown as a notebook without outputs."""
    notebook = jupytext.read(md, fmt=dict(MYST))
    notebook.metadata.get("jupytext", {}).get("text_representation", {}).pop("jupytext_version", None)
    return notebook


def as_md(notebook: NotebookNode) -> str:
    """Write a notebook as the Markdown that JupyterLab would save beside it."""
    config = load_jupytext_configuration_file(str(ROOT / "pyproject.toml"))
    fmt = dict(MYST)
    config.set_default_format_options(fmt)
    return jupytext.writes(notebook, fmt=fmt, config=config)


def read_ipynb(ipynb: Path) -> NotebookNode:
    """Read an executed notebook."""
    return nbformat.read(ipynb, as_version=4)


def inputs(notebook: NotebookNode) -> list[dict]:
    """List what an author writes: type, source and metadata of every cell."""
    return [{"type": c.cell_type, "source": c.source, "metadata": _plain(c.metadata)} for c in notebook.cells]


def source_hash(notebook: NotebookNode) -> str:
    """Hash of all cells as the author wrote them."""
    return _hash([json.dumps(inputs(notebook), sort_keys=True, ensure_ascii=False)])


def results_read(notebook: NotebookNode) -> list[str]:
    """Names of the files in book/results/ that the code cells mention."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return sorted({path or f"{name}.json" for path, name in RESULTS.findall(code)})


def fingerprint(notebook: NotebookNode, root: Path = ROOT) -> str:
    """Hash of everything that the outputs depend on."""
    code = [cell for cell in inputs(notebook) if cell["type"] == "code"]
    files = [*sorted((root / "vaebook").rglob("*.py")), root / "requirements.txt"]
    files += [root / "book" / "results" / name for name in results_read(notebook)]
    parts = [json.dumps(code, sort_keys=True, ensure_ascii=False)]
    for file in files:
        parts += [file.relative_to(root).as_posix(), _text(file)]
    return _hash(parts)


def why_stale(md: Path, root: Path = ROOT) -> str | None:
    """Why the stored outputs may not be those of the present source, or None if they are."""
    ipynb = md.with_suffix(".ipynb")
    if not ipynb.exists():
        return "never executed"
    notebook, stored = read_md(md), read_ipynb(ipynb)
    marks = stored.metadata.get("vaebook", {})
    if marks.get("fingerprint") != fingerprint(notebook, root):
        return "its code, the package, the lock or a results file changed"
    if marks.get("source") != source_hash(notebook) or inputs(notebook) != inputs(stored):
        return "its text changed"
    return None


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else "missing"


def _plain(metadata: NotebookNode) -> dict:
    return json.loads(json.dumps(metadata))
