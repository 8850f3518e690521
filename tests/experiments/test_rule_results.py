"""The rule's scores: cases come out again, the summary follows from them, and the rule is the one that was fixed."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from harness import read_result
from rule import CONFIG, RULE, hindsight, score, summary

RESULT = read_result("rule", CONFIG)
ROWS = {row["case"]: row for row in RESULT["rows"]}
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("case", "allowed"),
    [("wine-ppca-124-D2-s100", 1e-3), ("cancer-ppca-398-D8-s100", 0.02), ("wine-vae-124-D6-b1.0-s100", 0.1)],
)
def test_cases_come_out_again(case, allowed):
    """A VAE is trained anew: in float32, whose sums differ between machines."""
    row, stored = score(case), ROWS[case]
    assert row["chosen"]["rule"] == stored["chosen"]["rule"] and row["best"] == stored["best"]
    for key in ("held_out", "predicted_gain", "regret"):
        assert row[key] == pytest.approx(stored[key], abs=allowed), key


def test_summary_follows_from_the_rows():
    assert list(ROWS) == CONFIG["cases"] and RESULT["num_cases"] == len(ROWS)
    for policy, made in summary(RESULT["rows"]).items():
        stored = RESULT["summary"][policy]
        for key, value in made.items():
            assert stored[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3, abs=1e-4)), key


def test_hindsight_follows_from_the_rows():
    assert RESULT["hindsight"] == pytest.approx(hindsight(RESULT["rows"]), rel=1e-3, abs=1e-4)


def test_rows_are_consistent():
    for row in RESULT["rows"]:
        assert row["best"] == max(row["held_out"], key=row["held_out"].get)
        for policy, name in row["chosen"].items():
            short = row["held_out"][row["best"]] - row["held_out"][name]
            assert row["regret"][policy] == pytest.approx(short, abs=1e-3) and row["regret"][policy] >= 0
            assert row["hit"][policy] or name != row["best"]


CHOOSE = """
import json, torch
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior
from vaebook.selection import choose_prior

def seeded(seed):
    return torch.Generator().manual_seed(seed)

def vae(prior):
    encoder = GaussianEncoder(6, 2, (8,), generator=seeded(1))
    return VAE(encoder, BernoulliDecoder(2, 6, (8,), generator=seeded(2)), prior(encoder))

angle = torch.linspace(0, 6.28, 90).double()
ring = torch.stack([2 * angle.cos(), 2 * angle.sin(), 0 * angle], 1) + 0.2 * torch.randn(90, 3, generator=seeded(3))
bits = torch.rand(60, 6, generator=seeded(4)).round()
cases = [
    (PPCA.fit(ring, 2), ring, {}),
    (PPCA.fit(ring, 2), ring[:60], {"held_out": ring[60:]}),
    (vae(lambda _: StandardNormal(2)), bits, {"num_data": 40}),
    (vae(lambda encoder: ExemplarPrior(encoder, bits, scale=0.3)), bits, {}),
    (vae(lambda encoder: VampPrior(encoder, bits[:5])), bits, {}),
]
for model, x, more in cases:
    generator = seeded(0)
    choice = choose_prior(model, x, num_components=(1, 3), generator=generator, **more)
    numbers = [number for gain in choice.gains.values() for number in gain]
    print(json.dumps([choice.name, len(choice.gains), *numbers, float(torch.rand((), generator=generator))]))
"""


def test_the_rule_is_the_one_that_was_fixed_before(tmp_path):
    """The package of the commit that the results name chooses the same, with the same gains from the same draws."""
    assert RESULT["rule"] == RULE
    packed = subprocess.run(["git", "archive", RULE, "vaebook"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip("no history here")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    then, now = (made_by(folder) for folder in (tmp_path, ROOT))
    assert len(then) == len(now) == 5
    for old, new in zip(then, now, strict=True):
        assert new[:2] == old[:2]
        assert new[2:] == pytest.approx(old[2:], rel=1e-5, abs=1e-5)


def made_by(folder):
    """What the package in a folder chooses: a line for each case."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import vaebook; print(vaebook.__file__)" + CHOOSE]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    path, *lines = done.stdout.splitlines()
    assert Path(path).is_relative_to(folder)
    return [json.loads(line) for line in lines]
