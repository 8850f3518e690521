"""The gates on a chapter: each takes what it checks and returns the problems that it found, as sentences."""

import ast
import json
import re
from decimal import Decimal
from pathlib import Path

from fingerprint import inputs, read_ipynb, read_md

MAX_LINES, MAX_CELL_LINES, MAX_WIDTH = 120, 18, 90
MAX_DIGITS = 6
DISPLAYS = {"plt.show()": "image/png", "verify(": "text/markdown", "table(": "text/markdown"}
FLOAT = re.compile(r"(?<![\w.])(\d+\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?")
SOURCED = re.compile(r"(\S*(?:\s%)?)\s*<!--\s*([\w/-]+\.json):(\S+?)\s*-->")
NUMBER = re.compile(r"[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?$")


def pairing(md: Path) -> list[str]:
    """.md and .ipynb hold the same cells: type, source, tags and other metadata."""
    ipynb = md.with_suffix(".ipynb")
    if not ipynb.exists():
        return [f"{md.name} has no {ipynb.name}; run make execute"]
    written, stored = read_md(md), read_ipynb(ipynb)
    problems = []
    if written.metadata.get("kernelspec") != stored.metadata.get("kernelspec"):
        problems.append("the two files name different kernels")
    pairs = list(zip(inputs(written), inputs(stored), strict=False))
    if len(written.cells) != len(stored.cells):
        problems.append(f"{len(written.cells)} cells in the .md, {len(stored.cells)} in the .ipynb")
    for number, (left, right) in enumerate(pairs, start=1):
        differs = [key for key in left if left[key] != right[key]]
        if differs:
            shown = f"{left[differs[0]]!r} / {right[differs[0]]!r}"
            problems.append(f"cell {number} differs in {', '.join(differs)}: {shown}")
    return problems


def stored_outputs(ipynb: Path) -> list[str]:
    """All code cells were run once, in order, without errors and warnings, and what they displayed is there."""
    problems = []
    code = [cell for cell in read_ipynb(ipynb).cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        if cell.execution_count != number:
            problems.append(f"code cell {number} has execution count {cell.execution_count}")
        kinds = {output.output_type for output in cell.outputs}
        if "error" in kinds:
            problems.append(f"code cell {number} stores an error")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            problems.append(f"code cell {number} stores text from stderr")
        mimes = {mime for output in cell.outputs for mime in output.get("data", {})}
        lines = cell.source.strip().splitlines() or [""]
        for call, mime in DISPLAYS.items():
            if lines[-1].startswith(call) and mime not in mimes:
                problems.append(f"code cell {number} ends in {call} but stores no {mime}")
        if "print(" in cell.source and "stream" not in kinds:
            problems.append(f"code cell {number} prints but stores no text")
    return problems


def code_size(sources: list[str]) -> list[str]:
    """Chapters are thin: few lines, short ones, no classes, no functions of more than one statement."""
    problems, total = [], 0
    for number, source in enumerate(sources, start=1):
        lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        total += len(lines)
        if not lines:
            problems.append(f"code cell {number} is empty")
        if len(lines) > MAX_CELL_LINES:
            problems.append(f"code cell {number} has {len(lines)} lines of code, more than {MAX_CELL_LINES}")
        if max(map(len, source.splitlines()), default=0) > MAX_WIDTH:
            problems.append(f"code cell {number} has a line of more than {MAX_WIDTH} characters: readers must scroll")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                problems.append(f"code cell {number} defines the class {node.name}")
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                problems.append(f"code cell {number} defines the function {node.name}")
    if total > MAX_LINES:
        problems.append(f"{total} lines of code, more than {MAX_LINES}")
    return problems


def unrounded(ipynb: Path) -> list[str]:
    """No output shows a float with more digits than anyone should read."""
    problems = []
    code = [cell for cell in read_ipynb(ipynb).cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        for output in cell.outputs:
            data = output.get("data", {"text/plain": output.get("text", "")})
            text = "\n".join(data[mime] for mime in ("text/plain", "text/markdown", "text/html") if mime in data)
            problems += [f"code cell {number} shows {digits}" for digits in FLOAT.findall(text) if _long(digits)]
    return problems


def prose_numbers(text: str, results: Path) -> list[str]:
    """A number followed by <!-- file.json:key.path --> is that number, at the rounding at which it is typed."""
    problems = []
    for typed, file, path in SOURCED.findall(text):
        shown = NUMBER.search(typed.rstrip("$%*|\\ \u00a0\u202f"))
        if shown is None:
            problems.append(f"no number before <!-- {file}:{path} -->")
            continue
        try:
            value = _look_up(json.loads((results / file).read_text()), path)
        except (OSError, KeyError, IndexError, ValueError) as error:
            problems.append(f"{file}:{path} cannot be read: {error!r}")
            continue
        number = Decimal(shown.group().replace("−", "-").replace(",", ""))
        exact = Decimal(repr(value)) * (100 if "%" in typed else 1)
        half_a_unit = Decimal(5).scaleb(number.as_tuple().exponent - 1)
        if abs(number - exact) > half_a_unit:
            problems.append(f"{shown.group()} is typed where {file}:{path} is {value}")
    return problems


def _long(digits: str) -> bool:
    return len(digits.replace(".", "").lstrip("0")) > MAX_DIGITS


def _look_up(data: object, path: str) -> float:
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise ValueError(f"not a number: {data!r}")
    return data
