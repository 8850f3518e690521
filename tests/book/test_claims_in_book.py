"""Registry, chapters and ledger name the same claims: each proved where its entry says, with its check right below."""

import re

import pytest
from fingerprint import ROOT, is_chapter, read_ipynb

from vaebook.claims import ledger

CHAPTERS = {str(md.relative_to(ROOT / "book").with_suffix("")): md for md in ROOT.glob("book/*/*.md") if is_chapter(md)}
STATEMENT = re.compile(r"^:::\{prf:(?!proof)\w+\}[^\n]*\n:label: (\S+)", re.MULTILINE)
CLAIMS = ledger()


def text(chapter):
    return CHAPTERS[chapter].read_text(encoding="utf-8")


def test_statements_of_the_chapters_are_the_claims_of_the_registry():
    stated = {label: chapter for chapter in CHAPTERS for label in STATEMENT.findall(text(chapter))}
    assert stated == {claim.id: claim.section for claim in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_proof_and_check_follow_the_statement(claim):
    after = text(claim.section).split(f":label: {claim.id}\n", 1)[1]
    own = re.split(r"^:::\{prf:(?!proof)", after, maxsplit=1, flags=re.MULTILINE)[0]
    assert ":::{prf:proof}" in own, "no proof before the next statement"
    assert f'verify("{claim.id}")' in own, "no check before the next statement"


def test_ledger_shows_every_claim_once():
    cells = read_ipynb(ROOT / "book" / "appendix" / "claims.ipynb").cells
    shown = [o["data"]["text/markdown"] for c in cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    rows = re.findall(r"^\| (\S+/\S+) \|", shown[0], re.MULTILINE)
    assert rows == [claim.id for claim in CLAIMS]
    assert re.findall(r"^\*\*`(\S+)`\*\*", shown[-1], re.MULTILINE) == rows


def test_every_statement_of_the_introduction_that_is_proved_names_its_claims():
    table = (ROOT / "book" / "intro.md").read_text(encoding="utf-8").split("| the statement |")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 10
    known = {claim.id for claim in CLAIMS}
    for row in rows:
        named = set(re.findall(r"\{prf:ref\}`([^`]+)`", row))
        assert named <= known
        assert named or "to come" in row, row
