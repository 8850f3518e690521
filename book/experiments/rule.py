"""Score the rule of `vaebook.selection.choose_prior` on models and data that had no part in its design.

The rule was fixed in the commit RULE before this script was written. A case is a trained model with its training data;
its candidates are the model's prior, the aggregated posterior and the mixture that the rule fitted. The referee is
the mean log-likelihood of held-out data, which the rule has not seen: closed form for probabilistic PCA, importance
sampling for VAEs. A policy's regret is the best candidate's held-out log-likelihood less that of its choice, in nats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from harness import Experiment, read_result
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import Tensor

from vaebook.data import binarize, fashion_mnist
from vaebook.information import mutual_information
from vaebook.likelihood import importance_log_prob
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal
from vaebook.selection import Choice, choose_prior
from vaebook.training import fit

RULE = "b8a69dbc5241aa68697fc2f6a0323298572cc2b5"
CONFIG = {
    "rule": RULE,
    "num_held_out": 300,
    "referee_repeats": 4,
    "policies": ["rule", "prior", "q_agg", "gmm", "information", "training", "elbo"],
    "cases": [
        *[f"digits-ppca-1297-D{d}-s{s}" for s in (100, 101) for d in (12, 28)],
        *[
            f"{data}-ppca-{n}-D{d}-s100"
            for data, n, dims in [
                ("fashion", 300, (8, 24)),
                ("fashion", 2000, (8, 24)),
                ("cancer", 398, (2, 8)),
                ("wine", 124, (2, 8)),
            ]
            for d in dims
        ],
        *[f"{data}-vae-{n}-D6-b{b}-s100" for data, n in [("cancer", 398), ("wine", 124)] for b in (0.1, 1.0)],
        *[
            f"digits-vae-1297-D4-b{b}-s{s}"
            for b, pair in [(0.05, (100, 101)), (0.5, (102, 103)), (1.0, (104, 100)), (2.0, (101, 102))]
            for s in pair
        ],
        *[
            f"digits-vae-1297-D12-b{b}-s{s}"
            for b, pair in [(0.05, (103, 104)), (0.5, (100, 101)), (1.0, (102, 103)), (2.0, (104, 100))]
            for s in pair
        ],
        *[f"fashion-vae-{n}-D12-b{b}-s100" for n in (300, 2000) for b in (0.1, 1.0)],
        *[f"digits-vae-1297-D24-b{b}-s{s}" for b, s in [(0.05, 101), (0.5, 102), (1.0, 103), (2.0, 104)]],
    ],
}


def parse(case: str) -> dict[str, Any]:
    """Take a case's name apart."""
    data, model, num, dim, *rest = case.split("-")
    beta = float(rest[0][1:]) if model == "vae" else None
    return {"data": data, "model": model, "num": int(num), "dim": int(dim[1:]), "beta": beta, "seed": int(rest[-1][1:])}


def data_of(case: str) -> tuple[Tensor, Tensor]:
    """Return training and held-out data: float64 for pPCA; for VAEs of images binarised, float32."""
    c = parse(case)
    x = {"digits": _digits, "fashion": _fashion, "cancer": _cancer, "wine": _wine}[c["data"]]()
    order = np.random.RandomState(c["seed"]).permutation(len(x))[: c["num"] + 1000]
    x = x[order]
    train, held_out = x[: c["num"]], x[c["num"] :]
    if c["data"] in ("cancer", "wine"):
        mean, scale = train.mean(0), train.std(0)
        train, held_out = (train - mean) / scale, (held_out - mean) / scale
    if c["model"] == "ppca":
        return train, held_out
    held_out = held_out[: CONFIG["num_held_out"]]
    if c["data"] in ("digits", "fashion"):
        train, held_out = binarize(torch.cat([train, held_out]), _generator(c["seed"])).split(
            [len(train), len(held_out)]
        )
    return train.float(), held_out.float()


def model_of(case: str, train: Tensor) -> VAE | PPCA:
    """Fit the model: in closed form, or a VAE of one hidden layer with a fixed number of epochs."""
    c = parse(case)
    if c["model"] == "ppca":
        return PPCA.fit(train, c["dim"])
    generator, pixels = _generator(c["seed"]), train.shape[1]
    encoder = GaussianEncoder(pixels, c["dim"], (128,), generator=generator)
    if c["data"] in ("digits", "fashion"):
        decoder = BernoulliDecoder(c["dim"], pixels, (128,), generator=generator)
    else:
        decoder = GaussianDecoder(c["dim"], pixels, (128,), min_scale=0.05, generator=generator)
    vae = VAE(encoder, decoder, StandardNormal(c["dim"]))
    fit(vae, train, num_epochs=150, batch_size=64, beta=c["beta"], generator=generator, progress=False)
    return vae.requires_grad_(False)


def log_likelihoods(model: VAE | PPCA, x: Tensor, candidates: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Return log p(x) under each candidate: the referee."""
    if isinstance(model, PPCA):
        return {n: model.log_prob(x) if n == "prior" else model.log_prob_under(c, x) for n, c in candidates.items()}
    num_samples, values = 250 * CONFIG["referee_repeats"], {}
    for name, candidate in candidates.items():  # the same draws as far as may be, for what is compared
        generator = _generator(seed)
        values[name] = importance_log_prob(model, x, num_samples, prior=candidate, generator=generator).log_prob
    return values


def policies(model: VAE | PPCA, train: Tensor, choice: Choice, seed: int) -> dict[str, str]:
    """Return what each policy samples from."""
    candidates = choice.candidates
    q_agg = candidates["q_agg"].double()
    generator = _generator(seed + 1)
    told = mutual_information(q_agg, 2000, generator=generator).value
    some = train[torch.randperm(len(train), generator=generator)[: CONFIG["num_held_out"]]]
    trained = {n: float(v.mean()) for n, v in log_likelihoods(model, some, candidates, seed + 2).items()}
    z, own = q_agg.sample_with_index((2000,), generator=generator)
    bound = {n: float(c.log_prob(z).double().mean()) for n, c in candidates.items()}
    bound["q_agg"] = float(q_agg.log_prob_leave_one_out(z, own).mean())
    return {
        "rule": choice.name,
        "prior": "prior",
        "q_agg": "q_agg",
        "gmm": "gmm",
        "information": "prior" if told > math.log(len(train)) - 0.1 else "q_agg",
        "training": max(trained, key=trained.get),
        "elbo": max(bound, key=bound.get),
    }


def score(case: str) -> dict[str, Any]:
    """Train, choose, and let the held-out data judge."""
    torch.set_num_threads(1)
    train, held_out = data_of(case)
    model, seed = model_of(case, train), parse(case)["seed"]
    choice = choose_prior(model, train, generator=_generator(seed))
    values = log_likelihoods(model, held_out, choice.candidates, seed)
    mean = {n: float(v.mean()) for n, v in values.items()}
    best = max(mean, key=mean.get)
    chosen = policies(model, train, choice, seed)
    short = {p: values[best] - values[n] for p, n in chosen.items()}
    return {
        "case": case,
        "held_out": mean,
        "gain_stderr": {n: _stderr(values[n] - values["prior"]) for n in ("gmm", "q_agg")},
        "predicted_gain": {n: choice.gains[n].value for n in ("gmm", "q_agg")},
        "predicted_gain_stderr": {n: choice.gains[n].stderr for n in ("gmm", "q_agg")},
        "num_components": len(choice.candidates["gmm"].weight),
        "best": best,
        "chosen": chosen,
        "regret": {p: float(v.mean()) for p, v in short.items()},
        "hit": {p: bool(v.mean() <= 2 * _stderr(v)) for p, v in short.items()},
    }


def summary(rows: list[dict]) -> dict[str, dict]:
    """For each policy the mean regret with a 95 % bootstrap interval over cases, the largest, and the hit rate."""
    names = [row["case"] for row in rows]
    return {
        policy: scores([row["regret"][policy] for row in rows], [row["hit"][policy] for row in rows], names)
        for policy in CONFIG["policies"]
    }


def scores(regret: list[float], hit: list[bool], names: list[str]) -> dict[str, Any]:
    """Summarise one policy."""
    draws = np.random.RandomState(0).choice(regret, (10_000, len(regret))).mean(1)
    wilson = stats.binomtest(sum(hit), len(hit)).proportion_ci(method="wilson")
    return {
        "mean_regret": float(np.mean(regret)),
        "mean_regret_interval": [float(q) for q in np.quantile(draws, [0.025, 0.975])],
        "largest_regret": max(regret),
        "worst_case": names[int(np.argmax(regret))],
        "hits": sum(hit),
        "hit_rate": sum(hit) / len(hit),
        "hit_rate_interval": [float(wilson.low), float(wilson.high)],
    }


def hindsight(rows: list[dict]) -> dict[str, float]:
    """Return the regret without caution, the largest estimated gain deciding. It was computed after the scores."""
    regret = []
    for row in rows:
        predicted = {"prior": 0.0, **row["predicted_gain"]}
        regret.append(row["held_out"][row["best"]] - row["held_out"][max(predicted, key=predicted.get)])
    return {"mean_regret": float(np.mean(regret)), "largest_regret": max(regret)}


def main() -> None:
    """Score all cases, resuming where an earlier run stopped, and write the results."""
    torch.set_num_threads(1)
    experiment = Experiment("rule", CONFIG)
    rows = [experiment.piece(case, lambda case=case: score(case)) for case in CONFIG["cases"]]
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    experiment.write(
        {"rule": RULE, "num_cases": len(rows), "summary": summary(rows), "hindsight": hindsight(rows), "rows": rows}
    )


def _digits() -> Tensor:
    return torch.from_numpy(load_digits().data) / 16


def _fashion() -> Tensor:
    images = fashion_mnist().train.reshape(-1, 1, 28, 28)
    return torch.nn.functional.avg_pool2d(images, 2).flatten(1).double()


def _cancer() -> Tensor:
    return torch.from_numpy(load_breast_cancer().data)


def _wine() -> Tensor:
    return torch.from_numpy(load_wine().data)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stderr(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


__all__ = ["CONFIG", "RULE", "data_of", "log_likelihoods", "main", "model_of", "parse", "read_result", "score"]

if __name__ == "__main__":
    main()
