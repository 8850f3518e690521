"""Every chapter opens in JupyterLab, from its .md and from its .ipynb, whichever file was written last."""

import inspect
import os
import shutil

import pytest
from fingerprint import ROOT, chapters
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from pair import pair
from tornado.web import HTTPError

Manager = build_sync_jupytext_contents_manager_class(LargeFileManager)


@pytest.fixture
def tree(tmp_path):
    """The chapters, each .ipynb an hour newer than its .md, as JupyterLab's manager of files sees them."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for md in chapters():
        copy = tmp_path / md.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(md, copy)
        shutil.copy(md.with_suffix(".ipynb"), copy.parent)
        os.utime(copy, (0, copy.with_suffix(".ipynb").stat().st_mtime - 3600))
    return Manager(root_dir=str(tmp_path))


def test_every_chapter_opens(tree, tmp_path):
    pair(tmp_path)
    for md in chapters():
        for name in (md, md.with_suffix(".ipynb")):
            opened = tree.get(name.relative_to(ROOT).as_posix())
            assert any(cell.get("outputs") for cell in opened["content"].cells), name


def test_edits_to_the_notebook_alone_are_not_passed_over(tree, tmp_path):
    ipynb = tmp_path / "book" / "mixture" / "index.ipynb"
    ipynb.write_text(ipynb.read_text(encoding="utf-8").replace("import torch", "import torch.nn"), encoding="utf-8")
    pair(tmp_path)
    with pytest.raises(HTTPError, match="more recent"):
        tree.get("book/mixture/index.md")


def test_a_notebook_that_is_none_is_passed_over_and_all_the_others_are_paired(tree, tmp_path):
    copies = [tmp_path / md.relative_to(ROOT) for md in chapters()]
    copies[0].with_suffix(".ipynb").write_text("{")
    pair(tmp_path)
    newer = [md for md in copies if md.stat().st_mtime >= md.with_suffix(".ipynb").stat().st_mtime]
    assert newer == copies[1:]


def test_the_chapters_are_those_of_this_book_unless_others_are_named():
    assert inspect.signature(pair).parameters["root"].default == ROOT
