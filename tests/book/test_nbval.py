"""What nbval accepts and rejects with the gates, in an empty project: nothing in them needs this book.

Copied are conftest.py and compare.py, side by side, as CONTRIBUTING.md says. One run of pytest covers all notebooks.
"""

import importlib.util
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from fingerprint import ROOT
from nbformat import v4

CODE = ["x = 1.2345", "print(f'{x} s in {3} steps, {x}s')", "from IPython.display import Image\nImage('picture.png')"]
TEXT = "1.2345 s in 3 steps, 1.2345s\n"


def draw(path, shift=(0, 0, 0), text="one"):
    """Draw a small picture; the shift is added to each channel of all that is not white."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(3, 2), dpi=100)
    axes.plot([0, 1], [0, 1], color=(0.2, 0.4, 0.6))
    axes.set_title(text)
    figure.savefig(path)
    plt.close(figure)
    picture = plt.imread(path)
    picture[..., :3] = (picture[..., :3] + [s / 255 for s in shift]).clip(0, 1)
    plt.imsave(path, picture)


def notebook(png, *, code=CODE, text=TEXT, counts=(1, 2, 3), tags=(), error=False, outputs=True, more=None, said=""):
    """Write by hand what running the cells stores; more kinds of the picture, and what else a cell has said."""
    import base64

    data = {
        "image/png": base64.b64encode(png.read_bytes()).decode(),
        "text/plain": "<IPython.core.display.Image object>",
    } | (more or {})
    stored = [[], [v4.new_output("stream", text=text)], [v4.new_output("execute_result", data=data, execution_count=3)]]
    if said:
        stored[0] = [v4.new_output("stream", name="stderr", text=said)]
    if error:
        stored[0] = [v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
    cells = [
        v4.new_code_cell(
            source, outputs=output if outputs else [], execution_count=count, metadata={"tags": list(tags)}
        )
        for source, output, count in zip(code, stored, counts, strict=True)
    ]
    return v4.new_notebook(cells=cells)


def marked(line):
    return [CODE[0], f"{line}\n{CODE[1]}", CODE[2]]


WRONG = TEXT.replace("1.2345 s", "1.2545 s")
ACCEPTED = {
    "right": {},
    "last_digit": {"text": TEXT.replace("1.2345 s", "1.2346 s")},
    "last_digit_with_unit": {"text": TEXT.replace("1.2345s", "1.2346s")},
    "spacing": {"text": TEXT.replace("s in 3", "s  in  3")},
    "listed": {"code": marked("# NBVAL_IGNORE_OUTPUT"), "text": WRONG},
    "said": {"code": [f"import sys; print('one', file=sys.stderr); {CODE[0]}", *CODE[1:]], "said": "another\n"},
    "drawn": {"more": {"image/svg+xml": "<svg/>"}},
    "folder/listed": {"code": marked("# NBVAL_IGNORE_OUTPUT"), "text": WRONG},
    "noise": {"code": [CODE[0], "print(1.0e-17)", CODE[2]], "text": "1.2e-17\n"},
}
REJECTED = {
    "float": ({"text": WRONG}, "outputs differ"),
    "float_by_two_in_a_thousand": ({"text": TEXT.replace("1.2345 s", "1.2370 s")}, "outputs differ"),
    "float_with_unit": ({"text": TEXT.replace("1.2345s", "1.2545s")}, "outputs differ"),
    "unit": ({"text": TEXT.replace("1.2345s", "1.2345m")}, "outputs differ"),
    "integer": ({"text": TEXT.replace("3 steps", "4 steps")}, "outputs differ"),
    "word": ({"text": TEXT.replace("steps", "stops")}, "outputs differ"),
    "small": ({"code": [CODE[0], "print(1.0e-9)", CODE[2]], "text": "1.2e-09\n"}, "outputs differ"),
    "one_channel": ({"png": "shifted.png"}, "outputs differ"),
    "title": ({"png": "other.png"}, "outputs differ"),
    "order": ({"counts": (2, 1, 3)}, "was run as number 2"),
    "never_run": ({"counts": (1, None, 3)}, "was never run"),
    "dropped": ({"outputs": False}, "outputs differ"),
    "edited": ({"code": [CODE[0], f"print('edited')\n{CODE[1]}", CODE[2]]}, "outputs differ"),
    "raises": ({"code": marked("raise ValueError('spoilt')")}, "spoilt"),
    "stored_error": ({"error": True}, "stored output is an error"),
    "ignored": ({"code": marked("# NBVAL_IGNORE_OUTPUT"), "text": WRONG}, "asks not to be compared"),
    "ignored_as_of_old": ({"code": marked("#PYTEST_VALIDATE_IGNORE_OUTPUT"), "text": WRONG}, "asks not to be compared"),
    "skipped": ({"code": marked("##  NBVAL_SKIP"), "text": WRONG}, "asks not to be compared"),
    "may_raise": ({"code": marked("# NBVAL_RAISES_EXCEPTION"), "text": WRONG}, "asks not to be compared"),
    "listed_elsewhere": ({"code": marked("# NBVAL_IGNORE_OUTPUT"), "text": WRONG}, "asks not to be compared"),
    "folder/other": ({"code": marked("# NBVAL_IGNORE_OUTPUT"), "text": WRONG}, "asks not to be compared"),
    "more": ({"more": {"text/html": "<p>"}}, "differ"),
    "tag_ignore": ({"tags": ["nbval-ignore-output"], "text": WRONG}, "asks not to be compared"),
    "tag_skip": ({"tags": ["nbval-skip"], "text": WRONG}, "asks not to be compared"),
    "tag_raises": ({"tags": ["raises-exception"]}, "asks not to be compared"),
    "tag_nbval_raises": ({"tags": ["nbval-raises-exception"]}, "asks not to be compared"),
}
CASES = ACCEPTED | {name: changed for name, (changed, _) in REJECTED.items()}
# Those for which the name of the notebook or the number of a cell matters; all others are cells of one notebook, since
# each takes a kernel of its own, a second of work.
ALONE = [name for name in CASES if "listed" in name or "/" in name or name in ("right", "order", "one_channel")]
JOINED = [name for name in CASES if name not in ALONE]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An empty project with three cells for each way to be right or wrong."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "folder").mkdir()
    for file in ("conftest.py", "book/_tools/compare.py"):
        shutil.copy(ROOT / file, folder)
    draw(folder / "picture.png")
    draw(folder / "shifted.png", shift=(39, 0, 0))
    draw(folder / "other.png", text="two")
    shutil.copy(folder / "picture.png", folder / "folder")
    joined = v4.new_notebook()
    for name, changed in CASES.items():
        picture = folder / changed.get("png", "picture.png")
        made = notebook(picture, **{key: value for key, value in changed.items() if key != "png"})
        if name in ALONE:
            nbformat.write(made, folder / f"{name}.ipynb")
            continue
        for cell in made.cells:
            cell.execution_count = cell.execution_count and cell.execution_count + 3 * JOINED.index(name)
        joined.cells += made.cells
    nbformat.write(joined, folder / "joined.ipynb")
    return folder


@pytest.fixture(scope="module")
def said(project):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "-rA", "--nbval"]
    listed = ("listed.ipynb:2", "listed_elsewhere.ipynb:1", "folder/listed.ipynb:2", "other.ipynb:2")
    told = "\n".join(f"{place} it shows how an exception is listed" for place in listed)
    command += ["--nbval-current-env", "-o", f"not_compared={told}"]
    done = subprocess.run([*command, "."], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout


def of(name, said):
    """Verdicts on the three cells of one case, and what was printed about the failing ones."""
    file, first = (name, 0) if name in ALONE else ("joined", 3 * JOINED.index(name))
    cells = [rf"{file}\.ipynb::Cell {first + number}" for number in range(3)]
    kinds = "PASSED|FAILED|XFAIL|SKIPPED"
    verdicts = [kind for cell in cells for kind in re.findall(rf"^({kinds}) {cell}\b", said, re.MULTILINE)]
    failures = re.split(r"^_{3,} (\S+::Cell \d+) _{3,}$", said, flags=re.MULTILINE)
    told = zip(failures[1::2], failures[2::2], strict=True)
    return verdicts, "\n".join(text for cell, text in told if any(re.fullmatch(own, cell) for own in cells))


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name, said):
    assert of(name, said)[0] == ["PASSED"] * 3, said


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name, said):
    verdicts, why = of(name, said)
    assert "FAILED" in verdicts, said
    assert REJECTED[name][1] in why, said


def test_a_picture_that_differs_is_written_with_its_difference(project, said):
    assert (project / "_build" / "nbval-diff" / "one_channel-cell3.png").exists()
    assert not (project / "_build" / "nbval-diff" / "right-cell3.png").exists()


WITHOUT = """
import os, sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "nbval":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing)
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
import pytest
sys.exit(pytest.main(["-q", "test_one.py"]))
"""


def test_without_nbval_everything_else_is_tested(project):
    (project / "test_one.py").write_text("def test_one():\n    pass\n")
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=project, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_gates_name_nothing_of_this_project():
    for file in ("conftest.py", "book/_tools/compare.py"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"vaebook|book/|experiments|chapters", text), file


@pytest.mark.parametrize(("deaths", "starts"), [(0, 1), (1, 2), (2, 2)])
def test_a_kernel_that_dies_at_its_start_is_started_once_more(deaths, starts, monkeypatch):
    made = importlib.util.spec_from_file_location("own_conftest", ROOT / "conftest.py")  # tests/browser has one, too
    conftest = importlib.util.module_from_spec(made)
    made.loader.exec_module(conftest)
    calls = []

    def start(name, *, cwd):
        calls.append((name, cwd))
        if len(calls) <= deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return "a kernel"

    monkeypatch.setattr(conftest, "_nbval_kernel", start)
    if deaths > 1:
        with pytest.raises(RuntimeError, match="Kernel died"):
            conftest._start_kernel("python3", cwd="here")
    else:
        assert conftest._start_kernel("python3", cwd="here") == "a kernel"
    assert calls == [("python3", "here")] * starts
