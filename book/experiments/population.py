"""Bracket the mismatch of a population from its codes: on digits, on a model's own data, and as data become more.

First, probabilistic PCA of the 1,297 training digits for D = 1 … 32, with its exact posterior as the encoder.
Bracketed is
the mismatch of the digits, and that of as many images drawn from the model itself, for which it is 0. Then populations
of known answer: codes whose means are Gaussian, so that the aggregated posterior of the population is one Gaussian, for
N = 100 … 60,000 data.
"""

from __future__ import annotations

import torch
from harness import Experiment
from torch import Tensor

from vaebook.data import digits
from vaebook.mixture import DiagGaussianMixture
from vaebook.population import Interval, bracket_information, bracket_mismatch
from vaebook.ppca import PPCA
from vaebook.priors import StandardNormal

CONFIG = {
    "dims": [1, 2, 4, 8, 12, 16, 20, 24, 28, 32],
    "num_components": [1, 5, 10],
    "num_samples": 5_000,
    "sizes": [100, 300, 1_000, 3_000, 10_000, 30_000, 60_000],
    "seeds": [0, 1, 2],
    "known_dim": 8,
    "known_scale": 0.3,
    "known_shifts": [0.0, 0.6],
}
"""`known_shifts` move the population's mean in every coordinate; its variance is 1."""


def brackets(q_agg: DiagGaussianMixture, seed: int) -> dict[str, dict]:
    """Bracket mismatch and information."""
    dim, generator = q_agg.loc.shape[1], torch.Generator().manual_seed(seed)
    options = {"num_components": tuple(CONFIG["num_components"]), "num_samples": CONFIG["num_samples"]}
    mismatch = bracket_mismatch(q_agg, StandardNormal(dim), generator=generator, **options)
    return {
        "mismatch": _row(mismatch, "low"),
        "information": _row(bracket_information(q_agg, generator=generator, **options), "high"),
    }


def _row(interval: Interval, side: str) -> dict:
    """Both ends, and every candidate for the end that is chosen among several."""
    found = {name: value for name, (value, _) in interval.candidates.items()}
    fitted = [value for name, value in found.items() if name.startswith("mixture")]
    return {
        **{k: v for k, v in interval._asdict().items() if k != "candidates"},
        "leave_one_out": found["leave-one-out"],
        "cross_fitted": max(fitted) if side == "low" else min(fitted),
    }


def images(dim: int, kind: str) -> tuple[PPCA, Tensor]:
    """Return the model fitted to the training digits, and these or as many images drawn from it."""
    x = digits().train.double()
    model = PPCA.fit(x, dim)
    if kind == "digits":
        return model, x
    generator = torch.Generator().manual_seed(1_000 + dim)
    z, noise = (torch.randn(len(x), k, generator=generator, dtype=torch.float64) for k in (dim, x.shape[1]))
    return model, model.likelihood(z).mean + model.noise_variance**0.5 * noise


def row(dim: int, kind: str) -> dict:
    """One dimension, digits or the model's own data."""
    torch.set_num_threads(1)
    model, x = images(dim, kind)
    return {"D": dim, "data": kind, **brackets(model.aggregated_posterior(x), dim)}


def known(num: int, shift: float, seed: int) -> dict:
    """N codes of a population whose aggregated posterior is N(shift, I): its mismatch and information are known."""
    torch.set_num_threads(1)
    dim, scale, generator = CONFIG["known_dim"], CONFIG["known_scale"], torch.Generator().manual_seed(seed)
    loc = shift + (1 - scale**2) ** 0.5 * torch.randn(num, dim, generator=generator, dtype=torch.float64)
    q_agg = DiagGaussianMixture(loc, torch.full_like(loc, scale))
    return {"N": num, "shift": shift, "seed": seed, **brackets(q_agg, seed), **truth(shift)}


def truth(shift: float) -> dict[str, float]:
    """Mismatch and information of the population, in closed form."""
    dim, scale = CONFIG["known_dim"], torch.tensor(CONFIG["known_scale"], dtype=torch.float64)
    return {"true_mismatch": 0.5 * dim * shift**2, "true_information": float(-dim * scale.log())}


def main() -> None:
    """Run everything, resuming where an earlier run stopped, and write the results."""
    experiment = Experiment("population", CONFIG)
    rows = [
        experiment.row(f"D={d} {kind}", lambda d=d, kind=kind: row(d, kind))
        for d in CONFIG["dims"]
        for kind in ("digits", "own")
    ]
    grown = [
        experiment.row(f"N={n} shift={shift} seed={seed}", lambda n=n, shift=shift, seed=seed: known(n, shift, seed))
        for n in CONFIG["sizes"]
        for shift in CONFIG["known_shifts"]
        for seed in CONFIG["seeds"]
    ]
    experiment.write({"rows": rows, "known": grown})


if __name__ == "__main__":
    main()
