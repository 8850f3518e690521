"""Print the whole book to one PDF: a single HTML page, then headless Chromium. No TeX is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys

from build import build
from fingerprint import ROOT

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def main() -> int:
    """Build the page and print it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("make pdf needs Chromium or Chrome, and found neither (Debian, Ubuntu: apt install chromium).")
    if build(ROOT, builder="singlehtml"):
        sys.exit("The build failed: see the warnings above.")
    page, target = ROOT / "_build" / "singlehtml" / "book" / "intro.html", ROOT / "_build" / "book.pdf"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=20000"]
    target.unlink(missing_ok=True)
    command = [browser, *flags, f"--print-to-pdf={target}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not target.exists():
        sys.exit(f"{browser} wrote no PDF:\n{done.stderr}")
    print(f"Open {target.as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
