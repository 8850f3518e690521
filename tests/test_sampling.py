"""Scores of the candidates against closed forms, the choice among them, and samples that copy training data."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, Normal

from vaebook import sampling
from vaebook.adapters import adapt, adapt_vae
from vaebook.estimators import Estimate
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal
from vaebook.sampling import decode_candidates

D = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(seed, num, loc=0.0):
    return loc + torch.randn(num, D, generator=seeded(seed), dtype=torch.float64)


def identity(scale):
    """A model whose codes are the data, but for a noise of this scale."""

    def encode(x):
        return Independent(Normal(x, torch.full_like(x, scale)), 1)

    return adapt(encode, lambda z: Independent(Normal(z, scale), 1), prior=StandardNormal(D).double())


@pytest.fixture(scope="module")
def model():
    return PPCA(torch.zeros(D).double(), torch.eye(D, 1).double(), noise_variance=1.0)


@pytest.fixture(scope="module")
def scored(model):
    """Training data from the model, held-out data from elsewhere."""
    x, new = draws(0, 40), draws(1, 50, loc=2.0)
    vae = adapt_vae(model)
    return x, new, decode_candidates(vae, (x, None), (new, None), 30, seeded())


def test_log_likelihoods_of_training_and_of_held_out_data(model, scored):
    x, new, found = scored
    assert found.data == "held-out data"
    assert found.training_log_likelihood.value == pytest.approx(float(model.log_prob(x).mean()), abs=0.02)
    known, scored = model.log_prob(new), found.log_likelihood["prior"]
    assert scored.num_samples == 30  # of the 50
    assert abs(scored.value - float(known.mean())) < 4 * scored.stderr
    assert scored.stderr == pytest.approx(float(known.std()) / 30**0.5, rel=0.4)


def test_a_log_likelihood_is_that_of_the_prior_and_the_gain(scored):
    found = scored[2]
    base = found.log_likelihood["prior"]
    for name, gain in found.gains.items():
        total = found.log_likelihood[name]
        assert total.value == pytest.approx(base.value + gain.value)
        assert total.stderr <= base.stderr + gain.stderr + 1e-12


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({"gmm": (0.19, 0.1), "q_agg": (-1.0, 0.1)}, "prior"),
        ({"gmm": (0.21, 0.1), "q_agg": (-1.0, 0.1)}, "gmm"),
        ({"gmm": (0.21, 0.1), "q_agg": (0.3, 0.2)}, "prior"),
        ({"gmm": (0.21, 0.1), "q_agg": (0.41, 0.2)}, "q_agg"),
        ({"gmm": (-0.5, 0.1), "q_agg": (-1.0, 0.1)}, "prior"),
    ],
)
def test_the_best_is_chosen_if_its_gain_exceeds_two_standard_errors(gains, chosen, model, monkeypatch):
    every = {"prior": Estimate(0.0, 0.0, 30)} | {name: Estimate(*pair, 30) for name, pair in gains.items()}
    choice = SimpleNamespace(gains=every, log_likelihood=every, candidates={}, effective_samples={})
    monkeypatch.setattr(sampling, "choose_prior", lambda *args, **named: choice)
    found = decode_candidates(adapt_vae(model), (draws(0, 20), None), None, 20, seeded())
    assert found.chosen == chosen
    assert found.training_log_likelihood is None and found.data.startswith("training data")


@pytest.mark.filterwarnings("ignore:choose_prior.*")
@pytest.mark.parametrize("new", [None, draws(2, 100)], ids=["training data", "held-out data"])
def test_samples_from_narrow_codes_are_copies_and_those_of_the_right_prior_are_not(new):
    """Nearer to a training datum than 95 % of other data's are: all of q_agg, one in twenty of the population's."""
    x = draws(3, 100)
    held_out = None if new is None else (new, None)
    found = decode_candidates(identity(1e-3), (x, None), held_out, 10, seeded())
    assert found.copies["q_agg"].value == 1.0
    assert found.copies["prior"].value < 0.15
    assert found.copies["prior"].num_samples == 400


def test_a_conditional_decoder_has_no_samples_to_compare():
    def decode(z, label):
        return Independent(Normal(z + label, 1.0), 1)

    def encode(x, label):
        return Independent(Normal(x - label, torch.ones_like(x)), 1)

    vae = adapt(encode, decode, prior=StandardNormal(D).double())
    found = decode_candidates(vae, (draws(0, 20), torch.ones(20, 1).double()), None, 10, seeded())
    assert found.copies == {}


def test_the_nearest_is_that_of_all_data_but_the_own():
    data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]).double()
    points = torch.tensor([[0.0, 0.0], [3.0, 3.5]]).double()
    assert sampling._nearest(points, data).tolist() == [0.0, 0.5]
    assert sampling._nearest(points, data, left_out=True).tolist() == pytest.approx([1.0, 15.25**0.5])


def copies(vae, x, new, candidates, generator=None):
    choice = SimpleNamespace(candidates=candidates)
    return sampling._copies(
        adapt_vae(vae), (x, None), None if new is None else (new, None), choice, generator or seeded()
    )


@pytest.mark.parametrize("held_out", [False, True])
def test_a_copy_is_nearer_than_the_nearest_twentieth_of_other_data(held_out):
    """Ten of a hundred data are one unit from each other, ten held-out data two units from them; the rest is far."""
    x, new = torch.zeros(2, 100, D).double()
    x[:, 0] = 10 * torch.arange(100)
    x[1:10:2, 0] = x[0:10:2, 0] + 1
    new += x
    new[:, 1] = torch.where(torch.arange(100) < 10, 2, 5)

    def beside(far):
        return SimpleNamespace(sample=lambda shape, generator: (x[50] + torch.tensor([far, 0, 0])).expand(*shape, D))

    near = 2.0 if held_out else 1.0
    candidates = {"on": beside(0.0), "inside": beside(0.99 * near), "outside": beside(1.01 * near)}
    found = copies(identity(1e-3), x, new if held_out else None, candidates)
    assert [found[name].value for name in candidates] == [1.0, 1.0, 0.0]
    assert all(estimate.num_samples == sampling.SAMPLES == 400 for estimate in found.values())


class Bare:
    """A likelihood without moments."""

    def __init__(self, z):
        self.log_prob = Normal(z, 1.0).log_prob


def test_a_decoder_without_means_has_no_samples_to_compare():
    vae = adapt(lambda x: Independent(Normal(x, torch.ones_like(x)), 1), Bare, prior=StandardNormal(D).double())
    assert copies(vae, draws(0, 20), None, {"prior": StandardNormal(D)}) == {}


def test_samples_come_from_the_generator_and_without_dropout():
    noisy = torch.nn.Dropout(0.5)
    vae = adapt(
        lambda x: Independent(Normal(noisy(x), torch.ones_like(x)), 1), lambda z: Independent(Normal(noisy(z), 1.0), 1),
        prior=StandardNormal(D).double(), modules=(noisy,),
    )  # fmt: skip
    state, x = torch.get_rng_state(), draws(0, 60)
    one, two = (copies(vae, x, None, {"prior": StandardNormal(D).double()}, seeded(1)) for _ in range(2))
    assert one == two and torch.equal(torch.get_rng_state(), state) and noisy.training


def test_as_many_training_data_are_scored_as_are_named(monkeypatch):
    x, asked = draws(0, 100), []

    def compare(vae, some, priors, num, *, condition, generator):
        asked.append(some)
        return {"prior": SimpleNamespace(log_prob=some.sum(1))}

    monkeypatch.setattr(sampling, "compare_priors", compare)
    found = sampling._log_likelihood(adapt_vae(identity(1.0)), (x, None), seeded())
    assert found.num_samples == sampling.SCORED == 64 == len(asked[0].unique(dim=0))
    assert found.value == pytest.approx(float(asked[0].sum(1).mean()))


def test_which_training_data_are_scored_comes_from_the_generator(monkeypatch):
    def compare(vae, some, priors, num, **options):
        return {"prior": SimpleNamespace(log_prob=some[:, 0])}

    monkeypatch.setattr(sampling, "compare_priors", compare)
    vae, x, state = identity(1.0), draws(0, 80), torch.get_rng_state()
    one, two, other = (sampling._log_likelihood(vae, (x, None), seeded(seed)) for seed in (1, 1, 2))
    assert one == two and one.value != pytest.approx(other.value) and torch.equal(torch.get_rng_state(), state)


def test_model_prior_and_condition_are_handed_on(monkeypatch):
    """Of a conditional model: the same data with their condition are scored, and it is the prior that scores them."""
    vae, x, label = identity(1.0), draws(0, 80), torch.arange(80.0).double()
    x[:, 0], asked = label, {}

    def compare(model, some, priors, num, **options):
        asked.update(model=model, some=some, priors=priors, num=num, **options)
        return {"prior": SimpleNamespace(log_prob=some[:, 0])}

    monkeypatch.setattr(sampling, "compare_priors", compare)
    generator = seeded()
    sampling._log_likelihood(vae, (x, {"label": label}), generator)
    assert asked["model"] is vae and asked["priors"] == {"prior": vae.prior} and asked["generator"] is generator
    assert asked["num"] == sampling.NUM_SAMPLES and torch.equal(asked["some"][:, 0], asked["condition"]["label"])


@pytest.mark.parametrize("held_out", [False, True])
def test_data_and_their_conditions_are_handed_on_to_the_choice(held_out, monkeypatch):
    asked, every, generator = {}, {"prior": Estimate(0.0, 0.0, 30)}, seeded()
    x, new, labels, new_labels = draws(0, 20), draws(1, 10), torch.zeros(20, 1), torch.ones(10, 1)

    def choose(vae, x, **options):
        asked.update(vae=vae, x=x, **options)
        return SimpleNamespace(gains=every, log_likelihood=every, candidates={}, effective_samples={})

    monkeypatch.setattr(sampling, "choose_prior", choose)
    monkeypatch.setattr(sampling, "_log_likelihood", lambda *given: given)
    vae = identity(1.0)
    found = decode_candidates(vae, (x, labels), (new, new_labels) if held_out else None, 7, generator)
    wanted = {"vae": vae, "x": x, "condition": labels, "num_data": 7, "generator": generator}
    wanted |= {"held_out": new, "held_out_condition": new_labels} if held_out else {}
    assert asked.keys() == wanted.keys() and all(asked[name] is value for name, value in wanted.items())
    known = found.training_log_likelihood
    assert known is None if not held_out else known[0] is vae and known[1] == (x, labels) and known[2] is generator


@pytest.mark.parametrize("held_out", [False, True])
def test_so_many_samples_are_compared_with_so_many_data_at_random(held_out, monkeypatch):
    monkeypatch.setattr(sampling, "AGAINST", 50)
    monkeypatch.setattr(sampling, "SAMPLES", 20)
    seen, x, new = [], draws(0, 80).float(), draws(1, 30).float()

    def nearest(points, data, *, left_out=False):
        seen.append((points, data, left_out))
        return torch.zeros(len(points))

    monkeypatch.setattr(sampling, "_nearest", nearest)
    copies(identity(1e-9), x, new if held_out else None, {"prior": StandardNormal(D)})
    (again, data, left_out), (samples, same, own) = seen
    assert again.dtype == data.dtype == samples.dtype == torch.float64  # differences of nearly equal numbers
    assert torch.equal(data, same) and len(data.unique(dim=0)) == 50 and not torch.equal(data, x[:50].double())
    assert (len(samples), left_out, own) == (20, not held_out, False)
    torch.testing.assert_close(again, (new if held_out else data)[:20].double())
