"""Fashion-MNIST at real scale: test log-likelihood under three priors, against published figures.

Two hidden layers of 300 units, 40 latents, Bernoulli pixels, stochastic binarisation; the priors are the standard
normal, a VampPrior of 500 pseudo-inputs and an Exemplar prior of all 50,000 training images. Each model is trained
for a fixed number of epochs, keeps the weights of the best validation ELBO, rounds them to float16 (what is
committed is what is scored) and is then scored by importance sampling.

Matrix products of training run in bfloat16, everything else and all scores in float32 and float64.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from harness import Experiment
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from vaebook import DiagGaussianMixture, data, training
from vaebook.bounds import elbo, iwae_bound
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior

CONFIG: dict[str, Any] = {
    "data": "Fashion-MNIST, 50,000 training, 10,000 validation, 10,000 test images",
    "hidden": [300, 300],
    "latent_dim": 40,
    "priors": ["normal", "vamp", "exemplar"],
    "num_pseudo_inputs": 500,
    "neighbours": 5,
    "refresh_every": 4,
    "seeds": [0],
    "epochs": {"normal": 300, "vamp": 300, "exemplar": 200},
    "warm_up": 20,
    "batch_size": 250,
    "learning_rate": 1e-3,
    "validate_every": 5,
    "num_samples": 5000,
    "test_images": {"normal": 10_000, "vamp": 10_000, "exemplar": 1000},
    "slice_images": 50,
    "doubling": [625, 1250, 2500, 5000, 10_000],
}
"""What is run. Learning rate: cosine to 0; warm_up: epochs in which the weight of the KL rises to 1."""
RESULTS = Path(__file__).resolve().parent.parent / "results"
CHUNK, PIECE = 50, 500
"""Images that share one stream of noise, and images that are scored between two savings."""


class NearestExemplars(ExemplarPrior):
    r"""An Exemplar prior that scores training data by near exemplars alone, a lower bound on its log-density.

    $\log\frac1{N-1}\sum_{n\in S\setminus i}\mathcal N(z\mid\mu(x_n), s^2I)$, S the nearest of all data of the batch

    Which exemplars are near is looked up in a table made from the means of some epochs ago.
    """

    neighbours: Tensor

    @torch.no_grad()
    def look_up(self, num_neighbours: int) -> None:
        """Make the table anew: for each exemplar the nearest others, by the distance of their means."""
        loc = torch.cat([self.encoder(part).base_dist.loc for part in self.exemplars.split(5000)])
        half_norm, found = 0.5 * loc.square().sum(1), []
        for rows in torch.arange(len(loc)).split(500):
            score = torch.addmm(-half_norm, loc[rows], loc.mT)
            score[torch.arange(len(rows)), rows] = -torch.inf
            found.append(score.topk(num_neighbours).indices)
        self.neighbours = torch.cat(found)

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        """Score z (1, B, D) by the neighbours of all data of the batch, each without itself."""
        near = torch.unique(self.neighbours[index[0]])
        loc, variance = self.encoder(self.exemplars[near]).base_dist.loc, (2 * self.log_scale).exp()
        square = z[0].square().sum(1)[:, None] - 2 * z[0] @ loc.mT + loc.square().sum(1)
        terms = (-0.5 * square / variance).masked_fill(near == index[0][:, None], -torch.inf)
        constant = 0.5 * self.latent_dim * (math.log(2 * math.pi) + 2 * self.log_scale)
        return (terms.logsumexp(1) - constant - math.log(len(self.exemplars) - 1))[None]


def build(prior: str, seed: int, x: Tensor) -> VAE:
    """Build an untrained model."""
    generator, dim, hidden = torch.Generator().manual_seed(seed), CONFIG["latent_dim"], CONFIG["hidden"]
    encoder = GaussianEncoder(x.shape[1], dim, hidden, generator=generator)
    decoder = BernoulliDecoder(dim, x.shape[1], hidden, generator=generator)
    if prior == "normal":
        return VAE(encoder, decoder, StandardNormal(dim))
    if prior == "vamp":
        chosen = torch.randperm(len(x), generator=generator)[: CONFIG["num_pseudo_inputs"]]
        return VAE(encoder, decoder, VampPrior(encoder, x[chosen]))
    return VAE(encoder, decoder, NearestExemplars(encoder, x))


def in_bfloat16(module: nn.Module) -> None:
    """Let a module compute in bfloat16 and return float32."""
    forward = module.forward

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(x).float()

    module.forward = call


def train(experiment: Experiment, prior: str, seed: int, split: data.Split) -> dict[str, Any]:
    """Train one model, from its last checkpoint if there is one; leave its best weights in the scratch folder."""
    vae, generator = build(prior, seed, split.train), torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(vae.parameters(), lr=CONFIG["learning_rate"], fused=True)
    state = State(experiment.folder / f"{prior}-{seed}.safetensors", vae, optimizer, generator)
    state.resume()
    for module in (vae.encoder.body, vae.decoder.body, vae.decoder.logits):
        in_bfloat16(module)
    validation = data.binarize(split.validation, torch.Generator().manual_seed(0))
    num_epochs = CONFIG["epochs"][prior]
    bar = tqdm(range(state.log["epoch"], num_epochs), f"{prior} {seed}", initial=state.log["epoch"], total=num_epochs)
    for epoch in bar:
        start = time.perf_counter()
        if prior == "exemplar" and (epoch % CONFIG["refresh_every"] == 0 or not hasattr(vae.prior, "neighbours")):
            vae.prior.look_up(CONFIG["neighbours"])
        loss = train_epoch(vae, optimizer, batches(split.train, generator), epoch / num_epochs, epoch, prior, generator)
        state.log["seconds"] += time.perf_counter() - start
        state.log["epoch"] = epoch + 1
        state.log["train"].append(round(loss, 3))
        if (epoch + 1) % CONFIG["validate_every"] == 0 or epoch + 1 == num_epochs:
            state.log["validation"].append([epoch + 1, round(validate(vae, validation), 3)])
            state.keep_best()
            state.save()
            bar.set_postfix(train=f"{loss:.2f}", validation=f"{state.log['validation'][-1][1]:.2f}")
    # "seconds" is the piece's own, which is little where training was only taken up again.
    return state.log | {"training_seconds": round(state.log["seconds"])}


def batches(x: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices and freshly binarised images."""
    for index in torch.randperm(len(x), generator=generator).split(CONFIG["batch_size"]):
        yield index, torch.bernoulli(x[index], generator=generator)


def train_epoch(
    vae: VAE,
    optimizer: torch.optim.Optimizer,
    steps: Iterator[tuple[Tensor, Tensor]],
    progress: float,
    epoch: int,
    prior: str,
    generator: torch.Generator,
) -> float:
    """Make one pass and return the mean negative ELBO."""
    for group in optimizer.param_groups:
        group["lr"] = CONFIG["learning_rate"] * 0.5 * (1 + math.cos(math.pi * progress))
    beta, losses = min(1.0, (epoch + 1) / CONFIG["warm_up"]), []
    for index, batch in steps:
        own = index if prior == "exemplar" else None
        loss = -elbo(vae, batch, beta=beta, index=own, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def validate(vae: VAE, x: Tensor) -> float:
    """Return the mean negative ELBO under the whole prior, each time with the same noise."""
    generator, fixed = torch.Generator().manual_seed(0), frozen(vae)
    return -float(torch.cat([elbo(fixed, part, generator=generator) for part in x.split(1000)]).mean())


def frozen(vae: VAE) -> VAE:
    """Return the same model with its prior's components computed once and for all."""
    if isinstance(vae.prior, StandardNormal):
        return vae
    with torch.no_grad():
        q = vae.prior.mixture()
    return VAE(vae.encoder, vae.decoder, DiagGaussianMixture(q.loc.double(), q.scale.double()))


class State:
    """Everything that training needs to go on after an interruption, in one file without pickle."""

    def __init__(self, path: Path, vae: VAE, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        self.path, self.vae, self.optimizer, self.generator = path, vae, optimizer, generator
        self.best: dict[str, Tensor] = {}
        self.log: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "train": [], "validation": []}

    def keep_best(self) -> None:
        """Keep the weights if the last validation was the best; those of the warm-up do not count."""
        done = [(loss, epoch) for epoch, loss in self.log["validation"] if epoch > CONFIG["warm_up"]]
        if done and min(done)[1] == self.log["epoch"]:
            self.best = {name: t.detach().clone() for name, t in self.vae.state_dict().items()}

    def save(self) -> None:
        """Write all or nothing."""
        tensors = {f"vae/{name}": t for name, t in self.vae.state_dict().items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": t for name, t in entry.items()}
        tensors["generator"] = self.generator.get_state()
        part = self.path.with_suffix(".part")
        safetensors.torch.save_file(
            {n: t.contiguous().clone() for n, t in tensors.items()}, part, {"log": json.dumps(self.log)}
        )
        os.replace(part, self.path)

    def resume(self) -> None:
        """Take up what was saved; a file that cannot be read is reported, removed, and training starts anew."""
        if not self.path.exists():
            return
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                log, tensors = json.loads(file.metadata()["log"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            print(f"{self.path}: truncated or corrupted ({error}); training starts anew", file=sys.stderr)
            self.path.unlink()
            return
        weights = {n.removeprefix("vae/"): t for n, t in tensors.items() if n.startswith("vae/")}
        wanted, got = ({n: tuple(t.shape) for n, t in group.items()} for group in (self.vae.state_dict(), weights))
        if wanted != got:
            name = next(n for n in sorted(wanted.keys() | got.keys()) if wanted.get(n) != got.get(n))
            raise ValueError(
                f"{self.path}: {name}: expected shape {wanted.get(name, 'none')}, got {got.get(name, 'none')}; "
                "this is the checkpoint of another model: remove it"
            )
        self.log, self.best = log, {n.removeprefix("best/"): t for n, t in tensors.items() if n.startswith("best/")}
        self.vae.load_state_dict(weights)
        self.generator.set_state(tensors["generator"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam/"):
                _, number, key = name.split("/")
                moments.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})


def test_images(split: data.Split) -> Tensor:
    """Binarise the test images, once and for all."""
    return data.binarize(split.test, torch.Generator().manual_seed(1))


def finished(experiment: Experiment, prior: str, seed: int, x: Tensor) -> VAE:
    """Return a trained model, its weights rounded to float16, with the whole of its prior."""
    vae = build(prior, seed, x)
    if prior == "exemplar":
        vae = VAE(vae.encoder, vae.decoder, ExemplarPrior(vae.encoder, x))
    with safetensors.safe_open(experiment.folder / f"{prior}-{seed}.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("best/")]  # noqa: SIM118 (not a dict)
        best = {name.removeprefix("best/"): file.get_tensor(name) for name in names}
    vae.load_state_dict({name: t.half().float() for name, t in best.items()})
    return vae.eval()


@torch.no_grad()
def score(vae: VAE, x: Tensor, first: int, num_samples: int) -> dict[str, Any]:
    """Estimate log p(x) of test images that start at position `first`; the noise depends on the position alone."""
    vae, values, lower = frozen(vae), [], []
    for start, part in zip(range(first, first + len(x), CHUNK), x.split(CHUNK), strict=True):
        generator = torch.Generator().manual_seed(start)
        values += iwae_bound(vae, part, num_samples, generator=generator).tolist()
        lower += elbo(vae, part, num_samples=10, generator=generator).tolist()
    return {"log_prob": [round(v, 4) for v in values], "elbo": [round(v, 3) for v in lower]}


def score_all(experiment: Experiment, vae: VAE, name: str, x: Tensor) -> dict[str, list[float]]:
    """Score in pieces, so that an interruption loses little."""
    found: dict[str, list[float]] = {"log_prob": [], "elbo": []}
    for first in range(0, len(x), PIECE):
        part = experiment.piece(
            f"score-{name}-{first}",
            lambda first=first: score(vae, x[first : first + PIECE], first, CONFIG["num_samples"]),
        )
        found = {key: values + part[key] for key, values in found.items()}
    return found


def doubling(experiment: Experiment, vae: VAE, name: str, x: Tensor) -> list[dict[str, Any]]:
    """Score a few images with ever more samples: what doubling them still changes."""
    rows = []
    for num in CONFIG["doubling"]:
        part = experiment.piece(f"doubling-{name}-{num}", lambda num=num: score(vae, x, 0, num))
        rows.append({"model": name, "num_samples": num, "nll": mean_and_error(part["log_prob"])[0]})
    return rows


def mean_and_error(log_prob: list[float]) -> tuple[float, float]:
    """Return the mean negative log-likelihood of some images and its standard error."""
    values = -torch.tensor(log_prob, dtype=torch.float64)
    return round(float(values.mean()), 3), round(float(values.std() / math.sqrt(len(values))), 3)


def row(prior: str, seed: int, log: dict[str, Any], scores: dict[str, list[float]]) -> dict[str, Any]:
    """Sum up one model."""
    best = min(log["validation"][CONFIG["warm_up"] // CONFIG["validate_every"] :], key=lambda entry: entry[1])
    nll, stderr = mean_and_error(scores["log_prob"])
    return {
        "prior": prior,
        "seed": seed,
        "images": len(scores["log_prob"]),
        "nll": nll,
        "stderr": stderr,
        "negative_elbo": mean_and_error(scores["elbo"])[0],
        "validation": best[1],
        "best_epoch": best[0],
        "epochs": log["epoch"],
        "training_seconds": log["training_seconds"],
    }


def gap(first: list[float], second: list[float]) -> dict[str, Any]:
    """Return by how much the second NLL is lower, on the images that both scored, with its standard error."""
    num = min(len(first), len(second))
    value, stderr = mean_and_error([a - b for a, b in zip(first[:num], second[:num], strict=True)])
    return {"images": num, "nats": value, "stderr": stderr}


def summarise(rows: list[dict[str, Any]], scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Bring every prior to all test images: where only some were scored, by the paired gap to the standard normal.

    NLL(all) is estimated by NLL_normal(all) minus the mean gap on the images scored under both, whose standard
    error is far below that of the images' own NLL.
    """
    summary = []
    for prior in CONFIG["priors"]:
        estimates, errors = [], []
        for entry in (entry for entry in rows if entry["prior"] == prior):
            base = scores[f"normal-{entry['seed']}"]["log_prob"]
            paired = gap(base, scores[f"{prior}-{entry['seed']}"]["log_prob"])
            estimates.append(mean_and_error(base)[0] - paired["nats"])
            errors.append(paired["stderr"] if paired["images"] < len(base) else 0.0)
        mean, count = sum(estimates) / len(estimates), len(estimates)
        spread = math.sqrt(sum((e - mean) ** 2 for e in estimates) / max(1, count - 1))
        half = float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count) if count > 1 else None
        summary.append(
            {
                "prior": prior,
                "seeds": count,
                "nll": round(mean, 2),
                "subset_stderr": round(math.sqrt(sum(e**2 for e in errors)) / count, 3),
                "interval": None if half is None else [round(mean - half, 2), round(mean + half, 2)],
            }
        )
    return summary


def store(experiment: Experiment, split: data.Split, models: dict[str, VAE], content: dict[str, Any]) -> None:
    """Write the weights of the first seed, the images of the slice, and the numbers."""
    for prior in CONFIG["priors"]:
        vae = copy.deepcopy(models[f"{prior}-{CONFIG['seeds'][0]}"]).half()
        training.save(RESULTS / f"fashion-{prior}.safetensors", vae, {"prior": prior, "seed": CONFIG["seeds"][0]})
    images = test_images(split)[: CONFIG["slice_images"]].to(torch.uint8)
    safetensors.torch.save_file({"images": images}, RESULTS / "fashion-images.safetensors")
    experiment.write(content)


def main() -> None:
    """Train all models, score them, and store the results."""
    torch.set_num_threads(1)
    split, experiment = data.fashion_mnist(), Experiment("fashion", CONFIG)
    x, logs, scores, models, curve = test_images(split), {}, {}, {}, []
    for seed in CONFIG["seeds"]:
        for prior in CONFIG["priors"]:
            name = f"{prior}-{seed}"
            logs[name] = experiment.piece(f"train-{name}", lambda p=prior, s=seed: train(experiment, p, s, split))
            models[name] = finished(experiment, prior, seed, split.train)
            scores[name] = score_all(experiment, models[name], name, x[: CONFIG["test_images"][prior]])
            if seed == CONFIG["seeds"][0]:
                curve += doubling(experiment, models[name], name, x[: CONFIG["slice_images"]])
    rows = [row(*_parts(name), logs[name], scores[name]) for name in models]
    gaps = [
        {"seed": seed, "from": a, "to": b} | gap(scores[f"{a}-{seed}"]["log_prob"], scores[f"{b}-{seed}"]["log_prob"])
        for seed in CONFIG["seeds"]
        for a, b in (("normal", "vamp"), ("vamp", "exemplar"), ("normal", "exemplar"))
    ]
    first = {prior: scores[f"{prior}-{CONFIG['seeds'][0]}"]["log_prob"] for prior in CONFIG["priors"]}
    content = {
        "rows": rows,
        "summary": summarise(rows, scores),
        "gaps": gaps,
        "doubling": curve,
        "curves": [
            {"model": name, "train": log["train"], "validation": log["validation"]} for name, log in logs.items()
        ],
        "slice": [{"prior": prior, "log_prob": values[: CONFIG["slice_images"]]} for prior, values in first.items()],
    }
    store(experiment, split, models, content)


def _parts(name: str) -> tuple[str, int]:
    prior, seed = name.split("-")
    return prior, int(seed)


if __name__ == "__main__":
    main()
