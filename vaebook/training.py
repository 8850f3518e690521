r"""Fit a VAE, save it and load it.

Training minimises −(1/B) sum_b ELBO_β(x_b) over minibatches; here, and nowhere else, the sign is turned and the
mean taken. Saving and loading live in `vaebook._checkpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaebook import bounds, data
from vaebook._checkpoint import check_vae, load, read_config, save
from vaebook._checks import check_all, check_generator, check_int, check_number, check_tensor
from vaebook.models import VAE
from vaebook.priors import ExemplarPrior

__all__ = ["History", "fit", "load", "read_config", "save"]
_KEPT = "the model has its best weights so far"


class History(NamedTuple):
    """What `fit` logged; epochs are counted from 1.

    Losses are −mean ELBO_β in nats per datum. That of training is averaged over an epoch's batches, during which
    the weights change; that of validation is taken after the epoch, each time with the same noise.
    """

    train_loss: list[float]
    validation_loss: list[float]
    best_epoch: int


def fit(
    vae: VAE,
    x: Tensor,
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    beta: float = 1.0,
    generator: torch.Generator | None = None,
    validation: Tensor | None = None,
    patience: int | None = None,
    progress: bool = True,
    binarize: bool = False,
) -> History:
    r"""Train in place with Adam, and leave the best weights in the model.

    $\min_{\theta,\phi}\; -\frac1B\sum_{b=1}^B \mathrm{ELBO}_\beta(x_b)$, one sample of z a datum

    Under an `ExemplarPrior`, whose exemplars must be x in the same order, each training datum is scored without its
    own component; validation data are scored under all of it. (With binarize=True it is the data that are binarised
    anew; the exemplars are encoded as they are.)

    The best weights are those of the epoch with the lowest validation loss, without validation those of the last
    epoch that was completed. They are left in the model also when training is interrupted or diverges.

    Args:
        vae: the model; parameters that do not require gradients stay as they are.
        x: training data, (N, P), in the dtype and on the device of the model.
        num_epochs: passes over the data.
        batch_size: B; the last batch of an epoch may be smaller.
        learning_rate: of Adam.
        beta: weight of the KL term.
        generator: the source of the order, the noise and the binarisation; None means torch's global one. With the
            same one and the same initial weights training is the same to the last bit.
        validation: data for the choice of the best epoch, (M, P). It does not change the course of training.
        patience: stop after so many epochs without a better validation loss.
        progress: show a bar on standard error.
        binarize: draw every batch anew with `vaebook.data.binarize` (and validation data once).

    Returns:
        The losses, and which epoch's weights the model now has.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape or is out of range, or the loss is not finite; the message then
            names the epoch and the batch.

    Example:
        >>> from vaebook.models import BernoulliDecoder, GaussianEncoder
        >>> from vaebook.priors import StandardNormal
        >>> x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()
        >>> vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
        >>> generator = torch.Generator().manual_seed(1)
        >>> history = fit(vae, x, num_epochs=30, batch_size=10, generator=generator, progress=False)
        >>> history.best_epoch, history.train_loss[-1] < history.train_loss[0]
        (30, True)

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), algorithm 1; Kingma & Ba, Adam (2015).
    """
    _check_data(vae, x, validation, binarize)
    _check_settings(num_epochs, batch_size, learning_rate, beta, generator)
    _check_patience(patience, validation, progress)
    if validation is not None and binarize:
        validation = data.binarize(validation, _fixed_generator(x))
    optimizer = torch.optim.Adam(_trainable(vae), lr=learning_rate, fused=True)
    history = History([], [], 0)
    x, validation = x.detach(), None if validation is None else validation.detach()
    best, was_training = _snapshot(vae), {module: module.training for module in vae.modules()}
    bar = tqdm(range(1, num_epochs + 1), desc="fit", unit="epoch", disable=not progress)
    try:
        for epoch in bar:
            vae.train()
            batches = _batches(vae, x, batch_size, generator, binarize)
            history.train_loss.append(_train_epoch(vae, optimizer, batches, epoch, beta, generator))
            if validation is not None:
                history.validation_loss.append(_evaluate(vae, validation, batch_size, epoch, beta))
            _check_weights(vae, epoch)
            if _is_best(history):
                history, best = history._replace(best_epoch=epoch), _snapshot(vae)
            bar.set_postfix(loss=f"{(history.validation_loss or history.train_loss)[-1]:.4g}")
            if patience is not None and epoch - history.best_epoch >= patience:
                break
    finally:
        bar.close()
        vae.load_state_dict(best)
        for module, flag in was_training.items():
            module.training = flag
    return history


def _train_epoch(
    vae: VAE,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor | None]],
    epoch: int,
    beta: float,
    generator: torch.Generator | None,
) -> float:
    total = count = 0
    for number, (batch, index) in enumerate(batches, start=1):
        loss = _loss(vae, batch, f"epoch {epoch}, batch {number}", beta, generator, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + float(loss.detach()) * len(batch), count + len(batch)
    return total / count


@torch.no_grad()
def _evaluate(vae: VAE, x: Tensor, batch_size: int, epoch: int, beta: float) -> float:
    vae.eval()
    generator = _fixed_generator(x)
    losses = [
        _loss(vae, batch, f"epoch {epoch}, validation", beta, generator) * len(batch) for batch in x.split(batch_size)
    ]
    return float(torch.stack(losses).sum()) / len(x)


def _loss(
    vae: VAE,
    batch: Tensor,
    where: str,
    beta: float,
    generator: torch.Generator | None,
    index: Tensor | None = None,
) -> Tensor:
    """−mean ELBO, or a ValueError that says where it was not finite."""
    try:
        loss = -bounds.elbo(vae, batch, beta=beta, index=index, generator=generator).mean()
        check_all("loss", loss.detach(), torch.isfinite(loss), "a finite value")
    except ValueError as error:  # elbo itself may be the one to meet the nan
        raise ValueError(f"fit: stopped in {where}: {str(error).splitlines()[0]}; {_KEPT}") from error
    return loss


def _batches(
    vae: VAE, x: Tensor, batch_size: int, generator: torch.Generator | None, binarize: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches, with the indices of their data where the prior has a component for each of them."""
    leaves_out = isinstance(vae.prior, ExemplarPrior)
    order = torch.randperm(len(x), generator=generator, device=x.device)
    for index in order.split(batch_size):
        batch = data.binarize(x[index], generator) if binarize else x[index]
        yield batch, index if leaves_out else None


def _is_best(history: History) -> bool:
    losses = history.validation_loss
    return not losses or losses[-1] < min(losses[:-1], default=float("inf"))


def _snapshot(vae: VAE) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


def _fixed_generator(x: Tensor) -> torch.Generator:
    return torch.Generator(x.device).manual_seed(0)


def _trainable(vae: VAE) -> list[nn.Parameter]:
    parameters = [p for p in vae.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("vae: expected parameters that require gradients, got none")
    return parameters


def _check_data(vae: object, x: object, validation: object, binarize: object) -> None:
    check_vae(vae)
    _check_bool("binarize", binarize)
    check_tensor("x", x, ("N", getattr(vae.encoder, "data_dim", "P")))
    if isinstance(vae.prior, ExemplarPrior):
        _check_exemplars(vae.prior.exemplars, x)
    if validation is not None:
        check_tensor("validation", validation, ("M", x.shape[1]))
    for name, values in (("x", x), ("validation", validation)):
        if binarize and values is not None:
            check_all(name, values, (values >= 0) & (values <= 1), "values in [0, 1]")


def _check_exemplars(exemplars: Tensor, x: Tensor) -> None:
    wanted, got = ((tuple(t.shape), t.dtype, t.device) for t in (exemplars, x))
    if wanted != got or not torch.equal(exemplars, x):
        differ = "other values" if wanted == got else f"shape {got[0]}, {got[1]} on {got[2]}"
        raise ValueError(f"x: expected the exemplars of vae.prior, in their order, got {differ}")


def _check_settings(
    num_epochs: object, batch_size: object, learning_rate: object, beta: object, generator: object
) -> None:
    check_int("num_epochs", num_epochs, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    check_number("learning_rate", learning_rate, above=0)
    check_number("beta", beta, minimum=0)
    check_generator(generator)


def _check_patience(patience: object, validation: object, progress: object) -> None:
    _check_bool("progress", progress)
    if patience is not None:
        check_int("patience", patience, minimum=1)
        if validation is None:
            raise ValueError(f"patience: expected None without validation data, got {patience}")


def _check_bool(name: str, flag: object) -> None:
    if not isinstance(flag, bool):
        raise TypeError(f"{name}: expected a bool, got {type(flag).__name__}")


def _check_weights(vae: VAE, epoch: int) -> None:
    """Refuse weights that the last batch of an epoch has spoiled: they must not be kept as the best."""
    for name, parameter in vae.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"fit: stopped after epoch {epoch}: {name}: expected finite values; {_KEPT}")
