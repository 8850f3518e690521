"""Does some test notice when the package is wrong? Change one operator, number or name at a time and see.

`make mutants` lets mutmut make every such mutant of the package and of the tools behind the gates, runs the tests of
each module against its mutants, and writes score and survivors to book/results/mutants.json, module by module, so that
an interrupted run goes on where it stopped: a module is done when what is stored is of its code of today and of as many
mutants. `--sample 5` tries five mutants of each module, drawn at random; `--modules weights storage` does those again.
A survivor must be explained by one of `REASONS`; a mutant that survives without a reason is a missing test.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

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
    "parts": ("adapters", "evaluation", "messages", "no_gradients"),
    "outputs": ("adapters", "messages"),
    "networks": ("models", "messages"),
    "adapters": ("messages", "no_gradients"),
    "evaluation": ("messages",),
    "diagnosis": ("messages", "no_gradients"),
    "population": ("messages", "no_gradients"),
    "memorisation": ("messages", "no_gradients"),
    "certificates": ("messages",),
    "plots": ("messages",),
    "gmm": ("priors",),
    "code_priors": ("priors",),
    "shards": ("distributed",),
    "page": ("report",),
    "gaussians": ("mixture",),
    "__main__": ("main",),
    "claims/evidence": ("claims",),
    "claims/registry": ("claims",),
    "likelihood": ("comparison",),
    "proposals": ("likelihood", "comparison"),
    "_checks": ("checks", "outputs", "messages"),
    "alone": ("book/tools",),
    "compare": ("book/compare",),
    "doors": ("doors_table",),
    "execute": ("book/tools",),
    "fingerprint": ("book/fingerprint", "book/tools"),
    "harness": ("experiments/harness",),
    "kinds": ("doors_table",),
    "links": ("book/links",),
    "new_chapter": ("book/new_chapter",),
    "pair": ("book/lab",),
    "perturb": ("book/stability",),
    "reach": ("book/fingerprint",),
    "reads": ("book/fingerprint",),
    "run": ("book/interruption",),
    "stability": ("book/stability",),
    "statements": ("book/claims_in_book",),
}
"""Modules that are tested in other files than their own: names without test_ and .py.

Tools that are not named here are tested with all that concerns the book, its experiments and how it is run.
"""
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
NAMES = """
import sys
from pathlib import Path
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

path = Path(sys.argv[1])
for name in mutate_file_contents(str(path), path.read_text(encoding="utf-8")).mutant_names:
    print(get_mutant_name(path, name))
"""
SLOW_TESTS = "not memory and not other_seeds"
OUTCOMES = {0: "survived", 1: "killed", 3: "killed", 33: "no test", 34: "skipped", 36: "timeout", -24: "timeout"}

ANYWHERE = {
    r", strict=\w+(?=\))": "the lengths are equal by construction; strict only guards later edits",
    r",? ?device=[\w.]+": "it is there already, but on a graphics card",
}
"""What may change anywhere, where nothing else does: mutmut does not see the tests that tell.

They are `tests/test_house.py`, which requires strict=True of every zip, and `tests/laws/test_second_device.py`, which
runs in a process of its own and notices most devices that are dropped, but not all: where indices of the processor
serve a card as well, nothing tells them apart.
"""
REASONS = json.loads(Path(__file__).with_name("argued.json").read_text(encoding="utf-8"))
"""Argued one by one: the whole of a survivor, `module.function: was -> is`, and why no test can tell it apart."""


def digest(module: str) -> str:
    """Digest of the syntax of a module: mutants that are stored under another one are those of other code."""
    tree = ast.dump(ast.parse((ROOT / source_of(module)).read_text(encoding="utf-8")))
    return hashlib.sha256(tree.encode()).hexdigest()[:16]


def source_of(module: str) -> str:
    """Path of a module in this project."""
    return (PACKAGE | TOOLS)[module]


def tests_of(modules: tuple[str, ...]) -> list[str]:
    """Tests of some modules."""
    names = {name: None for module in modules for name in (module, *OTHER_TESTS.get(module, ()))}
    tests = [re.sub(r"(.*/)?(.*)", r"tests/\1test_\2.py", name, count=1) for name in names]
    if (TOOLS.keys() - OTHER_TESTS.keys()) & set(modules):
        tests += [f"tests/{folder}" for folder in ("book", "experiments", "running")]
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


def names_of(folder: Path, module: str) -> list[str]:
    """Names of all mutants that mutmut makes of a module: it reads its settings from the folder in which it runs."""
    command = [sys.executable, "-c", NAMES, source_of(module)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()


def run(folder: Path, names: list[str]) -> None:
    """Let mutmut test the mutants that are named."""
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
    if was.lower() == now.lower() and ("float('" in was or not was):
        return "the same number, written in another way"
    for pattern, why in ANYWHERE.items():
        if re.sub(pattern, "", was) == re.sub(pattern, "", now):
            return why
    return REASONS.get(f"{mutant['module']}.{mutant['function']}: {was} -> {now}")


def summary(module: str, mutants: list[dict[str, Any]], made: int, seed: int | None) -> dict[str, Any]:
    """Count what came of a module's mutants; one that never ends is as dead as one that fails.

    The interval is Wilson's, at 95 %, on the share of all its mutants that its tests would kill.
    """
    tried, killed = len(mutants), sum(m["outcome"] in ("killed", "timeout") for m in mutants)
    interval = binomtest(killed, tried).proportion_ci(method="wilson")
    counts = {"made": made, "tried": tried, "killed": killed, "survived": tried - killed}
    return {"digest": digest(module), "seed": seed, **counts, "interval": [interval.low, interval.high]}


def survivors(mutants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the mutants that no test killed, each with its reason or None."""
    alive = [m for m in mutants if m["outcome"] not in ("killed", "timeout")]
    return [{k: m[k] for k in ("module", "function", "was", "is")} | {"reason": reason(m)} for m in alive]


def measure(module: str, sample: int | None, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Try all mutants of a module, or a sample of them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, (module,))
        every = names_of(folder, module)
        few = sample is not None and sample < len(every)
        run(folder, random.Random(f"{seed}/{module}").sample(every, sample) if few else every)
        mutants = collect(folder, (module,))
    return summary(module, mutants, len(every), seed if few else None), survivors(mutants)


def stored() -> dict[str, Any]:
    """What is known of the modules as they are today; what is stored of other code is left out."""
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"modules": {}, "survivors": []}
    known = {m: row for m, row in result["modules"].items() if m in MODULES and row.get("digest") == digest(m)}
    alive = [s | {"reason": reason(s)} for s in result["survivors"] if s["module"] in known]
    return {"modules": known, "survivors": alive}


def store(result: dict[str, Any]) -> None:
    """Write what is known, with what it was made by."""
    made = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "tool": f"mutmut {version('mutmut')}"}
    result = {"provenance": made | {"python": sys.version.split()[0]}} | result
    write_atomically(RESULTS, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


def main() -> int:
    """Mutate the modules, and store the result after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="*", choices=MODULES, help="these, also where the stored result is of today")
    parser.add_argument("--sample", type=int, metavar="K", help="K mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    failed = []
    for module in options.modules or MODULES:
        result = stored()
        row = result["modules"].get(module)
        if not options.modules and row and row["tried"] >= min(options.sample or row["made"], row["made"]):
            continue
        try:
            counts, alive = measure(module, options.sample, options.seed)
        except RuntimeError as error:  # the tests of one module may fail where those of the others do not
            failed.append(module)
            print(f"{module}: {error}", flush=True)
            continue
        result = stored()
        rest = [s for s in result["survivors"] if s["module"] != module]
        store({"modules": dict(sorted((result["modules"] | {module: counts}).items())), "survivors": rest + alive})
        print(f"{module}: {counts['killed']} of {counts['tried']} killed ({counts['made']} made)", flush=True)
        for s in alive:
            print(f"  {s['function']}: {s['reason'] or 'NO REASON'}\n  - {s['was']}\n  + {s['is']}", flush=True)
    unexplained = [s for s in stored()["survivors"] if s["reason"] is None]
    print(f"{len(unexplained)} survivors without a reason; not measured, since mutmut failed: {failed}")
    return 1 if unexplained or failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
