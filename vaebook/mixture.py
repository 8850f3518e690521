r"""A mixture of N diagonal Gaussians in D dimensions: what the aggregated posterior of a VAE is.

    q(z) = sum_n w_n prod_j N(z_j | mu_nj, sigma_nj²),      w_n >= 0,  sum_n w_n = 1.

The product over coordinates is *inside* the sum over components. Taking it outside gives another density, with
up to N^D modes (`DiagGaussianMixture.log_prob_marginals` gives its factors). Everything is computed in
float64 through `vaebook.kernels`, and returned in the dtype that came, but in no less than float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vaebook import clusters, kernels
from vaebook._checks import (
    at_least_single,
    check_generator,
    check_positive,
    check_same_device,
    check_shape,
    check_spread,
    check_tensor,
)

NORMALISATION = 1e-5
"""How far from 0 the log-sum of the log-weights may be: more is a mistake, less the rounding of single precision."""
ROUNDING = 1e-14
"""How far from 0 it may be by the rounding of float64 alone."""
CATEGORIES = 2**24
"""The most components that torch.multinomial draws from."""


def _unavailable(name: str, reason: str) -> Callable:
    def method(self: DiagGaussianMixture, *_: Any, **__: Any) -> None:
        raise NotImplementedError(f"{name}: {reason}")

    method.__doc__ = f"Raise NotImplementedError: {reason}."
    return method


class DiagGaussianMixture(Distribution):
    r"""A finite mixture of Gaussians with diagonal covariances.

    $q(z) = \sum_{n=1}^N w_n \prod_{j=1}^D \mathcal N(z_j \mid \mu_{nj}, \sigma_{nj}^2)$

    What is prepared for the sums is kept and shared with copies, and made anew when loc or scale were written to.

    Args:
        loc: the means mu, (N, D).
        scale: the standard deviations sigma (not variances, not their logarithms), (N, D), positive.
        log_weight: the logarithms of the weights w, (N), natural; None means 1/N each. They must log-sum to 0
            within 1e-5 and are then normalised exactly; -inf switches a component off.
        validate_args: False skips the checks of values.

    Raises:
        TypeError: an argument is not a dense floating-point tensor.
        ValueError: shapes or devices disagree, a scale is not positive, a value is not finite, or the weights
            do not sum to 1. Later, `variance` and `covariance`: they are too large for a number of loc's dtype.

    Example:
        >>> import torch
        >>> q = DiagGaussianMixture(torch.tensor([[-2.0], [2.0]]), torch.tensor([[1.0], [0.5]]))
        >>> q.log_prob(torch.zeros(1))
        tensor(-3.6071)
        >>> q.mean, q.variance
        (tensor([0.]), tensor([4.6250]))

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 2.3.9; as the aggregated posterior,
    Makhzani et al. (2016) and Hoffman & Johnson (2016).
    """

    arg_constraints: ClassVar[dict] = {}  # checked by ourselves, with better messages
    support = constraints.real_vector
    has_rsample = False
    rsample = _unavailable("rsample", "which component a draw comes from is no differentiable choice; use sample")
    expand = _unavailable("expand", "there is no batch shape; log_prob takes points of any shape (*s, D)")
    entropy = _unavailable("entropy", "no closed form for a mixture; take the mean of -q.log_prob(q.sample((S,)))")
    cdf = _unavailable("cdf", "points are vectors; one coordinate of the mixture is a mixture in one dimension")
    icdf = _unavailable("icdf", "points are vectors; sample draws them")
    enumerate_support = _unavailable("enumerate_support", "the support is continuous")
    mode = property(_unavailable("mode", "a mixture may have many; vaebook.modes.find_modes lists them"))

    def __init__(
        self, loc: Tensor, scale: Tensor, log_weight: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        check_tensor("loc", loc, ("N", "D"), finite=False)
        check_tensor("scale", scale, tuple(loc.shape), finite=False)
        weight64 = torch.zeros(len(loc), dtype=torch.float64, device=loc.device)
        if log_weight is not None:
            weight64 = check_tensor("log_weight", log_weight, loc.shape[:1], finite=False).double()
        check_same_device(loc=loc, scale=scale, log_weight=weight64)
        self._checks_values = validate_args is not False
        if self._checks_values:
            check_tensor("loc", loc, ("N", "D"))
            check_positive("scale", scale)
            if log_weight is not None:
                _check_log_weight(log_weight)
        self.loc, self.scale = _outside_inference_mode(loc), _outside_inference_mode(scale)
        total = weight64.logsumexp(0)
        if abs(float(total.detach())) < ROUNDING:  # normalised already: making the same mixture again changes no bit
            total = total - total.detach()
        self._log_weight = _outside_inference_mode(weight64 - total)
        self._held: dict[str, Any] = {}  # see _prepared
        super().__init__(torch.Size(), loc.shape[1:], validate_args=False)

    @classmethod
    def from_arrays(
        cls, loc: Any, *, scale: Any = None, var: Any = None, log_var: Any = None, log_weight: Any = None
    ) -> DiagGaussianMixture:
        r"""Make a mixture of numpy arrays, memory maps, lists or anything else that has an `__array__`.

        Args:
            loc: the means, (N, D).
            scale: the standard deviations, (N, D). Give exactly one of these three.
            var: or the variances, scale².
            log_var: or the logarithms of the variances, 2 log scale.
            log_weight: the logarithms of the weights, (N); None means 1/N each.

        Returns:
            The mixture, with copies of the arrays, in float64, or in float32 if loc has no more digits than that.

        Raises:
            TypeError: an argument is not an array of real numbers, or not exactly one spread is given.
            ValueError: as `DiagGaussianMixture`.

        Warns:
            UserWarning: the values look like another spread than the one named.

        Example:
            >>> import numpy as np
            >>> DiagGaussianMixture.from_arrays(np.zeros((3, 2)), log_var=np.full((3, 2), -2.0)).scale[0]
            tensor([0.3679, 0.3679], dtype=torch.float64)
        """
        given = {"scale": scale, "var": var, "log_var": log_var}
        given = {name: _as_tensor(name, value) for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise TypeError(f"scale: expected exactly one of scale, var and log_var, got {list(given) or 'none'}")
        ((name, spread),) = given.items()
        loc, log_weight = _as_tensor("loc", loc), None if log_weight is None else _as_tensor("log_weight", log_weight)
        return cls(loc, check_spread(name, spread), log_weight)

    def __repr__(self) -> str:
        """Show the sizes."""
        return f"DiagGaussianMixture(num_components={self.num_components}, dim={self.loc.shape[1]})"

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
        """Return what a constructor would need beside the tensors: nothing."""
        return {}

    def double(self) -> DiagGaussianMixture:
        """Return the same mixture in float64, its weights as exact as they are held (`log_weight` is rounded)."""
        return self.to(torch.float64)

    def to(self, *args: Any, **kwargs: Any) -> DiagGaussianMixture:
        """Return the mixture in another dtype or on another device, given as to `torch.Tensor.to`."""
        loc, scale = self.loc.to(*args, **kwargs), self.scale.to(*args, **kwargs)
        if loc is self.loc and scale is self.scale:
            return self
        other = DiagGaussianMixture(loc, scale, self._log_weight.to(loc.device), validate_args=False)
        other._checks_values, other._log_weight = self._checks_values, self._log_weight.to(loc.device)
        if loc.dtype == scale.dtype == torch.float64 and loc.device == self.loc.device:
            other._held = self._held  # the same numbers
        return other

    def __getitem__(self, rows: Any) -> DiagGaussianMixture:
        """Return the mixture of some components, by slice, mask or indices, their weights normalised anew.

        Args:
            rows: a slice, a boolean mask (N) or indices.

        Returns:
            The mixture of the components chosen, in that order.

        Raises:
            ValueError: none of positive weight is left.

        Example:
            >>> import torch
            >>> DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2))[:2].log_weight.exp()
            tensor([0.5000, 0.5000])
        """
        index = torch.arange(self.num_components, device=self.loc.device)[rows].reshape(-1)
        if not bool((self._log_weight[index] > -torch.inf).any()):
            raise ValueError("rows: expected at least one component of positive weight, got none")
        part = DiagGaussianMixture(self.loc[index], self.scale[index], self._log_weight[index], validate_args=False)
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
        r"""The square root of `variance`, (D); also where that is too large or small for a number."""
        centred, scale, unit = self._in_units()
        return self._finite("stddev", (centred.square() + scale.square()).sum(0).sqrt() * unit, self.loc.dtype)

    @property
    def covariance(self) -> Tensor:
        r"""$\sum_n w_n(\mathrm{diag}\,\sigma_n^2 + (\mu_n-m)(\mu_n-m)^\top)$ with m the mean, (D, D)."""
        centred, scale, unit = self._in_units()
        covariance = torch.diag(scale.square().sum(0)) + centred.mT @ centred
        return self._finite("covariance", covariance * unit * unit[:, None], self.loc.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats.

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log q(z), (*s), in z's dtype, at least float32; -inf below its least number. Differentiable in z, loc, scale
            and log_weight.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is on another device, or it is not finite.

        Example:
            >>> import torch
            >>> DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2)).log_prob(torch.zeros(4, 2)).shape
            torch.Size([4])
        """
        return self._sums(self._rows(z))[:, 0].reshape(z.shape[:-1]).to(at_least_single(z.dtype))

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Log-density and its gradient in z, in one pass.

        $\nabla_z\log q(z) = \sum_n r_n(z)(\mu_n - z)/\sigma_n^2$

        Args:
            z: points, (*s, D).

        Returns:
            log q(z), (*s), and the score, (*s, D), in z's dtype, at least float32.

        Raises:
            TypeError, ValueError: as `log_prob`; the score is too large for a number of its dtype.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2))
            >>> q.log_prob_and_score(torch.ones(2))[1]
            tensor([-1., -1.])
        """
        both = self._sums(self._rows(z), score=True)
        log_prob = both[:, 0].reshape(z.shape[:-1]).to(at_least_single(z.dtype))
        return log_prob, self._finite("score", both[:, 1:].reshape(z.shape), z.dtype)

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        r"""Log-density at z of the mixture without one component, renormalised.

        $\log\sum_{n\ne i} w_n\mathcal N(z\mid\mu_n,\sigma_n^2) - \log\sum_{n\ne i} w_n$

        Args:
            z: points, (*s, D).
            index: for each point the component i to leave out, (*s), long.

        Returns:
            The log-density, (*s), in z's dtype, at least float32.

        Raises:
            TypeError: index is not of dtype long.
            ValueError: an index is out of range, or nothing would be left (N = 1, or all other weights are 0).

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1))
            >>> q.log_prob_leave_one_out(torch.zeros(1, 1), torch.tensor([1]))
            tensor([-0.9189])
        """
        rows = self._rows(z)
        if not isinstance(index, Tensor) or index.dtype != torch.long:
            got = getattr(index, "dtype", type(index).__name__)
            raise TypeError(f"index: expected a tensor of dtype torch.int64, got {got}")
        if index.shape != z.shape[:-1]:
            raise ValueError(f"index: expected shape {tuple(z.shape[:-1])}, got {tuple(index.shape)}")
        check_same_device(index=index, loc=self.loc)
        flat = index.reshape(-1)
        low, high = (int(end) for end in flat.aminmax()) if len(flat) else (0, 0)
        if not (low >= 0 and high < self.num_components):
            raise ValueError(f"index: expected values in [0, {self.num_components}), got {low} to {high}")
        remaining = _log_sum_of_others(self._log_weight)[flat]
        if bool(torch.isneginf(remaining).any()):
            raise ValueError(
                "index: expected other components of positive weight to remain, got a mixture in which "
                f"the component left out is the only one (N = {self.num_components})"
            )
        return (self._sums(rows, flat)[:, 0] - remaining).reshape(z.shape[:-1]).to(at_least_single(z.dtype))

    def leave_one_out(self, index: Tensor) -> LeaveOneOut:
        """Return the density that leaves out a component of its own for each row; see `log_prob_leave_one_out`.

        Args:
            index: the component to leave out for each of B data, (B), long.

        Returns:
            An object with ``log_prob(z)`` for z (*s, B, D).

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1))
            >>> q.leave_one_out(torch.tensor([1])).log_prob(torch.zeros(5, 1, 1)).shape
            torch.Size([5, 1])
        """
        return LeaveOneOut(self, index)

    def log_prob_marginals(self, z: Tensor) -> Tensor:
        r"""Log-densities of the D one-dimensional marginals.

        $\log q_j(z_j) = \log\sum_n w_n\mathcal N(z_j\mid\mu_{nj},\sigma_{nj}^2)$. Their sum over j is the log-density
        of the product of the marginals, which is *not* q.

        Args:
            z: points, (*s, D).

        Returns:
            The log-densities, (*s, D), in z's dtype, at least float32.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2)).log_prob_marginals(torch.zeros(2))
            tensor([-0.9189, -0.9189])
        """
        rows, (log_weight, loc, scale) = self._rows(z), self.components()
        parts = [kernels.prepare(loc[:, [j]], scale[:, [j]], log_weight) for j in range(rows.shape[1])]
        columns = [_evaluate(rows[:, [j]], part)[:, 0] for j, part in enumerate(parts)]
        return torch.stack(columns, -1).reshape(z.shape).to(at_least_single(z.dtype))

    def responsibilities(self, z: Tensor) -> Tensor:
        r"""Probability of each component given z.

        $r_n(z) = w_n\mathcal N(z\mid\mu_n,\sigma_n^2)/q(z)$

        Args:
            z: points, (S, D).

        Returns:
            The responsibilities, (S, N), rows summing to 1, in z's dtype, at least float32. This does grow with S × N.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
            >>> q.responsibilities(torch.zeros(1, 1))
            tensor([[0.5000, 0.5000]])
        """
        check_tensor("z", z, ("S", self.loc.shape[1]), finite=False, empty=True)
        return self._finite("responsibilities", kernels.responsibilities(self._rows(z), self._prepared()), z.dtype)

    def posterior_mean(self, z: Tensor, values: Tensor) -> Tensor:
        r"""Average of one value per component, weighted by the responsibilities.

        $\sum_n r_n(z)\,v_n$. With v_n = x_n this is the decoder of least squared error for a fixed encoder.

        Args:
            z: points, (S, D).
            values: one row a component, (N, P).

        Returns:
            The averages, (S, P), in z's dtype, at least float32.

        Raises:
            TypeError, ValueError: as `log_prob`; values has another shape, device or is not finite.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
            >>> q.posterior_mean(torch.zeros(1, 1), torch.tensor([[0.0], [10.0]]))
            tensor([[5.]])
        """
        check_tensor("z", z, ("S", self.loc.shape[1]), finite=False, empty=True)
        check_tensor("values", values, (self.num_components, "P"))
        check_same_device(values=values, loc=self.loc)
        average = kernels.responsibilities(self._rows(z), self._prepared(), values.double())
        return self._finite("posterior_mean", average, z.dtype)

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
            >>> q = DiagGaussianMixture(torch.tensor([[0.0], [9.0]]), torch.full((2, 1), 0.1))
            >>> z, n = q.sample_with_index((4,), generator=torch.Generator().manual_seed(0))
            >>> bool(((z[:, 0] > 4) == (n == 1)).all())
            True
        """
        check_generator(generator)
        shape, dtype = check_shape("sample_shape", sample_shape), at_least_single(self.loc.dtype)
        with torch.no_grad():
            index = _draw(self._weight, shape.numel(), generator)
            loc, scale = self.loc[index].to(dtype), self.scale[index].to(dtype)
            noise = torch.randn(loc.shape, generator=generator, dtype=dtype, device=loc.device)
            return (loc + scale * noise).reshape(*shape, loc.shape[1]), index.reshape(shape)

    @property
    def _weight(self) -> Tensor:
        return self._log_weight.exp()

    def _in_units(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means about their mean and scales, (N, D), in units, (D), in which none of their squares overflows."""
        used = self._log_weight > -torch.inf
        loc, scale, weight = self.loc[used].double(), self.scale[used].double(), self._weight[used]
        centred = loc - (0.5 * loc.detach().amin(0) + 0.5 * loc.detach().amax(0))
        centred = centred - weight @ centred
        unit = torch.maximum(centred.detach().abs().amax(0), scale.detach().amax(0))
        return weight.sqrt()[:, None] * (centred / unit), weight.sqrt()[:, None] * (scale / unit), unit

    def _finite(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Round a result to a dtype, in no less than single precision, unless it overflows there."""
        result = value.to(at_least_single(dtype))
        if self._checks_values and not bool(result.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got one too large for {result.dtype} or undetermined")
        return result

    def _prepared(self, num_points: int = 0) -> kernels.Components | clusters.Clusters:
        """Prepare the components for so many points, in clusters if that may pay; keep them while they stay equal."""
        if kernels.tracked(self.loc, self.scale, self._log_weight):
            return kernels.prepare(self.loc.double(), self.scale.double(), self._log_weight)
        held, given = self._held, (self.loc.double(), self.scale.double())
        # Other names for the same memory, numpy arrays among them, may have been written to: only a look can tell.
        with torch.inference_mode(False), torch.no_grad():
            if "given" not in held or not all(map(torch.equal, held["given"], given)):
                places = held.get("places")  # any division into clusters gives the same density: this one stays
                held.clear()
                held.update(given=tuple(x.clone() for x in given), places=places)
            if not clusters.worth(self.num_components, num_points, self.loc.device):
                held["all"] = held.get("all") or kernels.prepare(*held["given"], self._log_weight)
                return held["all"]
            if held["places"] is None:
                held["places"] = clusters.cluster(held["given"][0])
            held["some"] = held.get("some") or clusters.prepare(*held["given"], self._log_weight, held["places"])
            return held["some"]

    def _sums(self, rows: Tensor, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
        return _evaluate(rows, self._prepared(len(rows) if exclude is None else 0), exclude, score=score)

    def _rows(self, z: Tensor) -> Tensor:
        check_tensor("z", z, ("...", self.loc.shape[1]), finite=self._checks_values, empty=True)
        check_same_device(z=z, loc=self.loc)
        return z.double().reshape(-1, self.loc.shape[1])


class LeaveOneOut(NamedTuple):
    """A mixture that leaves out one component for each row; see `DiagGaussianMixture.leave_one_out`."""

    mixture: DiagGaussianMixture
    index: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, B, D), as (*s, B)."""
        return self.mixture.log_prob_leave_one_out(z, self.index.expand(z.shape[:-1]))


class _LogProb(torch.autograd.Function):
    """The log-density as a function of the points alone: its derivative is the score, which costs little more."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, prepared: Any, exclude: Tensor | None) -> Tensor:
        both = _evaluate(z.detach(), prepared, exclude, score=True)
        ctx.save_for_backward(z, both)
        ctx.rest = prepared, exclude
        return both[:, :1].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, both = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative may be wanted: make the score a function of z
            both = _evaluate(z, *ctx.rest, score=True)
        return gradient * both[:, 1:], None, None


def _evaluate(z: Tensor, prepared: Any, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
    """Log-density, (M, 1), and behind it the score, differentiable in what wants derivatives."""
    chosen = isinstance(prepared, clusters.Clusters)
    components = prepared.components if chosen else prepared
    if kernels.tracked(*components) or (score and kernels.tracked(z)):
        return kernels.dense(z, components, exclude, score=score)
    if kernels.tracked(z):
        return _LogProb.apply(z, prepared, exclude)
    return (
        clusters.evaluate(z, prepared, score=score) if chosen else kernels.all_pairs(z, prepared, exclude, score=score)
    )


def _draw(weight: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """Draw indices with these probabilities, (num)."""
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


def _as_tensor(name: str, value: Any) -> Tensor:
    """Copy what may become a numpy array of real numbers into a tensor of single or double precision."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value if value.dtype == torch.float64 else value.float()).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of real numbers, got {type(value).__name__} of dtype {array.dtype}")
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return torch.from_numpy(array.astype(np.float32 if single else np.float64))


def _check_log_weight(log_weight: Tensor) -> None:
    total = float(log_weight.detach().double().logsumexp(0))
    allowed = max(NORMALISATION, 8 * torch.finfo(log_weight.dtype).eps)  # weights in half precision are rough
    if not abs(total) <= allowed:  # also catches nan
        raise ValueError(
            f"log_weight: expected natural logarithms that log-sum to 0 within {allowed:g}, got {total:.6g}; "
            "torch.log_softmax(log_weight, 0) normalises them"
        )


def _log_sum_of_others(log_weight: Tensor) -> Tensor:
    """For each n the log of the sum of all other weights, without the cancellation of log(1 - w_n)."""
    nothing = -1e300  # instead of -inf, at which the derivatives of both functions are nan
    edge, log_weight = log_weight.new_full((1,), nothing), log_weight.clamp(min=nothing)
    before = torch.cat([edge, log_weight.logcumsumexp(0)[:-1]])
    after = torch.cat([log_weight.flip(0).logcumsumexp(0).flip(0)[1:], edge])
    others = torch.logaddexp(before, after)
    return others.masked_fill(others < nothing / 2, -torch.inf)
