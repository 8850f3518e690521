"""The rule for what to sample from, against closed forms and integrals, and where it must not go wrong."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, Laplace, Normal

from vaebook.bounds import quadrature_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm
from vaebook.selection import _smoothest, choose_prior, log_prob_under_each

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
    assert choice.gains["prior"] == (0.0, 0.0, 150) and choice.name != "prior"
    assert choice.prior is choice.candidates[choice.name]
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


def test_memorised_codes_lose_to_the_true_prior():
    x = gaussian(40)
    choice = choose_prior(PPCA.fit(x, 8), x, generator=seeded())
    assert choice.name == "prior" and choice.prior is choice.candidates["prior"]
    assert choice.gains["q_agg"].value < -5 * choice.gains["q_agg"].stderr
    assert len(choice.candidates["gmm"].weight) == 1  # cross-validation sees that there is one Gaussian


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


def test_collapsed_codes_are_a_tie_and_the_prior_wins_it():
    vae = small_vae()
    with torch.no_grad():
        for head in (vae.encoder.loc, vae.encoder.log_scale):
            head.weight.zero_()
            head.bias.zero_()
    choice = choose_prior(vae, bits(), generator=seeded(), **QUICK)
    assert choice.name == "prior"
    assert abs(choice.gains["q_agg"].value) < 1e-4


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
    assert choice.gains["q_agg"].value == pytest.approx(0, abs=1e-5) and choice.name == "prior"


class Heavy:
    """A prior that is no Gaussian mixture."""

    latent_dim = 1
    of_torch = Independent(Laplace(torch.zeros(1).double(), torch.ones(1).double()), 1)

    def log_prob(self, z):
        return self.of_torch.log_prob(z)

    def sample(self, shape, *, generator=None):
        u = torch.rand((*shape, 1), generator=generator, dtype=torch.float64) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())


def test_log_likelihoods_are_the_integrals():
    vae, x = small_vae(dim=1, dtype=torch.float64), bits(12, dtype=torch.float64)
    with torch.no_grad():
        vae.decoder.logits.weight.mul_(4)
    q_agg = DiagGaussianMixture(torch.randn(9, 1, generator=seeded()).double(), torch.full((9, 1), 0.2).double())
    priors = {"own": vae.prior, "q_agg": q_agg, "gmm": fit_gmm(q_agg, 2), "heavy": Heavy()}
    found = log_prob_under_each(vae, x, priors, generator=seeded())
    assert list(found) == list(priors)
    for name, prior in priors.items():
        exact = quadrature_log_prob(vae.decoder, prior, x, limit=25.0, tolerance=1e-6)
        assert float((found[name] - exact).abs().max()) < 0.4, name
        assert abs(float((found[name] - exact).mean())) < 0.05, name


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
    x = gaussian(10, latent_dim=1)
    assert len(choose_prior(PPCA.fit(x, 1), x, num_components=(6,)).candidates["gmm"].weight) == 1
    assert len(choose_prior(PPCA.fit(x, 1), x, num_components=(5,)).candidates["gmm"].weight) == 5


def test_randomness_comes_from_the_generator_and_modes_are_restored():
    vae, x = small_vae().train(), bits()
    vae.encoder.eval()
    state = torch.get_rng_state()
    one, two, other = (choose_prior(vae, x, generator=seeded(s), **QUICK) for s in (1, 1, 2))
    assert one.gains == two.gains != other.gains and one.name == two.name
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.decoder.training and not vae.encoder.training


def test_smoothest():
    base = torch.linspace(-1, 1, 100).double()
    flat, noisy = torch.zeros(100).double(), base / base.std()
    assert _smoothest({"prior": flat, "gmm": noisy + 0.09, "q_agg": noisy + 0.08}, 1.0) == "prior"
    assert _smoothest({"prior": flat, "gmm": noisy + 0.11, "q_agg": noisy + 0.13}, 1.0) == "q_agg"  # a sure difference
    assert _smoothest({"prior": flat, "gmm": noisy + 0.11, "q_agg": 0.12 - noisy}, 1.0) == "gmm"
    assert _smoothest({"prior": flat, "gmm": noisy + 0.11, "q_agg": 0.14 - noisy}, 0.0) == "q_agg"
    assert _smoothest({"prior": flat, "gmm": noisy + 0.11, "q_agg": noisy}, 2.0) == "prior"
    assert _smoothest({"prior": flat, "gmm": flat + 0.009, "q_agg": flat - 1}, 1.0) == "prior"  # sure, but negligible
    assert _smoothest({"prior": flat, "gmm": flat + 0.011, "q_agg": flat - 1}, 1.0) == "gmm"


def test_table():
    choice = choose_prior(small_vae(), bits(), generator=seeded(), **QUICK)
    shown = str(choice.table())
    assert all(name in shown for name in ("z from", "gmm", "q_agg", "std. error", "yes"))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            r"^vae: expected an object with \.encoder, got ",
            lambda: choose_prior(GaussianEncoder(6, 2), bits()),
        ),
        (
            TypeError,
            r"^vae: expected an object with \.prior with log_prob and sample",
            lambda: choose_prior(SimpleNamespace(encoder=len, decoder=len, prior=len), bits()),
        ),
        (TypeError, "^x: expected", lambda: choose_prior(small_vae(), [1.0])),
        (ValueError, "^x: expected at least 10 data, got 9", lambda: choose_prior(small_vae(), bits(9))),
        (ValueError, "^x: expected", lambda: choose_prior(small_vae(), bits() / 0)),
        (ValueError, "^held_out: expected", lambda: choose_prior(small_vae(), bits(), held_out=bits()[:, 1:])),
        (ValueError, "^held_out: expected at least 2", lambda: choose_prior(small_vae(), bits(), held_out=bits(1))),
        (TypeError, "^num_components: expected a tuple", lambda: choose_prior(small_vae(), bits(), num_components=3)),
        (ValueError, "^num_components: ", lambda: choose_prior(small_vae(), bits(), num_components=(0,))),
        (ValueError, "^num_data: ", lambda: choose_prior(small_vae(), bits(), num_data=1)),
        (ValueError, "^caution: ", lambda: choose_prior(small_vae(), bits(), caution=-1)),
        (TypeError, "^generator: ", lambda: choose_prior(small_vae(), bits(), generator=0)),
        (TypeError, "^priors: expected densities by name", lambda: log_prob_under_each(small_vae(), bits(), {})),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()
