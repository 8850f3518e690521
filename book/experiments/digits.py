"""Bernoulli VAEs on black-and-white digits: held-out log-likelihood under five priors.

The digits of scikit-learn are binarised once, with a fixed seed; the models see nothing else, so that N, log N, the
aggregated posterior (of these N binary images) and leaving one out are exact statements about one data set. For every
latent dimension, weight beta of the KL term and seed three models are trained: with the standard normal prior, with a
VampPrior and with an Exemplar prior. The first is scored under its own prior, under the aggregated posterior of the
training set and under a Gaussian mixture fitted to samples of that; the others under the prior they were trained
with. A seed decides initial weights, order and noise of training; data and their split are always the same.

All weights are rounded to float16 before anything is computed from them: what is committed is what is scored.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from harness import RESULTS, Experiment
from scipy import stats
from torch import Tensor

from vaebook import DiagGaussianMixture, data, training
from vaebook.aggregate import aggregated_posterior
from vaebook.bounds import elbo
from vaebook.information import decompose_kl
from vaebook.likelihood import importance_log_prob
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, StandardNormal, VampPrior, fit_gmm
from vaebook.storage import write_atomically

CONFIG: dict[str, Any] = {
    "data": "scikit-learn digits, binarised once: 1297 training, 100 validation, 400 test images",
    "binarization_seed": 0,
    "hidden": [200],
    "latent_dims": [2, 8, 16],
    "betas": [0.1, 1.0],
    "seeds": [0, 1, 2, 3, 4],
    "models": ["normal", "vamp", "exemplar"],
    "priors": ["normal", "q_agg", "gmm", "vamp", "exemplar"],
    "num_pseudo_inputs": 100,
    "gmm_components": 10,
    "epochs": 300,
    "patience": 25,
    "batch_size": 100,
    "learning_rate": 2e-3,
    "num_samples": 1000,
    "test_images": 200,
    "training_images": 50,
    "slice_images": 25,
    "doubling": [250, 500, 1000, 2000, 4000],
    "doubling_images": 100,
    "stored": [[2, 0.1], [2, 1.0], [16, 0.1], [16, 1.0]],
}
"""What is run. Images are the first so many of their part; slice_images share one stream of noise."""


@functools.cache
def binary() -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, black and white."""
    split, generator = data.digits(), torch.Generator().manual_seed(CONFIG["binarization_seed"])
    return tuple(data.binarize(part, generator) for part in split[:3])


def build(model: str, dim: int, seed: int) -> VAE:
    """Build an untrained model; all three start with the same encoder and decoder."""
    x, generator, hidden = binary()[0], torch.Generator().manual_seed(seed), CONFIG["hidden"]
    encoder = GaussianEncoder(x.shape[1], dim, hidden, generator=generator)
    decoder = BernoulliDecoder(dim, x.shape[1], hidden, generator=generator)
    if model == "normal":
        return VAE(encoder, decoder, StandardNormal(dim))
    if model == "vamp":
        chosen = torch.randperm(len(x), generator=generator)[: CONFIG["num_pseudo_inputs"]]
        return VAE(encoder, decoder, VampPrior(encoder, x[chosen]))
    return VAE(encoder, decoder, ExemplarPrior(encoder, x))


def train(model: str, dim: int, beta: float, seed: int) -> tuple[VAE, training.History]:
    """Train one model and round its weights."""
    vae, (x, validation, _) = build(model, dim, seed), binary()
    history = training.fit(
        vae,
        x,
        num_epochs=CONFIG["epochs"],
        batch_size=CONFIG["batch_size"],
        learning_rate=CONFIG["learning_rate"],
        beta=beta,
        generator=torch.Generator().manual_seed(1000 + seed),
        validation=validation,
        patience=CONFIG["patience"],
        progress=False,
    )
    return vae.half().float(), history


def path(model: str, dim: int, beta: float) -> Any:
    """Where the weights of the first seed are, if they are stored."""
    return RESULTS / f"digits-{model}-{dim}-{beta:g}.safetensors"


def load(model: str, dim: int, beta: float) -> VAE:
    """Read a stored model."""
    return training.load(path(model, dim, beta), build(model, dim, 0).half()).float()


def priors(vae: VAE) -> dict[str, Any]:
    """Return what takes the place of a prior after training: q_agg, and a mixture fitted to it."""
    q_agg = aggregated_posterior(vae.encoder, binary()[0])
    return {"normal": vae.prior, "q_agg": q_agg, "gmm": fit_gmm(q_agg, CONFIG["gmm_components"])}


def score(vae: VAE, prior: Any, x: Tensor, num_samples: int, *, seed: int = 0) -> dict[str, list[float]]:
    """Score images in blocks with noise of their own, so that one block can be computed again."""
    size, parts = CONFIG["slice_images"], []
    for number, batch in enumerate(x.split(size)):
        generator = torch.Generator().manual_seed(1_000_000 * seed + number)
        parts.append(importance_log_prob(vae, batch, num_samples, prior=prior, generator=generator))
    names = ("log_prob", "stderr", "effective_samples")
    return {name: torch.cat([getattr(part, name) for part in parts]).tolist() for name in names}


def leave_one_out(vae: VAE, q_agg: DiagGaussianMixture, num_images: int) -> dict[str, list[float]]:
    """Score the first training images, each under the aggregated posterior of all others."""
    x, rows = binary()[0], []
    for i in range(num_images):
        keep = torch.arange(len(x)) != i
        rows.append(score(vae, DiagGaussianMixture(q_agg.loc[keep], q_agg.scale[keep]), x[i : i + 1], 1000, seed=i))
    return {name: [row[name][0] for row in rows] for name in rows[0]}


def row_of(prior: str, scores: dict[str, list[float]]) -> dict[str, Any]:
    """Mean and errors: that over images, and the one of the estimator."""
    value, error, effective = (torch.tensor(scores[name]) for name in ("log_prob", "stderr", "effective_samples"))
    return {
        "prior": prior,
        "log_prob": float(value.mean()),
        "stderr_images": float(value.std() / math.sqrt(len(value))),
        "stderr_estimate": float(error.square().mean().sqrt() / math.sqrt(len(value))),
        "median_effective": float(effective.median()),
        "min_effective": float(effective.min()),
    }


def codes(vae: VAE, q_agg: DiagGaussianMixture) -> dict[str, float]:
    """Take the KL term of the first model apart, and give its ELBO on test images, all in nats."""
    parts = decompose_kl(q_agg, vae.prior, num_samples=5000, generator=torch.Generator().manual_seed(0))
    x = binary()[2][: CONFIG["test_images"]]
    with torch.no_grad():
        bound = elbo(vae, x, num_samples=100, generator=torch.Generator().manual_seed(0))
    return {
        "mutual_information": parts.mutual_information.value,
        "mutual_information_stderr": parts.mutual_information.stderr,
        "log_n": math.log(q_agg.num_components),
        "rate": parts.rate.value,
        "marginal_kl": parts.marginal_kl.value,
        "test_elbo": float(bound.mean()),
    }


def run(dim: int, beta: float, seed: int, folder: Any) -> dict[str, Any]:
    """Train three models, leave them in the scratch folder, and score them under five priors."""
    x, _, test = binary()
    test, num_samples, slice_images = test[: CONFIG["test_images"]], CONFIG["num_samples"], CONFIG["slice_images"]
    rows, models, slices = [], [], []
    for model in CONFIG["models"]:
        vae, history = train(model, dim, beta, seed)
        if seed == 0:
            training.save(folder / path(model, dim, beta).name, vae.half(), {"beta": beta, "seed": seed})
            vae = vae.float()
        models.append({"model": model, "epochs": len(history.train_loss), "best_epoch": history.best_epoch})
        for prior, density in (priors(vae) if model == "normal" else {model: vae.prior}).items():
            scores = score(vae, density, test, num_samples, seed=seed)
            rows.append(row_of(prior, scores))
            slices.append({"prior": prior} | {name: values[:slice_images] for name, values in scores.items()})
        if model == "normal":
            q_agg = aggregated_posterior(vae.encoder, x)
            num = CONFIG["training_images"]
            training_rows = [
                row_of("normal", score(vae, None, x[:num], num_samples, seed=seed)),
                row_of("q_agg", score(vae, q_agg, x[:num], num_samples, seed=seed)),
                row_of("leave_one_out", leave_one_out(vae, q_agg, num)),
            ]
            information = codes(vae, q_agg)
    return {"rows": rows, "training": training_rows, "codes": information, "models": models, "slice": slices}


def double(dim: int, beta: float, model: str, prior: str, folder: Any) -> dict[str, Any]:
    """Score the first model again with more and more samples, with fresh noise each time."""
    vae = training.load(folder / path(model, dim, beta).name, build(model, dim, 0).half()).float()
    density, x = priors(vae)[prior] if model == "normal" else vae.prior, binary()[2][: CONFIG["doubling_images"]]
    rows = []
    for number, num_samples in enumerate(CONFIG["doubling"]):
        rows.append(
            {"num_samples": num_samples} | row_of(prior, score(vae, density, x, num_samples, seed=100 + number))
        )
    return {"rows": rows}


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds, and half the width of the 95 % interval of Student's t."""
    mean, spread = float(torch.tensor(values).double().mean()), float(torch.tensor(values).double().std())
    width = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return {"mean": mean, "half_width": width}


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over seeds: the value under each prior, and its gain on the standard normal prior, by seed."""
    summary = []
    for dim in CONFIG["latent_dims"]:
        for beta in CONFIG["betas"]:
            at = {(r["seed"], r["prior"]): r["log_prob"] for r in rows if (r["latent_dim"], r["beta"]) == (dim, beta)}
            for prior in CONFIG["priors"]:
                values = [at[seed, prior] for seed in CONFIG["seeds"]]
                gains = [at[seed, prior] - at[seed, "normal"] for seed in CONFIG["seeds"]]
                gain = {f"gain_{key}": value for key, value in interval(gains).items()}
                wins = {"seeds_won": sum(g > 0 for g in gains)}
                summary.append({"latent_dim": dim, "beta": beta, "prior": prior} | interval(values) | gain | wins)
    return summary


def main() -> None:
    """Run everything, seed by seed."""
    torch.set_num_threads(1)
    experiment = Experiment("digits", CONFIG)
    tables: dict[str, list[dict[str, Any]]] = {"rows": [], "training": [], "codes": [], "models": [], "slice": []}
    for seed in CONFIG["seeds"]:
        for dim in CONFIG["latent_dims"]:
            for beta in CONFIG["betas"]:
                made = experiment.piece(
                    f"D={dim} beta={beta:g} seed={seed}",
                    functools.partial(run, dim, beta, seed, experiment.folder),
                )
                where = {"latent_dim": dim, "beta": beta, "seed": seed}
                for name in ("rows", "training", "models"):
                    tables[name] += [where | row for row in made[name]]
                tables["codes"].append(where | made["codes"])
                if seed == 0 and [dim, beta] in CONFIG["stored"]:
                    tables["slice"] += [where | row for row in made["slice"]]
    dim, beta = CONFIG["latent_dims"][-1], CONFIG["betas"][0]
    doubling = []
    for prior in CONFIG["priors"]:
        model = prior if prior in CONFIG["models"] else "normal"
        compute = functools.partial(double, dim, beta, model, prior, experiment.folder)
        rows = experiment.piece(f"doubling {prior}", compute)["rows"]
        doubling += [{"latent_dim": dim, "beta": beta} | row for row in rows]
    for dim, beta in CONFIG["stored"]:
        for model in CONFIG["models"]:
            stored = path(model, dim, beta)
            write_atomically(stored, (experiment.folder / stored.name).read_bytes())
    experiment.write({"summary": summarise(tables["rows"]), "doubling": doubling} | tables)


if __name__ == "__main__":
    main()
