"""Lay out a chapter with a claim, an experiment and its test, and enter it in every list that must name it.

`make new-chapter NAME=practice/toy` writes book/practice/toy.md, vaebook/claims/toy.py, book/experiments/toy.py and
tests/experiments/test_toy_results.py, and enters the chapter behind the last one of its folder in the table of
contents, in the introduction's map, in README's table and among the claims. All of it works as it is laid.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from alone import alone
from build import uninterrupted

from vaebook.storage import write_atomically

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).resolve().parent / "new"
NEXT = """laid out {name}. Now:
  make experiments ONLY={module}
  make execute
  make test CHAPTER={name}
and put your own in the place of what is there."""


def lay(name: str, title: str, root: Path = ROOT) -> list[Path]:
    """Write the files of a new chapter and the lines that name it; nothing is written if anything is in the way.

    What one that was killed has written is not in the way: it is what would be written.

    Raises:
        ValueError: the name is no folder/chapter of lower-case letters, digits and hyphens, it has no neighbour, or
            something of it is there already.
    """
    if not re.fullmatch(r"[a-z]+/[a-z][a-z0-9-]*", name):
        raise ValueError(f"NAME: expected folder/chapter, such as practice/toy, got {name!r}")
    folder, stem = name.split("/")
    module = stem.replace("-", "_")
    files = {
        root / "book" / f"{name}.md": "chapter.md.in",
        root / "vaebook" / "claims" / f"{module}.py": "claims.py.in",
        root / "book" / "experiments" / f"{module}.py": "experiment.py.in",
        root / "tests" / "experiments" / f"test_{module}_results.py": "test.py.in",
    }
    toc = (root / "_toc.yml").read_text(encoding="utf-8")
    before = [other for other in re.findall(rf"book/({folder}/[\w-]+)\.ipynb", toc) if other != name]
    if not before:
        raise ValueError(f"NAME: expected a folder that has chapters, got {folder!r}")
    keys = {"NAME": name, "STEM": stem, "MODULE": module, "PREFIX": stem.replace("-", ""), "TITLE": title}
    texts = {}
    for file, template in files.items():
        texts[file] = (TEMPLATES / template).read_text(encoding="utf-8")
        for key, value in keys.items():
            texts[file] = texts[file].replace(f"@{key}@", value)
        if file.exists() and file.read_text(encoding="utf-8") != texts[file]:
            raise ValueError(f"NAME: expected one that is free, got {name!r}, but {file.relative_to(root)} is there")
    texts |= _entries(root, before[-1], name, module, title)
    with uninterrupted():
        for file, text in texts.items():
            write_atomically(file, text.encode())
    return list(texts)


def _entries(root: Path, before: str, name: str, module: str, title: str) -> dict[Path, str]:
    """Return the files that list chapters, with the new one behind another where it is not there yet."""
    toc, readme, intro = f"book/{name}.ipynb", f"](book/{name}.ipynb)", f"\n{{doc}}`{name}`\n"
    imported = f"from vaebook.claims import {module}\n"
    behind = {
        "_toc.yml": (toc, rf"( *- file: book/){before}\.ipynb\n", rf"\g<0>\g<1>{name}.ipynb\n"),
        "README.md": (
            readme,
            rf"\|[^|\n]*\| \[[^\]]+\]\(book/{before}\.ipynb\).*\n",
            rf"\g<0>| | [{title}{readme} | … |\n",
        ),
        "book/intro.md": (intro, rf"\{{doc\}}`{before}`\n: .*\n", rf"\g<0>{intro}: …\n"),
        "vaebook/claims/__init__.py": (imported, r"\n# isort: on\n", rf"{imported}\g<0>"),
    }
    found = {}
    for file, (new, pattern, replacement) in behind.items():
        text = found[root / file] = (root / file).read_text(encoding="utf-8")
        if new in text:
            continue
        found[root / file], count = re.subn(pattern, replacement, text)
        if count != 1:
            raise ValueError(f"{file}: expected one line to put the chapter behind, got {count}")
    claims = root / "vaebook/claims/__init__.py"
    names = sorted({*re.findall(r'^    "(\w+)",$', found[claims], re.MULTILINE), module}, key=_as_ruff_sorts)
    listed = "".join(f'    "{entry}",\n' for entry in names)
    found[claims] = re.sub(r"(?<=__all__ = \[\n)[^\]]*(?=\])", listed, found[claims])
    return found


def _as_ruff_sorts(name: str) -> tuple[bool, str]:
    return name[0].islower(), name


def main() -> int:
    """Lay out what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="folder/chapter, such as practice/toy")
    parser.add_argument("--title", help="the chapter's title; by default its name")
    options = parser.parse_args()
    stem = options.name.rpartition("/")[2]
    try:
        with alone(ROOT):
            written = lay(options.name, options.title or stem.replace("-", " ").capitalize())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(str(path.relative_to(ROOT)) for path in written))
    print(NEXT.format(name=options.name, module=stem.replace("-", "_")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
