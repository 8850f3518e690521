"""The tools that store outputs: when a chapter is stale, when it may be run, and what a failure leaves behind."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import build
import copy_mathjax
import execute
import nbformat
import numpy as np
import pdf
import pytest
from alone import alone
from drawings import SVG, keep_drawings, shorten
from fingerprint import ROOT, fingerprint, is_chapter, read_ipynb, read_md, source_hash, why_stale
from toy import CHAPTER

READS = 'import vaebook.mixture\nnumbers = open("../results/ppca.json")\nprint(6 * 7)'


@pytest.fixture
def root(tmp_path):
    """A tree with one chapter that has just been stored, its outputs written by hand."""
    for folder in ("book", "book/results", "vaebook"):
        (tmp_path / folder).mkdir()
    (tmp_path / "vaebook" / "mixture.py").write_text("x = 1\n")
    (tmp_path / "book" / "results" / "ppca.json").write_text("{}")
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    (tmp_path / "book" / "toy.md").write_text(CHAPTER.replace("print(6 * 7)", READS))
    store(tmp_path)
    return tmp_path


def store(root):
    md = root / "book" / "toy.md"
    notebook = read_md(md)
    for count, cell in enumerate(execute._code(notebook), start=1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="42\n")]
    execute.finish(notebook, {"fingerprint": fingerprint(notebook, root), "source": source_hash(notebook)})
    nbformat.write(notebook, md.with_suffix(".ipynb"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_fresh(root):
    assert why_stale(root / "book" / "toy.md", root) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("book/toy.md", "6 * 7", "6 * 8", "changed: code"),
        ("book/toy.md", "A title", "Another title", "its text changed"),
        ("book/results/ppca.json", "{}", "[]", "changed: book/results/ppca.json"),
        ("vaebook/mixture.py", "x = 1", "x = 2", "changed: vaebook/mixture.py"),
        ("requirements.txt", "2.13.0", "2.13.1", "changed: requirements.txt"),
        ("book/toy.ipynb", "A title", "Another title", "its text changed"),
        ("book/toy.ipynb", "42\\n", "43\\n", "its outputs were edited"),
    ],
)
def test_stale(root, file, old, new, reason):
    edit(root / file, old, new)
    assert why_stale(root / "book" / "toy.md", root) == reason


def test_stale_when_never_executed(root):
    (root / "book" / "toy.ipynb").unlink()
    assert why_stale(root / "book" / "toy.md", root) == "never executed"


def test_all_that_changed_is_named_or_counted(root):
    """Files that were recorded and are gone, too; and of many things four."""
    md = root / "book" / "toy.md"
    (root / "vaebook" / "mixture.py").unlink()
    assert why_stale(md, root) == "changed: vaebook/mixture.py"
    stored = read_ipynb(md.with_suffix(".ipynb"))
    stored.metadata["vaebook"]["fingerprint"] |= {f"vaebook/{name}.py": "0" for name in "abcd"}
    nbformat.write(stored, md.with_suffix(".ipynb"))
    why = why_stale(md, root)
    assert why.startswith("changed: ") and len(why.split(", ")) == 4 and why.endswith(" and 1 more")


@pytest.mark.parametrize("marks", [{}, {"fingerprint": None}, {"fingerprint": "0"}])
def test_stale_when_what_it_depends_on_was_not_recorded(root, marks):
    ipynb = root / "book" / "toy.ipynb"
    stored = read_ipynb(ipynb)
    stored.metadata["vaebook"] = marks
    nbformat.write(stored, ipynb)
    assert why_stale(root / "book" / "toy.md", root) == "what it depends on was not recorded"


def test_stale_when_both_files_were_edited_in_the_same_way(root):
    for suffix in ("md", "ipynb"):
        edit(root / "book" / f"toy.{suffix}", "A title", "Another title")
    assert why_stale(root / "book" / "toy.md", root) == "its text changed"


def test_stale_when_a_caption_changed(root):
    edit(
        root / "book" / "toy.md", "{code-cell} ipython3\n", "{code-cell} ipython3\n:mystnb: {figure: {caption: Some}}\n"
    )
    assert why_stale(root / "book" / "toy.md", root) == "its text changed"


@pytest.mark.parametrize("old", ['"source": [', '"name": "stdout",', '"execution_count": 1,'])
def test_a_notebook_that_lacks_what_every_cell_or_output_has_is_none(root, old):
    edit(root / "book" / "toy.ipynb", old, old.replace('": ', '_": '))
    assert why_stale(root / "book" / "toy.md", root).startswith("toy.ipynb is no notebook")


def test_of_the_header_only_what_stays_the_same_is_read(root):
    assert "jupytext_version" not in read_md(root / "book" / "toy.md").metadata["jupytext"]["text_representation"]
    text = (root / "book" / "toy.md").read_text()
    edit(root / "book" / "toy.md", "format_name: myst\n", "format_name: myst\n    jupytext_version: 1.2.3\n")
    assert (root / "book" / "toy.md").read_text() != text and why_stale(root / "book" / "toy.md", root) is None
    assert "jupytext_version" not in read_md(root / "book" / "toy.md").metadata["jupytext"]["text_representation"]


def test_prose_is_no_chapter(tmp_path):
    (tmp_path / "prose.md").write_text("# Title\n\nkernelspec: none\n\n---\n")
    assert not is_chapter(tmp_path / "prose.md")


def test_ipynb_only_edit_is_not_overwritten(root, monkeypatch):
    monkeypatch.setattr(execute, "ROOT", root)
    md, ipynb = root / "book" / "toy.md", root / "book" / "toy.ipynb"
    execute.settle_differences(md, ipynb, None)
    edit(md, "A title", "New in md")
    execute.settle_differences(md, ipynb, None)  # the usual case: only the .md was edited
    edit(md, "New in md", "A title")
    edit(ipynb, "A title", "New in ipynb")
    with pytest.raises(execute.ChapterError, match=r"the \.ipynb was edited.*KEEP=md"):
        execute.settle_differences(md, ipynb, None)
    edit(md, "A title", "New in md")
    with pytest.raises(execute.ChapterError, match="both files were edited"):
        execute.settle_differences(md, ipynb, None)
    execute.settle_differences(md, ipynb, "ipynb")
    assert "New in ipynb" in md.read_text()


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A chapter outside the tree that `execute.update` may run."""
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    (tmp_path / "book").mkdir()
    md = tmp_path / "book" / "toy.md"
    md.write_text(CHAPTER)
    return md


def test_a_second_run_is_byte_identical_and_new_text_needs_no_run(chapter, monkeypatch):
    assert execute.update(chapter) == "executed"
    first = chapter.with_suffix(".ipynb").read_bytes()
    assert execute.update(chapter) == "fresh"
    assert execute.update(chapter, force=True) == "executed"
    assert chapter.with_suffix(".ipynb").read_bytes() == first
    monkeypatch.setattr(execute, "run", lambda *_: pytest.fail("ran for a change of text"))
    edit(chapter, "A title", "Another title")
    assert execute.update(chapter) == "text only"
    assert read_ipynb(chapter.with_suffix(".ipynb")).cells[1].outputs[0].text == "42\n"
    edit(chapter.with_suffix(".ipynb"), '"42\\n"', '"43\\n"')
    with pytest.raises(pytest.fail.Exception):  # an edited output is no computed one, and is not kept
        execute.update(chapter)


def test_lines_are_stored_as_svg_too_the_same_in_every_run_and_no_images_or_clouds(tmp_path):
    code = "import matplotlib.pyplot as plt, numpy as np\nx = np.random.default_rng(0).normal(size=(2, 9000))\n"
    shown = ("plt.fill_between([0, 1], [1, 2], alpha=0.005)", "plt.imshow(x[:, :2])", "plt.scatter(*x)")
    cells = [nbformat.v4.new_code_cell(f"{code}{draw}\nplt.show()") for draw in shown]
    kinds, drawn = [], []
    for _ in range(2):
        notebook = nbformat.v4.new_notebook(cells=cells)
        execute.run(notebook, tmp_path)
        execute.finish(notebook, {})
        kinds.append([sorted(output.data) for cell in notebook.cells for output in cell.outputs])
        drawn.append(notebook.cells[0].outputs[0].data[SVG])
    assert kinds == 2 * [[["image/png", SVG, "text/plain"], *2 * [["image/png", "text/plain"]]]]
    assert drawn[0] == drawn[1] == shorten(drawn[0])
    assert "opacity: 0.005" in drawn[0]
    assert "scale(0.015625)" in drawn[0]  # the size of a sign: rounded it would be a quarter larger
    assert max(len(number) for number in re.findall(r"(?<=[LM] )-?\d+\.(\d+)", drawn[0])) == 2


def test_a_picture_that_is_stored_is_what_a_kernel_without_svg_shows(tmp_path, monkeypatch):
    """Drawing moves a layout a little: drawn after its SVG, a PNG would be none that a reader's kernel makes."""
    code = (
        "import matplotlib.pyplot as plt\nfrom vaebook import plots\nplots.use_style()\n"
        "figure, axes = plt.subplots(1, 3, figsize=(7, 2.5))\n"
        "for a in axes:\n    a.plot([1, 3, 2], label='a line')\n"
        "    a.set(title='A title', xlabel='$z_1$', ylabel='nats')\n"
        "figure.legend(loc='outside lower center')\nplt.show()"
    )
    pictures = []
    for settings in (execute.SETTINGS, []):
        monkeypatch.setattr(execute, "SETTINGS", settings)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        execute.run(notebook, tmp_path)
        pictures.append(notebook.cells[0].outputs[0].data["image/png"])
        assert (SVG in notebook.cells[0].outputs[0].data) is bool(settings)
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('spoilt')", "code cell 1 of 1 raised an error(.|\n)*spoilt"),
        ("import warnings; warnings.warn('careful')", "code cell 1 wrote to stderr(.|\n)*careful"),
    ],
)
def test_a_failing_run_leaves_the_notebook_as_it_was(chapter, code, words):
    ipynb = chapter.with_suffix(".ipynb")
    edit(chapter, "print(6 * 7)", code)
    nbformat.write(execute.read_md(chapter), ipynb)
    before = ipynb.read_bytes()
    with pytest.raises(execute.ChapterError, match=words):
        execute.update(chapter, force=True)
    assert ipynb.read_bytes() == before
    assert sorted(path.name for path in chapter.parent.iterdir()) == ["toy.ipynb", "toy.md"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The notebook of a chapter that was run once, as it is stored wherever it lies."""
    md = tmp_path_factory.mktemp("good") / "book" / "toy.md"
    md.parent.mkdir()
    md.write_text(CHAPTER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "ROOT", md.parents[1])
        assert execute.update(md) == "executed"
    return md.with_suffix(".ipynb").read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"cells": [', '<<<<<<< ours\n"cells": [\n=======\n>>>>>>> theirs', 1),
        lambda text: "{}",
        lambda text: "",
    ],
    ids=["cut short", "conflict", "other JSON", "empty"],
)
def test_a_broken_notebook_is_named_with_its_remedy_and_the_others_are_run(chapter, good, spoil, monkeypatch, capsys):
    other = chapter.with_name("zoo.md")
    other.write_text(CHAPTER)
    ipynb = chapter.with_suffix(".ipynb")
    ipynb.write_text(spoil(good.decode()))
    assert "no notebook" in why_stale(chapter)
    monkeypatch.setattr(execute, "chapters", lambda: [chapter, other])
    monkeypatch.setattr(sys, "argv", ["execute.py"])
    assert execute.main() == 1
    out, err = capsys.readouterr()
    assert "FAILED  book/toy.md: toy.ipynb is no notebook" in err
    assert "CHAPTER=toy KEEP=md" in err
    assert out.startswith("executed  book/zoo.md")
    assert execute.update(chapter, keep="md") == "executed"
    assert ipynb.read_bytes() == good


def test_an_interruption_is_one_line_and_stores_nothing(chapter, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run", interrupted)
    monkeypatch.setattr(execute, "chapters", lambda: [chapter])
    monkeypatch.setattr(sys, "argv", ["execute.py"])
    assert execute.main() == 130
    assert capsys.readouterr().err == "stopped book/toy.md: nothing of it was stored\n"
    assert not chapter.with_suffix(".ipynb").exists()


def test_the_command_line_says_which_chapters_are_run_and_how(chapter, monkeypatch, capsys):
    other, asked = chapter.with_name("toys.md"), []

    def update(md, **how):
        asked.append((md.name, how, os.environ["OMP_NUM_THREADS"]))
        raise execute.ChapterError("no")

    for name, value in (("update", update), ("collect", asked.append), ("chapters", lambda: [chapter, other])):
        monkeypatch.setattr(execute, name, value)
    for options, wanted, how in (
        ([], (chapter, other), {"force": False, "keep": None}),
        (["--all", "--keep", "md"], (chapter, other), {"force": True, "keep": "md"}),
        (["--chapter", "toy"], (chapter,), {"force": False, "keep": None}),
    ):
        asked.clear()
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.setattr(sys, "argv", ["execute.py", *options])
        assert execute.main() == 1
        assert asked == [execute.ROOT, *((md.name, how, "1") for md in wanted)]
    assert capsys.readouterr().err.endswith("FAILED  book/toy.md: no\n")
    monkeypatch.setattr(sys, "argv", ["execute.py", "--chapter", "to"])
    with pytest.raises(SystemExit, match=r"^no chapter 'to'; there are: toy, toys$"):
        execute.main()


def test_an_update_settles_what_differs_and_leaves_the_md_the_newer(chapter, good, monkeypatch):
    ipynb = chapter.with_suffix(".ipynb")
    ipynb.write_bytes(good)
    os.utime(chapter, (0, 0))
    assert execute.update(chapter) == "fresh" and chapter.stat().st_mtime >= ipynb.stat().st_mtime
    edit(ipynb, "A title", "New in ipynb")
    with pytest.raises(execute.ChapterError, match=r"the \.ipynb was edited"):
        execute.update(chapter)
    edit(chapter, "A title", "New in md")
    with pytest.raises(execute.ChapterError, match="both files were edited"):
        execute.update(chapter)
    monkeypatch.setattr(execute, "run", lambda *_: pytest.fail("ran for a change of text"))
    assert execute.update(chapter, keep="ipynb") == "text only" and "New in ipynb" in chapter.read_text()
    ipynb.write_bytes(good)
    edit(chapter, "# New in ipynb\n", "# New in md\n\n\n")
    assert execute.update(chapter, keep="md") == "text only" and "New in md" in ipynb.read_text()
    assert "\n\n\n" not in chapter.read_text()
    assert ipynb.read_text().endswith("}\n")
    stored = read_ipynb(ipynb)
    assert stored.cells[1].execution_count == 1 and stored.nbformat_minor == 5


def test_a_chapter_is_written_back_as_jupyterlab_would_unless_its_cells_would_change(chapter, monkeypatch):
    execute.normalise(chapter)
    text = chapter.read_text()
    chapter.write_text(text.replace("# A title\n", "\n# A title\n\n"))
    execute.normalise(chapter)
    assert chapter.read_text() == text
    monkeypatch.setattr(execute, "as_md", lambda notebook: text.replace("6 * 7", "6 * 8"))
    with pytest.raises(execute.ChapterError, match="cannot write this file back"):
        execute.normalise(chapter)
    assert chapter.read_text() == text


def test_of_equal_cells_each_has_its_own_id_and_no_trace_of_the_run_remains():
    cells = [nbformat.v4.new_code_cell("x", metadata={"execution": {"iopub.status.idle": "now"}}) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.11"}})
    execute.finish(notebook, {"fingerprint": "f"})
    assert cells[0].id != cells[1].id and len(cells[0].id) == 8
    assert [cell.metadata for cell in cells] == [{}, {}]
    assert notebook.metadata["language_info"] == execute.LANGUAGE
    assert notebook.metadata["vaebook"] == {"fingerprint": "f", "digest": execute.digest(notebook)}
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)


def test_cells_run_in_the_chapters_folder_with_the_variables_that_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = "import os\nprint(os.getcwd(), os.environ['OMP_NUM_THREADS'], end=' ')\nos.system('')\nprint('so')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    execute.run(notebook, tmp_path, OMP_NUM_THREADS="2")
    (output,) = notebook.cells[0].outputs
    assert output.text == f"{tmp_path} 2 so\n"


@pytest.mark.parametrize(
    ("code", "words"), [("import time; time.sleep(60)", "timed out"), ("import os; os._exit(1)", "kernel died")]
)
def test_a_cell_that_never_ends_or_ends_the_kernel_is_told_and_not_tried_again(code, words, tmp_path, monkeypatch):
    starts, whole = [], execute._execute
    monkeypatch.setattr(execute, "_execute", lambda *args: (starts.append(args), whole(*args)))
    monkeypatch.setattr(execute, "TIMEOUT", 1 if "time" in code else 30)
    cells = [nbformat.v4.new_markdown_cell("Text."), *map(nbformat.v4.new_code_cell, ("x = 1", code))]
    with pytest.raises(execute.ChapterError, match=words):
        execute.run(nbformat.v4.new_notebook(cells=cells), tmp_path)
    assert len(starts) == 1


def test_the_cell_that_fails_is_counted_among_those_of_code(tmp_path):
    codes = ("print(1)", "print(2); 1 / 0", "3")
    cells = [nbformat.v4.new_markdown_cell("Text."), *map(nbformat.v4.new_code_cell, codes)]
    with pytest.raises(execute.ChapterError, match=r"^code cell 2 of 3 raised an error:"):
        execute.run(nbformat.v4.new_notebook(cells=cells), tmp_path)


def test_two_writers_never_tear_a_notebook(tmp_path):
    """A file is put in place whole, under a temporary name of its own."""
    target, texts = tmp_path / "toy.ipynb", [letter * 500_000 for letter in "ab"]

    def write(text):
        for _ in range(20):
            execute._replace(target, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not target.exists() or target.read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["toy.ipynb"]


FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
*run.py*) exec "{sys.executable}" "$@" ;;
*print*) echo {version} ;;
*"sys.exit(sys.version_info"*) exit {old} ;;
*ensurepip*) exit {bare} ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/bin/pip ;;
*pip*) echo "$*" >>pip.log; exit {pip} ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """A function that runs set-up in an empty tree with a Python that only pretends."""
    (tmp_path / "book" / "_tools").mkdir(parents=True)
    for name in ("setup.sh", "run.py", "alone.py"):
        shutil.copy(ROOT / "book" / "_tools" / name, tmp_path / "book" / "_tools")
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n    # via vaebook\n")
    (tmp_path / "pyproject.toml").write_text("")
    python = tmp_path / "fake-python"

    def run(*, version="3.11", old=0, bare=0, pip=0, **variables):
        python.write_text(FAKE_PYTHON.format(sys=sys, version=version, old=old, bare=bare, pip=pip))
        python.chmod(0o755)
        variables = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)} | variables
        command = ["sh", "book/_tools/setup.sh"]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    run.root = tmp_path
    return run


@pytest.mark.parametrize(
    ("pretence", "words"),
    [
        ({"PYTHON": "/no/such/python"}, "No Python found. Install Python 3.11 or newer"),
        ({"version": "3.9", "old": 1}, "is too old. Install Python 3.11 or newer"),
        ({"bare": 1}, "has no venv module. Install it (Debian, Ubuntu: apt install python3-venv or python3.11-venv)."),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(set_up, pretence, words):
    done = set_up(**pretence)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (set_up.root / ".venv").exists()


def test_a_failed_set_up_leaves_no_environment(set_up):
    done = set_up(pip=1)
    assert done.returncode == 1
    assert ".venv was removed" in done.stderr
    assert not (set_up.root / ".venv").exists()


def test_set_up_happens_once_and_again_when_the_lock_changes(set_up):
    assert set_up(TORCH_INDEX="https://index.example.org").returncode == 0
    calls = (set_up.root / "pip.log").read_text().splitlines()
    assert "--index-url https://index.example.org torch==2.13.0" in calls[0]
    assert [call.split()[-1] for call in calls] == ["torch==2.13.0", "requirements.txt", "."]
    assert set_up().stderr == ""
    edit(set_up.root / "requirements.txt", "2.13.0", "2.13.1")
    assert "up to date" in set_up().stderr
    assert (set_up.root / "pip.log").read_text().count("torch==2.13.1") == 1


def test_a_set_up_that_failed_half_way_is_done_again_although_the_lock_is_the_old_one(set_up):
    """What was installed before the failure is in the environment: the stamp must not vouch for it."""
    assert set_up().returncode == 0
    edit(set_up.root / "requirements.txt", "2.13.0", "2.13.1")
    python, works = (
        set_up.root / ".venv" / "bin" / "python",
        FAKE_PYTHON.format(sys=sys, version="3.11", old=0, bare=0, pip=0),
    )
    python.write_text(works.replace("pip.log; exit 0", "pip.log; exit 1"))
    assert set_up().returncode == 1
    python.write_text(works)
    edit(set_up.root / "requirements.txt", "2.13.1", "2.13.0")
    assert "up to date" in set_up().stderr
    assert set_up().stderr == ""


def test_an_environment_that_was_left_half_made_is_made_afresh(set_up):
    assert set_up().returncode == 0
    left = set_up.root / ".venv" / "half a package"
    left.touch()
    (set_up.root / ".venv" / ".made-from").unlink()
    assert "Setting up .venv" in set_up().stderr
    assert not left.exists() and set_up().stderr == ""


def test_build_names_what_is_missing():
    command = [sys.executable, str(ROOT / "book" / "_tools" / "execute.py"), "--chapter", "no/such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no chapter 'no/such'; there are: " in done.stderr


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_kernel_that_dies_at_its_start_is_started_once_more(deaths, tmp_path, monkeypatch):
    starts, whole = [], execute.NotebookClient.execute

    def start(client, **settings):
        starts.append(client)
        if len(starts) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return whole(client, **settings)

    monkeypatch.setattr(execute.NotebookClient, "execute", start)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")])
    if deaths > 1:
        with pytest.raises(RuntimeError, match="Kernel died"):
            execute.run(notebook, tmp_path)
    else:
        execute.run(notebook, tmp_path)
        assert notebook.cells[0].outputs[0].text == "42\n"
    assert len(starts) == 2


@pytest.mark.parametrize("moment", ["rename", "rmtree"])
def test_an_interruption_waits_until_the_new_site_is_in_place_and_the_rest_is_gone(moment, tmp_path, monkeypatch):
    site = tmp_path / "_build" / "html"
    site.mkdir(parents=True)

    def make(root, scratch, builder, lock):
        made = scratch / "_build" / builder
        made.mkdir(parents=True)
        (made / "index.html").write_text("new")
        return 0

    owner = {"rename": Path, "rmtree": shutil}[moment]
    real = getattr(owner, moment)

    def interrupted(*args, **options):
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return real(*args, **options)

    for name, value in (("copy_mathjax", lambda root: None), ("_make", make), ("dead_links", lambda site: [])):
        monkeypatch.setattr(build, name, value)
    monkeypatch.setattr(owner, moment, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build.build(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (site / "index.html").read_text() == "new"
    assert [path.name for path in (tmp_path / "_build").iterdir()] == ["html"]


@pytest.fixture
def making(tmp_path, monkeypatch):
    """Builds of a site that only pretend: what is made, with which status, and what links are dead."""
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "_build" / "html" / "index.html").write_text("old")

    def run(status=0, dead=(), builder="html"):
        def make(root, scratch, kind, lock):
            made = scratch / "_build" / kind
            made.mkdir(parents=True)
            (made / "index.html").write_text("new")
            return status

        for name, value in (("copy_mathjax", lambda _: None), ("_make", make), ("dead_links", lambda _: list(dead))):
            monkeypatch.setattr(build, name, value)
        code = build.build(tmp_path, builder=builder)
        files = {path.parent.name: path.read_text() for path in (tmp_path / "_build").rglob("index.html")}
        assert sorted(path.name for path in (tmp_path / "_build").iterdir()) == sorted(files)
        return code, files

    run.root = tmp_path
    return run


def test_only_a_site_without_a_warning_or_a_dead_link_takes_the_place_of_the_old_one(making, capsys):
    assert making(status=3) == (3, {"html": "old"})
    assert making(dead=["a: b", "c: d"]) == (1, {"html": "old"})
    assert capsys.readouterr().err == "dead link: a: b\ndead link: c: d\n"
    assert making(dead=["a: b"], builder="singlehtml") == (0, {"html": "old", "singlehtml": "new"})
    assert making() == (0, {"html": "new", "singlehtml": "new"})


def test_what_killed_builds_have_left_is_removed(making):
    left = making.root / "_build" / f"{build.MAKING}x" / "_build"
    left.mkdir(parents=True)
    assert making() == (0, {"html": "new"}) and not left.exists()


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (0, "all is well\n", "all is well\n"),
        (2, "page.md: WARNING: no\n", "page.md: WARNING: no\n"),
        (
            1,
            "Traceback\nOSError: [Errno 28] No space left on device: 'x'\n",
            "[Errno 28] No space left on device: 'x'\n",
        ),
        (1, "[Errno 30] Read-only file system: 'x'\nmore\n", "[Errno 30] Read-only file system: 'x'\n"),
        (1, "[Errno 2] No such file: 'x'\n", "[Errno 2] No such file: 'x'\n"),
    ],
)
def test_a_build_is_strict_undisturbed_and_says_what_it_was_told(code, said, told, tmp_path, monkeypatch, capsys):
    asked = []

    def run(command, **options):
        asked.append((command, options))
        return subprocess.CompletedProcess(command, code, stderr=said)

    monkeypatch.setattr(build.subprocess, "run", run)
    assert build._make(tmp_path, tmp_path / "scratch", "html", (7,)) == code
    assert capsys.readouterr().err == told
    ((command, options),) = asked
    assert {"-W", "-n", "--all", str(tmp_path)} <= set(command)
    assert options["start_new_session"] and options["pass_fds"] == (7,)


@pytest.mark.parametrize("status", [0, 1])
def test_the_command_ends_as_the_build_and_names_what_is_stale(status, root, monkeypatch, capsys):
    (root / "book" / "toy.ipynb").unlink()
    for name, value in (
        ("build", lambda *_, **__: status),
        ("chapters", lambda: [root / "book" / "toy.md"]),
        ("ROOT", root),
    ):
        monkeypatch.setattr(build, name, value)
    monkeypatch.setattr(sys, "argv", ["build.py", "--output", str(root)])
    assert build.main() == status
    out, err = capsys.readouterr()
    assert out.startswith("stale: book/toy.md (never executed)\n")
    assert ("Open file://" in out, "The build failed" in err) == (not status, bool(status))


def test_a_lock_ends_with_what_was_done_under_it(tmp_path):
    """Also where that fails; and who holds it gets it handed on."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), alone(tmp_path) as lock:
            assert len(lock) == 1
            second = os.open(tmp_path, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(second)
            1 / 0  # noqa: B018


HELD = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError:
    print("held", *sys.argv[2:])
"""


def test_a_command_holds_the_lock_and_waits_for_who_has_it(tmp_path):
    line = [sys.executable, ROOT / "book/_tools/alone.py", tmp_path, sys.executable, "-c", HELD, tmp_path, "more"]
    said = tmp_path / "said"
    with alone(tmp_path), said.open("w") as file:
        waiting = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=file, text=True)
        deadline = time.monotonic() + 20
        while "\n" not in said.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert waiting.poll() is None and said.read_text() == "Waiting for another run that works here.\n"
    assert waiting.communicate()[0] == "held more\n" and waiting.returncode == 0
    with alone(tmp_path) as lock:  # which ended with the command
        assert len(lock) == 1


def test_without_locks_nobody_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alone.fcntl", None)
    with alone(tmp_path) as first, alone(tmp_path) as second:
        assert first == second == ()
    assert capsys.readouterr() == ("", "")


def test_who_waits_says_so_once_and_who_need_not_says_nothing(tmp_path, monkeypatch, capsys):
    with alone(tmp_path):
        pass
    assert capsys.readouterr() == ("", "")
    asked = []

    def flock(lock, how):
        asked.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path) as lock:
        assert len(lock) == 1 and os.fstat(lock[0])
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert capsys.readouterr() == ("", "Waiting for another run that works here.\n")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock[0])


PDF = {"book/intro.html": '<a href="book/intro.html#a">A</a><a href="https://example.com/book/intro.html#b">B</a>'}


def test_links_of_the_page_that_is_printed_start_at_the_page(tmp_path):
    (tmp_path / "book").mkdir()
    for name, text in PDF.items():
        (tmp_path / name).write_text(text)
    page = pdf.printable(tmp_path)
    assert page.parent == tmp_path and page.name != "index.html"
    assert page.read_text() == '<a href="#a">A</a><a href="https://example.com/book/intro.html#b">B</a>'


def test_a_pdf_needs_a_browser_a_site_and_what_the_browser_wrote(tmp_path, monkeypatch, capsys):
    site, target = tmp_path / "_build" / "singlehtml" / "book", tmp_path / "_build" / "book.pdf"
    site.mkdir(parents=True)
    (site / "intro.html").write_text("")
    found, status, writes = {}, [1], [False]

    def run(command, **_):
        if writes[0]:
            Path(next(part for part in command if "print-to-pdf=" in part).partition("=")[2]).write_bytes(b"%PDF")
        return subprocess.CompletedProcess(command, 0, stderr="why")

    for owner, name, value in (
        (pdf, "ROOT", tmp_path), (pdf.shutil, "which", found.get), (pdf.subprocess, "run", run),
        (pdf, "build", lambda root, builder: status[0] if builder == "singlehtml" and root == tmp_path else 9),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, value)
    with pytest.raises(SystemExit, match="needs Chromium or Chrome"):
        pdf.main()
    found |= {"google-chrome": "/chrome", "chromium": "/chromium"}
    assert pdf.find_browser() == "/chromium"
    with pytest.raises(SystemExit, match="The build failed"):
        pdf.main()
    status[0] = 0
    with pytest.raises(SystemExit, match=r"(?s)^/chromium wrote no PDF:.why"):
        pdf.main()
    assert not target.exists()
    writes[0] = True
    assert pdf.main() == 0
    assert target.read_bytes() == b"%PDF" and capsys.readouterr().out == f"Open {target.as_uri()}\n"


def test_mathjax_is_copied_once_and_again_when_what_copies_it_has_changed(tmp_path, monkeypatch):
    source, own = tmp_path / "static" / "mathjax", tmp_path / "copy_mathjax.py"
    for path in copy_mathjax.PARTS.values():
        (source / "es5" / f"{path}.js").parent.mkdir(parents=True, exist_ok=True)
        (source / "es5" / f"{path}.js").write_text(f"// {path}")
    (source / "es5" / copy_mathjax.FONTS).mkdir(parents=True)
    (source / "es5" / copy_mathjax.FONTS / "a.woff").write_text("a font")
    (source / "LICENSE").write_text("a licence")
    (tmp_path / "__init__.py").touch()
    own.touch()
    os.utime(own, (0, 1000))
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(copy_mathjax, "find_spec", lambda name: package if name == "mathjax" else None)
    monkeypatch.setattr(copy_mathjax, "__file__", str(own))
    target = tmp_path / "root" / "book" / "_static" / "mathjax"
    copy_mathjax.copy_mathjax(tmp_path / "root")
    text = (target / "mathjax.js").read_text()
    places = [text.index(f"// {path}\n") for path in copy_mathjax.PARTS.values()]
    assert places == sorted(places) and places[0] == 0
    assert json.loads(re.search(r'preLoad\("loader", \.\.\.(\[.*?\])\);', text)[1]) == list(copy_mathjax.PARTS)
    packages = json.loads(re.search(r"packages = (\[.*?\]);", text)[1])
    assert packages == ["base", "ams", "newcommand", "configmacros"]
    assert (target / copy_mathjax.FONTS / "a.woff").read_text() == "a font" and (target / "LICENSE").exists()
    (target / "mathjax.js").write_text("mine")
    copy_mathjax.copy_mathjax(tmp_path / "root")
    assert (target / "mathjax.js").read_text() == "mine"
    (target / "left").touch()
    os.utime(target / "mathjax.js", (0, 999))
    copy_mathjax.copy_mathjax(tmp_path / "root")
    assert (target / "mathjax.js").read_text() == text and not (target / "left").exists()
    package = None
    os.utime(target / "mathjax.js", (0, 999))
    with pytest.raises(SystemExit, match="is not installed"):
        copy_mathjax.copy_mathjax(tmp_path / "root")


def test_a_drawing_is_rounded_but_for_its_signs_and_has_no_author():
    svg = "<svg>\n <metadata>\n  me\n </metadata>\n <path d='M 1.23456 -7.1' style='opacity: 0.0051'/>  \n"
    svg += " <g transform='scale(0.015625 -0.015625)'/><g x='12.5'/>\n</svg>"
    assert shorten(svg) == (
        "<svg>\n <path d='M 1.23 -7.1' style='opacity: 0.0051'/>\n"
        " <g transform='scale(0.015625 -0.015625)'/><g x='12.5'/>\n</svg>"
    )


@pytest.mark.parametrize(
    ("svg", "kept"),
    [("<svg><path/></svg>", True), ("<svg><image/></svg>", False), ("<svg>{}</svg>", False)],
    ids=["lines", "pixels", "a cloud"],
)
def test_a_drawing_is_kept_if_it_is_one_and_short(svg, kept):
    cloud = " ".join(f"{place:.2f}" for place in np.random.default_rng(0).uniform(10, 99, 20_000))
    output = nbformat.v4.new_output("display_data", data={"image/png": "", SVG: svg.format(cloud)})
    keep_drawings(output)
    assert list(output.data) == ["image/png", SVG][: 1 + kept]
    stream = nbformat.v4.new_output("stream", text="")
    keep_drawings(stream)
    assert stream == nbformat.v4.new_output("stream", text="")
