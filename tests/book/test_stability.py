"""Nothing that a chapter shows is decided by rounding: numbers changed in their last digits pass the same gate."""

import base64
import io
import json
import shutil
import subprocess
import sys

import compare
import harness
import nbformat
import numpy as np
import pytest
import stability
from drawings import SVG
from fingerprint import ROOT, chapters
from PIL import Image

STORED = json.loads(stability.RESULTS.read_text(encoding="utf-8"))
NAMES = [md.relative_to(ROOT / "book").with_suffix("").as_posix() for md in chapters()]
TOOLS = ROOT / "book" / "_tools"


def test_every_chapter_was_measured_and_passed():
    assert STORED["config"] == stability.CONFIG
    assert {run["threads"] for run in STORED["config"]["runs"]} == {1, 2} and len(STORED["config"]["runs"]) == 3
    assert [row["chapter"] for row in STORED["chapters"]] == NAMES
    assert {"time", "commit", "machine", "versions"} <= set(STORED["provenance"]) and not STORED["provenance"]["dirty"]
    for row in STORED["chapters"]:
        assert row["movement"] <= 1.001 * stability.CONFIG["gate"]["numbers"]
        assert row["pixels"] <= stability.CONFIG["gate"]["pixels"]


@pytest.mark.slow
def test_every_chapter_passes_again():
    rows = stability.measure_all()
    assert {(row["chapter"], row["seed"]) for row in rows} == {(n, run["seed"]) for n in NAMES for run in runs()}
    assert {row["chapter"]: row["fails"] for row in rows if row["fails"]} == {}


def runs():
    return stability.CONFIG["runs"]


CHANGES = """
import sys, torch
sys.path.insert(0, {tools!r})
from vaebook import data, models, training
from vaebook.priors import StandardNormal
seeded = lambda: torch.Generator().manual_seed(0)
a = torch.randn(40, 30, generator=seeded(), dtype=torch.float64)
def made():
    x = data.digits().train
    vae = models.VAE(models.GaussianEncoder(64, 2, (3,)), models.BernoulliDecoder(2, 64, (3,)), StandardNormal(2))
    return [torch.randn(40, 30, generator=seeded()), torch.rand(40, generator=seeded(), dtype=torch.float64), x,
            *vae.parameters(), *training.load({weights!r}).half().float().parameters(), a @ a.T]
y, b, u, v = torch.ones(20, 6), torch.ones(3, 4, 5), torch.ones(5), torch.ones(3, 4, 4)
def products():
    return [torch.mm(y.mT, y), torch.addmm(torch.ones(6, 6), y.mT, y), torch.bmm(b.mT, b), torch.baddbmm(v, b, b.mT),
            torch.mv(b[0], u), torch.addmv(torch.ones(4), b[0], u), torch.dot(u, u)]
training.save({whole!r}, training.load({weights!r}).float())
others = lambda: (training.load({whole!r}).parameters(), data.digits()[1:3])
before, known = made(), [products(), *map(list, others())]
integers = torch.randint(9, (50,), generator=seeded()), torch.randperm(50, generator=seeded())
import perturb
perturb.start(3, 2)
for one, two in zip(before, made()):
    size = 1e-3 if one is two else float(((one - two).abs() / one.abs().clamp(min=1e-30)).max().detach())
    print(f"{{size:.1e}}")
for one, two in zip(sum(known, []), sum(map(list, (products(), *others())), []), strict=True):
    assert 0 < ((one - two).abs() / one.abs().clamp(min=1e-30)).max() < 4e-7, one.shape
counts = torch.arange(6).reshape(2, 3)
assert torch.equal(counts @ counts.mT, torch.tensor([[5, 14], [14, 50]]))
long = torch.ones(2**20 + 2**19)
factors = [perturb._Noise(seed).factor(long, 0.5) for seed in (1, 1, 2)]
assert torch.equal(*factors[:2]) and not torch.equal(*factors[1:])
noise = perturb._Noise(1)
assert not torch.equal(noise.factor(long, 0.5), noise.factor(long, 0.5))
assert 0.5 <= factors[0].min() and factors[0].max() <= 1 and factors[0].dtype == torch.float32
assert torch.equal(integers[0], torch.randint(9, (50,), generator=seeded()))
torch.set_num_threads(1)
assert torch.get_num_threads() == 2
assert bool((made()[1] <= 1).all())
"""


def test_what_is_changed_and_by_how_much(tmp_path):
    """Draws, weights, data and stored weights by up to a ten-millionth or a last digit; products by rounding."""
    weights = str(ROOT / "book" / "results" / "digits-normal-2-1.safetensors")
    code = CHANGES.format(tools=str(TOOLS), weights=weights, whole=str(tmp_path / "whole.safetensors"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *inputs, product = map(float, done.stdout.split())
    assert len(inputs) > 15 and 0 < min(inputs) and max(inputs) < 4e-7
    assert 0 < product < 1e-12


TOY = {
    "stable": "print(float(z.mean()))",
    "a count": "print(int((1e7 * z.abs()).frac().gt(0.5).sum()))",
    "an arg-max of equals": "print(int((z[:50] @ torch.ones(50, 500)).argmax()))",
    "a difference of equals": "print(*(1e3 * float(1 - (v / v.norm()) @ (v / v.norm())) for v in w.view(20, 25)))",
    "a chaotic run": "x = w.frac().abs()\nfor _ in range(99): x = 3.9 * x * (1 - x)\nprint(float(x[0]))",
    "a picture": "import matplotlib.pyplot as plt\nplt.imshow((1e7 * z[:100]).frac().view(10, 10))\nplt.show()",
}
SETUP = "import torch\nz = torch.randn(500, generator=torch.Generator().manual_seed(0))\nw = z.double()"


@pytest.fixture
def toy(tmp_path):
    """A notebook that was run on this machine, with one cell for each kind."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (SETUP, *TOY.values())])
    stability.run(notebook, tmp_path)
    nbformat.write(notebook, tmp_path / "toy.ipynb")
    yield tmp_path / "toy.ipynb"
    shutil.rmtree(tmp_path)


def test_finds_what_rounding_decides(toy):
    row = stability.measure(toy, 0, 1)
    kinds = dict(zip(TOY, range(2, len(TOY) + 2), strict=True))
    assert {f"toy-cell{number}" for kind, number in kinds.items() if kind != "stable"} == set(row["fails"])
    assert row["movement"] > 0.1 and row["pixels"] > 0.1


def test_movements():
    assert stability.movements("1.000 nats at 17", "1.002 nats at 18") == [pytest.approx(0.002 / 1.002)]
    assert stability.movements("0.0 −2.0", "0.0 2.0") == [0.0, 2.0]
    assert stability.movements("0.0 2.0", "0.5 1.0") == [1.0, 0.5]
    assert stability.movements("1.0", "1.0 2.0") == stability.movements(stability.PNG, "1.0") == []
    assert stability.movements("1.0", stability.PNG) == stability.movements(f"{stability.PNG} 1.0", "1.0") == []


def test_largest_over_the_runs():
    rows = [{"chapter": "a", "movement": m, "pixels": p} for m, p in ((1e-4, 0.0), (0.0, 1e-3))]
    one, other = {"chapter": "a", "movement": 1e-4, "pixels": 1e-3}, {"chapter": "b", "movement": 1.0, "pixels": 0.0}
    assert stability.largest([rows[0], other, rows[1]]) == [one, other]


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Two chapters that are not run: where the tools are, what is measured, and the fingerprints of the chapters."""
    for name in ("compare.py", "perturb.py", "stability.py"):
        shutil.copy(TOOLS / name, tmp_path)
    marks, measured = {"a": 0, "b": 0}, []

    def measure(ipynb, seed, threads):
        measured.append((ipynb.stem, seed, threads))
        return {"chapter": ipynb.stem, "seed": seed, "movement": 0.5 * seed, "pixels": 0.0, "fails": []}

    for name, value in {
        "__file__": str(tmp_path / "stability.py"),
        "chapters": lambda: [tmp_path / f"{chapter}.md" for chapter in marks],
        "read_ipynb": lambda ipynb: ipynb.stem,
        "fingerprint": marks.get,
        "measure": measure,
    }.items():
        monkeypatch.setattr(stability, name, value)
    return tmp_path, marks, measured


def test_every_chapter_is_measured_in_every_run_and_again_only_if_something_changed(book):
    folder, marks, measured = book
    every = sorted((name, run["seed"], run["threads"]) for name in marks for run in runs())

    def keys():
        found = {}
        rows = stability.measure_all(lambda key, compute: found.setdefault(key, compute()))
        assert [(row["chapter"], row["seed"]) for row in rows] == [(n, run["seed"]) for run in runs() for n in marks]
        assert len(found) == len(every) and all(row in rows for row in found.values())  # two threads keep in any order
        return set(found)

    before = keys()
    assert sorted(measured) == every and keys() == before
    marks["b"] = 1
    assert len(keys() - before) == len(every) / 2
    for path in folder.glob("*.py"):
        old = keys()
        path.write_text(path.read_text() + "\n")
        assert not keys() & old, path
    assert len(stability.measure_all()) == len(every)


@pytest.mark.parametrize("fails", [[], ["a-cell1"]])
def test_the_command_stores_the_largest_movements_unless_something_fails(fails, book, monkeypatch, capsys):
    *_, measured = book
    asked, kept, written, whole = [], [], [], stability.measure

    class Experiment:
        def __init__(self, name, config):
            assert (name, config) == ("stability", stability.CONFIG)

        def piece(self, key, compute):
            asked.append(key)
            kept.append(compute())
            return kept[-1]

        write = staticmethod(written.append)

    monkeypatch.setattr(harness, "Experiment", Experiment)
    monkeypatch.setattr(stability, "measure", lambda ipynb, **run: whole(ipynb, **run) | {"fails": fails})
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert stability.main() == bool(fails)
    assert len(asked) == len(measured) == 2 * len(runs())
    assert len(kept) == (0 if fails else len(asked))  # what fails is measured again
    largest = [{"chapter": name, "movement": 1.0, "pixels": 0.0} for name in "ab"]
    assert written == ([] if fails else [{"chapters": largest}])
    assert capsys.readouterr().err == "moves beyond the gate: a-cell1\n" * len(measured) * bool(fails)


def test_a_chapter_that_fails_when_its_numbers_move_is_told(tmp_path, monkeypatch):
    def fails(*_):
        raise stability.ChapterError("code cell 1 of 1 raised an error:")

    monkeypatch.setattr(stability, "_run_changed", fails)
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "toy.ipynb")
    row = stability.measure(tmp_path / "toy.ipynb", 3, 2)
    assert row["fails"] == ["code cell 1 of 1 raised an error:"]
    assert (row["chapter"], row["seed"], row["threads"]) == ("toy", 3, 2)


def shows(*outputs):
    return nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output(kind, **content) for kind, content in outputs])


def test_of_a_chapter_the_largest_movement_is_told_and_each_cell_that_fails_once(tmp_path, monkeypatch):
    numbers = [("0.5 0.5", "0.5 0.6 "), ("1.0", "2.0"), ("3.0", "3.0")]
    pictures = [
        (png(np.zeros((2, 2, 3))), png(255 * np.eye(2)[..., None].repeat(3, 2))),
        2 * (png(np.zeros((1, 1, 3))),),
    ]
    old, new = (
        [
            shows(*(("stream", {"name": "stdout", "text": pair[side]}) for pair in numbers)),
            shows(*(("display_data", {"data": {"image/png": pair[side]}}) for pair in pictures)),
            shows(),
        ]
        for side in (0, 1)
    )
    ipynb = tmp_path / "book" / "part" / "toy.ipynb"
    ipynb.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=old), ipynb)
    monkeypatch.setattr(stability, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "DIFFS", tmp_path)
    monkeypatch.setattr(stability, "_run_changed", lambda *_: new)
    row = stability.measure(ipynb, 0, 1)
    assert (row["chapter"], row["movement"], row["pixels"]) == ("part/toy", 0.5, 0.5)
    assert row["fails"] == ["part-toy-cell1", "part-toy-cell2"]


def test_each_run_has_its_own_seed_and_threads_in_the_chapters_folder(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(stability, "run", lambda notebook, folder, **env: ran.append((notebook, folder, env)))
    stored = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
    (cell,) = stability._run_changed(stored, tmp_path, 5, 3)
    ((notebook, *where),) = ran
    assert notebook.cells[0].source.endswith("import perturb; perturb.start(5, 3)") and cell.source == "print(1)"
    assert where == [tmp_path, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}]
    assert len(stored.cells) == 1


def test_what_a_cell_shows_is_compared_kind_by_kind():
    figure = {"text/plain": "<Figure>", "image/png": "AAAA", SVG: "<svg/>"}
    cell = shows(("stream", {"name": "stderr", "text": "no"}), ("display_data", {"data": figure}))
    shown = [("stderr", "no"), ("image/png", "AAAA"), ("text/plain", "<Figure>")]
    assert stability._shown(cell) == shown
    assert stability._pairs(shown, shown[:1]) == [("stderr, image/png, text/plain", "stderr")]
    assert stability._pairs(shown[:1], [("stderr", "yes")]) == [("no", "yes")]


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(target, "png")
    return base64.b64encode(target.getvalue()).decode()


def test_changed_pixels():
    base, step = np.zeros((2, 4, 3), dtype=int), stability.PIXEL_STEP
    other = base.copy()
    other[0, 0, 0], other[0, 1, 1], other[1, 2:] = step, step + 1, 255
    assert stability.changed_pixels(png(base), png(other)) == stability.changed_pixels(png(other), png(base)) == 3 / 8
    assert stability.changed_pixels(png(base), png(base[..., 0])) == 0.0  # grey
    assert stability.changed_pixels(png(base), png(base[:1])) == 1.0
    assert stability.changed_pixels("1.0", png(base)) == stability.changed_pixels(png(base), "1.0") == 0.0
