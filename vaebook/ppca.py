r"""Probabilistic PCA: the VAE whose encoder, decoder and likelihood are all closed form.

    p(z) = N(z | 0, I),    p(x|z) = N(x | W z + c, s² I)    so that    p(x) = N(x | c, W Wᵀ + s² I).

With orthogonal columns in W (WᵀW = diag l²) the exact posterior is diagonal, as the encoder of a VAE is.
Split x - c into y_j = W_jᵀ(x-c) / l_j, its coordinates in the column space of W, and the rest, which no z explains.
Whatever diagonal Gaussian mixture takes the prior's place, the density of x is then a diagonal Gaussian mixture
of y times a fixed Gaussian of the rest. So everything else in this package can be compared with exact values of pPCA.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from vaebook._checks import check_int, check_number, check_tensor
from vaebook.adapters import adapt_prior
from vaebook.evaluation import Data, whole
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import components
from vaebook.priors import from_components


class PPCA:
    r"""Probabilistic PCA with known parameters, in float64; `PPCA.fit` finds them from data.

    $p(x) = \int \mathcal N(x \mid Wz + c, s^2 I)\,\mathcal N(z \mid 0, I)\,dz
    = \mathcal N(x \mid c, WW^\top + s^2 I)$

    Args:
        mean: c, (P).
        weight: W, (P, D) with D <= P and orthogonal columns.
        noise_variance: s² > 0, in squared units of x.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes or devices disagree, noise_variance is not positive, or the columns of weight are
            not orthogonal.

    Example:
        >>> import torch
        >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> model.log_prob(torch.zeros(1, 2))  # N(0, diag(5, 1))
        tensor([-2.6426], dtype=torch.float64)

    Source: Tipping & Bishop, Probabilistic principal component analysis, JRSS B 61 (1999), section 3; Bishop,
    Pattern Recognition and Machine Learning (2006), section 12.2.
    """

    def __init__(self, mean: Tensor, weight: Tensor, noise_variance: float) -> None:
        check_tensor("mean", mean, ("P",))
        check_tensor("weight", weight, (mean.shape[0], "D"), like=mean)
        if weight.shape[1] > weight.shape[0]:
            raise ValueError(f"weight: expected at most {weight.shape[0]} columns, got {weight.shape[1]}")
        self.mean, self.weight = mean.detach().double(), weight.detach().double()
        self.noise_variance = check_number("noise_variance", noise_variance, above=0)
        self._strength = self.weight.square().sum(0)  # l², (D)
        length = self._strength.sqrt()
        # A column of zeros is a latent that nothing sees: it gets the direction 0, and all formulas hold.
        self._directions = self.weight / torch.where(length > 0, length, 1.0)
        gram = self._directions.mT @ self._directions
        worst = float((gram - gram.diag().diag()).abs().max())
        if worst > 1e-9:
            hint = "u, s, _ = torch.linalg.svd(weight, full_matrices=False), the weight u * s gives the same p(x)"
            raise ValueError(f"weight: expected orthogonal columns, got two with cosine {worst:.3g}; with {hint}")

    def __repr__(self) -> str:
        """Show the sizes."""
        data_dim, latent_dim = self.weight.shape
        return f"PPCA(data_dim={data_dim}, latent_dim={latent_dim}, noise_variance={self.noise_variance:.4g})"

    @classmethod
    def fit(cls, x: Data, latent_dim: int) -> Self:
        r"""Fit by maximum likelihood, in closed form.

        $s^2 = \frac1{P-D}\sum_{j>D}\lambda_j, \quad W_j = (\lambda_j - s^2)^{1/2}\,U_j \quad (j\le D)$

        from the descending eigenvalues lambda_j and the eigenvectors U_j of the data's covariance (with 1/N). The free
        rotation is I, which makes posteriors diagonal; the largest entry of a column is positive, which fixes signs.

        Args:
            x: data, (N, P): a tensor, an array, or an iterable of batches.
            latent_dim: D, between 1 and P - 1 and below the rank of the data.

        Returns:
            The fitted model.

        Raises:
            TypeError: x holds no floating-point numbers, or latent_dim is not an int.
            ValueError: x has another shape or is not finite, latent_dim leaves no noise variance, or that variance is
                too small or too large for float64.

        Example:
            >>> import torch
            >>> x = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
            >>> model = PPCA.fit(x, latent_dim=1)
            >>> round(model.weight.square().sum().item(), 9), round(model.noise_variance, 9)
            (8.0, 1.0)

        Source: Tipping & Bishop (1999), section 3.2; Bishop (2006), equations 12.45 and 12.46, with R = I.
        """
        x = check_tensor("x", x if isinstance(x, Tensor) else whole("x", x), ("N", "P"))
        latent_dim = check_int("latent_dim", latent_dim, minimum=1)
        # A power of two near the largest entry: dividing by it is exact, and squares neither overflow nor vanish.
        scale = 2.0 ** (int(torch.frexp(x.double().abs().max()).exponent) - 1)
        mean = (x.double() / scale).mean(0)
        centred = x.double() / scale - mean
        eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / x.shape[0])
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)[:, :latent_dim]
        rank = int((eigenvalues > len(eigenvalues) * torch.finfo(torch.float64).eps * eigenvalues[0]).sum())
        if latent_dim >= rank:
            wanted = f"expected at most {max(rank - 1, 0)} (the data have rank {rank})"
            raise ValueError(f"latent_dim: {wanted}, got {latent_dim}, which leaves no noise variance")
        noise = float(eigenvalues[latent_dim:].mean())
        if not 0 < noise * scale * scale < math.inf:
            raise ValueError(f"x: expected variances that are float64 numbers, got values up to {2 * scale:.3g}")
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        length = (eigenvalues[:latent_dim] - noise).clamp_min(0).sqrt()
        return cls(mean * scale, vectors * largest.sign() * length * scale, noise * scale * scale)

    @property
    def prior(self) -> DiagGaussianMixture:
        """N(0, I), (D): with `encoder` and `decoder` it makes this model a VAE."""
        loc = self._strength[None]
        return DiagGaussianMixture(torch.zeros_like(loc), torch.ones_like(loc))

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-likelihood in nats.

        $\log p(x) = \sum_j\log\mathcal N(y_j \mid 0, l_j^2+s^2) + \log p(\text{rest})$

        Args:
            x: points, (*s, P).

        Returns:
            log p(x), (*s), float64.

        Raises:
            TypeError: x is not a floating-point tensor.
            ValueError: its last dimension is not P, it is on another device, or it is not finite.

        Example:
            >>> import torch
            >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
            >>> model.log_prob(torch.tensor([0.0, 1.0]))
            tensor(-3.1426, dtype=torch.float64)

        Source: Bishop (2006), equation 12.35, in the eigenbasis of the covariance.
        """
        y, log_rest = self._split(x)
        return log_rest + Normal(0.0, (self._strength + self.noise_variance).sqrt()).log_prob(y).sum(-1)

    def posterior(self, x: Tensor) -> Independent:
        r"""Exact posterior p(z|x): the best encoder there is, and it is diagonal.

        $p(z\mid x) = \prod_j\mathcal N(z_j \mid (W^\top(x-c))_j/(l_j^2+s^2),\ s^2/(l_j^2+s^2))$

        Args:
            x: points, (*s, P).

        Returns:
            Independent Normal of batch shape (*s) and event shape (D), float64.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
            >>> model.posterior(torch.tensor([[5.0, 1.0]])).mean
            tensor([[2.]], dtype=torch.float64)

        Source: Bishop (2006), equation 12.42, with WᵀW diagonal.
        """
        total = self._strength + self.noise_variance
        loc = self._centred(x) @ self.weight / total
        return Independent(Normal(loc, (self.noise_variance / total).sqrt().expand_as(loc)), 1)

    def likelihood(self, z: Tensor) -> Independent:
        r"""Decode latent points into the distribution of x.

        $p(x\mid z) = \mathcal N(x \mid Wz + c, s^2 I)$

        Args:
            z: latent points, (*s, D).

        Returns:
            Independent Normal of batch shape (*s) and event shape (P), float64.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is on another device, or it is not finite.

        Example:
            >>> import torch
            >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
            >>> model.likelihood(torch.ones(1, 1)).mean
            tensor([[2., 0.]], dtype=torch.float64)

        Source: Bishop (2006), equation 12.32.
        """
        check_tensor("z", z, ("...", self.weight.shape[1]), like=self.weight)
        return Independent(Normal(z.double() @ self.weight.mT + self.mean, math.sqrt(self.noise_variance)), 1)

    encoder, decoder = posterior, likelihood

    def aggregated_posterior(self, x: Tensor) -> DiagGaussianMixture:
        r"""Average the exact posteriors of some data.

        $q_{agg}(z) = \frac1N\sum_n p(z\mid x_n)$

        Args:
            x: data, (N, P).

        Returns:
            The mixture of N components in D dimensions, float64.

        Raises:
            TypeError, ValueError: as `log_prob`.

        Example:
            >>> import torch
            >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
            >>> model.aggregated_posterior(torch.eye(2))
            DiagGaussianMixture(num_components=2, dim=1)

        Source: Hoffman & Johnson, ELBO surgery (2016); Makhzani et al. (2016).
        """
        codes = self.posterior(check_tensor("x", x, ("N", len(self.mean)))).base_dist
        return DiagGaussianMixture(codes.loc, codes.scale.contiguous())

    def log_prob_under(self, q_z: Any, x: Tensor, *, leave_out_index: Tensor | None = None) -> Tensor:
        r"""Log-likelihood with a Gaussian mixture in the place of the prior.

        $\log\sum_n w_n\mathcal N(y \mid L\mu_n, L\Sigma_nL + s^2 I) + \log p(\text{rest})$ with
        $L = \operatorname{diag}(l)$

        With q_z = `aggregated_posterior(x)` this is p_agg, the density of decoded codes: N components, closed form.

        Args:
            q_z: a mixture of Gaussians over z, in D dimensions, with diagonal or with full covariances: any prior that
                tells its `components`, torch's mixtures among them.
            x: points, (*s, P).
            leave_out_index: for each point a component of q_z to leave out (the rest renormalised), (*s), long;
                for diagonal mixtures.

        Returns:
            The log-density, (*s), float64.

        Raises:
            TypeError: q_z is no mixture of Gaussians, or another argument is of the wrong kind.
            ValueError: shapes or devices disagree, x is not finite, or an index is out of range.

        Example:
            >>> import torch
            >>> model = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
            >>> prior = DiagGaussianMixture(torch.zeros(1, 1), torch.ones(1, 1))
            >>> model.log_prob_under(prior, torch.zeros(1, 2))
            tensor([-2.6426], dtype=torch.float64)

        Source: this book, chapter continuous/generative.
        """
        parts = components(adapt_prior(q_z, self.weight.shape[1], "q_z"))
        if parts is None:
            raise TypeError(f"q_z: expected a mixture of Gaussians, got {type(q_z).__name__}")
        if leave_out_index is not None and parts[2].ndim == 3:
            raise TypeError(f"leave_out_index: expected None at full covariance, got {type(leave_out_index).__name__}")
        check_tensor("q_z", parts[1], ("K", self.weight.shape[1]), like=self.weight)
        y, log_rest = self._split(x)
        decoded = self._decoded(*(part.double() for part in parts))
        if leave_out_index is None:
            return log_rest + decoded.log_prob(y)
        return log_rest + decoded.log_prob_leave_one_out(y, leave_out_index)

    def _decoded(self, log_weight: Tensor, loc: Tensor, scale: Tensor) -> Any:
        """Return the distribution of y when z comes from these components."""
        length = self._strength.sqrt()
        if scale.ndim == 2:
            scale = (scale.square() * self._strength + self.noise_variance).sqrt()
        else:
            factor = length[:, None] * scale
            scale = torch.linalg.cholesky(factor @ factor.mT + self.noise_variance * torch.eye(len(length)).to(factor))
        return from_components(log_weight, loc * length, scale)

    def _centred(self, x: Tensor) -> Tensor:
        return check_tensor("x", x, ("...", len(self.mean)), like=self.mean).double() - self.mean

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of x in the column space of W, (*s, D), and the log-density of the rest, (*s)."""
        centred = self._centred(x)
        y = centred @ self._directions
        rest = (centred - y @ self._directions.mT).square().sum(-1)
        free = len(self.mean) - self.weight.shape[1]
        return y, -0.5 * (free * math.log(2 * math.pi * self.noise_variance) + rest / self.noise_variance)
