"""Nothing that a chapter shows is decided by rounding: numbers changed in their last digits pass the same gate."""

import json
import shutil
import subprocess
import sys

import nbformat
import pytest
import stability
from fingerprint import ROOT, chapters

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
before = made()
integers = torch.randint(9, (50,), generator=seeded()), torch.randperm(50, generator=seeded())
import perturb
perturb.start(3, 2)
for one, two in zip(before, made()):
    size = 1e-3 if one is two else float(((one - two).abs() / one.abs().clamp(min=1e-30)).max().detach())
    print(f"{{size:.1e}}")
assert torch.equal(integers[0], torch.randint(9, (50,), generator=seeded()))
torch.set_num_threads(1)
assert torch.get_num_threads() == 2
assert bool((made()[1] <= 1).all())
"""


def test_what_is_changed_and_by_how_much():
    """Draws, weights, data and stored weights by up to a ten-millionth or a last digit; products by rounding."""
    code = CHANGES.format(tools=str(TOOLS), weights=str(ROOT / "book" / "results" / "digits-normal-2-1.safetensors"))
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
    assert stability.movements("1.0", "1.0 2.0") == stability.movements(stability.PNG, "1.0") == []


def test_largest_over_the_runs():
    rows = [{"chapter": "a", "movement": m, "pixels": p} for m, p in ((1e-4, 0.0), (0.0, 1e-3))]
    assert stability.largest(rows) == [{"chapter": "a", "movement": 1e-4, "pixels": 1e-3}]
