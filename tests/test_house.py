"""The house: what comes from outside is inspected at the doors only, no file is long, nothing private is shared."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import vaebook

PACKAGE = Path(vaebook.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))
ALL = sorted(PACKAGE.rglob("*.py"))
CODE_LINES = 5_221
"""Of the package without docstrings and claims. The aim is 2,400: this number may only fall."""
FILE_LINES = 300
LONG = {}
"""Files that are longer still, and may only shrink."""
DOORS = {"adapters.py", "parts.py", "outputs.py", "evaluation.py"}
OUTSIDE = ("prior", "latent", "encoder", "decoder", "encode", "decode", "vae", "model", "decoded", "q_x")
"""Names that a prior, an encoder, a decoder or a VAE goes by, alone or as the last word of a name."""
PROBES = {"isinstance", "issubclass", "type", "hasattr", "callable", "getattr"}
OPTIONAL = {"components", "leave_one_out", "kl", "config"}
"""What a prior may offer beyond the rest: asked for by name, it is asked, not inspected."""


CHECKS_ONLY = {
    "check_int('--seed', given.seed, minimum=-2 ** 63)",  # argparse has made an int of it
    "check_int('hidden', num_out, minimum=1, each=0 if place == 'meta' else num_in)",  # both were checked before
    "check_int(name, math.prod(sizes), minimum=0, maximum=math.prod(sizes), each=dim)",
}
"""Checks of what is an int already."""


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def probes(tree):
    """Calls that ask what kind of thing a prior, an encoder, a decoder or a VAE is."""
    shown = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "__name__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Match) and names(node.subject):
            yield f"line {node.lineno}: match"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args and id(node) not in shown:
            asked = getattr(node.args[1], "value", None) if len(node.args) > 1 else None
            # without a default getattr only reads
            probe = node.func.id in PROBES and (node.func.id != "getattr" or len(node.args) == 3)
            if probe and names(node.args[0]) and asked not in OPTIONAL:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def names(node):
    """Whether an expression is one of the things from outside: vae.prior, a_prior, self.encoder, but not prior.loc."""
    last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return last.lstrip("_").rsplit("_", 1)[-1] in OUTSIDE


def code_lines(text):
    """Count lines with code, without comments, docstrings and blank ones."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    kept = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            kept.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            kept -= set(range(node.lineno, node.end_lineno + 1))
    return len(kept)


@pytest.mark.parametrize(
    "path",
    [f for f in ALL if f.name not in DOORS],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_beyond_the_doors_nothing_asks_what_came_from_outside(path):
    assert list(probes(parse(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(prior, StandardNormal)",
        "hasattr(vae.prior, 'mixture')",
        "x = [p for p in q if isinstance(self._prior, (A, B))]",
        "getattr(own_prior, 'latent_dim', None)",
        "type(vae.decoder) is Decoder",
        "callable(encoder)",
        "match vae.prior:\n    case StandardNormal():\n        pass",
    ],
)
def test_that_test_would_see_a_probe(code):
    assert list(probes(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(q_agg, D)",
        "prior.log_prob(z)",
        "isinstance(x, Tensor)",
        "getattr(prior, name)",
        "getattr(prior, 'kl', None)",
        "type(prior).__name__",
    ],
)
def test_and_nothing_else(code):
    assert not list(probes(ast.parse(code)))


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_private_is_imported_or_reached_into(path):
    """Modules that begin with _ are the package's own; their public names are for all of it."""
    modules, private = set(), []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vaebook"):
            for alias in node.names:
                if alias.name.startswith("_") and not (PACKAGE / f"{alias.name}.py").exists():
                    private.append(f"{node.module}.{alias.name}")
                if node.module == "vaebook":
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and getattr(node.value, "id", None) in modules:
            private.append(ast.unparse(node))
    assert private == []


SHORTER = {"kernels.py": 1, "panels.py": 1}
"""How often `zip` may end with the shorter of what it goes through."""


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_goes_in_step_is_of_one_length(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    zips = [call.keywords for call in calls if ast.unparse(call.func) in ("zip", "itertools.zip_longest")]
    strict = [{word.arg: getattr(word.value, "value", None) for word in words}.get("strict") for words in zips]
    assert set(strict) <= {True, False} and strict.count(False) == SHORTER.get(path.name, 0)


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONG.get(path.name, FILE_LINES)


def unused(tree):
    """Checks of numbers whose result is not used: a numpy integer, which may overflow, or a fraction would go on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = getattr(node.value.func, "id", getattr(node.value.func, "attr", ""))
            if name in {"check_int", "check_number", "check_sizes"}:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_number_that_was_checked_is_the_one_that_is_used(path):
    assert [found for found in unused(parse(path)) if found.split(": ", 1)[1] not in CHECKS_ONLY] == []


def test_a_number_that_is_not_used_is_seen():
    assert (
        len(list(unused(ast.parse("check_int('n', n, minimum=1)\nn = check_int('n', n)\nchecks.check_number('t', t)"))))
        == 2
    )


def test_the_package_is_small():
    sizes = {path.name: code_lines(path.read_text(encoding="utf-8")) for path in FILES}
    assert sum(sizes.values()) <= CODE_LINES, sizes


def test_lines_of_code_are_counted():
    assert (
        code_lines('"""Doc.\n\nMore."""\n\n# no\nx = (\n    1\n)\n\n\ndef f():\n    """Doc."""\n    return x  # yes\n')
        == 5
    )
