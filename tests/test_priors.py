"""Every prior: density, sampler, and the two against each other; gradients, leave-one-out, fits, bad input."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from types import SimpleNamespace as Namespace

import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from torch.distributions import Independent, MultivariateNormal, Normal

from vaebook import _checks, priors
from vaebook import gmm as mixtures
from vaebook.adapters import adapt, adapt_prior
from vaebook.aggregate import aggregated_posterior
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import (
    ExemplarPrior,
    GaussianMixture,
    StandardNormal,
    VampPrior,
    as_mixture,
    fit_gmm,
    from_components,
    on_cpu,
)


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_log_prob_is_that_of_scipy(dim):
    z = 3 * torch.randn(4, 5, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    expected = stats.multivariate_normal(np.zeros(dim), np.eye(dim)).logpdf(z.numpy().reshape(-1, dim))
    got = StandardNormal(dim).log_prob(z)
    assert got.shape == (4, 5)
    np.testing.assert_allclose(got.reshape(-1), np.atleast_1d(expected), rtol=1e-14, atol=1e-12)


def test_density_integrates_to_one():
    axis = torch.linspace(-9, 9, 401, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    mass = StandardNormal(2).log_prob(z).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-12


def test_float32_is_rounded_only_once():
    z = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    got, exact = StandardNormal(40).log_prob(z), StandardNormal(40).log_prob(z.double())
    assert got.dtype == torch.float32
    assert torch.equal(got, exact.float())


def test_sampler_agrees_with_density():
    dim, n = 3, 40_000
    prior = StandardNormal(dim)
    z = prior.sample((n,), generator=torch.Generator().manual_seed(1)).double()
    for j in range(dim):
        assert stats.kstest(z[:, j].numpy(), "norm").pvalue > 1e-4
    correlation = torch.corrcoef(z.T) - torch.eye(dim)
    assert correlation.abs().max() < 4.5 / math.sqrt(n)
    log_prob = prior.log_prob(z)  # its mean is minus the entropy, its variance D/2
    entropy = 0.5 * dim * math.log(2 * math.pi * math.e)
    assert abs(float(log_prob.mean()) + entropy) < 4 * math.sqrt(dim / 2 / n)
    assert not torch.allclose(log_prob.mean(), torch.tensor(-entropy - 0.05).double(), atol=4 * math.sqrt(dim / 2 / n))


def test_sample_shapes_dtype_and_seed():
    prior = StandardNormal(2).double()
    seeded = [prior.sample((3, 4), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert seeded[0].shape == (3, 4, 2)
    assert seeded[0].dtype == torch.float64
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert prior.sample().shape == (2,)
    assert prior.sample((0,)).shape == (0, 2)


def test_generator_leaves_global_state_alone():
    before = torch.get_rng_state()
    StandardNormal(2).sample((5,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_it_has_nothing_to_train_or_save():
    prior = StandardNormal(2)
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}
    assert repr(prior) == "StandardNormal(latent_dim=2)"


def test_score_by_autograd():
    z = torch.tensor([[1.0, -2.0]], requires_grad=True)
    StandardNormal(2).log_prob(z).sum().backward()
    assert torch.equal(z.grad, torch.tensor([[-1.0, 2.0]]))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "latent_dim: expected an int, got float", lambda: StandardNormal(2.0)),
        (TypeError, "latent_dim: expected an int, got bool", lambda: StandardNormal(True)),
        (ValueError, "latent_dim: expected an int at least 1, got 0", lambda: StandardNormal(0)),
        (
            ValueError,
            r"z: expected shape \(..., 2\), got \(4, 3\)",
            lambda: StandardNormal(2).log_prob(torch.ones(4, 3)),
        ),
        (TypeError, "z: expected a torch.Tensor, got list", lambda: StandardNormal(2).log_prob([0.0, 0.0])),
        (
            TypeError,
            "z: expected a floating-point",
            lambda: StandardNormal(2).log_prob(torch.zeros(2, dtype=torch.long)),
        ),
        (ValueError, "z: expected finite", lambda: StandardNormal(1).log_prob(torch.tensor([[math.nan]]))),
        (TypeError, "generator: expected a torch.Generator", lambda: StandardNormal(1).sample((2,), generator=0)),
        (TypeError, "sample_shape: expected a tuple", lambda: StandardNormal(1).sample(5)),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


# Priors made of codes, and fitted ones


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def encoder(latent_dim=2, seed=0):
    """An encoder whose codes lie clearly apart and have all sorts of widths."""
    made = GaussianEncoder(6, latent_dim, (5,), generator=rng(seed))
    with torch.no_grad():
        made.loc.weight.mul_(4)
        made.log_scale.bias.sub_(0.5)
    return made.double()


def data(num=7, seed=1):
    return 1.5 * torch.randn(num, 6, generator=rng(seed), dtype=torch.float64)


def gmm(latent_dim=2):
    weight = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    loc = torch.randn(3, latent_dim, generator=rng(5), dtype=torch.float64) * 2
    tril = 0.4 * torch.randn(3, latent_dim, latent_dim, generator=rng(6), dtype=torch.float64).tril(-1)
    return GaussianMixture(weight, loc, tril + torch.diag_embed(0.5 + torch.rand(3, latent_dim, generator=rng(7))))


PRIORS = {
    "normal": lambda dim: StandardNormal(dim).double(),
    "vamp": lambda dim: VampPrior(encoder(dim), data(4)),
    "exemplar": lambda dim: ExemplarPrior(encoder(dim), data(7), scale=0.6),
    "q_agg": lambda dim: aggregated_posterior(encoder(dim), data(7)),
    "gmm": gmm,
}
EVERY = pytest.mark.parametrize("name", PRIORS)


def components(prior):
    """Weights, means and covariances, taken apart by hand: what density and sampler are both held against."""
    if isinstance(prior, StandardNormal):
        dim = prior.latent_dim
        return torch.ones(1), torch.zeros(1, dim), torch.eye(dim)[None]
    if isinstance(prior, GaussianMixture):
        return prior.weight, prior.loc, prior.scale_tril @ prior.scale_tril.mT
    with torch.no_grad():
        if isinstance(prior, VampPrior):
            q = prior.encoder(prior.pseudo_inputs).base_dist
            loc, scale = q.loc, q.scale
        elif isinstance(prior, ExemplarPrior):
            loc = prior.encoder(prior.exemplars).base_dist.loc
            scale = torch.full_like(loc, 0.6)
        else:
            loc, scale = prior.loc, prior.scale
    return torch.full((len(loc),), 1 / len(loc), dtype=torch.float64), loc, torch.diag_embed(scale.square())


def by_scipy(prior, z):
    weight, loc, covariance = (t.double().numpy() for t in components(prior))
    parts = [
        w * stats.multivariate_normal(m, c).pdf(z.numpy()) for w, m, c in zip(weight, loc, covariance, strict=True)
    ]
    return np.log(np.sum(parts, 0))


@EVERY
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_density_is_the_sum_of_scipys_densities(name, dim):
    prior = PRIORS[name](dim)
    z = 2 * torch.randn(3, 4, dim, generator=rng(2), dtype=torch.float64)
    with torch.no_grad():
        got = prior.log_prob(z)
    assert got.shape == (3, 4)
    np.testing.assert_allclose(got, by_scipy(prior, z.reshape(-1, dim)).reshape(3, 4), rtol=1e-10, atol=1e-10)


def grid(prior, dim, nodes):
    """Nodes of a box that holds all mass, twelve standard deviations beyond every mean, and the volume of a cell."""
    _, loc, covariance = components(prior)
    reach = 12 * covariance.diagonal(dim1=-2, dim2=-1).max().sqrt()
    low, high = (loc.min(0).values - reach).tolist(), (loc.max(0).values + reach).tolist()
    axes = [torch.linspace(a, b, nodes, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes).reshape(-1, dim), math.prod(float(axis[1] - axis[0]) for axis in axes)


@EVERY
@pytest.mark.parametrize(("dim", "nodes"), [(1, 20_001), (2, 1_501)])
def test_every_density_integrates_to_one_and_its_draws_have_its_entropy(name, dim, nodes):
    prior = PRIORS[name](dim)
    z, volume = grid(prior, dim, nodes)
    draws = prior.sample((20_000,), generator=rng(3))
    with torch.no_grad():
        log_prob, drawn = prior.log_prob(z), prior.log_prob(draws)
    assert abs(float(log_prob.exp().sum()) * volume - 1) < 1e-9
    negative_entropy = float((log_prob.exp() * log_prob).nan_to_num().sum()) * volume
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert abs(float(drawn.mean()) - negative_entropy) < 4 * error
    with torch.no_grad():
        wide = prior.log_prob(1.1 * draws)  # a sampler that takes another scale
    assert abs(float(wide.mean()) - negative_entropy) > 6 * error


def projected(prior, direction, z):
    """P-values of a Kolmogorov-Smirnov test of draws along a direction against the mixture's own distribution."""
    weight, loc, covariance = (t.double() for t in components(prior))
    centre, spread = loc @ direction, (covariance @ direction @ direction).sqrt()

    def cdf(t):
        each = stats.norm.cdf((t[:, None] - centre.numpy()) / spread.numpy())
        return each @ weight.numpy()

    return stats.kstest((z @ direction).numpy(), cdf).pvalue


@EVERY
def test_draws_follow_the_density_along_every_direction(name):
    prior, directions = PRIORS[name](3), torch.randn(4, 3, generator=rng(8), dtype=torch.float64)
    z = prior.sample((4_000,), generator=rng(4)).double()
    for direction in [*torch.eye(3).double(), *directions]:
        assert projected(prior, direction, z) > 1e-4
    mean = z.mean(0)
    for wrong in (mean + 1.15 * (z - mean), z[torch.randperm(4_000, generator=rng()), :1].expand(-1, 3)):
        assert min(projected(prior, d, wrong) for d in [*torch.eye(3).double(), *directions]) < 1e-6


def test_a_log_variance_taken_for_a_log_scale_is_noticed():
    """The sampler that was shipped elsewhere: exp(log-variance) as the standard deviation."""
    prior = VampPrior(encoder(1), data(4))
    with torch.no_grad():
        prior.encoder.log_scale.bias -= 1  # standard deviations well below 1, as codes have them
        q = prior.mixture()
    wrong = DiagGaussianMixture(q.loc, q.scale.square()).sample((4_000,), generator=rng())
    assert projected(prior, torch.ones(1).double(), wrong) < 1e-6


@EVERY
def test_every_sampler_has_shapes_dtype_and_seed(name):
    prior = PRIORS[name](2)
    before = torch.get_rng_state()
    seeded = [prior.sample((3, 4), generator=rng(s)) for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert seeded[0].shape == (3, 4, 2) and seeded[0].dtype == torch.float64
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    assert not seeded[0].requires_grad
    assert prior.sample().shape == (2,) and prior.sample((0,)).shape == (0, 2)
    assert prior.log_prob(torch.zeros(0, 2, dtype=torch.float64)).shape == (0,)
    assert prior.log_prob(torch.zeros(2, dtype=torch.float64)).shape == ()
    if name in ("normal", "gmm"):
        assert prior.float().sample((2,), generator=rng()).dtype == torch.float32


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_gradients_reach_all_that_makes_the_prior(name):
    prior = PRIORS[name](2)
    z = torch.randn(5, 2, generator=rng(), dtype=torch.float64, requires_grad=True)
    prior.log_prob(z).sum().backward()
    own = prior.pseudo_inputs if name == "vamp" else prior.log_scale
    heads = [prior.encoder.loc.weight] + ([prior.encoder.log_scale.weight] if name == "vamp" else [])
    for leaf in (z, own, *heads, prior.encoder.body[0].weight):
        assert leaf.grad is not None and float(leaf.grad.abs().max()) > 1e-6
    step, at = 1e-6, (0, 0) if name == "vamp" else ()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            own[at] += sign * step
            values.append(float(prior.log_prob(z).sum()))
            own[at] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(own.grad[at]), rel=1e-5, abs=1e-8)


def test_vamp_prior_at_the_data_is_the_aggregated_posterior():
    x, z = data(9), 2 * torch.randn(50, 2, generator=rng(3), dtype=torch.float64)
    vamp, q_agg = VampPrior(encoder(), x), aggregated_posterior(encoder(), x)
    with torch.no_grad():
        torch.testing.assert_close(vamp.log_prob(z), q_agg.log_prob(z), rtol=0, atol=1e-13)
        torch.testing.assert_close(vamp.sample((9,), generator=rng()), q_agg.sample((9,), generator=rng()))
        fewer = VampPrior(encoder(), x[:8]).log_prob(z)
    assert (fewer - q_agg.log_prob(z)).abs().max() > 0.01


def test_leave_one_out_is_the_direct_sum_over_the_others():
    prior, z = PRIORS["exemplar"](2), torch.randn(2, 7, 2, generator=rng(), dtype=torch.float64)
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [6, 6, 0, 0, 3, 2, 1]])
    got = prior.log_prob_leave_one_out(z, index).detach()
    loc = prior.encoder(prior.exemplars).mean.detach()
    for s, b in np.ndindex(2, 7):
        others = [Normal(loc[n], 0.6).log_prob(z[s, b]).sum() for n in range(7) if n != index[s, b]]
        assert float(got[s, b]) == pytest.approx(float(torch.stack(others).logsumexp(0)) - math.log(6), abs=1e-12)


@pytest.mark.parametrize("make", [lambda e: VampPrior(e, data(4)), lambda e: ExemplarPrior(e, data(7))])
def test_a_prior_stays_tied_to_the_encoder_of_its_own_vae(make):
    own = encoder()
    vae = VAE(own, BernoulliDecoder(2, 6, (5,)).double(), make(own))
    assert vae.prior.encoder is vae.encoder
    assert vae.float().prior.encoder is vae.encoder
    assert vae.prior.sample((2,), generator=rng()).dtype == torch.float32
    twin = copy.deepcopy(vae.double())
    assert twin.prior.encoder is twin.encoder and twin.encoder is not vae.encoder
    with torch.no_grad():
        twin.encoder.loc.bias += 1.0
        z = torch.zeros(1, 2, dtype=torch.float64)
        assert not torch.equal(twin.prior.log_prob(z), vae.prior.log_prob(z))
    names = [name for name, _ in vae.named_parameters()]
    assert len(names) == len(set(names)) and not any("prior.encoder" in name or "_encoder" in name for name in names)
    assert sum(name.startswith("prior.") for name in names) == 1
    assert {name for name in vae.state_dict() if name.startswith("prior.")} == {n for n in names if "prior." in n}
    with pytest.raises(ValueError, match="prior: expected one made of the codes of this encoder"):
        VAE(encoder(seed=1), vae.decoder, vae.prior)


def test_an_encoder_need_not_tell_its_size():
    class Encoder(torch.nn.Module):
        def forward(self, x):
            return Independent(Normal(x[:, :3], torch.ones_like(x[:, :3])), 1)

    prior = VampPrior(Encoder(), torch.zeros(5, 6))
    assert prior.latent_dim == 3
    assert repr(prior) == "VampPrior(num_pseudo_inputs=5, latent_dim=3)"
    assert repr(PRIORS["exemplar"](2)) == "ExemplarPrior(num_exemplars=7, latent_dim=2)"
    assert repr(gmm()) == "GaussianMixture(num_components=3, latent_dim=2)"


@EVERY
def test_components_are_those_of_the_density(name):
    """They make, by scipy and as one mixture, the density that the prior says."""
    prior, z = PRIORS[name](2), 2 * torch.randn(20, 2, generator=rng(2), dtype=torch.float64)
    log_weight, loc, scale = (part.detach().double() for part in prior.components())
    covariance = scale @ scale.mT if scale.ndim == 3 else torch.diag_embed(scale.square())
    parts = zip(log_weight.exp(), loc.numpy(), covariance.numpy(), strict=True)
    by_hand = np.log(sum(float(w) * stats.multivariate_normal(m, c).pdf(z.numpy()) for w, m, c in parts))
    with torch.no_grad():
        np.testing.assert_allclose(prior.log_prob(z), by_hand, rtol=1e-10)
    mixture = as_mixture(prior)
    torch.testing.assert_close(mixture.log_prob(z), torch.from_numpy(by_hand), rtol=1e-10, atol=0)
    assert not mixture.log_prob(z).requires_grad


def test_a_mixture_is_made_of_components_in_either_form():
    log_weight, loc = torch.tensor([2.0, 1.0, -math.inf]), torch.eye(3)[:, :2]
    z, scale = torch.randn(5, 2, generator=rng()), torch.tensor([[1.0, 2.0], [0.5, 1.0], [3.0, 3.0]])
    diag, full = (from_components(log_weight, loc, form) for form in (scale, torch.diag_embed(scale)))
    assert isinstance(diag, DiagGaussianMixture) and isinstance(full, GaussianMixture) and len(full.weight) == 2
    expected = DiagGaussianMixture(loc.double(), scale.double(), log_weight.double().log_softmax(0))
    for mixture in (diag, full):
        torch.testing.assert_close(mixture.log_prob(z.double()), expected.log_prob(z.double()), rtol=1e-12, atol=0)


def test_what_is_not_known_to_be_a_mixture_has_no_components():
    class Laplace:
        latent_dim = 2

        def log_prob(self, z):
            return -z.abs().sum(-1) - 2 * math.log(2)

        def sample(self, sample_shape=(), *, generator=None):
            raise NotImplementedError

    assert as_mixture(Laplace()) is None


@pytest.mark.parametrize("name", ["vamp", "exemplar"])
def test_leaving_out_is_an_object_with_a_density_for_each_datum(name):
    prior, z = PRIORS[name](2), torch.randn(5, 3, 2, generator=rng(), dtype=torch.float64)
    index = torch.tensor([2, 0, 2])
    with torch.no_grad():
        got, mixture = prior.leave_one_out(index).log_prob(z), prior.mixture()
        for b, out in enumerate(index.tolist()):
            keep = torch.arange(mixture.num_components) != out
            rest = DiagGaussianMixture(mixture.loc[keep], mixture.scale[keep])
            torch.testing.assert_close(got[:, b], rest.log_prob(z[:, b]), rtol=1e-12, atol=0)


def test_sizes_are_told():
    assert StandardNormal(2).config() == {"latent_dim": 2}
    assert gmm().config() == {"num_components": 3, "latent_dim": 2}
    assert PRIORS["vamp"](2).config() == {"num_pseudo_inputs": 4}
    assert PRIORS["exemplar"](2).config() == {"num_exemplars": 7}


class Pair(torch.nn.Module):
    """An encoder of images that returns a mean and a log-variance, with dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4))
        self.drop = torch.nn.Dropout(0.5)
        with torch.no_grad():
            self.net[2].weight.copy_(torch.randn(4, 6, generator=rng()))
            self.net[2].bias.fill_(-0.5)

    def forward(self, x):
        return self.drop(self.net(x)).chunk(2, 1)


@pytest.mark.parametrize("cls", [VampPrior, ExemplarPrior])
def test_an_encoder_that_was_adapted_makes_a_prior(cls):
    net, x = Pair(), torch.randn(5, 1, 2, 3, generator=rng())
    vae = adapt(net, spread="log_var")
    prior, before = cls(vae, x), {name: value.clone() for name, value in net.state_dict().items()}
    assert prior.encoder is net and prior.latent_dim == 2 and net.training
    z = prior.sample((4,), generator=rng())
    assert torch.equal(z, prior.sample((4,), generator=rng())) and net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    net.eval()
    loc, log_var = net(x)
    scale = torch.exp(0.5 * log_var) if cls is VampPrior else torch.ones_like(loc)
    torch.testing.assert_close(prior.log_prob(z), DiagGaussianMixture(loc, scale).log_prob(z))


def test_an_encoder_may_return_a_pair():
    prior = VampPrior(lambda x: (x, x.abs() + 1), torch.eye(3))
    expected = DiagGaussianMixture(torch.eye(3), torch.eye(3) + 1)
    assert torch.equal(prior.log_prob(torch.ones(2, 3)), expected.log_prob(torch.ones(2, 3)))


def test_pseudo_inputs_are_copied():
    x = data(4)
    prior = VampPrior(encoder(), x)
    with torch.no_grad():
        prior.pseudo_inputs.zero_()
    assert x.abs().max() > 0


# Fitted mixtures


def test_gaussian_mixture_is_scikit_learns():
    z = torch.cat(
        [torch.randn(300, 3, generator=rng()) @ torch.randn(3, 3, generator=rng(1)), data(80)[:, :3]]
    ).double()
    # Units of which there is one for all coordinates, so that both start from the same k-means.
    z = (z - z.mean(0)) / z.std(0, correction=0)
    theirs = sklearn.mixture.GaussianMixture(4, random_state=0, reg_covar=1e-6, max_iter=1000).fit(z.numpy())
    ours = fit_gmm(z, 4)
    np.testing.assert_allclose(ours.log_prob(z), theirs.score_samples(z.numpy()), rtol=1e-8)
    assert float(ours.log_prob(z.float()).dtype == torch.float32)
    np.testing.assert_allclose(ours.log_prob(z.repeat(400, 1))[-len(z) :], ours.log_prob(z), rtol=1e-13)  # in chunks


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_mixture_in_single_precision_or_less_is_computed_in_double(dtype):
    one = GaussianMixture(
        torch.tensor([0.25, 0.75]), torch.tensor([[0.0, 1.0], [2.0, 0.5]]), torch.eye(2).repeat(2, 1, 1)
    )
    z = torch.randn(5, 2, generator=rng(), dtype=torch.float64)
    low = GaussianMixture(one.weight.to(dtype), one.loc.to(dtype), one.scale_tril.to(dtype))
    torch.testing.assert_close(low.log_prob(z), one.double().log_prob(z), rtol=1e-14, atol=1e-14)
    assert low.log_prob(z.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "off", "taken"),
    [(torch.float16, 7.5 * 2**-10, True), (torch.float16, 8.5 * 2**-10, False), (torch.bfloat16, 0.0625, True)]
    + [(dtype, off, off < 1e-5) for dtype in (torch.float32, torch.float64) for off in (0.9e-5, 1.1e-5)],
)
def test_weights_may_be_off_by_what_their_dtype_rounds(dtype, off, taken):
    """By 1e-5, or by eight times the spacing of numbers above 1 where that is more."""
    make = lambda: GaussianMixture(  # noqa: E731
        torch.tensor([0.5, 0.5 + off], dtype=dtype), torch.zeros(2, 1, dtype=dtype), torch.ones(2, 1, 1, dtype=dtype)
    )
    if taken:
        assert float(make().weight.double().sum()) == pytest.approx(1, abs=4 * torch.finfo(dtype).eps)
    else:
        with pytest.raises(ValueError, match=r"^weight: expected values that sum to 1 within"):
            make()


def test_a_density_takes_as_many_points_at_once_as_leave_room_for_their_differences(monkeypatch):
    """2**23 numbers: of 2**14 a point, 512 points."""
    seen = []

    class Counted:
        def __init__(self, *parts, validate_args):
            pass

        def log_prob(self, z):
            seen.append(len(z))
            return z[:, 0]

    monkeypatch.setattr(mixtures, "MixtureSameFamily", Counted)
    num, z = 2**13, torch.arange(2_000.0).reshape(1_000, 2)
    wide = GaussianMixture(torch.full((num,), 1 / num), torch.zeros(num, 2), torch.eye(2).repeat(num, 1, 1))
    assert torch.equal(wide.log_prob(z), z[:, 0]) and seen == [512, 488]


def test_gmm_gradient_is_the_score():
    z = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    one = GaussianMixture(torch.ones(1), torch.ones(1, 2), 2 * torch.eye(2)[None])
    one.log_prob(z).sum().backward()
    torch.testing.assert_close(z.grad, (1 - z.detach()) / 4)


def test_one_component_has_the_moments_of_q_agg_and_not_those_of_its_means():
    q_agg = aggregated_posterior(encoder(), data(40))
    fitted, num = fit_gmm(q_agg, 1, num_samples=40_000, seed=3), 40_000
    z = q_agg.sample((num,), generator=rng(3))  # the same draws: maximum likelihood is their mean and covariance
    torch.testing.assert_close(fitted.loc[0], z.mean(0), rtol=0, atol=1e-10)
    covariance = fitted.scale_tril[0] @ fitted.scale_tril[0].mT
    expected = torch.cov(z.T, correction=0) + 1e-6 * torch.diag(z.var(0, correction=0))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-10)
    products = (z - q_agg.mean)[:, :, None] * (z - q_agg.mean)[:, None]
    error = products.std(0) / math.sqrt(num)
    assert ((covariance - q_agg.covariance).abs() < 4 * error + 2e-6).all()
    means = fit_gmm(q_agg.loc, 1)
    of_means = means.scale_tril[0] @ means.scale_tril[0].mT
    within = q_agg.scale.square().mean(0)
    floor = 1e-6 * torch.diag(q_agg.loc.var(0, correction=0))
    torch.testing.assert_close(q_agg.covariance - of_means, torch.diag(within) - floor, rtol=0, atol=1e-9)
    assert ((covariance - of_means).diagonal() > 10 * error.diagonal()).all()


def test_fit_gmm_is_reproducible_and_does_not_warn():
    q_agg = aggregated_posterior(encoder(), data(40))
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (it must not move)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two, other = (fit_gmm(q_agg, 3, num_samples=500, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(one.loc, two.loc) and not torch.equal(one.loc, other.loc)
    assert one.loc.dtype == torch.float64 and fit_gmm(q_agg.loc.float(), 2).loc.dtype == torch.float64
    again = GaussianMixture(one.weight, one.loc, one.scale_tril)
    again.load_state_dict(one.state_dict())
    assert torch.equal(again.log_prob(q_agg.loc), one.log_prob(q_agg.loc))


def test_min_variance_keeps_a_component_of_equal_samples_bounded():
    z = torch.cat([torch.zeros(50, 1), 5 + torch.randn(50, 1, generator=rng())])
    floor = 0.1 * float(z.std(correction=0))
    assert float(fit_gmm(z, 2, min_variance=0.01).scale_tril.min()) == pytest.approx(floor, rel=1e-3)


CLOUDS = torch.cat([torch.randn(400, 2, generator=rng(n)) * (1 + n) + 7 * n for n in range(3)]).double()


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize(("a", "num"), [(1e-4, 3), (1e5, 3), (-2.0, 3), (torch.tensor([1e-3, -1e3]).double(), 1)])
def test_a_fit_does_not_depend_on_the_units_of_z(covariance, a, num):
    """z → a z + b shifts every log-density by −log|a|.

    Where a is another for each coordinate that holds without k-means, which sees distances in z as it is.
    """
    b, z = torch.tensor([3.0, -2.0]).double(), CLOUDS + 0.5
    one = fit_gmm(z, num, covariance=covariance)
    other = fit_gmm(a * z + b, num, covariance=covariance)
    shift = (torch.zeros(2) + a).abs().log().sum()
    torch.testing.assert_close(other.log_prob(a * z + b) + shift, one.log_prob(z), rtol=0, atol=1e-6)


def test_small_codes_keep_their_spread():
    """A floor of 1e-6 on the variance itself would make these eleven times as wide."""
    z = 1e-4 * torch.randn(500, 2, generator=rng(), dtype=torch.float64)
    fitted = fit_gmm(z, 1)
    width = (fitted.scale_tril[0] @ fitted.scale_tril[0].mT).diagonal().sqrt()
    torch.testing.assert_close(width, z.std(0, correction=0), rtol=1e-5, atol=0)


def test_the_seed_decides_where_em_starts():
    """On given samples nothing else is random; k-means ends in other places from other starts."""
    z = torch.rand(600, 2, generator=rng(), dtype=torch.float64)
    fits = [fit_gmm(z, 12, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(fits[0].loc, fits[1].loc)
    assert all((fits[0].log_prob(z) - other.log_prob(z)).abs().max() > 1e-3 for other in fits[2:])
    for seed in (0, 3):
        start = sklearn.cluster.KMeans(12, n_init=1, random_state=seed).fit(z.numpy()).labels_
        one_step = functools.partial(sklearn.mixture.GaussianMixture, max_iter=1)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            patch.setattr(sklearn.mixture, "GaussianMixture", one_step)
            stepped = fit_gmm(z, 12, seed=seed)
        middles = torch.stack([z[torch.from_numpy(start == k)].mean(0) for k in range(12)])
        assert (stepped.loc - middles).norm(dim=1).max() < 0.1


def test_diagonal_covariances_are_those_of_scikit_learn():
    z = (CLOUDS - CLOUDS.mean(0)) / CLOUDS.std(0, correction=0)
    theirs = sklearn.mixture.GaussianMixture(3, covariance_type="diag", random_state=0).fit(z.numpy())
    ours = fit_gmm(z, 3, covariance="diag")
    assert isinstance(ours, DiagGaussianMixture)
    np.testing.assert_allclose(ours.log_prob(z), theirs.score_samples(z.numpy()), rtol=1e-8)


def test_too_few_samples_for_the_parameters_are_said_and_diagonal_ones_serve():
    z, new = (torch.randn(num, 256, generator=rng(num), dtype=torch.float64) for num in (250, 100))
    with pytest.warns(UserWarning, match=r'^data: expected at least 33152, .*, got 250; .* or covariance="diag"$'):
        full = fit_gmm(z, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewer = fit_gmm(z[:, :15], 1)  # 135 parameters
    with pytest.warns(UserWarning, match=r"^data: expected at least 512, .*: more samples$"):
        diag = fit_gmm(z, 1, covariance="diag")
    best = float(StandardNormal(256).log_prob(new).mean())
    assert float(full.log_prob(new).mean()) < best - 1000
    assert best - 5 < float(diag.log_prob(new).mean()) < best
    assert fewer.latent_dim == 15
    q_agg = DiagGaussianMixture(torch.zeros(1, 40), torch.ones(1, 40))
    with pytest.warns(UserWarning, match=r"^num_samples: expected at least 860, "):
        fit_gmm(q_agg, 1, num_samples=800)


def test_no_convergence_is_a_warning_and_still_a_density(monkeypatch):
    few_steps = functools.partial(sklearn.mixture.GaussianMixture, max_iter=2)
    monkeypatch.setattr(sklearn.mixture, "GaussianMixture", few_steps)
    z = torch.randn(500, 2, generator=rng(), dtype=torch.float64)
    with pytest.warns(ConvergenceWarning):
        prior = fit_gmm(z, 5)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    mass = prior.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-3)


class Returns(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x[:, :2])


def wrong(make):
    return lambda: VampPrior(Returns(make), torch.zeros(3, 6)).log_prob(torch.zeros(1, 2))


EYE, HALF = torch.eye(2)[None].expand(2, 2, 2), torch.full((2,), 0.5)
INF = torch.full((2, 6), math.inf)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, r"encoder: expected it to return \(loc, scale\), .* got Tensor", wrong(lambda x: x)),
        (TypeError, "encoder: expected a diagonal covariance", wrong(lambda x: MultivariateNormal(x, EYE[0] + 0.1))),
        (
            ValueError,
            r"encoder's loc: expected shape \(3, ...\), a row for each datum, got \(6, 2\)",
            wrong(lambda x: (x.repeat(2, 1), x.repeat(2, 1))),
        ),
        (
            ValueError,
            "scale: expected positive values, got min 0",
            wrong(lambda x: Independent(Normal(x, torch.zeros_like(x), validate_args=False), 1)),
        ),
        (TypeError, "encoder: expected a callable, got int", lambda: VampPrior(3, data())),
        (TypeError, "pseudo_inputs: expected a tensor or an array.*, got int", lambda: VampPrior(encoder(), [[0]])),
        (
            ValueError,
            r"pseudo_inputs: expected shape \(..., 6\), got \(3, 5\)",
            lambda: VampPrior(encoder(), data(3)[:, 1:]),
        ),
        (ValueError, "pseudo_inputs: expected finite values, got inf", lambda: VampPrior(encoder(), INF.double())),
        (
            TypeError,
            "pseudo_inputs: expected the dtype of the weights, torch.float64, got torch.float32",
            lambda: VampPrior(encoder(), INF.sign()),
        ),
        (
            TypeError,
            "pseudo_inputs: expected a floating-point tensor, got dtype torch.int64",
            lambda: VampPrior(encoder(), INF.sign().long()),
        ),
        (TypeError, "pseudo_inputs: expected the dtype", lambda: VampPrior(encoder(), data()).float().sample()),
        (
            ValueError,
            "exemplars: expected all arguments on one device, meta, got cpu",
            lambda: ExemplarPrior(encoder().to("meta"), data()),
        ),
        (
            ValueError,
            r"exemplars: expected shape \(N, ...\) with at least one value, got \(6,\)",
            lambda: ExemplarPrior(encoder(), data()[0]),
        ),
        (ValueError, "scale: expected a number > 0, got 0", lambda: ExemplarPrior(encoder(), data(), scale=0.0)),
        (TypeError, "scale: expected a number, got str", lambda: ExemplarPrior(encoder(), data(), scale="1")),
        (ValueError, r"z: expected shape \(..., 2\)", lambda: VampPrior(encoder(), data()).log_prob(data())),
        (TypeError, "generator: expected", lambda: VampPrior(encoder(), data()).sample((2,), generator=0)),
        (TypeError, "sample_shape: expected a tuple", lambda: ExemplarPrior(encoder(), data()).sample(5)),
        (
            ValueError,
            "index: expected other components",
            lambda: ExemplarPrior(encoder(), data(1)).log_prob_leave_one_out(
                torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
            ),
        ),
        (ValueError, "weight: expected values that sum to 1", lambda: GaussianMixture(HALF * 1.1, EYE[0], EYE)),
        (ValueError, "weight: expected positive values, got min 0", lambda: GaussianMixture(HALF.round(), EYE[0], EYE)),
        (ValueError, r"weight: expected shape \(2,\)", lambda: GaussianMixture(HALF[:1], EYE[0], EYE)),
        (ValueError, "scale_tril: expected zeros above the diagonal", lambda: GaussianMixture(HALF, EYE[0], EYE + 1)),
        (ValueError, "scale_tril's diagonal: expected positive", lambda: GaussianMixture(HALF, EYE[0], -EYE)),
        (ValueError, "loc: expected finite", lambda: GaussianMixture(HALF, EYE[0] * math.inf, EYE)),
        (ValueError, "z: expected finite", lambda: gmm().log_prob(torch.full((1, 2), math.nan))),
        (TypeError, "sample_shape: expected a tuple", lambda: gmm().sample(3)),
        (TypeError, "generator: expected", lambda: gmm().sample((3,), generator=1)),
        (TypeError, "data: expected a torch.Tensor, got list", lambda: fit_gmm([[0.0]], 1)),
        (ValueError, r"data: expected shape \(M, D\)", lambda: fit_gmm(torch.zeros(3), 1)),
        (ValueError, "data: expected finite", lambda: fit_gmm(INF, 1)),
        (ValueError, "data: expected at least 4 distinct samples for 4 components, got 3", lambda: fit_gmm(data(3), 4)),
        (
            ValueError,
            "data: expected at least 2 distinct samples for 2 components, got 1",
            lambda: fit_gmm(torch.ones(9, 2), 2),
        ),
        (
            ValueError,
            "num_samples: expected at least 4 distinct samples for 4 components, got 3",
            lambda: fit_gmm(aggregated_posterior(encoder(), data()), 4, num_samples=3),
        ),
        (ValueError, "num_components: expected an int at least 1", lambda: fit_gmm(data(), 0)),
        (
            ValueError,
            "covariance: expected one of full, diag, got 'tied'",
            lambda: fit_gmm(data(), 1, covariance="tied"),
        ),
        (
            ValueError,
            r"data's standard deviation: expected different values in every coordinate, got 0 at index \(1,\)",
            lambda: fit_gmm(torch.stack([torch.arange(9.0), torch.ones(9)], 1), 1),
        ),
        (ValueError, "min_variance: expected a number > 0", lambda: fit_gmm(data(), 1, min_variance=0.0)),
        (
            ValueError,
            "min_variance: expected enough for all covariances to be positive definite, got 1e-300",
            lambda: fit_gmm(data(9)[:, :1].expand(-1, 2), 1, min_variance=1e-300),
        ),
        (ValueError, "seed: expected an int between 0 and 4294967295", lambda: fit_gmm(data(), 1, seed=2**32)),
    ],
)
def test_bad_priors(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_one_component_with_a_full_covariance_keeps_it():
    tril = torch.tensor([[[1.0, 0.0], [0.5, 2.0]]])
    found = from_components(torch.zeros(1), torch.zeros(1, 2), tril)
    assert isinstance(found, GaussianMixture) and torch.equal(found.scale_tril, tril.double())


def test_a_mixture_of_parameters_is_fixed():
    loc = torch.zeros(2, requires_grad=True)
    found = as_mixture(adapt_prior(Independent(Normal(loc, torch.ones(2)), 1)))
    assert not found.loc.requires_grad and not found.log_prob(torch.zeros(2)).requires_grad


def test_what_an_encoder_makes_is_computed_in_evaluation_mode_without_gradients():
    net, seen = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout()), []
    net.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    prior = VampPrior(adapt(lambda x: net(x).chunk(2, 1), spread="log_var"), torch.eye(3))
    seen.clear()
    one, two = as_mixture(prior), as_mixture(prior)
    assert torch.equal(one.loc, two.loc) and set(seen) == {(False, False)} and net.training and net[1].training


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1), (3, 3)])
def test_a_divergence_wants_a_scale_for_each_mean(shape):
    with pytest.raises(ValueError, match=r"^scale: expected shape \(3, 2\), got"):
        StandardNormal(2).kl(torch.zeros(3, 2), torch.ones(shape))


@pytest.mark.parametrize("make", [VampPrior, ExemplarPrior])
def test_what_a_prior_of_codes_is_made_of_is_compared_and_cut_off(make):
    x = torch.eye(3).requires_grad_() * 2
    prior = make(adapt(lambda x: (x, torch.ones_like(x))), x)
    assert prior.pseudo_inputs.is_leaf if make is VampPrior else not prior.exemplars.requires_grad
    with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes"):
        make(adapt(lambda x: (x + torch.randn(()), torch.ones_like(x))), x)


def test_the_divergence_is_that_of_torch():
    loc, scale = (torch.randn(4, 5, 3, generator=rng(seed)) for seed in (0, 1))
    scale = scale.exp().requires_grad_()
    got, unit = StandardNormal(3).kl(loc, scale), Normal(torch.zeros(3).double(), torch.ones(3).double())
    want = torch.distributions.kl_divergence(Normal(loc.double(), scale.double()), unit).sum(-1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.sum().backward()
    torch.testing.assert_close(scale.grad, (scale - 1 / scale).detach())
    assert StandardNormal(3).kl(loc[:0], scale[:0]).shape == (0, 5)


@pytest.mark.parametrize(
    ("error", "message", "loc", "scale"),
    [
        (ValueError, r"scale: expected positive values, got 0 at index \(1, 0\)$", torch.zeros(2, 3), [1.0, 0.0]),
        (ValueError, r"scale: expected positive values, got -1 at index \(0, 0\)$", torch.zeros(2, 3), [-1.0, 1.0]),
        (ValueError, r"scale: expected finite values, got nan at", torch.zeros(2, 3), [math.nan, 1.0]),
        (ValueError, r"loc: expected finite values, got inf at", torch.full((2, 3), math.inf), [1.0, 1.0]),
        (ValueError, r"loc: expected shape \(..., 3\), got \(2, 2\)$", torch.zeros(2, 2), [1.0, 1.0]),
        (TypeError, r"loc: expected a floating-point tensor", torch.zeros(2, 3).long(), [1.0, 1.0]),
    ],
)
def test_what_has_no_divergence_is_named(error, message, loc, scale):
    with pytest.raises(error, match=f"^{message}"):
        StandardNormal(3).kl(loc, torch.tensor(scale)[:, None].expand(2, 3))


class Placed:
    """A mixture on a device that need not be there."""

    def __init__(self, place):
        self.loc = Namespace(device=torch.device(place))

    def to(self, place):
        return f"on {place}"


def test_only_a_mixture_that_is_elsewhere_is_brought_to_the_processor(monkeypatch):
    here, asked = adapt_prior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1)), []
    assert on_cpu(here) is here
    far = StandardNormal(2).to("meta")
    for found, want in ((Placed("cuda"), "on cpu"), (Placed("cpu"), far), (None, far)):
        monkeypatch.setattr(priors, "as_mixture", lambda given, found=found: asked.append(given) or found)
        assert on_cpu(far) == want and asked.pop() is far
    near = VampPrior(encoder(), data())  # whose weights tell where it is: nothing is encoded for that
    assert on_cpu(near) is near and not asked


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_standard_normal_is_one_component(dim, dtype):
    prior = StandardNormal(dim).to(dtype)
    parts = prior.components()
    assert [part.shape for part in parts] == [(1,), (1, dim), (1, dim)] and {part.dtype for part in parts} == {dtype}
    z = torch.randn(5, dim, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(from_components(*parts).log_prob(z), prior.log_prob(z), rtol=1e-12, atol=1e-12)


CODE_PRIORS = [(VampPrior, "pseudo_inputs"), (ExemplarPrior, "exemplars")]


@pytest.mark.parametrize(("kind", "name"), CODE_PRIORS)
def test_codes_of_any_shape_make_a_prior_of_as_many_numbers(kind, name):
    prior = kind(lambda x: Independent(Normal(x.view(-1, 2, 3), torch.ones(len(x), 2, 3)), 2), torch.rand(4, 6))
    assert prior.latent_dim == 6 and prior.sample((3,)).shape == (3, 6)
    assert prior.log_prob(torch.zeros(5, 6)).shape == (5,)


@pytest.mark.parametrize(("kind", "name"), CODE_PRIORS)
def test_arrays_come_in_the_dtype_of_the_weights(kind, name):
    prior = kind(encoder().float(), data(3).numpy().astype("float64"))
    assert getattr(prior, name).dtype == torch.float32
    assert prior.sample((2,)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize(("kind", "name"), CODE_PRIORS)
def test_whole_numbers_are_refused_also_where_no_weight_tells_the_dtype(kind, name, dtype):
    function = lambda x: Independent(Normal(x[:, :2].double(), torch.ones(len(x), 2).double()), 1)  # noqa: E731
    with pytest.raises(TypeError, match=rf"^{name}: expected a floating-point tensor, got dtype {dtype}$"):
        kind(function, torch.ones(3, 6).to(dtype))


@pytest.mark.parametrize(("kind", "learned"), [(VampPrior, "pseudo_inputs"), (ExemplarPrior, "log_scale")])
def test_components_of_codes_can_be_derived_in_all_that_makes_them(kind, learned):
    own = encoder()
    prior = kind(own, data(3))
    own.requires_grad_(True)
    log_weight, loc, scale = prior.components()
    slopes = torch.autograd.grad(loc.square().sum() + scale.sum(), [getattr(prior, learned), *own.loc.parameters()])
    assert all(bool(slope.ne(0).any()) for slope in slopes) and log_weight.exp().sum().item() == pytest.approx(1)


def test_exemplars_are_not_copied_and_pseudo_inputs_are():
    x = data(3)
    exemplars, pseudo_inputs = ExemplarPrior(encoder(), x).exemplars, VampPrior(encoder(), x).pseudo_inputs
    assert exemplars.data_ptr() == x.data_ptr() != pseudo_inputs.data_ptr() and torch.equal(pseudo_inputs, x)


def test_a_standard_normal_or_a_draw_that_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(_checks, "room", lambda: 100)
    assert StandardNormal(100).latent_dim == 100 and StandardNormal(10).sample((2, 5)).shape == (2, 5, 10)
    with pytest.raises(ValueError, match=r"^latent_dim: expected a size that fits into memory, got 101$"):
        StandardNormal(101)
    with pytest.raises(ValueError, match=r"^sample_shape: expected a size that fits into memory"):
        StandardNormal(10).sample((11,))


def test_the_generator_of_a_standard_normal_goes_where_it_is(monkeypatch):
    def seen(*given):
        raise LookupError(given)

    monkeypatch.setattr(priors, "check_draw", seen)
    with pytest.raises(LookupError) as error:
        StandardNormal(3).to("meta").sample((2,), generator="given")
    assert error.value.args == (((2,), "given", torch.device("meta"), 3),)


def test_the_width_of_exemplars_has_the_dtype_of_their_codes():
    function = lambda x: Independent(Normal(x.double(), torch.ones_like(x).double()), 1)  # noqa: E731
    prior = ExemplarPrior(function, torch.rand(3, 6), 0.3)
    assert prior.log_scale.dtype == torch.float32 and prior.mixture().scale.dtype == torch.float64


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("least", "num"), [(-1.0, 2), (-30.0, 2), (-700.0, 2), (-800.0, 1), (-math.inf, 1)])
def test_of_full_components_those_are_kept_whose_weight_is_a_positive_number(full, least, num):
    log_weight, loc = torch.tensor([least, 0.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scale = torch.full((2, 2), 0.1)
    found = priors.from_components(log_weight, loc, scale.diag_embed() if full else scale)
    assert len(found.components()[0]) == (num if full else 2)
    assert {part.dtype for part in found.components()} == {torch.float64}
    wanted = DiagGaussianMixture(loc.double(), scale.double(), log_weight.double().log_softmax(0))
    z = torch.tensor([[3.1, 3.9], [2.9, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(found.log_prob(z), wanted.log_prob(z), rtol=1e-12, atol=1e-12)


def test_components_are_moved_to_the_device_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(priors, "from_components", lambda *parts: [part.device.type for part in parts])
    assert priors.as_mixture(StandardNormal(2), torch.device("meta")) == ["meta"] * 3
    assert priors.as_mixture(StandardNormal(2)) == ["cpu"] * 3


@pytest.mark.parametrize("weight", [None, Namespace(device=torch.device("meta"))])
def test_a_prior_whose_components_lie_elsewhere_is_moved_though_no_weight_tells(monkeypatch, weight):
    far = Namespace(loc=Namespace(device=torch.device("meta")), to=lambda device: f"on {device}")
    mixtures = {"far": far, "near": Namespace(loc=torch.zeros(1))}
    monkeypatch.setattr(priors, "weight_of", lambda prior: weight)
    monkeypatch.setattr(priors, "as_mixture", mixtures.get)
    assert [priors.on_cpu(prior) for prior in ("far", "near", "none")] == ["on cpu", "near", "none"]
