r"""N weighted Gaussians with diagonal covariances: the parts of a mixture, its moments and its draws.

The density is in `vaebook.mixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaebook._checks import at_least_single, check_draw, check_log_weight, check_positive, check_tensor, to_scale
from vaebook.evaluation import as_tensor

ROUNDING = 1e-14
"""How far the log-sum-exp of normalised log-weights may be from 0 by the rounding of float64."""
CATEGORIES = 2**24
"""The most components that torch.multinomial draws from."""


class WeightedGaussians(Distribution):
    """Means, standard deviations and weights; see `vaebook.mixture.DiagGaussianMixture` for the arguments."""

    def __init__(
        self, loc: Tensor, scale: Tensor, log_weight: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        self._checks_values = validate_args is not False
        check_tensor("loc", loc, ("N", "D"), finite=self._checks_values)
        check_tensor("scale", scale, tuple(loc.shape), finite=False, like=loc)
        weight64 = torch.zeros(len(loc), dtype=torch.float64, device=loc.device)
        if log_weight is not None:
            weight64 = check_tensor("log_weight", log_weight, loc.shape[:1], finite=False, like=loc).double()
        if self._checks_values:
            check_positive("scale", scale)
            if log_weight is not None:
                check_log_weight(log_weight)
        self.loc, self.scale = _outside_inference_mode(loc), _outside_inference_mode(scale)
        total = weight64.logsumexp(0)
        if abs(float(total.detach())) < ROUNDING:  # normalised already: making the same mixture again changes no bit
            total = total - total.detach()
        self._log_weight = _outside_inference_mode(weight64 - total)
        self._held: dict[str, Any] = {}  # what is prepared for sums
        super().__init__(torch.Size(), loc.shape[1:], validate_args=False)

    @classmethod
    def from_arrays(
        cls, loc: Any, *, scale: Any = None, var: Any = None, log_var: Any = None, log_weight: Any = None
    ) -> Self:
        r"""Make a mixture from numpy arrays, memory maps, lists or anything else that has an `__array__`.

        Args:
            loc: the means, (N, D), or codes of any shape, of which each is flattened.
            scale: the standard deviations, of that shape. Give exactly one of these three.
            var: or the variances, scale².
            log_var: or the logarithms of the variances, 2 log scale.
            log_weight: the logarithms of the weights, (N); None means 1/N each.

        Returns:
            The mixture, with copies of the arrays, in float64, or in float32 if they came in that or less.

        Raises:
            TypeError: an argument is not an array of real numbers, or not exactly one spread is given.
            ValueError: as `DiagGaussianMixture`.

        Warns:
            UserWarning: the values look like another spread than the one named.

        Example:
            >>> import numpy as np
            >>> from vaebook import DiagGaussianMixture
            >>> DiagGaussianMixture.from_arrays(np.zeros((3, 2)), log_var=np.full((3, 2), -2.0)).scale[0]
            tensor([0.3679, 0.3679], dtype=torch.float64)
        """
        given = {"scale": scale, "var": var, "log_var": log_var}
        given = {name: as_tensor(name, value) for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise TypeError(f"scale: expected exactly one of scale, var and log_var, got {list(given) or 'none'}")
        ((name, spread),) = given.items()
        loc, log_weight = as_tensor("loc", loc), None if log_weight is None else as_tensor("log_weight", log_weight)
        spread = spread if name == "scale" else spread.double()
        return cls(loc, to_scale(name, spread, name), log_weight)

    @property
    def num_components(self) -> int:
        """N, the number of components (those of weight zero included)."""
        return self.loc.shape[0]

    @property
    def latent_dim(self) -> int:
        """D, the dimension of z."""
        return self.loc.shape[1]

    @property
    def log_weight(self) -> Tensor:
        """Normalised log-weights, (N)."""
        return self._log_weight.to(at_least_single(self.loc.dtype))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, (N), means and standard deviations, (N, D), in float64."""
        return self._log_weight, self.loc.double(), self.scale.double()

    def config(self) -> dict[str, Any]:
        """Return what the constructor needs beside the tensors: nothing."""
        return {}

    def double(self) -> Self:
        """Return the mixture in float64, its weights at full precision (`log_weight` may round them)."""
        return self.to(torch.float64)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return the mixture in another dtype or on another device, given as to `torch.Tensor.to`."""
        loc, scale = self.loc.to(*args, **kwargs), self.scale.to(*args, **kwargs)
        if loc is self.loc and scale is self.scale:
            return self
        other = type(self)(loc, scale, self._log_weight.to(loc.device), validate_args=False)
        other._checks_values, other._log_weight = self._checks_values, self._log_weight.to(loc.device)
        if loc.dtype == scale.dtype == torch.float64 and loc.device == self.loc.device:
            other._held = self._held  # the same numbers
        return other

    def __getitem__(self, rows: Any) -> Self:
        """Return the mixture of the chosen components, their weights normalised again.

        Args:
            rows: a slice, a boolean mask (N) or indices.

        Returns:
            The mixture of the components chosen, in that order.

        Raises:
            ValueError: no chosen component has a positive weight.

        Example:
            >>> import torch
            >>> from vaebook import DiagGaussianMixture
            >>> DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))[:2].log_weight.exp()
            tensor([0.5000, 0.5000])
        """
        index = torch.arange(self.num_components, device=self.loc.device)[rows].reshape(-1)
        if not bool((self._log_weight[index] > -torch.inf).any()):
            raise ValueError("rows: expected at least one component of positive weight, got none")
        part = type(self)(self.loc[index], self.scale[index], self._log_weight[index], validate_args=False)
        part._checks_values, places = self._checks_values, self._held.get("places")
        if places is not None and 2 * len(index) >= self.num_components:  # the clusters of most are good ones
            moved = torch.full((self.num_components + 1,), len(index), device=index.device)
            places = moved.index_copy(0, index, torch.arange(len(index), device=index.device))[places]
            part._held["places"] = places if int((places < len(index)).sum()) == len(index) else None
        return part

    @property
    def mean(self) -> Tensor:
        r"""$\sum_n w_n\mu_n$, (D)."""
        return self._finite("mean", self._weight @ self.loc.double(), self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        r"""The diagonal of `covariance`, (D)."""
        centred, scale, unit = self._in_units()
        return self._finite("variance", (centred.square() + scale.square()).sum(0) * unit * unit, self.loc.dtype)

    @property
    def stddev(self) -> Tensor:
        r"""The square root of `variance`, (D); also where `variance` itself overflows or underflows."""
        centred, scale, unit = self._in_units()
        return self._finite("stddev", (centred.square() + scale.square()).sum(0).sqrt() * unit, self.loc.dtype)

    @property
    def covariance(self) -> Tensor:
        r"""$\sum_n w_n(\mathrm{diag}\,\sigma_n^2 + (\mu_n-m)(\mu_n-m)^\top)$ with m the mean, (D, D)."""
        centred, scale, unit = self._in_units()
        covariance = torch.diag(scale.square().sum(0)) + centred.mT @ centred
        return self._finite("covariance", covariance * unit * unit[:, None], self.loc.dtype)

    def average(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        r"""$\sum_n w_n f(\log w_n,\mu_n,\sigma_n)$, float64; f maps some of these, (n), (n, D), (n, D), to n rows."""
        some = max(1, 2**20 // self.latent_dim)  # 8 MiB an array: memory does not grow with N
        parts = zip(*(x.detach().split(some) for x in (self._log_weight, self.loc, self.scale)), strict=True)
        return sum(w.exp() @ function(w, loc.double(), scale.double()) for w, loc, scale in parts)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples.

        Args:
            sample_shape: the shape s of the draw, a tuple or list; an int is not accepted, as elsewhere in torch.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in loc's dtype, at least float32.

        Raises:
            TypeError: generator is not a torch.Generator, or sample_shape not a tuple of ints.
            ValueError: sample_shape has a negative entry.

        Example:
            >>> import torch
            >>> from vaebook import DiagGaussianMixture
            >>> q = DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))
            >>> q.sample((5,), generator=torch.Generator().manual_seed(0)).shape
            torch.Size([5, 2])
        """
        return self.sample_with_index(sample_shape, generator=generator)[0]

    def sample_with_index(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples together with the component that each came from.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in loc's dtype, at least float32, and n, (*s), long.

        Raises:
            TypeError: generator is not a torch.Generator.

        Example:
            >>> import torch
            >>> from vaebook import DiagGaussianMixture
            >>> q = DiagGaussianMixture(torch.tensor([[0.0], [9.0]]), torch.full((2, 1), 0.1))
            >>> z, n = q.sample_with_index((4,), generator=torch.Generator().manual_seed(0))
            >>> bool(((z[:, 0] > 4) == (n == 1)).all())
            True
        """
        shape, generator = check_draw(sample_shape, generator, self.loc.device, self.latent_dim)
        dtype = at_least_single(self.loc.dtype)
        with torch.no_grad():
            index = draw_indices(self._weight, shape.numel(), generator)
            loc, scale = self.loc[index].to(dtype), self.scale[index].to(dtype)
            noise = torch.randn(loc.shape, generator=generator, dtype=dtype, device=loc.device)
            return (loc + scale * noise).reshape(*shape, loc.shape[1]), index.reshape(shape)

    @property
    def _weight(self) -> Tensor:
        return self._log_weight.exp()

    def _in_units(self) -> tuple[Tensor, Tensor, Tensor]:
        """Centred means and scales, (N, D), in units, (D), in which their squares do not overflow."""
        used = self._log_weight > -torch.inf
        loc, scale, weight = self.loc[used].double(), self.scale[used].double(), self._weight[used]
        centred = loc - (0.5 * loc.detach().amin(0) + 0.5 * loc.detach().amax(0))
        centred = centred - weight @ centred
        unit = torch.maximum(centred.detach().abs().amax(0), scale.detach().amax(0))
        return weight.sqrt()[:, None] * (centred / unit), weight.sqrt()[:, None] * (scale / unit), unit

    def _finite(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a result in a dtype, at least float32; raise if it overflows there."""
        result = value.to(at_least_single(dtype))
        if self._checks_values and not bool(result.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got one too large for {result.dtype} or undetermined")
        return result


def draw_indices(weight: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """Draw so many indices with these probabilities, (num)."""
    if len(weight) <= CATEGORIES:  # multinomial refuses to draw nothing, too
        return torch.multinomial(weight, max(1, num), replacement=True, generator=generator)[:num]
    total = weight.cumsum(0)
    mark = torch.rand(num, generator=generator, dtype=weight.dtype, device=weight.device) * total[-1]
    return torch.searchsorted(total, mark, right=True).clamp(max=int(weight.nonzero()[-1]))


def _outside_inference_mode(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy of it that can be used outside inference mode too."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()
