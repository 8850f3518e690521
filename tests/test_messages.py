"""What errors say, whole: each names the argument, what was expected and what came."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, Poisson, StudentT
from torch.utils.data import DataLoader

from tests.texts import check_text
from vaebook import (
    _checks,
    adapters,
    certificates,
    diagnosis,
    evaluation,
    memorisation,
    networks,
    outputs,
    parts,
    plots,
    population,
)
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal

X, Z = torch.ones(6, 3), torch.zeros(4, 2)
PAIR, META = (Z, Z + 1), torch.ones(2, 2, device="meta")
Q = DiagGaussianMixture(torch.arange(12.0)[:, None], torch.ones(12, 1))
NAN = torch.tensor([1.0, torch.nan])
NET = networks.GaussianEncoder(3, 2, ())
NORMAL = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
VAE = adapters.adapt(
    lambda x: (x[:, :2], x[:, :2].exp()), lambda z: z @ torch.ones(2, 3), likelihood="bernoulli_logits"
)
NAMED = adapters.adapt(lambda x, label: (x, x.exp()), condition="label")
FOUR = Normal(torch.zeros(4, 3), 1.0)


def fails(*_):
    raise KeyError("of\nsomebody")


def within(error):
    with _checks.explained("file", "codes", within=True):
        raise error


def read(codes, num=4, spread="std"):
    return outputs.read_codes(codes, num, spread)


def decoded(source=FOUR, shape=(4,)):
    return outputs.Decoded(source, shape)


CALLS = {
    "_checks": [
        lambda: _checks.check_tensor("a", 3, ("N",)),
        lambda: _checks.check_tensor("a", torch.ones(2, dtype=torch.long), ("N",)),
        lambda: _checks.check_tensor("a", torch.ones(2).to(torch.float8_e4m3fn), ("N",)),
        lambda: _checks.check_tensor("a", torch.eye(2).to_sparse(), ("N", 2)),
        lambda: _checks.check_tensor("a", META, ("N", 2), like=Z),
        lambda: _checks.check_tensor("a", Z, ("N",)),
        lambda: _checks.check_tensor("a", Z, ("N", 3)),
        lambda: _checks.check_tensor("a", Z, ("...", 3, "D")),
        lambda: _checks.check_tensor("a", Z[0], ("...", 3, "D")),
        lambda: _checks.check_tensor("a", Z[:0], ("N", 2)),
        lambda: _checks.check_tensor("a", NAN, ("N",)),
        lambda: _checks.check_tensor("a", META, ("N", 2)),
        lambda: _checks.check_tensor("a", torch.tensor(torch.inf), ()),
        lambda: _checks.check_positive("a", torch.tensor([[1.0, 2.0], [-0.25, 0.0]])),
        lambda: _checks.check_positive("a", torch.tensor(0.0)),
        lambda: _checks.check_positive("a", NAN),
        lambda: _checks.check_unit("a", torch.tensor([0.5, 1.5])),
        lambda: _checks.check_unit("a", torch.tensor([0.5, -0.125]), "probabilities"),
        lambda: _checks.check_index("a", [0], (1,)),
        lambda: _checks.check_index("a", torch.ones(1), (1,)),
        lambda: _checks.check_index("a", torch.ones(1).long().to_sparse(), (1,)),
        lambda: _checks.check_index("a", torch.ones(1).long(), (2,)),
        lambda: _checks.check_index("a", torch.ones(1, device="meta").long(), (1,), Z),
        lambda: _checks.check_index("a", torch.tensor([0, 3]), (2,), Z, 3),
        lambda: _checks.check_log_weight(torch.zeros(2)),
        lambda: _checks.check_log_weight(torch.zeros(2, dtype=torch.float16)),
        lambda: _checks.to_scale("a", -torch.ones(2), "std"),
        lambda: _checks.to_scale("a", torch.tensor([1.0, 0.0]), "var"),
        lambda: _checks.check_type("a", 3, DiagGaussianMixture),
        lambda: _checks.check_type("a", 3, tuple | list, "; a hint"),
        lambda: _checks.check_int("a", True, minimum=0),
        lambda: _checks.check_int("a", 1.0, minimum=0),
        lambda: _checks.check_int("a", -1, minimum=0),
        lambda: _checks.check_int("a", 2**63, minimum=0),
        lambda: _checks.check_int("a", 9, minimum=0, maximum=8),
        lambda: _checks.check_int("a", -(10**20), minimum=0),
        lambda: _checks.check_int("a", 10**25, minimum=0),
        lambda: _checks.check_number("a", "1"),
        lambda: _checks.check_number("a", False),
        lambda: _checks.check_number("a", 10**400),
        lambda: _checks.check_number("a", torch.nan),
        lambda: _checks.check_number("a", 1, minimum=2),
        lambda: _checks.check_number("a", 1, above=1),
        lambda: _checks.check_number("a", 1, below=1),
        lambda: _checks.check_choice("a", "x" * 200, ("one", "two")),
        lambda: _checks.check_choice("a", "\n", ("one", "two"), "a word of"),
        lambda: _checks.check_sizes("a", 3),
        lambda: _checks.check_sizes("a", (), empty=False),
        lambda: _checks.check_sizes("a", (1, 0), minimum=1),
        lambda: _checks.check_shape("a", (2**32, 2**31)),
        lambda: _checks.check_generator(0),
        lambda: within(ValueError("bad\nworse")),
        lambda: within(KeyError("bad")),
        lambda: within(TypeError("loc: expected one, got\x1bnone")),
        lambda: within(ValueError("")),
    ],
    "adapters": [
        lambda: adapters.adapt(lambda x: x, modules=[3]),
        lambda: adapters.adapt(lambda x: x, modules=3),
        lambda: adapters.adapt(3),
        lambda: adapters.adapt(lambda x: x, 3),
        lambda: adapters.adapt(lambda x: x).prior,
        lambda: adapters.adapt(lambda x: x, data_shape=(0,)),
        lambda: adapters.adapt(lambda x: x, latent_shape=()),
        lambda: adapters.adapt(lambda x: x, data_shape=(2, 2)).data(X),
        lambda: VAE.data(X, least=7, name="own"),
        lambda: NAMED.data(X),
        lambda: NAMED.data(X, {"class": X}),
        lambda: adapters.adapt(lambda x: (x, x + 1), prior=NORMAL).encode(X),
        lambda: adapters.adapt(lambda x: (x / 0, x + 1)).encode(X),
        lambda: adapters.adapt(lambda x: (x, 0 * x)).encode(X),
        lambda: NAMED.log_likelihood(Z[None], X),
        lambda: adapters.adapt_decoder(VAE, None).encode(X),
        lambda: VAE.sample(0),
        lambda: VAE.sample(2, generator=1),
        lambda: VAE.sample(2, latent=StandardNormal(3)),
        lambda: adapters.adapt_vae(3),
        lambda: adapters.adapt_vae(SimpleNamespace(encoder=1, prior=1)),
        lambda: adapters.adapt_encoder(adapters.adapt_encoder(NET, "var"), "log_var"),
        lambda: adapters.adapt_encoder(NET, "sigma"),
    ],
    "parts": [
        lambda: parts.log_density(SimpleNamespace(log_prob=lambda z: z), Z),
        lambda: parts.log_density(SimpleNamespace(log_prob=lambda z: 3), Z, "latent"),
        lambda: parts.log_density(SimpleNamespace(log_prob=fails), Z),
        lambda: parts.adapt_prior(NORMAL, 0),
        lambda: parts.adapt_prior(NORMAL, 3, "latent"),
        lambda: parts.adapt_prior(3),
        lambda: parts.adapt_prior(Normal),
        lambda: parts.adapt_prior(Normal(torch.zeros(2), 1.0)),
        lambda: parts.adapt_prior(nn.Linear(1, 1)),
        lambda: parts.adapt_prior(Categorical(torch.ones(2))),
        lambda: parts.adapt_prior(SimpleNamespace(log_prob=len, sample=lambda shape: torch.zeros(3))),
        lambda: parts.adapt_prior(NORMAL).log_prob(X),
        lambda: parts.adapt_prior(NORMAL).sample(3),
        lambda: parts.adapt_prior_of(NET, networks.BernoulliDecoder(1, 3), NORMAL),
        lambda: parts.adapt_prior_of(NET, networks.BernoulliDecoder(2, 4), NORMAL),
        lambda: parts.adapt_prior_of(NET, networks.BernoulliDecoder(2, 3), SimpleNamespace(encoder=3)),
        lambda: parts.Encoder(lambda x: (x, x + 1), latent_shape=(2,))(X),
        lambda: parts.Encoder(lambda x: (x[:1], x[:1] + 1))(X),
        lambda: parts.Encoder(lambda x: (x / len(x), x)).check(X),
        lambda: parts.Decoder(lambda z: Normal(z.mean() + z, 1.0)).check(torch.arange(6.0)[:, None], X[:, :1]),
        lambda: parts.Decoder(fails)(Z),
        lambda: parts.Decoder(lambda z, label: z, latent_shape=(3,))(Z, {"label": Z}),
        lambda: parts.Decoder(fails)(torch.zeros(6, 3), {"": X}),
    ],
    "outputs": [
        lambda: outputs.GreyBernoulli(torch.tensor(0.5)).log_prob(torch.tensor(2.0)),
        lambda: outputs.GreyBernoulli(torch.full((2, 1), 0.5)).log_prob_of_all(-torch.ones(2, 1)),
        lambda: read({"mu": Z, "logvar": Z}, spread="var"),
        lambda: read(Normal(Z, Z + 1, validate_args=False), spread="log_var"),
        lambda: read((Z.long(), Z)),
        lambda: read(PAIR, 3),
        lambda: read((Z[0], Z[0] + 1), 2),
        lambda: read((Z, Z[:, :1] + 1)),
        lambda: read((Z, Z - 1)),
        lambda: outputs.check_spread("variance"),
        lambda: read(MultivariateNormal(Z, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))),
        lambda: read(Z),
        lambda: read((Z, Z, Z)),
        lambda: read([Z, None]),
        lambda: read((Z, 1.0)),
        lambda: read({"mu": Z, "what": Z, "a": 1, "b": 1, "c": 1, "d": 1}),
        lambda: read(Poisson(Z + 1)),
        lambda: outputs.check_likelihood("normal"),
        lambda: outputs.read_likelihood(Z),
        lambda: outputs.read_likelihood(Z, lambda z: z),
        lambda: outputs.read_likelihood(PAIR, fails),
        lambda: outputs.read_likelihood(Z, "gaussian"),
        lambda: outputs.read_likelihood((Z,), "gaussian"),
        lambda: outputs.read_likelihood((Z, 1.0), "gaussian"),
        lambda: outputs.read_likelihood(PAIR, "bernoulli"),
        lambda: outputs.read_likelihood("x", "categorical"),
        lambda: outputs.read_likelihood(NAN, "bernoulli_logits"),
        lambda: outputs.read_likelihood((Z, Z), "gaussian"),
        lambda: outputs.read_likelihood((Z, torch.ones(3)), "gaussian"),
        lambda: outputs.read_likelihood(Z - 1, "bernoulli"),
        lambda: outputs.read_likelihood(Z + 2, "categorical"),
        lambda: decoded(shape=(5,)),
        lambda: decoded().log_prob(torch.zeros(3, 3)),
        lambda: decoded().log_prob(torch.zeros(4, 2)),
        lambda: decoded(SimpleNamespace(log_prob=lambda x: x[0])).log_prob(X[:4]),
        lambda: decoded(SimpleNamespace(log_prob=lambda x: 3)).log_prob(X[:4]),
        lambda: decoded(SimpleNamespace(log_prob=fails)).log_prob(X[:4]),
        lambda: decoded(SimpleNamespace()).mean,
        lambda: decoded(Independent(StudentT(torch.ones(4, 2)), 1)).variance,
    ],
    "evaluation": [
        lambda: evaluation.call("decoder", fails, X),
        lambda: evaluation.call("decoder", fails, X, {"": X}),
        lambda: evaluation.check_condition(3, 1, fails),
        lambda: evaluation.check_condition({"label": [1]}, 1, fails),
        lambda: evaluation.check_condition({3: X}, 1, fails),
        lambda: evaluation.check_condition(X, 6, lambda x: x),
        lambda: evaluation.check_condition({"label": X}, 6, lambda x: x),
        lambda: evaluation.check_condition(np.array(["a"]), 6, fails),
        lambda: evaluation.check_condition(X, 5, fails),
        lambda: evaluation.check_condition({"label": X[0, 0]}, None, lambda x, label: x),
        lambda: evaluation.check_order("x", DataLoader(X, shuffle=True), X),
        lambda: evaluation.as_data("x", [[1.0]]),
        lambda: evaluation.as_data("x", np.array([["a"]])),
        lambda: evaluation.as_data("x", np.ma.masked_array([[1.0]], [[True]])),
        lambda: evaluation.as_data("x", X.to_sparse()),
        lambda: evaluation.as_data("x", X.to(torch.complex64)),
        lambda: evaluation.as_data("x", X[0]),
        lambda: evaluation.as_data("x", X[:0]),
        lambda: evaluation.as_data("x", X / 0),
        lambda: [*evaluation.batches(X, 0)],
        lambda: [*evaluation.batches("x", 1)],
        lambda: [*evaluation.batches({"x": X}, 1, name="own")],
        lambda: [*evaluation.batches([], 1)],
        lambda: [*evaluation.batches([X], 1, {"": X[:5]})],
        lambda: [*evaluation.batches([X[:3]], 1, {"label": X})],
        lambda: [*evaluation.batches([()], 1)],
        lambda: [*evaluation.batches(DataLoader(X, shuffle=True), 1, {"": X})],
        lambda: evaluation.whole("x", [X, X[:, :2]]),
        lambda: evaluation.check_repeatable("encoder", X, X + 0.25),
        lambda: NET(X.double()),
    ],
    "networks": [
        lambda: networks.GaussianEncoder(0, 2),
        lambda: networks.GaussianEncoder(3, 0),
        lambda: networks.GaussianEncoder(3, 2, (0,)),
        lambda: networks.GaussianEncoder(3, 2, gated=1),
        lambda: networks.GaussianEncoder(3, 2, generator=1),
        lambda: networks.GaussianEncoder(3, 2, log_scale_range=3),
        lambda: networks.GaussianEncoder(3, 2, log_scale_range=(1,)),
        lambda: networks.GaussianEncoder(3, 2, log_scale_range=("a", 1)),
        lambda: networks.GaussianEncoder(3, 2, log_scale_range=(1, 1)),
        lambda: NET(X[:, :2]),
        lambda: networks.BernoulliDecoder(2, 3, ())(X),
        lambda: networks.GaussianDecoder(2, 3, ())(X),
        lambda: networks.GaussianDecoder(2, 3, scale="own"),
        lambda: networks.GaussianDecoder(2, 3, scale=0.0),
        lambda: networks.GaussianDecoder(2, 3, min_scale=-1),
        lambda: networks.GaussianDecoder(2, 3, scale=1.0, min_scale=0.5),
        lambda: networks.GaussianDecoder(2, 3, (), scale=1e-30)(Z),
    ],
    "population": [
        lambda: population.bracket_mismatch(3, StandardNormal(1)),
        lambda: population.bracket_mismatch(Q[torch.arange(9)], StandardNormal(1)),
        lambda: population.bracket_mismatch(Q, StandardNormal(2)),
        lambda: population.bracket_mismatch(Q, SimpleNamespace(latent_dim=1, log_prob=lambda z: z, sample=fails)),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), densities=3),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), densities=[StandardNormal(2)]),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), densities=[Q], num_components=(0,)),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), num_components=(), confidence=1),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), num_components=(), confidence=0),
        lambda: population.bracket_mismatch(Q, StandardNormal(1), num_samples=3),
        lambda: population.bracket_information(Q, generator=3),
    ],
    "certificates, memorisation": [
        lambda: certificates.mutual_information_bounds(3),
        lambda: certificates.gaussian_cap(3),
        lambda: certificates.mismatch_bound("1", 1),
        lambda: certificates.mismatch_bound(-1.0, 1),
        lambda: certificates.mismatch_bound(1.0, 0),
        lambda: certificates.mmd_squared(3, 1.0),
        lambda: certificates.mmd_squared(Q, 0.0),
        lambda: memorisation.memorisation(3),
        lambda: memorisation.memorisation(Q, 3),
        lambda: memorisation.memorisation(Q, DiagGaussianMixture(Z, Z + 1)),
        lambda: memorisation.memorisation(Q, num_samples=1),
        lambda: memorisation.memorisation(Q, generator=1),
        lambda: memorisation.memorisation(Q[:1]),
    ],
    "diagnosis": [
        lambda: diagnosis.diagnose(Q, num_data=1),
        lambda: diagnosis.diagnose(Q, generator=1),
        lambda: diagnosis.diagnose(Q, X),
        lambda: diagnosis.diagnose(Q, condition=X),
        lambda: diagnosis.diagnose(Q, held_out_condition=X),
        lambda: diagnosis.diagnose(Q, held_out=3),
        lambda: diagnosis.diagnose(Q, held_out={"loc": Z, "scale": Z + 1}),
        lambda: diagnosis.diagnose({"loc": Z}),
        lambda: diagnosis.diagnose({"loc": Z, "scale": Z}),
        lambda: diagnosis.diagnose(PAIR),
        lambda: diagnosis.diagnose(SimpleNamespace(encoder=3)),
        lambda: diagnosis.diagnose(VAE),
        lambda: diagnosis.diagnose(VAE, X, prior=NORMAL),
        lambda: diagnosis.diagnose(VAE, X, held_out=X / 0),
        lambda: diagnosis.diagnose(VAE, X, held_out=3),
        lambda: diagnosis.diagnose(Q, prior=NORMAL),
    ],
    "plots": [
        lambda: plots.ellipses(None, X, X),
        lambda: plots.ellipses(None, Z, Z),
        lambda: plots.ellipses(None, Z, Z[:3] + 1),
        lambda: plots.ellipses(None, Z, Z + 1, labels=[0, 1, 2, 10]),
        lambda: plots.density(None, len, limit=0),
        lambda: plots.density(None, len, num_points=1),
        lambda: plots.density(None, lambda z: z, num_points=2),
        lambda: plots.image_strip(X, shape=3),
        lambda: plots.image_strip(X, shape=(3,)),
        lambda: plots.image_strip(X),
        lambda: plots.image_strip(X, shape=(1, 3), captions=["a"]),
        lambda: plots.image_strip(X, shape=(1, 3), num_columns=0),
        lambda: plots.curves(None, Z, {}),
        lambda: plots.curves(None, Z[:, 0], 3),
        lambda: plots.curves(None, Z[:, 0], {}),
        lambda: plots.curves(None, Z[:, 0], {"a": Z}),
        lambda: plots.intervals(None, ["a"], {"x": (Z,)}),
        lambda: plots.intervals(None, ["a"], {"x": (Z,), "y": (Z,)}),
        lambda: plots.intervals(None, ["a"], {"x": (Z, Z)}),
        lambda: plots.intervals(SimpleNamespace(), ["a"], {"x": (Z[0, :1], Z)}),
    ],
}


@pytest.mark.parametrize("module", CALLS)
def test_every_error_says_what_is_stored(module):
    told = []
    for number, call in enumerate(CALLS[module]):
        with pytest.raises((TypeError, ValueError)) as error:
            print(number, call())
        own = re.sub(r"(, got (RuntimeError|TypeError): ).*", r"\1…", str(error.value))  # what torch says may change
        told.append(f"{type(error.value).__name__}: {own}")
    check_text(f"errors of {module}.txt".replace(" ", "_").replace(",", ""), "\n".join(told) + "\n")
