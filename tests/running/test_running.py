"""Parts that run: what is printed, what fails, and that an interruption leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fingerprint import ROOT

from tests.running import matrix, parallel, slowest

AT_IMPORT = torch.rand(3)
COMMANDS = [
    "book",
    "test",
    "test-slow",
    "execute",
    "experiments",
    "bench",
    "mutants",
    "stability",
    "new-chapter",
    "lock",
]
PARTS = [sys.executable, str(ROOT / "tests" / "running" / "parts.py")]
FAKE_MAKE = """\
#!/bin/sh
echo "begin $2"
case "$2" in
*bad) exit 2 ;;
*long) trap 'echo "make: Interrupt"; exit 130' INT; sleep 60 & echo $! >"{folder}/child"; wait ;;
*) sleep 0.2 ;;
esac
echo "end $2"
"""


@pytest.fixture
def environment(tmp_path):
    """Variables under which a script that only pretends is taken for make."""
    fake = tmp_path / "make"
    fake.write_text(FAKE_MAKE.format(folder=tmp_path))
    fake.chmod(0o755)
    return os.environ | {"MAKE": str(fake), "MAKELEVEL": ""}


def parts(environment, *stages):
    return subprocess.run([*PARTS, *stages], env=environment, capture_output=True, text=True, check=False)


def test_parts_report_in_one_piece_with_their_time(environment):
    done = parts(environment, "one+two", "three")
    assert done.returncode == 0 and done.stderr == ""
    for name in ("one", "two", "three"):
        whole = rf"======== {name} ========\nbegin check-{name}\nend check-{name}\n{name} \d+ s\n"
        assert re.search(whole, done.stdout), done.stdout
    assert re.search(r"\npassed in 0 min \d+ s: (one|two) \d+ s, (one|two) \d+ s, three \d+ s\n$", done.stdout)


def test_the_part_that_failed_is_named_and_the_others_are_run(environment):
    done = parts(environment, "bad+two", "three")
    assert done.returncode == 1
    assert re.search(r"\nFAILED in .*: bad FAILED \d+ s, two \d+ s, three \d+ s\n$", done.stdout)


@pytest.mark.parametrize("level", ["", "1"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_everything_that_was_started(environment, tmp_path, number, level):
    """Under make its line is enough."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = subprocess.Popen([*PARTS, "long", "two"], env=environment | {"MAKELEVEL": level}, **streams)
    child = tmp_path / "child"
    shown = [running.stdout.readline() for _ in range(3)]  # what is not shown yet is not shown later
    await_(lambda: child.exists() and child.read_text().strip())
    running.send_signal(number)
    shown.append(running.stdout.read())
    assert running.wait(50) == (-signal.SIGINT if level else 130)
    assert "".join(shown) == "\n======== long ========\nbegin check-long\n" + "\ninterrupted\n" * (not level)
    await_(lambda: not alive(int(child.read_text())))


@pytest.mark.parametrize("tool", ["parts", "run"])
def test_what_a_make_that_is_killed_had_started_ends(environment, tmp_path, tool):
    """A shell stands in for make."""
    child, script = tmp_path / "child", tmp_path / "script.py"
    script.write_text(f"import os, time\nopen({str(child)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    runner = [sys.executable, str(ROOT / "book" / "_tools" / "run.py"), str(script)]
    line = ["sh", "-c", '"$@"; true', "sh", *({"parts": [*PARTS, "long"], "run": runner}[tool])]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    shell = subprocess.Popen(line, env=environment | {"MAKELEVEL": "1"}, **streams)
    await_(lambda: child.exists() and child.read_text().strip())
    shell.kill()
    shell.wait()
    await_(lambda: not alive(int(child.read_text())))


def test_what_make_is_asked_to_end_is_what_works():
    """A shell between the two would end alone."""
    said = subprocess.run(["make", "-n", "-B", *COMMANDS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if ".py" in line]
    assert len(lines) >= len(COMMANDS)
    assert [line for line in lines if not re.search(r"(^|&& |; )exec |setup\.sh", line)] == []


def test_what_bench_installs_does_not_make_an_interruption_wait():
    """A shell that waits for a command hears of nothing; in the background it is ended with the shell."""
    said = subprocess.run(["make", "-n", "-B", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in said.splitlines() if " pip install" in line]
    assert len(lines) == 2 and all(line.startswith("run ") for line in lines)


def await_(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process):
    """Whether it runs: one that has ended is listed, here and there for seconds, until the first process takes note."""
    with suppress(OSError):  # where there is no /proc
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


SLOW_TO_END = """
import atexit, os, time
import pytest
def say(word):
    with open("{log}", "a") as log:
        log.write(word)
@pytest.fixture
def held():
    yield
    say("torn down")
def test_long(held):
    atexit.register(time.sleep, 60)  # as a large library takes its time
    say("begun, ")
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "how"), [(0, "Ctrl-C"), (1, "Ctrl-C"), (1, "parts.py is killed")])
def test_interrupted_tests_tear_down_and_then_end_at_once(workers, how, tmp_path):
    log, test = tmp_path / "log", tmp_path / "test_it.py"
    test.write_text(SLOW_TO_END.format(log=log))
    plugins = ["-p", "tests.running.parallel", "-p", "no:cacheprovider", "-n", str(workers)]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), *plugins, str(test)]
    lives, held = os.pipe()
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (also where a shell has it ignored)
    settings = {"stdout": subprocess.DEVNULL, "start_new_session": True, "pass_fds": [lives], "preexec_fn": heard}
    with open(lives, "rb"), open(held, "wb") as pipe:
        running = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"VAEBOOK_LIVES": str(lives)}, **settings)
        await_(lambda: log.exists() and log.read_text())
        if how == "Ctrl-C":
            os.killpg(running.pid, signal.SIGINT)
        else:
            pipe.close()  # not after an interruption: that would be a second one
        assert running.wait(20) == 2
    assert log.read_text() == "begun, torn down"


def test_a_worker_writes_no_summary_that_nobody_sees(request):
    if not hasattr(request.config, "workerinput"):
        pytest.skip("this process is no worker")
    assert not request.config.pluginmanager.has_plugin("terminalreporter")


def test_unknown_files_come_first_and_then_the_longest(monkeypatch, tmp_path):
    seconds = tmp_path / "seconds.json"
    seconds.write_text('{"a.py": 1.0, "b.py": 20.0}')
    monkeypatch.setattr(parallel, "SECONDS", seconds)
    items = [SimpleNamespace(nodeid=name) for name in ("a.py::x", "b.py::x", "new.py::x", "a.py::y", "b.py::y")]
    parallel.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["new.py::x", "b.py::x", "b.py::y", "a.py::x", "a.py::y"]


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_bounds.TestElbo" name="one" time="1.5" />
<testcase classname="tests.test_bounds" name="two" time="3.0" />
<testcase classname="book.mixture.index.ipynb" name="Cell 0" time="2.0" />
<testcase classname="vaebook.bounds" name="vaebook.bounds.elbo" time="0.1" />
</testsuite></testsuites>"""


def test_the_slowest_tests_are_listed_and_files_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(slowest, "REPORTS", tmp_path)
    monkeypatch.setattr(slowest, "SECONDS", tmp_path / "seconds.json")
    monkeypatch.setattr("sys.argv", ["slowest.py", "--store", "--tests", "2"])
    assert slowest.main() == 1  # nothing was measured
    (tmp_path / "code.xml").write_text(REPORT)
    assert slowest.main() == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["3.0", "2.0", "6.6", "4.5", "2.0"]
    assert lines[0].endswith("tests/test_bounds.py::two") and lines[1].endswith("book/mixture/index.ipynb::Cell 0")
    kept = {"book/mixture/index.ipynb": 2.0, "tests/test_bounds.py": 4.5, "vaebook/bounds.py": 0.1}
    assert json.loads((tmp_path / "seconds.json").read_text()) == kept


def test_files_of_which_the_seconds_are_kept_exist():
    assert [unit for unit in json.loads(parallel.SECONDS.read_text()) if not (ROOT / unit.split("[")[0]).exists()] == []


def test_a_file_stays_with_one_worker_and_each_page_with_one():
    for nodeid, unit in {
        "tests/test_bounds.py::TestElbo::test_one[book/intro]": "tests/test_bounds.py",
        f"{parallel.PAGES}::test_page_is_accessible[book/intro-light]": f"{parallel.PAGES}[book/intro]",
        f"{parallel.PAGES}::test_ids_are_unique[book/intro]": f"{parallel.PAGES}[book/intro]",
        f"{parallel.PAGES}::test_root_leads_to_the_book": parallel.PAGES,
        "book/mixture/index.ipynb::Cell 3": "book/mixture/index.ipynb",
    }.items():
        assert parallel.unit(nodeid) == unit
    assert all((ROOT / file).exists() for file in (parallel.FIRST, parallel.PAGES))


# Versions of Python

FAKE_SETUP = """\
echo "made $1 with $PYTHON"
mkdir -p "$1/bin"
printf '%s\\n' '#!/bin/sh' 'case "$*" in' '*doctest*) echo "1 failed, 2 passed in 1.00s"; exit 1 ;;' \
    '*) echo "3 passed, 1 skipped in 1.00s" ;;' esac >"$1/bin/python"
chmod +x "$1/bin/python"
"""


@pytest.fixture
def tree(monkeypatch, tmp_path):
    """A tree with a set-up that makes interpreters that only pretend."""
    (tmp_path / "book" / "_tools").mkdir(parents=True)
    (tmp_path / "book" / "_tools" / "setup.sh").write_text(FAKE_SETUP)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path / "_build" / "matrix")
    return tmp_path


def test_the_table_tells_what_passed_what_failed_and_what_is_missing(tree, capsys):
    broken = tree / "broken"  # what a version manager leaves for a version that is not active
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert matrix.main([sys.executable, "/no/such/python", str(broken)]) == 1
    lines = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert rows[0] == ["python", "environment", "code tests", "doctests", "chapters", "time"]
    told = ["ok", "3 passed, 1 skipped", "FAILED: 1 failed, 2 passed", "3 passed, 1 skipped"]
    name = f"python{'.'.join(map(str, sys.version_info[:3]))}"
    assert rows[1][:-1] == [name, *told] and rows[1][-1].endswith(" s")
    assert [row[:2] for row in rows[2:]] == [[path, "no such interpreter"] for path in ("/no/such/python", str(broken))]
    log = (matrix.FOLDER / f"{name}.log").read_text()
    assert f"made _build/matrix/{name} with {sys.executable}" in log and log.count("========") == 8


def test_a_failed_environment_runs_nothing_and_a_lone_missing_interpreter_fails(tree, capsys):
    (tree / "book" / "_tools" / "setup.sh").write_text("echo 'no room'; exit 3\n")
    assert matrix.main([sys.executable]) == 1
    assert "FAILED: exit status 3 no room" in capsys.readouterr().out
    assert matrix.main(["/no/such/python"]) == 1
    assert "no such interpreter" in capsys.readouterr().out


def test_a_missing_interpreter_beside_one_that_passes_is_no_failure(tree, monkeypatch, capsys):
    monkeypatch.setattr(matrix, "CHECKS", {"code tests": ["tests"]})
    assert matrix.main([sys.executable, "/no/such/python"]) == 0
    assert "no such interpreter" in capsys.readouterr().out


@pytest.mark.parametrize("_", range(2))
def test_what_a_test_draws_does_not_depend_on_what_ran_before(_):
    """A model at the top of a file had other weights where the files before it were others, and once they were odd."""
    first = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AT_IMPORT, first) and torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("chapters", [True, False])
def test_only_kernels_of_chapters_look_for_garbage_less_often(chapters, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(parallel, "KEPT", {})
    parallel.pytest_configure(SimpleNamespace(getoption=lambda name, _: chapters and name == "nbval"))
    code = "import gc, sys; print(gc.get_threshold()[0] == 50_000, 'elsewhere' in ' '.join(sys.path))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(chapters), "True"]
