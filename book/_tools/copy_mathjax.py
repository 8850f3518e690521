"""Copy MathJax from its pip package into the site's static files, so that formulas need no network.

Copied are the one script, its fonts, and the parts that write MathML beside each formula for screen readers.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "_static" / "mathjax"
PARTS = ["tex-chtml.js", "a11y/assistive-mml.js", "output/chtml/fonts/woff-v2"]


def main() -> None:
    """Replace the copy."""
    package = find_spec("mathjax")
    if package is None or package.origin is None:
        sys.exit("django-static-mathjax is not installed; `make clean` and `make book` set everything up afresh.")
    source = Path(package.origin).parent / "static" / "mathjax"
    shutil.rmtree(TARGET, ignore_errors=True)
    for part in PARTS:
        (TARGET / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / "es5" / part).is_dir() else shutil.copyfile
        copy(source / "es5" / part, TARGET / part)
    shutil.copyfile(source / "LICENSE", TARGET / "LICENSE")


if __name__ == "__main__":
    main()
