"""The diagnosis: codes and models of which the answer is known; its forms; what it refuses."""

import html
import json
import math
import re
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import vaebook
from tests.texts import check_text
from vaebook import diagnosis
from vaebook import report as report_module
from vaebook.adapters import adapt, adapt_prior
from vaebook.diagnosis import diagnose
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import one_gaussian
from vaebook.population import FEWEST
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal
from vaebook.report import Diagnosis, json_schema

DATA = 300


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(seed=0, num=DATA, dim=2, scale=0.6, spread=None):
    """Codes whose population is the prior, unless their spread is another."""
    spread = math.sqrt(1 - scale**2) if spread is None else spread
    loc = spread * torch.randn(num, dim, generator=seeded(seed), dtype=torch.float64)
    return {"loc": loc, "scale": torch.full_like(loc, scale)}


def ring():
    angle = torch.linspace(0, 2 * math.pi, DATA + 1)[:-1]
    loc = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return {"loc": loc, "log_var": torch.full_like(loc, 2 * math.log(0.1))}


def collapsed():
    loc = 1e-4 * torch.randn(DATA, 3, generator=seeded(0))
    return {"loc": loc, "var": torch.ones_like(loc)}


def answers(report):
    return {verdict.topic.split("?")[0]: verdict.status for verdict in report.verdicts}


@pytest.fixture(scope="module")
def model():
    """Probabilistic PCA and data that were drawn from it: right about its data, with exact inference."""
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.5], [1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    vae = PPCA(torch.zeros(4, dtype=torch.float64), weight, noise_variance=0.5)
    codes = torch.randn(DATA, 2, generator=seeded(3), dtype=torch.float64)
    x = codes @ weight.mT + math.sqrt(0.5) * torch.randn(DATA, 4, generator=seeded(4), dtype=torch.float64)
    return vae, x


@pytest.fixture(scope="module")
def report(model):
    vae, x = model
    return diagnose(vae, x[:200], held_out=x[200:], num_data=60, generator=seeded(5))


@pytest.fixture(scope="module")
def known():
    """The diagnosis of codes whose population is the prior."""
    return diagnose(gaussian())


@pytest.fixture(scope="module")
def of_ring():
    return diagnose(ring())


def test_numbers_of_a_known_population(known):
    report = known
    rate = 0.5 * (0.6**2 - 1 - 2 * math.log(0.6) + gaussian()["loc"].square().mean()) * 2
    assert report.rate.value == pytest.approx(float(rate))
    information = -2 * math.log(0.6)
    assert report.information_population.low <= information <= report.information_population.high
    assert report.mismatch_population.low == 0
    assert report.rate.value == pytest.approx(report.information.value + report.mismatch.value)
    assert sum(report.kl_per_dimension) == pytest.approx(report.rate.value)
    assert report.distinguishable.value == pytest.approx(math.exp(report.information.value))
    assert report.distinguishable.stderr == pytest.approx(report.distinguishable.value * report.information.stderr)
    assert report.active == (True, True)
    assert report.holes.mass == 0
    found = answers(report)
    assert found["Which distribution should I draw codes from"] == "ok"
    assert found["Are latents in use, or collapsed"] == "ok"
    assert found["Has training converged"] == "ok"


def test_a_ring_has_a_hole_and_does_not_follow_the_prior(of_ring):
    found = answers(of_ring)
    assert found["Are there holes, parts of the prior without codes"] == "problem"
    assert found["Do codes follow the prior"] in ("look", "problem")
    assert found["Which distribution should I draw codes from"] == "look"


def test_collapse():
    report = diagnose(collapsed())
    assert report.active == (False, False, False)
    assert answers(report)["Are latents in use, or collapsed"] == "problem"
    assert report.holes.mass == 0


def test_codes_that_are_all_near_the_origin_are_not_collapsed_if_they_are_narrow():
    report = diagnose(gaussian(dim=8, scale=0.02, spread=0.05))
    assert report.active == (True,) * 8
    assert answers(report)["Are latents in use, or collapsed"] == "ok"
    assert report.holes.mass > 0.9
    assert [place.index for place in report.holes.where] == [8]  # the distance from the origin, last


def test_codes_that_are_not_at_the_end_of_training():
    assert answers(diagnose(gaussian(spread=1.5)))["Has training converged"] == "look"


def test_an_encoder_that_overfits_shows_in_held_out_codes():
    apart = {"loc": 3 * gaussian(1)["loc"], "scale": gaussian(1)["scale"]}
    topic = "Does the model treat new data as it treats training data"
    assert answers(diagnose(gaussian(), held_out=apart))[topic] == "problem"
    assert answers(diagnose(gaussian(), held_out=gaussian(1)))[topic] == "ok"


def test_a_model_that_is_right_about_its_data(report):
    assert report.population_from == "held-out codes"
    assert "densities[0]" in report.mismatch_population.candidates
    assert report.mismatch_population.low == 0
    assert report.sampling.data == "held-out data"
    assert report.sampling.gains["prior"].value == 0
    assert set(answers(report).values()) <= {"ok", "unknown"}


def test_log_likelihoods_are_those_of_the_model(model, report):
    exact = model[0].log_prob(model[1])
    found = report.sampling.log_likelihood["prior"]
    assert abs(found.value - float(exact[200:].mean())) < 4 * found.stderr


def test_verdicts_of_few_data_or_of_none_that_tell():
    one, same = diagnose(gaussian(num=1)), diagnose({"loc": torch.zeros(50, 2), "scale": torch.ones(50, 2)})
    assert answers(one)["Are latents in use, or collapsed"] == "unknown"
    assert answers(one)["Has training converged"] == "unknown"
    assert answers(same)["Which distribution should I draw codes from"] == "ok"
    assert answers(same)["Do codes follow the prior"] == "ok"
    assert answers(same)["Are latents in use, or collapsed"] == "problem"


def test_narrow_codes_of_one_population_are_not_said_to_be_overfitted():
    topic = "Does the model treat new data as it treats training data"
    found = diagnose(gaussian(num=200, dim=5, scale=0.02, spread=1.0), held_out=gaussian(1, 100, 5, 0.02, 1.0))
    assert answers(found)[topic] == "unknown"  # the difference is smaller than its error, and that is large


def test_an_encoder_alone_is_diagnosed_as_its_codes_are(model):
    net = nn.Linear(4, 4)
    encoder = adapt(lambda x: net(x).chunk(2, 1), spread="log_var", modules=(net,))
    x = model[1][:30].float()  # too few for the population, which takes the same codes
    mu, log_var = net(x).detach().chunk(2, 1)
    one, two = diagnose(encoder, x), diagnose({"loc": mu, "log_var": log_var})
    assert one.sampling is None
    assert one.rate.value == pytest.approx(two.rate.value, rel=1e-5)


def test_copies_are_merged_and_said():
    codes = gaussian(num=100)
    twice = {name: value.repeat(2, 1) for name, value in codes.items()}
    one, two = diagnose(codes), diagnose(twice)
    assert (two.num_data, two.num_distinct) == (200, 100)
    assert "100 of 200 codes are exact copies" in " ".join(two.notes)
    assert two.information.value == pytest.approx(one.information.value, abs=0.05)
    assert two.memorisation.leave_one_out.value == pytest.approx(one.memorisation.leave_one_out.value, abs=0.2)


@pytest.mark.parametrize("num", [39, 40])
def test_forty_held_out_codes_stand_for_the_population(num):
    report = diagnose(gaussian(num=12, dim=1), held_out=gaussian(1, num=num, dim=1))
    assert report.population_from == ("held-out codes" if num == 40 else "the codes at hand")


def test_a_normal_prior_of_another_scale_is_not_the_standard_one():
    for scale, name in ((1.0, "standard normal"), (2.0, "Independent")):
        prior = Independent(Normal(torch.zeros(1).double(), torch.full((1,), scale).double()), 1)
        assert diagnose(gaussian(num=3, dim=1), prior=prior).prior == name


def test_another_prior_and_another_unit():
    codes = gaussian(num=FEWEST - 1)  # too few for the population, whose own tests move codes
    codes["loc"][:, 1] *= 0.05  # in units of the prior this latent is not in use
    other = {"loc": 100 * codes["loc"] + 7, "scale": 100 * codes["scale"]}
    prior = Independent(Normal(torch.full((2,), 7.0).double(), torch.full((2,), 100.0).double()), 1)
    one, two = diagnose(codes), diagnose(other, prior=prior)
    assert two.prior == "Independent"
    assert two.rate.value == pytest.approx(one.rate.value)
    assert two.active == one.active == (True, False)
    assert two.moments == pytest.approx(one.moments, abs=1e-6)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 5), (2, 1), (3, 2), (45, 1), (70, 128)])
def test_few_data_and_any_dimension(num, dim):
    report = diagnose(gaussian(num=num, dim=dim))
    assert report.unknown
    json.loads(report.to_json())
    assert "nan" not in str(report)
    assert (report.mismatch_population is None) == (num < FEWEST)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.longdouble])
def test_any_numbers(dtype):
    num = 60 if dtype is np.float16 else 20  # beyond the door all are float32 or float64
    codes = {"loc": np.arange(2 * num).reshape(num, 2).astype(dtype), "var": np.ones((num, 2), dtype)}
    assert diagnose(codes).num_data == num


def test_codes_of_any_shape_are_flattened():
    flat = gaussian(num=20)
    codes = {name: value.reshape(20, 1, 2) for name, value in flat.items()}
    assert diagnose(codes).to_json() == diagnose(flat).to_json()


def test_the_same_call_gives_the_same(known):
    assert diagnose(gaussian()).to_json() == known.to_json()


def test_json_is_what_the_schema_says(report, of_ring):
    for each in (report, of_ring, diagnose(gaussian(num=1, dim=1))):
        jsonschema.validate(json.loads(each.to_json()), json_schema())
    broken = json.loads(report.to_json())
    del broken["rate"]["stderr"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json_schema())
    assert set(broken) == {"schema", *Diagnosis.__dataclass_fields__} - {"shown"}


def test_every_form_names_every_verdict(report, tmp_path):
    text, page = str(report), html.unescape(report.to_html(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.to_html()
    report.to_json(tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for verdict in report.verdicts:
        assert verdict.topic in text
        assert verdict.finding in page
        assert verdict.decides in page
        assert verdict.advice in [each["advice"] for each in stored["verdicts"]]
    for name, *_ in report.numbers():
        assert name in str(report.table())
        assert name in page


def test_the_page_fetches_nothing_and_shows_four_pictures(report):
    for page in (report.to_html(), report._repr_html_()):
        assert re.findall(r'(?:src|href)="(?!data:)', page) == []
        assert "<script" not in page
        assert "url(" not in page
        assert len(re.findall(r'<img src="data:image/svg\+xml;base64,[^"]+" alt="[^"]{40,}"', page)) == 4


def test_every_field_is_documented():
    source = Path(report_module.__file__).read_text(encoding="utf-8")
    for name in Diagnosis.__dataclass_fields__:
        assert re.search(rf'\n    {name}: .*\n    """', source), name


def test_what_the_package_offers_first():
    assert sorted(vaebook.__all__) == ["DiagGaussianMixture", "adapt", "aggregated_posterior", "diagnose"]
    assert all(callable(getattr(vaebook, name)) for name in vaebook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        vaebook.other  # noqa: B018


GOOD = gaussian(num=60)
BAD = {
    "nan": ({"loc": GOOD["loc"] * math.nan, "scale": GOOD["scale"]}, ValueError, "loc: expected finite values"),
    "zero": (
        {"loc": GOOD["loc"], "scale": 0 * GOOD["scale"]},
        ValueError,
        "scale: expected positive values, got min 0",
    ),
    "negative": ({"loc": GOOD["loc"], "var": -GOOD["scale"]}, ValueError, "var: expected positive values, got none"),
    "no spread": ({"loc": GOOD["loc"]}, ValueError, "subject: expected loc and exactly one of scale, var, log_var"),
    "two spreads": (GOOD | {"var": GOOD["scale"]}, ValueError, "subject: expected loc and exactly one"),
    "another name": (GOOD | {"labels": GOOD["loc"]}, ValueError, "subject: expected loc and exactly one"),
    "other N": ({"loc": GOOD["loc"], "scale": GOOD["scale"][1:]}, ValueError, "scale: expected shape"),
    "no rows": ({"loc": GOOD["loc"][:0], "scale": GOOD["scale"][:0]}, ValueError, "loc: expected"),
    "flat": ({"loc": GOOD["loc"][:, 0], "scale": GOOD["scale"][:, 0]}, ValueError, "loc: expected shape"),
    "strings": ({"loc": np.array([["a"]]), "scale": np.ones((1, 1))}, TypeError, "loc: expected an array of real"),
    "pair": ((GOOD["loc"], GOOD["scale"]), TypeError, "subject: expected codes"),
    "number": (3, TypeError, "subject: expected codes"),
    "function": (lambda x: x, TypeError, "subject: expected codes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    subject, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)):
        diagnose(subject)


def test_other_arguments_that_are_refused(model):
    vae, x = model
    with pytest.raises(TypeError, match="x: expected the data that the model was trained on, got None"):
        diagnose(vae)
    with pytest.raises(TypeError, match="prior: expected None, since the model has its own"):
        diagnose(vae, x, prior=vae.prior)
    with pytest.raises(TypeError, match="x: expected None, as codes were given"):
        diagnose(GOOD, x)
    with pytest.raises(ValueError, match="held_out: expected codes of dimension 2, got 3"):
        diagnose(GOOD, held_out=gaussian(dim=3))
    with pytest.raises(ValueError, match="prior: expected dimension 2, got 1"):
        diagnose(GOOD, prior=DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1)))
    with pytest.raises(ValueError, match="held_out: expected"):
        diagnose(vae, x, held_out=x * math.nan)


class Never(nn.Module):
    """An encoder with dropout that evaluation mode does not stop."""

    def forward(self, x):
        return nn.functional.dropout(x[:, :2], 0.5, training=True), torch.ones_like(x[:, :2])


def raising(x):
    raise KeyError("weights")


BAD_MODELS = {
    "raises": (raising, {}, "encoder: expected it to take a batch of shape .*KeyError"),
    "dropout": (Never(), {}, "encoder: expected the same from two passes over the same data"),
    "wrong rows": (lambda x: (x[:1], x[:1].exp()), {}, r"encoder's loc: expected shape \(\d+, ...\)"),
    "negative": (lambda x: (x, -x.exp()), {}, "encoder's scale: expected positive values"),
    "zero": (lambda x: (x, 0 * x), {}, "encoder's scale: expected positive values"),
    "nan": (lambda x: (x * math.nan, x.exp()), {}, "encoder's loc: expected finite values"),
    "a variance named std": (lambda x: (x, -x.abs() - 1), {"spread": "var"}, "encoder's scale: expected positive"),
    "one tensor": (lambda x: x, {}, "encoder: expected it to return"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_are_refused(name):
    encode, options, message = BAD_MODELS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(adapt(encode, **options), torch.randn(20, 3, generator=seeded(0)))


def test_training_mode_is_left_and_come_back_to(model):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    x, before = model[1].float()[:30], {name: value.clone() for name, value in net.state_dict().items()}
    one, two = (diagnose(adapt(lambda x: net(x).chunk(2, 1), spread="log_var"), x) for _ in range(2))
    assert one.rate == two.rate
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_a_part_of_the_work_cannot_do_is_said():
    wild = adapt(
        lambda x: (x[:, :1], torch.ones_like(x[:, :1])),
        lambda z: Independent(Normal(z.expand(-1, 2) * math.inf, 1.0, validate_args=False), 1, validate_args=False),
    )
    report = diagnose(wild, torch.randn(60, 2, generator=seeded(0)))
    assert report.sampling is None
    assert any(line.startswith("The decoder: ") for line in report.unknown)


FEW = gaussian(num=5)
"""So few that neither holes nor the population are looked at."""


def weighted(loc, scale, weight):
    return DiagGaussianMixture(
        *(torch.tensor(part, dtype=torch.float64) for part in (loc, scale)), torch.tensor(weight).double().log()
    )


def test_without_a_generator_the_seed_is_0():
    assert (
        diagnose(FEW).to_json()
        == diagnose(FEW, generator=seeded(0)).to_json()
        != diagnose(FEW, generator=seeded(1)).to_json()
    )


def test_copies_count_as_data_and_not_as_codes():
    found = diagnose({name: value.repeat(2, 1) for name, value in FEW.items()})
    assert (found.num_data, found.num_distinct) == (10, 5) and found.log_num_data == math.log(10)
    assert found.notes[-1].startswith("5 of 10 codes are exact copies")
    one = diagnose({name: torch.cat([value, value[:1]]) for name, value in FEW.items()})
    assert one.notes[-1].startswith("1 of 6 codes are exact copies")
    assert not any("copies" in note for note in diagnose(FEW).notes)


def test_what_can_be_told_apart_is_the_exponential_of_the_information_and_so_is_its_error():
    found = diagnose(FEW)
    told = math.exp(found.information.value)
    assert found.distinguishable.value == pytest.approx(told)
    assert found.distinguishable.stderr == pytest.approx(told * found.information.stderr)


def test_the_moments_farthest_from_0_and_1_are_told_with_their_signs_in_units_of_the_prior():
    """Three latents: means -4, 1 and 0 in units of 2, mean squares 20, 2 and 0.1, of weights 0.9 and 0.1."""
    q = weighted([[-4.0, 1.0, 0.0], [-4.0, 1.0, 0.0]], [[2.0, 1.0, 0.1]] * 2, [0.9, 0.1])
    found = diagnosis._moments(q, torch.zeros(3).double(), torch.full((3,), 2.0).double())
    assert found == pytest.approx((-2.0, 5.0))
    q = weighted([[0.1, 0.0], [0.1, 1.0]], [[0.3, 1.0]] * 2, [0.9, 0.1])
    shifted = diagnosis._moments(q, torch.tensor([0.0, 0.1]).double(), torch.ones(2).double())
    assert shifted == pytest.approx((0.1, 0.1))  # second moments 0.1, and 1.09: the first is farther from 1


def test_latents_are_in_use_by_the_weighted_spread_of_means_and_of_codes():
    """A code in a thousand is wide, and its mean elsewhere: the codes' own width is that of the others."""
    q = weighted([[0.0], [1.0]], [[0.05], [5.0]], [0.999, 0.001])
    prior = StandardNormal(1).double()
    assert diagnosis._active(q, prior, (torch.zeros(1), torch.ones(1)), seeded(0)) == (True,)
    even = weighted([[0.0], [1.0]], [[0.05], [5.0]], [0.5, 0.5])
    narrow = weighted([[-0.09], [0.09]], [[1.0], [1.0]], [0.5, 0.5])
    assert diagnosis._active(even, prior, (torch.zeros(1), torch.ones(1)), seeded(0)) == (True,)
    assert diagnosis._active(narrow, prior, (torch.zeros(1), torch.ones(1)), seeded(0)) == (False,)
    assert diagnosis._active(narrow, prior, (torch.zeros(1), torch.full((1,), 0.1).double()), seeded(0)) == (True,)


@pytest.mark.parametrize(
    ("loc", "scale", "name"), [(0, 1, "standard normal"), (1, 1, "Independent"), (0, 2, "Independent")]
)
def test_the_standard_normal_is_that_of_mean_0_and_scale_1_in_all_latents(loc, scale, name):
    for row in (0, 1):
        place, width = torch.zeros(2).double(), torch.ones(2).double()
        place[row], width[row] = loc, scale
        prior = adapt_prior(Independent(Normal(place, width), 1), 2)
        assert diagnosis._describe(prior, one_gaussian(prior)) == name


def test_what_pictures_show_is_own_left_out_and_held_out():
    loc = torch.tensor([[0.0], [9.0]], dtype=torch.float64)
    q, other = (DiagGaussianMixture(part, torch.full_like(part, 0.1)) for part in (loc, loc + 3))
    prior = StandardNormal(1).double()
    shown = diagnosis._shown(q, other, prior, seeded(0))
    assert list(shown) == ["codes", "prior", "own", "leave_one_out", "held_out"]
    assert len(shown["codes"]) == diagnosis.SHOWN
    torch.testing.assert_close(shown["own"], q.log_prob(shown["codes"]))
    assert float(shown["leave_one_out"].max()) < -3_000 < -500 < float(shown["held_out"].mean()) < -400
    assert list(diagnosis._shown(q, None, prior, seeded(0))) == ["codes", "prior", "own", "leave_one_out"]
    assert list(diagnosis._shown(q[[0]], other, prior, seeded(0))) == ["codes", "prior"]
    again = diagnosis._shown(q, other, prior, seeded(0))
    assert all(torch.equal(shown[name], again[name]) for name in shown)


def test_what_is_missing_is_said_and_what_is_there_is_not():
    found = diagnose(FEW)
    for decoder in (False, True):
        for held_out in (False, True):
            work = diagnosis._Work(None, None)
            work.remark(found, decoder, held_out)
            told = " ".join(work.unknown)
            assert ("takes the decoder" in told, "takes held-out data" in told) == (not decoder, not held_out)


class Bar:
    done = 0

    def update(self):
        self.done += 1


def test_a_part_of_the_work_that_fails_is_one_line_and_a_warning_one_note():
    work = diagnosis._Work(Bar(), seeded(0))

    def warn(number, *, generator, more):
        assert generator is work.generator and more == 2
        for _ in range(number):
            warnings.warn("careful", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return number

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert work.attempt("It", warn, 3, more=2) == 3
    for error in (ValueError("first\nsecond"), RuntimeError("none"), ZeroDivisionError("by zero")):
        assert work.attempt("It", lambda generator, error=error: (_ for _ in ()).throw(error)) is None
    with pytest.raises(KeyError):
        work.attempt("It", lambda generator: {}["x"])
    assert (work.notes, work.unknown, work.bar.done) == (["It: careful"], ["It: first", "It: none", "It: by zero"], 4)


def test_enough_codes_are_as_many_as_are_needed_and_of_equal_weight():
    work = diagnosis._Work(Bar(), seeded(0))
    assert work.enough("It", 60, 60, True) and work.unknown == []
    assert not work.enough("It", 59, 60, True) and not work.enough("It", 60, 60, False)
    assert work.unknown[0] == "It: that takes 60 distinct codes at least; there are 59."
    assert work.unknown[1].startswith("It: codes came with unequal weights")


def test_fewer_than_two_data_are_not_scored():
    with pytest.raises(ValueError, match="num_data: expected an int at least 2, got 1"):
        diagnose(FEW, num_data=1)


@pytest.mark.parametrize(
    ("num", "dim", "new", "most", "sizes", "scored"),
    [
        (14, 1, 0, 12, (1, 5, 20), 12),
        (12, 1, 0, 12, (1, 5, 20), 12),
        (12, 49, 40, 12, (1, 5, 20), 12),
        (12, 50, 40, 50, (1,), 40),
        (12, 50, 39, 50, (1,), 12),
    ],
)
def test_what_brackets_are_made_from(num, dim, new, most, sizes, scored, monkeypatch):
    """Of more codes than can be scored some at random; of many dimensions one Gaussian; own codes beside held-out."""
    asked = []
    monkeypatch.setattr(diagnosis, "MOST", most)
    monkeypatch.setattr(diagnosis, "bracket_both", lambda *given, generator: asked.append((given, generator)))
    codes, generator = gaussian(num=num, dim=dim), seeded(1)
    found = diagnose(codes, held_out=gaussian(1, new, dim) if new else None, generator=generator)
    ((sample, prior, outside, tried), used), *more = asked
    assert (sample.num_components, tried, used, more) == (scored, sizes, generator, [])
    assert found.mismatch_population is None and prior.latent_dim == dim
    assert [q.num_components for q in outside] == ([num] if new >= 40 else [])
    noted = f"The intervals for the population are made from {most} codes, chosen at random."
    assert (noted in found.notes) == (max(num, new) > most)
    every = gaussian(1, new, dim)["loc"] if new >= 40 else codes["loc"]
    rows = [int((every == row).all(1).nonzero()) for row in sample.loc]
    assert len({*rows}) == scored and (rows == sorted(rows)) == (scored == len(every))


def test_of_a_prior_that_is_not_one_gaussian_there_are_no_moments_and_no_rates_of_latents():
    prior = DiagGaussianMixture(torch.tensor([[-9.0, 0.0], [9.0, 0.0]]), torch.tensor([[1.0, 0.1], [1.0, 0.1]]))
    codes = {"loc": torch.tensor([[0.0, 0.05], [0.2, -0.05], [0.4, 0.05]]), "scale": torch.full((3, 2), 0.1)}
    found = diagnose(codes, prior=prior)
    assert (found.moments, found.kl_per_dimension, found.prior) == (None, None, "DiagGaussianMixture")
    # a hundredth of the prior's variance, 82 and 0.01, or of the codes' own mean variance, 0.01
    assert found.active == (True, True)
    assert "Has training converged" not in answers(found)


def test_what_fails_or_warns_is_told_with_the_name_of_its_part(monkeypatch, model):
    """And the other parts are told as ever; of a warning that comes twice, once."""
    names = {"bracket_both": "The population", "hole_mass": "Holes", "memorisation": "Memorisation"}
    names |= {"decode_candidates": "The decoder"}
    vae, x = model

    def part(name, error):
        def run(*_, **__):
            for told in (f"{name} warns", f"{name} warns", "again"):
                warnings.warn(told, stacklevel=1)
            warnings.warn("of another kind", FutureWarning, stacklevel=1)
            raise error(f"{name} fails\nand goes on")

        return run

    for name, error in zip(names, (ValueError, RuntimeError, ArithmeticError, ValueError), strict=True):
        monkeypatch.setattr(diagnosis, name, part(name, error))
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = diagnose(vae, x[:70])
    assert found.unknown[:4] == tuple(f"{told}: {name} fails" for name, told in names.items())
    assert found.unknown[4].startswith("Whether the encoder treats new data") and len(found.unknown) == 5
    assert found.notes == tuple(
        f"{told}: {what}" for name, told in names.items() for what in (f"{name} warns", "again")
    )
    assert [one.category for one in caught if one.category is UserWarning] == []
    assert (found.holes, found.memorisation, found.sampling, found.mismatch_population) == (None,) * 4


def test_what_is_missing_is_told_whole(monkeypatch):
    for name in ("bracket_both", "hole_mass", "memorisation"):
        monkeypatch.setattr(diagnosis, name, lambda *_, **__: None)
    codes = gaussian(num=9)
    told = [diagnose(codes), diagnose(codes | {"log_weight": torch.arange(9).double().log_softmax(0)})]
    told += [diagnose({name: value.repeat(7, 1) for name, value in codes.items()}, held_out=gaussian(1, 40))]
    lines = [line for report in told for line in ("", *report.unknown, *report.notes)]
    check_text("missing.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(("each", "draws"), [(999, 1_000), (5_000, 5_000), (5_000.9, 5_000), (10_001, 10_000)])
def test_the_more_codes_and_dimensions_there_are_the_fewer_draws_are_made(each, draws, monkeypatch):
    asked, split = [], diagnosis.decompose_kl

    def decompose(*given, num_samples, **options):
        asked.append((num_samples, options["marginals"]))
        return split(*given, num_samples=50, **options)

    monkeypatch.setattr(diagnosis, "decompose_kl", decompose)
    monkeypatch.setattr(diagnosis, "PAIRS", each * 6 * 3)
    codes = {name: value.repeat(2, 1) for name, value in gaussian(num=6, dim=3).items()}  # 6 of them are distinct
    found = diagnose(codes)
    assert asked == [(draws, True)] and found.distinguishable.num_samples == draws


def test_what_pictures_show_are_a_thousand_draws_and_their_densities():
    codes, new = gaussian(num=5, dim=2), gaussian(1, num=3, dim=2)
    q = DiagGaussianMixture(codes["loc"], codes["scale"])
    shown = diagnose(codes, held_out={name: value.float() for name, value in new.items()}).shown
    assert {name: tuple(value.shape) for name, value in shown.items()} == {
        "codes": (1000, 2), "prior": (1000, 2), "own": (1000,), "leave_one_out": (1000,), "held_out": (1000,),
    }  # fmt: skip
    assert {value.dtype for value in shown.values()} == {torch.float64}
    torch.testing.assert_close(shown["own"], q.log_prob(shown["codes"]))
    assert bool((shown["leave_one_out"] < shown["own"] + math.log(1.25) + 1e-9).all())  # 5/4 of the rest of it
    assert len(shown["held_out"].unique()) == 1000
    assert set(diagnose({name: value[:1] for name, value in codes.items()}).shown) == {"codes", "prior"}
