r"""Fit a VAE, save it and load it.

Training minimises −(1/B) sum_b ELBO_β(x_b) over minibatches; here, and nowhere else, the sign is turned and the
mean taken. Saving and loading live in `vaebook.checkpoint`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaebook import bounds
from vaebook._checks import check_finite, check_generator, check_int, check_number, check_type
from vaebook.adapters import AdaptedVAE, adapt_vae
from vaebook.checkpoint import load, load_density, save, save_density
from vaebook.evaluation import Condition, Data, batches, blaming, seeded, take
from vaebook.parts import optional

__all__ = ["History", "fit", "load", "load_density", "save", "save_density"]
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
    vae: Any,
    x: Data,
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    beta: float = 1.0,
    generator: torch.Generator | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    progress: bool = True,
    condition: Any = None,
    validation_condition: Any = None,
) -> History:
    r"""Train in place with Adam, and leave the best weights in the model.

    $\min_{\theta,\phi}\; -\frac1B\sum_{b=1}^B \mathrm{ELBO}_\beta(x_b)$, one sample of z a datum

    Under an `ExemplarPrior`, whose exemplars must be x in the same order, each training datum is scored without its
    own component; validation data are scored under all of it.

    The best weights are those of the epoch with the lowest validation loss, without validation those of the last
    epoch that was completed. They are left in the model also when training is interrupted or diverges.

    Args:
        vae: the model: a `VAE`, what `vaebook.adapters.adapt` makes, or another object with encoder, decoder and
            prior. Parameters that do not require gradients stay as they are, and so do modules in evaluation mode
            within a model that is in training mode.
        x: training data, (N, …), in the dtype of the model, brought to its device: a tensor, an array, or an iterable
            of batches such as a DataLoader, which is read once and kept.
        num_epochs: passes over the data.
        batch_size: B; the last batch of an epoch may be smaller.
        learning_rate: of Adam.
        beta: weight of the KL term.
        generator: the source of the order and the noise, dropout's too; None means torch's global one. With the
            same one and the same initial weights training is the same to the last bit.
        validation: data for the choice of the best epoch, (M, …). It does not change the course of training.
        patience: stop after so many epochs without a better validation loss.
        progress: show a bar on standard error.
        condition: what encoder or decoder take beside x, a row for each datum: a tensor, or tensors by name.
        validation_condition: the same for the validation data.

    Returns:
        The losses, and which epoch's weights the model now has.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong shape or is out of range, the model cannot take the data, the loss depends
            on weights that are not the model's and would not be trained, or it is not finite; the message then names
            the epoch and the batch.

    Example:
        >>> from vaebook.models import VAE, BernoulliDecoder, GaussianEncoder
        >>> from vaebook.priors import StandardNormal
        >>> x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).round()
        >>> vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
        >>> generator = torch.Generator().manual_seed(1)
        >>> history = fit(vae, x, num_epochs=30, batch_size=10, generator=generator, progress=False)
        >>> history.best_epoch, history.train_loss[-1] < history.train_loss[0]
        (30, True)

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), algorithm 1; Kingma & Ba, Adam (2015).
    """
    num_epochs = check_int("num_epochs", num_epochs, minimum=1)
    batch_size = check_int("batch_size", batch_size, minimum=1)
    learning_rate = check_number("learning_rate", learning_rate, above=0)
    beta = check_number("beta", beta, minimum=0)
    check_type("progress", progress, bool)
    if patience is not None and check_int("patience", patience, minimum=1) and validation is None:
        raise ValueError(f"patience: expected None without validation data, got {patience}")
    model = adapt_vae(vae)
    x, condition = _data(model, "x", x, condition)
    generator = check_generator(generator, x.device)
    if validation is not None:
        validation, validation_condition = _data(model, "validation", validation, validation_condition, x)
    exemplars = optional(model.prior, "exemplars")
    if exemplars is not None:
        _check_exemplars(exemplars, x)
    trained, holder = [p for p in model.parameters() if p.requires_grad], model.holder
    if not trained:
        raise ValueError("vae: expected parameters that require gradients, got none")
    optimizer, history = torch.optim.Adam(trained, lr=learning_rate, fused=True), History([], [], 0)
    best, was_training = copy.deepcopy(holder.state_dict()), {module: module.training for module in model.modules()}
    frozen = [module for module, training in was_training.items() if model.training and not training]
    bar = tqdm(range(1, num_epochs + 1), desc="fit", unit="epoch", disable=not progress)
    try:
        for epoch in bar:
            parts = torch.randperm(len(x), generator=generator, device=x.device).split(batch_size)
            # Where the prior has a component for each datum, it leaves out the datum's own.
            given = ((x[rows], take(condition, rows), None if exemplars is None else rows) for rows in parts)
            history.train_loss.append(_epoch(model, given, f"epoch {epoch}", beta, generator, optimizer, frozen))
            if validation is not None:
                given = ((*part, None) for part in batches(validation, batch_size, validation_condition))
                same = torch.Generator(x.device).manual_seed(0)
                history.validation_loss.append(_epoch(model, given, f"epoch {epoch}, validation", beta, same))
            for name, weight in holder.named_parameters():  # not to be kept as the best if the last batch spoiled them
                check_finite(f"fit: stopped after epoch {epoch} ({_KEPT}): {name}", weight)
            losses = history.validation_loss
            if not losses or losses[-1] < min(losses[:-1], default=torch.inf):
                history, best = history._replace(best_epoch=epoch), copy.deepcopy(holder.state_dict())
            bar.set_postfix(loss=f"{(history.validation_loss or history.train_loss)[-1]:.4g}")
            if patience is not None and epoch - history.best_epoch >= patience:
                break
    finally:
        bar.close()
        holder.load_state_dict(best)
        for module, flag in was_training.items():
            module.training = flag
    return history


def _data(model: AdaptedVAE, name: str, x: Any, condition: Any, like: Tensor | None = None) -> tuple[Tensor, Condition]:
    """Check data and that the model takes them, before anything is trained."""
    x, condition = model.data(x, condition, name=name)
    if like is not None and (x.shape[1:], x.dtype) != (like.shape[1:], like.dtype):
        wanted = f"data as x, of shape (M, {', '.join(map(str, like.shape[1:]))}) and {like.dtype}"
        raise ValueError(f"{name}: expected {wanted}, got {tuple(x.shape)} and {x.dtype}")
    with blaming(name), model.evaluating(x, condition):
        pass  # it compares two passes over the first data
    return x.detach(), condition


def _epoch(
    model: AdaptedVAE,
    parts: Iterable[tuple[Tensor, Condition, Tensor | None]],
    where: str,
    beta: float,
    generator: torch.Generator | None,
    optimizer: torch.optim.Optimizer | None = None,
    frozen: Iterable[nn.Module] = (),
) -> float:
    """Average −ELBO over batches; with an optimizer, step after each. Where it is not finite, a ValueError says so."""
    model.train(optimizer is not None)
    for module in frozen:
        module.training = False
    # own is for dropout and the like, which draw from torch's global generator
    total, count, own = 0.0, 0, generator and generator.clone_state()
    with torch.set_grad_enabled(optimizer is not None), seeded(own):
        for number, (batch, condition, index) in enumerate(parts, start=1):
            try:
                given = {"beta": beta, "index": index, "condition": condition, "generator": generator}
                loss = -bounds.objective(model, batch, **given).mean()
                value = float(check_finite("loss", loss.detach()))
            except ValueError as error:  # the bound itself may be the one to meet the nan
                told = str(error).splitlines()[0]
                raise ValueError(f"fit: stopped in {where}, batch {number}: {told}; {_KEPT}") from error
            if optimizer is not None:
                if not optimizer.state:  # before the first step
                    _check_hidden(loss, optimizer.param_groups[0]["params"])
                optimizer.zero_grad()
                if loss.requires_grad:
                    loss.backward()
                if all(p.grad is None for p in optimizer.param_groups[0]["params"]):
                    raise ValueError("vae: expected a loss that depends on weights, got none (torch.inference_mode?)")
                optimizer.step()
            total, count = total + value * len(batch), count + len(batch)
    return total / count


def _check_exemplars(exemplars: Tensor, x: Tensor) -> None:
    wanted, got = ((tuple(t.shape), t.dtype, t.device) for t in (exemplars, x))
    if wanted != got or not torch.equal(exemplars, x):
        differ = "other values" if wanted == got else f"shape {got[0]}, {got[1]} on {got[2]}"
        raise ValueError(f"x: expected the exemplars of vae.prior, in their order, got {differ}")


def _check_hidden(loss: Tensor, trained: list[Tensor]) -> None:
    """Refuse a loss that depends on weights that are not trained, as those of a module that was not found."""
    nodes, leaves, known = [loss.grad_fn], {}, set(map(id, trained))
    for node in nodes:  # grows
        if node not in leaves:
            leaves[node] = getattr(node, "variable", None)
            nodes += [further for further, _ in getattr(node, "next_functions", ())]
    # A model may ask for gradients in its input, too, which is no parameter.
    if hidden := [tuple(p.shape) for p in leaves.values() if isinstance(p, nn.Parameter) and id(p) not in known]:
        hint = "; name their modules in adapt(…, modules=…); copies share functions"
        raise ValueError(f"vae: expected a loss of its own weights alone, got one of others, too: {hidden[:3]}{hint}")
