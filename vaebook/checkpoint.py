r"""Save a VAE or a density and load it: one safetensors file, no pickle. Public through `vaebook.training`.

The file says which classes and arguments rebuild the model (`vaebook.storage` writes and verifies it). A right checksum
does not make a file harmless: what it declares is compared with its tensors before memory is taken for it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vaebook import storage
from vaebook._checks import check_all, check_tensor, check_type, explained
from vaebook.adapters import adapt_prior
from vaebook.mixture import DiagGaussianMixture
from vaebook.models import VAE, BernoulliDecoder, GaussianDecoder, GaussianEncoder
from vaebook.parts import optional
from vaebook.priors import ExemplarPrior, GaussianMixture, StandardNormal, VampPrior, as_mixture
from vaebook.storage import check_path

Density = StandardNormal | DiagGaussianMixture | GaussianMixture
"""What a file of `save_density` holds."""
_NETWORKS = (GaussianEncoder, BernoulliDecoder, GaussianDecoder)
_PARTS = {"encoder": _NETWORKS, "decoder": _NETWORKS, "prior": (StandardNormal, VampPrior, GaussianMixture)}
_KNOWN = {cls.__name__: cls for cls in (*_NETWORKS, *_PARTS["prior"], ExemplarPrior)}
_DEEPEST = 100  # hidden layers; more would take seconds to make
_REMEDY = "build the model yourself and pass it as `vae`"
_DENSITIES = {cls.__name__: cls for cls in Density.__args__}


def save(path: str | os.PathLike[str], vae: VAE, config: dict[str, Any] | None = None) -> None:
    """Write the model into one file, all or nothing.

    The file appears under its name only when it is complete; until then a file that was there stays as it was, and
    its permissions remain. Saved is the state_dict; the data of an `ExemplarPrior` have to be given again. A smaller
    file: `save(path, copy.deepcopy(vae).half())`, `load(path).float()`.

    Args:
        path: where to; the folder must exist.
        vae: the model.
        config: anything of your own to keep in the file's header that JSON can hold, such as how it was trained.

    Raises:
        TypeError: vae is not a `VAE`, path not a path, or config no dict.
        ValueError: the folder does not exist, weights are not finite, config holds what JSON cannot, or the prior is
            not in the state_dict and would be lost, such as an aggregated posterior: `save_density` keeps it.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> vae = VAE(GaussianEncoder(6, 1, (8,)), BernoulliDecoder(1, 6, (8,)), StandardNormal(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/vae.safetensors", vae, {"seed": 0})
        ...     load(f"{folder}/vae.safetensors").encoder.hidden
        (8,)
    """
    target, state = check_path(path), _check_vae(vae).state_dict()
    prior = optional(vae.prior, "source") or vae.prior
    if not _is_in_state(vae, prior):
        wanted = "a prior that is in its state_dict, a torch.nn.Module"
        got = f"{type(prior).__name__}, which would be lost; save_density(path, vae.prior) keeps it"
        raise ValueError(f"vae: expected {wanted}, got {got}")
    config = check_type("config", {} if config is None else config, dict)
    with explained("config", "values that JSON can hold"):
        config = json.loads(json.dumps(config, allow_nan=False))
    _check_finite("vae's ", state)
    storage.write(target, {"model": _describe(vae), "config": config}, state)


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
        ValueError: the file is truncated, corrupted or not one of ours; its weights are not finite; or its model is
            another than vae, or cannot be built here.

    Example: see `save`.
    """
    source = check_path(path)
    if vae is not None:
        _check_vae(vae)
    content, tensors = storage.read(source, "model")
    with explained(source, "a model that this version can build", within=True):
        model = content["model"]
        _check_finite("", tensors)
        vae = _build(model, tensors) if vae is None else vae
        for part, wanted in _describe(vae).items():
            if not storage.same_json(model[part], wanted):
                raise ValueError(f"{part}: expected {_call(wanted)}, got {_call(model[part])}")
        storage.check_fits(vae.state_dict(), tensors)
    vae.load_state_dict(tensors)
    return vae


def save_density(path: str | os.PathLike[str], density: Any) -> None:
    """Write a density over codes into one file, all or nothing, as `save` does.

    Args:
        path: where to; the folder must exist.
        density: a standard normal, an aggregated posterior or another mixture of Gaussians, or a prior that is one,
            such as a `VampPrior`: it is stored as the mixture that it is now.

    Raises:
        TypeError: density is not known to be a mixture of Gaussians, or path not a path.
        ValueError: the folder does not exist, or a component is not finite.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> q_agg = DiagGaussianMixture(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_density(f"{folder}/q_agg.safetensors", q_agg)
        ...     load_density(f"{folder}/q_agg.safetensors").log_prob(torch.zeros(1)) == q_agg.log_prob(torch.zeros(1))
        tensor(True)
    """
    target, density = check_path(path), adapt_prior(density, name="density")
    kept = density if type(density) in _DENSITIES.values() else as_mixture(density)
    if kept is None:
        got = f"{type(getattr(density, 'source', density)).__name__}, which tells none"
        remedy = "keep its state_dict, or save what vaebook.priors.fit_gmm fits to draws from it"
        raise TypeError(f"density: expected a mixture of Gaussians with components(), got {got}; {remedy}")
    name, tensors = type(kept).__name__, _tensors(kept)
    _density(name, tensors)  # what cannot be loaded is not saved
    storage.write(target, {"density": name}, tensors)


def load_density(path: str | os.PathLike[str]) -> Density:
    """Read a density that `save_density` wrote.

    Args:
        path: the file.

    Returns:
        The density, on the CPU, the same to the last bit: a `StandardNormal`, a `DiagGaussianMixture` or, with
        correlations, a `vaebook.priors.GaussianMixture`.

    Raises:
        TypeError: path is not a path.
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, corrupted or not one of ours, or describes no density.

    Example: see `save_density`.
    """
    source = check_path(path)
    content, tensors = storage.read(source, "density")
    with explained(source, "a density", within=True):
        return _density(content["density"], tensors)


def _tensors(density: Density) -> dict[str, Tensor]:
    """Return what makes a density: the state of a module that has one, otherwise its components in their own dtype."""
    log_weight, loc, scale = density.components()
    own = {"log_weight": log_weight, "loc": getattr(density, "loc", loc), "scale": getattr(density, "scale", scale)}
    return getattr(density, "state_dict", dict)() or own


def _density(name: str, tensors: dict[str, Tensor]) -> Density:
    """Make a density of its tensors, which it then has to the last bit."""
    if name == StandardNormal.__name__:
        loc = check_tensor("loc", tensors["loc"], (1, "D"))
        density = StandardNormal(loc.shape[1]).to(loc.dtype)
    else:
        density = _DENSITIES[name](**tensors)
    if name == GaussianMixture.__name__:
        density.load_state_dict(tensors)  # the constructor has normalised the weights
    storage.check_fits(_tensors(density), tensors)
    if not all(torch.equal(tensors[key], value) for key, value in _tensors(density).items()):
        raise ValueError("tensors: expected those of a normalised density, got others")
    return density


def _check_vae(vae: Any) -> VAE:
    hint = "; of what is no vaebook.models.VAE, keep the state_dict, and the prior by save_density"
    return check_type("vae", vae, VAE, hint)


def _check_finite(prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        check_all(f"{prefix}{name}", tensor, tensor.isfinite(), "finite values")


def _is_in_state(vae: VAE, prior: object) -> bool:
    """Tell whether a state_dict has all of a prior: a module with no tensor or distribution beside its weights."""
    own = [part for module in vae.modules() if module is prior for part in module.modules()]
    return bool(own) and not any(isinstance(value, Tensor | Distribution) for m in own for value in vars(m).values())


def _describe(vae: VAE) -> dict[str, Any]:
    """Class and arguments of the three parts as JSON gives them back; no arguments for a class that we cannot build."""
    model = {}
    for part in _PARTS:
        module = getattr(vae, part)
        name = type(getattr(module, "source", module)).__name__
        # A prior that uses another encoder could not be built: that one is not in the file.
        known = _KNOWN.get(name) is type(module) and getattr(module, "encoder", vae.encoder) is vae.encoder
        model[part] = {"class": name, "arguments": module.config() if known else None}
        if known and hasattr(module, "exemplars"):
            digest = storage.digest({}, {"exemplars": module.exemplars.cpu()})
            model[part]["arguments"]["sha256"] = digest[:16]
    return json.loads(json.dumps(model))  # tuples become lists, as they will in the file


def _call(part: dict[str, Any]) -> str:
    """Show the description of a part as the call that would build it."""
    arguments = part["arguments"]
    shown = "…" if arguments is None else ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"{part['class']}({shown})"


def _build(model: dict[str, Any], tensors: dict[str, Tensor]) -> VAE:
    for part, classes in _PARTS.items():
        name, allowed = model[part]["class"], [cls.__name__ for cls in classes]
        if name not in allowed or model[part]["arguments"] is None:
            reason = "its exemplars are not in the file, " if name == ExemplarPrior.__name__ else ""
            got = f"{_call(model[part])}; {reason}{_REMEDY}"
            raise ValueError(f"{part}: expected one of {', '.join(allowed)}, got {got}")
    encoder, decoder = (_network(part, model[part], _of(part, tensors)) for part in ("encoder", "decoder"))
    return VAE(encoder, decoder, _prior(model["prior"], encoder, tensors))


def _of(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def _network(part: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Build an encoder or a decoder without memory of its own; the tensors bring theirs, once they fit."""
    for name, tensor in tensors.items():
        check_tensor(f"{part}.{name}", tensor, ("...",), empty=True)
    if (depth := len(description["arguments"].get("hidden", ()))) > _DEEPEST:
        raise ValueError(f"{part}: expected at most {_DEEPEST} hidden layers, got {depth}; {_REMEDY}")
    with torch.device("meta"):
        network = _KNOWN[description["class"]](**description["arguments"])
    network = network.to(next((t.dtype for t in tensors.values()), None))
    storage.check_fits(network.state_dict(), tensors, f"{part}.")
    network.load_state_dict(tensors, assign=True)
    return network


def _prior(description: dict[str, Any], encoder: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    if description["class"] == StandardNormal.__name__:
        return StandardNormal(**description["arguments"]).to(next(encoder.parameters()).dtype)
    if description["class"] == VampPrior.__name__:
        return VampPrior(encoder, tensors["prior.pseudo_inputs"])
    return _density(description["class"], _of("prior", tensors))
