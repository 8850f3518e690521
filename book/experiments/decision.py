"""Decide, on data sets that had no part in the design, which distribution of its codes to sample a trained VAE from.

`_decision.py` holds what was fixed in the commit FIXED before the scoring data were touched, down to its SHA-256.
This script measures all cases, several at a time, lets every policy choose, and summarises regret by data set: models
of one data set are no independent cases. Packages of the extra "experiments" bring some of the data.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _decision
import numpy as np
import torch
from harness import Experiment
from scipy import stats

FIXED = "9669a62c023da1d241d4c561c33bc06b0aa7cb74"
"""The commit that holds `_decision.py` as it was when the scoring data were first touched."""
WORKERS = int(os.environ.get("WORKERS", max(1, (os.cpu_count() or 1) // 2)))
SHA256 = hashlib.sha256(Path(_decision.__file__).read_bytes()).hexdigest()
CONFIG = {
    "design": list(_decision.DESIGN),
    "scoring": list(_decision.SCORING),
    "data": {name: {"cluster": c, "source": s} for name, (c, _, _, s) in _decision.DATA.items()},
    "cases": _decision.cases(_decision.DESIGN + _decision.SCORING),
    **{key.lower(): getattr(_decision, key) for key in ("NUM", "FOLDS", "GROUPS", "SIZES", "COVARIANCES", "SAMPLES")},
}

SOURCES = {
    "left_out": _decision.LEFT_OUT[1:],
    "left_out_jackknife": ("q_agg",),
    "validation": _decision.CANDIDATES[1:],
}
"""What predicts gains, of which candidates; of q_agg with the jackknife's errors too."""


def measure(case: str) -> dict[str, Any]:
    """Measure one case, or find it measured."""
    torch.set_num_threads(1)
    return Experiment("decision", CONFIG).piece(case, lambda: _decision.measure(case))


def measure_all(cases: list[str]) -> None:
    """Measure cases in several processes, the longest first."""
    longest = sorted(cases, key=lambda case: (-int(case.split("-")[2]), not case.startswith("fashion28")))
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for _ in pool.imap_unordered(measure, longest):
            pass


def cluster(row: dict[str, Any]) -> str:
    """Name the data set that a case belongs to; the two sizes of Fashion-MNIST are one."""
    return CONFIG["data"][row["case"].split("-")[0]]["cluster"]


def by_data(rows: list[dict], value: Callable[[dict], float]) -> dict[str, float]:
    """Average a value over the models of each data set."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(cluster(row), []).append(value(row))
    return {name: float(np.mean(values)) for name, values in found.items()}


def over_data(values: dict[str, float]) -> dict[str, Any]:
    """Average over data sets, each with one vote; the 95 % interval is the jackknife's, with Student's t."""
    mean, num = float(np.mean([*values.values()])), len(values)
    without = [float(np.mean([v for k, v in values.items() if k != name])) for name in values]
    error = float(np.sqrt((num - 1) * np.var(without)))
    half = float(stats.t.ppf(0.975, num - 1)) * error
    return {"mean": mean, "stderr": error, "interval": [mean - half, mean + half]}


def summary(rows: list[dict]) -> dict[str, dict]:
    """For each policy: mean regret over data sets, its difference to always the mixture, the largest, by data set."""
    found = {}
    for policy in rows[0]["regret"]:
        regret = by_data(rows, lambda row, p=policy: row["regret"][p][0])
        less = by_data(rows, lambda row, p=policy: row["regret"][p][0] - row["regret"]["gmm"][0])
        worst = max(rows, key=lambda row, p=policy: row["regret"][p][0])
        found[policy] = over_data(regret) | {
            "less_gmm": over_data(less),
            "largest": worst["regret"][policy][0],
            "worst_case": worst["case"],
            "by_data": regret,
        }
    return found


def calibration(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Compare predicted with test gains: their mean difference, and its root mean square in units of its error."""
    return {
        source: {
            name: {
                "rms": float(np.sqrt(np.mean([deviation(row, source, name) ** 2 for row in rows]))),
                "bias": float(np.mean([excess(row, source, name) for row in rows])),
            }
            for name in names
        }
        for source, names in SOURCES.items()
    }


def excess(row: dict, source: str, name: str) -> float:
    """Return how far a predicted gain is above that on test data, in nats."""
    return row["gain"][source.removesuffix("_jackknife")][name][0] - row["gain"]["test"][name][0]


def deviation(row: dict, source: str, name: str) -> float:
    """Return how far a predicted gain is above that on test data, in units of the error of the difference."""
    error = row["jackknife"] if source.endswith("_jackknife") else row["gain"][source][name][1]
    return excess(row, source, name) / float(np.hypot(error, row["gain"]["test"][name][1]))


def agreement(rows: list[dict]) -> dict[str, float]:
    """Compare mean log-likelihoods of test data, estimated, with the closed form of probabilistic PCA."""
    off = [(row["test"][n] - v, n) for row in rows for n, v in row["exact"].items()]
    smooth = [abs(d) for d, n in off if n != "q_agg"]
    return {
        "num_values": len(off),
        "mean": float(np.mean([d for d, _ in off])),
        "largest_q_agg": max(abs(d) for d, n in off if n == "q_agg"),
        "largest_others": max(smooth),
    }


def content(rows: list[dict]) -> dict[str, Any]:
    """Everything that follows from the rows."""
    part = {name: [row for row in rows if row["case"].split("-")[0] in CONFIG[name]] for name in ("design", "scoring")}
    return {
        "num_cases": {name: len(found) for name, found in part.items()} | {"all": len(rows)},
        "num_data": {name: len({cluster(row) for row in found}) for name, found in part.items()},
        "recommended": _decision.recommended({p: s["mean"] for p, s in summary(part["design"]).items()}),
        "summary": {name: summary(found) for name, found in part.items()},
        "calibration": calibration(part["scoring"]),
        "agreement": agreement(rows),
    }


def main() -> None:
    """Measure all cases, resuming where an earlier run stopped, judge them, and write the results."""
    torch.set_num_threads(1)
    measure_all(CONFIG["cases"])
    experiment = Experiment("decision", CONFIG)
    rows = [_decision.judge(experiment.piece(case, lambda c=case: _decision.measure(c))) for case in CONFIG["cases"]]
    experiment.write({"fixed": FIXED, "sha256": SHA256, **content(rows), "rows": rows})


if __name__ == "__main__":
    main()
