"""Score probabilistic PCA on digits, in closed form, under three distributions of its codes.

For D = 1 … 32 latent dimensions and eleven splits into 1,297 digits for training and 500 held out (the book's fixed
one, whose validation and test images are held out together, and ten random ones), three distributions over z:
the prior N(0, I), the training set's aggregated posterior, and a mixture of ten Gaussians fitted to its samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from harness import Experiment, read_result
from scipy import stats
from torch import Tensor

from vaebook.data import digits
from vaebook.information import decompose_kl
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal, fit_gmm

CONFIG = {
    "dims": [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 29, 30, 31, 32],
    "splits": ["fixed", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "num_train": 1297,
    "num_components": 10,
    "num_gmm_samples": 10_000,
    "num_mi_samples": 4_000,
}
CURVES = ("prior", "q_agg", "gmm", "train_prior", "train", "loo")
"""Columns of a piece: held-out log-likelihood under three distributions; on the training set that of the prior, and
that of q_agg with and without the datum's own component."""


def split_of(split: int | str) -> tuple[Tensor, Tensor]:
    """Return training and held-out digits, float64, (1297, 64) and (500, 64)."""
    data = digits()
    x = torch.cat(data[:3]).double()
    if split != "fixed":
        x = x[np.random.RandomState(split).permutation(len(x))]
    return x[: CONFIG["num_train"]], x[CONFIG["num_train"] :]


def log_likelihoods(split: int | str, dim: int) -> dict[str, Tensor]:
    """Log-likelihood of every datum, by column of CURVES."""
    train, held_out = split_of(split)
    model = PPCA.fit(train, dim)
    q_agg = model.aggregated_posterior(train)
    gmm = fit_gmm(q_agg, CONFIG["num_components"], num_samples=CONFIG["num_gmm_samples"])
    own = torch.arange(len(train))
    return {
        "prior": model.log_prob(held_out),
        "q_agg": model.log_prob_under(q_agg, held_out),
        "gmm": model.log_prob_under(gmm, held_out),
        "train_prior": model.log_prob(train),
        "train": model.log_prob_under(q_agg, train),
        "loo": model.log_prob_under(q_agg, train, leave_out_index=own),
    }


def information(split: int | str, dim: int) -> dict[str, float]:
    """Return the parts of the KL term: rate (exact), mutual information and mismatch with their standard errors."""
    train, _ = split_of(split)
    q_agg = PPCA.fit(train, dim).aggregated_posterior(train)
    generator = torch.Generator().manual_seed(dim)
    parts = decompose_kl(q_agg, StandardNormal(dim), num_samples=CONFIG["num_mi_samples"], generator=generator)
    return {
        "rate": parts.rate.value,
        "information": parts.mutual_information.value,
        "information_stderr": parts.mutual_information.stderr,
        "marginal_kl": parts.marginal_kl.value,
        "marginal_kl_stderr": parts.marginal_kl.stderr,
    }


def row(split: int | str, dim: int) -> dict[str, float]:
    """One split at one D: means in nats per datum, and the standard errors of the paired differences."""
    values = log_likelihoods(split, dim)
    mean = {name: float(v.mean()) for name, v in values.items()}
    gain, predicted = values["q_agg"] - values["prior"], values["loo"] - values["train_prior"]
    return {
        "D": dim,
        "split": split,
        **mean,
        "gain": float(gain.mean()),
        "gain_stderr": float(gain.std() / math.sqrt(len(gain))),
        "predicted_gain": float(predicted.mean()),
        "predicted_gain_stderr": float(predicted.std() / math.sqrt(len(predicted))),
        **information(split, dim),
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean over splits, and half the width of a 95 % t-interval for it.

    The splits overlap, so the interval shows how much a split matters; it is no interval for other digits.
    """
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {"mean": float(np.mean(values)), "half_width": float(half), "lowest": min(values), "highest": max(values)}


def summary(rows: list[dict]) -> dict[str, dict]:
    """For every D the interval of each column over the random splits."""
    columns = (*CURVES, "gain", "predicted_gain", "rate", "information", "marginal_kl")
    out = {}
    for dim in CONFIG["dims"]:
        here = [r for r in rows if r["D"] == dim and r["split"] != "fixed"]
        out[str(dim)] = {name: interval([r[name] for r in here]) for name in columns}
    return out


def reversal(rows: list[dict], name: str) -> list[int | None]:
    """For every split the smallest D of the grid from which on the prior beats q_agg (None: it never does)."""
    found = []
    for split in CONFIG["splits"]:
        losing = [r["D"] for r in rows if r["split"] == split and r[name] < 0]
        winning = [r["D"] for r in rows if r["split"] == split and r[name] >= 0]
        found.append(min((d for d in losing if d > max(winning, default=0)), default=None))
    return found


def findings(rows: list[dict]) -> dict:
    """Return what the chapter states about all splits and dimensions together."""
    off = [abs(r["loo"] - r["q_agg"]) for r in rows]
    training_off = [r["train"] - r["q_agg"] for r in rows]
    share = [a / b for a, b in zip(off, training_off, strict=True)]
    wrong = [r for r in rows if (r["gain"] > 0) != (r["predicted_gain"] > 0)]
    told = math.log(CONFIG["num_train"])
    full = [r for r in rows if told - r["information"] < 0.1]
    return {
        "reverses_from": {"held_out": reversal(rows, "gain"), "predicted": reversal(rows, "predicted_gain")},
        "loo_off": {"largest": max(off), "mean": float(np.mean(off))},
        "train_off": {"largest": max(training_off), "mean": float(np.mean(training_off))},
        "loo_off_share": {
            "largest": max(share),
            "largest_from_D8": max(s for s, r in zip(share, rows, strict=True) if r["D"] >= 8),
        },
        "gain_off": {"largest": max(abs(r["gain"] - r["predicted_gain"]) for r in rows)},
        "wrong_sign": {
            "count": len(wrong),
            "of": len(rows),
            "largest_gain": max((abs(r["gain"]) for r in wrong), default=0.0),
            "dims": sorted({r["D"] for r in wrong}),
        },
        "full_information": {"count": len(full), "won": sum(r["gain"] > 0 for r in full)},
        "log_num_train": told,
    }


def main() -> None:
    """Compute all rows, resuming where an earlier run stopped, and write the results."""
    torch.set_num_threads(1)
    experiment = Experiment("ppca", CONFIG)
    rows = [
        experiment.row(f"{split}-{dim}", lambda s=split, d=dim: row(s, d))
        for split in CONFIG["splits"]
        for dim in CONFIG["dims"]
    ]
    experiment.write({"rows": rows, "summary": summary(rows), "findings": findings(rows)})


__all__ = ["CONFIG", "findings", "information", "interval", "log_likelihoods", "main", "read_result", "row", "split_of"]

if __name__ == "__main__":
    main()
