"""The VAEs that chapters load: their stored weights are those that their training ends with."""

import pytest
from harness import read_result
from plane import CONFIG, WEIGHTS, bounds, train

from tests.experiments.test_digits import distance
from vaebook.training import load

MODELS = read_result("plane", CONFIG)["models"]
pytestmark = pytest.mark.parametrize("dim", CONFIG["latent_dims"])


def test_the_first_epochs_come_out_again(dim):
    losses, stored = train(5, dim)[1], MODELS[str(dim)]["losses"]
    assert losses == pytest.approx(stored[:5], rel=1e-4)
    assert losses != pytest.approx(stored[1:6], rel=1e-4)


def test_bounds_are_those_of_the_stored_weights(dim):
    vae, (untrained, _, x), stored = load(WEIGHTS[dim]), train(1, dim), MODELS[str(dim)]
    assert bounds(vae, x) == pytest.approx(stored["elbo"], rel=1e-4)
    assert bounds(untrained, x) != pytest.approx(stored["elbo"], rel=0.1)
    # The loss of an epoch is an average over its steps, with one draw for each datum.
    assert stored["elbo"]["training"] == pytest.approx(-stored["losses"][-1], rel=0.02)


@pytest.mark.slow
def test_all_epochs_end_with_the_stored_weights(dim):
    """Another processor rounds otherwise, in thousands of steps."""
    (vae, losses, x), stored = train(CONFIG["epochs"], dim), MODELS[str(dim)]
    assert len(losses) == len(stored["losses"]) == CONFIG["epochs"]
    assert distance(vae, load(WEIGHTS[dim])) < 1e-3 < 0.1 < distance(train(1, dim)[0], load(WEIGHTS[dim]))
    assert bounds(vae, x) == pytest.approx(stored["elbo"], rel=1e-3)
