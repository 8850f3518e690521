"""How fast is log q_agg? This package against its peers, in one process, round by round; `make bench` runs it.

`--device cuda` measures on a graphics card instead, and the card's peak.

Every method computes the log-density of the same points under the same mixtures; each peer at its fastest of the
settings that were tried and whose values agree with a direct sum. The largest mixture of a kind is measured also with
one scale for all components, for which scikit-learn has trees. A peer that fails is named and left out. A round runs
all methods once, in turn, so that a busy machine slows all of them. Medians over the rounds go to a table and to
book/results/, with what they were measured on: scale-avx512.json on a processor with AVX-512, scale-avx2.json on one
with AVX2 alone, scale-card.json on a graphics card.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "experiments"))

import torch
from harness import ROOT, provenance
from torch import Tensor

from vaebook import DiagGaussianMixture, clusters, kernels
from vaebook.aggregate import aggregated_posterior
from vaebook.data import digits, fashion_mnist
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import StandardNormal
from vaebook.storage import write_atomically
from vaebook.tables import table
from vaebook.training import fit

DIMS, SIZES, POINTS, ROUNDS, SEED = (2, 10, 40), (1_000, 10_000, 60_000), 2_000, 5, 0
CHUNKS = (20, 200, 1_000)
"""Points at once that are tried for each peer that would else hold all pairs."""
FEW = 20
"""Points of the first call of a method."""
SHORT, PAUSE = 0.1, 0.05
"""Seconds below which a call is repeated, and seconds between methods: some libraries' threads spin for a while."""
LIBRARIES = ("torch", "scikit-learn", "pykeops", "numpyro", "jax", "pomegranate", "numpy")
PEERS = ("MixtureSameFamily", "scikit-learn", "KeOps", "NumPyro", "pomegranate")
TREES = {"KernelDensity": 1e-8, "KernelDensity, rtol 0": 0.0}
"""Peers for equal scales, with the relative error that they are allowed; the first is scikit-learn's default."""
EQUAL = ", equal scales"
AGREES = 1e-3
"""Nats by which values may differ from a direct sum; what is measured in float32 differs by up to 1e-4."""
NO_DENSITY = ("floor: GEMM and exp", "choice of clusters alone")
"""Methods that are measured for comparison and compute no log-density."""
KINDS = ("random", "digits", "Fashion-MNIST")
CARD = {"KINDS": ("random",), "SIZES": (10_000, 60_000, 1_000_000), "POINTS": 20_000, "CHUNKS": (20, 200, 1_000, 5_000)}
"""What is other on a graphics card, where clusters are not used, so that codes are like any mixture."""
Method = Callable[[Tensor], Any]


def mixtures(kind: str, whole: DiagGaussianMixture) -> Iterator[tuple[str, DiagGaussianMixture]]:
    """Yield what is measured of a kind: the first components of the largest mixture, then all with one scale."""
    sizes = [num for num in SIZES if num <= whole.num_components and kind != "digits"]
    for num in sizes or [whole.num_components]:
        yield kind, DiagGaussianMixture(whole.loc[:num].clone(), whole.scale[:num].clone())
    if sizes and whole.loc.device.type == "cpu":
        loc, scale = whole.loc[: sizes[-1]].clone(), whole.scale[: sizes[-1]]
        yield kind + EQUAL, DiagGaussianMixture(loc, torch.full_like(loc, float(scale.log().mean().exp())))


def mixture(kind: str, dim: int, device: str = "cpu") -> DiagGaussianMixture:
    """Build the largest mixture: random, or the codes of a VAE that was trained for some epochs."""
    generator = torch.Generator().manual_seed(SEED)
    if kind == "random":
        loc = torch.randn(SIZES[-1], dim, generator=generator, dtype=torch.float64)
        scale = (0.3 * torch.randn(loc.shape, generator=generator).double() - 1).exp()
        return DiagGaussianMixture(loc.to(device), scale.to(device))
    if kind == "digits":
        x, hidden, training = digits().train, (64,), {"num_epochs": 200, "batch_size": 64}
    else:
        data = fashion_mnist()
        x, hidden, training = torch.cat([data.train, data.validation]), (300, 300), {"num_epochs": 6, "batch_size": 256}
    vae = VAE(GaussianEncoder(x.shape[1], dim, hidden), BernoulliDecoder(dim, x.shape[1], hidden), StandardNormal(dim))
    fit(vae, x, generator=generator, progress=False, **training)
    return aggregated_posterior(vae.encoder, x).double()


def peers(q: DiagGaussianMixture) -> dict[str, list[tuple[dict[str, Any], Method]]]:
    """List the methods, each with its settings to try."""
    n, dim = q.loc.shape
    found = {
        "vaebook": [({"dtype": "float64"}, q.log_prob)],
        "vaebook, with score": [({"dtype": "float64"}, q.log_prob_and_score)],
        "attention to all": [({"dtype": "float64"}, _attention(q, torch.float64))],
        "attention to all, float32": [({"dtype": "float32"}, _attention(q, torch.float32))],
        "floor: GEMM and exp": [({"dtype": "float64"}, _floor(q))],
        "MixtureSameFamily": [
            ({"dtype": str(dtype)[6:], "chunk": chunk}, _chunked(_same_family(q, dtype), chunk))
            for dtype in (torch.float32, torch.float64)
            for chunk in CHUNKS
            if chunk * n * dim <= (2**29 if q.loc.device.type == "cpu" else 2**31)
        ],
    }
    makers = {"KeOps": _keops, "NumPyro": _numpyro}
    if q.loc.device.type == "cpu":
        found["torch's fused attention"] = [({"dtype": "float64"}, _fused(q))]
        makers["scikit-learn"] = _scikit
        if bool((q.scale == q.scale[0, 0]).all()):
            makers |= {name: partial(_trees, rtol=rtol) for name, rtol in TREES.items()}
        elif n <= SIZES[1]:  # it calls Python once for each component: a call with more takes most of a minute
            makers["pomegranate"] = _pomegranate
    if clusters.worth(n, POINTS, q.loc.device):
        found["choice of clusters alone"] = [({"dtype": "float32"}, _choice(q))]
    for name, make in makers.items():
        with left_out(name):
            found[name] = make(q)
    return found


@contextmanager
def left_out(name: str) -> Iterator[None]:
    """Name a method that fails, and go on without it; ours must not."""
    try:
        yield
    except Exception as error:
        if name not in (*PEERS, *TREES):
            raise
        told = next(iter(str(error).strip().splitlines()), "")
        print(f"{name} is left out: {type(error).__name__}: {told}", flush=True)


def _choice(q: DiagGaussianMixture) -> Method:
    """Not a log-density: the first half of ours, which finds out what can matter to each point."""
    held = clusters.prepare(q.loc, q.scale, q.log_weight, clusters.cluster(q.loc))

    def method(z: Tensor) -> Tensor:
        points, error = kernels.queries(z, held.components), kernels.rounding_bound(z, held.components, torch.float32)
        given = kernels.LOG2_E * points, held, error, torch.float32
        return (clusters.cheapest(*given) or clusters.needed)(*given)[1]

    return method


def _attention(q: DiagGaussianMixture, dtype: torch.dtype) -> Method:
    held = kernels.prepare(q.loc, q.scale, q.log_weight)
    rounded_off = kernels.Components(*(x.to(dtype) for x in held))._replace(middle=torch.zeros((), dtype=dtype))
    return lambda z: kernels.attend((z - held.middle).to(dtype), rounded_off)[:, 0]


def _fused(q: DiagGaussianMixture) -> Method:
    held = kernels.prepare(q.loc, q.scale, q.log_weight)
    keys = held.keys[None, None]
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def method(z: Tensor) -> Tensor:
        queries = kernels.queries(z, held)[None, None]
        return attention(queries, keys, keys, 0.0, False, attn_mask=None, scale=1.0)[1][0, 0]

    return method


def _floor(q: DiagGaussianMixture) -> Method:
    """Not a log-density: the matrix product and the exponentials that any dense method needs, in the same blocks."""
    held, larger = kernels.prepare(q.loc, q.scale, q.log_weight), 1 if q.loc.device.type == "cpu" else kernels.ON_CARD
    buffer = q.loc.new_empty(larger**2 * kernels.ROWS * kernels.COLUMNS)

    def method(z: Tensor) -> None:
        for rows in (kernels.LOG2_E * kernels.queries(z, held)).split(larger * kernels.ROWS):
            for part in held.keys.split(larger * kernels.COLUMNS):
                block = buffer[: len(rows) * len(part)].view(len(rows), len(part))
                # In base 2, and clamped, as ours: far below 0, where most real pairs are, exp2 alone would be slower.
                torch.mm(rows, part.mT, out=block).clamp_(min=-1000.0).exp2_()

    return method


def _chunked(method: Method, chunk: int) -> Method:
    return lambda z: torch.cat([torch.as_tensor(method(part)) for part in z.split(chunk)])


def _same_family(q: DiagGaussianMixture, dtype: torch.dtype) -> Method:
    parts = torch.distributions.Independent(torch.distributions.Normal(q.loc.to(dtype), q.scale.to(dtype)), 1)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=q.log_weight.to(dtype)), parts, validate_args=False
    )
    return lambda z: mixture.log_prob(z.to(dtype))


def _scikit(q: DiagGaussianMixture) -> list[tuple[dict[str, Any], Method]]:
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(q.num_components, covariance_type="diag")
    model.weights_, model.means_ = q.log_weight.exp().numpy(), q.loc.numpy()
    model.covariances_, model.precisions_cholesky_ = q.scale.square().numpy(), q.scale.reciprocal().numpy()
    return [({"dtype": "float64", "chunk": c}, _chunked(lambda z: model.score_samples(z.numpy()), c)) for c in CHUNKS]


def _trees(q: DiagGaussianMixture, rtol: float) -> list[tuple[dict[str, Any], Method]]:
    from sklearn.neighbors import KernelDensity

    def make(algorithm: str, leaf_size: int) -> Method:
        model = KernelDensity(bandwidth=float(q.scale[0, 0]), algorithm=algorithm, rtol=rtol, leaf_size=leaf_size)
        model.fit(q.loc.numpy())
        return lambda z: model.score_samples(z.numpy())

    leaves = (40, 400, q.num_components)  # the default, a larger one, and all components in one: no tree
    forms = [(algorithm, size) for algorithm in ("kd_tree", "ball_tree") for size in leaves]
    return [({"dtype": "float64", "algorithm": a, "leaf_size": size}, make(a, size)) for a, size in forms]


def _pomegranate(q: DiagGaussianMixture) -> list[tuple[dict[str, Any], Method]]:
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    loc, variance, weight = q.loc.float(), q.scale.square().float(), q.log_weight.exp().float()  # its log-terms are so
    parts = [Normal(*both, covariance_type="diag", check_data=False) for both in zip(loc, variance, strict=True)]
    model = GeneralMixtureModel(parts, priors=weight / weight.sum(), check_data=False)

    def method(z: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_probability(z.float())

    return [({"dtype": "float32", "chunk": CHUNKS[-1]}, _chunked(method, CHUNKS[-1]))]


def _keops(q: DiagGaussianMixture) -> list[tuple[dict[str, Any], Method]]:
    from pykeops.torch import LazyTensor

    inverse = q.scale.reciprocal()
    constant = q.log_weight + (inverse.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    held = kernels.prepare(q.loc, q.scale, q.log_weight)

    def squares(z: Tensor) -> Tensor:
        distance = ((LazyTensor(z[:, None]) - LazyTensor(q.loc[None])) * LazyTensor(inverse[None])).square().sum(-1)
        return (LazyTensor(constant[None, :, None]) - 0.5 * distance).logsumexp(1)[:, 0]

    def product(z: Tensor) -> Tensor:
        scores = (LazyTensor(kernels.queries(z, held)[:, None]) * LazyTensor(held.keys[None])).sum(-1)
        return scores.logsumexp(1)[:, 0]

    return [({"dtype": "float64", "form": "squares"}, squares), ({"dtype": "float64", "form": "product"}, product)]


def _numpyro(q: DiagGaussianMixture) -> list[tuple[dict[str, Any], Method]]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np
    import numpyro.distributions as dist

    def make(dtype: Any) -> Method:
        loc, scale, logits = (jnp.asarray(t.cpu().numpy(), dtype) for t in (q.loc, q.scale, q.log_weight))
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
        compiled = jax.jit(mixture.log_prob)
        return lambda z: np.array(compiled(jnp.asarray(z.cpu().numpy(), dtype)))

    return [
        ({"dtype": name, "chunk": chunk}, _chunked(make(dtype), chunk))
        for name, dtype in (("float32", jnp.float32), ("float64", jnp.float64))
        for chunk in CHUNKS[:2]
    ]


def timed(method: Method, z: Tensor, calls: int = 1) -> float:
    """Seconds of one call, on average."""
    wait = torch.cuda.synchronize if z.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        method(z)
    wait()
    return (time.perf_counter() - start) / calls


def choose(
    name: str, options: list[tuple[dict[str, Any], Method]], z: Tensor, exact: Tensor
) -> tuple[dict[str, Any], Method, float | None]:
    """Pick the fastest setting of those whose values agree; also the largest error of all that were tried."""
    found, errors = [], []
    for settings, method in options:
        size = settings.get("chunk", FEW)
        if size <= len(z):
            values = method(z[:size])  # may compile
            errors.append(0.0 if name in NO_DENSITY else error(values, exact))
            if errors[-1] <= AGREES:
                each = timed(method, z[:size]) / size
                found.append((each if each * len(z) > 1 else timed(method, z) / len(z), len(found), settings, method))
    if not found:
        raise ValueError(
            f"expected values within {AGREES} nats of a direct sum, got {min(errors, default=math.nan):.3g}"
        )
    return *min(found)[2:], None if name in NO_DENSITY else max(errors)


def error(values: Any, exact: Tensor) -> float:
    """Largest difference between values, or the first of a pair, and what is exact for the first points."""
    value = torch.as_tensor(values[0] if isinstance(values, tuple) else values)[: len(exact)].double().cpu()
    return float((value - exact[: len(value)].cpu()).abs().max())


def oracle(q: DiagGaussianMixture, z: Tensor) -> Tensor:
    """Sum directly in float64, nothing shared with the methods."""
    terms = [torch.distributions.Normal(q.loc, q.scale).log_prob(point).sum(-1) + q.log_weight for point in z]
    return torch.stack(terms).logsumexp(1)


def measure(kind: str, q: DiagGaussianMixture, rounds: int) -> list[dict[str, Any]]:
    """Time all methods on a mixture."""
    num, dim = q.loc.shape
    z = q.to("cpu").sample((POINTS,), generator=torch.Generator().manual_seed(SEED + 1)).to(q.loc.device)
    first = timed(q.log_prob, z)  # finds the clusters; later calls keep them
    few, exact = z[: CHUNKS[-1] if num <= SIZES[1] else CHUNKS[1]], oracle(q, z[:50])
    chosen, worst, least, pilot = {}, {}, {}, {}
    for name, options in peers(q).items():
        with left_out(name):
            settings, method, worst[name] = choose(name, options, few, exact)
            least[name] = max(100, settings.get("chunk", 0))
            pilot[name] = timed(method, z[: least[name]]) / least[name]
            chosen[name] = settings, method
    # Slow methods get fewer points, so that no round takes minutes: all are linear in the number of points, from a
    # chunk on.
    points = {name: int(min(POINTS, max(least[name], 1.5 / pilot[name]))) for name in chosen}
    calls = {name: max(1, int(SHORT / (pilot[name] * points[name]))) for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    order = random.Random(SEED)  # so that no method always follows the same one, whose threads may still spin
    for _ in range(rounds):
        for name in order.sample(sorted(chosen), len(chosen)):
            method = chosen[name][1]
            time.sleep(PAUSE)
            with left_out(name):
                times[name].append(timed(method, z[: points[name]], calls[name]) / points[name])
                continue
            del chosen[name]
    rows = []
    for name, (settings, method) in chosen.items():
        if name not in NO_DENSITY:
            off = rounded(error(method(z) if name.startswith("vaebook") else method(z[:50]), exact))  # ours as timed
        rates = [rounded(num / seconds) for seconds in times[name]]
        rows.append(
            {"kind": kind, "dim": dim, "num": num, "method": name, "settings": settings, "points": points[name]}
            | {"pairs_per_second": statistics.median(rates), "rounds": rates}
            | ({"error": None} if name in NO_DENSITY else {"error": off, "worst_error": rounded(worst[name])})
            | ({"first_call_seconds": rounded(first)} if name == "vaebook" else {})
        )
    return rows


def peak() -> dict[str, dict[str, float]]:
    """Rates of the card: operations a second of a large matrix product, and exponentials a second of a block."""
    found = {}
    for dtype in (torch.float64, torch.float32):  # torch's default, without TF32
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        block = -20 * torch.rand(kernels.ON_CARD**2 * kernels.ROWS * kernels.COLUMNS, device="cuda", dtype=dtype)
        product = statistics.median(timed(lambda x, b=b: x @ b, a, 3) for _ in range(ROUNDS))
        exponential = statistics.median(timed(torch.exp2, block, 10) for _ in range(ROUNDS))
        rates = {"product": rounded(2 * 8192**3 / product), "exp": rounded(len(block) / exponential)}
        found[str(dtype)[6:]] = rates
    return found


def shares(rows: list[dict[str, Any]], peak: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Shares of the card's peak: the time that products and exponentials alone would take, of the time that was."""
    found = []
    for row in rows:
        if row["method"] in ("vaebook", "attention to all, float32"):
            rates = peak[row["settings"]["dtype"]]
            least = 4 * (row["dim"] + 1) / rates["product"] + 1 / rates["exp"]
            share = {"share": rounded(row["pairs_per_second"] * least)}
            found.append({key: row[key] for key in ("dim", "num", "method")} | share)
    return found


def rounded(value: float) -> float:
    """Keep four significant digits."""
    return float(f"{value:.4g}")


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Growth of time with N: the exponent between the smallest and the largest mixture of a kind and dimension."""
    found = []
    for kind, dim, method in sorted({(r["kind"], r["dim"], r["method"]) for r in rows}):
        mine = [r for r in rows if (r["kind"], r["dim"], r["method"]) == (kind, dim, method)]
        first, last = (pick(mine, key=lambda r: r["num"]) for pick in (min, max))
        if first["num"] < last["num"]:
            growth = math.log(last["num"] / first["num"])
            exponent = 1 - math.log(last["pairs_per_second"] / first["pairs_per_second"]) / growth
            found.append({"kind": kind, "dim": dim, "method": method, "exponent": rounded(exponent)})
    return found


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as others this package is, in each setting."""
    found = []
    for kind, dim, num in dict.fromkeys((r["kind"], r["dim"], r["num"]) for r in rows):
        mine = {r["method"]: r for r in rows if (r["kind"], r["dim"], r["num"]) == (kind, dim, num)}
        rate = {method: row["pairs_per_second"] for method, row in mine.items()}
        fastest = max((name for name in (*PEERS, *TREES) if name in rate), key=rate.__getitem__, default=None)
        others = {"floor": "floor: GEMM and exp", "same_family": "MixtureSameFamily", "fastest_peer": fastest}
        others["trees"] = max((name for name in TREES if name in rate), key=rate.__getitem__, default=None)
        times = {f"over_{key}": rounded(rate["vaebook"] / rate[name]) for key, name in others.items() if name in rate}
        if "over_trees" in times:
            times["trees_error"] = max(mine[name]["worst_error"] for name in TREES if name in rate)
        found.append({"kind": kind, "dim": dim, "num": num, "fastest_peer": fastest} | times)
    return found


def as_json(result: dict[str, Any]) -> str:
    """Write one line a row: a change of one number is a change of one line."""
    parts = [f'"provenance": {json.dumps(result["provenance"], indent=1)}']
    for key in list(result)[1:]:
        parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in result[key]) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def arguments(doc: str, rounds: int, file: str | None = None) -> argparse.ArgumentParser:
    """Take what all of these scripts take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", type=Path, default=file and ROOT / "book" / "results" / file)
    return parser


def store(path: Path, text: str) -> None:
    """Write results, and say where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    print(f"\nwritten: {path}")


def main() -> None:
    """Measure, show and store."""
    parser = arguments(__doc__, ROUNDS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    card = options.device != "cpu"
    if card:
        globals().update(CARD)
    processor = "card" if card else torch.backends.cpu.get_cpu_capability().lower()
    output = options.output or ROOT / "book" / "results" / f"scale-{processor}.json"
    rows: list[dict[str, Any]] = []
    if "Fashion-MNIST" in KINDS:  # if it is not to be had, it is better to hear so before anything is measured
        fashion_mnist()
    for kind in KINDS:
        for dim in DIMS:
            whole = mixture(kind, dim, options.device)
            for label, q in mixtures(kind, whole):
                found = measure(label, q, options.rounds)
                rows += found
                print(f"\n{label}, D = {dim}, N = {q.num_components}", flush=True)
                columns = {"method": [r["method"] for r in found]}
                columns["pairs a second"] = [r["pairs_per_second"] for r in found]
                columns["error, nats"] = ["" if r["error"] is None else r["error"] for r in found]
                columns["settings"] = [" ".join(map(str, r["settings"].values())) for r in found]
                print(table(columns), flush=True)
    result = {
        "provenance": provenance(LIBRARIES) | {"seed": SEED, "points": POINTS},
        "rows": rows,
        "ratios": ratios(rows),
        "exponents": exponents(rows),
    }
    if card:
        result["provenance"] |= {"card": torch.cuda.get_device_name(), "peak": peak()}
        result["shares"] = shares(rows, result["provenance"]["peak"])
    store(output, as_json(result))


if __name__ == "__main__":
    main()
