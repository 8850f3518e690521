"""Compare log-likelihoods with closed form, and with those of another library on the same models.

Probabilistic PCA of digits knows log p(x). Its encoder is exact; here its means are shifted and its scales widened, so
that importance weights vary. Models of pythae 0.1.2, with either of its losses, are scored by its own ``get_nll`` and
by `vaebook`: by the same bound, and by an adapted proposal, from which the bound differs by a bias that more samples
remove. The experiment needs that library: ``pip install --no-deps pythae==0.1.2``, and ``pydantic``, ``imageio``
and ``cloudpickle``, which `make bench` also puts into ``_build/bench``. Without it, results stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from harness import Experiment
from torch import Tensor
from torch.distributions import Independent, Normal

from vaebook.adapters import adapt
from vaebook.bounds import iwae_bound
from vaebook.data import digits
from vaebook.estimators import estimate
from vaebook.likelihood import importance_log_prob
from vaebook.ppca import PPCA

CONFIG = {
    "seeds": [0, 1, 2, 3, 4],
    "num_data": 60,
    "num_samples": 500,
    "more": 10,
    "repeats": 10,
    "dims": [2, 8, 16],
    "shift": 0.3,
    "widening": 1.2,
    "losses": {"bce": 1.0, "mse": 4.0},
    "latent_dim": 4,
    "epochs": 20,
}
"""more: times as many samples, for pythae once; shift: in scales of the encoder; losses: of pythae, with the unit by
which digits (0 to 1) are multiplied."""
LIKELIHOODS = {"bce": "bernoulli", "mse": lambda mean: Independent(Normal(mean, 1.0), mean.dim() - 1)}


def chosen(seed: int) -> Tensor:
    """Return held-out digits, float64, (num_data, 64), a random choice."""
    x = digits().test.double()
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: CONFIG["num_data"]]]


def wrong_encoder(model: PPCA) -> Any:
    """Adapt a model with an encoder that is shifted and too wide."""

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        q = model.encoder(x).base_dist
        return q.loc + CONFIG["shift"] * q.scale, CONFIG["widening"] * q.scale

    return adapt(encode, model.decoder, prior=model.prior)


def first_order_bias(dim: int) -> float:
    """Return -Var(w) / (2 S), closed form: E log of a mean of S weights w, less log E w, to first order in 1/S."""
    s, d = CONFIG["widening"], CONFIG["shift"]
    second = s / math.sqrt(2 - s**-2) * math.exp(d**2 / (2 * s**2 - 1))  # E w² / (E w)² for one latent
    return -(second**dim - 1) / (2 * CONFIG["num_samples"])


def repeated(value: Callable[[int], float], repeats: int) -> tuple[float, float]:
    """Mean over seeds, and its standard error."""
    return estimate(torch.tensor([value(seed) for seed in range(repeats)], dtype=torch.float64))[:2]


def by_importance(vae: Any, x: Tensor, seed: int) -> tuple[float, float]:
    """Mean of log p(x) over the data by `importance_log_prob`, and its standard error."""
    options = {"generator": torch.Generator().manual_seed(seed)}
    found = importance_log_prob(vae, x, CONFIG["num_samples"], **options)
    return float(found.log_prob.mean()), float(found.stderr.square().sum().sqrt()) / len(x)


@torch.no_grad()
def by_bound(vae: Any, x: Tensor, seed: int, repeats: int | None = None) -> tuple[float, float]:
    """Mean of the importance-weighted bound over the data, over repeats; and its standard error."""
    seeds = torch.Generator().manual_seed(seed)

    def once(_: int) -> float:
        return float(iwae_bound(vae, x, CONFIG["num_samples"], generator=seeds).double().mean())

    return repeated(once, repeats or CONFIG["repeats"])


def closed_form(dim: int, seed: int) -> dict[str, Any]:
    """Both estimators on probabilistic PCA, less the truth: nats per datum, and units of the standard error."""
    model, x = PPCA.fit(digits().train, dim), chosen(seed)
    vae, exact, bias = wrong_encoder(model), float(model.log_prob(x).mean()), first_order_bias(dim)
    importance, bound = by_importance(vae, x, seed), by_bound(vae, x, seed)
    return {
        "D": dim,
        "seed": seed,
        "exact": exact,
        "importance": importance[0] - exact,
        "importance_errors": (importance[0] - exact) / importance[1],
        "bound": bound[0] - exact,
        "bound_expected": bias,
        "bound_errors": (bound[0] - exact - bias) / bound[1],
    }


def trained(loss: str, seed: int) -> tuple[Any, Tensor]:
    """Train a VAE of pythae by its own loss; return it with held-out digits, (num_data, 1, 8, 8)."""
    from pythae.models import VAE, VAEConfig

    torch.manual_seed(seed)
    config = VAEConfig(input_dim=(1, 8, 8), latent_dim=CONFIG["latent_dim"], reconstruction_loss=loss)
    model, unit = VAE(config), CONFIG["losses"][loss]
    if loss == "mse":
        model.decoder.layers[-1][-1] = torch.nn.Identity()  # it has a sigmoid, for pixels up to 1
    x = unit * digits().train.float().reshape(-1, 1, 8, 8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(CONFIG["epochs"]):
        for rows in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            model({"data": x[rows]}).loss.backward()
            optimiser.step()
    return model.eval(), unit * chosen(seed).float().reshape(-1, 1, 8, 8)


def library(loss: str, seed: int, repeats: int | None = None) -> dict[str, Any]:
    """Compare pythae's own estimate with both of ours: nats per datum, and units of the joint standard error."""
    model, x = trained(loss, seed)
    vae = adapt(model.encoder, lambda z: model.decoder(z).reconstruction, likelihood=LIKELIHOODS[loss])
    size = CONFIG["num_samples"]

    @torch.no_grad()
    def once(number: int, times: int = 1) -> float:
        torch.manual_seed(1000 * seed + number)  # it draws from torch's global generator
        return float(model.get_nll(x, n_samples=times * size, batch_size=size))  # despite its name, no minus

    theirs, error = repeated(once, repeats or CONFIG["repeats"])
    more = once(999, CONFIG["more"])  # of as many samples as all repeats have: about the same standard error
    row = {"loss": loss, "seed": seed, "pythae": theirs, "pythae_stderr": error, "pythae_more": more}
    bound, ours = by_bound(vae, x, seed, repeats), by_importance(vae, x, seed)
    found = {"bound": (bound, theirs), "importance": (ours, theirs), "importance_more": (ours, more)}
    for name, ((value, own), other) in found.items():
        row |= {name: value - other, f"{name}_errors": (value - other) / math.hypot(error, own)}
    return row


def findings(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and largest difference in nats; in standard errors, the root mean square and the largest."""
    found = {}
    for name in [key.removesuffix("_errors") for key in rows[0] if key.endswith("_errors")]:
        errors = [row[f"{name}_errors"] for row in rows]
        found[name] = {
            "mean": sum(row[name] for row in rows) / len(rows),
            "largest": max(abs(row[name]) for row in rows),
            "rms_errors": math.sqrt(sum(e**2 for e in errors) / len(errors)),
            "largest_errors": max(map(abs, errors)),
        }
    return found


def main() -> None:
    """Compute all rows, resuming where an earlier run stopped, and write the results."""
    if find_spec("pythae") is None:
        print("agreement: needs pythae, which is not installed; its results stay as they are")
        return
    torch.set_num_threads(1)
    experiment = Experiment("agreement", CONFIG)
    own = [
        experiment.row(f"{dim}-{seed}", lambda d=dim, s=seed: closed_form(d, s))
        for dim in CONFIG["dims"]
        for seed in CONFIG["seeds"]
    ]
    other = [
        experiment.row(f"{loss}-{seed}", lambda n=loss, s=seed: library(n, s))
        for loss in CONFIG["losses"]
        for seed in CONFIG["seeds"]
    ]
    found = {"closed_form": findings(own), "pythae": findings(other)}
    experiment.write({"pythae": version("pythae"), "closed_form": own, "library": other, "findings": found})


if __name__ == "__main__":
    main()
