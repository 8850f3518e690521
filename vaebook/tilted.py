r"""Gaussian mixtures times one more Gaussian factor: still mixtures, with everything in closed form.

    c(z) exp(-H z²/2 + eta z) / Z,      Z = ∫ c(z) exp(-H z²/2 + eta z) dz,      H, eta (D) one pair a row of data

For c = sum_k w_k N(m_k, S_k) the tilted component k has precision S_k⁻¹ + diag H, and Z is a sum over components. This
is the posterior of z under the prior c when the likelihood is a Gaussian function of z; `vaebook.selection`
draws from it. Rows may leave out a component of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vaebook._checks import check_all
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import GaussianMixture

CELLS = 2**22
"""Numbers that a temporary tensor may hold: rows × components × entries of a scale are cut into parts."""

Draw = Callable[[Tensor, Tensor], Tensor]
"""Components chosen (rows, S) and standard normal noise (rows, S, D) → z (rows, S, D)."""


class Tilted:
    """A mixture c to be tilted, each of B rows in its own way.

    Args:
        mixture: c, K components with diagonal or with full covariances.
        own: for each row the component to leave out, (B), long; for diagonal ones. None leaves out none.
    """

    def __init__(self, mixture: DiagGaussianMixture | GaussianMixture, own: Tensor | None = None) -> None:
        self.density = mixture if own is None else mixture.leave_one_out(own[:, None])
        self.log_weight, self.loc, self.scale = (part.double() for part in mixture.components())
        self.own = own

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log c(z) of z (B, S, D), as (B, S)."""
        return self.density.log_prob(z)

    def log_normaliser(self, precision: Tensor, shift: Tensor) -> Tensor:
        """Return log Z for H and eta, each (B, D), as (B)."""
        return torch.cat([shares.logsumexp(1) for shares, _ in self._parts(precision, shift)])

    def sample(
        self, precision: Tensor, shift: Tensor, num: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Draw (B, num, D) from the tilted mixtures; also return log Z, (B)."""
        drawn, normaliser = [], []
        for shares, draw in self._parts(precision, shift):
            k = torch.multinomial(shares.softmax(1), num, replacement=True, generator=generator)
            noise = torch.randn(*k.shape, shift.shape[1], generator=generator, dtype=torch.float64)
            drawn.append(draw(k, noise))
            normaliser.append(shares.logsumexp(1))
        return torch.cat(drawn), torch.cat(normaliser)

    def _parts(self, precision: Tensor, shift: Tensor) -> Iterator[tuple[Tensor, Draw]]:
        """Yield the logarithms of the components' shares in Z, (rows, K), and how to draw, for parts of the rows."""
        tilt = self._tilt_diagonal if self.scale.ndim == 2 else self._tilt_full
        for rows in torch.arange(len(shift)).split(max(1, CELLS // self.scale.numel())):
            shares, draw = tilt(precision[rows, None], shift[rows, None])
            if self.own is not None:
                own = self.own[rows, None]
                shares = shares.scatter(1, own, -torch.inf) - torch.log1p(-self.log_weight.exp())[own]
            yield check_all("codes", shares, shares < torch.inf, "values whose squares are finite"), draw

    def _tilt_diagonal(self, h: Tensor, eta: Tensor) -> tuple[Tensor, Draw]:
        loc, variance = self.loc, self.scale.square()
        narrowed = 1 + h * variance
        exponent = (eta.square() * variance + (2 * eta - h * loc) * loc) / narrowed - narrowed.log()

        def draw(k: Tensor, noise: Tensor) -> Tensor:
            own = variance[k].reciprocal()
            return (loc[k] * own + eta) / (own + h) + noise / (own + h).sqrt()

        return self.log_weight + 0.5 * exponent.sum(-1), draw

    def _tilt_full(self, h: Tensor, eta: Tensor) -> tuple[Tensor, Draw]:
        own = torch.cholesky_inverse(self.scale)
        tril = torch.linalg.cholesky(own + torch.diag_embed(h))
        pull = (own @ self.loc[..., None])[..., 0]
        mean = torch.cholesky_solve((pull + eta)[..., None], tril)[..., 0]
        exponent = ((pull + eta) * mean).sum(-1) - (pull * self.loc).sum(-1)
        # Both logarithms of determinants come from triangles; that of S_k⁻¹ is minus that of S_k.
        log_det = sum(part.diagonal(dim1=-2, dim2=-1).log().sum(-1) for part in (self.scale, tril))

        def draw(k: Tensor, noise: Tensor) -> Tensor:
            row = torch.arange(len(k))[:, None]
            spread = torch.linalg.solve_triangular(tril.mT[row, k], noise[..., None], upper=True)
            return mean[row, k] + spread[..., 0]

        return self.log_weight - log_det + 0.5 * exponent, draw


def log_factor(z: Tensor, precision: Tensor, shift: Tensor) -> Tensor:
    """Return -H z²/2 + eta z summed over dimensions, for z (B, S, D), as (B, S)."""
    return ((shift[:, None] - 0.5 * precision[:, None] * z) * z).sum(-1)
