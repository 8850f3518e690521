"""The reference of the package: generated from its docstrings when the site is built, and linked from the chapters.

Which modules there are, in which order, and what they do is read from the table of layers in the package's docstring.
Docstrings are Markdown with Google's sections; they are turned into what autodoc reads.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

import vaebook

PAGE, RESULTS = "book/appendix/api", "book/results/costs.json"
PLACE, COSTS = "% modules", "% costs"
MINUS = "\N{MINUS SIGN}"  # after a hyphen lines may break
TABLE = re.compile(r"^( *)=+ +=.*?\n *=+ +=.*?\n *=+ +=[= ]*$", re.MULTILINE | re.DOTALL)
PIECES = re.compile(r"(``[^`]+``|`[^`]+`|\$[^$]+\$|^ *>>>.*$|\*\*\w[^*\n]*[\w.]\*\*|\*\w[^*\n]*[\w.]\*)", re.MULTILINE)


def layers() -> list[tuple[list[str], str]]:
    """Rows of the table of layers, from the top down: names of modules, and what they do."""
    rows = re.findall(r"^((?:`\w+` ?)+)\n((?:    .+\n)+)", f"{vaebook.__doc__}\n", re.MULTILINE)
    return [(re.findall(r"\w+", names), " ".join(text.split())) for names, text in rows]


@cache
def public(module: str) -> list[str]:
    """Names of the functions and classes that a module defines for others."""
    loaded = importlib.import_module(f"vaebook.{module}")
    own = [name for name, value in vars(loaded).items() if getattr(value, "__module__", "").startswith(loaded.__name__)]
    return [
        name
        for name in own
        if name[0] != "_" and (inspect.isclass(vars(loaded)[name]) or inspect.isroutine(vars(loaded)[name]))
    ]


@cache
def homes() -> dict[str, str]:
    """Where each public name is described: name → full name, for names that stand in one module."""
    found = [(name, f"vaebook.{module}.{name}") for names, _ in layers() for module in names for name in public(module)]
    return {name: full for name, full in found if sum(name == other for other, _ in found) == 1}


def users(module: str, book: Path) -> list[str]:
    """Pages that import from a module, without their suffix."""
    pattern = re.compile(rf"^from vaebook\.{module} import|^from vaebook import .*\b{module}\b", re.MULTILINE)
    pages = (md for md in sorted(book.rglob("*.md")) if md.with_suffix(".ipynb").exists())
    return [
        md.relative_to(book).with_suffix("").as_posix()
        for md in pages
        if pattern.search(md.read_text(encoding="utf-8"))
    ]


def _plain(name: str) -> str:
    """Keep Markdown from reading the underscores of `__main__` as bold."""
    return name.replace("_", r"\_")


def write_modules(app: Sphinx, page: str, source: list[str]) -> None:
    """Put one section for each module in the place that the page leaves for them."""
    if page != PAGE:
        return
    parts = []
    for names, text in layers():
        parts += [f"## {_plain(' · '.join(names))}\n", f"{text[0].upper()}{text[1:]}.\n"]
        for module in names:
            parts.append(f"### vaebook.{_plain(module)}\n")
            if found := users(module, Path(app.srcdir, "book")):
                parts.append("Used in " + ", ".join(f"{{doc}}`../{page}`" for page in found) + ".\n")
            members = ", ".join(public(module))
            parts.append(f"```{{eval-rst}}\n.. automodule:: vaebook.{module}\n   :members: {members}\n```\n")
    source[0] = source[0].replace(PLACE, "\n".join(parts)).replace(COSTS, costs(Path(app.srcdir, RESULTS)))
    app.env.note_dependency(RESULTS)


def costs(path: Path) -> str:
    """Write the table of what functions cost, from book/results/costs.json."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| Function | N × D | s | grow as | MB | grow as |", "|:--|--:|--:|:--|--:|:--|"]
    for row in sorted(stored["rows"], key=lambda row: row["name"].partition(".")[2].lower()):
        name, _, note = row["name"].partition(", ")
        cells = [entry(name) + (note and f", {note}"), f"{row['N']:,} × {row['D']} {row['counts']}"]
        for kind, least, grows in (("cpu_seconds", 0.001, "time"), ("megabytes", 1, "memory")):
            powers = {size: row.get(f"{grows}_{size}") for size in "ND"}
            shown = [f"{size}{{sup}}`{power + 0.0:.1f}`" for size, power in powers.items() if power is not None]
            cells += [two_digits(row[kind], least), " ".join(shown).replace("-0.0", "0.0").replace("-", MINUS)]
        lines.append("| " + " | ".join(cells) + " |")
    made = stored["provenance"]
    where = f"{made['machine']}, Python {made['python']}, torch {made['versions']['torch']}"
    return "\n".join(lines) + f"\n\nMeasured on {made['time'][:10]}: {where}."


def entry(name: str) -> str:
    """Link a function, or a method of a class or of that from which the class has it, to its entry; none if private."""
    module, *parts = name.split(".")
    found: Any = importlib.import_module(f"vaebook.{module}")
    for part in parts:
        found = inspect.getattr_static(found, part)
    found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
    shown, home = ".".join(parts), f"{found.__module__}.{found.__qualname__}"
    return f"`{shown}`" if "._" in home else f"{{py:obj}}`{shown} <{home}>`"


def two_digits(value: float, least: float) -> str:
    """Write a number with the digits that such a measurement has."""
    return f"{float(f'{value:.2g}'):,.15g}" if value >= least else f"< {least}"


def as_rst(piece: str) -> str:
    """Turn one piece of Markdown into reStructuredText."""
    if piece.startswith("$"):
        return f":math:`{piece[1:-1]}`"
    if piece.startswith("`") and not piece.startswith("``"):
        return f"`{piece}`"
    if PIECES.fullmatch(piece):
        return piece
    return re.sub(r"([*|\\]|\b_\B)", r"\\\1", piece)


def read_markdown(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring before napoleon takes its sections apart; what stands before a colon is then no type."""
    text = TABLE.sub(
        lambda rows: f"{rows[1]}::\n\n" + re.sub("^", "    ", rows[0], flags=re.MULTILINE), "\n".join(lines)
    )
    shown = TABLE.search(text)
    pieces = [text] if shown is None else [text[: shown.start()], shown[0], text[shown.end() :]]
    rewritten = ["".join(map(as_rst, PIECES.split(piece))) for piece in pieces[::2]]
    lines[:] = (rewritten[0] if shown is None else shown[0].join(rewritten)).split("\n")
    sentences = [0] if what in ("attribute", "property") else []
    sentences += [number for number, line in enumerate(lines[:-1], 1) if line.strip() == "Returns:"]
    for number in sentences:
        lines[number] = re.sub(r"(?=\S)", ": ", lines[number], count=1)


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Let code in the text that names something of the package lead to its entry."""
    if page == PAGE:
        return
    for literal in list(doctree.findall(nodes.literal)):
        name = re.fullmatch(r"(?:vaebook\.(?:\w+\.)?)?(\w+)(?:\(.*\))?", literal.astext(), re.DOTALL)
        full = homes().get(name[1]) if name else None
        if full and not isinstance(literal.parent, nodes.reference):
            address = app.builder.get_relative_uri(page, PAGE) + f"#{full}"
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), refuri=address, internal=True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Use autodoc and napoleon, with docstrings turned into what they read."""
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.connect("source-read", write_modules)
    app.connect("autodoc-process-docstring", read_markdown, priority=400)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
