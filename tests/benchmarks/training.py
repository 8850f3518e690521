"""How fast is `vaebook.training.fit`? Against pythae's trainer and a bare loop; `make bench` runs it.

All three train the same network from the same weights on the same data, with the same batch size, epochs and Adam, on
one thread. A round runs each once, in turn, so that a busy machine slows all of them; compared are ratios of a round.
The bare loop is forward, backward and step, with the loss written out in tensors and nothing checked. It draws the same
noise as `fit`. Ratios and final losses go to book/results/training.json. Where pythae is missing it is left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import scale
import torch
from harness import as_json, provenance, rounded
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from vaebook.bounds import elbo
from vaebook.data import binarize, digits, fashion_mnist
from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
from vaebook.priors import StandardNormal
from vaebook.tables import table
from vaebook.training import fit

ROUNDS, LIBRARIES = 5, ("torch", "pythae", "numpy")
SETTINGS = {  # data, hidden layers, D, batch size, epochs
    "digits, 64-64-2, batch 64": ("digits", (64,), 2, 64, 20),
    "digits, 64-64-2, batch 512": ("digits", (64,), 2, 512, 60),
    "Fashion-MNIST, 784-400-2, batch 128": ("Fashion-MNIST", (400,), 2, 128, 5),
}
IMAGES = 4_000
"""Of Fashion-MNIST."""


def images(name: str) -> Tensor:
    """Black and white images, (N, P)."""
    data = digits().train if name == "digits" else fashion_mnist().train[:IMAGES]
    return binarize(data, torch.Generator().manual_seed(0))


def model(x: Tensor, dim: int, hidden: tuple[int, ...], seed: int) -> VAE:
    """Build the network, its initial weights drawn with a seed."""
    generator = torch.Generator().manual_seed(seed)
    encoder = GaussianEncoder(x.shape[1], dim, hidden, generator=generator)
    return VAE(encoder, BernoulliDecoder(dim, x.shape[1], hidden, generator=generator), StandardNormal(dim))


def ours(vae: VAE, x: Tensor, batch: int, epochs: int, seed: int) -> None:
    """Train with `fit`."""
    fit(vae, x, num_epochs=epochs, batch_size=batch, generator=torch.Generator().manual_seed(seed), progress=False)


def bare(vae: VAE, x: Tensor, batch: int, epochs: int, seed: int) -> None:
    """Train with a loop of forward, backward and step."""
    generator, encoder, decoder = torch.Generator().manual_seed(seed), vae.encoder, vae.decoder
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch):
            rows = x[index]
            hidden = encoder.body(rows)
            loc, log_scale = encoder.loc(hidden), encoder.log_scale(hidden)
            spread = log_scale.exp()
            z = loc + spread * torch.empty_like(loc).normal_(generator=generator)
            logits = decoder.logits(decoder.body(z))
            fits = binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(-1)
            kl = 0.5 * (loc.square() + spread.square() - 1 - 2 * log_scale).sum(-1)
            loss = (fits + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # as any loop that tells its loss


def pythae(vae: VAE, x: Tensor, batch: int, epochs: int, seed: int) -> None:
    """Train the same layers with pythae's trainer, on its own data loader, its messages unseen."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as Model
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.encoder

        def forward(self, rows: Tensor) -> ModelOutput:
            hidden = self.net.body(rows)
            return ModelOutput(embedding=self.net.loc(hidden), log_covariance=2 * self.net.log_scale(hidden))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net.logits(self.net.body(z)).sigmoid())

    config = VAEConfig(input_dim=(x.shape[1],), latent_dim=vae.encoder.latent_dim, reconstruction_loss="bce")
    quiet = io.StringIO()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        options = {"output_dir": folder, "num_epochs": epochs, "per_device_train_batch_size": batch}
        training = BaseTrainerConfig(**options, learning_rate=1e-3, optimizer_cls="Adam", seed=seed, no_cuda=True)
        wrapped = Model(config, Encoder(), Decoder())
        BaseTrainer(wrapped, BaseDataset(x, torch.zeros(len(x))), training_config=training).train()


def trainers() -> dict[str, Callable[..., None]]:
    """Those that are installed, by name."""
    return {"fit": ours, "bare loop": bare} | ({"pythae": pythae} if find_spec("pythae") else {})


def measure(setting: str, rounds: int) -> list[dict[str, Any]]:
    """Train with all, round by round; a round has its own initial weights, order and noise."""
    name, hidden, dim, batch, epochs = SETTINGS[setting]
    x, every = images(name), trainers()
    seconds, losses = ({trainer: [] for trainer in every} for _ in range(2))
    for train in every.values():  # what is slow only once
        train(model(x, dim, hidden, 0), x[: 2 * batch], batch, 2, 0)
    for seed in range(rounds):
        for trainer, train in every.items():
            vae = model(x, dim, hidden, seed)
            start = time.perf_counter()
            train(vae, x, batch, epochs, seed)
            seconds[trainer].append(time.perf_counter() - start)
            with torch.no_grad():
                bound = elbo(vae.eval(), x, num_samples=20, generator=torch.Generator().manual_seed(seed))
            losses[trainer].append(-float(bound.mean()))
    rows = [{"setting": setting, "trainer": t, "seconds": seconds[t], "losses": losses[t]} for t in every]
    return rounded(rows, 6)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as the others `fit` is, the median over rounds, and what the losses differ by.

    The difference, in nats a datum, has a standard error over the rounds, which pairs the same initial weights.
    """
    found = []
    for row in rows:
        if row["trainer"] != "fit":
            own = next(r for r in rows if (r["setting"], r["trainer"]) == (row["setting"], "fit"))
            times = [other / mine for mine, other in zip(own["seconds"], row["seconds"], strict=True)]
            apart = [mine - other for mine, other in zip(own["losses"], row["losses"], strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
            compared = {"setting": row["setting"], "over": row["trainer"], "times_as_fast": statistics.median(times)}
            found.append(compared | {"loss_apart": statistics.mean(apart), "stderr": error})
    return rounded(found, 4)


def main() -> None:
    """Measure, show and store."""
    options = scale.arguments(__doc__, ROUNDS, "training.json").parse_args()
    torch.set_num_threads(1)
    if "pythae" not in trainers():
        print("pythae is not installed and left out")
    rows = [row for setting in SETTINGS for row in measure(setting, options.rounds)]
    compared = ratios(rows)
    print(table({key: [row[key] for row in compared] for key in compared[0]}))
    made = {"provenance": provenance(LIBRARIES), "rows": rows, "ratios": compared}
    scale.store(options.output, as_json(made) + "\n")


if __name__ == "__main__":
    main()
