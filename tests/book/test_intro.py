"""The introduction: every verdict on the thread is the one that was reached, and the map shows every chapter."""

import re

import prose
import pytest
import yaml
from fingerprint import ROOT
from test_toc import files

from vaebook.claims import ledger

INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOC = files(yaml.safe_load((ROOT / "_toc.yml").read_text()))
CHAPTERS = {page.removeprefix("book/").removesuffix(".ipynb"): page for page in TOC if page.endswith(".ipynb")}
LISTS = {
    "the introduction's map": (INTRO.split("\n## The map\n")[-1], r"^(?:\*\*.*\*\* )?\{doc\}`([\w/-]+)`$"),
    "README's table": (
        README.split("\n## The chapters\n")[-1].split("\n## ")[0],
        r"\]\(book/([\w/-]+)\.(?:md|ipynb)\)",
    ),
}

POPULATION = {"aggregated/surgery", "aggregated/population"}
VERDICTS = [  # who said it, a word of the statement, the verdict, and the chapters whose claims it rests on
    ("Question", "frac1N", "false as a conditional, true as a joint", {"mixture/index"}),
    ("Answer 1", "adds nothing", "true", {"mixture/index"}),
    ("Answer 1", "aggregated posterior", "true", {"mixture/index"}),
    ("Answer 1", "sample from", "the reason is true; as a density, it depends", {"aggregated/sampling"}),
    ("Answer 1", "as close as it can", "true of the population at the ideal optimum, else it depends", POPULATION),
    ("Answer 1", "VampPrior", "true, with limits", {"aggregated/priors"}),
    ("Answer 1", "for every", "true, with limits", {"continuous/generative", "continuous/npmle"}),
    ("Answer 1", "too complicated", "true in practice", {"continuous/generative"}),
    ("Answer 2", "number of data", "false as a count", {"mixture/index"}),
    ("Answer 2", "particles", "false as a mixture", {"mixture/dimensions"}),
    ("Answer 2", "mean and a variance", "true of the coordinates of one component", {"mixture/dimensions"}),
    ("Answer 2", "embedding", "true of $q_\\mathrm{agg}$, by construction", {"mixture/index"}),
    ("Comment", "number of data", "right to doubt", {"mixture/dimensions"}),
]


def rows(intro):
    """Who, statement, verdict and reason of each row of the table; an empty first cell repeats the one above."""
    table = intro.split("| the statement |")[1].split("\n## ")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 4 and "---" not in line:
            who = cells[0].lstrip("| ").strip("*") or found[-1][0]
            found.append((who, *cells[1:]))
    return found


def wrong_verdicts(intro):
    section = {claim.id: claim.section for claim in ledger()}
    found, problems = rows(intro), []
    if len(found) != len(VERDICTS):
        return [f"{len(found)} rows, expected {len(VERDICTS)}"]
    for (who, statement, verdict, reason), (said_by, word, expected, chapters) in zip(found, VERDICTS, strict=True):
        if who != said_by or word not in statement:
            problems.append(f"expected {word!r} of {said_by}, got {statement!r} of {who}")
        if verdict != expected:
            problems.append(f"{statement!r} is {expected!r}, not {verdict!r}")
        named = re.findall(r"\{prf:ref\}`([^`]+)`", reason)
        if not chapters <= {section.get(label) for label in named}:
            problems.append(f"{statement!r} names no claim of {chapters}")
    return problems


def test_verdicts():
    assert wrong_verdicts(INTRO) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| true | even more so", "| false | even more so"),
        ("| true, with limits | a substitute", "| true | a substitute"),
        ("| false as a count |", "| true as a count |"),
        ("({prf:ref}`dims/product`, {prf:ref}`dims/information-adds`, {prf:ref}`gen/diagonal-cost`)", ""),
        ("| **Comment** |", "| **Answer 1** |"),
        ("| right to doubt |", "| wrong |"),
    ],
)
def test_a_changed_verdict_is_noticed(old, new):
    assert INTRO.count(old) == 1
    assert wrong_verdicts(INTRO.replace(old, new)) != []


def test_a_missing_row_is_noticed():
    line = next(line for line in INTRO.splitlines() if "particles" in line)
    assert wrong_verdicts(INTRO.replace(f"{line}\n", "")) != []


@pytest.mark.parametrize("name", LISTS)
def test_every_chapter_is_listed(name):
    listing, link = LISTS[name]
    assert prose.unlisted(CHAPTERS, listing, re.compile(link, re.MULTILINE)) == []


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_missing_chapter_is_noticed(name, chapter):
    listing, link = LISTS[name]
    kept = "\n".join(line for line in listing.splitlines() if chapter not in line)
    assert prose.unlisted(CHAPTERS, kept, re.compile(link, re.MULTILINE)) == [f"{chapter} is missing"]


def test_readme_calls_chapters_by_their_titles():
    for page in CHAPTERS:
        title = re.search(r"^# (.+)$", (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
        name = re.search(rf"\[([^\]]+)\]\(book/{page}\.ipynb\)", README)[1]
        assert name == title
