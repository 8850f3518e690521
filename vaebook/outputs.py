r"""What encoders and decoders return, in whatever form, read as one: the Gaussians of codes, the distribution of x.

What the spread of a Gaussian *is*, a standard deviation, a variance or its logarithm, is named by the caller or by
the thing that is returned (an attribute ``logvar``, a torch distribution); it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MultivariateNormal, Normal

from vaebook._checks import at_least_single, check_choice, check_positive, check_tensor, check_unit, explained, to_scale

Spread = Literal["std", "var", "log_var"]
"""What an encoder returns beside its means: standard deviations, variances, or logarithms of variances."""
Family = Literal["bernoulli", "bernoulli_logits", "gaussian", "categorical", "categorical_logits"]
"""What a decoder that returns tensors means: probabilities, logits, or (mean, standard deviation); classes last.

A standard deviation may be a number."""
Likelihood = Family | Callable[..., Any] | None
"""A name of what a decoder returns, a function that makes a distribution of it, or None for a distribution."""

_LOC = ("loc", "mean", "mu", "embedding")
_SPREADS = {"scale": "std", "std": "std", "stddev": "std", "sigma": "std", "var": "var", "variance": "var"}
_SPREADS |= dict.fromkeys(("log_var", "logvar", "log_variance", "log_covariance"), "log_var")
_TAKEN = (
    "(loc, scale), a Normal, an Independent of one, a MultivariateNormal with diagonal covariance, or a mapping or "
    f"object with one of {', '.join(_LOC)} and one of {', '.join(_SPREADS)} (a function around it can pick them)"
)


class GreyBernoulli(Bernoulli):
    """Bernoulli that lets grey values through, as the usual loss does, but nothing outside [0, 1]."""

    support = torch.distributions.constraints.unit_interval

    def log_prob(self, value: Tensor) -> Tensor:
        """Return x log p + (1 - x) log(1 - p); for grey x it is not normalised."""
        return super().log_prob(check_unit("x", value.to(self.logits.dtype)))

    def log_prob_of_all(self, x: Tensor) -> Tensor:
        """Return the sum of log_prob(x) for every x (B, *event) and every row, (B, M): a product of matrices."""
        x, logits = (part.flatten(1).double() for part in (check_unit("x", x), self.logits))
        return x @ logits.mT - torch.logaddexp(logits, torch.zeros_like(logits)).sum(1)


def read_codes(codes: object, num: int, spread: Spread = "std") -> tuple[Tensor, Tensor]:
    """Read what an encoder returned for ``num`` data: loc and scale, (num, *latent shape), at least float32."""
    loc, value, named = _loc_and_spread(codes)
    if named is not None and spread not in ("std", named):
        raise ValueError(f"spread: expected {named!r}, which what the encoder returns is, got {spread!r}")
    check_tensor("encoder's loc", loc, ("...",), finite=getattr(loc, "is_meta", False))
    if loc.ndim < 2 or len(loc) != num:
        raise ValueError(f"encoder's loc: expected shape ({num}, ...), a row for each datum, got {tuple(loc.shape)}")
    check_tensor("encoder's scale", value, loc.shape, finite=getattr(value, "is_meta", False))
    dtype, rounding, apart = at_least_single(loc.dtype), torch.finfo(value.dtype).eps ** 0.5 * loc.numel(), 0.0
    loc = loc.to(dtype)
    scale = to_scale("encoder's scale", value.to(dtype), named or spread, loc)
    if type(getattr(codes, "base_dist", codes)) is not Normal:
        with torch.no_grad(), suppress(Exception):  # most have no log_prob, or one of something else
            apart = abs(float(codes.log_prob(loc).sum() - Normal(loc, scale).log_prob(loc).sum()))
    if apart > rounding:  # truncated, correlated, with heavier tails
        raise TypeError(f"encoder: expected independent Gaussians, got {type(codes).__name__} with another log_prob")
    return loc, scale


def check_spread(spread: object) -> Spread:
    """Check the name of a spread."""
    return check_choice("spread", spread, get_args(Spread))


def _loc_and_spread(codes: object) -> tuple[Any, Any, Spread | None]:
    """Return loc, the spread, and what the spread is where the thing itself says so."""
    while isinstance(codes, Independent):
        codes = codes.base_dist
    if isinstance(codes, Normal):
        return codes.loc, codes.scale, "std"
    if isinstance(codes, MultivariateNormal):
        scale = codes.scale_tril.diagonal(dim1=-2, dim2=-1)
        if not torch.equal(codes.scale_tril, torch.diag_embed(scale)):
            raise TypeError("encoder: expected a diagonal covariance, got a MultivariateNormal with correlations")
        return codes.loc, scale, "std"
    plain = isinstance(codes, tuple | list) and not hasattr(codes, "_fields")
    if plain and len(codes) == 2 and all(isinstance(part, Tensor) for part in codes):
        return *codes, None
    if not plain and not isinstance(codes, Tensor | Distribution):
        get = codes.get if isinstance(codes, Mapping) else lambda key: getattr(codes, key, None)
        loc = next((get(key) for key in _LOC if isinstance(get(key), Tensor)), None)
        key = next((key for key in _SPREADS if isinstance(get(key), Tensor)), None)
        if loc is not None and key is not None:
            return loc, get(key), _SPREADS[key]
    got = type(codes).__name__
    if isinstance(codes, tuple | list | Mapping):
        parts = map(str, codes) if isinstance(codes, Mapping) else (type(part).__name__ for part in codes)
        got += f" of {len(codes)} ({', '.join([*parts][:5])})"
    raise TypeError(f"encoder: expected it to return {_TAKEN}, got {got}")


def check_likelihood(likelihood: Any) -> Likelihood:
    """Check the name of a likelihood; a callable or None is as good."""
    if likelihood is None or callable(likelihood):
        return likelihood
    return check_choice("likelihood", likelihood, get_args(Family), "a callable or one of")


def read_likelihood(output: object, likelihood: Likelihood = None) -> Any:
    """Read what a decoder returned as a distribution of x: an object with log_prob, its rows in front."""
    if callable(likelihood):
        with explained("likelihood", "a function that takes what the decoder returns"):
            output = likelihood(*output) if isinstance(output, tuple | list) else likelihood(output)
    elif likelihood is not None:
        return _named(output, likelihood)
    if not callable(getattr(output, "log_prob", None)):
        hint = f'name the likelihood: adapt(…, likelihood="bernoulli"), one of {", ".join(get_args(Family))}'
        got = f"{type(output).__name__}; {hint}, or a function that makes a distribution of it"
        raise TypeError(f"decoder: expected it to return a distribution of x, got {got}")
    return output


def _named(output: object, likelihood: str) -> Distribution:
    pair, parts = likelihood == "gaussian", output if isinstance(output, tuple | list) else (output,)
    if len(parts) != 1 + pair or not isinstance(parts[0], Tensor):
        wanted = "(mean, standard deviation)" if pair else "one tensor"
        raise TypeError(f"decoder: expected it to return {wanted} for {likelihood!r}, got {type(output).__name__}")
    mean = check_tensor("decoder's output", parts[0], ("...",)).to(at_least_single(parts[0].dtype))
    if pair:
        with explained("decoder's scale", f"a standard deviation for a mean of shape {tuple(mean.shape)}"):
            scale = check_positive("decoder's scale", torch.as_tensor(parts[1], dtype=mean.dtype, device=mean.device))
            each = Normal(mean, scale.expand_as(mean), validate_args=False)
    else:
        logits, family = likelihood.endswith("_logits"), GreyBernoulli if "bernoulli" in likelihood else Categorical
        if not logits:
            what = f'probabilities (logits are likelihood="{likelihood}_logits")'
            check_unit("decoder's output", mean, what, slack=1e-5)
            if family is Categorical and (apart := float((mean.sum(-1) - 1).abs().max())) > 0.01:  # less: rounding
                raise ValueError(f"decoder's output: expected {what}, the last dimension of sum 1, got {apart:.3g} off")
        each = family(**{"logits" if logits else "probs": mean}, validate_args=family is Categorical)
    return Independent(each, len(each.batch_shape) - 1, validate_args=False)


class Decoded:
    """The distribution of x that a decoder returned for rows, shaped back to the batch that they came from.

    Args:
        source: the distribution; its first dimension counts the rows.
        batch_shape: s, the shape of the codes without D.
    """

    def __init__(self, source: Any, batch_shape: Sequence[int]) -> None:
        self.source, self.batch_shape = source, torch.Size(batch_shape)
        shape = (*getattr(source, "batch_shape", ()), *getattr(source, "event_shape", ()))
        if shape and shape[0] != self.batch_shape.numel():
            raise ValueError(f"decoder: expected a row for each of {self.batch_shape.numel()} codes, got {shape}")
        self.event_shape = torch.Size(shape[1:]) if shape else None

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of data x (B, *event) at codes (…, B) or (…, 1): (…, B)."""
        x, (*front, last), num = self._like_event(x), self.batch_shape, self.batch_shape.numel()
        x = x.to(at_least_single(x.dtype) if x.is_floating_point() else torch.int64)  # sums of small integers wrap
        if last not in (1, len(x)):
            raise ValueError(f"x: expected {last} data, as many as there are codes, got {len(x)}")
        if last == len(x):
            rows, batch = x.expand(*front, *x.shape).reshape(-1, *x.shape[1:]), (num,)
        else:  # all data at each code
            rows, batch = x[:, None], (len(x), num)
        source = self.source
        while type(source) is Independent and source.batch_shape:  # its terms are added up below, not in half precision
            source = source.base_dist
        with explained("x", "data of the decoder's distribution"):
            each = len(batch) == 1 or not isinstance(source, GreyBernoulli)
            value = source.log_prob(rows) if each else source.log_prob_of_all(x)
        shape = tuple(getattr(value, "shape", ()))
        if shape[: len(batch)] != batch:
            raise ValueError(f"decoder: expected log_prob of shape {batch}, got {shape or type(value).__name__}")
        if value.ndim > len(batch):
            value = value.flatten(len(batch)).sum(-1, dtype=at_least_single(value.dtype))
        return value.mT.reshape(*front, len(x)) if len(batch) == 2 else value.reshape(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        """E[x|z], (*s, *event)."""
        return self._moment("mean")

    @property
    def variance(self) -> Tensor:
        """Var[x|z], (*s, *event)."""
        return self._moment("variance")

    @property
    def has_moments(self) -> bool:
        """Whether mean and variance exist and are finite."""
        with suppress(ValueError):
            return bool(self.mean.isfinite().all() and self.variance.isfinite().all())
        return False

    def _moment(self, name: str) -> Tensor:
        value = None
        with suppress(NotImplementedError):
            value = getattr(self.source, name, None)
        if not isinstance(value, Tensor) or bool(value.isnan().any()):
            kind = type(getattr(self.source, "base_dist", self.source)).__name__
            raise ValueError(f"decoder: expected a distribution of x with a {name}, got {kind}, without")
        return value.reshape(*self.batch_shape, *value.shape[1:]).to(at_least_single(value.dtype))

    def _like_event(self, x: Tensor) -> Tensor:
        """Flatten or unflatten x where only one of the two is flat; refuse all other differences."""
        event = self.event_shape
        if event is None or x.shape[1:] == event:
            return x
        if x.shape[1:].numel() == event.numel() and 1 in (x.ndim - 1, len(event)):
            return x.reshape(len(x), *event)
        raise ValueError(f"x: expected shape (B, {', '.join(map(str, event))}), got {tuple(x.shape)}")
