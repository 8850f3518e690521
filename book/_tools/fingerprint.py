"""What a chapter's stored outputs depend on, and whether any of it has changed since they were computed.

A chapter is a MyST file with a kernelspec, `NAME.md`, beside its executed twin, `NAME.ipynb`. Kept in the twin's
metadata under `vaebook` are `source`, a hash of all cells, `digest`, one of all outputs (those that were edited were
not computed), and `fingerprint`, one for each thing that the outputs depend on: the chapter's code, the lock, the
modules that it reaches (see reach.py) and the data that it or they read (see reads.py). Of code the syntax tree
counts: comments, docstrings and layout make nothing stale.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import addresses  # noqa: F401
import jupytext
import nbformat
from jupytext.config import load_jupytext_configuration_file
from nbformat import NotebookNode
from reach import Reach
from reads import data_files, data_read

MYST = {"extension": ".md", "format_name": "myst"}
ROOT = Path(__file__).resolve().parents[2]
LOCK = "requirements.txt"
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


class BrokenNotebookError(ValueError):
    """A file that should be a notebook and is none."""


def read_ipynb(ipynb: Path) -> NotebookNode:
    """Read an executed notebook."""
    try:
        notebook = nbformat.read(ipynb, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises what its parts raise: KeyError, AttributeError, ValidationError
        raise BrokenNotebookError(f"{ipynb.name} is no notebook: cut short, or an unresolved merge") from error
    return notebook


def inputs(notebook: NotebookNode) -> list[dict]:
    """List what an author writes: type, source and metadata of every cell."""
    return [{"type": c.cell_type, "source": c.source, "metadata": _plain(c.metadata)} for c in notebook.cells]


def source_hash(notebook: NotebookNode) -> str:
    """Hash of all cells as the author wrote them."""
    return _hash([json.dumps(inputs(notebook), sort_keys=True, ensure_ascii=False)])


def digest(notebook: NotebookNode) -> str:
    """Hash of all outputs, byte for byte; of them other machines compute what is nearly the same."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return _hash([json.dumps(outputs, sort_keys=True, ensure_ascii=False)])


def fingerprint(notebook: NotebookNode, root: Path = ROOT) -> dict[str, str]:
    """Hashes of everything that the outputs depend on, each under the name of the file or "code"."""
    cells = [_parse_cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells if cell.cell_type == "code"]
    reach = Reach(cells, root)
    trees = reach.packages | reach.modules
    files = data_files(root / "book")
    data = set().union(*(data_read(unit, files) for unit in [cells, *([tree] for tree in trees.values())]))
    lines = (line.partition("#")[0].strip() for line in _text(root / LOCK).splitlines())
    parts = {root / LOCK: _hash(filter(None, lines))}
    parts |= {path: _hash_tree(tree) for path, tree in trees.items()}
    parts |= {path: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in data}
    named = {path.relative_to(root).as_posix(): digest for path, digest in sorted(parts.items())}
    return {"code": _hash([*map(_hash_tree, cells), json.dumps(tags)])} | named


def why_stale(md: Path, root: Path = ROOT) -> str | None:
    """Why the stored outputs may not be those of the present source, or None if they are."""
    ipynb = md.with_suffix(".ipynb")
    if not ipynb.exists():
        return "never executed"
    try:
        notebook, stored = read_md(md), read_ipynb(ipynb)
    except BrokenNotebookError as error:
        return str(error)
    marks = stored.metadata.get("vaebook", {})
    recorded, present = marks.get("fingerprint"), fingerprint(notebook, root)
    if not isinstance(recorded, dict):
        return "what it depends on was not recorded"
    if recorded != present:
        names = [n for n in present | recorded if recorded.get(n) != present.get(n)]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"changed: {', '.join(names[:4])}{more}"
    if marks.get("digest") != digest(stored):
        return "its outputs were edited"
    if marks.get("source") != source_hash(notebook) or inputs(notebook) != inputs(stored):
        return "its text changed"
    return None


def _parse_cell(source: str) -> ast.Module:
    """Syntax tree of a cell; a final semicolon, which keeps a value from being shown, is part of it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic
        return ast.Module([ast.Expr(ast.Constant(source))], [])
    tokens = [line.partition("#")[0].strip() for line in source.splitlines()]
    hidden = next((token.endswith(";") for token in reversed(tokens) if token), False)
    return ast.Module([*tree.body, *([ast.Pass()] if hidden else [])], [])


@cache
def _hash_tree(tree: ast.AST) -> str:
    return _hash([json.dumps(_plain_tree(tree), ensure_ascii=False)])


def _plain_tree(node: object) -> object:
    """Write a syntax tree as lists, the same for every version of Python: what is empty or absent is left out."""
    if isinstance(node, ast.Constant):
        return [repr(node.value)]
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in ("ctx", "type_comment"))
        return [type(node).__name__, *([name, _plain_tree(v)] for name, v in fields if v is not None and v != [])]
    return [_plain_tree(item) for item in node] if isinstance(node, list) else repr(node)


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else "missing"


def _plain(metadata: NotebookNode) -> dict:
    return json.loads(json.dumps(metadata))
