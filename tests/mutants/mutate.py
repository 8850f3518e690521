"""Does some test notice when the package is wrong? Change one operator, number or name at a time and see.

`make mutants` lets mutmut make every such mutant of the package and of the tools behind the gates, runs the tests of
each, and writes score and survivors to book/results/mutants.json; `--modules weights storage` does so for some. A
survivor must be explained by one of `REASONS`; a mutant that survives without a reason is a missing test.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vaebook.storage import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "book" / "results" / "mutants.json"
TOOLS = {
    **{path.stem: f"book/_tools/{path.name}" for path in sorted((ROOT / "book" / "_tools").glob("*.py"))},
    "harness": "book/experiments/harness.py",
}
"""The tools behind the gates, which the tests import by these names, without a package."""
PACKAGE = {
    **{
        path.stem: f"vaebook/{path.name}" for path in sorted((ROOT / "vaebook").glob("*.py")) if path.stem != "__init__"
    },
    **{f"claims/{name}": f"vaebook/claims/{name}.py" for name in ("evidence", "registry")},
}
"""The package; of the claims what judges them, since each of them is a test."""
MODULES = (*PACKAGE, *TOOLS)
OTHER_TESTS = {
    "storage": ("hostile_files", "checkpoint", "training", "main"),
    "checkpoint": ("hostile_files", "training"),
    "weights": ("npmle",),
    "sums": ("mixture", "kernels", "clusters"),
    "parts": ("adapters", "evaluation", "training"),
    "outputs": ("adapters",),
    "networks": ("models",),
    "gmm": ("priors",),
    "code_priors": ("priors",),
    "shards": ("distributed",),
    "verdicts": ("diagnosis",),
    "report": ("diagnosis",),
    "page": ("diagnosis",),
    "panels": ("diagnosis", "plots"),
    "__main__": ("main",),
    "claims/evidence": ("claims",),
    "claims/registry": ("claims",),
    "laplace": ("likelihood", "inference"),
    "sampling": ("recipes", "holes"),
    "_checks": ("mixture", "fuzz", "models", "npmle"),
}
"""Modules that are tested in other files than their own: names without test_ and .py."""
ALIASES = """

# Mutants are known by the place of their module, which the tools do not know.
import importlib, importlib.abc, importlib.util, sys

TOOLS = {tools!r}


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name in TOOLS else None

    def create_module(self, spec):
        return importlib.import_module(TOOLS[spec.name])

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Alias())
"""
SLOW_TESTS = "not memory and not other_seeds"
OUTCOMES = {0: "survived", 1: "killed", 3: "killed", 33: "no test", 34: "skipped", 36: "timeout", -24: "timeout"}

REASONS = {
    r"zip\(.*strict=": "the lengths are equal by construction; strict only guards later edits",
    r"BLOCK|ENTRIES|COLUMNS|ROWS|BAND|POINTS|PAIRS": "sizes of blocks change memory and speed, not values",
    r"kernels\._by_rows: (if follow|follow|wide|rows) ": "computing again or keeping what derivatives need",
    r"(all_pairs|_chosen): results = ": "columns that nobody reads",
    r"super\(\)\.__init__\(torch\.Size\(\)": "the class makes its own checks and leaves torch none to make",
    r"normaliser\.isinf\(\)": "a bound that is larger still",
    r"allowed = max": "the rounding of half precision, to an order of magnitude",
    r"kernels\.responsibilities: return _by_rows": "what is tracked only decides how many rows go at once",
    r": def \(.* -> def \(.*(limit|max_\w+|tolerance|num_\w+|width|\w+_size)": "a default that says how hard is tried",
    r"(finite|possible|empty|validate_args)=False.* -> .*=None": "None is as false as False",
    r"check_same_device": "seen only with two devices, and tested where there is a graphics card",
    r"pairwise_log_prob: (check_positive|return torch)": "the other check refuses the same values",
    r"possible=False": "what the stricter check would refuse is refused by the caller",
    r"weights\.sum\(-1\)": "the values that a message shows",
    r"preserve_rng_state": "the function that is computed again draws nothing",
    r"attend: (new = |if new is None)": "the exact maximum of every block: the same sums, slower",
    r"loc [+-] scale \* noise|loc\[n\] [+-] scale\[n\] \* u": "the noise and its grid are symmetric",
    r"quadrature.*(num_nodes|nodes|u = )": "another sequence of grids, refined until the same tolerance is met",
    r"zeros_like\(z\[|ones_like\(z\[": "all rows have one shape",
    r"event_shape', (\(\)|None)": "an empty tuple is as false as None",
    r"check_generator\(generator\)": "the prior refuses it with the same message",
    r"torch\.where\(length > 0, length": "what is divided by it is 0",
    r"largest\.sign\(\)": "it is 1 or -1, and its own reciprocal",
    r"float\(eigenvalues\[": "the size of rounding errors, to an order of magnitude",
    r"nothing / ": "any threshold between what can occur and -1e300",
    r"\.to\((x\.dtype|\w+\.device|x)\).* -> .*\.to\(None\)": "it is there already, but on a graphics card",
    r"device=(None|\w+\.device)": "it is there already, but on a graphics card",
    r"out=buffer": "new memory instead of the same",
    r"range\(0, count, step\)": "blocks that overlap: the same maxima, slower",
    r"error\[:, None\]\)": "a wider margin: more clusters than are needed",
    r"_chosen: step =": "which of the points are tried",
    r"max\(1, shape\.numel\(\)\)": "a draw more, which is cut off again",
    r"(npmle|weights)\.(fit_npmle|_needed|_move|_peaks|_climb|_newton_target|_line_search)": "another way to the best "
    "prior: the certificate alone decides when to stop, and its mutants are killed",
}
"""Pattern found in `module.function: was -> is` of a survivor: why no test can or should tell it apart."""
REAL = r"tolerance|TOLERANCE|log\(|1e-|eps|finfo|limit|worst|error|bound|nothing|length|ROUGH|WORTH|allowed"
"""Words of a comparison between real numbers; where integers are compared, equality must be tested."""


def digests(modules: tuple[str, ...] = MODULES) -> dict[str, str]:
    """Digest of the syntax of each module: mutants that are stored under another one are those of other code."""
    trees = {m: ast.dump(ast.parse((ROOT / source_of(m)).read_text(encoding="utf-8"))) for m in modules}
    return {module: hashlib.sha256(tree.encode()).hexdigest()[:16] for module, tree in trees.items()}


def source_of(module: str) -> str:
    """Path of a module in this project."""
    return (PACKAGE | TOOLS)[module]


def tests_of(modules: tuple[str, ...]) -> list[str]:
    """Tests of some modules; of the tools all that concern the book, its experiments and how it is run."""
    names = {name: None for module in modules for name in (module, *OTHER_TESTS.get(module, ()))}
    tests = [f"tests/test_{name}.py" for name in names]
    tests += [f"tests/{folder}" for folder in ("book", "experiments", "running") if TOOLS.keys() & set(modules)]
    return [test for test in tests if (ROOT / test).exists()]


def prepare(folder: Path, modules: tuple[str, ...]) -> None:
    """Copy what the tests need, with mutmut's settings."""
    for name in ("vaebook", "tests", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_static"))
    for name in ("requirements.txt", "README.md", "Makefile", "_toc.yml", "_config.yml"):
        shutil.copy(ROOT / name, folder)
    places = {name: path.removesuffix(".py").replace("/", ".") for name, path in TOOLS.items() if name in modules}
    own = (ROOT / "conftest.py").read_text(encoding="utf-8")
    future = "from __future__ import annotations\n"
    (folder / "conftest.py").write_text(own.replace(future, future + ALIASES.format(tools=places), 1), encoding="utf-8")
    settings = {
        "source_paths": [source_of(module) for module in modules],
        "pytest_add_cli_args_test_selection": tests_of(modules),
        "pytest_add_cli_args": ["-m", "not slow", "-k", SLOW_TESTS, "-p", "no:cacheprovider"],
        "also_copy": [path.name for path in sorted(folder.iterdir())] + ["pyproject.toml"],
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    own = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(own + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n", encoding="utf-8")


def run(folder: Path, names: tuple[str, ...] = ()) -> None:
    """Let mutmut make and test all mutants, or those named."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count() or 1), *names]
    with (folder / "log").open("ab") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        last = (folder / "log").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"mutmut failed:\n{last}")


def collect(folder: Path, modules: tuple[str, ...]) -> list[dict[str, Any]]:
    """Read what was changed in each mutant that ran, and what came of it."""
    found = []
    for module in modules:
        source = folder / "mutants" / source_of(module)
        meta = json.loads(source.with_suffix(".py.meta").read_text(encoding="utf-8"))
        tree = ast.parse(source.read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for key, code in meta["exit_code_by_key"].items():
            name = key.rsplit(".", 1)[1]
            if code is not None and name in functions:
                original = functions[f"{name.rsplit('_', 1)[0]}_orig"]
                was, now = difference(original, functions[name])
                function = re.sub("^x_?", "", name.rsplit("__mutmut_", 1)[0]).strip("ǁ").replace("ǁ", ".")
                outcome = OUTCOMES.get(code, f"exit code {code}")
                found.append(
                    {"module": module, "function": function, "was": was, "is": now, "outcome": outcome, "name": key}
                )
    return found


def difference(one: ast.FunctionDef, two: ast.FunctionDef) -> tuple[str, str]:
    """Return the lines in which two versions of a function differ."""
    lines = [[*ast.unparse(node).splitlines()[1:], f"def ({ast.unparse(node.args)})"] for node in (one, two)]
    changed = [[line.strip() for line in own if line not in other] for own, other in (lines, lines[::-1])]
    return " / ".join(changed[0]), " / ".join(changed[1])


def reason(mutant: dict[str, Any]) -> str | None:
    """Explain why a mutant survives, if it is known."""
    was, now = mutant["was"], mutant["is"]
    text = f"{mutant['module']}.{mutant['function']}: {was} -> {now}"
    if was.lower() == now.lower() and ("float('" in was or not was):
        return "the same number, written in another way"
    if now.replace("+1", "-1") == was and "+1" in now:
        return "the last axis of a matrix is axis 1"
    if now.replace("XX", "").lower() == was.lower() and (
        "raise" in was or (re.search(r"check_\w+\('\w+'", was) and now.startswith(was.split(",")[0]))
    ):
        return "the wording of a message"
    if re.search(REAL, was) and re.sub("([<>])=", r"\1", now) == re.sub("([<>])=", r"\1", was):
        return "differs only where two real numbers are exactly equal"
    return next((why for pattern, why in REASONS.items() if re.search(pattern, text)), None)


def summary(mutants: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count outcomes by module; a mutant that never ends is as dead as one that fails."""
    table = {}
    for module in dict.fromkeys(m["module"] for m in mutants):
        outcomes = [m["outcome"] for m in mutants if m["module"] == module]
        killed = sum(outcome in ("killed", "timeout") for outcome in outcomes)
        table[module] = {"mutants": len(outcomes), "killed": killed, "survived": len(outcomes) - killed}
    return table


def survivors(mutants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the mutants that no test killed, each with its reason or None."""
    alive = [m for m in mutants if m["outcome"] not in ("killed", "timeout")]
    return [{k: m[k] for k in ("module", "function", "was", "is")} | {"reason": reason(m)} for m in alive]


def main() -> int:
    """Mutate all modules and store the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="*", default=MODULES)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, tuple(options.modules))
        run(folder)
        mutants = collect(folder, tuple(options.modules))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    made = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "tool": f"mutmut {version('mutmut')}",
        "python": sys.version.split()[0],
        "digests": digests(),
    }
    result: dict[str, Any] = {"modules": {}, "survivors": []}
    if options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
    others = [s | {"reason": reason(s)} for s in result["survivors"] if s["module"] not in options.modules]
    alive = others + survivors(mutants)
    modules = result["modules"] | summary(mutants)
    result = {"provenance": made, "modules": dict(sorted(modules.items())), "survivors": alive}
    write_atomically(options.output, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    unexplained = [s for s in alive if s["reason"] is None]
    for s in unexplained:
        print(f"{s['module']}.{s['function']}\n  - {s['was']}\n  + {s['is']}")
    print(f"{result['modules']}\n{len(unexplained)} survivors without a reason")
    return 1 if unexplained else 0


if __name__ == "__main__":
    raise SystemExit(main())
