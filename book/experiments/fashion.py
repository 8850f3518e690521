"""Fashion-MNIST under the published protocol of Exemplar VAE: three priors, several seeds; then other priors.

Two hidden layers of 300 gated units, 40 latents, Bernoulli pixels, binarisation in every batch; the priors are the
standard normal, a VampPrior of 500 pseudo-inputs and an Exemplar prior of all 50,000 training images. `_batched.py`
trains all models, and keeps for each the weights of the best validation ELBO, rounded to float16: what is scored is
what is stored. The package's own `iwae_bound` scores them. After that, on the same models, the prior is exchanged: for
the aggregated posterior of all 60,000 images, and for a flow fitted to codes.

A GPU is used if there is one. There matrix products of training run in TF32, the rest and all scores in float32 and
float64. VAEBOOK_SECONDS limits the training of one call, which the next one takes up again; with VAEBOOK_END it ends
there, and the results say for which models that was before their patience did.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from _batched import Batched, best_and_end, train
from harness import Experiment
from torch import Tensor, nn
from torch.distributions import Normal

from vaebook import DiagGaussianMixture, data, kernels, training
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import elbo, iwae_bound
from vaebook.evaluation import seeded
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior
from vaebook.storage import write_atomically

CONFIG: dict[str, Any] = {
    "data": "Fashion-MNIST, 50,000 training, 10,000 validation, 10,000 test images",
    "hidden": [300, 300],
    "latent_dim": 40,
    "log_variance_range": [-6, 2],
    "priors": ["normal", "vamp", "exemplar"],
    "num_pseudo_inputs": 500,
    "num_exemplars": 25_000,
    "neighbours": 10,
    "seeds": [0, 1, 2],
    "max_epochs": 2000,
    "patience": 50,
    "warm_up": 100,
    "batch_size": 100,
    "learning_rate": 5e-4,
    "num_samples": 5000,
    "num_test": 10_000,
    "slice_images": 50,
    "doubling": [1250, 2500, 5000, 10_000],
    "afterwards_images": 500,
    "afterwards_draws": 5,
    "flow": {"transforms": 3, "hidden": [128, 128], "batch_size": 1000, "steps": 2000, "learning_rate": 1e-3},
}
"""What is run; num_exemplars and neighbours are of training alone, the prior that is scored has all exemplars."""
RESULTS = Path(__file__).resolve().parent.parent / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, CHUNK = (500, 50) if DEVICE.type == "cuda" else (50, None)
"""Test images that share one stream of noise, and samples of each that are decoded at once."""


def split_of_images() -> data.Split:
    """Read the data, from Debian's folder if they are there."""
    folder = data.FASHION_SYSTEM_FOLDER
    return data.fashion_mnist(folder if folder.is_dir() else None)


def test_images(split: data.Split) -> Tensor:
    """Binarise the test images, once and for all."""
    return data.binarize(split.test, torch.Generator().manual_seed(1))


def all_images(split: data.Split) -> Tensor:
    """Binarise training and validation images, once and for all: those of which q_agg is made."""
    return data.binarize(torch.cat([split.train, split.validation]), torch.Generator().manual_seed(2))


def groups(experiment: Experiment, split: data.Split) -> list[Batched]:
    """Make the models of every prior, as far as they are trained."""
    images = (split.train * 255).round().to(torch.uint8).to(DEVICE)
    validation = data.binarize(split.validation, torch.Generator().manual_seed(0)).to(DEVICE)
    path = experiment.folder
    return [Batched(p, CONFIG, images, validation, path / f"train-{p}.safetensors") for p in CONFIG["priors"]]


def train_all(experiment: Experiment, split: data.Split) -> dict[str, Any]:
    """Train all models, and leave the weights of each in the scratch folder."""
    made = groups(experiment, split)
    ended = train(made, float(os.environ.get("VAEBOOK_SECONDS", math.inf)))
    for group in made:
        for r, seed in enumerate(CONFIG["seeds"]):
            path = experiment.folder / f"{group.prior}-{seed}.safetensors"
            write_atomically(path, safetensors.torch.save({n: t.contiguous() for n, t in group.weights(r).items()}))
    if not ended and "VAEBOOK_END" not in os.environ:
        raise SystemExit("fashion: the time is over; the same command goes on")
    return {"logs": {group.prior: group.log for group in made}}


def build(prior: str, x: Tensor) -> VAE:
    """Build an untrained model of the package."""
    dim, hidden, (low, high) = CONFIG["latent_dim"], CONFIG["hidden"], CONFIG["log_variance_range"]
    encoder = GaussianEncoder(x.shape[1], dim, hidden, gated=True, log_scale_range=(low / 2, high / 2))
    decoder = BernoulliDecoder(dim, x.shape[1], hidden, gated=True)
    if prior == "normal":
        return VAE(encoder, decoder, StandardNormal(dim))
    if prior == "vamp":
        return VAE(encoder, decoder, VampPrior(encoder, x[: CONFIG["num_pseudo_inputs"]]))
    return VAE(encoder, decoder, ExemplarPrior(encoder, x))


def finished(folder: Path, prior: str, seed: int, x: Tensor) -> VAE:
    """Return a trained model, its weights as they are stored, with the whole of its prior."""
    vae = build(prior, x)
    weights = safetensors.torch.load_file(folder / f"{prior}-{seed}.safetensors")
    vae.load_state_dict({name: t.float() for name, t in weights.items()})
    return vae.eval().requires_grad_(False)


def moved(vae: VAE) -> VAE:
    """Move a model to the device, its exemplars too."""
    if isinstance(vae.prior, ExemplarPrior):
        vae.prior.exemplars = vae.prior.exemplars.to(DEVICE)
    return vae.to(DEVICE)


def frozen(vae: VAE) -> VAE:
    """Return the model with its own prior, whose components are computed once and for all."""
    if isinstance(vae.prior, StandardNormal):
        return vae
    q = vae.prior.mixture()
    return VAE(vae.encoder, vae.decoder, DiagGaussianMixture(q.loc.double(), q.scale.double()))


class InSingle:
    """An Exemplar prior in float32, for a GPU, where that takes half the time; `slice` shows that it is the same."""

    def __init__(self, q: DiagGaussianMixture) -> None:
        self.middle, self.variance, (num, self.latent_dim) = q.loc.mean(0), q.scale[0, 0].square(), q.loc.shape
        self.loc = q.loc - self.middle
        half = 0.5 * (self.loc.square().sum(1) / self.variance + self.latent_dim * (2 * math.pi * self.variance).log())
        self.constant = -half - math.log(num)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density in nats."""
        rows = (z - self.middle).flatten(0, -2)
        keys = self.loc.mT / self.variance
        parts = [torch.addmm(self.constant, part, keys).logsumexp(1) for part in rows.split(2**14)]
        return (torch.cat(parts) - 0.5 * rows.square().sum(1) / self.variance).reshape(z.shape[:-1])

    def sample(self, *_: Any, **__: Any) -> Tensor:
        """Refuse: scoring draws from the encoder."""
        raise NotImplementedError


def own(vae: VAE) -> VAE:
    """Return the model as it is scored."""
    if DEVICE.type == "cuda" and isinstance(vae.prior, ExemplarPrior):
        return VAE(vae.encoder, vae.decoder, InSingle(vae.prior.mixture()))
    return frozen(vae)


@torch.no_grad()
def score(vae: VAE, x: Tensor, num_samples: int) -> dict[str, list[float]]:
    """Estimate log p(x); the noise of a batch depends on its position alone, and is the same under every prior."""
    values, lower = [], []
    for number, part in enumerate(x.split(BATCH)):
        generator = torch.Generator(part.device).manual_seed(number)
        values += iwae_bound(vae, part, num_samples, generator=generator, chunk_size=CHUNK).tolist()
        lower += elbo(vae, part, num_samples=10, generator=generator).tolist()
    return {"log_prob": [round(v, 4) for v in values], "elbo": [round(v, 3) for v in lower]}


def doubling(vae: VAE, x: Tensor) -> dict[str, Any]:
    """Score a few images with ever more samples: what doubling them still changes."""
    vae = own(vae)
    return {"nll": [mean_and_error(score(vae, x, num)["log_prob"])[0] for num in CONFIG["doubling"]]}


class Flow(nn.Module):
    """A neural spline flow behind a shift and a scale of every coordinate."""

    def __init__(self, q: DiagGaussianMixture) -> None:
        import zuko  # here, because who only trains and scores needs none

        super().__init__()
        settings, self.latent_dim = CONFIG["flow"], q.latent_dim
        self.register_buffer("loc", q.mean.float())
        self.register_buffer("scale", q.variance.float().sqrt())
        sizes = {"transforms": settings["transforms"], "hidden_features": settings["hidden"]}
        self.flow = zuko.flows.NSF(self.latent_dim, **sizes)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density in nats."""
        return self.flow().log_prob((z.float() - self.loc) / self.scale) - self.scale.log().sum()

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw."""
        with seeded(generator):
            return self.loc + self.scale * self.flow().sample(sample_shape)


def fit_flow(q: DiagGaussianMixture, seed: int) -> Flow:
    """Fit a flow to draws of q, in each step new ones; the rate falls along a cosine to 0."""
    settings, loc, scale, device = CONFIG["flow"], q.loc.float(), q.scale.float(), q.loc.device
    torch.manual_seed(seed)
    flow, on_gpu = Flow(q).to(device), device.type == "cuda"
    torch.distributions.Distribution.set_default_validate_args(not on_gpu)  # its checks make a GPU wait
    rate = torch.tensor(settings["learning_rate"], device=device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=rate, fused=True, capturable=on_gpu)
    generator = torch.Generator(device).manual_seed(seed)

    def step() -> None:
        rows = torch.randint(len(loc), (settings["batch_size"],), generator=generator, device=device)
        noise = torch.empty(len(rows), q.latent_dim, device=device).normal_(generator=generator)
        optimizer.zero_grad(set_to_none=True)
        (-flow.log_prob(loc[rows] + scale[rows] * noise).mean()).backward()
        optimizer.step()

    advance = captured(step, generator) if on_gpu else step
    for number in range(settings["steps"]):
        rate.fill_(settings["learning_rate"] * 0.5 * (1 + math.cos(math.pi * number / settings["steps"])))
        advance()
    torch.distributions.Distribution.set_default_validate_args(True)
    return flow.eval().requires_grad_(False)


def captured(step: Callable[[], None], generator: torch.Generator) -> Callable[[], None]:
    """Capture a step as a graph, after three of them."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def afterwards(vae: VAE, seed: int, split: data.Split) -> dict[str, Any]:
    """Exchange the prior of a trained model: for q_agg of all 60,000 images, and for a flow fitted to codes.

    "codes" has the mean over images of log p(z) less the log-density of the model's own prior, z drawn from q(z|x),
    with its standard error over images. Training codes are scored under q_agg, and exemplars, without themselves.
    """
    num, x = len(split.train), test_images(split).to(DEVICE)
    q = aggregated_posterior(vae.encoder, all_images(split).to(DEVICE)).double()
    new = aggregated_posterior(vae.encoder, x).double()
    flow = fit_flow(q[:num], seed)
    prior, generator = frozen(vae).prior, torch.Generator(DEVICE).manual_seed(seed)
    everyone, rows = (
        torch.arange(len(q.loc), device=DEVICE),
        {"training": slice(0, num), "validation": slice(num, None)},
    )
    gains: dict[str, list[Tensor]] = {}
    rate: dict[str, list[Tensor]] = {}
    for _ in range(CONFIG["afterwards_draws"]):
        z, z_new = (c.loc + c.scale * torch.empty_like(c.loc).normal_(generator=generator) for c in (q, new))
        others, by_flow = q.log_prob_leave_one_out(z, everyone), flow.log_prob(z)
        base = prior.log_prob(z)
        if isinstance(vae.prior, ExemplarPrior):
            base[:num] = prior.log_prob_leave_one_out(z[:num], everyone[:num])
        log_q = Normal(q.loc, q.scale).log_prob(z).sum(-1)
        for part, index in rows.items():
            gains.setdefault(f"q_agg, {part}", []).append((others - base)[index])
            gains.setdefault(f"flow, {part}", []).append((by_flow - base)[index])
            rate.setdefault(part, []).append((log_q - base)[index])
        rate.setdefault("information", []).append(log_q - q.log_prob(z))
        base = prior.log_prob(z_new)
        gains.setdefault("q_agg, test", []).append(q.log_prob(z_new) - base)
        gains.setdefault("flow, test", []).append(flow.log_prob(z_new) - base)
        rate.setdefault("test", []).append(Normal(new.loc, new.scale).log_prob(z_new).sum(-1) - base)
    found = {name: mean_and_error(-torch.stack(parts).mean(0)) for name, parts in gains.items()}
    rates = {name: round(float(torch.stack(parts).mean()), 3) for name, parts in rate.items()}
    some = x[: CONFIG["afterwards_images"]]
    scores = {
        name: score(VAE(vae.encoder, vae.decoder, other), some, CONFIG["num_samples"])
        for name, other in (("q_agg", q), ("flow", flow))
    }
    return {"codes": found, "rates": rates, "log_prob": {name: s["log_prob"] for name, s in scores.items()}}


def mean_and_error(log_prob: list[float] | Tensor) -> tuple[float, float]:
    """Return the mean negative log-likelihood of some images and its standard error."""
    values = -torch.as_tensor(log_prob, dtype=torch.float64)
    return round(float(values.mean()), 3), round(float(values.std() / math.sqrt(len(values))), 3)


def pieces(experiment: Experiment, split: data.Split) -> dict[str, dict[str, Any]]:
    """Train and score all models, on the device."""
    torch.backends.cuda.matmul.allow_tf32 = True
    made = {"train": experiment.piece("train", lambda: train_all(experiment, split))}
    torch.backends.cuda.matmul.allow_tf32 = False
    if DEVICE.type == "cuda":
        kernels.ROWS, kernels.COLUMNS = 2**14, 2**16  # blocks of a size that suits a GPU
    x = test_images(split)[: CONFIG["num_test"]].to(DEVICE)
    names = [(seed, prior) for seed in CONFIG["seeds"] for prior in CONFIG["priors"]]
    for what in ("score", "doubling", "afterwards"):
        for seed, prior in names:
            name = f"{what}-{prior}-{seed}"
            if what == "doubling" and seed != CONFIG["seeds"][0]:
                continue
            vae = moved(finished(experiment.folder, prior, seed, split.train))
            compute = {
                "score": lambda v=vae: score(own(v), x, CONFIG["num_samples"]),
                "doubling": lambda v=vae: doubling(v, x[: CONFIG["slice_images"]]),
                "afterwards": lambda v=vae, s=seed: afterwards(v, s, split),
            }[what]
            made[name] = experiment.piece(name, compute)
    return made


def on_cpu(experiment: Experiment, prior: str, split: data.Split) -> dict[str, Any]:
    """Score the first images once more, on the CPU, with other noise; the tests do it again."""
    x = test_images(split)[: CONFIG["slice_images"]]

    def compute() -> dict[str, Any]:
        return score(
            frozen(finished(experiment.folder, prior, CONFIG["seeds"][0], split.train)), x, CONFIG["num_samples"]
        )

    return experiment.piece(f"slice-{prior}", compute)


def row(prior: str, seed: int, log: dict[str, Any], scores: dict[str, list[float]]) -> dict[str, Any]:
    """Sum up one model."""
    losses = [entry[CONFIG["seeds"].index(seed)] for entry in log["validation"]]
    best, end = best_and_end(losses, CONFIG)
    nll, stderr = mean_and_error(scores["log_prob"])
    return {
        "prior": prior,
        "seed": seed,
        "images": len(scores["log_prob"]),
        "nll": nll,
        "stderr": stderr,
        "negative_elbo": mean_and_error(scores["elbo"])[0],
        "validation": round(losses[best - 1], 3),
        "best_epoch": best,
        "epochs": end or len(losses),
        "patience_ended": end is not None and end < CONFIG["max_epochs"],
    }


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Return mean, standard deviation and standard error over seeds."""
    values = torch.tensor(values, dtype=torch.float64)
    spread = float(values.std())
    return {
        "seeds": len(values),
        "mean": round(float(values.mean()), 3),
        "sd": round(spread, 3),
        "stderr": round(spread / math.sqrt(len(values)), 3),
    }


def gap(first: str, second: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by how much the second prior's mean NLL is lower; its standard error is over seeds, as if independent."""
    a, b = (over_seeds([r["nll"] for r in rows if r["prior"] == prior]) for prior in (first, second))
    return {
        "from": first,
        "to": second,
        "nats": round(a["mean"] - b["mean"], 3),
        "stderr": round(math.hypot(a["stderr"], b["stderr"]), 3),
    }


def exchanged(prior: str, made: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum up, over seeds, what another prior would have gained in nats an image, on codes and in log-likelihood."""
    found, seeds = [], CONFIG["seeds"]
    for other in ("q_agg", "flow"):
        entry: dict[str, Any] = {"prior": prior, "instead": other}
        for part in ("training", "validation", "test"):
            values = [made[f"afterwards-{prior}-{seed}"]["codes"][f"{other}, {part}"][0] for seed in seeds]
            entry[part] = over_seeds(values)["mean"]
            entry[f"{part} stderr"] = over_seeds(values)["stderr"]
        gains, errors = [], []
        for seed in seeds:
            after = torch.tensor(made[f"afterwards-{prior}-{seed}"]["log_prob"][other])
            before = torch.tensor(made[f"score-{prior}-{seed}"]["log_prob"])[: len(after)]
            loss, error = mean_and_error(after - before)
            gains.append(-loss)
            errors.append(error)
        entry |= {"log_likelihood": over_seeds(gains)["mean"], "log_likelihood stderr": over_seeds(gains)["stderr"]}
        entry["stderr over images"] = max(errors)
        found.append(entry)
    return found


def store(experiment: Experiment, split: data.Split, content: dict[str, Any]) -> None:
    """Write the weights of the first seed, the images of the slice, and the numbers."""
    for prior in CONFIG["priors"]:
        vae = finished(experiment.folder, prior, CONFIG["seeds"][0], split.train).half()
        # A VampPrior is encoded when it is loaded, twice, and in half precision two passes need not agree.
        vae = vae.float() if prior == "vamp" else vae
        training.save(RESULTS / f"fashion-{prior}.safetensors", vae, {"prior": prior, "seed": CONFIG["seeds"][0]})
    images = test_images(split)[: CONFIG["slice_images"]].to(torch.uint8)
    write_atomically(RESULTS / "fashion-images.safetensors", safetensors.torch.save({"images": images}))
    experiment.write(content)


def main() -> None:
    """Train all models, score them, exchange their priors, and store the results."""
    torch.set_num_threads(1)
    split, experiment = split_of_images(), Experiment("fashion", CONFIG, DEVICE)
    made = pieces(experiment, split)
    names = [(prior, seed) for prior in CONFIG["priors"] for seed in CONFIG["seeds"]]
    logs = made["train"]["logs"]
    rows = [row(prior, seed, logs[prior], made[f"score-{prior}-{seed}"]) for prior, seed in names]
    first, slices = CONFIG["seeds"][0], []
    for prior in CONFIG["priors"]:
        there = made[f"score-{prior}-{first}"]["log_prob"][: CONFIG["slice_images"]]
        here = on_cpu(experiment, prior, split)["log_prob"]
        slices.append({"prior": prior, "log_prob": here, "log_prob_on_device": there})
    content = {
        "rows": rows,
        "summary": [
            {"prior": prior} | over_seeds([r["nll"] for r in rows if r["prior"] == prior]) for prior in CONFIG["priors"]
        ],
        "gaps": [gap(a, b, rows) for a, b in (("normal", "vamp"), ("vamp", "exemplar"), ("normal", "exemplar"))],
        "afterwards": [entry for prior in CONFIG["priors"] for entry in exchanged(prior, made)],
        "rates": [
            {"prior": prior, "seed": seed} | made[f"afterwards-{prior}-{seed}"]["rates"] for prior, seed in names
        ],
        "doubling": [
            {"prior": prior, "num_samples": num, "nll": nll}
            for prior in CONFIG["priors"]
            for num, nll in zip(CONFIG["doubling"], made[f"doubling-{prior}-{first}"]["nll"], strict=True)
        ],
        "seconds_of_training": {prior: round(log["seconds"]) for prior, log in logs.items()},
        "curves": [
            {
                "prior": prior,
                "epoch": list(range(1, len(log["validation"]) + 1))[::5],
                "validation": [round(entry[0], 2) for entry in log["validation"]][::5],
            }
            for prior, log in logs.items()
        ],
        "slice": slices,
    }
    store(experiment, split, content)


if __name__ == "__main__":
    main()
