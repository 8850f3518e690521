"""Figures as drawings: execute.py stores those of lines as SVG beside their PNG, and the site shows the SVG."""

from __future__ import annotations

import re
import zlib

from nbformat import NotebookNode

SVG = "image/svg+xml"
MOST = 25_000
"""Bytes of a drawing, compressed, above which the PNG alone is stored: clouds of points."""
NUMBER = re.compile(r"(?:scale\(|opacity: )[-\d. ]*|(-?\d+\.\d{3,})")
"""What is rounded, in its group; sizes of signs and opacities stay as they are."""
LAST = "(lambda kinds: kinds.update({'image/svg+xml': kinds.pop('image/svg+xml')}))"
SETTINGS = [
    "--InlineBackend.figure_formats={'png','svg'}",
    "--InlineBackend.rc={'svg.hashsalt':'vaebook'}",
    f"--IPKernelApp.exec_lines={LAST}(get_ipython().display_formatter.formatters)",
]
"""Arguments of a kernel that shows every figure as both; without the salt every run would give other ids. The SVG is
drawn after the PNG: drawing moves the layout a little, and the PNG must be what a kernel without these shows."""


def shorten(svg: str) -> str:
    """Round coordinates to hundredths of a point, which halves the file and shows nowhere; leave out who made it."""
    short = NUMBER.sub(lambda number: f"{float(number[1]):.2f}" if number[1] else number[0], svg)
    return re.sub(r"[ \t]+$|^ *<metadata>.*?</metadata>\n", "", short, flags=re.MULTILINE | re.DOTALL)


def keep_drawings(output: NotebookNode) -> None:
    """Leave in an output the SVG of lines, and no other."""
    svg = output.get("data", {}).pop(SVG, None)
    if svg is not None:
        svg = shorten(svg)
        if "<image" not in svg and len(zlib.compress(svg.encode(), 9)) <= MOST:
            output.data[SVG] = svg
