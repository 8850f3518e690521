r"""A mixture of N diagonal Gaussians in D dimensions: what the aggregated posterior of a VAE is.

    q(z) = sum_n w_n prod_j N(z_j | mu_nj, sigma_nj²),      w_n >= 0,  sum_n w_n = 1.

The product over coordinates is *inside* the sum over components. Taking it outside gives another density, with
up to N^D components (`DiagGaussianMixture.log_prob_marginals` gives its factors). Everything is computed in
float64 through `vaebook.kernels`, and returned in the dtype of the input, at least float32.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, constraints

from vaebook import clusters, kernels, sums
from vaebook._checks import at_least_single, check_index, check_tensor
from vaebook.gaussians import WeightedGaussians


class DiagGaussianMixture(WeightedGaussians):
    r"""A finite mixture of Gaussians with diagonal covariances.

    $q(z) = \sum_{n=1}^N w_n \prod_{j=1}^D \mathcal N(z_j \mid \mu_{nj}, \sigma_{nj}^2)$

    What the sums need is prepared once and shared with copies. It is prepared again after loc or scale change in place.
    There is no closed form for entropy, cdf, icdf or mode, and no reparameterised sample: as in any torch distribution
    that lacks them, they raise NotImplementedError.

    Args:
        loc: the means mu, (N, D).
        scale: the standard deviations sigma (not variances, not their logarithms), (N, D), positive.
        log_weight: the logarithms of the weights w, (N), natural; None means 1/N each. Their log-sum-exp
            must be 0 within 1e-5; they are then normalised exactly. -inf gives a component the weight 0.
        validate_args: False skips the checks of values.

    Raises:
        TypeError: an argument is not a dense floating-point tensor.
        ValueError: shapes or devices disagree, a scale is not positive, a value is not finite, or the weights
            do not sum to 1. `variance` and `covariance` raise it too, if they overflow loc's dtype.

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

    in_clusters = True
    """Whether a large mixture is divided into clusters on first use, which takes as long as some thousand points."""
    arg_constraints: ClassVar[dict] = {}  # checked by ourselves, with better messages
    support = constraints.real_vector

    def __repr__(self) -> str:
        """Show the sizes."""
        return f"DiagGaussianMixture(num_components={self.num_components}, dim={self.loc.shape[1]})"

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats.

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log q(z), (*s), in z's dtype, at least float32; -inf where it overflows. Differentiable in z, loc, scale
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
            TypeError, ValueError: as `log_prob`; or the score overflows its dtype.

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
        flat = check_index("index", index, z.shape[:-1], like=self.loc, size=self.num_components).reshape(-1)
        remaining = sums.check_others(sums.log_sum_of_others(self._log_weight)[flat], self.num_components)
        return (self._sums(rows, flat)[:, 0] - remaining).reshape(z.shape[:-1]).to(at_least_single(z.dtype))

    def leave_one_out(self, index: Tensor) -> LeaveOneOut:
        """Return the density that leaves out a given component for each row; see `log_prob_leave_one_out`.

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
        return LeaveOneOut(self, check_index("index", index, getattr(index, "shape", ()), size=self.num_components))

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
        parts = (kernels.prepare(loc[:, [j]], scale[:, [j]], log_weight) for j in range(rows.shape[1]))
        columns = [sums.evaluate(rows[:, [j]], part)[:, 0] for j, part in enumerate(parts)]
        return torch.stack(columns, -1).reshape(z.shape).to(at_least_single(z.dtype))

    def log_prob_given(self, z: Tensor, index: Tensor) -> Tensor:
        r"""$\log\mathcal N(z\mid\mu_n,\sigma_n^2)$ under one component each, (S), for z (S, D), n (S); float64."""
        rows = check_tensor("z", z, ("...", self.latent_dim), empty=True).shape[:-1]
        check_index("index", index, rows, size=self.num_components)
        _, loc, scale = self.components()
        return Normal(loc[index], scale[index]).log_prob(z.double()).sum(-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        r"""Probability of each component given z.

        $r_n(z) = w_n\mathcal N(z\mid\mu_n,\sigma_n^2)/q(z)$

        Args:
            z: points, (S, D).

        Returns:
            The responsibilities, (S, N), rows summing to 1, in z's dtype, at least float32. Memory grows with S × N.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> q = DiagGaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
            >>> q.responsibilities(torch.zeros(1, 1))
            tensor([[0.5000, 0.5000]])
        """
        rows = self._rows(z, "S")
        return self._finite("responsibilities", kernels.responsibilities(rows, self._prepared()), z.dtype)

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
        rows = self._rows(z, "S")
        check_tensor("values", values, (self.num_components, "P"), like=self.loc)
        average = kernels.responsibilities(rows, self._prepared(), values.double())
        return self._finite("posterior_mean", average, z.dtype)

    def _prepared(self, num_points: int = 0) -> kernels.Components | clusters.Clusters:
        return sums.prepared(self._held, self.loc, self.scale, self._log_weight, num_points)

    def _sums(self, rows: Tensor, exclude: Tensor | None = None, *, score: bool = False) -> Tensor:
        num_points = len(rows) if exclude is None and self.in_clusters else 0
        return sums.evaluate(rows, self._prepared(num_points), exclude, score=score)

    def _rows(self, z: Tensor, first: str = "...") -> Tensor:
        check_tensor("z", z, (first, self.loc.shape[1]), finite=self._checks_values, empty=True, like=self.loc)
        return z.double().reshape(-1, self.loc.shape[1])


class LeaveOneOut(NamedTuple):
    """A mixture that leaves out one component for each row; see `DiagGaussianMixture.leave_one_out`."""

    mixture: DiagGaussianMixture
    index: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, B, D), as (*s, B)."""
        rows = check_tensor("z", z, ("...", self.mixture.latent_dim), empty=True).shape[:-1]
        return self.mixture.log_prob_leave_one_out(z, self.index.expand(rows))
