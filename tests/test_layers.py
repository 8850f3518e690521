"""Imports point down: the layers of the package, and what may touch the disk or matplotlib."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vaebook

PACKAGE = Path(vaebook.__file__).parent


def layers():
    """Rows of the table in the package's docstring, from the top down: names of modules, and what they do."""
    rows = re.findall(r"^((?:`\w+` ?)+)\n((?:    .+\n)+)", f"{vaebook.__doc__}\n", re.MULTILINE)
    return [(re.findall(r"\w+", names), " ".join(text.split())) for names, text in rows]


LAYERS = [{"_checks"}, *(set(names) for names, _ in reversed(layers()))]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
FILES = sorted(PACKAGE.rglob("*.py"))
DISK = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "unlink", "mkdir", "save_file", "load_file"}


def test_one_table_names_every_module_once_and_the_readme_repeats_it():
    named = [name for names, _ in layers() for name in names]
    assert len(named) == len(set(named))
    assert {*named, "_checks", "__init__"} == {module_of(path) for path in FILES}
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    for names, text in layers():
        row = f"| {' '.join(f'`{name}`' for name in names)} | {text} |"
        assert row in readme, f"README: expected the row {row}"


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The package's modules and the top-level libraries that a file imports."""
    ours, libraries = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            libraries.add(first)
            if first == "vaebook" and rest and rest[0] in LEVEL:
                ours.add(rest[0])
            elif first == "vaebook" and rest:
                ours.add("mixture")  # `from vaebook import DiagGaussianMixture`
    return ours, libraries


@pytest.mark.parametrize("path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda p: str(p.name))
def test_imports_point_down(path):
    own = module_of(path)
    assert own in LEVEL, f"{path.name}: not in the table of layers"
    ours, libraries = imported(path)
    # A package such as claims may import its own parts.
    upward = {m for m in ours - {own} if LEVEL[m] >= LEVEL[own]}
    assert not upward, f"{path.name} (layer {LEVEL[own]}) imports {upward}"
    assert "matplotlib" not in libraries or own in {"plots", "panels"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_data_training_diagnosis_and_claims_touch_the_disk(path):
    if module_of(path) in {"data", "storage", "diagnosis", "claims"}:
        return
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not called & DISK


def test_the_layer_test_would_see_an_upward_import(tmp_path):
    bad = tmp_path / "kernels.py"
    bad.write_text(
        "from vaebook.mixture import DiagGaussianMixture\nimport matplotlib.pyplot as plt\n", encoding="utf-8"
    )
    ours, libraries = imported(bad)
    assert {m for m in ours if LEVEL[m] >= LEVEL["kernels"]} == {"mixture"}
    assert "matplotlib" in libraries


def test_importing_changes_no_global_state():
    code = """
import torch, numpy
before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
import importlib, pkgutil, vaebook
for module in pkgutil.walk_packages(vaebook.__path__, "vaebook."):
    importlib.import_module(module.name)
after = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
assert torch.distributions.Distribution._validate_args == __debug__
import matplotlib
assert matplotlib.rcParams["figure.dpi"] == matplotlib.rcParamsDefault["figure.dpi"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
