"""The gates can fail: ways to spoil a real chapter, each of which one of them rejects.

No chapter is run here: that the stored outputs come out is tested by nbval, and what nbval rejects by test_nbval.py.
"""

import re
import shutil

import evidence
import gates
import nbformat
import pytest
from build import build
from compare import Output
from fingerprint import ROOT, as_md, chapters, digest, read_ipynb, read_md

CHAPTER = "mixture/index"
CHAPTERS = {md.relative_to(ROOT / "book").with_suffix("").as_posix(): md for md in chapters()}


@pytest.fixture
def spoilt(tmp_path):
    """A function that edits the cells of one or both files of a copy of the chapter, and returns the copy's .md."""
    md = tmp_path / "book" / f"{CHAPTER}.md"
    md.parent.mkdir(parents=True)
    for suffix in (".md", ".ipynb"):
        shutil.copy(ROOT / "book" / f"{CHAPTER}{suffix}", md.with_suffix(suffix))

    def rewrite(edit, files="md ipynb"):
        if "md" in files.split():
            notebook = read_md(md)
            edit(notebook.cells)
            md.write_text(as_md(notebook), encoding="utf-8")
        if "ipynb" in files.split():
            notebook = read_ipynb(md.with_suffix(".ipynb"))
            edit(notebook.cells)
            nbformat.write(notebook, md.with_suffix(".ipynb"))
        return md

    return rewrite


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def shown_in(chapter):
    cells = code(read_ipynb(ROOT / "book" / f"{chapter}.ipynb").cells)
    return "\n".join(map(gates.shown_text, cells))


def of_text(cells, text):
    return next(cell for cell in cells if text in cell.source)


def all_gates(md):
    notebook = read_ipynb(md.with_suffix(".ipynb"))
    found = {"pairing": gates.pairing(md), "stored_outputs": gates.stored_outputs(md.with_suffix(".ipynb"))}
    found |= {gate.__name__: gate(notebook) for gate in (gates.hidden, gates.silent, gates.alt_texts, gates.typed)}
    found |= {"digest": digest(notebook) != notebook.metadata["vaebook"]["digest"]}
    return {name for name, problems in (found | {"unproved": evidence.unproved(notebook)}).items() if problems}


def test_unspoilt_copy_passes_and_survives_being_rewritten(spoilt):
    assert all_gates(spoilt(lambda cells: None)) == set()


def add_tag(cells):
    code(cells)[1].metadata["tags"] = ["nbval-skip"]


def add_comment(cells):
    code(cells)[1].source = f"# NBVAL_IGNORE_OUTPUT\n{code(cells)[1].source}"


def edit_text(cells):
    cells[0].source += "\n\nOne more sentence."


def edit_code(cells):
    code(cells)[1].source += "\nprint(1)"


def comment_out_the_claim(cells):
    of_text(cells, 'verify("index/joint")').source = '# verify("index/joint")\nNone'


def exchange_the_claim(cells):
    of_text(cells, 'verify("index/joint")').source = 'verify("index/unseen")  # verify("index/joint")'


def drop_alt(cells):
    next(cell for cell in code(cells) if "image" in cell.metadata.get("mystnb", {})).metadata["mystnb"].pop("image")


def drop_output(cells):
    for cell in code(cells):
        if "plt.show()" in cell.source and "outputs" in cell:
            cell.outputs = []


def compute_without_showing(cells):
    cell = next(cell for cell in code(cells) if "\ntable(" in f"\n{cell.source}")
    cell.source = f"\n{cell.source}".replace("\ntable(", "\nstr(").strip()
    if "outputs" in cell:
        cell.outputs = []


def hide_output(cells):
    code(cells)[1].metadata["mystnb"] = {"remove_code_outputs": True}


def type_the_result(cells):
    cell = next(c for c in code(cells) if c.source.startswith("table(") or "\ntable(" in c.source)
    number = re.search(r"\d+\.\d{3}\b", shown_in(CHAPTER))[0]
    cell.source += f"\nprint({number!r})"


def swap_signs(cells):
    """Of a drawing: the last two kinds of signs, as another legend or another digit would."""
    data = next(o.data for c in code(cells) for o in c.outputs if "image/svg+xml" in o.get("data", {}))
    one, two = sorted(set(re.findall(r'href="#(DejaVuSans-\w+)"', data["image/svg+xml"])))[-2:]
    data["image/svg+xml"] = data["image/svg+xml"].replace(f'href="#{one}"', f'href="#{two}"')


def nudge_number(cells):
    data = next(
        o.data for c in code(cells) for o in c.outputs if re.search(r"\d\.\d{3}\b", o.data.get("text/markdown", ""))
    )
    for kind in ("text/markdown", "text/plain"):
        data[kind] = re.sub(r"(\d\.\d\d)(\d)\b", lambda m: m[1] + str((int(m[2]) + 1) % 10), data[kind], count=1)


def shift_red(cells):
    data = next(o.data for c in code(cells) for o in c.outputs if "image/png" in o.get("data", {}))
    data["image/png"] = data["image/png"][:-8] + "AAAAAAA="


@pytest.mark.parametrize(
    ("edit", "files", "gate"),
    [
        (hide_output, "md ipynb", "hidden"),
        (type_the_result, "md ipynb", "typed"),
        (swap_signs, "ipynb", "digest"),
        (nudge_number, "ipynb", "digest"),
        (shift_red, "ipynb", "digest"),
        (add_tag, "ipynb", "pairing"),
        (edit_text, "md", "pairing"),
        (edit_text, "ipynb", "pairing"),
        (edit_code, "md", "pairing"),
        (add_tag, "md ipynb", "hidden"),
        (add_comment, "md ipynb", "hidden"),
        (comment_out_the_claim, "md ipynb", "unproved"),
        (exchange_the_claim, "md ipynb", "unproved"),
        (drop_alt, "md ipynb", "alt_texts"),
        (drop_output, "md ipynb", "stored_outputs"),
        (compute_without_showing, "md ipynb", "silent"),
    ],
)
def test_spoilt_copy_is_rejected(spoilt, edit, files, gate):
    assert gate in all_gates(spoilt(edit, files))


def numbers_changed(text):
    """The text with one number changed after the other: the last digit of an integer, 2 % (or 0.1) of a decimal."""
    for match in re.finditer(r"(?<![\w.])(?<!e[-+])\d+(?:\.\d+)?(?![\w.])", text):
        whole, _, decimals = match.group().partition(".")
        if decimals:
            new = f"{float(match.group()) * 1.02 or 0.1:.{len(decimals) + 2}f}"
        else:
            new = whole[:-1] + str((int(whole[-1]) + 1) % 10)
        yield match.group(), text[: match.start()] + new + text[match.end() :]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_number_that_a_chapter_shows_is_compared(chapter):
    shown = [gates.shown_text(cell) for cell in code(read_ipynb(CHAPTERS[chapter].with_suffix(".ipynb")).cells)]
    for line in "\n".join(filter(None, shown)).splitlines():  # of which the comparison looks at each by itself
        for number, changed in numbers_changed(line):
            assert Output(line, "a") != changed, number


def test_build_rejects_broken_references_and_dead_links(tmp_path, capfd):
    """A book of one page with a link of each kind that leads nowhere."""
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static", ignore=shutil.ignore_patterns("mathjax"))
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/other\n")
    good = "# A page\n\n(a-place)=\n## A place\n\n{cite:p}`kingma2014auto`, [there](other.md) and {ref}`a-place`.\n"
    intro = tmp_path / "book" / "intro.md"
    (tmp_path / "book" / "other.md").write_text("# Another page\n\n```{bibliography}\n```\n")
    intro.write_text(f"{good}\nSee {{prf:ref}}`index/no-such-claim`.\n")
    assert build(tmp_path, root=tmp_path) != 0
    assert "index/no-such-claim" in capfd.readouterr().err
    intro.write_text(f'{good}\n<a href="other.html#nowhere">a</a> <a href="gone.html">b</a> <a href="#a-place">c</a>\n')
    assert build(tmp_path, root=tmp_path) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "link" in line or "WARNING" in line]
    assert said == ["dead link: book/intro.html: gone.html", "dead link: book/intro.html: other.html#nowhere"]
