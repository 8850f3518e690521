r"""The adapted parts of a VAE: somebody's encoder, decoder or prior, in the one form that this package knows.

- an `Encoder` maps a batch (B, …) to Independent(Normal, 1) over flat codes (B, D);
- a `Decoder` is called with rows, (S·B, D) or (S·B, *latent shape), and its result is shaped back to (S, B);
- a `Prior` has ``latent_dim``, ``log_prob(z)`` for z (*s, D) and ``sample(shape, *, generator=None)``; and, where there
  are any, ``components()``, ``leave_one_out(index)``, ``kl(loc, scale)`` and ``config()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaebook import evaluation
from vaebook._checks import check_all, check_draw, check_int, check_sizes, check_tensor, explained
from vaebook.evaluation import Condition, accepts, call, check_repeatable, repeat, seeded, take, weight_of
from vaebook.outputs import Decoded, Likelihood, Spread, check_likelihood, check_spread, read_codes, read_likelihood

PROBE = 16
"""Data on which two passes are compared before a model is used."""
Components = tuple[Tensor, Tensor, Tensor]
"""Gaussian components: log-weights (K), means (K, D), and scales (K, D) or triangular factors (K, D, D)."""


class Prior(Protocol):
    """What a prior, or anything else to draw codes from, offers once it is adapted."""

    latent_dim: int

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s)."""

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (*s, D)."""


class PriorModule(nn.Module):
    """A prior that is a module, described by sizes and tensors."""

    latent_dim: int

    def config(self) -> dict[str, int]:
        """Return the sizes that, with its tensors, make this prior again."""
        return {"latent_dim": self.latent_dim}

    def extra_repr(self) -> str:
        """Show the sizes in `repr`."""
        return ", ".join(f"{name}={size}" for name, size in (self.config() | PriorModule.config(self)).items())


def components(prior: Prior) -> Components | None:
    """Return the Gaussian components of a prior, None if it is not known to be a mixture of Gaussians."""
    ask = optional(prior, "components")
    return ask() if callable(ask) else None


def one_gaussian(prior: Prior) -> tuple[Tensor, Tensor] | None:
    """Return mean and scale, (D) each, float64, of a prior that is one Gaussian with independent dimensions."""
    found = components(prior)
    plain = found is not None and found[2].shape == (1, prior.latent_dim)
    return (found[1][0].double(), found[2][0].double()) if plain else None


def optional(prior: Prior, name: str) -> Any:
    """Return what a prior may offer besides, such as ``kl``, ``leave_one_out``, ``exemplars``; None if it does not.

    What a class has only inherited is of its parent's density: it is not asked for where the class has another one.
    """
    found, classes = getattr(prior, name, None), type(prior).__mro__
    place = next((n for n, c in enumerate(classes) if name in vars(c)), -1)
    # Two densities from the class up to the one that makes the offer: the nearer counts, and the offer is not of it.
    if sum("log_prob" in vars(c) for c in classes[: place + 1]) > 1 and name not in getattr(prior, "__dict__", ()):
        return None
    other = name == "kl" and not all(accepts(found, part, unknown=False) for part in ("loc", "scale"))  # (mu, logvar)
    return None if other else found


def log_density(prior: Any, z: Tensor, name: str = "prior") -> Tensor:
    """Return the log-density in nats of any prior at z (*s, D) as (*s); whatever goes wrong names the prior."""
    # As decoders do, priors get rows; what leaves out a component for each row of a batch has no latent_dim.
    rows = z.reshape(-1, z.shape[-1]) if hasattr(prior, "latent_dim") else z
    with explained(name, f"a density over all of R^D, at codes of {z.dtype}; from others KL is infinite"):
        value = prior.log_prob(rows)
    if getattr(value, "shape", None) != rows.shape[:-1]:
        got = tuple(getattr(value, "shape", ())) or type(value).__name__
        hint = "torch.distributions.Independent(…, 1) makes the last batch dimension an event"
        raise ValueError(f"{name}: expected log_prob of shape {tuple(rows.shape[:-1])}, got {got}; {hint}")
    return value.reshape(z.shape[:-1])


def draw_from(prior: Any, shape: Sequence[int], generator: torch.Generator | None, name: str = "prior") -> Tensor:
    """Draw from any prior, (*shape, D); whatever goes wrong names the prior."""
    with explained(name, "draws from sample(shape, generator=…)"):
        z = prior.sample(shape, generator=generator)
    return check_tensor(f"{name}'s draws", z, (*shape, prior.latent_dim), empty=True)


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
    if getattr(weight_of(prior), "is_meta", False):
        raise TypeError(f"{name}: expected one that holds values, got one on the meta device")
    complete = all(hasattr(prior, part) for part in ("latent_dim", "log_prob", "sample"))
    if not (complete and accepts(prior.sample, "generator", unknown=False)):
        prior = _Outside(prior, name)
    if latent_dim is not None and prior.latent_dim != check_int("latent_dim", latent_dim, minimum=1):
        raise ValueError(f"{name}: expected dimension {latent_dim}, got {prior.latent_dim}")
    return prior


class _Outside(nn.Module):
    """A torch distribution, a flow, or an object whose ``sample`` takes no generator, as a prior."""

    def __init__(self, source: Any, name: str) -> None:
        super().__init__()
        self.source, self.name = source, name
        density = self._density()
        if isinstance(density, type) or not all(callable(getattr(density, m, None)) for m in ("log_prob", "sample")):
            wanted = "an object with latent_dim, log_prob(z) and sample(shape, generator=…)"
            got = type(source).__name__
            raise TypeError(f"{name}: expected a torch distribution over vectors, or {wanted}, got {got}")
        self.latent_dim, self._drawn = "D", None
        self._drawn = self.sample((1,), generator=torch.Generator().manual_seed(0))  # tells dtype, device and D
        self.latent_dim = self._drawn.shape[1]
        with evaluation.evaluation_mode(self):  # a flow may have statistics of batches
            self.log_prob(self._drawn)
        if isinstance(density, Independent) and isinstance(density.base_dist, Normal):
            self.kl = self._kl  # in closed form, which only this one has

    def _density(self) -> Any:
        """Return the distribution; a flow makes it anew at every call, from its present parameters."""
        if hasattr(self.source, "log_prob") or not isinstance(self.source, nn.Module):
            return self.source
        with explained(self.name, "a module that returns a distribution when called without arguments"):
            return self.source()

    def _like(self) -> Tensor | None:
        """Return a tensor with dtype and device of the density: those of a flow can change."""
        weight = weight_of(self.source)
        return self._drawn if weight is None else weight

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s), in the precision of the density."""
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        value = log_density(self._density(), z.to(self._like()).reshape(-1, self.latent_dim), self.name)
        # What torch.distributions would say of a z outside its support can be switched off, and flows do so.
        return check_all(self.name, value, ~value.isnan(), "a density over all of R^D").reshape(z.shape[:-1]).to(z)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (*s, D); torch's global generator is left as it was if another one is given."""
        dim, device = 1 if self._drawn is None else self.latent_dim, getattr(self._like(), "device", None)
        shape, generator = check_draw(sample_shape, generator, device, dim)
        with explained(self.name, "draws from sample(shape)"), seeded(generator):
            z = self._density().sample(shape)
        return check_tensor(f"{self.name}'s draws", z, (*shape, self.latent_dim), finite=False, empty=True)

    @property
    def factorises(self) -> bool:
        """Whether the dimensions are known to be independent."""
        density = self._density()
        return isinstance(density, Independent) and len(density.base_dist.batch_shape) == 1

    def components(self) -> Components | None:
        """Gaussian components where torch's distribution says that it has them."""
        density = self._density()
        if isinstance(density, MixtureSameFamily):
            found = _gaussian(density.component_distribution)
            return found and (density.mixture_distribution.logits, *found)
        found = _gaussian(density)
        return found and (found[0].new_zeros(1), found[0][None], found[1][None])

    def _kl(self, loc: Tensor, scale: Tensor) -> Tensor:
        """KL divergence of N(loc, scale²), (*s, D), from this one, (*s), nats, float64."""
        middle, spread = (part.to(loc.device, torch.float64) for part in _gaussian(self._density()))
        return gaussian_kl(loc.double(), scale.double(), middle, spread).sum(-1)


def gaussian_kl(loc: Tensor, scale: Tensor, middle: Any = 0.0, spread: Any = 1.0) -> Tensor:
    """KL divergence of N(loc, scale²) from N(middle, spread²), in each dimension, nats; nan of a negative scale."""
    distance, ratio = (loc - middle) / spread, scale / spread
    return 0.5 * (distance.square() + ratio.square() - 1 - 2 * ratio.log())


def _gaussian(density: Any) -> tuple[Tensor, Tensor] | None:
    if isinstance(density, Independent) and isinstance(density.base_dist, Normal):
        return density.base_dist.loc, density.base_dist.scale
    return (density.loc, density.scale_tril) if isinstance(density, MultivariateNormal) else None


class _Part:
    """A callable that came from outside, with the shape of one code where it is known."""

    def __init__(self, name: str, source: Callable[..., Any], latent_shape: Sequence[int] | None) -> None:
        if not callable(source):
            raise TypeError(f"{name}: expected a callable, got {type(source).__name__}")
        self.name, self.source, self.weight, self._dtype = name, source, weight_of(source), None
        self.latent_shape = check_event("latent_shape", latent_shape)

    @property
    def dtype(self) -> torch.dtype | None:
        """That of its weights, which may change; where there are none, of its codes; None until it is known."""
        return getattr(self.weight, "dtype", self._dtype)

    def compare(self, run: Callable[[slice], Sequence[Tensor]], num: int) -> None:
        """Compare what two passes return, over the first rows and over their second half, moved to the front."""
        half = slice(min(PROBE, num) // 2, PROBE)
        for once, again in zip(run(slice(0, PROBE)), run(half), strict=True):
            check_repeatable(self.name, once[half], again, self.dtype)


class Encoder(_Part):
    """Any encoder, as a function from (B, …) to Independent(Normal, 1) over flat codes (B, D)."""

    def __init__(self, source: Any, spread: Spread = "std", latent_shape: Sequence[int] | None = None) -> None:
        super().__init__("encoder", source, latent_shape)
        self.spread = check_spread(spread)

    def __call__(self, x: Tensor, condition: Condition = None) -> Independent:
        """Encode x (B, …): batch shape (B,), event shape (D,), at least float32."""
        half = x.is_floating_point() and getattr(self.weight, "dtype", None) in (torch.float16, torch.bfloat16)
        rows = x.to(self.weight.dtype) if half else x  # elsewhere data keep their digits
        loc, scale = read_codes(call("encoder", self.source, rows, condition), len(x), self.spread)
        if self.latent_shape not in (None, loc.shape[1:]):
            wanted, got = tuple(self.latent_shape), tuple(loc.shape[1:])
            raise ValueError(f"encoder: expected codes of latent_shape {wanted}, got {got}")
        self.latent_shape, self._dtype = loc.shape[1:], loc.dtype
        return Independent(Normal(loc.flatten(1), scale.flatten(1), validate_args=False), 1, validate_args=False)

    def check(self, x: Tensor, condition: Condition = None) -> None:
        """Compare two passes over the first data, the second over half of them."""
        both = attrgetter("loc", "scale")
        self.compare(lambda rows: both(self(x[rows], take(condition, rows)).base_dist), len(x))


class Decoder(_Part):
    """Any decoder, as a function from codes (*s, D) to a distribution of x with batch shape s."""

    def __init__(self, source: Any, likelihood: Likelihood = None, latent_shape: Sequence[int] | None = None) -> None:
        super().__init__("decoder", source, latent_shape)
        self.likelihood = check_likelihood(likelihood)
        self.encoder: Encoder | None = None  # whose codes tell their shape

    def __call__(self, z: Tensor, condition: Condition = None) -> Decoded:
        """Decode z (*s, D) in the dtype of the decoder's weights; a condition (B, …) belongs to the last batch."""
        known = self.latent_shape or (self.encoder and self.encoder.latent_shape)
        shape = check_tensor("z", z, ("...", known.numel() if known else "D"), finite=getattr(z, "is_meta", 0)).shape
        rows = z.reshape(-1, *(known or shape[-1:])).to(self.dtype or (self.encoder and self.encoder.dtype) or z.dtype)
        output = call("decoder", self.source, rows, repeat(condition, shape[:-1]))
        return Decoded(read_likelihood(output, self.likelihood), shape[:-1])

    def log_likelihood(self, z: Tensor, x: Tensor, condition: Condition = None) -> Tensor:
        """Return log p(x|z) of data x (B, …) at codes z (S, B, D) or, the same for all, (S, 1, D): (S, B)."""
        if z.shape[-2] == 1 < len(x) and condition is None:
            decoded = self(z)
            if decoded.event_shape is not None:  # a torch distribution, which broadcasts
                return decoded.log_prob(x).double()
        return self(z.expand(*z.shape[:-2], len(x), z.shape[-1]), condition).log_prob(x).double()

    def check(self, z: Tensor, x: Tensor, condition: Condition = None) -> None:
        """Compare two passes over the first data, the second over half of them; z (B, D) belongs to x."""
        self.compare(lambda rows: (self(z[rows], take(condition, rows)).log_prob(x[rows]),), len(x))


def check_event(name: str, shape: Sequence[int] | None) -> torch.Size | None:
    """Check the shape of one code or datum, None where it is not known."""
    return None if shape is None else torch.Size(check_sizes(name, shape, minimum=1, empty=False))
