"""Every public function that takes a model, on every kind of model: the oracle's value, or one documented error."""

from __future__ import annotations

import json
import re

import pytest
import torch
from doors import FILE, FUNCTIONS, cell
from kinds import KINDS

REPEAT = "ValueError: (en|de)coder: expected the same from two passes over the same data"
MEAN = "ValueError: decoder: expected a distribution of x with a mean"
MIXTURE = "TypeError: q_z: expected a mixture of Gaussians"
ERRORS = {("attention over the batch", function): REPEAT for function in FUNCTIONS}
del ERRORS["attention over the batch", "information.decompose_kl"]  # which calls no module
del ERRORS["attention over the batch", "ppca.PPCA.log_prob_under"]
for kind in ("Categorical", "StudentT, one degree of freedom", "likelihood without moments"):
    ERRORS[kind, "VAE.sample"] = MEAN
for function in ("priors.VampPrior", "priors.ExemplarPrior"):
    ERRORS["conditional", function] = "ValueError: encoder: expected it to take a batch of shape"
# group norm makes a decoder of one code steep
ERRORS["group norm", "inference.inference_gap"] = "RuntimeError: max_nodes: expected enough for tolerance"
ERRORS["prior: a flow", "ppca.PPCA.log_prob_under"] = MIXTURE
"""All that is refused, and what it says; every other cell is a value."""


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_cell(kind, function):
    torch.manual_seed(0)
    found = cell(kind, function)
    if (kind, function) in ERRORS:
        assert re.match(ERRORS[kind, function], found), found
    else:
        assert found == "value"
    assert found == json.loads(FILE.read_text(encoding="utf-8"))["cells"][kind][function], "run book/_tools/doors.py"


def test_the_stored_table_has_all_cells():
    cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
    assert list(cells) == list(KINDS)
    assert all(list(row) == list(FUNCTIONS) for row in cells.values())
