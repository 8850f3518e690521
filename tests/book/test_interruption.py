"""What runs long is stopped at any moment, or runs twice at once, and the files are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fingerprint import ROOT, as_md, read_md
from toy import CHAPTER

EXPERIMENT = """
import time
from harness import Experiment

def compute(n):
    time.sleep(0.05)
    return {"square": n * n}

if __name__ == "__main__":
    experiment = Experiment("toy", {"n": 8})
    pieces = [experiment.piece(str(n), lambda n=n: compute(n)) for n in range(8)]
    experiment.write({"rows": [{"square": piece["square"]} for piece in pieces]})
"""
CONFIG = """\
title: A toy
author: Nobody
execute: {execute_notebooks: "off"}
exclude_patterns: [_build, ".*", "**/.*"]
only_build_toc_files: true
"""
COMMANDS = {
    "execute": ["book/_tools/execute.py", "--all"],
    "experiments": ["book/experiments/harness.py", "toy"],
    "build": ["book/_tools/build.py"],
}
WAITS = "Waiting for another run that works here.\n"


@pytest.fixture
def toy(tmp_path):
    """A project of one chapter and one experiment, with the tools of this one."""
    root = tmp_path / "toy"
    shutil.copytree(ROOT / "book" / "_tools", root / "book" / "_tools", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("book/experiments", "book/results", "vaebook"):
        (root / folder).mkdir()
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    shutil.copy(ROOT / "book" / "experiments" / "harness.py", root / "book" / "experiments")
    (root / "book" / "experiments" / "toy.py").write_text(EXPERIMENT)
    md = root / "book" / "toy.md"
    md.write_text(CHAPTER)
    md.write_text(as_md(read_md(md)))
    (root / "_config.yml").write_text(CONFIG)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/toy.ipynb\n")
    return root


def start(toy, command, **settings):
    line = [sys.executable, "book/_tools/run.py", *COMMANDS[command]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "MAKELEVEL": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=toy, env=environment, start_new_session=True, **streams | settings)


def run(toy, command, **settings):
    running = start(toy, command, **settings)
    out, err = running.communicate()
    return running.returncode, out, err


def content(toy):
    """What the commands write, without what tells when and how fast."""
    found = {}
    for path in sorted(toy.rglob("*")):
        name = path.relative_to(toy).as_posix()
        if path.is_file() and not name.startswith(("_build/html", "_build/experiments")):
            found[name] = path.read_bytes()
    if "book/results/toy.json" in found:
        found["book/results/toy.json"] = json.loads(found["book/results/toy.json"])["rows"]
    pages = (toy / "_build" / "html").rglob("*.html")
    found["pages"] = {path.name: re.sub("[0-9a-f]{8}", "", path.read_text()) for path in pages}
    return found


def ended(folder):
    """Whether nothing that works in a folder is left, after a while; only Linux tells."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not any(working_in(folder)):
            return True
        time.sleep(0.1)
    return False


def working_in(folder):
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(place).startswith(str(folder)):
                yield place


def listens(pid):
    """Whether a process has begun to handle requests to end; before that, Python itself starts. Only Linux tells."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1)


def stopped(toy, command, number, delay, *, group):
    """Start a command and, once it listens, send it a signal; what it said, and how it ended."""
    running, end = start(toy, command), time.monotonic() + 30
    while running.poll() is None and not listens(running.pid) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(delay)
    (os.killpg if group else os.kill)(running.pid, number)
    _, err = running.communicate()
    if number != signal.SIGKILL:
        assert ended(toy)
    return running.returncode, err.removeprefix(WAITS)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "times"), [("execute", 21), ("experiments", 21), ("build", 9)])
def test_what_is_stopped_many_times_ends_as_if_undisturbed(command, times, toy):
    begin = time.monotonic()
    if command == "build":
        assert run(toy, "execute")[0] == 0
        begin = time.monotonic()
    assert run(toy, command)[0] == 0
    took, undisturbed = time.monotonic() - begin, content(toy)
    moments = random.Random(0)
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    for turn in range(times):
        shutil.rmtree(toy / "_build" / "experiments", ignore_errors=True)
        number = signals[3 * turn // times]  # those last after which something may be left for the next run
        # From the keyboard an interruption comes to all processes of the group, a request to end to one.
        delay = 0.3 + moments.random() * took
        # What a build that was killed had started may go on for a while, and the next one waits for it.
        code, err = stopped(toy, command, number, delay, group=number == signal.SIGINT)
        if code not in (0, -signal.SIGKILL):  # it may have ended before
            assert code == 130 and err == f"{COMMANDS[command][0].split('/')[-1][:-3]}: interrupted\n"
        if number != signal.SIGKILL:
            assert content(toy).keys() == undisturbed.keys(), err
        assert {k: v for k, v in content(toy).items() if k in undisturbed} == undisturbed
    shutil.rmtree(toy / "_build" / "experiments", ignore_errors=True)
    code, _, err = run(toy, command)
    assert code == 0 and content(toy) == undisturbed, err
    assert not list(toy.rglob(".vaebook-*")) and not list(toy.rglob(".making-*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_at_once_end_like_one(command, toy):
    if command == "build":
        assert run(toy, "execute")[0] == 0
    assert run(toy, command)[0] == 0
    alone = content(toy)
    shutil.rmtree(toy / "_build" / "experiments", ignore_errors=True)
    both = [start(toy, command) for _ in range(2)]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert content(toy) == alone
    if command == "build":
        assert sorted(err for _, err in said) == ["", WAITS]


def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


@pytest.mark.parametrize("command", ["execute", "experiments"])
def test_a_disk_that_is_full_is_one_line(command, toy):
    before = content(toy)
    code, _, err = run(toy, command, preexec_fn=limited)
    assert code == 1 and len(err.splitlines()) == 1 and "File too large: " in err, err
    assert {k: v for k, v in content(toy).items() if k in before} == before
    assert not list(toy.rglob(".vaebook-*"))


@pytest.mark.slow
def test_a_build_on_a_full_disk_is_one_line_and_leaves_the_site_that_was_there(toy):
    assert run(toy, "execute")[0] == 0 and run(toy, "build")[0] == 0
    before = content(toy)
    code, _, err = run(toy, "build", preexec_fn=limited)
    assert code == 1 and len(err.splitlines()) == 2 and "File too large" in err, err
    assert err.splitlines()[1] == "The build failed: see the warnings above."
    assert content(toy) == before


def test_a_script_that_runs_through_the_runner_keeps_its_arguments_errors_and_status(tmp_path):
    script = tmp_path / "some.py"
    command = [sys.executable, str(ROOT / "book" / "_tools" / "run.py"), str(script), "a b", "--c"]

    def told(code, level=""):
        script.write_text(f"import os, sys\n{code}\n")
        here = os.environ | {"MAKELEVEL": level}
        done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert told("print(__name__, sys.argv[1:], sys.path[0])") == (0, f"__main__ ['a b', '--c'] {tmp_path}\n", "")
    assert told("sys.exit(3)") == (3, "", "")
    assert told("sys.exit('no')") == (1, "", "no\n")
    assert told("raise KeyboardInterrupt") == (130, "", "some: interrupted\n")
    assert told("os.kill(os.getpid(), 15)") == (130, "", "some: interrupted\n")
    assert told("raise KeyboardInterrupt", "1") == (-signal.SIGINT, "", "")  # make has a line for that
    assert told("raise OSError(28, 'No space left on device', 'x')")[::2] == (
        1,
        "some: [Errno 28] No space left on device: 'x'\n",
    )
    code, _, err = told("raise FileNotFoundError(2, 'No such file', 'x')")
    assert code == 1 and err.startswith("Traceback")
    assert told("os.kill(os.getpid(), 9)") == (137, "", "")  # as a shell has it
    asks = "import time\ntry:\n    os.kill(os.getppid(), 15)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    "
    assert told(f"{asks}print('so', file=sys.stderr, flush=True)\n    sys.exit(3)") == (130, "", "some: interrupted\n")
    assert told(f"{asks}print('in time')") == (0, "in time\n", "")  # it ended as it would have
    code, _, err = told("1 / 0")
    assert code == 1 and err.endswith("ZeroDivisionError: division by zero\n")
    # `make stability` handed a folder to its kernels that they looked for in their own.
    script.write_text("import os\nos.chdir('/')\nprint(__file__)\n")
    here = [*command[:2], script.name]
    assert subprocess.run(here, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == f"{script}\n"


@pytest.mark.parametrize("who", ["runner", "script"])
def test_an_interruption_that_comes_when_the_work_is_done_changes_nothing(who, tmp_path):
    """Python's own end takes a while and has no handlers any more: the status was -2, and nothing said why."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, signal\nfirst = os.getpid()\n"
        f"late = lambda: (os.getpid() == first) == {who == 'runner'} and os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(late)\n"
    )
    script = tmp_path / "some.py"
    script.write_text("print('done')\n")
    command = [sys.executable, str(ROOT / "book" / "_tools" / "run.py"), str(script)]
    here = os.environ | {"MAKELEVEL": "", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_what_a_script_started_and_left_ends_with_it(tmp_path):
    script = tmp_path / "some.py"
    script.write_text("import subprocess\nsubprocess.Popen(['sleep', '60'])\n")
    command = [sys.executable, str(ROOT / "book" / "_tools" / "run.py"), str(script)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=50)
    assert ended(tmp_path)


def test_one_waits_for_the_other(tmp_path):
    command = [sys.executable, str(ROOT / "book" / "_tools" / "alone.py"), str(tmp_path), "sh", "-c"]
    script = 'echo "begin" >>log; sleep 0.3; echo "end" >>log'
    both = [subprocess.Popen([*command, script], cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(one.communicate()[1] for one in both)
    assert (tmp_path / "log").read_text().split() == ["begin", "end"] * 2
    assert said == ["", WAITS]


def test_what_make_starts_of_ours_it_starts_through_the_runner():
    """As `make lab` and `make matrix` did not: an interruption was a traceback, and what they had started went on."""
    own = re.findall(r"\$\(PY\) ((?:book|tests)/\S+\.py)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(own) == {"book/_tools/run.py", "tests/running/parts.py"}  # which does as much itself
