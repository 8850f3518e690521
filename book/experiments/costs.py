"""Measure what every public function that takes a size costs: seconds of the processor, and the peak of memory.

Each call runs in a process of its own, on one thread, after its inputs were made and after a small call that loads
what libraries load once. Sizes are N and D, then four times N, then four times D: the exponents between them say how
the cost grows. ``python book/experiments/costs.py NAME N D …`` measures some calls and prints them as JSON.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pkgutil
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from harness import Experiment, rounded
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vaebook
from vaebook import bounds, certificates, estimators, inference, information, plots, weights
from vaebook.adapters import adapt_vae
from vaebook.aggregate import aggregated_posterior, as_codes, merge_duplicates
from vaebook.checkpoint import load_density, save_density
from vaebook.code_priors import ExemplarPrior, VampPrior
from vaebook.data import binarize
from vaebook.diagnosis import diagnose
from vaebook.distributed import ShardedMixture
from vaebook.gmm import GaussianMixture, fit_gmm
from vaebook.holes import hole_mass
from vaebook.likelihood import compare_priors, importance_log_prob
from vaebook.memorisation import memorisation
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE
from vaebook.modes import find_modes
from vaebook.networks import BernoulliDecoder, GaussianEncoder
from vaebook.npmle import fit_npmle
from vaebook.population import bracket_information, bracket_mismatch
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal
from vaebook.selection import choose_prior
from vaebook.testing import assert_density_matches_sampler
from vaebook.training import fit

CONFIG = {"seed": 0, "factor": 4, "points": 1_000, "pixels": 64, "small": 64, "quick": 0.5, "repeats": 2}
"""factor: between two sizes; points: at which densities are asked; pixels: of a datum; small: the largest N of the
first call; quick: calls of fewer seconds are measured so many times, and the least of each counts."""
NOISE = {"cpu_seconds": 0.01, "megabytes": 8.0}
"""Below these at the smaller size there is no exponent."""
GROWTH = {"cpu_seconds": "time", "megabytes": "memory"}
M_MMAP_THRESHOLD = -3
"""The C library's name of this setting; without it the library moves the threshold as it goes."""


class Case(NamedTuple):
    """A call: what N counts, N and D at the smaller size, what makes the arguments, what is called with
    them, and which of N and D may grow.
    """

    counts: str
    num: int
    dim: int
    make: Callable[[int, int], tuple]
    call: Callable[..., Any]
    grows: str = "ND"


def seed() -> torch.Generator:
    """Return a fresh generator."""
    return torch.Generator().manual_seed(CONFIG["seed"])


def codes(num: int, dim: int) -> tuple[Tensor, Tensor]:
    """Draw means and scales as of a trained encoder, float32, (N, D)."""
    loc = torch.randn(num, dim, generator=seed())
    return 0.8 * loc, 0.6 * (0.1 * loc.flip(0)).exp()


def mixture(num: int, dim: int) -> tuple[DiagGaussianMixture]:
    """Make their mixture."""
    return (DiagGaussianMixture(*codes(num, dim)),)


def asked(num: int, dim: int) -> tuple[DiagGaussianMixture, Tensor, Tensor]:
    """Make a mixture, and points of it with the components that they came from."""
    (q,) = mixture(num, dim)
    return (q, *q.sample_with_index((CONFIG["points"],), generator=seed()))


def shards(num: int, dim: int) -> tuple[ShardedMixture, Tensor, Tensor]:
    """Make the same of arrays, in one process, which reads a part at a time."""
    q, z, index = asked(num, dim)
    return ShardedMixture(q.loc.numpy(), q.scale.numpy(), part_size=2**14), z, index


def points(num: int, dim: int) -> tuple[Tensor]:
    """Draw points, (N, D)."""
    return (torch.randn(num, dim, generator=seed()),)


def model(num: int, dim: int) -> tuple[VAE, Tensor]:
    """Make an untrained VAE with D latents, and N data."""
    pixels = CONFIG["pixels"]
    encoder = GaussianEncoder(pixels, dim, (32,), generator=seed())
    vae = VAE(encoder, BernoulliDecoder(dim, pixels, (32,), generator=seed()), StandardNormal(dim))
    return vae, torch.rand(num, pixels, generator=seed()).round()


def gaussian(num: int, dim: int) -> tuple[PPCA, Tensor]:
    """Make probabilistic PCA with D latents, and N data, in float64."""
    weight = torch.linspace(2, 1, dim).double() * torch.eye(CONFIG["pixels"], dim).double()
    x = torch.randn(num, CONFIG["pixels"], generator=seed(), dtype=torch.float64)
    return PPCA(0 * x[0], weight, 1.0), x


def codes_prior(kind: Any) -> Callable[[int, int], tuple]:
    """Make a prior of N codes, and points with the components to leave out."""

    def make(num: int, dim: int) -> tuple[Any, Tensor, Tensor]:
        vae, x = model(num, dim)
        return kind(vae.encoder, x), *points(CONFIG["points"], dim), torch.arange(CONFIG["points"]) % num

    return make


def full(num: int, dim: int) -> tuple[GaussianMixture, Tensor]:
    """Make a mixture of N full covariances, and points."""
    tril = torch.eye(dim).expand(num, dim, dim) + 0.1 * torch.ones(dim, dim).tril(-1)
    return GaussianMixture(torch.full((num,), 1 / num), *points(num, dim), tril), *points(CONFIG["points"], dim)


def table(num: int, dim: int) -> tuple[Tensor]:
    """Log-likelihoods of N data under one hundred atoms in D dimensions, (N, 100)."""
    return (-0.5 * torch.cdist(*points(num, dim), *points(100, dim)).square(),)


def batch(num: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-densities of a batch of N, (D, N, N), those of the prior, (D, N), and weights."""
    z = torch.randn(num, dim, generator=seed())
    weight = torch.full((num, num), 1 / num, dtype=torch.float64)
    return estimators.pairwise_log_prob(z, *codes(num, dim)), -0.5 * z.mT.square(), weight


def saved(num: int, dim: int) -> tuple[Path]:
    """Save a mixture in the working directory."""
    path = Path(f"{num}-{dim}.safetensors")
    save_density(path, *mixture(num, dim))
    return (path,)


def axes(num: int, dim: int) -> tuple[Any, Tensor, Tensor]:
    """Make axes, and components in the plane."""
    return matplotlib.pyplot.subplots()[1], *codes(num, 2)


def npmle(x: Tensor) -> Any:
    """Fit to data of unit variance, from a hundred candidates among them."""
    return fit_npmle(lambda z: -0.5 * torch.cdist(x.double(), z).square(), x[:100].double(), tolerance=0.01)


def gradient(q: DiagGaussianMixture, z: Tensor, _: Tensor) -> Tensor:
    """Differentiate the log-density in the mixture's own tensors."""
    loc, scale = q.loc.clone().requires_grad_(), q.scale.clone().requires_grad_()
    return torch.autograd.grad(DiagGaussianMixture(loc, scale).log_prob(z).sum(), [loc, scale])


C, X = "components", "data"
PAIRS = {
    "certificates.mutual_information_bounds",
    "certificates.mmd_squared",
    "information.mutual_information_quadrature",
    "modes.find_modes",
    "ppca.PPCA.log_prob_under",
    "estimators.minibatch_weights",
    "estimators.pairwise_log_prob",
    "estimators.minibatch_log_prob",
    "estimators.minibatch_information",
    "estimators.minibatch_decomposition",
}
"""What takes, returns or goes through all pairs of N with N."""
M, S, G, R, P = (
    "mixture.DiagGaussianMixture",
    "distributed.ShardedMixture",
    "gmm.GaussianMixture",
    "code_priors",
    "ppca",
)
SHORT = {"num_samples": 1_000}


def priors_of_codes(kind: Any) -> dict[str, Case]:
    """List the cases that both priors of codes have."""
    name, made = f"{R}.{kind.__name__}", codes_prior(kind)
    return {
        name: Case(C, 50_000, 8, model, lambda vae, x: kind(vae.encoder, x)),
        f"{name}.mixture": Case(C, 50_000, 8, made, lambda p, z, i: p.mixture()),
        f"{name}.components": Case(C, 50_000, 8, made, lambda p, z, i: p.components()),
        f"{name}.sample": Case(C, 50_000, 8, made, lambda p, z, i: p.sample((9,))),
        f"{name}.log_prob": Case(C, 1_000, 8, made, lambda p, z, i: p.log_prob(z)),
        f"{name}.leave_one_out": Case(C, 1_000, 8, made, lambda p, z, i: p.leave_one_out(i).log_prob(z)),
    }


CASES = {
    M: Case(C, 200_000, 8, codes, DiagGaussianMixture),
    f"{M}.from_arrays": Case(C, 200_000, 8, codes, lambda m, s: DiagGaussianMixture.from_arrays(m, log_var=s.log())),
    f"{M}.double": Case(C, 200_000, 8, mixture, lambda q: q.double()),
    f"{M}.to": Case(C, 200_000, 8, mixture, lambda q: q.to(torch.float64)),
    f"{M}.components": Case(C, 200_000, 8, mixture, lambda q: q.components()),
    f"{M}.mean": Case(C, 200_000, 8, mixture, lambda q: q.mean),
    f"{M}.variance": Case(C, 200_000, 8, mixture, lambda q: q.variance),
    f"{M}.stddev": Case(C, 200_000, 8, mixture, lambda q: q.stddev),
    f"{M}.covariance": Case(C, 200_000, 8, mixture, lambda q: q.covariance),
    f"{M}.average": Case(C, 200_000, 8, mixture, lambda q: q.average(lambda w, m, s: m * s)),
    f"{M}.sample": Case("draws", 200_000, 8, mixture, lambda q: q.sample((q.num_components,), generator=seed())),
    f"{M}.sample_with_index": Case(C, 200_000, 8, mixture, lambda q: q.sample_with_index((1_000,), generator=seed())),
    f"{M}.log_prob": Case(C, 10_000, 8, asked, lambda q, z, i: q.log_prob(z)),
    f"{M}.log_prob, gradient": Case(C, 5_000, 8, asked, gradient),
    f"{M}.log_prob_and_score": Case(C, 10_000, 8, asked, lambda q, z, i: q.log_prob_and_score(z)),
    f"{M}.log_prob_given": Case(C, 200_000, 8, asked, lambda q, z, i: q.log_prob_given(z, i)),
    f"{M}.log_prob_leave_one_out": Case(C, 10_000, 8, asked, lambda q, z, i: q.log_prob_leave_one_out(z, i)),
    f"{M}.log_prob_marginals": Case(C, 5_000, 4, asked, lambda q, z, i: q.log_prob_marginals(z)),
    f"{M}.responsibilities": Case(C, 5_000, 8, asked, lambda q, z, i: q.responsibilities(z)),
    f"{M}.posterior_mean": Case(C, 5_000, 8, asked, lambda q, z, i: q.posterior_mean(z, q.loc)),
    "mixture.LeaveOneOut.log_prob": Case(C, 10_000, 8, asked, lambda q, z, i: q.leave_one_out(i).log_prob(z)),
    S: Case(C, 200_000, 8, codes, lambda m, s: ShardedMixture(m.numpy(), s.numpy(), part_size=2**14)),
    f"{S}.average": Case(C, 200_000, 8, shards, lambda q, z, i: q.average(lambda w, m, s: m * s)),
    f"{S}.mean": Case(C, 200_000, 8, shards, lambda q, z, i: q.mean),
    f"{S}.covariance": Case(C, 200_000, 8, shards, lambda q, z, i: q.covariance),
    f"{S}.sample": Case(C, 200_000, 8, shards, lambda q, z, i: q.sample((1_000,), generator=seed())),
    f"{S}.sample_with_index": Case(C, 200_000, 8, shards, lambda q, z, i: q.sample_with_index((9,), generator=seed())),
    f"{S}.log_prob": Case(C, 10_000, 8, shards, lambda q, z, i: q.log_prob(z)),
    f"{S}.log_prob_and_score": Case(C, 10_000, 8, shards, lambda q, z, i: q.log_prob_and_score(z)),
    f"{S}.log_prob_given": Case(C, 200_000, 8, shards, lambda q, z, i: q.log_prob_given(z, i)),
    f"{S}.log_prob_leave_one_out": Case(C, 10_000, 8, shards, lambda q, z, i: q.log_prob_leave_one_out(z, i)),
    f"{S}.log_prob_marginals": Case(C, 5_000, 4, shards, lambda q, z, i: q.log_prob_marginals(z)),
    "aggregate.aggregated_posterior": Case(X, 50_000, 8, model, lambda vae, x: aggregated_posterior(vae.encoder, x)),
    "aggregate.merge_duplicates": Case(
        C, 20_000, 8, codes, lambda m, s: merge_duplicates(DiagGaussianMixture(m.repeat(2, 1), s.repeat(2, 1)))
    ),
    "aggregate.as_codes": Case(C, 200_000, 8, codes, lambda m, s: as_codes("codes", {"loc": m, "scale": s})),
    "adapters.AdaptedVAE.encode": Case(X, 50_000, 8, model, lambda vae, x: adapt_vae(vae).encode(x)),
    "adapters.AdaptedVAE.log_likelihood": Case(
        X, 10_000, 8, model, lambda v, x: adapt_vae(v).log_likelihood(points(len(x), v.prior.latent_dim)[0][None], x)
    ),
    "adapters.AdaptedVAE.sample": Case(
        "draws", 50_000, 8, model, lambda vae, x: adapt_vae(vae).sample(len(x), generator=seed())
    ),
    "models.VAE.forward": Case(X, 20_000, 8, model, lambda vae, x: vae(x)),
    "models.VAE.sample": Case("draws", 50_000, 8, model, lambda vae, x: vae.sample(len(x), generator=seed())),
    "bounds.elbo": Case(X, 20_000, 8, model, lambda vae, x: bounds.elbo(vae, x, generator=seed())),
    "bounds.iwae_bound": Case(X, 1_000, 8, model, lambda vae, x: bounds.iwae_bound(vae, x, 50, generator=seed())),
    "bounds.prior_sample_log_prob": Case(
        X, 500, 8, model, lambda v, x: bounds.prior_sample_log_prob(v.decoder, v.prior, x, 1_000, generator=seed())
    ),
    "bounds.quadrature_log_prob": Case(
        X, 50, 1, gaussian, lambda v, x: bounds.quadrature_log_prob(v.decoder, v.prior, x, limit=12.0), "N"
    ),
    "inference.elbo_quadrature": Case(
        X,
        500,
        2,
        gaussian,
        lambda v, x: inference.elbo_quadrature(v.decoder, v.prior, x, 0 * x[:, :2], 0 * x[:, :2] + 0.5),
        "N",
    ),
    "inference.posterior_moments": Case(
        X, 50, 1, gaussian, lambda v, x: inference.posterior_moments(v.decoder, v.prior, x, limit=12.0), "N"
    ),
    "inference.inference_gap": Case(X, 50, 1, gaussian, lambda v, x: inference.inference_gap(v, x, limit=12.0), "N"),
    "likelihood.importance_log_prob": Case(
        X, 50, 4, gaussian, lambda v, x: importance_log_prob(v, x, 500, generator=seed())
    ),
    "likelihood.compare_priors": Case(
        X,
        50,
        4,
        gaussian,
        lambda v, x: compare_priors(v, x, {"own": None, "codes": v.aggregated_posterior(x)}, 500, generator=seed()),
    ),
    "selection.choose_prior": Case(
        X, 200, 4, gaussian, lambda v, x: choose_prior(v, x, num_components=(1, 3), num_data=50, generator=seed())
    ),
    "training.fit": Case(
        X, 5_000, 8, model, lambda v, x: fit(v, x, num_epochs=1, batch_size=100, generator=seed(), progress=False)
    ),
    "diagnosis.diagnose": Case(C, 1_000, 4, codes, lambda m, s: diagnose({"loc": m, "scale": s}, generator=seed())),
    "report.Diagnosis.to_html": Case(
        C,
        100,
        4,
        lambda n, d: (diagnose(dict(zip(("loc", "scale"), codes(n, d), strict=True))),),
        lambda found: found.to_html(),
        "N",
    ),
    "holes.hole_mass": Case(
        C, 2_000, 4, mixture, lambda q: hole_mass(q, StandardNormal(q.latent_dim), **SHORT, generator=seed())
    ),
    "memorisation.memorisation": Case(C, 10_000, 4, mixture, lambda q: memorisation(q, **SHORT, generator=seed())),
    "information.decompose_kl": Case(
        C,
        10_000,
        4,
        mixture,
        lambda q: information.decompose_kl(q, StandardNormal(q.latent_dim), **SHORT, marginals=True, generator=seed()),
    ),
    "information.kl_per_dimension": Case(C, 200_000, 8, mixture, information.kl_per_dimension),
    "information.active_units": Case(C, 200_000, 8, mixture, information.active_units),
    "information.mutual_information": Case(
        C, 10_000, 4, mixture, lambda q: information.mutual_information(q, **SHORT, generator=seed())
    ),
    "information.mutual_information_quadrature": Case(
        X, 50, 1, mixture, information.mutual_information_quadrature, "N"
    ),
    "population.bracket_mismatch": Case(
        C,
        2_000,
        4,
        mixture,
        lambda q: bracket_mismatch(q, StandardNormal(q.latent_dim), num_components=(1, 5), **SHORT, generator=seed()),
    ),
    "population.bracket_information": Case(
        C, 2_000, 4, mixture, lambda q: bracket_information(q, num_components=(1, 5), **SHORT, generator=seed())
    ),
    "certificates.mutual_information_bounds": Case(C, 1_000, 4, mixture, certificates.mutual_information_bounds),
    "certificates.gaussian_cap": Case(C, 200_000, 8, mixture, certificates.gaussian_cap),
    "certificates.mmd_squared": Case(C, 1_000, 4, mixture, lambda q: certificates.mmd_squared(q, 1.0)),
    "modes.find_modes": Case(C, 200, 2, mixture, find_modes),
    "estimators.estimate": Case("draws", 2_000_000, 1, lambda n, d: (*points(n, 1)[0].T,), estimators.estimate, "N"),
    "estimators.minibatch_weights": Case(
        X, 500, 1, lambda n, d: ("stratified", n, 10 * n), estimators.minibatch_weights, "N"
    ),
    "estimators.pairwise_log_prob": Case(
        X, 300, 8, lambda n, d: (*points(n, d), *codes(n, d)), estimators.pairwise_log_prob
    ),
    "estimators.minibatch_log_prob": Case(X, 300, 8, batch, lambda q, p, w: estimators.minibatch_log_prob(q, w)),
    "estimators.minibatch_information": Case(
        X, 300, 8, batch, lambda q, p, w: estimators.minibatch_information(q.sum(0), w)
    ),
    "estimators.minibatch_decomposition": Case(X, 300, 8, batch, estimators.minibatch_decomposition),
    **priors_of_codes(VampPrior),
    **priors_of_codes(ExemplarPrior),
    f"{R}.ExemplarPrior.log_prob_leave_one_out": Case(
        C, 1_000, 8, codes_prior(ExemplarPrior), lambda p, z, i: p.log_prob_leave_one_out(z, i)
    ),
    f"{G}.log_prob": Case(C, 100, 8, full, lambda p, z: p.log_prob(z)),
    f"{G}.sample": Case("draws", 100_000, 8, lambda n, d: (full(10, d)[0], n), lambda p, n: p.sample((n,))),
    "gmm.fit_gmm": Case("points", 5_000, 4, points, lambda z: fit_gmm(z, 5, covariance="diag")),
    "npmle.fit_npmle": Case("data", 500, 2, points, npmle, "N"),
    "weights.em": Case(X, 20_000, 2, table, lambda t: weights.em(t, 10), "N"),
    "weights.fit_weights": Case(X, 20_000, 2, table, lambda t: weights.fit_weights(t, tolerance=1e-4), "N"),
    "weights.log_gradient": Case(X, 20_000, 2, table, lambda t: weights.log_gradient(t, t.logsumexp(1)), "N"),
    "priors.StandardNormal.log_prob": Case(
        "points", 200_000, 8, points, lambda z: StandardNormal(len(z.T)).log_prob(z)
    ),
    "priors.StandardNormal.kl": Case("points", 200_000, 8, codes, lambda m, s: StandardNormal(len(m.T)).kl(m, s)),
    "priors.StandardNormal.sample": Case(
        "draws", 200_000, 8, lambda n, d: (n, d), lambda n, d: StandardNormal(d).sample((n,))
    ),
    f"{P}.PPCA.fit": Case(X, 20_000, 8, gaussian, lambda v, x: PPCA.fit(x, v.weight.shape[1])),
    f"{P}.PPCA.log_prob": Case(X, 20_000, 8, gaussian, lambda v, x: v.log_prob(x)),
    f"{P}.PPCA.posterior": Case(X, 20_000, 8, gaussian, lambda v, x: v.posterior(x)),
    f"{P}.PPCA.likelihood": Case(
        "points",
        20_000,
        8,
        lambda n, d: (gaussian(1, d)[0], points(n, d)[0].double()),
        lambda v, z: v.likelihood(z).mean,
    ),
    f"{P}.PPCA.aggregated_posterior": Case(X, 20_000, 8, gaussian, lambda v, x: v.aggregated_posterior(x)),
    f"{P}.PPCA.log_prob_under": Case(
        X, 1_000, 4, gaussian, lambda v, x: v.log_prob_under(v.aggregated_posterior(x), x)
    ),
    "checkpoint.save_density": Case(C, 200_000, 8, mixture, lambda q: save_density(Path("written.safetensors"), q)),
    "checkpoint.load_density": Case(C, 200_000, 8, saved, load_density),
    "data.binarize": Case(X, 50_000, 64, lambda n, d: (torch.rand(n, d, generator=seed()),), binarize),
    "testing.assert_density_matches_sampler": Case(
        C, 1_000, 4, mixture, lambda q: assert_density_matches_sampler(q, num_samples=1_000, generator=seed())
    ),
    "plots.ellipses": Case(C, 5_000, 2, axes, plots.ellipses, "N"),
    "plots.density": Case(
        C, 500, 2, lambda n, d: (*axes(1, 2)[:1], *mixture(n, 2)), lambda a, q: plots.density(a, q.log_prob), "N"
    ),
    "plots.curves": Case(
        "points",
        50_000,
        1,
        lambda n, d: (*axes(1, 2)[:1], torch.arange(float(n))),
        lambda a, x: plots.curves(a, x, {"a": x}),
        "N",
    ),
    "plots.intervals": Case(
        "names",
        100,
        1,
        lambda n, d: (*axes(1, 2)[:1], torch.arange(float(n))),
        lambda a, x: plots.intervals(a, [*map(str, x)], {"a": (x, x)}),
        "N",
    ),
    "plots.image_strip": Case("images", 20, 64, lambda n, d: (torch.rand(n, 64),), plots.image_strip, "N"),
}


def settings(case: Case) -> dict[str, tuple[int, int]]:
    """Return the sizes at which a call is measured: N and D, four times N, and four times D where D may grow."""
    num, dim, factor = case.num, case.dim, CONFIG["factor"]
    sizes = {"": (num, dim), "N": (factor * num, dim), "D": (num, factor * dim)}
    return {key: size for key, size in sizes.items() if key in case.grows}


def once(small: Callable[[], Any], call: Callable[[], Any]) -> dict[str, float]:
    """Run a call in a process of its own, after a small one: seconds of the processor, and megabytes on top of that."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            small()  # so that the code of libraries is there: of files, a new process has nothing in memory
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            kept = call()
            seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(written, json.dumps({"cpu_seconds": seconds, "megabytes": (peak - before) * 1024 / 1e6}).encode())
            del kept
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(written)
    with os.fdopen(read) as answer:
        text = answer.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a measured call failed")
    return json.loads(text)


def measure(name: str, num: int, dim: int) -> dict[str, float]:
    """Measure one call: the least of some repeats, if it is quick."""
    case = CASES[name]
    few, arguments = case.make(min(num // 8, CONFIG["small"]), dim), case.make(num, dim)
    calls = [partial(case.call, *given) for given in (few, arguments)]
    calls[0]()  # what libraries load once
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed is not to be used again unseen
    found = [once(*calls)]
    while found[0]["cpu_seconds"] < CONFIG["quick"] and len(found) < CONFIG["repeats"]:
        found.append(once(*calls))
    matplotlib.pyplot.close("all")
    return {key: min(each[key] for each in found) for key in found[0]}


def row(name: str) -> dict[str, Any]:
    """Measure a call at all of its sizes; an exponent is log(ratio of costs) / log(ratio of sizes)."""
    case = CASES[name]
    found = {key: measure(name, *size) for key, size in settings(case).items()}
    made = {"name": name, "counts": case.counts, "N": case.num, "D": case.dim}
    for kind, least in NOISE.items():
        small = found[""][kind]
        made |= {kind + (f"_{key}" if key else ""): value[kind] for key, value in found.items()}
        if small >= least:
            made |= {f"{GROWTH[kind]}_{key}": exponent(small, value[kind]) for key, value in found.items() if key}
    return rounded(made, 3)


def exponent(small: float, large: float) -> float:
    """Return a where the cost grows as the size to the power of a."""
    return math.log(large / small) / math.log(CONFIG["factor"])


@contextmanager
def prepared() -> Iterator[None]:
    """Import all that is ever imported, and work with one thread in a folder that goes away."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # arrays that are freed go at once, whatever came before
    matplotlib.use("agg")
    import_module("matplotlib.pyplot")
    for found in pkgutil.iter_modules(vaebook.__path__):
        if found.name != "__main__":
            import_module(f"vaebook.{found.name}")
    x = torch.ones(1, requires_grad=True)
    checkpoint(torch.exp, x, use_reentrant=False).backward()  # the first one loads a second's worth of torch
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield


def main(calls: list[str]) -> None:
    """Measure some calls; without any, all, resuming where an earlier run stopped, and write the results."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("costs: memory is measured on Linux only; the results stay as they are")
    with prepared():
        for name, num, dim in zip(*(iter(calls),) * 3, strict=True):
            print(json.dumps({"name": name} | measure(name, int(num), int(dim))), flush=True)
        if not calls:
            experiment = Experiment("costs", CONFIG)
            experiment.write({"rows": [experiment.row(name, lambda n=name: row(n)) for name in CASES]})


if __name__ == "__main__":
    main(sys.argv[1:] if len(sys.argv) > 3 else [])  # the harness leaves a name alone
