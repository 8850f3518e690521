"""How the tests are spread over workers: one for each processor, and what takes longest first.

Loaded by `-p tests.running.parallel`, which `make` adds. A file stays with one worker, so that what it builds is built
once; of the pages in a browser each is visited by one worker. With the longest first the workers end at about the same
time. `seconds.json` holds what each took when somebody last measured it (`make slowest STORE=1`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# nbformat imports jsonschema, which reads the grammar of addresses if it can: a second in every process, for nothing.
sys.modules.setdefault("rfc3987_syntax", None)
SECONDS = Path(__file__).with_name("seconds.json")
FIRST = "tests/browser/test_site.py"  # other files wait for what it builds
PAGES = "tests/browser/test_pages.py"
MOST_WORKERS = 8  # each holds torch and what its tests allocate: about a gigabyte
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""Has glibc keep what is freed: to ask for the same pages again and again took up to a fifth of a chapter's time."""
KERNELS = Path(__file__).with_name("kernels")
"""What Python runs first in the kernels of chapters."""


def pytest_xdist_auto_num_workers() -> int:
    """As many workers as processors may be used; one is enough."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)


def unit(nodeid: str) -> str:
    """What stays with one worker: the file of a test, or of PAGES the page."""
    file = nodeid.split("::")[0]
    page = re.search(r"\[(book/[\w/]+)", nodeid) if file == PAGES else None
    return f"{file}[{page[1]}]" if page else file


class ByUnit(LoadFileScheduling):
    """Keeps together what `unit` says."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have workers and kernels keep memory, and workers write no summary: nobody sees it, and after Ctrl-C it lasts."""
    lives, worker = os.environ.pop("VAEBOOK_LIVES", None), hasattr(config, "workerinput")
    chapters = config.getoption("nbval", False)
    if chapters or not worker:
        os.environ.update(KEPT)
    else:
        for name in KEPT:  # what a test starts gets memory as readers' programs do
            os.environ.pop(name, None)
    if chapters and not worker:  # workers inherit it
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(KERNELS), *filter(None, paths)])
    if worker:
        config.pluginmanager.unregister(name="terminalreporter")
    elif lives:
        threading.Thread(target=end_with, args=(int(lives),), daemon=True).start()


def end_with(lives: int) -> None:
    """Wait for the end of `parts.py`, and take it for an interruption."""
    os.read(lives, 1)
    os.killpg(0, signal.SIGINT)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """After an interruption, end once fixtures are torn down and all is said: torch takes seconds to end."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        session.config.pluginmanager.unregister(name="hypothesispytest")  # it would be imported for its summary
    yield
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        sys.stdout.flush()
        os._exit(exitstatus)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByUnit | None:
    """Take the place of `--dist loadfile`."""
    return ByUnit(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, after those of unknown length; and let torch use one thread in each worker."""
    if "torch" in sys.modules:  # imported by the tests if they need it: two seconds saved where they do not
        sys.modules["torch"].set_num_threads(1)
    seconds = json.loads(SECONDS.read_text(encoding="utf-8"))
    items.sort(key=lambda item: (not item.nodeid.startswith(FIRST), -seconds.get(unit(item.nodeid), float("inf"))))
