"""`make new-chapter` lays out what a chapter needs, works as it is laid, and writes nothing where it cannot."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import new_chapter
import pytest
import yaml
from fingerprint import ROOT
from new_chapter import lay
from prose import unlisted
from test_intro import LISTS
from test_toc import files

ENTRIES = ("_toc.yml", "README.md", "book/intro.md", "vaebook/claims/__init__.py")


@pytest.fixture
def root(tmp_path):
    """What the tool reads and writes, and the package."""
    shutil.copytree(ROOT / "vaebook", tmp_path / "vaebook", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("book/practice", "book/experiments", "book/results", "tests/experiments"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (*ENTRIES, "pyproject.toml", "book/experiments/harness.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_what_is_laid_out_is_listed_everywhere(root):
    written = lay("practice/a-toy", "A toy, and its title", root)
    assert [path.relative_to(root).as_posix() for path in written] == [
        "book/practice/a-toy.md",
        "vaebook/claims/a_toy.py",
        "book/experiments/a_toy.py",
        "tests/experiments/test_a_toy_results.py",
        *ENTRIES,
    ]
    assert all("@" not in re.sub(r"(?m)^@.*|Q @", "", path.read_text(encoding="utf-8")) for path in written[:4])
    toc = files(yaml.safe_load((root / "_toc.yml").read_text()))
    assert toc[toc.index("book/practice/a-toy.ipynb") - 1] == "book/practice/scale.ipynb"
    pages = {page.removeprefix("book/").removesuffix(".ipynb"): page for page in toc if page.endswith(".ipynb")}
    intro, readme = ((root / file).read_text(encoding="utf-8") for file in ("book/intro.md", "README.md"))
    lists = intro.split("\n## The map\n")[-1], readme.split("\n## The chapters\n")[-1].split("\n## ")[0]
    for text, (_, link) in zip(lists, LISTS.values(), strict=True):
        assert unlisted(pages, text, re.compile(link, re.MULTILINE)) == []


@pytest.mark.parametrize("killed_after", range(8))
def test_what_was_killed_goes_on(root, tmp_path_factory, monkeypatch, killed_after):
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(root, undisturbed, dirs_exist_ok=True)
    written = [path.relative_to(undisturbed) for path in lay("practice/a-toy", "A toy", undisturbed)]
    with monkeypatch.context() as once:
        left, whole = iter(range(killed_after)), new_chapter.write_atomically

        def write(file, content):
            if next(left, None) is None:
                raise KeyboardInterrupt
            whole(file, content)

        once.setattr(new_chapter, "write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            lay("practice/a-toy", "A toy", root)
    lay("practice/a-toy", "A toy", root)
    assert len(written) == 8
    assert all((root / path).read_bytes() == (undisturbed / path).read_bytes() for path in written)
    assert not list(root.rglob(".vaebook-*"))


def test_an_interruption_waits_until_all_is_written(root, monkeypatch):
    whole = new_chapter.write_atomically

    def write(file, content):
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        whole(file, content)

    monkeypatch.setattr(new_chapter, "write_atomically", write)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            lay("practice/a-toy", "A toy", root)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (root / "book/practice/a-toy.md").exists()
    assert "import a_toy" in (root / ENTRIES[-1]).read_text(encoding="utf-8")


def test_the_command_lays_out_alone_and_says_what_it_wrote_or_why_not(tmp_path, monkeypatch, capsys):
    asked = []

    def lay(name, title):
        second = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(second)
        asked.append((name, title))
        if name == "toy":
            raise ValueError("NAME: expected another")
        return [tmp_path / "a", tmp_path / "b"]

    monkeypatch.setattr(new_chapter, "ROOT", tmp_path)
    monkeypatch.setattr(new_chapter, "lay", lay)
    for arguments, code in ((["some/a-toy"], 0), (["some/b", "--title", "Its title"], 0), (["toy"], 1)):
        monkeypatch.setattr(sys, "argv", ["new_chapter.py", *arguments])
        assert new_chapter.main() == code
    assert asked == [("some/a-toy", "A toy"), ("some/b", "Its title"), ("toy", "Toy")]
    out, err = capsys.readouterr()
    assert out.startswith("a\nb\nlaid out some/a-toy. ") and "ONLY=a_toy\n" in out and "CHAPTER=some/a-toy\n" in out
    assert err == "NAME: expected another\n"


@pytest.mark.slow
def test_what_is_laid_out_works(root):
    own = [path for path in lay("practice/a-toy", "A toy", root) if path.suffix == ".py"]
    subprocess.run([sys.executable, "-m", "ruff", "check", *own], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", *own], cwd=root, check=True)
    code = "from vaebook.claims import verify; e = verify('atoy/mean'); assert e.holds and e.falsehood_rejected"
    here = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=here, check=True)
    subprocess.run([sys.executable, root / "book/experiments/a_toy.py"], cwd=root, env=here, check=True)
    test = root / "tests" / "experiments" / "test_a_toy_results.py"
    here["PYTHONPATH"] += os.pathsep + str(root / "book" / "experiments")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-c", os.devnull, test], cwd=root, env=here, check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy", "expected folder/chapter"),
        ("practice/A toy", "expected folder/chapter"),
        ("practice/Toy", "expected folder/chapter"),
        ("Practice/toy", "expected folder/chapter"),
        ("practice/to_y", "expected folder/chapter"),
        ("practice/1toy", "expected folder/chapter"),
        ("practice/toy/more", "expected folder/chapter"),
        ("../practice/toy", "expected folder/chapter"),
        ("", "expected folder/chapter"),
        ("nowhere/toy", "expected a folder that has chapters"),
        ("practice/ppca", "book/experiments/ppca.py is there"),
        ("practice/prior", "vaebook/claims/prior.py is there"),
    ],
)
def test_bad_names_change_nothing(root, name, message):
    (root / "book" / "experiments" / "ppca.py").touch()
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        lay(name, "Toy", root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_list_without_the_neighbour_changes_nothing(root):
    readme = root / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("book/practice/scale.ipynb", "book/elsewhere.ipynb"))
    with pytest.raises(ValueError, match=r"README\.md: expected one line to put the chapter behind, got 0"):
        lay("practice/toy", "Toy", root)
    assert not (root / "book" / "practice" / "toy.md").exists()
