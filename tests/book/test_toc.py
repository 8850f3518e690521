"""The table of contents and the folder say the same."""

import re

import pytest
import yaml
from fingerprint import ROOT, chapters

BOOK = ROOT / "book"


def files(entry):
    """All pages of a table of contents, depth first."""
    if isinstance(entry, list):
        return [page for item in entry for page in files(item)]
    here = [entry[key] for key in ("root", "file") if key in entry]
    return here + [page for key in ("parts", "chapters", "sections") for page in files(entry.get(key, []))]


PAGES = files(yaml.safe_load((ROOT / "_toc.yml").read_text()))
CHAPTERS = {md.with_suffix(".ipynb").relative_to(ROOT).as_posix() for md in chapters()}


def test_every_page_exists_and_stands_once():
    assert len(PAGES) == len(set(PAGES))
    paths = [ROOT / (page if page.endswith(".ipynb") else f"{page}.md") for page in PAGES]
    assert [str(path) for path in paths if not path.exists()] == []


def test_chapters_are_listed_as_notebooks_and_prose_is_not():
    assert {page for page in PAGES if page.endswith(".ipynb")} == CHAPTERS


def test_every_page_in_the_folder_is_listed():
    pages = (md for md in BOOK.rglob("*.md") if md.parent.name[0] not in "._")
    written = {md.relative_to(ROOT).with_suffix("").as_posix() for md in pages}
    listed = {page.removesuffix(".ipynb") for page in PAGES}
    assert written - listed == set()


def test_every_notebook_belongs_to_a_chapter():
    notebooks = {path.relative_to(ROOT).as_posix() for path in BOOK.rglob("*.ipynb") if "checkpoint" not in str(path)}
    assert notebooks == CHAPTERS


def test_page_names_have_no_underscore():
    assert [page for page in PAGES if "_" in page] == []


def test_every_entry_of_the_bibliography_is_cited():
    entries = set(re.findall(r"^@\w+\{([\w-]+),", (BOOK / "references.bib").read_text(), re.MULTILINE))
    text = "".join(md.read_text(encoding="utf-8") for md in BOOK.rglob("*.md"))
    cited = {key.strip() for keys in re.findall(r"\{cite:?[a-z]*\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited == entries


def misnamed(bibliography):
    """Entries whose key is not the surname of the first author, the year, and a word of the title."""
    found = []
    for entry in re.split(r"\n(?=@)", bibliography)[1:]:
        key = re.match(r"@\w+\{([\w-]+),", entry)[1]
        author, year, title = (
            re.sub(r"\\.|[^\w ,-]", "", re.search(rf"^  {name} = (.+)$", entry, re.MULTILINE)[1]).lower()
            for name in ("author", "year", "title")
        )
        surname, told, word = re.fullmatch(r"([a-z]+?)(\d{4})(\w*)", key).groups()
        if not (
            author.partition(",")[0].replace(" ", "").startswith(surname) and year.startswith(told) and word in title
        ):
            found.append(key)
    return found


BIBLIOGRAPHY = (BOOK / "references.bib").read_text(encoding="utf-8")


def test_keys_of_the_bibliography_agree_with_its_entries():
    assert misnamed(BIBLIOGRAPHY) == ["question463223"]  # on which nobody's name stands


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  year = {2006},", "  year = {2009},"),
        ("author = {Burda, Yuri and Grosse, Roger", "author = {Grosse, Roger and Burda, Yuri"),
        ("title = {Resampled Priors for", "title = {Learned Priors for"),
    ],
)
def test_a_changed_entry_of_the_bibliography_is_noticed(old, new):
    assert old in BIBLIOGRAPHY
    assert len(misnamed(BIBLIOGRAPHY.replace(old, new, 1))) == 2
