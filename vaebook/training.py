r"""Fit a VAE, save it and load it.

Training minimises −(1/B) sum_b ELBO_β(x_b) over minibatches; here, and nowhere else, the sign is turned and the
mean taken. A saved file is one safetensors file whose header holds, as JSON, the classes and arguments that
rebuild the model, and a SHA-256 of all of it: no pickle, no second file that could disagree with the first.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vaebook import bounds, data
from vaebook._checks import check_all, check_generator, check_int, check_number, check_tensor
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.priors import StandardNormal

REBUILDABLE: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (GaussianEncoder, BernoulliDecoder, GaussianDecoder, StandardNormal)
}
"""Classes that `load` may call. Each keeps every argument of its constructor as an attribute of that name."""
FORMAT = 1
"""Version of what is in the header; `load` refuses others."""
_PARTS = ("encoder", "decoder", "prior")
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
    best, was_training = _snapshot(vae), vae.training
    bar = tqdm(range(1, num_epochs + 1), desc="fit", unit="epoch", disable=not progress)
    try:
        for epoch in bar:
            vae.train()
            batches = _batches(x, batch_size, generator, binarize)
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
        vae.train(was_training)
    return history


def save(path: str | os.PathLike[str], vae: VAE, config: dict[str, Any] | None = None) -> None:
    """Write the model into one file, all or nothing.

    The file appears under its name only when it is complete; until then a file that was there stays as it was.
    Saved is the state_dict: a prior that is no module, such as an aggregated posterior, has to be given again.

    Args:
        path: where to; the folder must exist.
        vae: the model.
        config: anything of your own to keep beside the weights that JSON can hold, such as how it was trained;
            `read_config` returns it.

    Raises:
        TypeError: vae is not a `VAE`, path not a path, or config no dict that JSON can hold.
        ValueError: the folder does not exist, or config holds nan or infinity.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/vae.safetensors", vae, {"seed": 0})
        ...     read_config(f"{folder}/vae.safetensors"), load(f"{folder}/vae.safetensors").encoder.hidden
        ({'seed': 0}, (8,))
    """
    target = _check_path(path)
    _check_vae(vae)
    if config is not None and not isinstance(config, dict):
        raise TypeError(f"config: expected a dict or None, got {type(config).__name__}")
    if not target.parent.is_dir():
        raise ValueError(f"path: expected a file in a folder that exists, got {path}")
    content = {"format": FORMAT, "model": _describe(vae), "config": config or {}}
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(f"config: expected values that JSON can hold, got an error: {error}") from None
    # clone: safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in vae.state_dict().items()}
    # One entry: safetensors writes several in random order, and the same model should give the same file.
    header = {"vaebook": json.dumps(content | {"sha256": _digest(content, tensors)})}
    _write_atomically(target, safetensors.torch.save(tensors, header))


def load(path: str | os.PathLike[str], vae: VAE | None = None) -> VAE:
    """Read a model that `save` wrote.

    Args:
        path: the file.
        vae: a model of the same architecture to load the weights into; None builds one, on the CPU, which is
            possible if encoder, decoder and prior are of the classes of this package.

    Returns:
        The model: vae itself if one was given. If there is an error, vae has not been touched.

    Raises:
        TypeError: vae is not a `VAE`, or path not a path.
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupted or not one of ours; or its model is another than vae, or
            cannot be built here.

    Example:
        >>> import tempfile
        >>> vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/vae.safetensors", vae)
        ...     again = load(f"{folder}/vae.safetensors")
        >>> torch.equal(again.encoder.loc.weight, vae.encoder.loc.weight)
        True
    """
    source = _check_path(path)
    content, tensors = _read(source)
    if vae is None:
        vae = _build(source, content["model"], tensors)
    else:
        _check_vae(vae)
        for part, wanted in _describe(vae).items():
            if content["model"][part] != wanted:
                raise ValueError(f"{source}: {part}: expected {_call(wanted)}, got {_call(content['model'][part])}")
    _check_fits(source, vae, tensors)
    vae.load_state_dict(tensors)
    return vae


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the config that was given to `save`, {} if none was.

    Args:
        path: the file.

    Returns:
        The dict, as JSON returns it (tuples have become lists).

    Raises:
        TypeError: path is not a path.
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupted or not one of ours.

    Example: see `save`.
    """
    return _read(_check_path(path))[0]["config"]


def _train_epoch(
    vae: VAE,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Tensor],
    epoch: int,
    beta: float,
    generator: torch.Generator | None,
) -> float:
    total = count = 0
    for number, batch in enumerate(batches, start=1):
        loss = _loss(vae, batch, f"epoch {epoch}, batch {number}", beta, generator)
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


def _loss(vae: VAE, batch: Tensor, where: str, beta: float, generator: torch.Generator | None) -> Tensor:
    """−mean ELBO, or a ValueError that says where it was not finite."""
    try:
        loss = -bounds.elbo(vae, batch, beta=beta, generator=generator).mean()
        check_all("loss", loss.detach(), torch.isfinite(loss), "a finite value")
    except ValueError as error:  # elbo itself may be the one to meet the nan
        raise ValueError(f"fit: stopped in {where}: {str(error).splitlines()[0]}; {_KEPT}") from error
    return loss


def _batches(x: Tensor, batch_size: int, generator: torch.Generator | None, binarize: bool) -> Iterator[Tensor]:
    order = torch.randperm(len(x), generator=generator, device=x.device)
    for index in order.split(batch_size):
        yield data.binarize(x[index], generator) if binarize else x[index]


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
    _check_vae(vae)
    _check_bool("binarize", binarize)
    check_tensor("x", x, ("N", getattr(vae.encoder, "data_dim", "P")))
    if validation is not None:
        check_tensor("validation", validation, ("M", x.shape[1]))
    for name, values in (("x", x), ("validation", validation)):
        if binarize and values is not None:
            check_all(name, values, (values >= 0) & (values <= 1), "values in [0, 1]")


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


def _check_vae(vae: object) -> None:
    if not isinstance(vae, VAE):
        raise TypeError(f"vae: expected a vaebook.models.VAE, got {type(vae).__name__}")


def _check_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a path, got {type(path).__name__}")
    return Path(path)


def _describe(vae: VAE) -> dict[str, Any]:
    """Class and arguments of the three parts as JSON gives them back; no arguments for a class that we cannot build."""
    model = {}
    for part in _PARTS:
        module = getattr(vae, part)
        cls = type(module)
        known = REBUILDABLE.get(cls.__name__) is cls
        names = [name for name in inspect.signature(cls).parameters if name != "generator"] if known else []
        arguments = {name: getattr(module, name) for name in names}
        model[part] = {"class": cls.__name__, "arguments": arguments if known else None}
    return json.loads(json.dumps(model))  # tuples become lists, as they will in the file


def _call(part: dict[str, Any]) -> str:
    """Show the description of a part as the call that would build it."""
    if part["arguments"] is None:
        return f"{part['class']}(…)"
    return f"{part['class']}({', '.join(f'{name}={value}' for name, value in part['arguments'].items())})"


def _build(source: Path, model: dict[str, Any], tensors: dict[str, Tensor]) -> VAE:
    for part in _PARTS:
        if model[part]["class"] not in REBUILDABLE or model[part]["arguments"] is None:
            raise ValueError(
                f"{source}: {part}: expected one of {', '.join(REBUILDABLE)}, got {_call(model[part])}; "
                "build the model yourself and pass it as `vae`"
            )
    try:
        vae = VAE(**{part: REBUILDABLE[model[part]["class"]](**model[part]["arguments"]) for part in _PARTS})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected a model that this version can build, got: {error}") from error
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return vae.to(dtypes.pop()) if len(dtypes) == 1 else vae


def _check_fits(source: Path, vae: VAE, tensors: dict[str, Tensor]) -> None:
    """Compare names, shapes and dtypes before anything is copied."""
    wanted, got = ({name: _kind(t) for name, t in group.items()} for group in (vae.state_dict(), tensors))
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise ValueError(f"{source}: {name}: expected {wanted.get(name, 'none')}, got {got.get(name, 'none')}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON content and the tensors, both verified."""
    expected = "a complete safetensors file written by vaebook.training.save"
    if not source.is_file():
        raise FileNotFoundError(f"path: expected {expected}, got {source}, which is no file")
    try:
        with safetensors.safe_open(source, framework="pt") as file:
            content = _parse((file.metadata() or {}).get("vaebook", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{source}: expected {expected}, got a truncated or foreign one ({error})") from None
    if content.get("format") != FORMAT:
        raise ValueError(f"{source}: expected {expected} in format {FORMAT}, got {content.get('format')}")
    digest, stored = _digest({k: v for k, v in content.items() if k != "sha256"}, tensors), content.get("sha256")
    if digest != stored:
        raise ValueError(f"{source}: corrupted, expected content with SHA-256 {stored}, got {digest}")
    return content, tensors


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, kind and bytes (safetensors itself has no checksum)."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"\n{name} {_kind(tensors[name])}\n".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _write_atomically(target: Path, content: bytes) -> None:
    # A scratch folder beside the target: same file system, cleaned up whatever happens, usual permissions.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
