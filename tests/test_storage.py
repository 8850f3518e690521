"""How files get to the disk: whole or not at all, whatever comes between."""

from __future__ import annotations

import ast
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from vaebook import storage
from vaebook.storage import check_path, write_atomically

ROOT = Path(__file__).resolve().parents[1]
WRITER = """
import signal, sys
from pathlib import Path
from vaebook.storage import write_atomically
if sys.argv[3:]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
print("ready", flush=True)
while True:
    for byte in b"ab":
        write_atomically(Path(sys.argv[1]), bytes([byte]) * int(sys.argv[2]))
"""


WRITES = {"write_text", "write_bytes", "savefig", "save_file", "dump", "tofile", "savetxt", "savez", "to_csv"}
"""Methods that write a file; `open` counts where its mode is not to read."""
ELSEWHERE = {
    "book/experiments/costs.py": "tells the kernel to reset the peak of memory, which is no file",
    "vaebook/storage.py": "the one function",
    "vaebook/panels.py": "into memory",
    "book/_tools/figures.py": "into memory",
    "book/_tools/pdf.py": "a page among those that were built",
    "tests/mutants/mutate.py": "a copy of the project in a temporary folder",
    "tests/running/matrix.py": "a log, line by line",
}
"""Files that write besides, and why that is in order."""


def writes(tree):
    """Calls that write a file by themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            mode = [x.value for x in (*node.args, *(k.value for k in node.keywords)) if isinstance(x, ast.Constant)]
            opens = name == "open" and any(
                isinstance(m, str) and re.fullmatch("[rwaxbt+]*[wax+][bt+]*", m) for m in mode
            )
            if (
                name in WRITES
                or opens
                or (owner in {"np", "torch", "nbformat", "jupytext"} and name in {"save", "write"})
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_everything_is_written_by_the_one_function():
    folders = ("vaebook", "book/_tools", "book/experiments", "tests/benchmarks", "tests/mutants", "tests/running")
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*.py") if not p.name.startswith("test_")]
    found = {p.relative_to(ROOT).as_posix(): list(writes(ast.parse(p.read_text(encoding="utf-8")))) for p in paths}
    found = {path: calls for path, calls in found.items() if calls}
    assert {path: calls for path, calls in found.items() if path not in ELSEWHERE} == {}
    assert found.keys() == ELSEWHERE.keys()


@pytest.mark.parametrize(
    "code",
    [
        "Path(p).write_text(t)",
        "open(p, 'w')",
        "p.open('ab')",
        "p.open(mode='x')",
        "open(p, 'r+')",
        "json.dump(a, f)",
        "np.save(p, a)",
        "torch.save(a, p)",
        "figure.savefig(p)",
        "safetensors.torch.save_file(t, p)",
        "nbformat.write(n, p)",
    ],
)
def test_what_would_write_is_seen(code):
    assert list(writes(ast.parse(code)))


@pytest.mark.parametrize("code", ["open(p)", "p.open('rb')", "write_atomically(p, b)", "safetensors.torch.save(t)"])
def test_and_nothing_else(code):
    assert not list(writes(ast.parse(code)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def writer(target, *more):
    command = [sys.executable, "-c", WRITER, str(target), "2000000", *more]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    running.stdout.readline()
    return running


def whole(target):
    content = target.read_bytes()
    return content in (b"a" * 2_000_000, b"b" * 2_000_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "more"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ("handled",)), (signal.SIGTERM, ()), (signal.SIGKILL, ())],
)
def test_a_writer_that_is_stopped_leaves_whole_files_and_what_it_leaves_besides_is_removed(number, more, tmp_path):
    target, delays = tmp_path / "file", random.Random(int(number))
    for _ in range(20):
        running = writer(target, *more)
        time.sleep(0.02 + 0.1 * delays.random())
        running.send_signal(number)
        running.wait()
        assert whole(target)
        if number == signal.SIGINT or more:
            assert names(tmp_path) == ["file"]
    write_atomically(target, b"new")
    assert names(tmp_path) == ["file"] and target.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    target, left = tmp_path / "file", tmp_path / ".vaebook-0123456789abcdef"
    left.write_bytes(b"half")
    running = [writer(target) for _ in range(2)]
    try:
        for _ in range(15):
            write_atomically(target, b"a" * 2_000_000)
            assert whole(target) and not left.exists()
        assert [one.poll() for one in running] == [None, None]  # neither lost its file
    finally:
        for one in running:
            one.kill()
            one.wait()
    write_atomically(target, b"new")
    assert names(tmp_path) == ["file"]


def test_threads_that_write_at_once_neither_tear_nor_lose_a_file(tmp_path):
    failed = []

    def write(number):
        try:
            for _ in range(50):
                write_atomically(tmp_path / f"file{number % 2}", bytes([number]) * 100_000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == ["file0", "file1"]
    assert all(len(set((tmp_path / name).read_bytes())) == 1 for name in names(tmp_path))


def test_permissions_and_links_are_kept(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder / "file")  # which is not there yet
    write_atomically(link, b"one")
    assert link.is_symlink() and (folder / "file").read_bytes() == b"one"
    for mode in (0o600, 0o640, 0o400, 0o755):
        (folder / "file").chmod(mode)
        write_atomically(link, b"two")
        assert link.is_symlink() and stat.S_IMODE((folder / "file").stat().st_mode) == mode
    assert names(folder) == ["file"] and (folder / "file").read_bytes() == b"two"


def test_what_is_to_be_secret_is_never_open(tmp_path, monkeypatch):
    target, seen = tmp_path / "file", []
    target.write_bytes(b"old")
    target.chmod(0o600)
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    write_atomically(target, b"new")
    assert seen == [0o600]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_the_longest_name_and_a_name_with_signs(tmp_path):
    for name in ("x" * 255, "ü [*] ?\n.json"):
        write_atomically(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_a_device_is_written_to_and_stays_one():
    """A terminal, which nothing can take the place of: where this failed as root, /dev/null would become a file."""
    (far, near), content = os.openpty(), b"told"
    write_atomically(Path(os.ttyname(near)), content)
    assert os.read(far, 10) == content and stat.S_ISCHR(os.stat(os.ttyname(near)).st_mode)
    os.close(near)
    os.close(far)
    code = (
        "from pathlib import Path; from vaebook.storage import write_atomically as w; w(Path('/dev/stdout'), b'told')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"told"


@pytest.mark.parametrize("name", ["loop", "/dev/full"])
def test_a_name_under_which_nothing_can_be_written_is_named(name, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / name
    if path.is_absolute() and not path.exists() and name != "loop":
        pytest.skip("there is no such device here")
    with pytest.raises(OSError, match=re.escape(repr(str(path)))):
        write_atomically(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["loop"] and (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "\0", Path("a\0")])
def test_a_name_that_no_file_can_have_is_shown(name):
    with pytest.raises(ValueError, match=r"path: expected a name without null characters, got '.*\\x00"):
        check_path(name)


def test_a_folder_in_the_way_is_said(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path / 'file'}'$"):
        write_atomically(tmp_path / "file", b"1")
    assert names(tmp_path) == ["file"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{target}'$"):
            write_atomically(target, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["file"] and target.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=f"'{tmp_path / 'file'}'$"):
            write_atomically(tmp_path / "file", b"1")
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


MOUNT = """
mount -t tmpfs -o size=64k none "$0" || exit 77
echo old >"$0/file"
[ "$2" = full ] || mount -o remount,ro "$0" || exit 77
"$1" -c 'import sys
from pathlib import Path
from vaebook.storage import write_atomically
try:
    write_atomically(Path(sys.argv[1]), b"x" * 200_000)
except OSError as error:
    print(error)' "$0/file"
ls -A "$0"; cat "$0/file"
"""


@pytest.mark.parametrize(("kind", "words"), [("full", "No space left on device"), ("ro", "Read-only file system")])
def test_a_disk_that_is_full_or_cannot_be_written_to(kind, words, tmp_path):
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT, str(tmp_path), sys.executable, kind]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    number = {"full": 28, "ro": 30}[kind]
    assert done.stdout == f"[Errno {number}] {words}: '{tmp_path / 'file'}'\nfile\nold\n", done.stderr


def arrays_file(folder, kind):
    arrays = {"loc": np.zeros((4, 2)), "labels": np.zeros((50, 50))}
    if kind == "npz":
        np.savez(folder / "codes", **arrays)
    else:
        safetensors.numpy.save_file(arrays, folder / f"codes.{kind}")
    return folder / f"codes.{kind}"


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_only_wanted_arrays_are_read(tmp_path, kind):
    found = storage.read_arrays(arrays_file(tmp_path, kind), ("loc",))
    assert found.keys() == {"loc", "labels"} and found["labels"] is None and found["loc"].shape == (4, 2)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_arrays_may_take_a_quarter_of_the_memory_and_only_wanted_ones_count(kind, tmp_path, monkeypatch):
    file = arrays_file(tmp_path, kind)
    size = 4 * 2 * 8 + (128 if kind == "npz" else 0)  # what it holds, and the header of an npy file
    monkeypatch.setattr(storage, "room", lambda: size / 8)
    assert storage.read_arrays(file, ("loc",))["loc"].shape == (4, 2)
    monkeypatch.setattr(storage, "room", lambda: (size - 1) / 8)
    with pytest.raises(ValueError, match=r"arrays of 0.0 GB, from [\d,]+ bytes, where there are 0.0 GB of memory"):
        storage.read_arrays(file, ("loc",))
    assert set(storage.read_arrays(file, ()).values()) == {None}


def test_what_is_to_be_loaded_takes_a_quarter_of_the_memory_at_most(tmp_path, monkeypatch):
    """As of codes: a sparse file of 10 GB takes no room on the disk, and all memory when it is read."""
    storage.write(tmp_path / "file", {"density": "any"}, {"a": torch.zeros(4)})
    monkeypatch.setattr(storage, "room", lambda: 2)
    assert storage.read(tmp_path / "file", "density")[1]["a"].shape == (4,)
    monkeypatch.setattr(storage, "room", lambda: 1)
    with pytest.raises(ValueError, match=r"arrays of 0.0 GB, from \d+ bytes, where there are 0.0 GB of memory"):
        storage.read(tmp_path / "file", "density")


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_where_a_system_does_not_tell_its_memory_there_is_no_limit(monkeypatch, error):
    def fail(name):
        raise error

    assert 1e8 < 32 * storage.room() < 2**60
    monkeypatch.setattr(os, "sysconf", fail)
    assert storage.room() == 2**58


def test_a_digest_tells_names_shapes_kinds_and_content_apart():
    zeros = torch.zeros(2, 3)
    cases = [{"a": zeros}, {"b": zeros}, {"a": zeros.mT}, {"a": zeros.flatten()}, {"a": zeros.int()}, {"a": zeros + 1}]
    cases += [{"a": zeros, "b": zeros}, {}]
    found = [storage.digest({}, case) for case in cases] + [storage.digest({"a": 1}, {}), storage.digest({"a": 2}, {})]
    assert len(set(found)) == len(found)
    assert storage.digest({}, {"b": zeros, "a": zeros}) == storage.digest({}, cases[6])
    assert storage.digest({"x": 1, "y": 2}, {}) == storage.digest({"y": 2, "x": 1}, {})


@pytest.mark.parametrize("odd", [True, 1.0, "1", 2, None, [1]])
def test_only_this_format_is_read(tmp_path, odd):
    storage.write(tmp_path / "file", {"format": odd, "density": "any"}, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"format .* where 1 is read"):
        storage.read(tmp_path / "file", "density")


def test_an_error_without_a_number_is_told_as_it_is(tmp_path, monkeypatch):
    def fail(number):
        raise OSError("the disk is tired")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"^the disk is tired$"):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    target, seen, sync, replace = tmp_path / "a", [], os.fsync, os.replace
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((os.fstat(fd).st_size, target.read_bytes())) or sync(fd))
    monkeypatch.setattr(
        os, "replace", lambda part, to: seen.append((Path(part).read_bytes(), target.read_bytes())) or replace(part, to)
    )
    storage.write_atomically(target, b"new!")
    assert seen == [(4, b"old"), (b"new!", b"old")] and target.read_bytes() == b"new!"


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_is_open_while_it_is_moved_only_where_there_are_locks(locks, tmp_path, monkeypatch):
    if not locks:
        monkeypatch.setattr(storage, "fcntl", None)
    target, opened, seen, original, replace = tmp_path / "a", [], [], storage._open_part, os.replace
    monkeypatch.setattr(storage, "_open_part", lambda part: opened.append(original(part)) or opened[-1])
    monkeypatch.setattr(os, "replace", lambda *pair: seen.append(opened[0].closed) or replace(*pair))
    storage.write_atomically(target, b"new!")
    assert seen == [not locks] and target.read_bytes() == b"new!" and list(tmp_path.iterdir()) == [target]


def test_a_file_that_another_writer_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    part, seen = tmp_path / ".vaebook-0", []

    def flock(file, how):
        seen.append((file, how))
        if len(seen) < 3:
            part.unlink()

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    with storage._open_part(part) as file:
        assert part.exists() and [how for _, how in seen] == [storage.fcntl.LOCK_EX] * 3
        assert file is seen[2][0] and seen[0][0].closed and seen[1][0].closed
