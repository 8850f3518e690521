"""The VAEs that eight chapters look at: black-and-white digits, two or eight latents, a standard normal prior.

Chapter mixture/vae trains the one with two before the reader's eyes, with the settings below; the others load the
stored weights, so that they all speak of the same codes, on every processor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import RESULTS, Experiment
from torch import Tensor

from vaebook import data, training
from vaebook.bounds import elbo
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import StandardNormal
from vaebook.storage import write_atomically

CONFIG: dict[str, Any] = {
    "data": "scikit-learn digits, binarised once: 1297 training and 400 test images",
    "seed": 0,
    "hidden": [128],
    "latent_dims": [2, 8],
    "epochs": 200,
    "batch_size": 64,
    "num_samples": 100,
}
WEIGHTS = {2: RESULTS / "plane.safetensors", 8: RESULTS / "eight.safetensors"}


def train(epochs: int, dim: int) -> tuple[VAE, list[float], Tensor]:
    """Train for so many epochs; return the model, the loss after each epoch and the training images."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    x, hidden = data.binarize(data.digits().train, generator), CONFIG["hidden"]
    vae = VAE(GaussianEncoder(64, dim, hidden), BernoulliDecoder(dim, 64, hidden), StandardNormal(dim))
    size = CONFIG["batch_size"]
    history = training.fit(vae, x, num_epochs=epochs, batch_size=size, generator=generator, progress=False)
    return vae, history.train_loss, x


@torch.no_grad()
def bounds(vae: VAE, x: Tensor) -> dict[str, float]:
    """Mean ELBO of training and of test images, in nats."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    images = {"training": x, "test": data.binarize(data.digits().test, generator)}
    values = {
        name: elbo(vae, part, num_samples=CONFIG["num_samples"], generator=generator) for name, part in images.items()
    }
    return {name: float(value.mean()) for name, value in values.items()}


def main() -> None:
    """Train, and write weights and results."""
    torch.set_num_threads(1)
    experiment = Experiment("plane", CONFIG)

    def run(dim: int) -> dict[str, Any]:
        vae, losses, x = train(CONFIG["epochs"], dim)
        training.save(experiment.folder / WEIGHTS[dim].name, vae, {"seed": CONFIG["seed"]})
        return {"losses": losses, "elbo": bounds(vae, x)}

    rows = {str(dim): experiment.row(f"latents-{dim}", partial(run, dim)) for dim in CONFIG["latent_dims"]}
    for path in WEIGHTS.values():
        write_atomically(path, (experiment.folder / path.name).read_bytes())
    experiment.write({"models": rows})


if __name__ == "__main__":
    main()
