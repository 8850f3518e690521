"""The VAE that six chapters load: its stored weights are those that its training ends with."""

import pytest
from harness import read_result
from plane import CONFIG, WEIGHTS, bounds, train

from tests.experiments.test_digits import distance
from vaebook.training import load

RESULT = read_result("plane", CONFIG)


def test_the_first_epochs_come_out_again():
    losses = train(5)[1]
    assert losses == pytest.approx(RESULT["losses"][:5], rel=1e-4)
    assert losses != pytest.approx(RESULT["losses"][1:6], rel=1e-4)


def test_bounds_are_those_of_the_stored_weights():
    vae, (untrained, _, x) = load(WEIGHTS), train(1)
    assert bounds(vae, x) == pytest.approx(RESULT["elbo"], rel=1e-4)
    assert bounds(untrained, x) != pytest.approx(RESULT["elbo"], rel=0.1)
    # The loss of an epoch is an average over its steps, with one draw for each datum.
    assert RESULT["elbo"]["training"] == pytest.approx(-RESULT["losses"][-1], rel=0.02)


@pytest.mark.slow
def test_all_epochs_end_with_the_stored_weights():
    """Another processor rounds otherwise, in thousands of steps."""
    vae, losses, x = train(CONFIG["epochs"])
    assert len(losses) == len(RESULT["losses"]) == CONFIG["epochs"]
    assert distance(vae, load(WEIGHTS)) < 1e-3 < 0.1 < distance(train(1)[0], load(WEIGHTS))
    assert bounds(vae, x) == pytest.approx(RESULT["elbo"], rel=1e-3)
