r"""Encoders and decoders of fully connected layers, which return torch distributions.

The encoder's heads are affine maps of its last hidden layer, mu = A h + a and sigma = exp(B h + b), clamped only on
request; each decoder starts with an affine map of z. The book's statements about stationary points rest on that.
Weights are drawn from a `torch.Generator`, never from torch's global one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vaebook._checks import check_all, check_generator, check_int, check_number, check_sizes, check_tensor, check_type
from vaebook.outputs import GreyBernoulli


class _Network(nn.Module):
    """Hidden layers and affine heads: what the encoder and the decoders have in common.

    ``sizes`` are those of input and output, by the names under which they are kept. A layer is SiLU(W h + a), or with
    gates (W h + a) sigmoid(V h + b).
    """

    def __init__(
        self,
        sizes: dict[str, int],
        heads: Sequence[str],
        hidden: Sequence[int],
        generator: torch.Generator | None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, check_int(name, size, minimum=1, each=1))
        self.hidden, self.gated = check_sizes("hidden", hidden, minimum=1), check_type("gated", gated, bool)
        generator = check_generator(generator) or torch.Generator().manual_seed(0)
        num_in, num_out = (getattr(self, name) for name in sizes)
        widths = (num_in, *self.hidden)
        factor, activation = (2, nn.GLU) if gated else (1, nn.SiLU)
        layers = [m for a, b in pairwise(widths) for m in (_linear(a, factor * b, generator), activation())]
        self.body = nn.Sequential(*layers)
        for head in heads:
            self.add_module(head, _linear(widths[-1], num_out, generator))

    def config(self) -> dict[str, Any]:
        """Return the arguments that make this network again, up to its weights; options that are off are left out."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "generator"]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def _last_hidden(self, name: str, value: Tensor, dim: int) -> Tensor:
        weight = next(self.parameters())
        check_tensor(name, value, ("...", dim), like=weight)
        if value.dtype != weight.dtype:
            raise TypeError(f"{name}: expected the dtype of the weights, {weight.dtype}, got {value.dtype}")
        return self.body(value)


class GaussianEncoder(_Network):
    r"""An encoder q(z|x): a Gaussian with diagonal covariance for every datum.

    $q(z\mid x) = \prod_{j=1}^D \mathcal N(z_j \mid \mu_j(x), \sigma_j(x)^2)$,
    $\mu = A\,h(x) + a$, $\sigma = \exp(B\,h(x) + b)$

    Args:
        data_dim: P, the number of pixels.
        latent_dim: D.
        hidden: widths of the hidden layers that compute h, each followed by SiLU; () makes h(x) = x.
        gated: layers (W h + a) · sigmoid(V h + b) in the place of SiLU(W h + a), with twice the weights.
        log_scale_range: two numbers between which log sigma is clamped; None clamps nothing.
        generator: the source of the initial weights, uniform within ±1/√(fan-in); None means one with seed 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1, or log_scale_range is not two numbers that increase.

    Example:
        >>> encoder = GaussianEncoder(64, 2)
        >>> q = encoder(torch.zeros(5, 64))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), appendix C.2; gates and clamp as in the code of
    Norouzi, Fleet & Norouzi, Exemplar VAE (2020).
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] = (256,),
        *,
        gated: bool = False,
        log_scale_range: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"data_dim": data_dim, "latent_dim": latent_dim}
        super().__init__(sizes, ("loc", "log_scale"), hidden, generator, gated)
        self.log_scale_range = None if log_scale_range is None else _check_range(log_scale_range)

    def forward(self, x: Tensor) -> Independent:
        """Encode.

        Args:
            x: data, (*s, P), in the dtype of the weights.

        Returns:
            q(z|x): batch shape s, event shape (D,).

        Raises:
            TypeError: x is not a tensor of the weights' dtype.
            ValueError: its last dimension is not P, it is empty, not finite, or on another device.
        """
        h = self._last_hidden("x", x, self.data_dim)
        limits, log_scale = self.log_scale_range, self.log_scale(h)
        return _diag_normal(self.loc(h), (log_scale if limits is None else log_scale.clamp(*limits)).exp())


class BernoulliDecoder(_Network):
    r"""A decoder p(x|z) of independent black-and-white pixels.

    $p(x\mid z) = \prod_{i=1}^P \pi_i(z)^{x_i}(1-\pi_i(z))^{1-x_i}$

    For binary x this is a probability. Grey x in [0, 1] are accepted, but then the formula is no normalised
    density, and its values do not compare with those of other models: see `vaebook.data.binarize`.

    Args:
        latent_dim: D.
        data_dim: P, the number of pixels.
        hidden: widths of the hidden layers, each followed by SiLU; () makes the logits affine in z.
        gated: layers with gates, as of `GaussianEncoder`.
        generator: the source of the initial weights, uniform within ±1/√(fan-in); None means one with seed 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1. The returned distribution's log_prob raises it for x outside [0, 1].

    Example:
        >>> decoder = BernoulliDecoder(2, 64)
        >>> decoder(torch.zeros(5, 2)).mean.shape
        torch.Size([5, 64])

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), appendix C.1.
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        hidden: Sequence[int] = (256,),
        *,
        gated: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__({"latent_dim": latent_dim, "data_dim": data_dim}, ("logits",), hidden, generator, gated)

    def forward(self, z: Tensor) -> Independent:
        """Decode.

        Args:
            z: codes, (*s, D), in the dtype of the weights.

        Returns:
            p(x|z): batch shape s, event shape (P,).

        Raises:
            TypeError: z is not a tensor of the weights' dtype.
            ValueError: its last dimension is not D, it is empty, not finite, or on another device.
        """
        logits = self.logits(self._last_hidden("z", z, self.latent_dim))
        return Independent(GreyBernoulli(logits=logits, validate_args=False), 1, validate_args=False)


class GaussianDecoder(_Network):
    r"""A decoder p(x|z) of independent Gaussian pixels.

    $p(x\mid z) = \prod_{i=1}^P \mathcal N(x_i \mid f_i(z), s_i^2)$

    Args:
        latent_dim: D.
        data_dim: P, the number of pixels.
        hidden: widths of the hidden layers, each followed by SiLU; () makes f affine in z.
        scale: a number fixes s; "shared" learns one s for all pixels, from 1 (with hidden=() the model of
            probabilistic PCA); "free" learns an s_i(z) for every pixel, and with it an unbounded likelihood
            unless min_scale is positive.
        min_scale: added to a learned s, which thereby stays above it.
        generator: the source of the initial weights, uniform within ±1/√(fan-in); None means one with seed 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1, scale is not positive or not one of the words, min_scale is negative, or
            positive where scale is fixed.

    Example:
        >>> decoder = GaussianDecoder(2, 64, scale=0.5)
        >>> decoder(torch.zeros(5, 2)).variance[0, :2]
        tensor([0.2500, 0.2500])

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), appendix C.2; on min_scale, Mattei &
    Frellsen, Leveraging the Exact Likelihood of Deep Latent Variable Models (2018).
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        hidden: Sequence[int] = (256,),
        *,
        scale: float | str = "shared",
        min_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        scale, min_scale = _check_scale(scale, min_scale)
        heads = ("loc", "log_scale") if scale == "free" else ("loc",)
        super().__init__({"latent_dim": latent_dim, "data_dim": data_dim}, heads, hidden, generator)
        self.scale, self.min_scale = scale, min_scale
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros((), device=self.loc.weight.device))

    def forward(self, z: Tensor) -> Independent:
        """Decode.

        Args:
            z: codes, (*s, D), in the dtype of the weights.

        Returns:
            p(x|z): batch shape s, event shape (P,).

        Raises:
            TypeError: z is not a tensor of the weights' dtype.
            ValueError: its last dimension is not D, it is empty, not finite, or on another device; or s^2 is too
                small or too large a number for the dtype.
        """
        h = self._last_hidden("z", z, self.latent_dim)
        loc = self.loc(h)
        if self.scale in ("shared", "free"):
            scale = self.min_scale + (self.log_scale if self.scale == "shared" else self.log_scale(h)).exp()
        else:
            scale = loc.new_tensor(self.scale)
        variance = scale.detach().square()  # it enters the density, and underflows to 0 long before the scale does
        fits = (variance >= torch.finfo(loc.dtype).tiny) & variance.isfinite()
        wanted = f"a scale whose square {loc.dtype} can hold (min_scale bounds a learned one)"
        check_all("decoder's scale", scale.detach(), fits, wanted)
        return _diag_normal(loc, scale.expand_as(loc))


def _diag_normal(loc: Tensor, scale: Tensor) -> Independent:
    """Skip torch's validation, which would cost three passes more: inputs were checked, and exp is positive."""
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    """As nn.Linear, initial weights included, but drawn from the generator alone; on "meta" it has no memory."""
    place = "meta" if torch.get_default_device().type == "meta" else generator.device
    check_int("hidden", num_out, minimum=1, each=0 if place == "meta" else num_in)
    layer, bound = nn.utils.skip_init(nn.Linear, num_in, num_out, device=place), 1 / math.sqrt(num_in)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator)
    return layer


def _check_range(limits: Sequence[float]) -> tuple[float, float]:
    if len(check_type("log_scale_range", limits, tuple | list)) != 2:
        raise ValueError(f"log_scale_range: expected two numbers, got {len(limits)}")
    low = check_number("log_scale_range[0]", limits[0])
    return low, check_number("log_scale_range[1]", limits[1], above=low)


def _check_scale(scale: object, min_scale: object) -> tuple[float | str, float]:
    minimum = check_number("min_scale", min_scale, minimum=0)
    if isinstance(scale, str):
        if scale not in ("shared", "free"):
            raise ValueError(f'scale: expected a number, "shared" or "free", got "{scale}"')
        return scale, minimum
    if minimum > 0:
        raise ValueError(f"min_scale: expected 0 where scale is fixed, got {minimum:g}")
    return check_number("scale", scale, above=0), minimum
