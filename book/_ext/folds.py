"""Proofs and checks fold behind one line; without scripts and on paper they are open.

The page holds them open, and book.js closes them: who reads without scripts misses nothing. The line of a check says
its outcome, with both sides and their names, taken from the table that it unfolds to.
"""

from __future__ import annotations

import re
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator
from sphinx_proof.nodes import proof_node

SIGN = re.compile(" ([=≤≥]) ")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Fold(nodes.General, nodes.Element):
    """What unfolds from one line, its attribute ``summary``."""


def visit_fold(self: HTML5Translator, node: Fold) -> None:
    """Open the fold, with its line."""
    self.body.append(f'<details class="fold" open="open"><summary>{escape(node["summary"])}</summary>\n')


def depart_fold(self: HTML5Translator, node: Fold) -> None:
    """End the fold."""
    self.body.append("</details>\n")


def outcome(cell: nodes.container) -> str | None:
    """Say what came of a check, from the table in its output; None for a cell that is not a check."""
    table = next(cell.findall(nodes.table), None)
    title = next((p.astext() for p in cell.findall(nodes.paragraph) if p.astext().startswith("Check of ")), None)
    if table is None or title is None:
        return None
    unit = re.search(r"off by in (standard errors|tolerances)", title)[1]
    claim, falsehood, *rest = (
        [entry.astext() for entry in row.findall(nodes.entry)] for body in table.findall(nodes.tbody) for row in body
    )
    this, sign, that = SIGN.split(claim[1])
    # Sides may have no names: a claim may give none, and stale evidence is of a time before they had any.
    left, _, right = SIGN.split(claim[0].removeprefix("claim: ")) if SIGN.search(claim[0]) else ("the claim", sign, "")
    # A claim that holds to a tolerance is off by less than one.
    off, of = (f", off by {claim[2]} {unit}", "") if unit == "standard errors" else ("", f" {unit}")
    near = f"; {rest[0][-1].replace(' rejected', '')} neighbours rejected" if rest else ""
    return powers(
        f"Check {claim[-1]}: {left} {this} {sign} {right} {that}{off}; "
        f"the falsehood is {falsehood[-1]}, off by {falsehood[2]}{of}{near}"
    )


def powers(text: str) -> str:
    """Write numbers such as 2.0e-5 with powers of ten."""
    return re.sub(r"(?<=\d)e(-?\d+)", lambda power: f"·10{power[1].translate(RAISED)}", text)


def fold(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put every proof, and every check with the code that is shown right after it, into a fold of its own."""
    for proof in list(doctree.findall(proof_node)):
        proof.replace_self(Fold("", proof.deepcopy(), summary="Proof"))
    for cell in list(doctree.findall(nodes.container)):
        summary = outcome(cell) if "cell" in cell.get("classes", []) else None
        if summary is None:
            continue
        place = cell.parent.index(cell)
        code = [
            node for node in cell.parent[place + 1 : place + 2] if node.astext().startswith("The code of this check")
        ]
        wrapped = Fold("", summary=summary)
        cell.parent[place : place + 1 + len(code)] = [wrapped]
        wrapped.extend([cell, *code])


def setup(app: Sphinx) -> dict[str, bool]:
    """Fold when all nodes are what they will be; html is also the format of the single page."""
    app.add_node(Fold, html=(visit_fold, depart_fold))
    app.connect("doctree-resolved", fold, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
