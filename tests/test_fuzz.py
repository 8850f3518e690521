"""Ten thousand calls with arguments of wrong kinds, shapes, values and sizes: one clear error, or a value without nan.

An argument or two of a good call are replaced by something from a pool of strange things. What may come of it is a
value, or a TypeError or ValueError that names an argument; integrals may also say that max_nodes do not do.
"""

from __future__ import annotations

import random
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tests.pace import pace
from vaebook import (
    bounds,
    certificates,
    estimators,
    inference,
    information,
    likelihood,
    modes,
    npmle,
    population,
    selection,
)
from vaebook import training as fitting
from vaebook.adapters import adapt, adapt_decoder, adapt_encoder, adapt_prior, adapt_vae
from vaebook.aggregate import aggregated_posterior, merge_duplicates
from vaebook.data import binarize
from vaebook.distributed import ShardedMixture
from vaebook.holes import hole_mass
from vaebook.likelihood import compare_priors
from vaebook.memorisation import memorisation
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, fit_gmm

SECONDS = 3.0
"""Of the processor, for one call."""

B, P, D, K = 4, 3, 1, 5


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Z, LOC, SCALE = rand(B, P), rand(B, D, seed=1), rand(K, D, seed=2), rand(K, D, seed=3).exp()
MANY = rand(12, P, seed=4)
INDEX = torch.arange(B)
SEEDED = torch.Generator().manual_seed(0)
Q, WIDE = DiagGaussianMixture(LOC, SCALE), DiagGaussianMixture(rand(60, D), rand(60, D, seed=8).exp())
MODEL = PPCA(torch.zeros(P).double(), torch.eye(P, D, dtype=torch.float64), noise_variance=0.5)
HOUSE = VAE(GaussianEncoder(P, D, (4,)), GaussianDecoder(D, P, (4,)), StandardNormal(D)).double()
ENCODER, DECODER, PRIOR = HOUSE.encoder, HOUSE.decoder, HOUSE.prior
GMM = GaussianMixture(torch.ones(2).double() / 2, LOC[:2], torch.ones(2, D, D).double())
LOG_LIK = rand(B, K, seed=5)
LOG_Q, WEIGHTS = rand(D, B, B, seed=6), estimators.minibatch_weights("weighted", B, 20).double()

CHEAP = {
    "DiagGaussianMixture": (
        DiagGaussianMixture, {"loc": LOC, "scale": SCALE, "log_weight": torch.zeros(K).log_softmax(0)}
    ),
    "log_prob": (Q.log_prob, {"z": Z}),
    "log_prob_and_score": (Q.log_prob_and_score, {"z": Z}),
    "log_prob_leave_one_out": (Q.log_prob_leave_one_out, {"z": Z, "index": INDEX}),
    "log_prob_marginals": (Q.log_prob_marginals, {"z": Z}),
    "log_prob_given": (Q.log_prob_given, {"z": Z, "index": INDEX}),
    "leave_one_out": (lambda index, z: Q.leave_one_out(index).log_prob(z), {"index": INDEX, "z": Z}),
    "from_arrays": (DiagGaussianMixture.from_arrays, {"loc": LOC, "scale": SCALE, "log_weight": None}),
    "ShardedMixture": (ShardedMixture, {"loc": LOC, "scale": SCALE, "log_weight": None, "part_size": 2}),
    "responsibilities": (Q.responsibilities, {"z": Z}),
    "posterior_mean": (Q.posterior_mean, {"z": Z, "values": rand(K, 2)}),
    "sample": (Q.sample, {"sample_shape": (2,), "generator": SEEDED}),
    "sample_with_index": (Q.sample_with_index, {"sample_shape": (2,), "generator": SEEDED}),
    "merge_duplicates": (merge_duplicates, {"q_agg": Q}),
    "aggregated_posterior": (
        aggregated_posterior,
        {"encoder": ENCODER, "data": X, "spread": "std", "condition": None, "batch_size": 2},
    ),
    "adapt": (
        adapt,
        {"encode": ENCODER, "decode": DECODER, "prior": PRIOR, "likelihood": None, "spread": "std",
         "data_shape": (P,), "latent_shape": (D,), "condition": None, "modules": ()},
    ),
    "adapt_prior": (adapt_prior, {"prior": PRIOR, "latent_dim": D}),
    "adapt_encoder": (adapt_encoder, {"encoder": ENCODER, "spread": "std"}),
    "adapt_decoder": (adapt_decoder, {"decoder": DECODER, "prior": PRIOR}),
    "adapt_vae": (adapt_vae, {"vae": HOUSE}),
    "estimate": (estimators.estimate, {"draws": rand(9)}),
    "minibatch_weights": (estimators.minibatch_weights, {"scheme": "weighted", "batch_size": 4, "num_data": 20}),
    "pairwise_log_prob": (estimators.pairwise_log_prob, {"z": Z, "loc": Z, "scale": Z.exp()}),
    "minibatch_information": (estimators.minibatch_information, {"log_q": LOG_Q, "weights": WEIGHTS}),
    "minibatch_decomposition": (
        estimators.minibatch_decomposition, {"log_q": LOG_Q, "log_prior": rand(D, B), "weights": WEIGHTS}
    ),
    "mutual_information_bounds": (certificates.mutual_information_bounds, {"q_agg": Q}),
    "mismatch_bound": (certificates.mismatch_bound, {"rate": 3.0, "num_data": 9}),
    "mmd_squared": (certificates.mmd_squared, {"q_agg": Q, "bandwidth": 1.0}),
    "decompose_kl": (information.decompose_kl, {"q_agg": Q, "prior": PRIOR, "num_samples": 20, "generator": SEEDED}),
    "mutual_information": (information.mutual_information, {"q_agg": Q, "num_samples": 20, "generator": SEEDED}),
    "kl_per_dimension": (information.kl_per_dimension, {"q_agg": Q, "prior": PRIOR}),
    "active_units": (information.active_units, {"q_agg": Q, "threshold": 0.01}),
    "memorisation": (memorisation, {"q_agg": Q, "held_out": Q, "num_samples": 20, "generator": SEEDED}),
    "em": (npmle.em, {"log_likelihood": LOG_LIK, "num_steps": 3, "log_weight": None}),
    "log_gradient": (npmle.log_gradient, {"log_likelihood": LOG_LIK, "log_prob": LOG_LIK.logsumexp(1)}),
    "StandardNormal": (StandardNormal, {"latent_dim": 2}),
    "StandardNormal.log_prob": (PRIOR.log_prob, {"z": Z}),
    "StandardNormal.kl": (PRIOR.kl, {"loc": Z, "scale": Z.exp()}),
    "StandardNormal.sample": (PRIOR.sample, {"sample_shape": (2,), "generator": SEEDED}),
    "GaussianMixture": (
        GaussianMixture, {"weight": torch.ones(2) / 2, "loc": torch.zeros(2, 1), "scale_tril": torch.ones(2, 1, 1)}
    ),
    "GaussianMixture.log_prob": (GMM.log_prob, {"z": Z}),
    "GaussianMixture.sample": (GMM.sample, {"sample_shape": (2,), "generator": SEEDED}),
    "VampPrior": (VampPrior, {"encoder": ENCODER, "pseudo_inputs": X}),
    "ExemplarPrior": (ExemplarPrior, {"encoder": ENCODER, "exemplars": X, "scale": 1.0}),
    "GaussianEncoder": (GaussianEncoder, {"data_dim": P, "latent_dim": D, "hidden": (4,), "generator": SEEDED}),
    "BernoulliDecoder": (BernoulliDecoder, {"latent_dim": D, "data_dim": P, "hidden": (4,), "generator": SEEDED}),
    "GaussianDecoder": (
        GaussianDecoder,
        {"latent_dim": D, "data_dim": P, "hidden": (4,), "scale": "shared", "min_scale": 0.0, "generator": SEEDED},
    ),
    "VAE": (VAE, {"encoder": ENCODER, "decoder": DECODER, "prior": PRIOR}),
    "VAE.sample": (HOUSE.sample, {"num_samples": 2, "latent": PRIOR, "generator": SEEDED}),
    "binarize": (binarize, {"x": X.sigmoid(), "generator": SEEDED}),
    "PPCA": (PPCA, {"mean": torch.zeros(P), "weight": torch.eye(P, D), "noise_variance": 0.5}),
    "PPCA.fit": (PPCA.fit, {"x": MANY, "latent_dim": 1}),
    "PPCA.log_prob": (MODEL.log_prob, {"x": X}),
    "PPCA.log_prob_under": (MODEL.log_prob_under, {"q_z": Q, "x": X, "leave_out_index": INDEX}),
    "PPCA.aggregated_posterior": (MODEL.aggregated_posterior, {"x": X}),
    "elbo": (bounds.elbo, {"vae": HOUSE, "x": X, "num_samples": 2, "beta": 1.0, "index": None, "generator": SEEDED}),
    "iwae_bound": (bounds.iwae_bound, {"vae": HOUSE, "x": X, "num_samples": 2, "generator": SEEDED}),
    "prior_sample_log_prob": (
        bounds.prior_sample_log_prob,
        {"decoder": DECODER, "prior": PRIOR, "x": X, "num_samples": 3, "shared": True, "generator": SEEDED},
    ),
}  # fmt: skip
SLOW = {
    "find_modes": (modes.find_modes, {"q": Q}),
    "mutual_information_quadrature": (
        information.mutual_information_quadrature, {"q_agg": Q, "tolerance": 1e-4, "max_nodes": 5000}
    ),
    "fit_gmm": (fit_gmm, {"data": Q, "num_components": 1, "num_samples": 30, "seed": 0}),
    "quadrature_log_prob": (
        bounds.quadrature_log_prob,
        {"decoder": DECODER, "prior": PRIOR, "x": X, "limit": 8.0, "tolerance": 1e-4, "max_nodes": 3000},
    ),
    "posterior_moments": (
        inference.posterior_moments,
        {"decoder": DECODER, "prior": PRIOR, "x": X, "limit": 8.0, "tolerance": 1e-3, "max_nodes": 3000},
    ),
    "fit": (
        fitting.fit,
        {"vae": HOUSE, "x": X, "num_epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "beta": 1.0,
         "validation": X, "patience": 1, "generator": SEEDED, "progress": False},
    ),
    "fit_npmle": (
        npmle.fit_npmle,
        {"log_likelihood": lambda z: -((MANY[:, :1] - z.mT) ** 2), "candidates": LOC, "tolerance": 0.1,
         "separation": 1e-3},
    ),
    "bracket_mismatch": (
        population.bracket_mismatch,
        {"q_agg": WIDE, "prior": PRIOR, "densities": (PRIOR,), "num_components": (1, 2), "num_samples": 60,
         "confidence": 0.95, "generator": SEEDED},
    ),
    "bracket_information": (
        population.bracket_information,
        {"q_agg": WIDE, "densities": (), "num_components": (), "num_samples": 60, "generator": SEEDED},
    ),
    "hole_mass": (hole_mass, {"q_agg": WIDE, "prior": PRIOR, "num_samples": 200, "generator": SEEDED}),
    "compare_priors": (
        compare_priors,
        {"vae": HOUSE, "x": X, "priors": {"own": PRIOR, "q": Q}, "num_samples": 10, "leave_out": {"q": INDEX},
         "drawn_from": ["own"], "condition": None, "generator": SEEDED},
    ),
    "importance_log_prob": (
        likelihood.importance_log_prob, {"vae": HOUSE, "x": X, "num_samples": 10, "prior": None, "generator": SEEDED}
    ),
    "choose_prior": (
        selection.choose_prior,
        {"vae": HOUSE, "x": MANY, "held_out": None, "num_components": (1,), "num_data": 12,
         "generator": SEEDED},
    ),
    "inference_gap": (
        inference.inference_gap,
        {"vae": HOUSE, "x": X[:1], "limit": 8.0, "tolerance": 1e-2, "num_nodes": 8, "max_steps": 3},
    ),
}  # fmt: skip
TARGETS = CHEAP | SLOW
"""A good call of each function."""


def strange_tensors():
    x = rand(B, P, seed=7)
    with torch.inference_mode():
        inside = x * 1
    yield from (x, x.float(), x.half(), x.bfloat16(), x.long(), x > 0, x * 1j, x.to(torch.float8_e4m3fn))
    yield from (x.to_sparse(), x.to("meta"), inside, x.clone().requires_grad_(), x.mT, x[:1].expand(9, P))
    yield from (x[:, :1], x[0], x[0, 0], x[:0], x[:, :0], x[None], x[..., None, None], torch.empty(0))
    for value in (0.0, -1.0, torch.nan, torch.inf, -torch.inf, 1e160, 1e308, 1e-160, 5e-324):
        yield torch.full((B, P), value, dtype=torch.float64)
        yield torch.full((B, D), value, dtype=torch.float64)
        yield torch.cat([torch.zeros(B - 1, D).double(), torch.full((1, D), value, dtype=torch.float64)])
    yield from (INDEX, INDEX - 2, INDEX + 100, torch.zeros(B).long(), torch.zeros(K).log_softmax(0), SCALE)


def strange_things():
    yield from (None, True, False, "x", "", b"x", 0, 1, -1, 2, 3.5, -0.5, 1e-300, 1e308, 10**30, 10**400, -(10**400))
    yield from (
        float("nan"),
        float("inf"),
        1j,
        [],
        [1.0],
        (),
        (1,),
        (-1,),
        (1.5,),
        (10**30,),
        {},
        {"a": 1},
        set(),
        object(),
    )
    yield from (range(3), np.ones((B, P)), np.ones(3, dtype=object), np.float64("nan"), np.int64(2), int, torch.float32)
    yield from (lambda: 0, lambda x: x, lambda x: (x, x), lambda *a, **k: torch.zeros(2), torch.device("cpu"), SEEDED)
    yield from (nn.Linear(P, D), nn.Linear(D, P), nn.ReLU(), Normal(0.0, 1.0), Independent(Normal(rand(3), 1.0), 1))
    yield from (Q, WIDE, GMM, PRIOR, StandardNormal(7), ENCODER, DECODER, HOUSE, MODEL, type("Empty", (), {})())


POOL = [*strange_tensors(), *strange_things()]


class Hang(BaseException):
    """A call that does not end."""


@contextmanager
def limited():
    def stop(*_):
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS * pace())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def tensors_in(value, depth=3):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, DiagGaussianMixture):
        yield from (value.loc, value.scale, value.log_weight)
    elif isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif depth and isinstance(value, Mapping):
        yield from (t for part in value.values() for t in tensors_in(part, depth - 1))
    elif depth and isinstance(value, Iterable) and not isinstance(value, str | bytes | range):
        yield from (t for part in value for t in tensors_in(part, depth - 1))
    elif isinstance(value, float):
        yield torch.tensor(value)


def has_nan(value):
    return any(t.is_floating_point() and not t.is_meta and not t.is_sparse and bool(t.isnan().any())
               for t in tensors_in(value))  # fmt: skip


def state(arguments):
    """What must stay as it is: versions of tensors, modes of modules."""
    modules = [v for v in arguments.values() if isinstance(v, nn.Module)]
    tensors = [t for v in arguments.values() for t in tensors_in(v) if isinstance(v, Tensor | nn.Module)]
    versions = [t._version for t in tensors if not t.is_inference()]
    return versions, [part.training for module in modules for part in module.modules()]


MESSAGE = re.compile(r"^[A-Za-z_][\w .'\"\[\]()]{0,50}: expected .*, got ", re.DOTALL)
INTEGRALS = ("mutual_information_quadrature", "quadrature_log_prob", "posterior_moments", "inference_gap")


def problem(name, arguments):
    """Return what is wrong with what a call did, None if nothing is."""
    function, before, start = TARGETS[name][0], state(arguments), time.process_time()
    try:
        with limited():
            result = function(**arguments)
    except (TypeError, ValueError) as error:
        if not MESSAGE.match(str(error)):
            return f"{type(error).__name__} without a name: {str(error)[:160]}"
    except RuntimeError as error:
        if name not in INTEGRALS or not str(error).startswith("max_nodes: expected"):
            return f"{type(error).__name__}: {str(error)[:160]}"
    except Hang:
        return "hangs"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}"
    else:
        if has_nan(result):
            return "nan"
    if time.process_time() - start > SECONDS * pace():
        return f"took {time.process_time() - start:.2f} s of the processor"
    if name != "fit" and state(arguments) != before:
        return "changed an argument"
    return None


def describe(value):
    if isinstance(value, Tensor):
        first = "" if value.is_meta or value.is_sparse or not value.numel() else f", {value.flatten()[0].item()} …"
        return f"tensor({tuple(value.shape)}, {value.dtype}{first})"
    return repr(value)[:60] if not callable(value) else getattr(value, "__name__", type(value).__name__)


def calls(num):
    """Generate calls, each a name, its arguments, and what is strange about them; slow functions less often."""
    draw = random.Random(0)
    names = [*CHEAP] * 12 + [*SLOW]
    for number in range(num):
        name = names[number % len(names)]
        arguments = dict(TARGETS[name][1])
        strange = {
            key: draw.choice(POOL) for key in draw.sample([*arguments], min(len(arguments), draw.choice([1, 1, 2])))
        }
        yield name, arguments | strange, strange


HUGE = {
    "sample": ("sample_shape", (2**40,)),
    "sample_with_index": ("sample_shape", (2**20, 2**20)),
    "StandardNormal": ("latent_dim", 2**40),
    "StandardNormal.sample": ("sample_shape", (2**40,)),
    "GaussianMixture.sample": ("sample_shape", (2**40,)),
    "minibatch_weights": ("batch_size", 2**22),
    "decompose_kl": ("num_samples", 2**40),
    "mutual_information": ("num_samples", 2**62),
    "memorisation": ("num_samples", 2**40),
    "GaussianEncoder": ("data_dim", 2**40),
    "BernoulliDecoder": ("hidden", (2**22, 2**22)),
    "GaussianDecoder": ("hidden", (2**40,)),
    "VAE.sample": ("num_samples", 2**40),
    "fit_gmm": ("num_samples", 2**40),
    "bracket_mismatch": ("num_samples", 2**40),
    "bracket_information": ("num_samples", 2**62),
    "hole_mass": ("num_samples", 2**40),
}
"""Sizes that fit into no memory: torch's own error would not say which argument is meant."""


@pytest.mark.parametrize("name", HUGE)
def test_a_size_that_fits_into_no_memory_names_its_argument(name):
    key, value = HUGE[name]
    with pytest.raises(ValueError, match=rf"^{key}(\[0\])?: expected a size that fits into memory, got "):
        TARGETS[name][0](**TARGETS[name][1] | {key: value})


def number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS = [np.uint8(255), np.int64(2), np.float32(0.5), Fraction(1, 3), Fraction(10**400, 3), 2**64]
"""Numbers that are no Python int or float of usual size: adding to the first, numpy begins again at 0."""
SLOWEST = ("choose_prior", "inference_gap", "compare_priors", "bracket_mismatch")
NUMBERS = [
    (name, key)
    for name, (_, arguments) in TARGETS.items()
    for key, value in arguments.items()
    if number(value) and name not in SLOWEST and key not in ("learning_rate", "separation")
]  # with such a learning rate, and such a separation, nothing can be fitted


@pytest.mark.parametrize(("name", "key"), NUMBERS)
@pytest.mark.filterwarnings("ignore")
def test_a_number_of_another_kind_is_taken_or_named(name, key):
    for value in KINDS:
        assert problem(name, TARGETS[name][1] | {key: value}) is None, value


class Odd:
    """A prior whose draws are not what they should be."""

    latent_dim = D

    def __init__(self, draw):
        self.draw = draw

    def log_prob(self, z):
        return -z.square().sum(-1)

    def sample(self, shape=(), *, generator=None):
        return self.draw(shape)


DRAWN = {
    "nan": (lambda shape: torch.full((*shape, D), torch.nan), "'s draws: expected finite values"),
    "of another shape": (lambda shape: torch.zeros(3, 9), "'s draws: expected shape"),
    "no tensor": (lambda shape: None, "'s draws: expected a torch.Tensor"),
    "an error": (lambda shape: [][0], ": expected draws from sample"),
    "without values": (lambda shape: torch.zeros(*shape, D, device="meta"), "'s draws: expected finite values"),
}
DRAWING = {
    "VAE.sample": "latent",
    "prior_sample_log_prob": "prior",
    "hole_mass": "prior",
    "importance_log_prob": "prior",
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("kind", DRAWN)
def test_draws_that_are_none_name_the_prior_that_they_came_from(kind, name):
    key, (draw, told) = DRAWING[name], DRAWN[kind]
    with pytest.raises((TypeError, ValueError), match=f"^(own|prior|latent){re.escape(told)}"):
        TARGETS[name][0](**TARGETS[name][1] | {key: Odd(draw)})


@pytest.mark.parametrize(
    "name", ["adapt_prior", "decompose_kl", "kl_per_dimension", "hole_mass", "importance_log_prob"]
)
def test_a_prior_without_values_is_named(name):
    with pytest.raises(TypeError, match=r"prior: expected one that holds values, got one on the meta device|^own: "):
        TARGETS[name][0](**TARGETS[name][1] | {"prior": StandardNormal(D).to("meta")})


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_calls_are_good(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = TARGETS[name][0](**TARGETS[name][1])
    assert not has_nan(result)


def check_calls(num):
    torch.manual_seed(0)
    failures, count = {}, Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, arguments, strange in calls(num):
            wrong = problem(name, arguments)
            if wrong is not None:
                count[name] += 1
                told = ", ".join(f"{key}={describe(value)}" for key, value in strange.items())
                failures.setdefault(name, {}).setdefault(wrong.split(":")[0], f"{name}({told}): {wrong}")
    shown = [f"{count[name]} of {line}" for name in failures for line in failures[name].values()]
    assert not failures, f"{sum(count.values())} calls\n" + "\n".join(shown)


def test_some_strange_calls():
    check_calls(1_000)


@pytest.mark.slow
def test_ten_thousand_strange_calls():
    check_calls(10_000)
