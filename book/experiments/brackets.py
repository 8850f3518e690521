"""Count how often the brackets of `vaebook.population` contain the truth, where populations make it hard for them.

Each population has finitely many data, up to two thousand, with codes on a line or of independent coordinates; its
mismatch with N(0, I) and its information are known by quadrature. Some have heavy or skewed tails, a kind of datum
that is rare, or clusters of unequal size. Of each, many samples of N codes are drawn and bracketed at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from harness import Experiment
from scipy import stats
from torch import Tensor
from torch.distributions import Normal

from vaebook.mixture import DiagGaussianMixture
from vaebook.population import bracket_information, bracket_mismatch
from vaebook.priors import StandardNormal

CONFIG = {
    "trials": 200,
    "options": {"num_components": [1], "num_samples": 400},
    "sizes": {
        "Gaussian, one latent": [10],
        "Gaussian, eight latents": [30],
        "two kinds, 80:20": [20],
        "three clusters, 70:24:6": [20],
        "widths log-normal": [40],
        "a kind of 3 %, far out": [60, 300],
        "means log-normal": [50, 500],
        "means Student's t, 3 df": [60, 600],
    },
}
"""Codes in a sample, for every population of POPULATIONS."""


def continuous(means: stats.rv_frozen, scale: float, num: int = 2_000) -> DiagGaussianMixture:
    """Return codes of one width whose means are the quantiles in the middle of equal shares."""
    loc = torch.from_numpy(means.ppf((np.arange(num) + 0.5) / num))[:, None]
    return DiagGaussianMixture(loc, torch.full_like(loc, scale))


def finite(places: list[float], scales: list[float], shares: list[float]) -> DiagGaussianMixture:
    """Return a population of a few kinds of data, with these shares."""
    loc, scale, share = torch.tensor([places, scales, shares], dtype=torch.float64)
    return DiagGaussianMixture(loc[:, None], scale[:, None], share.log())


def clusters() -> DiagGaussianMixture:
    """Return codes in three clusters, each with a hundred means."""
    spread = 0.3 * torch.special.ndtri((torch.arange(100, dtype=torch.float64) + 0.5) / 100)
    loc = (torch.tensor([-1.5, 1.0, 3.0], dtype=torch.float64)[:, None] + spread).flatten()[:, None]
    share = torch.tensor([0.7, 0.24, 0.06], dtype=torch.float64).repeat_interleave(100) / 100
    return DiagGaussianMixture(loc, torch.full_like(loc, 0.25), share.log())


def wide_and_narrow() -> DiagGaussianMixture:
    """Return codes whose widths differ, independently of their means."""
    side = torch.special.ndtri((torch.arange(45, dtype=torch.float64) + 0.5) / 45)
    loc, log_scale = torch.cartesian_prod(0.8 * side, 0.8 * side).unbind(1)
    return DiagGaussianMixture(loc[:, None], 0.5 * log_scale.exp()[:, None])


POPULATIONS: dict[str, tuple[Callable[[], DiagGaussianMixture], int]] = {
    "Gaussian, one latent": (lambda: continuous(stats.norm(0.5, 0.9), 0.4), 1),
    "Gaussian, eight latents": (lambda: continuous(stats.norm(0.3, 0.8), 0.6), 8),
    "two kinds, 80:20": (lambda: finite([-0.7, 1.6], [0.4, 0.4], [0.8, 0.2]), 1),
    "three clusters, 70:24:6": (clusters, 1),
    "widths log-normal": (wide_and_narrow, 1),
    "a kind of 3 %, far out": (lambda: finite([0.0, 4.0, -1.0], [0.5, 0.3, 0.8], [0.67, 0.03, 0.30]), 1),
    "means log-normal": (lambda: continuous(stats.lognorm(0.8, loc=-1, scale=0.8), 0.4), 1),
    "means Student's t, 3 df": (lambda: continuous(stats.t(3, scale=0.6), 0.5), 1),
}
"""The population of one coordinate, and the number of coordinates, which are independent."""


def truth(population: DiagGaussianMixture) -> tuple[float, float]:
    """Integrate the mismatch with N(0, 1) and the information of a population on the line, by the trapezoid rule."""
    reach = 10 * population.scale.max()
    z = torch.linspace(float(population.loc.min() - reach), float(population.loc.max() + reach), 40_001).double()
    log_q = population.log_prob(z[:, None])
    entropy = torch.trapezoid(torch.special.entr(log_q.exp()), z)
    mismatch = 0.5 * math.log(2 * math.pi) + 0.5 * (population.variance + population.mean.square()).sum() - entropy
    widths = population.log_weight.exp() @ Normal(0.0, population.scale).entropy()[:, 0]
    return float(mismatch), float(entropy - widths)


def sample(population: DiagGaussianMixture, num: int, dim: int, generator: torch.Generator) -> DiagGaussianMixture:
    """Draw N codes with independent coordinates."""
    drawn = torch.multinomial(population.log_weight.exp(), num * dim, replacement=True, generator=generator)
    return DiagGaussianMixture(*(side[drawn, 0].reshape(num, dim) for side in (population.loc, population.scale)))


def missed(name: str, num: int) -> dict[str, float]:
    """Count for how many samples a lower end lies above the truth, or an upper end below it."""
    torch.set_num_threads(1)
    make, dim = POPULATIONS[name]
    population = make()
    mismatch, information = (dim * value for value in truth(population))
    counts = torch.zeros(4, dtype=torch.long)
    for seed in range(CONFIG["trials"]):
        codes = sample(population, num, dim, torch.Generator().manual_seed(seed))
        low, high, information_low, information_high = brackets(codes, seed).tolist()
        counts += torch.tensor(
            [low > mismatch, high < mismatch, information_low > information, information_high < information]
        )
    ends = ("mismatch_low", "mismatch_high", "information_low", "information_high")
    found = dict(zip(ends, counts.tolist(), strict=True))
    return {"true_mismatch": mismatch, "true_information": information, **found}


def brackets(codes: DiagGaussianMixture, seed: int) -> Tensor:
    """Return both ends for the mismatch, then both for the information."""
    options = {"num_components": tuple(CONFIG["options"]["num_components"])}
    options["num_samples"] = CONFIG["options"]["num_samples"]
    generator = torch.Generator().manual_seed(10_000 + seed)
    one = bracket_mismatch(codes, StandardNormal(codes.loc.shape[1]), generator=generator, **options)
    two = bracket_information(codes, generator=generator, **options)
    return torch.tensor([one.low, one.high, two.low, two.high], dtype=torch.float64)


def main() -> None:
    """Run everything, resuming where an earlier run stopped, and write the results."""
    experiment, rows = Experiment("brackets", CONFIG), []
    for name, sizes in CONFIG["sizes"].items():
        for num in sizes:
            found = experiment.piece(f"{name} N={num}", lambda name=name, num=num: missed(name, num))
            found.pop("seconds")
            covered = {
                what: 1 - (found[f"{what}_low"] + found[f"{what}_high"]) / CONFIG["trials"]
                for what in ("mismatch", "information")
            }
            rows.append({"population": name, "N": num, **found, **covered})
    experiment.write({"rows": rows})


if __name__ == "__main__":
    main()
