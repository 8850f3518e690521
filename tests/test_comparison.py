"""Several priors from the same draws: each agrees with its closed form, and differences better than that."""

import math

import pytest
import torch
from torch.distributions import Independent, Laplace, Normal, Uniform

from vaebook import likelihood
from vaebook.adapters import adapt
from vaebook.likelihood import compare_priors, importance_log_prob
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal, fit_gmm


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    x = torch.randn(120, 5, generator=rng(1), dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5])
    x[:60, 0] += 6
    return PPCA.fit(x, 2), x


@pytest.fixture(scope="module")
def priors(model):
    ppca, x = model
    q_agg = ppca.aggregated_posterior(x)
    return {"own": ppca.prior, "q_agg": q_agg, "full": fit_gmm(q_agg, 2), "diag": fit_gmm(q_agg, 2, covariance="diag")}


def closed_form(ppca, x, priors, own=None):
    exact = {n: ppca.log_prob_under(p, x) for n, p in priors.items() if n not in ("own", "q_agg")}
    exact["q_agg"] = ppca.log_prob_under(priors["q_agg"], x, leave_out_index=own)
    return exact | {"own": ppca.log_prob(x)}


@pytest.mark.parametrize("leave_out", [False, True])
def test_every_prior_agrees_with_its_closed_form(model, priors, leave_out):
    ppca, x = model
    own = torch.arange(0, 120, 3)
    options = {"leave_out": {"q_agg": own}} if leave_out else {}
    found = compare_priors(ppca, x[own], priors, 2000, generator=rng(), **options)
    exact = closed_form(ppca, x[own], priors, own if leave_out else None)
    assert list(found) == list(priors)
    for name, estimate in found.items():
        off = (estimate.log_prob - exact[name]) / estimate.stderr
        assert float(off.abs().max()) < 5 and float(estimate.stderr.max()) < 0.1, name
        assert 0.5 < float(off.square().mean().sqrt()) < 1.5, name


def test_a_prior_without_density_at_some_draws_is_integrated_where_it_has_some(model):
    ppca, _ = model
    x = ppca.decoder(torch.tensor([[0.0, 0.0], [0.9, 0.0], [0.5, -0.9], [-1.1, 0.2]]).double()).mean
    ends = torch.tensor([-1.0, 1.0]).double().expand(2, 2).T
    square = Independent(Uniform(*ends, validate_args=False), 1, validate_args=False)
    found = compare_priors(ppca, x, {"own": None, "square": square}, 4000, generator=rng())
    found["alone"] = compare_priors(ppca, x, {"square": square}, 4000, generator=rng())["square"]
    side = torch.linspace(-1, 1, 201, dtype=torch.float64)
    log_prob = torch.stack([ppca.decoder(torch.cartesian_prod(side, side)).log_prob(one) for one in x])
    exact = torch.trapezoid(torch.trapezoid(log_prob.exp().reshape(4, 201, 201), side), side).log() - math.log(4)
    for name, wanted in {"square": exact, "alone": exact, "own": ppca.log_prob(x)}.items():
        estimate = found[name]
        assert float(((estimate.log_prob - wanted) / estimate.stderr).abs().max()) < 4
        assert float(estimate.stderr.max()) < 0.05 and float(estimate.effective_samples.min()) > 50


def test_leaving_out_matters(model, priors):
    ppca, x = model
    own = torch.arange(40)
    both = [
        compare_priors(ppca, x[own], priors, 500, generator=rng(), leave_out=out)["q_agg"].log_prob.mean()
        for out in ({}, {"q_agg": own})
    ]
    exact = [closed_form(ppca, x[own], priors, o)["q_agg"].mean() for o in (None, own)]
    assert float(both[0] - both[1]) == pytest.approx(float(exact[0] - exact[1]), abs=0.02)
    assert float(exact[0] - exact[1]) > 0.1


def test_differences_are_better_than_values(model, priors):
    ppca, x = model
    two = {name: priors[name] for name in ("full", "diag")}
    exact = closed_form(ppca, x, priors)
    shared, apart = [], []
    for seed in range(3):
        found = compare_priors(ppca, x, two, 200, generator=rng(seed))
        shared.append(found["full"].log_prob - found["diag"].log_prob)
        one, other = (
            importance_log_prob(ppca, x, 200, prior=p, generator=rng(10 * seed + i)).log_prob
            for i, p in enumerate(two.values())
        )
        apart.append(one - other)
    truth = exact["full"] - exact["diag"]
    errors = [float((torch.stack(part) - truth).square().mean().sqrt()) for part in (shared, apart)]
    assert errors[0] < 0.7 * errors[1]


def test_others_are_weighed_with_draws_of_some(model, priors):
    ppca, x = model
    found = compare_priors(ppca, x, priors, 1000, drawn_from=("own", "full"), generator=rng())
    off = found["diag"].log_prob - closed_form(ppca, x, priors)["diag"]
    assert float(off.mean()) == pytest.approx(0, abs=0.02)


def test_those_that_are_not_drawn_from_change_nothing(model, priors):
    ppca, x = model
    both = {"own": priors["own"], "q_agg": priors["q_agg"]}
    one = compare_priors(ppca, x[:5], {"own": priors["own"]}, 100, generator=rng())["own"]
    two = compare_priors(ppca, x[:5], both, 100, drawn_from=("own",), generator=rng())["own"]
    torch.testing.assert_close(one.log_prob, two.log_prob, rtol=0, atol=1e-12)


def test_torch_distributions_are_taken_and_the_generator_is_all_there_is():
    vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
    x = torch.rand(7, 6, generator=rng()).round()
    priors = {"own": vae.prior, "heavy": Independent(Laplace(torch.zeros(1), torch.ones(1)), 1)}
    state = torch.get_rng_state()
    one, two = (compare_priors(vae, x, priors, 3000, generator=rng(2)) for _ in range(2))
    assert torch.equal(one["heavy"].log_prob, two["heavy"].log_prob) and torch.equal(torch.get_rng_state(), state)
    z = torch.linspace(-30, 30, 6001)[:, None]
    terms = vae.decoder(z[:, None]).log_prob(x).double()
    for name, prior in priors.items():
        exact = (terms + prior.log_prob(z).double()[:, None]).logsumexp(0) + torch.tensor(0.01).log()
        torch.testing.assert_close(one[name].log_prob, exact.detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("beside", [(), ("own",)], ids=["alone", "among draws of the prior"])
def test_draws_leave_out_what_the_density_leaves_out(beside):
    """Three codes far apart, each datum without its own: a third of q_agg's draws would be of no density."""
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    ppca = PPCA(torch.zeros(2, dtype=torch.float64), weight, noise_variance=4.0)
    loc = torch.tensor([[-4.0], [0.0], [4.0]], dtype=torch.float64)
    q_agg = DiagGaussianMixture(loc, torch.full_like(loc, 0.5))
    own = torch.arange(3).repeat(40)
    x = torch.cat([loc[own], torch.zeros(120, 1)], 1)
    priors = {"q_agg": q_agg} | {name: ppca.prior for name in beside}
    found = compare_priors(ppca, x, priors, 2000, leave_out={"q_agg": own}, generator=rng())["q_agg"]
    exact = ppca.log_prob_under(q_agg, x, leave_out_index=own)
    for n in range(3):
        off = (found.log_prob - exact)[own == n]
        assert abs(float(off.mean())) < 5 * float(off.std()) / 40**0.5 + 1e-3


def test_bad_names(model, priors):
    ppca, x = model
    for bad in ({}, [priors["own"]], None):
        with pytest.raises(TypeError, match=r"^priors: expected a dict"):
            compare_priors(ppca, x, bad)
    for argument, value in (("leave_out", {"none": torch.arange(3)}), ("drawn_from", ("own", "none"))):
        with pytest.raises(ValueError, match=rf"^{argument}: expected names among own, .*, got 'none'"):
            compare_priors(ppca, x[:3], priors, **{argument: value})
    for own in (torch.arange(4), torch.tensor([0, 1, 120]), torch.zeros(3)):
        with pytest.raises((TypeError, ValueError), match=r"^leave_out: expected"):
            compare_priors(ppca, x[:3], priors, leave_out={"q_agg": own})
    with pytest.raises(ValueError, match=r"^leave_out: expected"):
        compare_priors(ppca, x[:3], priors, leave_out={"full": torch.arange(3)})
    assert isinstance(priors["q_agg"], DiagGaussianMixture)


def test_names_come_in_lists_and_the_first_that_is_unknown_is_told(model, priors):
    ppca, x = model
    for argument, bad in (("drawn_from", "own"), ("drawn_from", {"own"}), ("leave_out", [("q_agg", torch.zeros(3))])):
        with pytest.raises(TypeError, match=rf"^{argument}: expected"):
            compare_priors(ppca, x[:3], priors, **{argument: bad})
    with pytest.raises(ValueError, match=r"got 'x'$"):
        compare_priors(ppca, x[:3], priors, drawn_from=["own", "x", "y"])
    with pytest.raises(ValueError, match=r"num_samples: expected an int between 2"):
        compare_priors(ppca, x[:3], priors, 1)
    with pytest.raises(ValueError, match=r"^leave_out: expected"):
        compare_priors(ppca, x[:1], priors, leave_out={"q_agg": torch.tensor([-1])})


def test_a_condition_is_handed_on():
    """The decoder adds it to z, so that data and condition, moved together, are as likely as before."""
    vae = adapt(
        lambda x, move: Independent(Normal(x - move, torch.ones_like(x)), 1),
        lambda z, move: Independent(Normal(z + move, 1.0), 1),
        prior=StandardNormal(1).double(),
    )
    x, move = torch.tensor([[0.3], [1.0]]).double(), torch.tensor([[0.0], [50.0]]).double()
    found = compare_priors(vae, x + move, {"own": None}, 2000, condition=move, generator=rng())["own"]
    exact = Normal(0.0, 2**0.5).log_prob(x)[:, 0]
    assert float(((found.log_prob - exact) / found.stderr).abs().max()) < 4


def test_all_that_is_given_is_handed_on_with_smaller_numbers(monkeypatch):
    monkeypatch.setattr(likelihood, "_estimates", lambda *given: given)
    priors, own, condition = {"a": None, "b": None}, {"b": torch.arange(2)}, torch.zeros(2)
    given = ("vae", "x", priors, 7, condition, "generator", own, ["a"])
    made = compare_priors(*given[:4], leave_out=own, drawn_from=["a"], condition=condition, generator="generator")
    assert made == (*given, {"num_starts": 4, "round_samples": 200})
    assert compare_priors(*given[:3]) == (*given[:3], 1000, None, None, {}, (), likelihood.SHARED)


class Evaluated(StandardNormal):
    """A prior that refuses to be asked while it is trained."""

    def log_prob(self, z):
        assert not self.training
        return super().log_prob(z)

    def sample(self, sample_shape=(), *, generator=None):
        assert not self.training
        return super().sample(sample_shape, generator=generator)


def test_data_are_treated_some_at_a_time_each_without_its_own(model, priors, monkeypatch):
    """What samplers are made of, and what becomes of their weights, by the definition."""
    (ppca, x), made, drawn, generator = model, [], [], rng()
    own, draw = torch.arange(70).flip(0), likelihood._Pool.draw
    log_ratio, z = torch.randn(70, 60, generator=rng(1)).double(), torch.randn(70, 60, 2, generator=rng(2)).double()

    class Sampler:
        def __init__(self, joint, q, mixture, draws, draw_prior, generator, **sizes):
            self.joint, self.q, self.draws, self.given, self.sizes = joint, q, draws, generator, sizes
            self.rows = slice(sum(len(s.q.loc) for s in made), sum(len(s.q.loc) for s in made) + len(q.loc))
            made.append(self)

        def fresh(self, num_samples):
            for part in (slice(0, 25), slice(25, num_samples)):
                yield z[self.rows, part], log_ratio[self.rows, part], 0 * log_ratio[self.rows, part]

    monkeypatch.setattr(likelihood, "Sampler", Sampler)
    monkeypatch.setattr(likelihood._Pool, "draw", lambda pool, rows: drawn.append(rows) or draw(pool, rows))
    monkeypatch.setattr(likelihood, "TRUSTED", 0)
    both = {"own": Evaluated(2).train(), "q_agg": priors["q_agg"]}
    found = compare_priors(ppca, x[:70], both, 60, leave_out={"q_agg": own}, generator=generator)
    assert [len(sampler.q.loc) for sampler in made] == [32, 32, 6] and both["own"].training
    assert drawn[0].tolist() == [-1] * 4096 and len(made[0].draws) == 4096
    for sampler in made:
        assert sampler.given is generator and sampler.sizes == likelihood.SHARED
        assert torch.equal(sampler.joint.x, x[sampler.rows])
        torch.testing.assert_close(sampler.q.loc, ppca.posterior(x[sampler.rows]).mean)
    others = priors["q_agg"].log_prob_leave_one_out(z, own[:, None].expand(70, 60))
    for name, log_prior in (("own", ppca.prior.log_prob(z)), ("q_agg", others)):
        wanted = (log_ratio + log_prior).logsumexp(1) - math.log(60)
        torch.testing.assert_close(found[name].log_prob, wanted)
