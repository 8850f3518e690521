"""What somebody gets who unpacks an archive of the source: both commands work, wherever that is and without network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from fingerprint import ROOT

NOBODY = 65534
CUT = """\
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # kernels talk to us over 127.0.0.1
os.execvp(sys.argv[1], sys.argv[1:])
"""
REACHES = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
"""An address of which nothing will ever answer: without network it is unreachable at once."""


def ordinary_user():
    """Words before a command that make the administrator an ordinary user, and a Python that one may run.

    An administrator's own Python often lies where nobody else may look; one of the system's of the same version can
    use the same packages.
    """
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if os.geteuid() or shutil.which("setpriv") is None:
        return [], sys.executable
    probe = f"import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    start = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"  # setpriv itself still may look anywhere
    version = "python{}.{}".format(*sys.version_info)
    for python in (sys._base_executable, f"/usr/local/bin/{version}", f"/usr/bin/{version}"):
        line = [*words, python, "-c", start, python, "-c", probe]
        if subprocess.run(line, capture_output=True, check=False).returncode == 0:
            return words, python
    return [], sys.executable


def without_network():
    """Words before a command that cut the network."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    cut = ["unshare", "--net", *own, sys.executable, "-c", CUT]
    try:
        done = subprocess.run([*cut, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode:
        pytest.skip(f"the network may not be cut here: {done.stderr.strip()}")
    return cut


@pytest.fixture
def place():
    """A folder that an ordinary user may work in, with an archive of the source unpacked in one of an awkward name."""
    top = Path(tempfile.mkdtemp())
    root, home = top / "mein schönes Buch", top / "home"
    for folder in (root, home):
        folder.mkdir()
    try:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("the source has no history that tells what belongs to it")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    if ordinary_user()[0]:
        for path in (top, *top.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    yield root
    shutil.rmtree(top, ignore_errors=True)


def source(root):
    """Digests of all files that are not made."""
    made = {
        "_build",
        ".venv",
        "__pycache__",
        "mathjax",
        "vaebook.egg-info",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
    }
    paths = (path for path in root.rglob("*") if path.is_file() and not made & set(path.relative_to(root).parts))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_both_commands_work_in_a_new_place_and_again_without_network(place):
    (user, python), before = ordinary_user(), source(place)

    def run(*command, cut=()):
        variables = {"PATH": os.environ["PATH"], "HOME": str(place.parent / "home"), "LC_ALL": "C"}
        line = [*cut, *user, *command]
        done = subprocess.run(line, cwd=place, env=variables, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    # The packages of this environment stand in for what would be downloaded: set-up finds them in theirs.
    code, said = run(python, "-m", "venv", ".venv")
    assert code == 0, said
    (place / ".venv" / ".made-from").write_text(f"packages that are to be brought up to date in {place}\n")
    (own,) = (place / ".venv").glob("lib/python*/site-packages")
    (own / "reuse.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for turn in ([], without_network):
        cut = turn() if turn else []
        reached, why = run(python, "-c", REACHES, cut=cut)
        assert not cut or (reached and "unreachable" in why)
        code, said = run("make", "book", cut=cut)
        assert code == 0, said
        assert f"Open {(place / '_build' / 'html' / 'index.html').as_uri()}" in said
        assert "mein%20sch%C3%B6nes%20Buch" in said
        code, said = run("make", "test", "CHAPTER=mixture/index", cut=cut)
        assert code == 0, said
        code, said = run(".venv/bin/python", "-c", "import vaebook; print(vaebook.__file__)", cut=cut)
        assert said == f"{place / 'vaebook' / '__init__.py'}\n"
        shutil.rmtree(place / "_build")
    assert source(place) == before
