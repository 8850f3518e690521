"""Build the site from the stored outputs, strictly and without executing anything."""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alone import alone
from copy_mathjax import copy_mathjax
from fingerprint import ROOT, chapters, why_stale
from links import dead_links

STRICT = ["-W", "--keep-going", "-n"]
MAKING = ".making-"
"""Begins the name of the folder in which a site is built; one that failed leaves the site that was there."""
DISK = re.compile(r"\[Errno \d+\] (No space left on device|Disk quota exceeded|File too large|Read-only file system).*")


def build(output: Path, *, builder: str = "html", root: Path = ROOT) -> int:
    """Build into output/_build/BUILDER; every warning and every dead link is an error. Returns the exit status."""
    made = output / "_build"
    made.mkdir(parents=True, exist_ok=True)
    with alone(made) as lock:
        for left in made.glob(f"{MAKING}*"):  # by builds that were killed
            shutil.rmtree(left, ignore_errors=True)
        copy_mathjax(root)
        # Always from nothing: an incremental build does not repeat the warnings of pages that did not change.
        scratch = Path(tempfile.mkdtemp(dir=made, prefix=MAKING))
        try:
            new = scratch / "_build" / builder
            status = _make(root, scratch, builder, lock)
            dead = dead_links(new) if builder == "html" and not status else []
            for link in dead:
                print(f"dead link: {link}", file=sys.stderr)
            if not status and not dead:
                with uninterrupted():
                    if (made / builder).exists():
                        (made / builder).rename(scratch / "old")
                    new.rename(made / builder)
        finally:
            with uninterrupted():
                shutil.rmtree(scratch, ignore_errors=True)
    return status or min(len(dead), 1)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let an interruption wait: between two sites there would be none, and half of a folder would stay."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make(root: Path, scratch: Path, builder: str, lock: tuple[int, ...]) -> int:
    """Let jupyter-book build; of a disk that is full or cannot be written to, only that is said."""
    # As addresses.py does; this folder must not be on its path, where _ext has modules of the same names. To look for
    # garbage among the trees of all pages takes a quarter of the time, and frees a quarter of a gigabyte at most.
    start = "import gc, sys; gc.disable(); sys.modules['rfc3987_syntax'] = None; "
    start += "from jupyter_book.cli.main import main; main()"
    jupyter_book = [sys.executable, "-c", start]
    options = ["--path-output", str(scratch), "--builder", builder, "--all", "--quiet", *STRICT]
    command = [*jupyter_book, "build", str(root), *options]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # In a session of its own it does not hear of an interruption, on which it would write pages of its own.
    done = subprocess.run(command, check=False, start_new_session=True, pass_fds=lock, **streams)
    outside = done.returncode and DISK.search(done.stderr)
    print(outside.group() if outside else done.stderr, file=sys.stderr, end="\n" if outside else "")
    return done.returncode


def main() -> int:
    """Build, name what is stale, and say where to look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT, help="folder that gets _build/")
    parser.add_argument("--builder", default="html", choices=["html", "singlehtml"])
    options = parser.parse_args()
    output = options.output.resolve()
    status = build(output, builder=options.builder)
    stale = [(md.relative_to(ROOT), why) for md in chapters() if (why := why_stale(md))]
    for md, why in stale:
        print(f"stale: {md} ({why})")
    if stale:
        print("Stored outputs of stale chapters may be out of date; `make execute` renews them.")
    if status:
        print("The build failed: see the warnings above.", file=sys.stderr)
    else:
        print(f"Open {(output / '_build' / options.builder / 'index.html').as_uri()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
