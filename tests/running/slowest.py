"""List the tests that took longest in the last run of each part, and the files; --store keeps their seconds.

The seconds are those of the reports in _build/junit. In what order the tests run next time follows from what is stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from vaebook.storage import write_atomically

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.running.parallel import unit  # noqa: E402

REPORTS = ROOT / "_build" / "junit"
SECONDS = Path(__file__).with_name("seconds.json")


def took() -> dict[tuple[str, str], float]:
    """Seconds of each test of the last runs, by file and name."""
    paths = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("vaebook/**/*.py"), *ROOT.glob("book/**/*.ipynb")]
    named = {path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", "."): path for path in paths}
    seconds = {}
    for report in sorted(REPORTS.glob("*.xml")):
        for case in ElementTree.parse(report).iter("testcase"):
            parts = (case.get("classname") or "").split(".")  # a run that was killed leaves one without
            names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            path = next((named[name] for name in names if name in named), None)
            if path is not None:
                seconds[path.relative_to(ROOT).as_posix(), case.get("name")] = float(case.get("time"))
    return seconds


def main() -> int:
    """Print both lists, or store the files' seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="keep what each file took, in seconds.json")
    parser.add_argument("--tests", type=int, default=30, help="how many tests are listed")
    options = parser.parse_args()
    tests = Counter(took())
    if not tests:
        print("Nothing was measured yet; run make test first.")
        return 1
    files = Counter()
    for (path, name), seconds in tests.items():
        files[unit(f"{path}::{name}")] += seconds
    for (path, name), seconds in tests.most_common(options.tests):
        print(f"{seconds:7.1f} s  {path}::{name}")
    print(f"{sum(tests.values()):7.1f} s  in {len(tests)} tests; by file:")
    for path, seconds in files.most_common(options.tests):
        print(f"{seconds:7.1f} s  {path}")
    if options.store:
        rounded = {path: round(seconds, 1) for path, seconds in sorted(files.items())}
        write_atomically(SECONDS, (json.dumps(rounded, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
