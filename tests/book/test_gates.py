"""Each gate accepts a good example and rejects bad ones."""

import copy
import json

import evidence
import gates
import nbformat
import prose
import pytest
from execute import finish
from fingerprint import ROOT, as_md, read_md
from nbformat import v4

ALT = "Two curves that cross near the middle; the left one is higher at first."
HEADER = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@pytest.fixture
def chapter(tmp_path):
    """A small chapter with its executed twin: text, a print and a picture."""
    cells = [
        v4.new_markdown_cell("# A title\n\nText."),
        v4.new_code_cell("print(0.5)", metadata={"tags": ["hide-input"]}),
        v4.new_code_cell("plt.show()", metadata={"mystnb": {"image": {"alt": ALT}}}),
    ]
    md = tmp_path / "toy.md"
    md.write_text(as_md(v4.new_notebook(cells=cells, metadata=copy.deepcopy(HEADER))))
    notebook = read_md(md)
    notebook.cells[1].outputs = [v4.new_output("stream", name="stdout", text="0.5\n")]
    notebook.cells[2].outputs = [v4.new_output("display_data", data={"image/png": "AAAA", "text/plain": "<Figure>"})]
    for count, cell in enumerate(notebook.cells[1:], start=1):
        cell.execution_count = count
    finish(notebook, {"fingerprint": "", "source": ""})
    nbformat.write(notebook, md.with_suffix(".ipynb"))
    return md


def change(md, edit):
    notebook = nbformat.read(md.with_suffix(".ipynb"), as_version=4)
    edit(notebook.cells)
    nbformat.write(notebook, md.with_suffix(".ipynb"))


def test_good_chapter_passes(chapter):
    assert gates.pairing(chapter) == []
    assert gates.stored_outputs(chapter.with_suffix(".ipynb")) == []
    assert gates.unrounded(chapter.with_suffix(".ipynb")) == []
    for gate in (gates.hidden, gates.silent, gates.alt_texts, gates.typed):
        assert gate(nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)) == []


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda cells: cells[0].update(source="# Another title\n\nText."), "cell 1 differs in source"),
        (lambda cells: cells[1].update(source="print(0.6)"), "cell 2 differs in source"),
        (lambda cells: cells[1].metadata.update(tags=[]), "cell 2 differs in metadata"),
        (lambda cells: cells[2].metadata.update(tags=["nbval-skip"]), "cell 3 differs in metadata"),
        (lambda cells: cells.pop(), "3 cells in the .md, 2 in the .ipynb"),
    ],
)
def test_pairing_rejects(chapter, edit, words):
    change(chapter, edit)
    assert any(words in problem for problem in gates.pairing(chapter))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: python3", "name: julia", "a kernel other than python3"),
        ("format_version: 0.13", "format_version: 0.12", "not written as JupyterLab writes it"),
    ],
)
def test_pairing_rejects_another_header_or_layout(chapter, old, new, words):
    text = chapter.read_text()
    assert old in text
    chapter.write_text(text.replace(old, new))
    assert any(words in problem for problem in gates.pairing(chapter))


def test_pairing_rejects_a_missing_notebook(chapter):
    chapter.with_suffix(".ipynb").unlink()
    assert "has no toy.ipynb" in gates.pairing(chapter)[0]


ERROR = v4.new_output("error", ename="E", evalue="", traceback=[])
WIDGET = "application/vnd.jupyter.widget-view+json"
DRAWING = v4.new_output("display_data", data={"image/svg+xml": "<svg/>", "text/plain": "0.5"})


def data(cell, kind):
    cell.outputs[0]["data"][kind] = {} if kind.endswith("json") else "0.7"


STDERR = v4.new_output("stream", name="stderr", text="warning")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda cells: cells[1].update(execution_count=None), "code cell 1 has execution count None"),
        (lambda cells: cells[2].update(execution_count=1), "code cell 2 has execution count 1"),
        (lambda cells: cells[1].update(outputs=[]), "code cell 1 prints but stores no text"),
        (lambda cells: cells[2].update(outputs=[]), "code cell 2 ends in plt.show() but stores no image/png"),
        (lambda cells: cells[1].outputs.append(ERROR), "code cell 1 stores an error"),
        (lambda cells: cells[1].outputs.append(STDERR), "code cell 1 stores text from stderr"),
        (lambda cells: data(cells[2], "text/html"), "code cell 2 stores text/html, which nothing compares"),
        (lambda cells: data(cells[2], "text/latex"), "code cell 2 stores text/latex, which nothing compares"),
        (lambda cells: data(cells[2], WIDGET), f"code cell 2 stores {WIDGET}, which nothing compares"),
        (lambda cells: cells[1].update(outputs=[DRAWING]), "code cell 1 stores image/svg+xml, which nothing compares"),
        (lambda cells: cells[2].update(outputs=[]), "code cell 2 describes a picture but stores none"),
        (lambda cells: cells[1].outputs[0].update(text="0.6\r0.5\n"), "code cell 1 shows the sign '\\r'"),
        (lambda cells: cells[1].outputs[0].update(text="0.\u200b5\n"), "code cell 1 shows the sign ZERO WIDTH SPACE"),
        (lambda cells: cells[2].outputs[0].update(metadata={"a": 1}), "code cell 2 stores an output with metadata"),
    ],
)
def test_stored_outputs_rejects(chapter, edit, words):
    change(chapter, edit)
    assert words in gates.stored_outputs(chapter.with_suffix(".ipynb"))


@pytest.mark.parametrize(
    ("shown", "accepted"),
    [
        ("0.1235", True),
        ("0.000123456", True),
        ("1297000", True),
        ("version 1.26.43210987", True),
        ("123456.0", False),
        ("3.14159265", False),
        ("1.2345678e-05", False),
        ("tensor([0.12345678])", False),
    ],
)
def test_unrounded(chapter, shown, accepted):
    change(chapter, lambda cells: cells[1].outputs[0].update(text=shown))
    assert (gates.unrounded(chapter.with_suffix(".ipynb")) == []) == accepted


def test_code_size():
    assert gates.code_size(["x = 1\n\n# a comment\ny = lambda t: t\n", "def f(t):\n    return t"]) == []
    assert gates.code_size(["x = 1\n" * 19]) == ["code cell 1 has 19 lines of code, more than 18"]
    assert gates.code_size(["x = 1\n" * 18] * 7) == ["126 lines of code, more than 120"]
    assert gates.code_size(["class A:\n    pass"]) == ["code cell 1 defines the class A"]
    assert gates.code_size(["def f():\n    x = 1\n    return x"]) == ["code cell 1 defines the function f"]
    assert "more than 90 characters" in gates.code_size([f"x = {'1' * 90}"])[0]
    assert gates.code_size(["# only a comment"]) == ["code cell 1 is empty"]


@pytest.fixture
def results(tmp_path):
    data = {"32": {"q_agg": 26.7249, "share": 0.4321, "runs": [1.5, -20.0]}, "n": 1297}
    (tmp_path / "ppca.json").write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "no number at all, `<!-- a comment in code -->`, $a<b$ and $x\\to y$",
        "26.72<!-- ppca.json:32.q_agg --> nats, or 26.7 <!-- ppca.json:32.q_agg -->",
        "$26.72$<!-- ppca.json:32.q_agg -->, **27**<!-- ppca.json:32.q_agg -->",
        "43 %<!-- ppca.json:32.share -->, 43.2%<!-- ppca.json:32.share -->",
        "−20.0<!-- ppca.json:32.runs.1 -->, 1,297<!-- ppca.json:n -->, 1.30e3<!-- ppca.json:n -->",
        "| 8 |26.72<!-- ppca.json:32.q_agg -->|",
        "1.50–26.72<!-- ppca.json:32.q_agg -->, and 27<!-- ppca.json:32.q_agg --> of 9",
    ],
)
def test_prose_numbers_accepts(text, results):
    assert prose.sources(text, results) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("26.73<!-- ppca.json:32.q_agg -->", "26.73 is typed where ppca.json:32.q_agg is 26.7249"),
        ("26.720<!-- ppca.json:32.q_agg -->", "26.720 is typed"),
        ("20.0<!-- ppca.json:32.runs.1 -->", "20.0 is typed"),
        ("44 %<!-- ppca.json:32.share -->", "44 is typed"),
        ("26.72<!-- ppca.json:33.q_agg -->", "cannot be read"),
        ("26.72<!-- other.json:32.q_agg -->", "cannot be read"),
        ("26.72<!-- ppca.json:32 -->", "cannot be read"),
        ("1.5<!-- ppca.json:32.runs.7 -->", "cannot be read"),
        ("nats<!-- ppca.json:32.q_agg -->", "no number before"),
        ("27.1<!-- ppca.json:32.q_agg->", "names no source"),
        ("27.1<!-- ppca.json:32.q_agg", "names no source"),
        ("27.1<! -- ppca.json:32.q_agg -->", "names no source"),
        ("27.1<!- ppca.json:32.q_agg -->", "names no source"),
        ("27.1<-- ppca.json:32.q_agg -->", "names no source"),
        ("27.1&lt;!-- ppca:32.q_agg", "names no source"),
        ("27.1<!-- ppca.jsn:32.q_agg -->", "names no source"),
        ("27.1<!-- ppca.json 32.q_agg -->", "names no source"),
        ("27.1<!-- ppca.json:32 q_agg -->", "names no source"),
        ("27.1<!-- ppca.json;32.q_agg -->", "names no source"),
        ("27.1<!--ppca.json:32.q_agg-->", "names no source"),
        ("27.1<!-- -->", "names no source"),
        ("27.1<!-- computed by hand -->", "names no source"),
        ("27.1 (ppca.json:32.q_agg)", "names no source"),
        ("27.1<!-- results/ppca.json:32.q_agg -->", "names no source"),
        ("$26.72<!-- ppca.json:32.q_agg -->$", "inside the formula"),
        ("26.72<!-- ppca.json:32.q_agg.more -->", "cannot be read"),
        ("26.72<!-- ppca.json:32.q_agg -->5 nats", "goes on"),
        ("26.72<!-- ppca.json:32.q_agg -->,000 nats", "goes on"),
        ("26.72<!-- ppca.json:32.q_agg -->e3 nats", "goes on"),
        ("0.43<!-- ppca.json:32.share --> %", "goes on"),
        ("26.72<!-- ppca.json:32.q_agg -->² nats", "goes on"),
        ("1,26.72<!-- ppca.json:32.q_agg -->", "no number before"),
        ("1.26.72<!-- ppca.json:32.q_agg -->", "no number before"),
        ("–26.72<!-- ppca.json:32.q_agg -->", "–26.72 is typed"),
        ("```{tip}\n26.73<!-- ppca.json:32.q_agg -->\n```", "26.73 is typed"),
        ("```{figure} a.png\n:alt: A\n\n26.73<!-- ppca.json:32.q_agg -->\n```", "26.73 is typed"),
    ],
)
def test_prose_numbers_rejects(text, words, results):
    problems = prose.sources(text, results)
    assert any(words in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "known", "accepted"),
    [
        ("It gains 3.24 nats.", "| 3.2412 |", True),
        ("It gains 3.24 nats.", "| 3.2512 |", False),
        ("It gains 3.24 nats.", "", False),
        ("It gains −3.2 nats.", "-3.24", True),
        ("It gains −3.2 nats.", "3.24", False),
        ("It loses 3.2 nats.", "-3.24", True),
        ("```{tip}\nIt gains 3.24 nats.\n```\n", "", False),
        ("```{figure} a.png\n:alt: It gains 3.24 nats.\n\nA.\n```\n", "", False),
        ("```{solution} ex-a\nIt gains 3.24 nats.\n```\n", "", False),
        ("In 43 % of them.", "0.431", True),
        ("In 43 % of them.", "0.441", False),
        ("In 43% of them.", "43.1", True),
        ("In 43 per cent of them.", "44.1", False),
        ("In 43 percent of them.", "44.1", False),
        ("It gains 2–3.24 nats, or 3.24/2.", "3.25", False),
        ("All 1997 digits.", "", False),
        ("Until 1997, and in 2026.", "", True),
        ("It gains $I\\approx3.241$ nats.", "3.242", False),
        ("It gains $I\\approx3.241$ nats.", "3.2412", True),
        ("It gains $I=3.241$ nats.", "3.242", False),
        ("It gains `3.241` nats.", "3.242", False),
        ("```text\n3.24 nats\n```\n", "", False),
        ("```{dropdown} It gains 3.24\nA.\n```\n", "", False),
        ("It gains .324 nats.", "", False),
        ("It gains 3.24e2 nats.", "3.24", False),
        ("It gains 3.2e-6 nats.", "3.24e-06", True),
        ("{doc}`It gains 3.24 nats <other-3.25>`", "3.24", True),
        ("{doc}`It gains 3.24 nats <other>`", "", False),
        ("````{solution-start} ex-a\n````\n\nIt gains 3.24 nats.\n\n````{solution-end}\n````\n", "", False),
        ("```{solution} ex-a\n```\n\nIt gains 3.24 nats.\n\n```text\n3.24\n```\n", "", False),
        ("A 95 % interval of 12 draws, in 2026.", "", True),
        ("All 1,297 digits.", "len(x) == 1297", True),
        ("All 1,279 digits.", "len(x) == 1297", False),
        ("All 1279 digits.", "1.279", False),
        ("In CC BY 4.0 and Python 3.11 or newer.", "", True),
        ("It gains $3.24$ nats.", "", False),
        ("For $x=3.24$ and `3.24` see [this](other-3.24.md).", "", True),
        ("It gains 3.24<!-- ppca.json:a --> nats.", "", True),
        ("```{exercise}\n:label: ex-a\n\nLet it gain 3.24 nats.\n```\n", "", True),
        ("```{code-cell} ipython3\nx = 3.24\n```\n", "", True),
        ("Version 1.26.4 of 12 things.", "", True),
    ],
)
def test_unsourced(text, known, accepted):
    assert (prose.unsourced(text, known) == []) is accepted


@pytest.mark.parametrize("sign", ["\u200b", "\u202e", "\u00ad", "\r", "\x1b", "а", "３", "٣", "．", "\ufeff"])
def test_signs_that_are_not_seen_or_look_like_others(sign):
    assert prose.unseen("Es ist σ² ≥ −½ ‖z‖, naïve – “ja” … ₁✓\n") == []
    assert len(prose.unseen(f"It gains 3{sign}2.")) == 1


def test_what_stands_elsewhere_is_a_setting_and_no_result():
    assert prose.unsourced("Of 60,000 images.", "", "num = 60_000") == []
    assert prose.unsourced("It gains 3.24 nats.", "", "3.24") != []


def test_words_in_code_cells_are_prose():
    own = {"figure": {"caption": "Of 3.1"}, "image": {"alt": "Of 3.2"}}
    cell = v4.new_code_cell("x = 3.4  # of 3.3\nprint(x)", metadata={"mystnb": own})
    said = prose.captions(v4.new_notebook(cells=[cell]))
    assert [n in said for n in ("3.1", "3.2", "3.3", "3.4")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("```{exercise}\n:label: ex-a\n```\n:::{prf:proof}\n:::\n{.cards}\n| $a<b$ | `<b>` |", True),
        ("```html\n<b>x</b>\n```\n<!-- a.json:b -->", True),
        ("```{raw} html\n<b>1</b>\n```", False),
        ("~~~{eval-rst}\n.. literalinclude:: a.py\n~~~", False),
        (":::{include} a.md\n:::", False),
        ("1. a\n\n   ```{glue} x\n   ```", False),
        ("<span style='display:none'>not</span>", False),
        ("<details>not</details>", False),
        ("```{exercise}\n:class: d-none\n```", False),
        ("{.d-none}\nNot.", False),
        ("This is [not]{.d-none} so.", False),
        ("````{solution-start} ex-a\n````\n\n<b>x</b>\n\n````{solution-end}\n````\n", False),
        ("% not shown", False),
        ("If $a<b$ and $c>d$.", True),
        ("{style='color: white'}\nNot.", False),
        ("It gains 3,24 nats.", False),
        ("It gains 3·24 nats.", False),
        ("It gains 3⅖ nats.", False),
        ("In 430 ‰ of them.", False),
        ("All 1,297 and 60,000 digits.", True),
        ("As in Figure 7.", False),
        ("By theorem (3.2) it is.", False),
        ("By two theorems, of 3 figures.", True),
        ("It is $\\phantom{not}$ so.", False),
        ("It is $\\color{white}{x}$ so.", False),
    ],
)
def test_foreign(text, accepted):
    assert (prose.foreign(text) == []) is accepted


@pytest.mark.parametrize(
    ("code", "shown", "accepted"),
    [
        ("print(x)", "0.123", True),
        ("print(0.5, 12, 0.25)", "0.5 12 0.25", True),  # settings
        ("print(f'{x:.3f} of {123}')", "0.123", True),
        ("print(0.123)", "0.123", False),
        ("print('TC = 0.123 nats')", "TC = 0.123 nats", False),
        ("values = [26.72]\nprint(*values)", "26.72", False),
        ("print(2672 / 100)", "26.72", False),
        ("print('26' + '.72')", "26.72", False),
        ("print('26' '.72')", "26.72", False),
        ("print(26 + 0.72)", "26.72", False),
        ("print(x / 100 + 26)", "26.72", True),
        ("table({'a': [26.7249]})", "26.72", False),
        ("table({'a': [26.7249]})", "26.73", True),
        ("print(f'{x} is above 1.253')", "1 is above 1.253", False),
    ],
)
def test_typed(code, shown, accepted):
    cell = v4.new_code_cell(code, outputs=[v4.new_output("stream", name="stdout", text=shown)])
    assert (gates.typed(v4.new_notebook(cells=[cell])) == []) is accepted


def test_what_a_new_chapter_is_laid_out_with_passes():
    text = (ROOT / "book" / "_tools" / "new" / "chapter.md.in").read_text(encoding="utf-8")
    assert prose.foreign(text) + gates.exercises(text) == []
    (proof,) = evidence.PROOF.findall(text)
    assert len(proof.split()) >= 10


def test_exercises():
    asked, words = "```{exercise}\n:label: ex-a\n```\n", "It is what the theorem says.\n"
    answer = f"````{{solution-start}} ex-a\n:class: dropdown\n````\n{words}\n````{{solution-end}}\n````\n"
    short = f"```{{solution}} ex-a\n:class: dropdown\n\n{words}```\n"
    assert gates.exercises(asked + answer) == gates.exercises(asked + short) == []
    empty = [asked + text.replace(words, "") for text in (answer, short)]
    another = asked.replace("ex-a", "ex-b")
    assert gates.exercises(asked + another + answer + answer.replace("ex-a", "ex-b")) != []
    for spoilt in (
        asked,
        answer,
        answer + asked,
        asked + answer.replace("ex-a", "ex-b"),
        asked + answer + answer,
        *empty,
    ):
        assert gates.exercises(spoilt) != []


@pytest.mark.parametrize(
    "comment",
    [
        "# NBVAL_IGNORE_OUTPUT",
        "#NBVAL_IGNORE_OUTPUT",
        "## nbval-ignore-output",
        "x = 1  # NBVAL_SKIP",
        "#  Nbval Skip",
        "# NBVAL_RAISES_EXCEPTION",
        "# NBVAL_CHECK_OUTPUT",
        "# PYTEST_VALIDATE_IGNORE_OUTPUT",
        "\t# NBVAL_IGNORE_OUTPUT",
    ],
)
def test_hidden_rejects_comments(comment):
    cell = v4.new_code_cell(f"y = 2\n{comment.lstrip()}\nprint(y)")
    assert "speaks to nbval" in gates.hidden(v4.new_notebook(cells=[cell]))[0]
    assert gates.hidden(v4.new_notebook(cells=[cell]), allowed=[1]) == []


@pytest.mark.parametrize(
    "tags",
    [
        ["nbval-ignore-output"],
        ["nbval-skip"],
        ["raises-exception"],
        ["nbval-check-output"],
        ["hide-input", "remove-output"],
        ["skip-execution"],
        ["NBVAL-SKIP"],
        ["nbval-raises-exception"],
        ["pytest-validate-ignore-output"],
    ],
)
def test_hidden_rejects_tags(tags):
    cell = v4.new_code_cell("print(1)")
    cell.metadata["tags"] = tags
    assert "has the tag" in gates.hidden(v4.new_notebook(cells=[cell]))[0]


@pytest.mark.parametrize(
    "code",
    [
        "%%capture\nprint(1)",
        "%matplotlib inline",
        "!ls",
        "from IPython.utils.io import capture_output",
        "from IPython.display import clear_output",
        "clear_output()",
        "get_ipython().run_line_magic('capture', '')",
        "import contextlib\nwith contextlib.redirect_stdout(None):\n    print(1)",
        "exec('print(1)')",
        "import os\nif 'CI' in os.environ:\n    print(1)",
        "eval('print(1)')",
        "setattr(torch, 'sqrt', str)",
        "from unittest.mock import patch",
        "from contextlib import suppress",
        "import contextlib",
        "import warnings",
        "import time, torch",
        "from . import a",
        "from vaebook.tables import *",
        "from vaebook.claims.registry import _REGISTRY",
        "import vaebook._checks",
        "vaebook._checks.check_int",
        "f.__defaults__",
        "open('a', 'w')",
        "exit()",
        "Path('../results/a.json').write_text('{}')",
        "type(x).y",
        "vars(x)['y'] = 1",
        "print(1, file=x)",
        "print(1, end='')",
        "try:\n    x = f()\nexcept ValueError:\n    x = 1",
    ],
)
def test_hidden_rejects_what_swallows_output(code):
    assert gates.hidden(v4.new_notebook(cells=[v4.new_code_cell(code)])) != []


@pytest.mark.parametrize(
    ("metadata", "of"),
    [
        ({"mystnb": {"remove_code_outputs": True}}, "code"),
        ({"mystnb": {"figure": {"caption": "A", "classes": "d-none"}}}, "code"),
        ({"jupyter": {"outputs_hidden": True}}, "code"),
        ({"tags": ["remove-cell"]}, "markdown"),
        ({"mystnb": {"execution_mode": "off"}}, "notebook"),
        ({}, "raw"),
    ],
)
def test_hidden_rejects_metadata(metadata, of):
    make = {"raw": v4.new_raw_cell, "markdown": v4.new_markdown_cell}.get(of, v4.new_code_cell)
    cell = make("print(1)", metadata=metadata if of != "notebook" else {})
    notebook = v4.new_notebook(cells=[cell], metadata=metadata if of == "notebook" else {})
    assert gates.hidden(notebook) != []


SHOWN = [v4.new_output("stream", name="stdout", text="1\n")]


@pytest.mark.parametrize(
    ("code", "shown", "accepted"),
    [
        ("x = 1\nprint(x)", True, True),
        ("import math\nx = math.pi\ny = x", False, False),  # y is for nothing
        ("x = 1\nx", True, True),
        ("x = 1\nx", False, False),
        ("x = 1\nstr(x)", False, False),
        ("x = 1\nstr(x)\nprint(x)", True, False),
        ("x = 1\nf'{x}'", False, False),
        ("x = 1\n'{}'.format(x)\nprint(x)", True, False),
        ("x = 1\n(x, x)\nprint(x)", True, False),
        ("x = 1\nx == 1\nprint(x)", True, False),
        ("for x in range(3):\n    str(x)", False, False),
        ("for x in range(3):\n    print(x)", True, True),
        ("x = 1\nshown = str(x)\nprint(x)", True, False),
        ("x = 1\n_ = str(x)\nprint(x)", True, False),
        ("x = 1\nif False:\n    print(x)", False, False),
        ("x = 1\nprint(x) if 0 else None", False, False),
        ("x = {}\ntable(x)\nprint(x)", True, False),
        ("x = {}\nx.copy()\nprint(x)", True, False),
        ("print = str\nprint(1)", True, False),
        ("from builtins import str as print\nprint(1)", True, False),
        ("def table(x): return x\ntable(1)", True, False),
        ("[verify := str]\nverify(1)", True, False),
        ("from vaebook.tables import number as table\ntable(1)", True, False),
        ("from vaebook.tables import table\nfrom other import table\ntable(1)", True, False),
        ("from vaebook.tables import table\ntable(1)", True, True),
        ("import torch\ntorch.sqrt = str\nprint(torch)", True, False),
        ("from vaebook import plots\nplots.COLORS[0] = 'red'\nprint(plots)", True, False),
        ("import vaebook.claims.evidence as e\ne.MARGIN_TOLERANCE = 0\nprint(e)", True, False),
        ("from vaebook import likelihood\nlikelihood = lambda x: 3\nprint(likelihood(1))", True, False),
        ("from vaebook import likelihood\ndef likelihood(x): return 3\nprint(likelihood(1))", True, False),
        ("x = {}\nx['a'] = 1\nprint(x)", True, True),
        ("figure, axes = plt.subplots()\naxes.set(xlabel='x')\nplt.show()", True, True),
        ("figure, axes = plt.subplots()\naxes.get_title()\nplt.show()", True, False),
        ("figure, panels = plt.subplots(1, 2)\nfor p in panels:\n    p.plot([1])\nplt.show()", True, True),
        ("rows = []\nrows.append(1)\nprint(rows)", True, True),
        ("x = 1\nx;", True, False),
        ("if 1 > 2:\n    print(1)", True, False),
        ("if not len(''):\n    print(1)", True, False),
        ("for x in []:\n    print(x)", True, False),
        ("for x in range(0):\n    print(x)", True, False),
        ("x = 1\nprint([x for y in (1, 2) if True])", True, False),
        ("x = 1\nprint(x > 2 or True)", True, False),
        ("x = 1\nprint(x or 'none')", True, True),
        ("x = 1\nprint(x == x)", True, False),
        ("x = 1\nprint(abs(x - x) < 1)", True, False),
        ("x = 1\nprint(abs(x - 2 * x) < 1)", True, True),
        ("x = 1\nassert (x > 1, 'no')\nprint(x)", True, False),
        ("from vaebook import plots\nplots.COLORS.append('red')\nprint(1)", True, False),
        ("from vaebook import plots\nplots.curves(1).get_legend().remove()\nprint(1)", True, True),
        ("x = q()\nx.log_prob = str\nprint(x)", True, False),
        ("from vaebook.claims.helpers import verify\nverify(1)", True, False),
        ("from IPython.display import Markdown\nMarkdown('a')", True, True),
    ],
)
def test_silent(code, shown, accepted):
    cell = v4.new_code_cell(code, outputs=SHOWN if shown else [])
    assert (gates.silent(v4.new_notebook(cells=[cell])) == []) is accepted


@pytest.mark.parametrize(
    "alt",
    [None, "", " " * 60, "A picture.", ALT[:39], "word " * 20, 60, "a" * 50],
)
def test_alt_texts_rejects(chapter, alt):
    def edit(cells):
        cells[2].metadata["mystnb"] = {} if alt is None else {"image": {"alt": alt}}

    change(chapter, edit)
    assert len(gates.alt_texts(nbformat.read(chapter.with_suffix(".ipynb"), as_version=4))) == 1


CAPTION = "Two curves, of which one is higher."


@pytest.mark.parametrize(
    ("captions", "accepted"),
    [
        ([CAPTION, "Both curves again, with one more."], True),
        ([None, None], True),
        ([CAPTION, ""], False),
        ([CAPTION, "Two curves."], False),
        ([CAPTION, CAPTION], False),
        ([CAPTION, "\n".join(ALT.split())], False),
    ],
)
def test_captions(captions, accepted):
    shown = [v4.new_output("display_data", data={"image/png": "AAAA"})]
    cells = []
    for number, caption in enumerate(captions):
        figure = {} if caption is None else {"figure": {"name": f"fig-{number}", "caption": caption}}
        own = {"image": {"alt": ALT if number else f"{ALT} Below them is a third."}} | figure
        cells.append(v4.new_code_cell("plt.show()", metadata={"mystnb": own}, outputs=shown))
    assert (gates.alt_texts(v4.new_notebook(cells=cells)) == []) is accepted


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (f"![{ALT}](a.png)", True),
        (f"![{ALT}](a.png) ![{ALT}](b.png)", False),
        ("![](a.png)", False),
        (f"```{{figure}} a.png\n:alt: {ALT}\n\nCaption.\n```", True),
        ("```{figure} a.png\n:name: fig-a\n\nCaption.\n```", False),
        ("```{image} a.png\n:alt: short\n```", False),
        (f'<img src="a.png" alt="{ALT}">', True),
        ('<img src="a.png">', False),
    ],
)
def test_alt_texts_of_pictures_in_the_text(text, accepted):
    assert (gates.alt_texts(v4.new_notebook(cells=[v4.new_markdown_cell(text)])) == []) is accepted


CHECK = """\
```{code-cell} ipython3
verify("a/one")
```

````{dropdown} TITLE
```{literalinclude} ../vaebook/claims/a.py
:language: python
:pyobject: one
```
````
"""


@pytest.fixture
def page(tmp_path):
    """A function that writes a page which shows code, and what its gate finds."""
    (tmp_path / "vaebook" / "claims").mkdir(parents=True)
    code = "def one(): pass\ndef two(): pass\ndef helper(): pass\nclass C:\n    def f(self): pass\n"
    (tmp_path / "vaebook" / "claims" / "a.py").write_text(code)
    (tmp_path / "book").mkdir()

    def problems(old="", new="", title="The code of this check: one"):
        text = CHECK.replace("TITLE", title)
        assert old in text
        (tmp_path / "book" / "page.md").write_text(text.replace(old, new))
        return prose.included(tmp_path / "book" / "page.md", {"a/one": ("a.py", "one"), "a/two": ("a.py", "two")})

    return problems


def test_included_accepts(page):
    assert page() == []
    assert page(title="The helper: helper", old="pyobject: one", new="pyobject: helper") == []
    assert page(title="A method: C.f", old="pyobject: one", new="pyobject: C.f") == []


@pytest.mark.parametrize(
    ("old", "new", "title"),
    [
        ("pyobject: one", "pyobject: two", "The code of this check: one"),
        ("pyobject: one", "pyobject: two", "The code of this check: two"),
        ("pyobject: one", "pyobject: two", "The code of this check"),
        ("", "", "The code of this check"),
        ("", "", "Some code"),
        ("pyobject: one", "pyobject: nothing", "The code of this check: nothing"),
        ('verify("a/one")', 'verify("a/two")', "The code of this check: one"),
        (":pyobject: one\n", "", "The code of this check: one"),
        (":pyobject: one\n", ":pyobject: one\n:lines: 1\n", "The code of this check: one"),
        ("claims/a.py", "claims/b.py", "The code of this check: one"),
        ("````{dropdown} TITLE", "", ""),
    ],
)
def test_included_rejects(page, old, new, title):
    if not title:
        old = "````{dropdown} The code of this check: one"
        title = "The code of this check: one"
    assert page(old, new, title) != []


def test_unlisted():
    pages, link = {"a/x": "X", "a/y": "Y"}, r"\((\S+)\.md\)"
    assert prose.unlisted(pages, "[X](a/x.md) and [Y](a/y.md)", link) == []
    assert prose.unlisted(pages, "[X](a/x.md)", link) == ["a/y is missing"]
    assert prose.unlisted(pages, "[X](a/x.md) [Y](a/y.md) [X](a/x.md)", link) == ["a/x stands twice"]
    assert prose.unlisted(pages, "[Y](a/y.md) [X](a/x.md)", link) == ["the order differs"]
