"""Print the whole book to one PDF: a single HTML page, then headless Chromium. No TeX is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from build import build
from fingerprint import ROOT

from vaebook.storage import write_atomically

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def find_browser() -> str | None:
    """Path of the first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def printable(html: Path) -> Path:
    """Write the single page where its links, which start at the root of the site, find what they name."""
    root = "book/intro.html"
    page = html / "print.html"
    page.write_text((html / root).read_text(encoding="utf-8").replace(f'href="{root}#', 'href="#'), encoding="utf-8")
    return page


def main() -> int:
    """Build the page and print it."""
    browser = find_browser()
    if browser is None:
        sys.exit("make pdf needs Chromium or Chrome, and found neither (Debian, Ubuntu: apt install chromium).")
    if build(ROOT, builder="singlehtml"):
        sys.exit("The build failed: see the warnings above.")
    page, target = printable(ROOT / "_build" / "singlehtml"), ROOT / "_build" / "book.pdf"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=20000"]
    with tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch) / "book.pdf"
        command = [browser, *flags, f"--print-to-pdf={printed}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not printed.exists():
            sys.exit(f"{browser} wrote no PDF:\n{done.stderr}")
        write_atomically(target, printed.read_bytes())
    print(f"Open {target.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
