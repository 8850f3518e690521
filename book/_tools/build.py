"""Build the site from the stored outputs, strictly and without executing anything."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from fingerprint import ROOT, chapters, why_stale
from links import dead_links

STRICT = ["-W", "--keep-going", "-n"]


def build(output: Path, *, builder: str = "html", root: Path = ROOT) -> int:
    """Build into output/_build/BUILDER; every warning and every dead link is an error. Returns the exit status."""
    # Always from nothing: an incremental build does not repeat the warnings of pages that did not change.
    shutil.rmtree(output / "_build" / builder, ignore_errors=True)
    shutil.rmtree(output / "_build" / ".doctrees", ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", root, "--path-output", output, "--builder", builder, "--all", "--quiet", *STRICT]
    status = subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, check=False).returncode
    dead = dead_links(output / "_build" / builder) if builder == "html" and not status else []
    for link in dead:
        print(f"dead link: {link}", file=sys.stderr)
    return status or min(len(dead), 1)


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
