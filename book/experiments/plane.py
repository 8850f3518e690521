"""The VAE that seven chapters look at: black-and-white digits, two latent dimensions, a standard normal prior.

Chapter mixture/vae trains it before the reader's eyes, with the settings below; the others load the stored weights, so
that they all speak of the same codes, on every processor.
"""

from __future__ import annotations

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
    "latent_dim": 2,
    "epochs": 200,
    "batch_size": 64,
    "num_samples": 100,
}
WEIGHTS = RESULTS / "plane.safetensors"


def train(epochs: int) -> tuple[VAE, list[float], Tensor]:
    """Train for so many epochs; return the model, the loss after each epoch and the training images."""
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    x, dim, hidden = data.binarize(data.digits().train, generator), CONFIG["latent_dim"], CONFIG["hidden"]
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

    def run() -> dict[str, Any]:
        vae, losses, x = train(CONFIG["epochs"])
        training.save(experiment.folder / WEIGHTS.name, vae, {"seed": CONFIG["seed"]})
        return {"losses": losses, "elbo": bounds(vae, x)}

    content = experiment.row("all epochs", run)
    write_atomically(WEIGHTS, (experiment.folder / WEIGHTS.name).read_bytes())
    experiment.write(content)


if __name__ == "__main__":
    main()
