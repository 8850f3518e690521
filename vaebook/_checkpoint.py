r"""Save a VAE and load it: one safetensors file, no pickle. Public through `vaebook.training`.

The header of a saved file holds, as JSON, the classes and arguments that rebuild the model, and a SHA-256 of all of
it: there is no second file that could disagree with the first, and no byte can change unnoticed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior

REBUILDABLE: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (GaussianEncoder, BernoulliDecoder, GaussianDecoder, StandardNormal)
}
"""Classes that `load` may call. Each keeps every argument of its constructor as an attribute of that name.
The priors with parameters or data of their own are made from their tensors: `_describe_prior`, `_build_prior`."""
FORMAT = 1
"""Version of what is in the header; `load` refuses others."""
_PARTS = ("encoder", "decoder", "prior")
_FROM_TENSORS = (VampPrior.__name__, GaussianMixture.__name__)


def save(path: str | os.PathLike[str], vae: VAE, config: dict[str, Any] | None = None) -> None:
    """Write the model into one file, all or nothing.

    The file appears under its name only when it is complete; until then a file that was there stays as it was.
    Saved is the state_dict: a prior that is no module, such as an aggregated posterior, has to be given again, and so
    have the data of an `ExemplarPrior`. A smaller file: `save(path, copy.deepcopy(vae).half())`, `load(path).float()`.

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
    check_vae(vae)
    if config is not None and not isinstance(config, dict):
        raise TypeError(f"config: expected a dict or None, got {type(config).__name__}")
    if not target.parent.is_dir():
        raise ValueError(f"path: expected a file in a folder that exists, got {path}")
    content = {"format": FORMAT, "model": _describe(vae), "config": config or {}}
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"config: expected values that JSON can hold, got an error: {error}") from None
    # clone: safetensors refuses tensors that share memory.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in vae.state_dict().items()}
    # One entry: safetensors writes several in random order, and the same model should give the same file.
    header = {"vaebook": json.dumps(content | {"sha256": _digest(content, tensors)})}
    write_atomically(target, safetensors.torch.save(tensors, header))


def load(path: str | os.PathLike[str], vae: VAE | None = None) -> VAE:
    """Read a model that `save` wrote.

    Args:
        path: the file.
        vae: a model of the same architecture to load the weights into; None builds one, on the CPU, which is
            possible if encoder, decoder and prior are of the classes of this package, except for an `ExemplarPrior`:
            its exemplars are not in the file.

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
        check_vae(vae)
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


def check_vae(vae: object) -> None:
    """Check that an argument is a VAE."""
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
        model[part] = {"class": cls.__name__, "arguments": arguments if known else _describe_prior(module, vae.encoder)}
    return json.loads(json.dumps(model))  # tuples become lists, as they will in the file


def _describe_prior(prior: object, encoder: nn.Module) -> dict[str, Any] | None:
    """Sizes of a prior that is made from tensors; none of one that uses another encoder, which is not in the file."""
    if type(prior) is GaussianMixture:
        return {"num_components": len(prior.weight), "latent_dim": prior.latent_dim}
    if type(prior) is VampPrior and prior.encoder is encoder:
        return {"num_pseudo_inputs": len(prior.pseudo_inputs)}
    if type(prior) is ExemplarPrior and prior.encoder is encoder:
        sha256 = _digest({}, {"exemplars": prior.exemplars.cpu().contiguous()})
        return {"num_exemplars": len(prior.exemplars), "sha256": sha256[:16]}
    return None


def _call(part: dict[str, Any]) -> str:
    """Show the description of a part as the call that would build it."""
    if part["arguments"] is None:
        return f"{part['class']}(…)"
    return f"{part['class']}({', '.join(f'{name}={value}' for name, value in part['arguments'].items())})"


def _build(source: Path, model: dict[str, Any], tensors: dict[str, Tensor]) -> VAE:
    for part in _PARTS:
        name, allowed = model[part]["class"], [*REBUILDABLE, *(_FROM_TENSORS if part == "prior" else ())]
        if name not in allowed or model[part]["arguments"] is None:
            reason = "its exemplars are not in the file, " if name == ExemplarPrior.__name__ else ""
            raise ValueError(
                f"{source}: {part}: expected one of {', '.join(allowed)}, got {_call(model[part])}; "
                f"{reason}build the model yourself and pass it as `vae`"
            )
    try:
        encoder, decoder = (REBUILDABLE[model[part]["class"]](**model[part]["arguments"]) for part in _PARTS[:2])
        encoder, decoder = _as_saved(encoder, "encoder", tensors), _as_saved(decoder, "decoder", tensors)
        return VAE(encoder, decoder, _build_prior(model["prior"], encoder, tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: expected a model that this version can build, got: {error}") from error


def _build_prior(description: dict[str, Any], encoder: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    name, arguments = description["class"], description["arguments"]
    if name == VampPrior.__name__:
        return VampPrior(encoder, tensors["prior.pseudo_inputs"])
    if name == GaussianMixture.__name__:  # of the right size; its values are loaded
        num, dim = arguments["num_components"], arguments["latent_dim"]
        empty = GaussianMixture(torch.full((num,), 1 / num), torch.zeros(num, dim), torch.eye(dim).expand(num, -1, -1))
        return _as_saved(empty, "prior", tensors)
    return _as_saved(REBUILDABLE[name](**arguments), "encoder", tensors)  # without tensors: follows the encoder


def _as_saved(module: nn.Module, part: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Give a new module the dtype that the tensors of a part have, if they have one."""
    dtypes = {t.dtype for name, t in tensors.items() if name.startswith(f"{part}.") and t.is_floating_point()}
    return module.to(dtypes.pop()) if len(dtypes) == 1 else module


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
    if not {"model", "config"} <= content.keys():
        raise ValueError(f"{source}: expected {expected}, got one that lacks a model or a config")
    digest, stored = _digest({k: v for k, v in content.items() if k != "sha256"}, tensors), content.get("sha256")
    if digest != stored:
        raise ValueError(f"{source}: corrupted, expected content with SHA-256 {stored}, got {digest}")
    return content, tensors


def _parse(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, kind and bytes (safetensors itself has no checksum)."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        sha.update(f"\n{name} {_kind(tensors[name])}\n".encode())
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def write_atomically(target: Path, content: bytes) -> None:
    """Put a file in place when it is complete; until then one that was there stays as it was."""
    # A scratch folder beside the target: same file system, cleaned up whatever happens, usual permissions.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / target.name
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
