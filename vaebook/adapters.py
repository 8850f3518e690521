r"""Anybody's encoder, decoder and prior, brought into the one form that this package knows.

What comes from outside is adapted here, once, and never inspected again; `vaebook.parts` says what each part can do
afterwards. `adapt` makes a VAE of loose parts; every function of the package that takes a VAE, an encoder, a
decoder or a prior does the same with what it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaebook import evaluation
from vaebook._checks import at_least_single, check_generator, check_int, check_positive, check_tensor
from vaebook.evaluation import Condition, Data, take
from vaebook.outputs import Likelihood, Spread, check_spread
from vaebook.parts import PROBE, Decoder, Encoder, Prior, adapt_prior, check_event, draw_from


class AdaptedVAE(nn.Module):
    """An adapted encoder, decoder and prior; `adapt` and `adapt_vae` make it.

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
        self.parts = nn.ModuleList(evaluation.modules_of(*self._sources, *modules))
        self.training = any(getattr(part, "training", False) for module in self.parts for part in module.modules())
        if decoder is not None:
            decoder.weight = evaluation.weight_of(*self.parts) if decoder.weight is None else decoder.weight
            decoder.encoder = decoder.encoder or encoder
        self.data_shape = check_event("data_shape", data_shape)
        named = [condition] if isinstance(condition, str) else condition
        is_named = isinstance(named, tuple | list) and all(isinstance(name, str) for name in named)
        self._names, self._condition = (named, None) if is_named else ((), condition)
        self._prior = None if prior is None else adapt_prior(prior, self.latent_dim)

    @property
    def latent_dim(self) -> int | None:
        """D, None until it is known."""
        shapes = (part.latent_shape for part in (self.encoder, self.decoder) if part is not None)
        return next((shape.numel() for shape in shapes if shape is not None), None)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of its weights, to which arrays are brought; None where no weights can be seen."""
        return getattr(evaluation.weight_of(*self.parts), "dtype", None)

    @property
    def device(self) -> torch.device | None:
        """The device of its weights, to which data are brought; None where no weights can be seen."""
        return getattr(evaluation.weight_of(*self.parts), "device", None)

    @property
    def holder(self) -> nn.Module:
        """The module that has all weights and buffers: the model as it came, if it is one, or else this."""
        every = {id(tensor) for tensor in self.state_dict(keep_vars=True).values()}
        states = ((part, part.state_dict(keep_vars=True)) for part in self.parts)
        return next((part for part, state in states if every <= {*map(id, state.values())}), self)

    @property
    def prior(self) -> Prior:
        """The prior; the standard normal where none was given."""
        if self._prior is None:
            if self.latent_dim is None:
                raise ValueError("prior: expected one, or latent_shape, where no data tell D, got None")
            zero = torch.zeros(self.latent_dim, dtype=self.dtype and at_least_single(self.dtype), device=self.device)
            self._prior = adapt_prior(Independent(Normal(zero, torch.ones_like(zero)), 1))
        return self._prior

    def data(self, x: object, condition: object = None, *, name: str = "x", least: int = 1) -> tuple[Tensor, Condition]:
        """Check data (N, …), in one piece or in batches, and their condition; bring both to the model's device."""
        given, x = x, self._shaped(evaluation.whole(name, x, self.dtype), name)
        if len(x) < least:
            raise ValueError(f"{name}: expected at least {least} data, got {len(x)}")
        condition = self.condition(condition, len(x))
        evaluation.check_order(name, given, condition)
        if self.latent_dim is None and self.encoder is not None:  # the codes of the first data tell it
            with torch.no_grad(), self.evaluating():
                self.encoder(x[:PROBE], take(condition, slice(0, PROBE)))
        return x, condition

    def batches(self, data: Data, size: int, condition: Any = None, name: str = "x") -> Iterator[Any]:
        """Yield batches of data and of their condition, each datum in the shape that the model expects."""
        for x, rows in evaluation.batches(data, size, self.condition(condition, None), self.dtype, name):
            yield self._shaped(x, name), rows

    def _shaped(self, x: Tensor, name: str) -> Tensor:
        shape = self.data_shape or x.shape[1:]
        if x.shape[1:].numel() != shape.numel():
            raise ValueError(f"{name}: expected data of shape {tuple(shape)}, got {tuple(x.shape[1:])}")
        return x.reshape(len(x), *shape).to(self.device)

    def condition(self, condition: Any, num: int | None) -> Condition:
        """Check the condition of ``num`` data; None stands for the one that was given to `adapt`."""
        condition = self._condition if condition is None else condition
        if len(self._names) == 1 and not isinstance(condition, Mapping | None):
            condition = {self._names[0]: condition}
        found = evaluation.check_condition(condition, num, *self._sources, device=self.device)
        takers = [part.source for part in (self.encoder, self.decoder) if part is not None]
        needed = {name for name in self._names if any(evaluation.accepts(taker, name) for taker in takers)}
        if not needed <= found.keys():
            got = list(found) if isinstance(condition, Mapping) else type(condition).__name__
            raise ValueError(f"condition: expected {', '.join(self._names)} by name, got {got}")
        return found or None

    def only(self, **changes: Any) -> AdaptedVAE:
        """Return the same without one of its parts: conditions that only that part takes may be left out."""
        other = copy(self)
        other._modules = {name: part for name, part in self._modules.items() if name not in changes}  # a copy shares it
        vars(other).update(changes)
        return other

    def encode(self, x: Tensor, condition: Condition = None) -> Independent:
        """Encode x (B, …): batch shape (B,), event shape (D,), all finite and every scale positive."""
        q = self._part("encoder")(x, condition)
        if self.prior.latent_dim != q.event_shape[0]:
            raise ValueError(f"prior: expected dimension {q.event_shape[0]}, got {self.prior.latent_dim}")
        check_tensor("encoder's loc", q.base_dist.loc, ("B", "D"))
        check_positive("encoder's scale", q.base_dist.scale)
        return q

    forward = encode

    def log_likelihood(self, z: Tensor, x: Tensor, condition: Condition = None) -> Tensor:
        """Return log p(x|z) of data x (B, …) at codes z (S, B, D) or (S, 1, D): (S, B), float64."""
        return self._part("decoder").log_likelihood(z, x, condition)

    def _part(self, name: str) -> Any:
        if getattr(self, name) is None:
            raise ValueError(f"vae: expected one with its {name}, got none")
        return getattr(self, name)

    @contextmanager
    def evaluating(self, x: Tensor | None = None, condition: Condition = None) -> Iterator[None]:
        """Run what is inside in evaluation mode, after two passes over the first of the data that must agree."""
        with evaluation.evaluation_mode(self, *self._sources, self._prior):
            if x is not None:
                self.check(x, condition)
            yield

    @torch.no_grad()
    def check(self, x: Tensor, condition: Condition = None) -> None:
        """Compare two passes over the first of the data; in training mode they may differ, by dropout say."""
        if self.training:
            return
        x, condition = x[:PROBE], take(condition, slice(0, PROBE))
        if self.encoder is not None:
            self.encoder.check(x, condition)
            z = self.encode(x, condition).base_dist.loc
        else:
            dtype = self.dtype or (x.dtype if x.is_floating_point() else torch.float64)
            z = draw_from(self.prior, (len(x),), torch.Generator().manual_seed(0)).to(x.device, dtype)
        if self.decoder is not None:
            self.decoder.check(z, x, condition)

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, latent: Any = None, condition: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw codes and return the decoder's means, (S, *event); see `vaebook.models.VAE.sample`."""
        num_samples = check_int("num_samples", num_samples, minimum=1, each=1)
        generator = check_generator(generator, self.device)
        decoder, condition = self._part("decoder"), self.condition(condition, num_samples)
        source = self.prior if latent is None else adapt_prior(latent, self.latent_dim, "latent")
        with self.evaluating():
            z = draw_from(source, (num_samples,), generator, "prior" if latent is None else "latent").to(self.device)
            decoder.compare(lambda rows: (decoder(z[rows], take(condition, rows)).mean,), num_samples)
            return decoder(z, condition).mean


def adapt(
    encode: Callable[..., Any],
    decode: Callable[..., Any] | None = None,
    *,
    prior: Any = None,
    likelihood: Likelihood = None,
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
            "gaussian" (mean and standard deviation, which may be a number), "categorical" (probabilities of classes,
            which come last), "categorical_logits"; or a function that makes a distribution of them.
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
    modules = (modules,) if isinstance(modules, nn.Module) else modules
    if not isinstance(modules, Sequence | nn.ModuleList) or not all(isinstance(m, nn.Module) for m in modules):
        raise TypeError(f"modules: expected a sequence of torch.nn.Module, got {modules!r}")
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
        wanted = "an object with .encoder, .decoder and .prior (vaebook.adapters.adapt makes one of parts)"
        raise TypeError(f"vae: expected {wanted}, got {type(vae).__name__} without .{missing[0]}")
    return AdaptedVAE(Encoder(vae.encoder), Decoder(vae.decoder), vae.prior, modules=evaluation.modules_of(vae))


def adapt_encoder(encoder: Any, spread: Spread = "std") -> Encoder:
    """Adapt an encoder, or take that of an adapted VAE, whose spread is named already."""
    encoder = encoder.encoder if isinstance(encoder, AdaptedVAE) else encoder
    adapted = encoder if isinstance(encoder, Encoder) else Encoder(encoder, spread)
    if check_spread(spread) not in ("std", adapted.spread):
        raise ValueError(f"spread: expected {adapted.spread!r}, as it was adapted, got {spread!r}")
    return adapted


def adapt_codes(encoder: Any, spread: Spread = "std") -> AdaptedVAE:
    """Adapt an encoder for its codes alone: a VAE without a decoder."""
    adapted = adapt_encoder(encoder, spread)
    return encoder.only(decoder=None) if isinstance(encoder, AdaptedVAE) else AdaptedVAE(adapted, None)


def adapt_decoder(decoder: Any, prior: Any) -> AdaptedVAE:
    """Adapt a decoder and a prior: a VAE without an encoder."""
    if isinstance(decoder, AdaptedVAE):
        prior = decoder.prior if prior is None else adapt_prior(prior, decoder.latent_dim)
        return decoder.only(encoder=None, _prior=prior)
    return AdaptedVAE(None, decoder if isinstance(decoder, Decoder) else Decoder(decoder), prior)


def adapt_prior_of(encoder: nn.Module, decoder: nn.Module, prior: Any) -> Prior:
    """Check that modules fit together as the parts of a VAE, and adapt its prior."""
    for name in ("data_dim", "latent_dim"):  # parts of one's own need not tell their sizes
        size = getattr(encoder, name, getattr(decoder, name, None))
        if getattr(decoder, name, size) != size:
            got = f"{size} in the encoder and {getattr(decoder, name)} in the decoder"
            raise ValueError(f"{name}: expected the same, got {got}")
    if getattr(prior, "encoder", encoder) is not encoder:  # it would be neither trained nor saved
        raise ValueError("prior: expected one made of the codes of this encoder, got one of another encoder")
    return adapt_prior(prior, size)
