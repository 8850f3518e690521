"""Defaults and constants decide results that others rely on: whoever changes one says so here too."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from tests.texts import check_text

MODULES = sorted(p.stem for p in Path(__file__).parents[1].joinpath("vaebook").glob("*.py") if p.stem != "__init__")


def plain(value):
    """Tell whether a value is a number or a name, or several."""
    return all(map(plain, value)) if isinstance(value, tuple) else isinstance(value, int | float | str)


def own(things, module):
    """Return what is public and defined there, by name."""
    return {n: v for n, v in vars(things).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__}


def lines_of(name):
    """List the constants of a module, and the defaults of its functions, classes and their methods."""
    module = importlib.import_module(f"vaebook.{name}")
    found = [f"{name}.{n} = {v!r}" for n, v in vars(module).items() if n.isupper() and n[0] != "_" and plain(v)]
    public = own(module, module)
    classes = {n: v for n, v in public.items() if inspect.isclass(v)}
    public |= {f"{n}.{m}": getattr(cls, m) for n, cls in classes.items() for m in own(cls, module)}
    for path, thing in public.items():
        parameters = inspect.signature(thing).parameters if callable(thing) else {}
        given = {n: p.default for n, p in parameters.items() if p.default is not p.empty and not callable(p.default)}
        found += [f"{name}.{path}({n}) = {default!r}" for n, default in given.items() if repr(default)[0] != "<"]
    return [line for line in dict.fromkeys(found) if len(line) <= 120]


def test_defaults_and_constants_are_those_that_were_written_down():
    check_text("defaults.txt", "".join(f"{line}\n" for name in MODULES for line in lines_of(name)))


@pytest.mark.parametrize("name", MODULES)
def test_all_names_that_a_module_offers_are_there(name):
    module = importlib.import_module(f"vaebook.{name}")
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []
