"""Make the site's MathJax from its pip package, so that formulas need no network: one script and its fonts.

The script holds what the book uses: TeX with AMS, output in HTML, and MathML beside each formula for screen
readers. The packages' own combined script is twice as long: its menu, and what loads further files as needed.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from vaebook.storage import write_atomically

FONTS = "output/chtml/fonts/woff-v2"
PARTS = {  # the names by which MathJax knows its parts, and where they lie
    "startup": "startup",
    "core": "core",
    "input/tex-base": "input/tex-base",
    "[tex]/ams": "input/tex/extensions/ams",
    "[tex]/newcommand": "input/tex/extensions/newcommand",
    "[tex]/configmacros": "input/tex/extensions/configmacros",
    "output/chtml": "output/chtml",
    "output/chtml/fonts/tex": "output/chtml/fonts/tex",
    "a11y/assistive-mml": "a11y/assistive-mml",
}


def copy_mathjax(root: Path) -> None:
    """Put MathJax among the static files of a tree, unless it is there and newer than this file."""
    target = root / "book" / "_static" / "mathjax"
    script = target / "mathjax.js"
    if script.exists() and script.stat().st_mtime > Path(__file__).stat().st_mtime:
        return
    package = find_spec("mathjax")
    if package is None or package.origin is None:
        sys.exit("django-static-mathjax is not installed; `make clean` and `make book` set everything up afresh.")
    source = Path(package.origin).parent / "static" / "mathjax"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copytree(source / "es5" / FONTS, target / FONTS)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    scripts = [(source / "es5" / f"{path}.js").read_text(encoding="utf-8") for path in PARTS.values()]
    # It starts when all of this has run, and must not fetch what is here.
    packages = ["base", *(name.removeprefix("[tex]/") for name in PARTS if name.startswith("[tex]/"))]
    scripts.append(f'MathJax.loader.preLoad("loader", ...{json.dumps(list(PARTS))});')
    scripts.append(f"MathJax.config.tex.packages = {json.dumps(packages)};")
    write_atomically(script, "\n".join(scripts).encode())
