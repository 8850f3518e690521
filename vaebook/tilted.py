r"""Gaussian mixtures times one more Gaussian factor: still mixtures, with everything in closed form.

    c(z) exp(-H z²/2 + eta z) / Z,      Z = ∫ c(z) exp(-H z²/2 + eta z) dz,      H, eta (D) one pair a row of data

For c = sum_k w_k N(m_k, S_k) the tilted component k has precision S_k⁻¹ + diag H, and Z is a sum over components. This
is the posterior of z under the prior c when the likelihood is a Gaussian function of z; `vaebook.selection`
draws from it. Rows may leave out a component of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import GaussianMixture

CELLS = 2**22
"""Numbers that a temporary tensor may hold: rows × components × dimensions are cut into parts."""


class TiltedDiag:
    """A diagonal mixture c to be tilted, each of B rows in its own way.

    Args:
        q: the mixture, N components.
        own: for each row the component to leave out, (B), long; None leaves out none.
    """

    def __init__(self, q: DiagGaussianMixture, own: Tensor | None = None) -> None:
        self.q, self.own = q.double(), own

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log c(z) of z (B, S, D), as (B, S)."""
        if self.own is None:
            return self.q.log_prob(z)
        return self.q.log_prob_leave_one_out(z, self.own[:, None].expand(z.shape[:-1]))

    def log_normaliser(self, precision: Tensor, shift: Tensor) -> Tensor:
        """Return log Z for H and eta, each (B, D), as (B)."""
        return torch.cat([terms.logsumexp(1) for _, terms in self._parts(precision, shift)])

    def sample(self, precision: Tensor, shift: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
        """Draw (B, num, D) from the tilted mixtures."""
        drawn = []
        for rows, terms in self._parts(precision, shift):
            k = torch.multinomial(terms.softmax(1), num, replacement=True, generator=generator)
            loc, own_precision = self.q.loc[k], self.q.scale[k].square().reciprocal()
            total = own_precision + precision[rows, None]
            mean = (loc * own_precision + shift[rows, None]) / total
            drawn.append(mean + _noise(mean, generator) / total.sqrt())
        return torch.cat(drawn)

    def _parts(self, precision: Tensor, shift: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logarithms of the components' shares in Z, (rows, N), for parts of the rows."""
        size = max(1, CELLS // self.q.loc.numel())
        return [(rows, self._terms(precision, shift, rows)) for rows in torch.arange(len(shift)).split(size)]

    def _terms(self, precision: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
        loc, variance, log_weight = self.q.loc, self.q.scale.square(), self.q.log_weight
        h, eta = precision[rows, None], shift[rows, None]
        narrowed = 1 + h * variance
        exponent = (eta.square() * variance + (2 * eta - h * loc) * loc) / narrowed - narrowed.log()
        terms = log_weight + 0.5 * exponent.sum(-1)
        if self.own is None:
            return terms
        own = self.own[rows, None]
        return terms.scatter(1, own, -torch.inf) - torch.log1p(-log_weight.exp())[own]


class TiltedFull:
    """A mixture c with full covariances to be tilted, each of B rows in its own way.

    Args:
        q: the mixture, K components.
    """

    def __init__(self, q: GaussianMixture) -> None:
        self.q = q
        self._log_weight, self._loc = q.weight.double().log(), q.loc.double()
        self._precision = torch.cholesky_inverse(q.scale_tril.double())

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log c(z) of z (B, S, D), as (B, S)."""
        return self.q.log_prob(z.double())

    def log_normaliser(self, precision: Tensor, shift: Tensor) -> Tensor:
        """Return log Z for H and eta, each (B, D), as (B)."""
        return torch.cat([part[0].logsumexp(1) for part in self._parts(precision, shift)])

    def sample(self, precision: Tensor, shift: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
        """Draw (B, num, D) from the tilted mixtures."""
        drawn = []
        for terms, mean, tril in self._parts(precision, shift):
            k = torch.multinomial(terms.softmax(1), num, replacement=True, generator=generator)
            row = torch.arange(len(k))[:, None]
            noise = _noise(mean[row, k], generator)
            spread = torch.linalg.solve_triangular(tril.mT[row, k], noise[..., None], upper=True)
            drawn.append(mean[row, k] + spread[..., 0])
        return torch.cat(drawn)

    def _parts(self, precision: Tensor, shift: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return shares (rows, K), means (rows, K, D) and Cholesky factors of precisions, for parts of the rows."""
        size = max(1, CELLS // self._precision.numel())
        return [self._tilt(h, eta) for h, eta in zip(precision.split(size), shift.split(size), strict=True)]

    def _tilt(self, precision: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = (self._precision @ self._loc[..., None])[..., 0]
        tril = torch.linalg.cholesky(self._precision + torch.diag_embed(precision)[:, None])
        pull = own + shift[:, None]
        mean = torch.cholesky_solve(pull[..., None], tril)[..., 0]
        # log det S is -2 log det of its own factor's inverse; both logarithms of determinants come from triangles.
        log_det = -self.q.scale_tril.double().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = log_det - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        exponent = 0.5 * ((pull * mean).sum(-1) - (own * self._loc).sum(-1))
        return self._log_weight + log_det + exponent, mean, tril


def log_factor(z: Tensor, precision: Tensor, shift: Tensor) -> Tensor:
    """Return -H z²/2 + eta z summed over dimensions, for z (B, S, D), as (B, S)."""
    return ((shift[:, None] - 0.5 * precision[:, None] * z) * z).sum(-1)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
