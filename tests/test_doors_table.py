"""Every public function that takes a model, on every kind of model: the oracle's value, or one documented error."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import doors
import kinds
import pytest
import torch
from doors import FILE, FUNCTIONS, cell
from kinds import KINDS
from torch import nn

from vaebook.bounds import elbo

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


def test_near_compares_every_entry_within_six_errors_and_rounding():
    wanted, error = torch.zeros(2).double(), torch.tensor([0.0, 1.0])
    doors.near([0.0, 5.9], wanted, error)
    doors.near([0.0, -0.9], wanted, rounding=1.0)
    for got in ([0.0, 6.1], [0.0, -6.1], [0.1, 0.0], [0.0, torch.nan], [0.0]):
        with pytest.raises(AssertionError, match=r"^expected tensor\(\[0\., 0\.\]"):
            doors.near(got, wanted, error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("z: expected a tensor, got 3, got 4"), "ValueError: z: expected a tensor"),
        (RuntimeError("max_nodes: expected enough, got 3"), "RuntimeError: max_nodes: expected enough"),
        (RuntimeError("mat1 and mat2 cannot be multiplied"), None),
        (KeyError("z"), None),
    ],
)
def test_only_documented_errors_are_told(error, told, monkeypatch):
    def fails(kind, oracle):
        raise error

    monkeypatch.setitem(FUNCTIONS, "fails", fails)
    if told:
        assert cell("fully connected", "fails") == told
    else:
        with pytest.raises(type(error)):
            cell("fully connected", "fails")


@pytest.mark.parametrize("function", ["training.fit", "bounds.elbo"])
def test_a_cell_leaves_the_model_to_the_next_as_it_was(function):
    cell("batch norm", function)
    vae = doors.ORACLES["batch norm"].kind.vae

    def settings():
        return [(module.training, getattr(module, "momentum", None)) for module in vae.modules()]

    before, state = settings(), {name: value.clone() for name, value in vae.state_dict().items()}
    assert cell("batch norm", function) == "value" and settings() == before
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert {momentum for _, momentum in before} == {None, 0.1} and any(training for training, _ in before)


def test_standard_deviations_of_codes_are_compared_too():
    cell("fully connected", "aggregate.aggregated_posterior")
    oracle = doors.Oracle(doors.ORACLES["fully connected"].kind)
    oracle.scale = 1.01 * oracle.scale
    with pytest.raises(AssertionError):
        doors.check_aggregated_posterior(oracle.kind, oracle)


def test_an_estimate_that_is_sure_of_nothing_is_refused(monkeypatch):
    cell("fully connected", "likelihood.importance_log_prob")
    oracle = doors.ORACLES["fully connected"]
    unsure = SimpleNamespace(log_prob=torch.zeros(doors.ROWS), stderr=torch.full((doors.ROWS,), 99.0))
    monkeypatch.setattr(doors.likelihood, "importance_log_prob", lambda *_, **__: unsure)
    with pytest.raises(AssertionError):
        doors.check_importance_log_prob(oracle.kind, oracle)


def test_the_command_writes_every_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(doors, "FILE", tmp_path / "doors.json")
    monkeypatch.setattr(doors, "cell", lambda kind, function: f"{kind} × {function}")
    doors.main()
    text = doors.FILE.read_text(encoding="utf-8")
    assert json.loads(text) == {"cells": {kind: {f: f"{kind} × {f}" for f in FUNCTIONS} for kind in KINDS}}
    assert text.endswith("}\n") and "×" in text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("batch norm", nn.BatchNorm1d),
        ("group norm", nn.GroupNorm),
        ("layer norm", nn.LayerNorm),
        ("dropout", nn.Dropout),
        ("attention over rows of an image", nn.MultiheadAttention),
        ("convolutional, images", nn.BatchNorm2d),
    ],
)
def test_a_kind_uses_what_its_name_says_in_both_of_its_networks(name, part):
    """And what is used has an effect: dropout drops, running statistics are not those that a batch has."""
    torch.manual_seed(0)
    kind, used = KINDS[name](), set()
    own = {module for module in kind.vae.modules() if isinstance(module, part)}
    for module in own:
        module.register_forward_hook(lambda module, *_: used.add(module))
    elbo(kind.vae, kind.x)
    assert len(own) == 2 and used == own
    assert all(module.p > 0 for module in own if part is nn.Dropout)
    assert all(module.running_mean.abs().max() > 0.1 for module in own if name == "batch norm")


def test_data_and_conditions_are_of_the_kinds_that_they_stand_for():
    assert set(kinds.X.unique().tolist()) == {0.0, 1.0} and bool(((0 < kinds.GREY) & (kinds.GREY < 1)).all())
    assert len(kinds.LABEL.unique()) == kinds.N == len(kinds.X) == len(kinds.GREY)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder: Independent, rank 1", (1,)),
        ("encoder: Independent, rank 3", (1, 1, 1)),
        ("codes (C, H, W)", (1, 1, 1)),
    ],
)
def test_codes_have_the_shape_that_their_kind_stands_for(name, shape):
    kind = KINDS[name]()
    kind.vae.encode(kind.x)
    assert kind.vae.encoder.latent_shape == shape
