"""How the tests are spread over workers: one for each processor, and the files that take longest first.

Loaded by `-p tests.running.parallel`, which `make` adds. A file stays with one worker, so that what it builds is built
once; with the longest first the workers end at about the same time. `seconds.json` holds what each file took when
somebody last measured it (`make slowest STORE=1`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

# nbformat imports jsonschema, which reads the grammar of addresses if it can: a second in every process, for nothing.
sys.modules.setdefault("rfc3987_syntax", None)
SECONDS = Path(__file__).with_name("seconds.json")
MOST_WORKERS = 8  # each holds torch and what its tests allocate: about a gigabyte


def pytest_xdist_auto_num_workers() -> int:
    """As many workers as processors may be used; one is enough."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, those of unknown length before all; and let torch use one thread in each worker."""
    if "torch" in sys.modules:  # imported by the tests if they need it: two seconds saved where they do not
        sys.modules["torch"].set_num_threads(1)
    seconds = json.loads(SECONDS.read_text(encoding="utf-8"))
    items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], float("inf")))
