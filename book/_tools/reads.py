"""Which data files some code may read, by the names in its string literals; nothing is executed.

Parts of a name that are computed fit anything: `f"runs-{seed}.json"` stands for all files of that form. Code that names
a folder of data and no file in it, or that lists folders, may read every file there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

LISTS = {"iterdir", "listdir", "scandir", "walk"}
NO_DATA = {".py", ".ipynb", ".md", ".bib"}


def data_files(folder: Path) -> list[Path]:
    """All files below a folder that are data: neither pages nor code, and not hidden."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix not in NO_DATA and path.is_file())
    return [file for file in files if not any(part[0] in "._" for part in file.relative_to(folder).parts)]


def data_read(trees: list[ast.Module], files: list[Path]) -> set[Path]:
    """Those of the files that these trees, taken together, may read."""
    patterns = set().union(*map(_all_literals, trees))
    named = [_as_name(pattern) for pattern in patterns]
    named = [name for name in named if name is not None]
    read = {file for file in files for folder, last in named if _fits(file, folder, last)}
    lists = not LISTS.isdisjoint(patterns)
    for name in {file.parent.name for file in files}:
        if any(name == pattern.rstrip("/").rpartition("/")[2] for pattern in patterns):
            inside = {file for file in files if file.parent.name == name}
            read |= {file for file in inside if file.stem in patterns}
            read |= inside if lists or not inside & read else set()
    return read


def _as_name(pattern: str) -> tuple[str, str] | None:
    """Split a literal into the folder and the file that it names, or return None if it names no file."""
    folder, _, last = pattern.rpartition("/")
    if re.fullmatch(r"\.\w+", last):  # as in `path.with_suffix(".json")`
        last = f"*{last}"
    return (folder.rpartition("/")[2], last) if folder or re.search(r"\.\w+$", last) else None


def _fits(file: Path, folder: str, last: str) -> bool:
    """Compare names; where a literal has no extension, it must name the folder."""
    return (folder == file.parent.name or re.search(r"\.\w+$", last) is not None) and fnmatchcase(file.name, last)


@cache
def _all_literals(tree: ast.AST) -> set[str]:
    """List the string literals of a tree, and the names of functions in it that list folders."""
    return {*_literals(tree), *(LISTS & {getattr(node, "attr", None) for node in ast.walk(tree)})}


def _literals(node: ast.AST) -> Iterator[str]:
    """All strings that are written in a tree, as patterns: `*` stands for what is computed."""
    pattern = _pattern(node)
    if pattern is not None:
        yield pattern
        if isinstance(node, ast.Constant):
            return
        inner = [n for n in ast.walk(node) if not isinstance(n, (ast.Constant, ast.JoinedStr)) and n is not node]
        for part in inner:  # what is computed may name files too, as in f"{load('x.json')}.txt"
            if isinstance(part, ast.Call):
                yield from (s for a in [*part.args, *(k.value for k in part.keywords)] for s in _literals(a))
        return
    for child in ast.iter_child_nodes(node):
        yield from _literals(child)


def _pattern(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value.replace("[", "[[]") if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(value) or "*" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_pattern(node.left), _pattern(node.right)]
        return None if parts == [None, None] else "".join(part or "*" for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        left = _pattern(node.left)
        return None if left is None else re.sub(r"%[-+ #0]*\d*(?:\.\d+)?[a-z]", "*", left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        called = _pattern(node.func.value)
        return None if called is None else re.sub(r"\{[^{}]*\}", "*", called)
    return None
