"""Interactive figures: a page with a picture from _static/figures loads the script of the same name.

In a chapter such a figure is an ordinary one, `{figure} ../_static/figures/NAME.svg` with `figclass: interactive NAME`:
the static picture stands on paper and wherever scripts do not run, and NAME.js takes its place elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

FOLDER = "book/_static/figures"
SHARED = ("core.js", "gaussians.js")


def scripts(names: list[str], folder: Path) -> list[str]:
    """Files that the figures of these names need, in the order in which they must load."""
    own = [f"{name}{kind}" for name in names for kind in (".data.js", ".js")]
    return [name for name in (*SHARED, *own) if (folder / name).exists()]


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Add to a page the scripts of its interactive figures, and nothing to any other page."""
    if doctree is None or app.builder.name != "html":
        return
    # The writer has put other addresses into "uri" by now.
    paths = [Path(path) for image in doctree.findall(nodes.image) for path in image.get("candidates", {}).values()]
    names = [path.stem for path in paths if path.parent.as_posix() == FOLDER]
    if names:
        app.add_css_file("figures/figures.css")
        for name in scripts(names, Path(app.srcdir, FOLDER)):
            app.add_js_file(f"figures/{name}", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the one listener."""
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
