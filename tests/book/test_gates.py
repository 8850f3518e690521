"""Each gate accepts a good example and rejects bad ones."""

import copy
import json

import gates
import nbformat
import pytest
from execute import finish
from fingerprint import as_md, read_md
from nbformat import v4

HEADER = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


@pytest.fixture
def chapter(tmp_path):
    """A small chapter with its executed twin: text, a print and a picture."""
    cells = [
        v4.new_markdown_cell("# A title\n\nText."),
        v4.new_code_cell("print(0.5)", metadata={"tags": ["hide-input"]}),
        v4.new_code_cell("plt.show()"),
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


def test_pairing_rejects_a_missing_notebook(chapter):
    chapter.with_suffix(".ipynb").unlink()
    assert "has no toy.ipynb" in gates.pairing(chapter)[0]


ERROR = v4.new_output("error", ename="E", evalue="", traceback=[])
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
        "no number at all <!-- a plain comment -->",
        "26.72<!-- ppca.json:32.q_agg --> nats, or 26.7 <!-- ppca.json:32.q_agg -->",
        "$26.72$<!-- ppca.json:32.q_agg -->, **27**<!-- ppca.json:32.q_agg -->",
        "43 %<!-- ppca.json:32.share -->, 43.2%<!-- ppca.json:32.share -->",
        "−20.0<!-- ppca.json:32.runs.1 -->, 1,297<!-- ppca.json:n -->, 1.30e3<!-- ppca.json:n -->",
        "| 8 |26.72<!-- ppca.json:32.q_agg -->|",
    ],
)
def test_prose_numbers_accepts(text, results):
    assert gates.prose_numbers(text, results) == []


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
    ],
)
def test_prose_numbers_rejects(text, words, results):
    problems = gates.prose_numbers(text, results)
    assert len(problems) == 1
    assert words in problems[0]
