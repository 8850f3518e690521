r"""The doors: anybody's encoder, decoder and prior, brought into the one form that this package knows.

What comes from outside is adapted here, once, and never inspected again. Behind the door

- an *encoder* maps a batch (B, …) to Independent(Normal, 1) over flat codes (B, D);
- a *decoder* is called with rows, (S·B, D) or (S·B, *latent shape), and its result is shaped back to (S, B);
- a *prior* has ``latent_dim``, ``log_prob(z)`` for z (*s, D) and ``sample(shape, *, generator=None)``; and, where there
  are any, ``components()``, ``leave_one_out(index)``, ``kl(loc, scale)`` and ``config()``.

`adapt` makes a VAE of loose parts; every function of the package that takes a VAE, an encoder, a decoder or a prior
does the same with what it gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaebook._checks import check_generator, check_int, check_shape, check_tensor
from vaebook.evaluation import (
    Condition,
    as_data,
    call,
    check_condition,
    check_repeatable,
    dtype_of,
    evaluation_mode,
    modules_of,
    repeat,
    seeded,
    take,
)
from vaebook.outputs import Decoded, Likelihood, Spread, check_spread, read_codes, read_likelihood

PROBE = 16
"""Data on which two passes are compared before a model is used."""
Components = tuple[Tensor, Tensor, Tensor]
"""Gaussian components: log-weights (K), means (K, D), and scales (K, D) or triangular factors (K, D, D)."""


class Prior(Protocol):
    """What a prior, or anything else to draw codes from, offers behind the door."""

    latent_dim: int

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s)."""
        ...

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (*s, D)."""
        ...


def components(prior: Prior) -> Components | None:
    """Return the Gaussian components of a prior, None if it is not known to be a mixture of Gaussians."""
    ask = getattr(prior, "components", None)
    return ask() if callable(ask) else None


def adapt_prior(prior: Any, latent_dim: int | None = None, name: str = "prior") -> Prior:
    """Adapt a prior: one that has the interface stays as it is; torch distributions and flows get it.

    Args:
        prior: an object with ``log_prob`` and ``sample``, a torch distribution over vectors, or a module that returns
            one when it is called without arguments, such as a flow.
        latent_dim: D, where the caller knows it.
        name: of the argument, for messages.

    Returns:
        The prior.

    Raises:
        TypeError: it lacks a method.
        ValueError: its dimension is another than latent_dim, or cannot be known.
    """
    if not hasattr(prior, "latent_dim") or not _takes_generator(prior):
        prior = _Outside(prior, latent_dim, name)
    if latent_dim is not None and prior.latent_dim != latent_dim:
        raise ValueError(f"{name}: expected dimension {latent_dim}, got {prior.latent_dim}")
    return prior


class _Outside(nn.Module):
    """A torch distribution, a flow, or an object whose ``sample`` takes no generator, as a prior."""

    def __init__(self, source: Any, latent_dim: int | None, name: str) -> None:
        super().__init__()
        self.source, self.name = source, name
        density = self._density()
        for method in ("log_prob", "sample"):
            if not callable(getattr(density, method, None)):
                raise TypeError(
                    f"{name}: expected a torch distribution over vectors, or an object with latent_dim, log_prob(z) "
                    f"and sample(shape, generator=…), got {type(source).__name__}"
                )
        if isinstance(density, Distribution):
            if len(density.event_shape) != 1 or density.batch_shape:
                shapes = f"batch shape {tuple(density.batch_shape)} and event shape {tuple(density.event_shape)}"
                hint = "torch.distributions.Independent(…, 1) makes the last batch dimension an event"
                raise ValueError(f"{name}: expected one distribution over vectors, got {shapes}; {hint}")
            latent_dim = density.event_shape[0]
        self.latent_dim = getattr(source, "latent_dim", latent_dim)
        self._takes_generator = _takes_generator(density)
        with torch.random.fork_rng(devices=[]):
            z = self.sample((1,))  # tells the dtype, and D where nothing else does
        self.latent_dim, self._dtype = z.shape[-1], z.dtype

    def _density(self) -> Any:
        """Return the distribution; a flow makes it anew at every call, from its present parameters."""
        if hasattr(self.source, "log_prob") or not isinstance(self.source, nn.Module):
            return self.source
        try:
            return self.source()
        except Exception as error:
            wanted = "a module that returns a distribution when called without arguments"
            raise TypeError(f"{self.name}: expected {wanted}, got {type(self.source).__name__}: {error}") from error

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s), in the precision of the density."""
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        value = self._density().log_prob(z.to(self._dtype))
        if not isinstance(value, Tensor) or value.shape != z.shape[:-1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: expected log_prob of shape {tuple(z.shape[:-1])}, got {got}")
        return value.to(z.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (*s, D); torch's global generator is left as it was if another one is given."""
        check_generator(generator)
        shape = check_shape("sample_shape", sample_shape)
        density = self._density()
        if self._takes_generator:
            z = density.sample(shape, generator=generator)
        else:
            with seeded(generator):
                z = density.sample(shape)
        wanted = (*shape, self.latent_dim or "D")
        if not isinstance(z, Tensor) or z.shape[:-1] != shape or z.shape[-1] != (self.latent_dim or z.shape[-1]):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"{self.name}: expected draws of shape {wanted}, got {got}")
        return z

    def components(self) -> Components | None:
        """Gaussian components where torch's distribution says that it has them."""
        density = self._density()
        if isinstance(density, MixtureSameFamily):
            found = _gaussian(density.component_distribution)
            return found and (density.mixture_distribution.logits, *found)
        found = _gaussian(density)
        return found and (found[0].new_zeros(1), found[0][None], found[1][None])


def _gaussian(density: Any) -> tuple[Tensor, Tensor] | None:
    if isinstance(density, Independent) and isinstance(density.base_dist, Normal):
        return density.base_dist.loc, density.base_dist.scale
    return (density.loc, density.scale_tril) if isinstance(density, MultivariateNormal) else None


def _takes_generator(density: Any) -> bool:
    try:
        parameters = inspect.signature(density.sample).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return False
    return any(p.name == "generator" or p.kind is p.VAR_KEYWORD for p in parameters)


class Encoder:
    """Any encoder, as a function from (B, …) to Independent(Normal, 1) over flat codes (B, D)."""

    def __init__(
        self, source: Callable[..., Any], spread: Spread = "std", latent_shape: Sequence[int] | None = None
    ) -> None:
        if not callable(source):
            raise TypeError(f"encoder: expected a callable, got {type(source).__name__}")
        self.source, self.spread = source, check_spread(spread)
        self.latent_shape = _check_event("latent_shape", latent_shape)

    def __call__(self, x: Tensor, condition: Condition = None) -> Independent:
        """Encode x (B, …): batch shape (B,), event shape (D,), at least float32."""
        loc, scale = read_codes(call("encoder", self.source, x, condition), len(x), self.spread)
        if self.latent_shape not in (None, loc.shape[1:]):
            wanted, got = tuple(self.latent_shape), tuple(loc.shape[1:])
            raise ValueError(f"encoder: expected codes of latent_shape {wanted}, got {got}")
        self.latent_shape = loc.shape[1:]
        normal = Normal(loc.flatten(1), scale.flatten(1), validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def check(self, x: Tensor, condition: Condition = None) -> None:
        """Compare two passes over the first data, the second over half of them."""
        rows, half = slice(0, PROBE), slice(0, max(1, min(PROBE, len(x)) // 2))
        once = self(x[rows], take(condition, rows)).base_dist
        again = self(x[half], take(condition, half)).base_dist
        check_repeatable("encoder", once.loc[half], again.loc)
        check_repeatable("encoder", once.scale[half], again.scale)


class Decoder:
    """Any decoder, as a function from codes (*s, D) to a distribution of x with batch shape s."""

    def __init__(
        self,
        source: Callable[..., Any],
        likelihood: Likelihood | Callable[..., Any] | None = None,
        latent_shape: Sequence[int] | None = None,
    ) -> None:
        if not callable(source):
            raise TypeError(f"decoder: expected a callable, got {type(source).__name__}")
        self.source, self.likelihood = source, likelihood
        self.latent_shape = _check_event("latent_shape", latent_shape)
        self.dtype = dtype_of(source)

    def __call__(self, z: Tensor, condition: Condition = None) -> Decoded:
        """Decode z (*s, D) in the dtype of the decoder's weights; a condition (B, …) belongs to the last batch."""
        check_tensor("z", z, ("...", z.shape[-1] if z.ndim else "D"), finite=False)
        rows = z.reshape(-1, *(self.latent_shape or z.shape[-1:])).to(self.dtype or z.dtype)
        output = call("decoder", self.source, rows, repeat(condition, z.shape[:-1]))
        return Decoded(read_likelihood(output, self.likelihood), z.shape[:-1])

    def log_likelihood(self, z: Tensor, x: Tensor, condition: Condition = None) -> Tensor:
        """Return log p(x|z) of data x (B, …) at codes z (S, B, D) or, the same for all, (S, 1, D): (S, B)."""
        shared = z.shape[-2] == 1 < len(x)
        if shared and condition is None:
            decoded = self(z)
            if decoded.event_shape is not None:  # a torch distribution, which broadcasts
                return decoded.log_prob(x).double()
        decoded = self(z.expand(*z.shape[:-2], len(x), z.shape[-1]), condition)
        return decoded.log_prob(x).double()

    def check(self, z: Tensor, x: Tensor, condition: Condition = None) -> None:
        """Compare two passes over the first data, the second over half of them; z (B, D) belongs to x."""
        rows, half = slice(0, PROBE), slice(0, max(1, min(PROBE, len(x)) // 2))
        once, again = (self(z[r], take(condition, r)).log_prob(x[r]) for r in (rows, half))
        check_repeatable("decoder", once[half], again)


class AdaptedVAE(nn.Module):
    """An encoder, a decoder and a prior behind the door; `adapt` and `adapt_vae` make it.

    It is a module of all modules that it could see, so that it can be trained, moved and put in evaluation mode.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        decoder: Decoder | None,
        prior: Any = None,
        *,
        data_shape: Sequence[int] | None = None,
        condition: Any = None,
        modules: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self._sources = [part.source for part in (encoder, decoder) if part is not None]
        self.parts = nn.ModuleList(modules_of(*self._sources, *modules))
        self.dtype = dtype_of(*self.parts)
        if decoder is not None and decoder.dtype is None:
            decoder.dtype = self.dtype
        self.data_shape = _check_event("data_shape", data_shape)
        self._names, self._condition = _read_condition(condition)
        self._prior = None if prior is None else adapt_prior(prior, self.latent_dim)

    @property
    def latent_dim(self) -> int | None:
        """D, None until it is known."""
        shapes = (part.latent_shape for part in (self.encoder, self.decoder) if part is not None)
        return next((shape.numel() for shape in shapes if shape is not None), None)

    @property
    def prior(self) -> Prior:
        """The prior; the standard normal where none was given."""
        if self._prior is None:
            if self.latent_dim is None:
                raise ValueError("latent_shape: expected the shape of a code where neither prior nor data are given")
            zero = torch.zeros(self.latent_dim, dtype=self.dtype)
            self._prior = adapt_prior(Independent(Normal(zero, torch.ones_like(zero)), 1))
        return self._prior

    def data(self, x: object, condition: object = None, *, name: str = "x", least: int = 1) -> tuple[Tensor, Condition]:
        """Check data (N, …) and their condition; shape each datum as the model expects it."""
        x = as_data(name, x, self.dtype)
        if len(x) < least:
            raise ValueError(f"{name}: expected at least {least} data, got {len(x)}")
        if self.data_shape not in (None, x.shape[1:]):
            if x.shape[1:].numel() != self.data_shape.numel():
                raise ValueError(f"{name}: expected data of shape {tuple(self.data_shape)}, got {tuple(x.shape[1:])}")
            x = x.reshape(len(x), *self.data_shape)
        return x, self.condition(condition, len(x))

    def condition(self, condition: object, num: int | None) -> Condition:
        """Check the condition of ``num`` data; None stands for the one that was given to `adapt`."""
        if condition is None:
            condition = self._condition
        if len(self._names) == 1 and not isinstance(condition, Mapping | None):
            condition = {self._names[0]: condition}
        if self._names and set(condition or ()) != set(self._names):
            raise ValueError(f"condition: expected {', '.join(self._names)}, got {sorted(condition or ()) or 'none'}")
        return check_condition(condition, num, *self._sources)

    def encode(self, x: Tensor, condition: Condition = None) -> Independent:
        """Encode x (B, …): batch shape (B,), event shape (D,)."""
        if self.encoder is None:
            raise ValueError("vae: expected one with an encoder, got none")
        q = self.encoder(x, condition)
        if self.decoder is not None and self.decoder.latent_shape is None:
            self.decoder.latent_shape = self.encoder.latent_shape
        if self.prior.latent_dim != q.event_shape[0]:
            raise ValueError(f"prior: expected dimension {q.event_shape[0]}, got {self.prior.latent_dim}")
        return q

    forward = encode

    def log_likelihood(self, z: Tensor, x: Tensor, condition: Condition = None) -> Tensor:
        """Return log p(x|z) of data x (B, …) at codes z (S, B, D) or (S, 1, D): (S, B), float64."""
        if self.decoder is None:
            raise ValueError("vae: expected one with a decoder, got none")
        return self.decoder.log_likelihood(z, x, condition)

    @contextmanager
    def evaluating(self, x: Tensor | None = None, condition: Condition = None) -> Iterator[None]:
        """Run what is inside in evaluation mode, after two passes over the first of the data that must agree."""
        with evaluation_mode(self, *self._sources, self._prior):
            if x is not None:
                with torch.no_grad():
                    self._check_passes(x[:PROBE], take(condition, slice(0, PROBE)))
            yield

    def _check_passes(self, x: Tensor, condition: Condition) -> None:
        if self.encoder is not None:
            self.encoder.check(x, condition)
            z = check_tensor("encoder's loc", self.encode(x, condition).base_dist.loc, ("B", "D"))
        else:
            dtype = self.dtype or (x.dtype if x.is_floating_point() else torch.float64)
            line = torch.linspace(-1, 1, len(x), dtype=dtype, device=x.device)
            z = line[:, None].expand(-1, self.prior.latent_dim)
        if self.decoder is not None:
            self.decoder.check(z, x, condition)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        latent: Any = None,
        condition: object = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw codes and return the decoder's means, (S, *event); see `vaebook.models.VAE.sample`."""
        check_int("num_samples", num_samples, minimum=1)
        check_generator(generator)
        if self.decoder is None:
            raise ValueError("vae: expected one with a decoder, got none")
        condition = self.condition(condition, None if condition is None else num_samples)
        source = self.prior if latent is None else adapt_prior(latent, self.latent_dim, "latent")
        with self.evaluating():
            return self.decoder(source.sample((num_samples,), generator=generator), condition).mean


def adapt(
    encode: Callable[..., Any],
    decode: Callable[..., Any] | None = None,
    *,
    prior: Any = None,
    likelihood: Likelihood | Callable[..., Any] | None = None,
    spread: Spread = "std",
    data_shape: Sequence[int] | None = None,
    latent_shape: Sequence[int] | None = None,
    condition: Any = None,
    modules: Sequence[nn.Module] = (),
) -> AdaptedVAE:
    r"""Make a VAE, as every function of this package takes it, of the parts of anybody's.

    $q(z\mid x)$ from ``encode``, $p(x\mid z)$ from ``decode``, $p(z)$ the prior

    Args:
        encode: maps a batch (B, …), and its condition where there is one, to (loc, spread), each (B, D) or (B, *latent
            shape), to a Normal, an Independent of one, a diagonal MultivariateNormal, or to a mapping or object with
            such entries (``mu`` and ``logvar``, say).
        decode: maps rows of codes, (M, D) or (M, *latent shape), to a torch distribution of x, to an object with
            ``log_prob``, or to tensors that ``likelihood`` makes one of. None if only codes are wanted.
        prior: a torch distribution over vectors, a flow, or an object with ``latent_dim``, ``log_prob`` and
            ``sample``; None is the standard normal.
        likelihood: what the decoder's tensors are: "bernoulli" (probabilities; x may be grey), "bernoulli_logits",
            "gaussian" (mean and standard deviation), "categorical" (probabilities of classes, which come last),
            "categorical_logits"; or a function that makes a distribution of them.
        spread: what ``encode`` returns beside loc: "std", "var" or "log_var".
        data_shape: the shape of one datum as the model expects it, if data come flat.
        latent_shape: the shape of one code as the decoder expects it, if the encoder's codes do not tell.
        condition: names under which the parts take conditions, or the condition itself for calls that give none.
        modules: modules hidden behind functions, to be trained and moved along.

    Returns:
        A module with ``encoder``, ``decoder`` and ``prior``.

    Raises:
        TypeError: a part is of a kind that cannot be adapted.
        ValueError: a name is none of those above, or sizes disagree.

    Example:
        >>> net, back = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> named = dict(likelihood="bernoulli_logits", spread="log_var", modules=(net,))
        >>> vae = adapt(lambda x: net(x).chunk(2, 1), back, **named)
        >>> vae.encode(torch.zeros(5, 6)).batch_shape, vae.prior.latent_dim
        (torch.Size([5]), 2)

    Source: none; what the models of other libraries return was read in their code.
    """
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules: expected torch.nn.Module, got {type(module).__name__}")
    decoder = None if decode is None else Decoder(decode, likelihood, latent_shape)
    encoder = Encoder(encode, spread, latent_shape)
    return AdaptedVAE(encoder, decoder, prior, data_shape=data_shape, condition=condition, modules=modules)


def adapt_vae(vae: Any) -> AdaptedVAE:
    """Adapt an object with ``encoder``, ``decoder`` and ``prior``; one that `adapt` made stays as it is.

    Raises:
        TypeError: it lacks one of the three.
    """
    if isinstance(vae, AdaptedVAE):
        return vae
    missing = [part for part in ("encoder", "decoder", "prior") if not hasattr(vae, part)]
    if missing:
        raise TypeError(
            "vae: expected an object with .encoder, .decoder and .prior (vaebook.adapters.adapt makes one of parts), "
            f"got {type(vae).__name__} without .{missing[0]}"
        )
    return AdaptedVAE(Encoder(vae.encoder), Decoder(vae.decoder), vae.prior, modules=modules_of(vae))


def adapt_encoder(encoder: Any, spread: Spread = "std") -> Encoder:
    """Adapt an encoder, or take that of an adapted VAE."""
    if isinstance(encoder, AdaptedVAE):
        encoder = encoder.encoder
    return encoder if isinstance(encoder, Encoder) else Encoder(encoder, spread)


def adapt_decoder(decoder: Any, prior: Any) -> AdaptedVAE:
    """Adapt a decoder and a prior: a VAE without an encoder."""
    if isinstance(decoder, AdaptedVAE):
        decoder = decoder.decoder
    adapted = decoder if isinstance(decoder, Decoder) else Decoder(decoder)
    return AdaptedVAE(None, adapted, prior)


def _check_event(name: str, shape: Sequence[int] | None) -> torch.Size | None:
    if shape is None:
        return None
    sizes = check_shape(name, tuple(shape) if isinstance(shape, list | torch.Size) else shape)
    if not sizes or 0 in sizes:
        raise ValueError(f"{name}: expected at least one positive size, got {tuple(sizes)}")
    return sizes


def _read_condition(condition: Any) -> tuple[tuple[str, ...], Any]:
    """Tell names of conditions, one or several, from a condition itself."""
    if isinstance(condition, str):
        return (condition,), None
    if isinstance(condition, tuple | list) and condition and all(isinstance(name, str) for name in condition):
        return tuple(condition), None
    return (), condition
