"""The rule for what to sample from, against closed forms and integrals, and where it must not go wrong."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vaebook import gmm, selection
from vaebook.adapters import adapt
from vaebook.estimators import Estimate
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm
from vaebook.selection import ORDER, choose_prior

QUICK = {"num_components": (1, 3)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ring(num=150, seed=0):
    """Data on a circle: one Gaussian is a bad prior for their codes."""
    angle = 6.28 * torch.rand(num, generator=seeded(seed), dtype=torch.float64)
    noise = torch.randn(num, 4, generator=seeded(seed + 1), dtype=torch.float64)
    return torch.cat([torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(num, 2)], 1) * 2 + 0.2 * noise


def gaussian(num, data_dim=12, latent_dim=8, seed=0):
    """Data from probabilistic PCA itself: no prior is better than its own."""
    w = torch.linspace(3, 1, latent_dim, dtype=torch.float64) * torch.eye(data_dim, latent_dim, dtype=torch.float64)
    z = torch.randn(num, latent_dim, generator=seeded(seed), dtype=torch.float64)
    return z @ w.mT + 0.1 * torch.randn(num, data_dim, generator=seeded(seed + 1), dtype=torch.float64)


def small_vae(prior=None, dim=2, dtype=torch.float32):
    encoder = GaussianEncoder(6, dim, (8,), generator=seeded(1))
    prior = StandardNormal(dim) if prior is None else prior(encoder)
    return VAE(encoder, BernoulliDecoder(dim, 6, (8,), generator=seeded(2)), prior).to(dtype)


def bits(num=40, seed=3, dtype=torch.float32):
    return torch.rand(num, 6, generator=seeded(seed)).round().to(dtype)


def test_gain_of_q_agg_is_the_closed_form_leave_one_out():
    x = ring()
    model = PPCA.fit(x, 2)
    choice = choose_prior(model, x, generator=seeded(), **QUICK)
    q_agg, own = model.aggregated_posterior(x), torch.arange(len(x))
    exact = model.log_prob_under(q_agg, x, leave_out_index=own) - model.log_prob(x)
    assert choice.gains["q_agg"].value == pytest.approx(float(exact.mean()), abs=0.03)
    assert choice.gains["q_agg"].stderr == pytest.approx(float(exact.std() / len(x) ** 0.5), rel=0.1)
    assert choice.gains["prior"] == (0.0, 0.0, 150) and choice.prior is choice.candidates["gmm"]
    torch.testing.assert_close(choice.candidates["q_agg"].loc, q_agg.loc)
    naive = float((model.log_prob_under(q_agg, x) - model.log_prob(x)).mean())
    assert choice.gains["q_agg"].value < naive - 0.02


def test_held_out_data_are_scored_instead():
    x, held_out = ring(), ring(90, seed=5)
    model = PPCA.fit(x, 2)
    choice = choose_prior(model, x, held_out=held_out, generator=seeded(), **QUICK)
    for name, prior in choice.candidates.items():
        exact = float((model.log_prob_under(prior, held_out) - model.log_prob(held_out)).mean())
        assert choice.gains[name].value == pytest.approx(exact, abs=0.04)
        assert choice.gains[name].num_samples == 90


def test_mixtures_are_scored_on_data_they_have_not_seen():
    """Thirty codes and fifteen components: on its own codes the mixture is far better than on others."""
    x, new = gaussian(30, latent_dim=2), gaussian(2000, latent_dim=2, seed=7)
    model = PPCA.fit(x, 2)
    choice = choose_prior(model, x, num_components=(15,), generator=seeded())
    gmm = choice.candidates["gmm"]
    own, others = (float((model.log_prob_under(gmm, y) - model.log_prob(y)).mean()) for y in (x, new))
    assert others < 0 < own and choice.gains["gmm"].value < own / 2 - 0.1


def test_memorised_codes_are_seen_and_one_gaussian_is_seen_to_be_one():
    x = gaussian(40)
    choice = choose_prior(PPCA.fit(x, 8), x, generator=seeded())
    assert choice.gains["q_agg"].value < -5 * choice.gains["q_agg"].stderr
    assert choice.num_components == 1


def test_the_mixture_is_that_of_the_true_groups():
    """Codes in three round groups, far apart: K = 3, and no more from correlations, which there are none of."""
    group = torch.arange(300) % 3
    loc = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]]).double()[group]
    z = loc + torch.randn(300, 2, generator=seeded(3), dtype=torch.float64)
    x = torch.cat([z, torch.zeros(300, 2).double()], 1) + 0.1 * torch.randn(300, 4, generator=seeded(4)).double()
    choice = choose_prior(PPCA.fit(x, 2), x, generator=seeded())
    assert choice.num_components == 3 and len(choice.prior.components()[0]) == 3
    assert choice.gains["gmm"].value > 1


@pytest.mark.parametrize("factor", [0.1, 0.4, 1.5])
def test_codes_that_are_no_posteriors(factor):
    """Too narrow or too wide an encoder, as another beta makes it: the gains are still those of that q_agg."""
    x = ring(300)
    model = PPCA.fit(x, 2)

    def encoder(y):
        q = model.posterior(y).base_dist
        return Independent(Normal(q.loc, factor * q.scale), 1)

    vae = SimpleNamespace(encoder=encoder, decoder=model.decoder, prior=model.prior)
    choice = choose_prior(vae, x, generator=seeded(), **QUICK)
    q_agg, own = choice.candidates["q_agg"], torch.arange(len(x))
    assert float(q_agg.scale[0, 0]) == pytest.approx(factor * float(model.posterior(x).base_dist.scale[0, 0]))
    exact = model.log_prob_under(q_agg, x, leave_out_index=own) - model.log_prob(x)
    assert choice.gains["q_agg"].value == pytest.approx(float(exact.mean()), abs=0.05)


def test_collapsed_codes_are_a_tie():
    vae = small_vae()
    with torch.no_grad():
        for head in (vae.encoder.loc, vae.encoder.log_scale):
            head.weight.zero_()
            head.bias.zero_()
    choice = choose_prior(vae, bits(), generator=seeded(), **QUICK)
    assert choice.num_components == 1
    assert abs(choice.gains["q_agg"].value) < 1e-4 and abs(choice.gains["gmm"].value) < 0.1


@pytest.mark.parametrize("scale", [1e-2, 1e-6])
def test_an_autoencoders_codes(scale):
    x = gaussian(60, latent_dim=3).float()
    encoder, decoder = GaussianEncoder(12, 3, (), generator=seeded()), GaussianDecoder(3, 12, (), generator=seeded())
    with torch.no_grad():
        encoder.log_scale.weight.zero_()
        encoder.log_scale.bias.fill_(float(torch.tensor(scale).log()))
    choice = choose_prior(VAE(encoder, decoder, StandardNormal(3)), x, generator=seeded(), **QUICK)
    assert all(torch.isfinite(torch.tensor(gain[:2])).all() for gain in choice.gains.values())


@pytest.mark.parametrize(
    "prior",
    [
        lambda encoder: VampPrior(encoder, bits(5)),
        lambda encoder: ExemplarPrior(encoder, bits()),
        lambda encoder: GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]),
        lambda encoder: DiagGaussianMixture(torch.zeros(2, 2), torch.ones(2, 2)),
    ],
)
def test_models_with_other_priors(prior):
    choice = choose_prior(small_vae(prior), bits(), generator=seeded(), **QUICK)
    assert choice.gains["prior"].value == 0 and len(choice.gains) == 3
    z = choice.prior.sample((3,), generator=seeded())
    assert z.shape == (*choice.prior.log_prob(z).shape, 2) == (3, 2)


def test_an_exemplar_prior_is_scored_without_the_own_exemplar():
    """With codes equal to the exemplars' Gaussians, the prior and q_agg are the same, and so are both left out of."""
    vae = small_vae(lambda encoder: ExemplarPrior(encoder, bits(), scale=0.3))
    with torch.no_grad():
        vae.encoder.log_scale.weight.zero_()
        vae.encoder.log_scale.bias.copy_(vae.prior.log_scale)
    choice = choose_prior(vae, bits(), generator=seeded(), **QUICK)
    assert choice.gains["q_agg"].value == pytest.approx(0, abs=1e-5)


class Heavy:
    """A prior that is no Gaussian mixture."""

    latent_dim = 1
    of_torch = Independent(Laplace(torch.zeros(1).double(), torch.ones(1).double()), 1)

    def log_prob(self, z):
        return self.of_torch.log_prob(z)

    def sample(self, shape, *, generator=None):
        u = torch.rand((*shape, 1), generator=generator, dtype=torch.float64) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())


@pytest.mark.parametrize(
    "prior",
    [
        lambda _: StandardNormal(1),
        lambda _: Heavy(),
        lambda _: Heavy.of_torch,
        lambda _: MixtureSameFamily(Categorical(torch.ones(2)), Independent(Normal(WIDE, WIDE.abs()), 1)),
        lambda _: MixtureSameFamily(Categorical(torch.ones(2)), MultivariateNormal(WIDE, 2 * torch.eye(1))),
        lambda _: Flow(),
    ],
    ids=["normal", "own", "laplace", "diagonal", "full", "flow"],
)
def test_gains_are_those_of_the_integrals(prior):
    """Whatever the prior: by the trapezoid rule, under every candidate, on held-out data."""
    vae, x, new = small_vae(dim=1), bits(50), bits(40, seed=8)
    vae.requires_grad_(False).decoder.logits.weight.mul_(4)
    vae = adapt(vae.encoder, vae.decoder, prior=prior(vae.encoder))
    choice = choose_prior(vae, x, held_out=new, generator=seeded(), **QUICK)
    z = torch.linspace(-30, 30, 6001)[:, None]
    terms = vae.decoder(z[:, None]).log_prob(new).double()
    exact = {n: (terms + c.log_prob(z).double()[:, None]).logsumexp(0) for n, c in choice.candidates.items()}
    for name, gain in choice.gains.items():
        wanted = exact[name] - exact["prior"]
        assert gain.value == pytest.approx(float(wanted.mean()), abs=0.02), name
        assert gain.stderr == pytest.approx(float(wanted.std() / 40**0.5), abs=0.02), name
    drawn = choice.prior.sample((3,), generator=seeded())
    assert drawn.shape == (3, 1) and torch.equal(drawn, choice.prior.sample((3,), generator=seeded()))


WIDE = torch.tensor([[-1.5], [1.0]])


class Flow(torch.nn.Module):
    """A module that returns a distribution when it is called, as flows do."""

    latent_dim = 1

    def forward(self):
        base = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        return TransformedDistribution(base, [AffineTransform(torch.tensor([0.5]), torch.tensor([2.0]), event_dim=1)])


def test_a_prior_of_ones_own():
    vae = small_vae(lambda encoder: Heavy(), dim=1)
    choice = choose_prior(vae, bits(), generator=seeded(), **QUICK)
    assert choice.gains["prior"].value == 0


def test_copies_by_chance_are_left_in():
    """A copy of a datum explains it: leaving out the datum's own component leaves the copy's."""
    x = gaussian(40)
    single, twice = (choose_prior(PPCA.fit(y, 8), y, generator=seeded(), **QUICK) for y in (x, torch.cat([x, x])))
    assert twice.gains["q_agg"].value > single.gains["q_agg"].value + 5


def test_few_of_many_data_are_scored():
    x = gaussian(3000, latent_dim=2)
    choice = choose_prior(PPCA.fit(x, 2), x, num_data=60, generator=seeded(), **QUICK)
    assert choice.gains["gmm"].num_samples == 60 and choice.candidates["q_agg"].num_components == 3000


def test_too_large_mixtures_are_skipped():
    x = gaussian(12, latent_dim=1)  # cut by three: 8 codes, and three parameters a component
    with pytest.MonkeyPatch.context() as patch:
        tried = []
        patch.setattr("vaebook.selection.fit_quietly", lambda q, k, **named: tried.append(k) or fit_gmm(q, k, **named))
        choose_prior(PPCA.fit(x, 1), x, num_components=(2, 3, 4, 30), generator=seeded())
    assert set(tried) == {2, 3}  # four have as many parameters as there are data


def test_randomness_comes_from_the_generator_and_modes_are_restored():
    vae, x = small_vae().train(), bits()
    vae.encoder.eval()
    state = torch.get_rng_state()
    one, two, other = (choose_prior(vae, x, generator=seeded(s), **QUICK) for s in (1, 1, 2))
    assert one.gains == two.gains != other.gains
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.decoder.training and not vae.encoder.training


def test_images_conditions_and_loose_parts():
    """A convolutional model with labels, batch norm and dropout gives what its flat twin without them gives."""
    vae, x, label = small_vae().eval(), bits(60), (torch.arange(60) % 3).float()[:, None]

    class Encode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop, self.encoder = torch.nn.BatchNorm2d(1, affine=False), torch.nn.Dropout(), vae.encoder
            self.norm.running_mean.fill_(0.25)

        def forward(self, image, label):
            q = self.encoder(self.drop(self.norm(image)).flatten(1)).base_dist
            return q.loc + label, q.scale.square()

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = vae.decoder

        def forward(self, z, label):
            assert z.shape[1:] == (2,) and len(label) == len(z)
            return self.decoder.logits(self.decoder.body(z - label)).reshape(-1, 1, 2, 3)

    made = adapt(Encode(), Decode(), likelihood="bernoulli_logits", spread="var", data_shape=(1, 2, 3)).train()
    images, encode = x.reshape(60, 1, 2, 3), Encode().eval()
    choice = choose_prior(made, images, condition=label, generator=seeded(), **QUICK)
    q = encode(images, label)
    torch.testing.assert_close(choice.candidates["q_agg"].loc, q[0].detach())
    torch.testing.assert_close(choice.candidates["q_agg"].scale, q[1].detach().sqrt())
    z = torch.cartesian_prod(*[torch.linspace(-9, 9, 181)] * 2)
    terms = torch.cat(
        [vae.decoder((z - a)[:, None]).log_prob(row[None]) for a, row in zip(label, x, strict=True)], 1
    ).double()
    held = choose_prior(
        made, images, condition=label.roll(7, 0), held_out=x, held_out_condition=label, generator=seeded(), **QUICK
    )
    exact = {n: (terms + c.log_prob(z).double()[:, None]).logsumexp(0).mean() for n, c in held.candidates.items()}
    for name, gain in held.gains.items():
        assert gain.value == pytest.approx(float(exact[name] - exact["prior"]), abs=0.03), name
    assert made.parts[0].training and made.parts[0].norm.num_batches_tracked == 0
    for bad in ({}, {"condition": label[:-1]}):
        with pytest.raises(ValueError, match=r"^(condition|encoder): expected"):
            choose_prior(made, images, **bad)


def test_few_effective_samples_are_said():
    """A decoder a thousand times as sharp as the codes say, so that hardly a draw explains the datum."""
    x = gaussian(60, latent_dim=2)
    model = PPCA.fit(x, 2)
    sharp = SimpleNamespace(
        encoder=lambda y: Independent(Normal(model.posterior(y).mean, torch.ones(2).double()), 1),
        decoder=lambda z: Independent(Normal(model.likelihood(z).mean, 1e-4), 1),
        prior=model.prior,
    )
    with pytest.warns(UserWarning, match=r"^choose_prior: expected 10 effective samples or more, got \{'prior': "):
        choice = choose_prior(sharp, x, generator=seeded(), **QUICK)
    assert min(choice.effective_samples.values()) < 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = choose_prior(model, x, generator=seeded(), **QUICK).effective_samples
    assert list(many) == ["prior", "gmm", "q_agg"] and all(10 < number <= 250 for number in many.values())


def test_mixtures_of_either_covariance_have_fewer_parameters_than_data():
    """In two dimensions a component takes six with a full covariance, five with a diagonal one; of 24 codes."""
    x, tried = gaussian(24, latent_dim=2), set()
    with pytest.MonkeyPatch.context() as patch:
        made = lambda q, k, **o: tried.add((q.num_components, k, o["covariance"])) or fit_gmm(q, k, **o)  # noqa: E731
        patch.setattr(selection, "fit_quietly", made)
        selection._best(PPCA.fit(x, 2).aggregated_posterior(x), [2, 3, 4, 5], 0)
    assert {(k, kind) for _, k, kind in tried} == {(k, "full") for k in (2, 3)} | {(k, "diag") for k in (2, 3, 4)}
    assert {num for num, *_ in tried} == {16}  # two folds of three


@pytest.mark.filterwarnings("ignore:choose_prior.*")
@pytest.mark.parametrize("sizes", [(30, 2, 2), (2, 30)])
def test_the_smallest_number_alone_is_always_tried_whatever_the_order(sizes, monkeypatch):
    x, tried = gaussian(12, latent_dim=1), []
    monkeypatch.setattr(selection, "fit_quietly", lambda q, k, **o: tried.append(k) or fit_gmm(q, k, **o))
    choose_prior(PPCA.fit(x, 1), x, num_components=sizes, generator=seeded())
    assert set(tried) == {2}


def test_the_best_by_cross_validation_is_chosen_each_scored_on_the_fold_that_it_left_out(monkeypatch):
    """Mixtures that know from which codes they were made: those that are scored are the others, in pairs."""
    loc = torch.arange(12.0).double()[:, None]
    q_agg, fold = DiagGaussianMixture(loc, torch.full_like(loc, 1e-9)), selection._folds(12, 0)

    class Known:
        def __init__(self, q, size):
            self.loc, self.size = q.loc, size

        def to(self, dtype):
            return self

        def log_prob(self, z):
            assert set(z.round()[:, 0].tolist()) == set(loc[:, 0].tolist()) - set(self.loc[:, 0].tolist())
            return torch.full((len(z),), {1: 0.0, 2: 0.5, 3: 0.4}[self.size]).double()

    monkeypatch.setattr(selection, "fit_quietly", lambda q, size, **_: Known(q, size))
    assert selection._best(q_agg, [1, 2, 3], 0) == (2, "full") and sorted(fold.bincount().tolist()) == [4, 4, 4]


@pytest.mark.parametrize(
    ("counts", "told"), [((50.0, 9.0, 50.0), True), ((9.9, 50.0, 50.0), True), ((10.0, 10.0, 10.0), False)]
)
def test_one_candidate_of_which_few_samples_count_is_enough_for_a_warning(counts, told, monkeypatch):
    def compare(vae, x, priors, options):
        return torch.arange(3.0).double()[:, None].expand(3, len(x)), torch.tensor(counts)[:, None].expand(3, len(x))

    monkeypatch.setattr(selection, "_compare", compare)
    x = gaussian(12, latent_dim=1)
    with warnings.catch_warnings(record=True, action="always") as caught:
        choice = choose_prior(PPCA.fit(x, 1), x, num_components=(1,), generator=seeded())
    assert [Path(w.filename) == Path(__file__) for w in caught if "choose_prior" in str(w.message)] == [True] * told
    assert choice.effective_samples == dict(zip(selection.ORDER, counts, strict=True)) or told
    assert [gain.value for gain in choice.gains.values()] == [0.0, 1.0, 2.0]
    assert {gain.num_samples for gain in choice.gains.values()} == {12}


def test_of_single_precision_the_mixture_is_of_single_precision():
    q_agg = DiagGaussianMixture(torch.randn(20, 1, generator=seeded()), torch.ones(20, 1))
    for covariance in ("full", "diag"):
        assert selection._fit(q_agg, 1, covariance, 0).sample((2,)).dtype == torch.float32
        assert selection._fit(q_agg.double(), 1, covariance, 0).sample((2,)).dtype == torch.float64


def test_too_few_data_and_no_numbers_to_try_are_refused():
    x = gaussian(12, latent_dim=1)
    model = PPCA.fit(x, 1)
    with pytest.raises(ValueError, match=r"^x: expected at least 10"):
        choose_prior(model, x[:9])
    with pytest.raises(ValueError, match=r"^held_out: expected at least 2"):
        choose_prior(model, x, held_out=x[:1])
    for sizes, error in (((), ValueError), ([], ValueError), (3, TypeError), ((1.5,), TypeError), ((0,), ValueError)):
        with pytest.raises(error, match="num_components"):
            choose_prior(model, x, num_components=sizes)
    with pytest.raises(ValueError, match="num_data: expected an int at least 2"):
        choose_prior(model, x, num_data=1)


def test_the_table_shows_every_gain_with_its_error():
    gains = {"prior": Estimate(0.0, 0.0, 9), "gmm": Estimate(1.25, 0.5, 9), "q_agg": Estimate(-2.0, 0.25, 9)}
    shown = selection.Choice(None, 1, "full", gains, {}, {}, {}).table()
    assert shown.header == ("z from", "gain (nats)", "std. error")
    assert shown.rows == (("prior", "0", "0"), ("gmm", "1.250", "0.5000"), ("q_agg", "-2.000", "0.2500"))


def test_only_the_warning_that_the_median_tells_is_kept_back(monkeypatch):
    def compare(*_, **__):
        for message in ("num_samples: expected more", "decoder: something else"):
            warnings.warn(message, stacklevel=1)
        return {name: SimpleNamespace(log_prob=torch.ones(2), effective_samples=torch.ones(2)) for name in ORDER}

    monkeypatch.setattr(selection, "compare_priors", compare)
    with warnings.catch_warnings(record=True, action="always") as caught:
        selection._compare(None, torch.zeros(2, 1), {}, {})
    assert [str(warning.message) for warning in caught] == ["decoder: something else"]


def test_a_fit_that_runs_out_of_steps_warns_of_nothing(monkeypatch, recwarn):
    def fit(q_agg, *_, **__):
        warnings.warn("fit_gmm: expected EM to converge", stacklevel=1)
        return q_agg

    monkeypatch.setattr(gmm, "fit_gmm", fit)
    selection._fit(DiagGaussianMixture(torch.zeros(3, 1), torch.ones(3, 1)), 1, "diag", 0)
    assert not recwarn


def scores(seen, found=(0.0, 1.0, 2.0)):
    """What stands for the comparison of candidates: it notes what it was asked."""

    def compare(vae, x, priors, options):
        seen.append((x, priors, options))
        return torch.tensor(found).double()[:, None].expand(3, len(x)), torch.full((3, len(x)), 50.0)

    return compare


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("exemplars", [True, False])
def test_each_datum_is_left_out_of_what_was_made_of_it(exemplars, held, monkeypatch):
    """Of q_agg, and of a prior of exemplars, its own component; of the mixture its fold; of held-out data nothing."""
    seen, x, num = [], bits(), 18
    monkeypatch.setattr(selection, "_compare", scores(seen))
    vae = small_vae((lambda encoder: ExemplarPrior(encoder, x)) if exemplars else None)
    options = {"num_components": (1,), "num_data": num, "held_out": x[10:] if held else None}
    choice = choose_prior(vae, x, generator=seeded(), **options)
    left_out = set() if held else {"q_agg", "prior"} if exemplars else {"q_agg"}
    for part, priors, given in seen:
        assert tuple(priors) == ORDER and set(given["leave_out"]) == left_out and given["condition"] is None
        assert all(torch.equal(x[rows], part) for rows in given["leave_out"].values())
        assert (priors["gmm"] is choice.prior) is held and priors["q_agg"] is choice.candidates["q_agg"]
    scored = torch.cat([part for part, *_ in seen])
    assert len(scored) == num and len(seen) == (1 if held else 3)
    assert not torch.equal(scored, (x[10:] if held else x)[:num])


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("wrong", [-torch.inf, torch.nan, torch.inf])
def test_data_that_a_candidate_does_not_explain_are_refused_by_name(wrong, held, monkeypatch):
    monkeypatch.setattr(selection, "_compare", scores([], (0.0, wrong, 0.0)))
    x, name = gaussian(12, latent_dim=1), "held_out" if held else "x"
    with pytest.raises(ValueError, match=rf"^{name}: expected data with finite log-likelihoods, got"):
        choose_prior(PPCA.fit(x, 1), x, held_out=x if held else None, num_components=(1,), generator=seeded())


def test_data_of_another_shape_and_exemplars_that_are_not_the_data_are_refused(monkeypatch):
    monkeypatch.setattr(selection, "_compare", scores([]))
    x = bits()
    encode = lambda y: (y.flatten(1)[:, :2], torch.ones(len(y), 2))  # noqa: E731
    loose = adapt(encode, lambda z: z.repeat(1, 3), likelihood="bernoulli_logits")
    with pytest.raises(ValueError, match=r"^held_out: expected data of shape \(6,\), got \(2, 3\)$"):
        choose_prior(loose, x, held_out=x.reshape(-1, 2, 3), **QUICK)
    vae = small_vae(lambda encoder: ExemplarPrior(encoder, x))
    with pytest.raises(ValueError, match=r"^x: expected the 40 exemplars of which the prior is made, got 20 data$"):
        choose_prior(vae, x[:20], **QUICK)
    assert choose_prior(vae, x[:20], held_out=x, num_components=(1,), generator=seeded()).num_components == 1


def test_codes_of_single_precision_are_drawn_in_double(monkeypatch):
    drawn, sample = [], DiagGaussianMixture.sample

    def spy(mixture, *given, **named):
        drawn.append(mixture.loc.dtype)
        return sample(mixture, *given, **named)

    monkeypatch.setattr(DiagGaussianMixture, "sample", spy)
    selection._best(DiagGaussianMixture(torch.randn(12, 1, generator=seeded()), torch.ones(12, 1)), [1], 0)
    assert set(drawn) == {torch.float64}
