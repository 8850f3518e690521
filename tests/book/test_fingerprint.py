"""What makes a chapter stale: everything that its outputs depend on, and nothing else."""

import ast
import shutil

import pytest
from fingerprint import LOCK, ROOT, chapters, fingerprint, read_md
from nbformat import v4
from reads import data_files


class Book:
    """A copy of what fingerprints depend on, with those of all chapters as they were at first."""

    def __init__(self, root):
        self.root = root
        self.notebooks = {md.relative_to(ROOT / "book").with_suffix("").as_posix(): read_md(md) for md in chapters()}
        self.before = self.fingerprints()

    def fingerprints(self):
        return {name: fingerprint(notebook, self.root) for name, notebook in self.notebooks.items()}

    def stale(self):
        after = self.fingerprints()
        return {name for name in self.before if self.before[name] != after[name]}


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("book")
    for folder in ("vaebook", "book/experiments", "book/results"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / LOCK, root)
    return Book(root)


def test_docstrings_comments_and_layout_make_nothing_stale(book):
    for path in [*(book.root / "vaebook").rglob("*.py"), *(book.root / "book" / "experiments").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body[0].value.value = "Another docstring."
        path.write_text(f"# A comment.\n{ast.unparse(tree)}\n", encoding="utf-8")  # drops all comments
    (book.root / LOCK).write_text(f"# A comment.\n{(book.root / LOCK).read_text()}")
    assert book.stale() == set()


@pytest.mark.parametrize(
    ("file", "some", "others"),
    [
        ("vaebook/npmle.py", {"continuous/npmle", "appendix/claims"}, None),
        ("vaebook/kernels.py", {"mixture/index", "practice/scale", "aggregated/posterior"}, {"appendix/published"}),
    ],
)
def test_a_changed_constant_makes_stale_the_chapters_that_reach_it_and_no_others(book, file, some, others):
    text = (book.root / file).read_text(encoding="utf-8")
    (book.root / file).write_text(f"{text}\nA_NEW_CONSTANT = 17\n", encoding="utf-8")
    found = book.stale()
    (book.root / file).write_text(text, encoding="utf-8")
    assert some <= found
    assert found == some if others is None else not found & others
    assert book.stale() == set()


def test_a_changed_weights_file_makes_stale_the_chapters_that_read_it_and_no_others(book):
    name = "digits-normal-16-0.1.safetensors"
    path = book.root / "book" / "results" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit
    found = book.stale()
    path.write_bytes(content)
    assert found == {chapter for chapter, nb in book.notebooks.items() if any(name in c.source for c in nb.cells)}


def test_every_results_file_counts_where_it_is_named_and_nowhere_else(book):
    code = {n: [c.source for c in nb.cells if c.cell_type == "code"] for n, nb in book.notebooks.items()}
    for file in (book.root / "book" / "results").iterdir():
        named = {name for name, cells in code.items() if any(f"results/{file.name}" in cell for cell in cells)}
        assert {name for name, found in book.before.items() if f"book/results/{file.name}" in found} == named


def test_a_changed_lock_makes_everything_stale(book):
    text = (book.root / LOCK).read_text()
    (book.root / LOCK).write_text(text.replace("numpy==", "numpy==9."))
    assert book.stale() == set(book.before)
    (book.root / LOCK).write_text(text)


PACKAGE = {
    "vaebook/__init__.py": "from vaebook.mixture import Mixture\n__all__ = ['Mixture']\n",
    "vaebook/mixture.py": "from vaebook import kernels\nclass Mixture:\n    def f(self):\n        return kernels.K\n",
    "vaebook/kernels.py": "K = 1\n",
    "vaebook/lazy.py": "def f():\n    from .deep import g\n    return g()\n",
    "vaebook/deep.py": "def g():\n    return 1\n",
    "vaebook/alone.py": "A = 1\n",
    "vaebook/claims/__init__.py": "from vaebook.claims import one, two\n"
    "from vaebook.claims.registry import verify, ledger\n",
    "vaebook/claims/registry.py": "def claim(id): ...\ndef verify(id): ...\ndef ledger(): ...\n",
    "vaebook/claims/one.py": "from vaebook import alone\nfrom vaebook.claims.registry import claim\n"
    "@claim('a/one')\ndef one(generator):\n    return 1\n",
    "vaebook/claims/two.py": "from vaebook.claims.registry import claim\n"
    "@claim(id='a/two')\ndef two(generator):\n    return 2\n",
    "book/experiments/toy.py": "from vaebook import lazy\nT = 1\n",
    "book/results/runs.json": "{}",
    "book/results/runs-2.json": "{}",
    "book/results/weights-a.safetensors": "abc",
    "book/results/other.csv": "1",
    LOCK: "torch==2.13.0\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def reached(code, root):
    cells = code if isinstance(code, list) else [code]
    found = fingerprint(v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells]), root)
    return {name.removesuffix(".py").removeprefix("vaebook/") for name in found} - {"code", LOCK}


ODD = {
    "vaebook/odd/__init__.py": "import sys\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from vaebook.odd.typed import T\nif sys.version_info > (3,):\n    from vaebook.odd.always import A\n"
    "class Own:\n    pass\nasync def own():\n    return Own\ndef __getattr__(name):\n    return later\n",
    "vaebook/odd/typed.py": "T = 1\n",
    "vaebook/odd/always.py": "A = 1\n",
}
"""A package with names of its own, imports for type checkers and others, and names that come about as it runs."""


@pytest.mark.parametrize(
    ("code", "whole"),
    [
        ("from vaebook.odd import Own", False),
        ("from vaebook.odd import own", False),
        ("from vaebook.odd import T", False),
        ("from vaebook.odd import later", True),
    ],
)
def test_of_a_package_counts_what_it_defines_and_all_of_it_where_that_cannot_be_seen(tree, code, whole):
    (tree / "vaebook/odd").mkdir()
    for name, text in ODD.items():
        (tree / name).write_text(text)
    found = reached(code, tree)
    assert {"odd/__init__", "odd/always"} <= found  # what is imported under a condition, it is imported
    assert ("odd/typed" in found) is (whole or code.endswith("T"))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("def f(x: int):\n    return x", "def f(x: float):\n    return x", True),
        ("def f(*x: int, **y: int):\n    return x", "def f(*x, **y):\n    return x", True),
        ("def f(x) -> int:\n    return x", "def f(x):\n    return x", True),
        ("async def f(x) -> int:\n    return x", "async def f(x):\n    return x", True),
        ("class C:\n    def f(self) -> int:\n        return 1", "class C:\n    def f(self):\n        return 1", True),
        ("def f(x=1):\n    return x", "def f(x=2):\n    return x", False),
        ("class C:\n    x: int = 1", "class C:\n    x: float = 1", False),  # a dataclass may read it
    ],
)
def test_annotations_of_functions_make_nothing_stale(tree, old, new, same):
    found = []
    for text in (old, new):
        (tree / "vaebook/alone.py").write_text(text)
        found.append(fingerprint(v4.new_notebook(cells=[v4.new_code_cell("from vaebook.alone import f")]), tree))
    assert (found[0] == found[1]) is same


ONE, TWO = {"claims/one", "alone"}, {"claims/two"}
BASE = {"__init__"}
CLAIMS = {"__init__", "claims/__init__", "claims/registry"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import math", set()),
        ("import vaebook", BASE),
        ("import vaebook\nvaebook.Mixture()", BASE | {"mixture", "kernels"}),
        ("import vaebook as v\nv.Mixture()", BASE | {"mixture", "kernels"}),
        ("import vaebook.mixture", BASE | {"mixture", "kernels"}),
        ("from vaebook import Mixture", BASE | {"mixture", "kernels"}),
        ("from vaebook import Mixture as M", BASE | {"mixture", "kernels"}),
        ("from vaebook import kernels", BASE | {"kernels"}),
        ("from vaebook.alone import A", BASE | {"alone"}),
        ("from vaebook import *", BASE | {"mixture", "kernels"}),
        ("from vaebook.lazy import f", BASE | {"lazy", "deep"}),
        ("def f():\n    from vaebook import lazy", BASE | {"lazy", "deep"}),
        ("import importlib\nimportlib.import_module('vaebook.alone')", BASE | {"alone"}),
        ("__import__('vaebook.alone')", BASE | {"alone"}),
        ("import sys\nsys.path.append('../experiments')\nimport toy", BASE | {"book/experiments/toy", "lazy", "deep"}),
        ("from vaebook.claims import verify", CLAIMS),
        ("from vaebook.claims import verify\nverify('a/one')", CLAIMS | ONE),
        ("from vaebook.claims import verify\nverify(id='a/two', seed=7)", CLAIMS | TWO),
        ("from vaebook.claims import verify as check\ncheck('a/two')", CLAIMS | TWO),
        ("from vaebook import claims\nclaims.verify('a/two')", CLAIMS | TWO),
        ("import vaebook.claims as c\nc.verify('a/two')", CLAIMS | TWO),
        ("import vaebook.claims\nvaebook.claims.verify('a/two')", CLAIMS | TWO),
        ("from vaebook.claims.registry import verify\nverify('a/two')", CLAIMS | TWO),
        ("from vaebook.claims import verify\n[verify(i) for i in ('a/one',)]", CLAIMS | ONE | TWO),
        ("from vaebook.claims import ledger\nledger()", CLAIMS | ONE | TWO),
        ("from vaebook.claims import two", BASE | {"claims/__init__", "claims/two", "claims/registry"}),
        (["from vaebook.claims import verify", "verify('a/one')"], CLAIMS | ONE),
    ],
)
def test_what_is_reached(tree, code, expected):
    assert reached(code, tree) == expected


ALL = {"runs.json", "runs-2.json", "weights-a.safetensors", "other.csv"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("'a word about results'", set()),
        ("open('../results/runs.json')", {"runs.json"}),
        ("Path('../results/weights-a.safetensors')", {"weights-a.safetensors"}),
        ("Path('..') / 'results' / 'runs.json'", {"runs.json"}),
        ("Path('..', 'results', 'runs.json')", {"runs.json"}),
        ("os.path.join('..', 'results', 'runs' + '.json')", {"runs.json"}),
        ("R = Path('../results')\n(R / 'runs').with_suffix('.json')", {"runs.json", "runs-2.json"}),
        ("load(f'../results/weights-{name}.safetensors')", {"weights-a.safetensors"}),
        ("load('../results/weights-' + name + '.safetensors')", {"weights-a.safetensors"}),
        ("load('../results/weights-%s.safetensors' % name)", {"weights-a.safetensors"}),
        ("load('../results/weights-{}.safetensors'.format(name))", {"weights-a.safetensors"}),
        ("load(f'../results/{name}.json')", {"runs.json", "runs-2.json"}),
        ("load(f'../results/{name}')", ALL),
        ("load('../results/' + name)", ALL),
        ("list(Path('../results').glob('*.csv'))", {"other.csv"}),
        ("list(Path('../results').iterdir())", ALL),
        ("Path('../results/runs.json'); os.listdir('../results')", ALL),
        ("Path('../results/runs.json'); os.scandir('../results')", ALL),
        ("Path('../results/runs.json'); os.walk('../results')", ALL),
        ("paths = paths + ['../results/runs.json']", {"runs.json"}),
        ("open(f'{load(\"../results/other.csv\")}.txt')", {"other.csv"}),
        ("open(f'{load(path=\"../results/other.csv\")}.txt')", {"other.csv"}),
        ("folder = '../results'\nopen(f'{folder}/{name}')", ALL),
        ("name = 'runs'\n(Path('../results') / name)", {"runs.json"}),
    ],
)
def test_which_data_is_read(tree, code, expected):
    assert {name.removeprefix("book/results/") for name in reached(code, tree)} == expected


def test_a_bracket_in_a_name_is_a_bracket(tree):
    (tree / "book/results/runs[1].json").write_text("{}")
    (tree / "book/results/runs1.json").write_text("{}")
    assert reached("open('../results/runs[1].json')", tree) == {"book/results/runs[1].json"}


def test_data_are_files_that_are_no_pages_no_code_and_not_hidden(tmp_path):
    data = ["a.json", "folder/b.svg", "folder.json/c"]
    others = ["a.py", "a.md", "a.ipynb", "a.bib", ".a.json", "_a.json", "_folder/b.json", ".folder/b.json"]
    for name in (*data, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.relative_to(tmp_path).as_posix() for file in data_files(tmp_path)] == data


def test_chapters_are_pages_that_name_a_kernel_and_no_copies_of_them(tmp_path):
    kernel = "---\nkernelspec:\n  name: python3\n---\n"
    pages = {
        "b.md": kernel,
        "part/a.md": kernel,
        "part/.ipynb_checkpoints/a-checkpoint.md": kernel,
        "prose.md": "---\ntitle: A title\n---\nIt has no kernelspec: none\n---\n",
        "code.md": f"A title\n{kernel}",
        "none.md": "",
    }
    for name, text in pages.items():
        (tmp_path / "book" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "book" / name).write_text(text)
    assert [md.relative_to(tmp_path / "book").as_posix() for md in chapters(tmp_path)] == ["b.md", "part/a.md"]


def test_lines_of_the_lock_do_not_run_together(tree):
    found = []
    for text in ("a==1\nb==2\n", "a==1b\n==2\n", "a==1b==2\n", "\na==1\n\nb==2"):
        (tree / LOCK).write_text(text)
        found.append(fingerprint(v4.new_notebook(), tree)[LOCK])
    assert len(set(found)) == 3 and found[0] == found[3]  # empty lines are none


def test_data_read_by_a_module_that_is_reached_counts(tree):
    edit(tree / "vaebook/deep.py", "return 1", "return open('../results/other.csv')")
    assert "book/results/other.csv" in reached("from vaebook.lazy import f", tree)
    assert "book/results/other.csv" not in reached("from vaebook.alone import A", tree)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("x = 1", "x = 1  # a comment", True),
        ("x = 1", "x  =  1", True),
        ("x = 1", "x = 2", False),
        ("x = 1\nx", "x = 1\nx;", False),
        ("x = 1\nx", "x = 1\nx  # ;", True),
        ("f'{x}a'", "f'{x}b'", False),
        ("f(None)", "f('')", False),
        ("f(1)", "f(True)", False),
        ("f(1)", "f('1')", False),
        ("x;", "x;\n# the end", True),
        ("x;", "x;\n\n", True),
        ("x;  # so", "x;", True),
        ("x", "x\n# ;", True),
        ("'shown'", "'also shown'", False),
        ("%matplotlib inline", "%matplotlib agg", False),
    ],
)
def test_of_a_cell_the_syntax_counts(tree, old, new, same):
    before, after = (fingerprint(v4.new_notebook(cells=[v4.new_code_cell(code)]), tree) for code in (old, new))
    assert (before == after) is same


def test_tags_count_and_captions_do_not(tree):
    def of(**metadata):
        return fingerprint(v4.new_notebook(cells=[v4.new_code_cell("x", metadata=metadata)]), tree)

    assert of() != of(tags=["raises-exception"])
    assert of() == of(mystnb={"figure": {"caption": "A caption."}})
