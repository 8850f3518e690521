r"""Variational autoencoders of fully connected layers, whose parts return torch distributions.

With `q = vae.encoder(x)` and `z = q.rsample()` the evidence lower bound is one line,
`vae.decoder(z).log_prob(x) + vae.prior.log_prob(z) - q.log_prob(z)`, in nats per datum.

The encoder's heads are affine maps of its last hidden layer, mu = A h + a and sigma = exp(B h + b), with nothing
clamped; each decoder starts with an affine map of z. Statements of the book about stationary points rest on
just that. Weights are drawn from a `torch.Generator`, never from torch's global one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, constraints

from vaebook._checks import check_all, check_generator, check_int, check_number, check_tensor

HIDDEN = (256,)
"""Default widths of the hidden layers."""


class Latent(Protocol):
    """What a prior, or anything else to draw codes from, must offer."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s)."""
        ...

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, (*s, D)."""
        ...


class GaussianEncoder(nn.Module):
    r"""An encoder q(z|x): a Gaussian with diagonal covariance for every datum.

    $q(z\mid x) = \prod_{j=1}^D \mathcal N(z_j \mid \mu_j(x), \sigma_j(x)^2)$,
    $\mu = A\,h(x) + a$, $\sigma = \exp(B\,h(x) + b)$

    Args:
        data_dim: P, the number of pixels.
        latent_dim: D.
        hidden: widths of the hidden layers that compute h, each followed by SiLU; () makes h(x) = x.
        generator: the source of the initial weights, uniform within ±1/√(fan-in); None means one with seed 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is below 1.

    Example:
        >>> encoder = GaussianEncoder(64, 2)
        >>> q = encoder(torch.zeros(5, 64))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), appendix C.2.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.data_dim = check_int("data_dim", data_dim, minimum=1)
        self.latent_dim = check_int("latent_dim", latent_dim, minimum=1)
        self.hidden = _check_hidden(hidden)
        generator = _own_generator(generator)
        self.body, width = _body(data_dim, self.hidden, generator)
        self.loc = _linear(width, latent_dim, generator)
        self.log_scale = _linear(width, latent_dim, generator)

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
        h = self.body(_check_input("x", x, self.data_dim, self.loc.weight))
        return _diag_normal(self.loc(h), self.log_scale(h).exp())


class BernoulliDecoder(nn.Module):
    r"""A decoder p(x|z) of independent black-and-white pixels.

    $p(x\mid z) = \prod_{i=1}^P \pi_i(z)^{x_i}(1-\pi_i(z))^{1-x_i}$

    For binary x this is a probability. Grey x in [0, 1] are accepted, but then the formula is no normalised
    density, and its values do not compare with those of other models: see `vaebook.data.binarize`.

    Args:
        latent_dim: D.
        data_dim: P, the number of pixels.
        hidden: widths of the hidden layers, each followed by SiLU; () makes the logits affine in z.
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
        hidden: Sequence[int] = HIDDEN,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = check_int("latent_dim", latent_dim, minimum=1)
        self.data_dim = check_int("data_dim", data_dim, minimum=1)
        self.hidden = _check_hidden(hidden)
        generator = _own_generator(generator)
        self.body, width = _body(latent_dim, self.hidden, generator)
        self.logits = _linear(width, data_dim, generator)

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
        logits = self.logits(self.body(_check_input("z", z, self.latent_dim, self.logits.weight)))
        return Independent(_GreyBernoulli(logits=logits, validate_args=False), 1, validate_args=False)


class GaussianDecoder(nn.Module):
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
        hidden: Sequence[int] = HIDDEN,
        *,
        scale: float | str = "shared",
        min_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = check_int("latent_dim", latent_dim, minimum=1)
        self.data_dim = check_int("data_dim", data_dim, minimum=1)
        self.hidden = _check_hidden(hidden)
        self.scale, self.min_scale = _check_scale(scale, min_scale)
        generator = _own_generator(generator)
        self.body, width = _body(latent_dim, self.hidden, generator)
        self.loc = _linear(width, data_dim, generator)
        if self.scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros((), device=generator.device))
        elif self.scale == "free":
            self.log_scale = _linear(width, data_dim, generator)

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
        h = self.body(_check_input("z", z, self.latent_dim, self.loc.weight))
        loc = self.loc(h)
        if self.scale == "shared":
            scale = self.min_scale + self.log_scale.exp()
        elif self.scale == "free":
            scale = self.min_scale + self.log_scale(h).exp()
        else:
            scale = loc.new_tensor(self.scale)
        return _diag_normal(loc, scale.expand_as(loc))


class VAE(nn.Module):
    r"""A variational autoencoder: an encoder q(z|x), a decoder p(x|z) and a prior p(z).

    $\log p(x) \ge \mathbb E_{q(z\mid x)}[\log p(x\mid z)] - \mathrm{KL}(q(z\mid x)\,\|\,p(z))$

    Args:
        encoder: a module that maps x (B, P) to a distribution over z with event shape (D,).
        decoder: a module that maps z (*s, D) to a distribution over x with event shape (P,).
        prior: anything with `log_prob(z)` and `sample(sample_shape, *, generator)`, such as
            `vaebook.priors.StandardNormal` or an aggregated posterior.

    Raises:
        TypeError: encoder or decoder is not a module, or prior lacks a method.
        ValueError: the parts disagree on P or D, or the prior is made of the codes of another encoder.

    Example:
        >>> from vaebook.priors import StandardNormal
        >>> vae = VAE(GaussianEncoder(64, 2), BernoulliDecoder(2, 64), StandardNormal(2))
        >>> vae(torch.zeros(5, 64)).mean.shape
        torch.Size([5, 2])

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), equation 3.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: Latent) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: expected a torch.nn.Module, got {type(module).__name__}")
        for method in ("log_prob", "sample"):
            _check_method("prior", prior, method)
        # Parts of one's own need not tell their sizes; a torch distribution tells its event shape.
        prior_dim = getattr(prior, "latent_dim", None) or next(iter(getattr(prior, "event_shape", ())), None)
        for name, of_prior in (("data_dim", None), ("latent_dim", prior_dim)):
            sizes = {"encoder": getattr(encoder, name, None), "decoder": getattr(decoder, name, None)}
            _check_agreement(name, sizes | {"prior": of_prior})
        if getattr(prior, "encoder", encoder) is not encoder:  # it would be neither trained nor saved
            raise ValueError("prior: expected one made of the codes of this encoder, got one of another encoder")
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def forward(self, x: Tensor) -> torch.distributions.Distribution:
        """Encode: the same as `self.encoder(x)`.

        Args:
            x: data, (B, P).

        Returns:
            q(z|x): batch shape (B,), event shape (D,).

        Raises:
            TypeError, ValueError: as the encoder.
        """
        return self.encoder(x)

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, latent: Latent | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw codes and return the decoder's means, $\mathbb E[x\mid z^{(s)}]$ with $z^{(s)}\sim p(z)$.

        These are the pictures one looks at. They are not draws from p(x), which lack the pixels' noise.

        Args:
            num_samples: S.
            latent: where z comes from instead of the prior, for example the aggregated posterior. Its draws are
                converted to the dtype of the decoder's weights: what is fitted after training is in float64.
            generator: the source of randomness; None means torch's global one.

        Returns:
            The means, (S, P), without gradients.

        Raises:
            TypeError: num_samples is not an int, latent cannot be sampled, generator is not a torch.Generator.
            ValueError: num_samples is below 1, or latent draws codes that the decoder does not take.

        Example:
            >>> from vaebook.priors import StandardNormal
            >>> vae = VAE(GaussianEncoder(64, 2), BernoulliDecoder(2, 64), StandardNormal(2))
            >>> vae.sample(5, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([5, 64])
        """
        check_int("num_samples", num_samples, minimum=1)
        check_generator(generator)
        source = self.prior if latent is None else _check_method("latent", latent, "sample")
        z = source.sample((num_samples,), generator=generator)
        return self.decoder(z.to(next(self.decoder.parameters(), z).dtype)).mean


class _GreyBernoulli(Bernoulli):
    """Bernoulli that lets grey values through, as the usual loss does, but nothing outside [0, 1]."""

    support = constraints.unit_interval

    def log_prob(self, value: Tensor) -> Tensor:
        check_tensor("x", value, ("...",), empty=True)
        check_all("x", value, (value >= 0) & (value <= 1), "values in [0, 1]")
        return super().log_prob(value)


def _diag_normal(loc: Tensor, scale: Tensor) -> Independent:
    # Inputs were checked and exp is positive; torch's own validation would cost three more passes.
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _own_generator(generator: torch.Generator | None) -> torch.Generator:
    check_generator(generator)
    return torch.Generator().manual_seed(0) if generator is None else generator


def _linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    """As nn.Linear, with the same distribution of initial weights, but drawn from the generator alone."""
    layer = nn.utils.skip_init(nn.Linear, num_in, num_out, device=generator.device)
    bound = 1 / math.sqrt(num_in)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _body(num_in: int, hidden: tuple[int, ...], generator: torch.Generator) -> tuple[nn.Sequential, int]:
    """Build the hidden layers; also return the width of what comes out of them."""
    sizes = (num_in, *hidden)
    layers = [m for a, b in zip(sizes, hidden, strict=False) for m in (_linear(a, b, generator), nn.SiLU())]
    return nn.Sequential(*layers), sizes[-1]


def _check_hidden(hidden: object) -> tuple[int, ...]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise TypeError(f"hidden: expected a sequence of ints, got {type(hidden).__name__}")
    return tuple(check_int(f"hidden[{i}]", width, minimum=1) for i, width in enumerate(hidden))


def _check_scale(scale: object, min_scale: object) -> tuple[float | str, float]:
    minimum = check_number("min_scale", min_scale, minimum=0)
    if isinstance(scale, str):
        if scale not in ("shared", "free"):
            raise ValueError(f'scale: expected a number, "shared" or "free", got "{scale}"')
        return scale, minimum
    if minimum > 0:
        raise ValueError(f"min_scale: expected 0 where scale is fixed, got {minimum:g}")
    return check_number("scale", scale, above=0), minimum


def _check_input(name: str, value: Tensor, dim: int, weight: Tensor) -> Tensor:
    check_tensor(name, value, ("...", dim), finite=False)
    if value.dtype != weight.dtype:
        raise TypeError(f"{name}: expected the dtype of the weights, {weight.dtype}, got {value.dtype}")
    if value.device != weight.device:
        raise ValueError(f"{name}: expected the device of the weights, {weight.device}, got {value.device}")
    return check_all(name, value, torch.isfinite(value), "finite values")


def _check_method(name: str, value: Latent, method: str) -> Latent:
    if not callable(getattr(value, method, None)):
        raise TypeError(f"{name}: expected an object with a method `{method}`, got {type(value).__name__}")
    return value


def _check_agreement(name: str, sizes: dict[str, int | None]) -> None:
    known = {part: size for part, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        got = ", ".join(f"{size} in the {part}" for part, size in known.items())
        raise ValueError(f"{name}: expected the same in all parts, got {got}")
