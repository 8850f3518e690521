"""Registry, chapters and ledger name the same claims, and each check compares two different things."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import SkipTest

import evidence
import pytest
import torch
from fingerprint import ROOT, is_chapter, read_ipynb
from nbformat import v4
from statements import as_json, collect, statements

from vaebook.claims import Evidence, Measurement, ledger

CHAPTERS = {str(md.relative_to(ROOT / "book").with_suffix("")): md for md in ROOT.glob("book/*/*.md") if is_chapter(md)}
CLAIMS = ledger()
SAME_BITS = {
    "agg/diffusion": "Its last entries are a limit: one responsibility is 1 and the others underflow to 0, so that the "
    "denoiser returns a datum, and is compared with the datum found by its distance.",
}
"""Claims of which some entries, never all, are the same bits on both sides, and why that is no self-comparison."""


def test_statements_of_the_chapters_are_the_claims_of_the_registry():
    notebooks = {chapter: read_ipynb(md.with_suffix(".ipynb")) for chapter, md in CHAPTERS.items()}
    stated = {label: chapter for chapter, notebook in notebooks.items() for label in evidence.labels(notebook)}
    assert stated == {claim.id: claim.section for claim in CLAIMS}


def test_the_ledger_says_what_the_chapters_say():
    stored = (ROOT / "book" / "results" / "statements.json").read_text(encoding="utf-8")
    assert stored == as_json(statements()), "`make execute` renews it, and the ledger"


def test_an_edited_statement_is_noticed(tmp_path):
    shutil.copytree(ROOT / "book" / "mixture", tmp_path / "book" / "mixture")
    md = tmp_path / "book" / "mixture" / "index.md"
    assert statements(tmp_path)["index/joint"] == statements()["index/joint"]
    text = md.read_text(encoding="utf-8")
    for old, new in (
        ("occurs $m$ times is $m/N$", "occurs $m$ times is $m$"),
        ("} The sum over data", "} A sum over data"),
    ):
        assert text.count(old) == 1
        md.write_text(text.replace(old, new), encoding="utf-8")
        assert statements(tmp_path)["index/joint"] != statements()["index/joint"]


THEOREMS = """\
---
kernelspec: {name: python3}
---

:::{prf:theorem} A title, of course
:label: b/one

Let it be.

  $$
  x
  $$ (its-label)
:::

:::{prf:proof}
:label: b/proof

No statement.
:::

:::{prf:lemma}
:label: a/two
The other.
:::
"""


def test_statements_have_their_titles_chapters_and_texts_and_proofs_are_none(tmp_path):
    (tmp_path / "book" / "part").mkdir(parents=True)
    (tmp_path / "book" / "results").mkdir()
    (tmp_path / "book" / "part" / "chapter.md").write_text(THEOREMS)
    assert statements(tmp_path) == {
        "b/one": {
            "title": "A title, of course",
            "chapter": "part/chapter",
            "statement": "Let it be.\n\n  $$\n  x\n  $$",
        },
        "a/two": {"title": "", "chapter": "part/chapter", "statement": "The other."},
    }
    file = tmp_path / "book" / "results" / "statements.json"
    for old in (None, "{}\n"):
        if old is not None:
            file.write_text(old)
        collect(tmp_path)
        assert file.read_text() == as_json(statements(tmp_path)) and list(json.loads(file.read_text())) == [
            "a/two",
            "b/one",
        ]
    before = file.stat().st_ino
    collect(tmp_path)
    assert file.stat().st_ino == before  # what has not changed is not written
    (tmp_path / "book" / "part" / "chapter.md").write_text("nothing")
    collect(tmp_path)
    assert file.stat().st_ino == before  # nor is it emptied


def test_statements_are_read_and_written_as_utf_8_on_every_system(tmp_path, monkeypatch):
    """What a letter becomes is not left to the system, nor to JSON's escapes."""
    page, file = tmp_path / "book" / "a.md", tmp_path / "book" / "results" / "statements.json"
    file.parent.mkdir(parents=True)
    page.write_bytes(THEOREMS.replace("A title", "Ein Maß").encode())
    file.write_bytes(b"{}")
    whole, asked = Path.read_text, []
    monkeypatch.setattr(Path, "read_text", lambda path, encoding=None: asked.append(encoding) or whole(path, encoding))
    collect(tmp_path)
    assert {str(encoding).lower() for encoding in asked} == {"utf-8"}
    assert '\n  "b/one": {\n    "title": "Ein Maß, of course",\n' in file.read_bytes().decode()


def ran(claim, seed):
    """What the check has found; one that skips its own test has found nothing."""
    try:
        return Evidence(claim, seed, claim.check(torch.Generator().manual_seed(seed)))
    except (pytest.skip.Exception, SkipTest):
        pytest.fail(f"{claim.id} skips itself")


@pytest.mark.parametrize("skip", [pytest.skip, SkipTest])
def test_a_check_that_skips_itself_fails(skip):
    def check(generator):
        raise SkipTest if skip is SkipTest else skip.Exception

    with pytest.raises(pytest.fail.Exception, match="skips itself"):
        ran(replace(CLAIMS[0], check=check), 0)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_no_claim_compares_a_number_with_itself(claim):
    evidence_of = cache(lambda seed: ran(claim, seed))
    problems = evidence.compares_with_itself(evidence_of)
    if claim.id in SAME_BITS:
        assert problems and problems[0][0].isdigit(), f"{claim.id} needs no exception"
        problems = []
    assert problems + evidence.derived(claim.check) + evidence.loose(evidence_of(0)) == []


def test_ledger_shows_every_claim_once():
    cells = read_ipynb(ROOT / "book" / "appendix" / "claims.ipynb").cells
    shown = [o["data"]["text/markdown"] for c in cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    rows = re.findall(r"^\| (\S+/\S+) \|", shown[0], re.MULTILINE)
    assert rows == [claim.id for claim in CLAIMS]
    assert re.findall(r"^\*\*`(\S+)`\*\*", shown[-1], re.MULTILINE) == rows


# The gates themselves, on claims and chapters that are wrong.


def honest(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    total, mean = x.sum(), x.mean()
    return Measurement(lhs=total, rhs=5 * mean, falsehood_rhs=mean, tolerance=1e-10)


def itself(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    return Measurement(lhs=x, rhs=x, falsehood_rhs=x + 1, tolerance=1e-10)


def a_copy(generator):
    total = torch.rand(5, generator=generator, dtype=torch.float64).sum()
    other = total.clone()
    return Measurement(total, other, falsehood_rhs=total + 1, stderr=1e-10)


def nearly_itself(generator):
    total = torch.rand(5, generator=generator, dtype=torch.float64).sum()
    other = total + 1e-13
    return Measurement(lhs=total, rhs=other, falsehood_rhs=total + 1, tolerance=1e-10)


def there_and_back(generator):
    total = torch.rand(5, generator=generator, dtype=torch.float64).sum()
    return Measurement(lhs=total.exp().log(), rhs=total, falsehood_rhs=total + 1, tolerance=1e-10)


def difference_of_itself(generator):
    total = torch.rand(5, generator=generator, dtype=torch.float64).sum()
    return Measurement(lhs=total - total, rhs=0.0, falsehood_lhs=total, falsehood_rhs=0.0, tolerance=1e-10)


def one_entry(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    lhs, rhs = [x.sum()], [5 * x.mean()]
    lhs.append(x[0])
    rhs.append(x[0])
    return Measurement(torch.stack(lhs), torch.stack(rhs), falsehood_rhs=torch.stack(rhs) + 1, tolerance=1e-10)


def a_count(generator):
    count = float((torch.rand(9, generator=generator) > 0.5).sum())
    return Measurement(lhs=count, rhs=count, falsehood_rhs=count + 1, tolerance=1e-10)


def at_most_itself(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    return Measurement(lhs=x, rhs=x, falsehood_rhs=x - 1, relation="<=", tolerance=1e-10)


def itself_in_zeros(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    return Measurement(lhs=x, rhs=torch.zeros_like(x) + x, falsehood_rhs=x + 1, tolerance=1e-10)


def two_constants(generator):
    return Measurement(lhs=1.0, rhs=1.0 + 1e-13, falsehood_rhs=2.0, tolerance=1e-10)


def guarded(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    try:
        total = 5 * x.mean()
    except RuntimeError:
        total = x.sum()
    return Measurement(lhs=x.sum(), rhs=total, falsehood_rhs=total + 1, tolerance=1e-10)


def left_early(generator):
    x = torch.rand(5, generator=generator, dtype=torch.float64)
    if len(x) == 5:
        return Measurement(lhs=x.sum(), rhs=5 * x.mean(), falsehood_rhs=x.sum() + 1, tolerance=1e-10)
    return Measurement(lhs=x.sum(), rhs=4 * x.mean(), falsehood_rhs=x.sum() + 1, tolerance=1e-10)


def never_reached(generator):
    x, rhs = torch.rand(5, generator=generator, dtype=torch.float64), 0.0
    if not 0:
        rhs = 5 * x.mean()
    return Measurement(lhs=x.sum(), rhs=rhs, falsehood_rhs=rhs + 1, tolerance=1e-10)


BAD = [
    two_constants,
    guarded,
    left_early,
    never_reached,
    itself,
    a_copy,
    nearly_itself,
    there_and_back,
    difference_of_itself,
    one_entry,
    a_count,
    at_most_itself,
]
BAD += [itself_in_zeros]


def problems_of(check):
    def evidence_of(seed):
        return Evidence(CLAIMS[0], seed, check(torch.Generator().manual_seed(seed)))

    assert evidence_of(0).holds  # nothing else would notice
    assert evidence_of(0).falsehood_rejected
    return evidence.compares_with_itself(evidence_of) + evidence.derived(check)


def zero_of_the_same_shape(generator):
    x = torch.rand(50, generator=generator, dtype=torch.float64)
    slope = torch.stack([(x - x.mean()).sum(), (x / x.sum()).sum() - 1])
    return Measurement(
        lhs=slope, rhs=torch.zeros_like(slope), falsehood_lhs=slope + 1, falsehood_rhs=0.0, tolerance=1e-10
    )


@pytest.mark.parametrize("check", [honest, zero_of_the_same_shape])
def test_an_honest_check_passes(check):
    assert problems_of(check) == []


@pytest.mark.parametrize("check", BAD, ids=lambda check: check.__name__)
def test_a_self_comparison_is_noticed(check):
    assert problems_of(check) != []


def with_allowance(tolerance, falsehood, error=1e-13):
    m = Measurement(lhs=2.0, rhs=2.0 + error, falsehood_rhs=falsehood, tolerance=tolerance)
    return evidence.loose(Evidence(CLAIMS[0], 0, m))


@pytest.mark.parametrize("fitting", [(1e-10, 3.0), (1e-7, 3.0), (1e-4, 3.0, 5e-5), (2e-7, 3.0, 1e-9), (1e-10, 150.0)])
def test_a_fitting_allowance_passes(fitting):
    assert with_allowance(*fitting) == []


@pytest.mark.parametrize(
    "unfit",
    [(1e-3, 3.0), (1e-3, 3.0, 1e-9), (2e-7, 3.0, 1e-10), (1e-10, 2 + 1e-6), (10.0, 1e9), (1e-10, 1e9), (1e-10, -300.0)],
)
def test_a_wide_tolerance_or_a_distant_falsehood_is_noticed(unfit):
    assert with_allowance(*unfit) != []


@pytest.mark.parametrize(("kind", "fits"), [("MC", True), ("empirical", True), ("exact", False), ("bound", False)])
def test_an_allowance_of_another_kind_than_the_claim_is_noticed(kind, fits):
    for m, same in (
        (Measurement(2.0, 2.0, 3.0, stderr=0.1), fits),
        (Measurement(2.0, 2.0, 3.0, tolerance=1e-9), not fits),
    ):
        assert (evidence.loose(Evidence(replace(CLAIMS[0], kind=kind), 0, m)) == []) is same


GOOD = """\
**Check of `a/one`** (exact)

| | must hold | verdict |
|---|---|---|
| claim | 1 = 1 | holds |
| falsehood | 1 = 2 | rejected |
"""
STATED = ":::{prf:theorem} One\n:label: a/one\n\nOne is one.\n:::\n"
PROVED = f"{STATED}\n:::{{prf:proof}}\nSubtract one from both sides: what is left is nought on either side.\n:::\n"


def chapter(text=PROVED, code='verify("a/one")', shown=GOOD, after=()):
    data = {"text/markdown": shown, "text/plain": "a/one"}
    cell = v4.new_code_cell(code, outputs=[v4.new_output("execute_result", data=data)] if shown else [])
    return v4.new_notebook(cells=[v4.new_markdown_cell(text), cell, *after])


def chapter_of(label):
    return chapter(code=f'verify("{label}")', shown=GOOD.replace("a/one", label)).cells[1:]


def test_a_statement_with_proof_and_evidence_passes():
    assert evidence.unproved(chapter()) == []
    second = v4.new_markdown_cell(PROVED.replace("a/one", "a/two").replace("Subtract one", "Subtract two"))
    assert evidence.unproved(chapter(after=[second, *chapter_of("a/two")])) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"text": STATED},
        {"text": f"{STATED}\n:::{{prf:proof}}\nClear.\n:::\n\n{'Many words follow, of which none proves it. ' * 3}"},
        {"text": PROVED + "\n:::{prf:theorem} Two\n\nTwo is one.\n:::\n"},
        {"text": PROVED + "\n```{prf:theorem} Two\n:label: a/two\n\nTwo is one.\n```\n"},
        {"text": PROVED + "\n::::{prf:lemma} Two\n:label: a/two\n\nTwo is one.\n::::\n"},
        {"text": f"{STATED}\n```text\n{PROVED.removeprefix(STATED)}```\n"},
        {"text": f"```text\n{STATED}```\n{PROVED.removeprefix(STATED)}", "after": [v4.new_markdown_cell(STATED)]},
        {"text": PROVED, "after": [v4.new_markdown_cell(PROVED.replace("a/one", "a/two")), *chapter_of("a/two")]},
        {"code": '# verify("a/one")'},
        {"code": "print(\"verify('a/one')\")"},
        {"code": '"""\nverify("a/one")\n"""'},
        {"code": 'verify("a/two")  # verify("a/one")'},
        {"code": 'evidence = verify("a/one")'},
        {"code": 'verify("a/one")\nx = 1'},
        {"code": 'if False:\n    verify("a/one")'},
        {"code": 'verify("a/one").holds'},
        {"code": 'lambda: verify("a/one")'},
        {"code": 'check("a/one")'},
        {"code": 'verify("a/one", seed=7)'},
        {"shown": ""},
        {"shown": GOOD.replace("a/one", "a/two")},
        {"shown": GOOD.replace("| holds |", "| FAILS |")},
        {"shown": GOOD.replace("| rejected |", "| NOT REJECTED |")},
        {"text": PROVED + STATED.replace("a/one", "a/two")},
        {"text": "Nothing.", "after": [v4.new_markdown_cell(PROVED)]},
        {"code": "x = 1", "shown": "", "after": [v4.new_markdown_cell('Run `verify("a/one")` yourself.')]},
    ],
    ids=lambda changed: str(next(iter(changed.values())))[:30],
)
def test_a_statement_without_them_is_noticed(changed):
    assert evidence.unproved(chapter(**changed)) != []
