"""Which modules a chapter's code reaches through its imports, directly or by way of other modules.

It is read off the syntax trees; nothing is executed. A module that is reached counts whole, with all that it imports.
A package's `__init__.py` is different, because most names in it come from elsewhere: of it count its own statements,
and the modules that the names *asked for* come from. So `from vaebook.claims import verify` reaches the registry,
`verify("index/joint")` the module that registers this claim, and neither of them the modules of all other claims.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE, SCRIPTS = "vaebook", Path("book", "experiments")


@cache
def parse(text: str) -> ast.Module:
    """Syntax tree of a module without what changes no result: comments, docstrings, annotations of functions."""
    return _Strip().visit(ast.parse(text))


class _Strip(ast.NodeTransformer):
    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef


class Reach:
    """The files that the imports of some code lead to.

    Attributes:
        modules: those that count whole, with their syntax trees.
        packages: `__init__.py` of packages of which only their own statements count, not what they re-export.
    """

    def __init__(self, cells: list[ast.Module], root: Path) -> None:
        """Follow the imports of all cells, in a tree of files."""
        self.root = root
        self.modules: dict[Path, ast.Module] = {}
        self.packages: dict[Path, ast.Module] = {}
        self._located: dict[tuple[str, ...], Path | None] = {}
        # One tree for all cells: a name that one of them imports is used in others.
        self._follow(ast.Module([node for cell in cells for node in cell.body], []), "")

    def _follow(self, tree: ast.Module, package: str) -> None:
        bound: dict[str, str] = {}
        for name, origin in _imports(tree, package):
            bound[name] = name if name == origin.split(".")[0] else origin
            self._ask(origin, imported=name != "")
        for used in _uses(tree, bound):
            self._ask(used)
        for module in self._claims(tree, bound):
            self._ask(module)

    def _ask(self, dotted: str, *, imported: bool = False) -> None:
        """Reach a module, or a name in one. A package that is merely imported is asked for nothing yet."""
        parts = dotted.split(".")
        ends = (end for end in range(len(parts), 0, -1) if self._locate(parts[:end]) is not None)
        end = next(ends, 0)
        for package in range(1, end):
            self._pass(parts[:package])
        path, rest = self._locate(parts[:end]), parts[end:]
        if path is None:
            return
        if path.name != "__init__.py":
            self._take(path, parts[: end - 1])
        elif rest or imported:
            self._pass(parts[:end])
            origins = [o for n, o in _imports(parse(_read(path)), ".".join(parts[:end])) if rest and n == rest[0]]
            for origin in origins:
                self._ask(origin)
            if rest and not origins and rest[0] not in _own_names(self.packages[path]):
                self._take(path, parts[:end])  # found in a way that cannot be seen from here
        else:
            self._take(path, parts[:end])

    def _take(self, path: Path, package: list[str]) -> None:
        if path not in self.modules:
            self.modules[path] = parse(_read(path))
            self._follow(self.modules[path], ".".join(package))

    def _pass(self, package: list[str]) -> None:
        path = self._locate(package)
        if path is not None and path.name == "__init__.py" and path not in self.packages:
            tree = parse(_read(path))
            self.packages[path] = ast.Module([node for node in tree.body if not _is_re_export(node)], [])
            self._follow(self.packages[path], ".".join(package))

    def _locate(self, parts: list[str]) -> Path | None:
        if tuple(parts) not in self._located:
            bases = [base.joinpath(*parts) for base in (self.root, self.root / SCRIPTS)] if parts else []
            files = (file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")))
            self._located[tuple(parts)] = next((file for file in files if file.is_file()), None)
        return self._located[tuple(parts)]

    def _claims(self, tree: ast.Module, bound: dict[str, str]) -> Iterator[str]:
        """Modules of the claims that a tree verifies; of all claims where it lists them or computes an id."""
        for function, first in _calls(tree):
            called = bound.get(function, function).rpartition(".")[2]
            if called in ("verify", "ledger"):
                modules = _registry(self.root)
                yield from [modules[first]] if called == "verify" and first in modules else set(modules.values())


def _registry(root: Path) -> dict[str, str]:
    """Find the module that registers each claim, with the decorator `claim`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found |= dict.fromkeys(_registered(_read(path)), module)
    return found


@cache
def _registered(text: str) -> list[str]:
    decorators = [d for node in ast.walk(parse(text)) for d in getattr(node, "decorator_list", [])]
    calls = [_call(d) for d in decorators if isinstance(d, ast.Call)]
    return [first for function, first in calls if function == "claim" and first is not None]


@cache
def _calls(tree: ast.AST) -> list[tuple[str, str | None]]:
    return [_call(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _call(node: ast.Call) -> tuple[str, str | None]:
    """Name of the function, and the text that is its first argument or the one called id."""
    given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "id")]
    texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return _name(node.func) or "", texts[0] if texts else None


@cache
def _imports(tree: ast.AST, package: str) -> list[tuple[str, str]]:
    """List the name that each import binds, and what it stands for; imports inside functions included."""
    return list(_each_import(tree, package))


def _each_import(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and _call(node)[0] in ("import_module", "__import__"):
            yield "", _call(node)[1] or ""


def _uses(tree: ast.AST, bound: dict[str, str]) -> set[str]:
    """List what a tree uses of its imports, in dotted form: `claims.verify` after `from vaebook import claims`."""
    return {f"{bound[name]}{chain}" for name, chain in _chains(tree) if name in bound}


@cache
def _chains(tree: ast.AST) -> set[tuple[str, str]]:
    """Every name in a tree, with the chain of attributes that is taken of it."""
    found, inner = set(), set()
    for node in ast.walk(tree):  # from the outside inwards, so that the longest chain comes first
        chain, start = "", node
        while isinstance(start, ast.Attribute):
            chain, start = f".{start.attr}{chain}", start.value
        if isinstance(start, ast.Name) and start not in inner:
            inner.add(start)
            found.add((start.id, chain))
    return found


def _own_names(tree: ast.Module) -> set[str]:
    """Names that a package's `__init__.py` defines itself."""
    names = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    return names | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _is_re_export(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):  # names that are imported when they are asked for, told to type checkers
        return ast.unparse(node.test) == "TYPE_CHECKING" and all(map(_is_re_export, node.body))
    return isinstance(node, ast.ImportFrom) or (
        isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    )


def _name(function: ast.expr) -> str | None:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
