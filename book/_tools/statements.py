"""The numbered statements of the chapters, collected in book/results/statements.json for the ledger of claims.

A statement is written once, in its chapter. `make execute` collects them, and a test fails where the file is outdated.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from fingerprint import ROOT, chapters

from vaebook.storage import write_atomically

STATEMENT = re.compile(r"^:::\{prf:(?!proof)\w+\} *([^\n]*)\n:label: (\S+)\n(.*?)^:::$", re.MULTILINE | re.DOTALL)
LABELLED = re.compile(r"^( *\$\$) \(\S+\)$", re.MULTILINE)


def statements(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Title, chapter and text of every statement, under its label; without labels of formulas, which must be unique."""
    found = {}
    for md in chapters(root):
        chapter = md.relative_to(root / "book").with_suffix("").as_posix()
        for title, label, text in STATEMENT.findall(md.read_text(encoding="utf-8")):
            found[label] = {"title": title, "chapter": chapter, "statement": LABELLED.sub(r"\1", text).strip()}
    return found


def as_json(found: dict[str, dict[str, str]]) -> str:
    """Write the statements as the file holds them."""
    return json.dumps(dict(sorted(found.items())), indent=2, ensure_ascii=False) + "\n"


def collect(root: Path = ROOT) -> None:
    """Bring the file up to date."""
    file, found = root / "book" / "results" / "statements.json", statements(root)
    if found and (not file.exists() or file.read_text(encoding="utf-8") != as_json(found)):
        write_atomically(file, as_json(found).encode())
