r"""A mixture of N diagonal Gaussians in D dimensions: what the aggregated posterior of a VAE is.

    q(z) = sum_n w_n prod_j N(z_j | mu_nj, sigma_nj²),      w_n >= 0,  sum_n w_n = 1.

The product over coordinates is *inside* the sum over components. Taking it outside gives another density, with
up to N^D modes (`DiagGaussianMixture.log_prob_marginals` gives its factors). Everything is computed in
float64 through `vaebook.kernels`, and returned in the dtype that came.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from vaebook import kernels
from vaebook._checks import check_generator, check_positive, check_same_device, check_shape, check_tensor
from vaebook.attention import cluster

NORMALISATION = 1e-5
"""How far from 0 the log-sum of the log-weights may be."""
ROUNDING = 1e-14
"""How far from 0 it may be by the rounding of float64 alone."""


class DiagGaussianMixture(Distribution):
    r"""A finite mixture of Gaussians with diagonal covariances.

    $q(z) = \sum_{n=1}^N w_n \prod_{j=1}^D \mathcal N(z_j \mid \mu_{nj}, \sigma_{nj}^2)$

    Args:
        loc: the means mu, (N, D).
        scale: the standard deviations sigma (not variances, not their logarithms), (N, D), positive.
        log_weight: the logarithms of the weights w, (N), natural; None means 1/N each. They must log-sum to 0
            within 1e-5 and are then normalised exactly; -inf switches a component off.
        validate_args: False skips the checks of values.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices disagree, a scale is not positive, a value is not finite, or the weights
            do not sum to 1.

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

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        log_weight: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_tensor("loc", loc, ("N", "D"), finite=False)
        check_tensor("scale", scale, tuple(loc.shape), finite=False)
        weight64 = loc.new_zeros(loc.shape[0]).double()
        if log_weight is not None:
            weight64 = check_tensor("log_weight", log_weight, loc.shape[:1], finite=False).double()
        check_same_device(loc=loc, scale=scale, log_weight=weight64)
        self._checks_values = validate_args is not False
        if self._checks_values:
            check_tensor("loc", loc, ("N", "D"))
            check_positive("scale", scale)
            if log_weight is not None:
                _check_log_weight(log_weight)
        self.loc, self.scale = loc, scale
        self._order: tuple[Tensor, int] | None = None
        self._held: dict[bool, tuple[Tensor, Tensor, tuple[int, int], kernels.Components]] = {}  # see _components
        total = weight64.logsumexp(0)
        if abs(float(total.detach())) < ROUNDING:  # normalised already: making the same mixture again changes no bit
            total = total - total.detach()
        self._log_weight = weight64 - total
        super().__init__(torch.Size(), loc.shape[1:], validate_args=False)

    def __repr__(self) -> str:
        """Show the sizes."""
        return f"DiagGaussianMixture(num_components={self.num_components}, dim={self.loc.shape[1]})"

    @property
    def num_components(self) -> int:
        """N, the number of components (those of weight zero included)."""
        return self.loc.shape[0]

    @property
    def log_weight(self) -> Tensor:
        """Normalised log-weights, (N)."""
        return self._log_weight.to(self.loc.dtype)

    def double(self) -> DiagGaussianMixture:
        """Return the same mixture in float64, its weights as exact as they are held (`log_weight` is rounded)."""
        return DiagGaussianMixture(self.loc.double(), self.scale.double(), self._log_weight, validate_args=False)

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.loc.shape[1]

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (N), float64, means (N, D) and scales (N, D)."""
        return self._log_weight, self.loc, self.scale

    @property
    def mean(self) -> Tensor:
        r"""$\sum_n w_n\mu_n$, (D)."""
        return (self._weight @ self.loc.double()).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        r"""The diagonal of `covariance`, (D)."""
        centred = self.loc.double() - self._weight @ self.loc.double()
        return (self._weight @ (centred.square() + self.scale.double().square())).to(self.loc.dtype)

    @property
    def covariance(self) -> Tensor:
        r"""$\sum_n w_n(\mathrm{diag}\,\sigma_n^2 + (\mu_n-m)(\mu_n-m)^\top)$ with m the mean, (D, D)."""
        centred = self.loc.double() - self._weight @ self.loc.double()
        within = torch.diag(self._weight @ self.scale.double().square())
        return (within + (self._weight[:, None] * centred).mT @ centred).to(self.loc.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats.

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log q(z), (*s), in z's dtype. Differentiable in z, loc, scale and log_weight.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is on another device, or it is not finite.

        Example:
            >>> import torch
            >>> DiagGaussianMixture(torch.zeros(3, 2), torch.ones(3, 2)).log_prob(torch.zeros(4, 2)).shape
            torch.Size([4])
        """
        rows = self._rows(z)
        components = self._components(len(rows))
        return kernels.logsumexp_terms(rows, components).reshape(z.shape[:-1]).to(z.dtype)

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Log-density and its gradient in z, in one pass.

        $\nabla_z\log q(z) = \sum_n r_n(z)(\mu_n - z)/\sigma_n^2$

        Args:
            z: points, (*s, D).

        Returns:
            log q(z), (*s), and the score, (*s, D), in z's dtype.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2))
            >>> q.log_prob_and_score(torch.ones(2))[1]
            tensor([-1., -1.])
        """
        rows = self._rows(z)
        log_prob, score = kernels.logsumexp_and_score(rows, self._components(len(rows)))
        return log_prob.reshape(z.shape[:-1]).to(z.dtype), score.reshape(z.shape).to(z.dtype)

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        r"""Log-density at z of the mixture without one component, renormalised.

        $\log\sum_{n\ne i} w_n\mathcal N(z\mid\mu_n,\sigma_n^2) - \log\sum_{n\ne i} w_n$

        Args:
            z: points, (*s, D).
            index: for each point the component i to leave out, (*s), long.

        Returns:
            The log-density, (*s), in z's dtype.

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
            raise TypeError(f"index: expected a tensor of dtype torch.int64, got {_describe(index)}")
        if index.shape != z.shape[:-1]:
            raise ValueError(f"index: expected shape {tuple(z.shape[:-1])}, got {tuple(index.shape)}")
        check_same_device(index=index, loc=self.loc)
        if index.numel() and not (0 <= int(index.min()) and int(index.max()) < self.num_components):
            got = f"{int(index.min())} to {int(index.max())}"
            raise ValueError(f"index: expected values in [0, {self.num_components}), got {got}")
        flat = index.reshape(-1)
        remaining = _log_sum_of_others(self._log_weight)[flat]
        if bool(torch.isneginf(remaining).any()):
            raise ValueError(
                "index: expected other components of positive weight to remain, got a mixture in which "
                f"the component left out is the only one (N = {self.num_components})"
            )
        log_prob = kernels.logsumexp_terms(rows, self._components(), exclude=flat) - remaining
        return log_prob.reshape(z.shape[:-1]).to(z.dtype)

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
            The log-densities, (*s, D), in z's dtype.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> DiagGaussianMixture(torch.zeros(1, 2), torch.ones(1, 2)).log_prob_marginals(torch.zeros(2))
            tensor([-0.9189, -0.9189])
        """
        rows = self._rows(z)
        loc, scale = self.loc.double(), self.scale.double()
        columns = [
            kernels.logsumexp_terms(rows[:, [j]], kernels.prepare(loc[:, [j]], scale[:, [j]], self._log_weight))
            for j in range(rows.shape[1])
        ]
        return torch.stack(columns, -1).reshape(z.shape).to(z.dtype)

    def responsibilities(self, z: Tensor) -> Tensor:
        r"""Probability of each component given z.

        $r_n(z) = w_n\mathcal N(z\mid\mu_n,\sigma_n^2)/q(z)$

        Args:
            z: points, (S, D).

        Returns:
            The responsibilities, (S, N), rows summing to 1, in z's dtype. (This output does grow with S × N.)

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
            >>> q.responsibilities(torch.zeros(1, 1))
            tensor([[0.5000, 0.5000]])
        """
        check_tensor("z", z, ("S", self.loc.shape[1]), finite=False, empty=True)
        return kernels.softmax_terms(self._rows(z), self._components()).to(z.dtype)

    def posterior_mean(self, z: Tensor, values: Tensor) -> Tensor:
        r"""Average of one value per component, weighted by the responsibilities.

        $\sum_n r_n(z)\,v_n$. With v_n = x_n this is the decoder of least squared error for a fixed encoder.

        Args:
            z: points, (S, D).
            values: one row a component, (N, P).

        Returns:
            The averages, (S, P), in z's dtype.

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
        return kernels.average_terms(self._rows(z), self._components(), values).to(z.dtype)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples.

        Args:
            sample_shape: the shape s of the draw; an int is not accepted, as elsewhere in torch.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in loc's dtype.

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
        self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples together with the component that each came from.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in loc's dtype, and n, (*s), long.

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
        shape = check_shape("sample_shape", sample_shape)
        with torch.no_grad():
            # multinomial refuses to draw nothing
            index = torch.multinomial(self._weight, max(1, shape.numel()), replacement=True, generator=generator)
            index = index[: shape.numel()]
            loc, scale = self.loc[index], self.scale[index].to(self.loc.dtype)
            noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
            return (loc + scale * noise).reshape(*shape, loc.shape[1]), index.reshape(shape)

    @property
    def _weight(self) -> Tensor:
        return self._log_weight.exp()

    def _components(self, num_points: int = 0) -> kernels.Components:
        """Prepare the components for the log-density at so many points, by clusters if that may pay; keep the result.

        What was kept is good until loc or scale is written to or replaced; torch counts the versions of a tensor.
        """
        loc, scale = self.loc.double(), self.scale.double()
        changing = any(t.requires_grad or t.is_inference() for t in (loc, scale, self._log_weight))
        if changing and torch.is_grad_enabled():
            return kernels.prepare(loc, scale, self._log_weight)
        by_clusters = self.num_components * num_points >= kernels.MANY and loc.device.type == "cpu"
        if by_clusters and self._order is None:  # any order gives the same density: this one stays
            self._order = cluster(loc.detach())
        order = self._order if by_clusters else None
        if changing:
            return kernels.prepare(loc, scale, self._log_weight, order=order)
        versions, held = (self.loc._version, self.scale._version), self._held.get(by_clusters)
        if held is None or held[0] is not self.loc or held[1] is not self.scale or held[2] != versions:
            prepared = kernels.prepare(loc, scale, self._log_weight, order=order)
            held = self._held[by_clusters] = (self.loc, self.scale, versions, prepared)
        return held[3]

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


def _describe(value: object) -> str:
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
