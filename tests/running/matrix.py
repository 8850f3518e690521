"""Run unit tests, doctests and chapters under several versions of Python, and print a table of what came of it.

    python tests/running/matrix.py python3.11 python3.12 python3.13

makes an environment for each in _build/matrix, from the lock. What the runs print is in _build/matrix/NAME.log. The
exit status is 1 where something failed, or where no interpreter was found.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "_build" / "matrix"
PYTEST = ["-m", "pytest", "-q", "-p", "tests.running.parallel", "-n", "auto", "--dist", "loadfile"]
PYTEST += ["--no-loadscope-reorder"]
CHECKS = {  # the browser shows the same pages whatever Python built them
    "code tests": ["tests", "-m", "not slow", "--ignore", "tests/browser"],
    "doctests": ["--doctest-modules", "vaebook"],
    "chapters": ["--nbval", "--nbval-current-env", "book"],
}
COLUMNS = ["python", "environment", *CHECKS, "time"]
VERSION = "import sys; print('%d.%d.%d' % sys.version_info[:3])"


@dataclass
class Row:
    """What came of one interpreter."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def run(self, column: str, command: list[str]) -> bool:
        """Run a command, add what it prints to the log, and note the counts of its last line, or that line."""
        print(f"{self.name}: {column}", flush=True)
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        with (FOLDER / f"{self.name}.log").open("a", encoding="utf-8") as log:
            log.write(f"======== {column} ========\n{done.stdout}\n")
        last = (done.stdout.splitlines() or [""])[-1]
        counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)\b", last))
        if done.returncode:
            self.failed = True
            counts = f"FAILED: {counts or f'exit status {done.returncode} {last}'.strip()}"
        self.cells[column] = counts or "ok"
        return done.returncode == 0


def version(python: str) -> str | None:
    """Version of an interpreter, or None if it cannot be run."""
    try:
        done = subprocess.run([python, "-c", VERSION], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def check(python: str, row: Row) -> None:
    """Fill the row of an interpreter."""
    start, found = time.monotonic(), version(python)
    if found is None:
        row.cells["environment"] = "no such interpreter"
        return
    row.name = f"python{found}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{row.name}.log").unlink(missing_ok=True)
    own = FOLDER / row.name
    made = ["env", f"PYTHON={python}", "sh", "book/_tools/setup.sh", str(own.relative_to(ROOT))]
    if row.run("environment", made):
        for column, arguments in CHECKS.items():
            row.run(column, [str(own / "bin" / "python"), *PYTEST, *arguments])
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    row.cells["time"] = f"{minutes} min {seconds} s"


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    lines = [COLUMNS, *([{"python": row.name, **row.cells}.get(column, "") for column in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(" | ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(pythons: list[str]) -> int:
    """Check each interpreter; an interruption leaves the rows that are done."""
    rows: list[Row] = []
    try:
        for python in pythons:
            rows.append(Row(python))
            check(python, rows[-1])
    except KeyboardInterrupt:
        rows[-1].cells["time"], rows[-1].failed = "interrupted", True
    print(f"\n{table(rows)}")
    ran = any("time" in row.cells for row in rows)
    return 1 if not ran or any(row.failed for row in rows) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a request to end is an interruption
    sys.exit(main(sys.argv[1:]))
