"""The modes of a mixture, which are not its components, and can be more or fewer."""

from __future__ import annotations

import torch
from torch import Tensor

from vaebook._checks import check_number, check_tensor, check_type
from vaebook.mixture import DiagGaussianMixture

STEPS = 10_000
"""The most steps of a climb."""


def find_modes(
    q: DiagGaussianMixture, starts: Tensor | None = None, *, tolerance: float = 1e-10, separation: float = 1e-4
) -> Tensor:
    r"""Climb from every start to a local maximum of the density, and list the distinct ones.

    $z \leftarrow \frac{\sum_n r_n(z)\,\mu_n/\sigma_n^2}{\sum_n r_n(z)/\sigma_n^2}$, coordinate by coordinate

    Every step raises the density. A point where it stops is kept if it is a maximum: the curvature of log q is
    negative in all directions.

    Args:
        q: the mixture.
        starts: where to start, (S, D); None means the N means. From these some modes may not be reached, in one
            dimension with a common variance too: more starts can find more.
        tolerance: a point has stopped when it moves by less than this, in units of the smallest scale.
        separation: modes nearer than this, in units of the smallest scale, are one.

    Returns:
        The modes, (K, D), float64, in the order of first discovery.

    Raises:
        TypeError: q is not a DiagGaussianMixture.
        ValueError: starts has another shape, or a number is not positive.
        RuntimeError: some start has not stopped after 10,000 steps, as where two modes nearly merge.

    Example:
        >>> import torch
        >>> q = DiagGaussianMixture(torch.tensor([[-1.5], [1.5]]), torch.ones(2, 1))
        >>> find_modes(q)
        tensor([[-1.4632],
                [ 1.4632]], dtype=torch.float64)

    Source: Carreira-Perpiñán, Mode-finding for mixtures of Gaussian distributions (2000), section 3.
    """
    tolerance = check_number("tolerance", tolerance, above=0)
    separation = check_number("separation", separation, above=0)
    log_weight, loc, scale = (x.detach() for x in check_type("q", q, DiagGaussianMixture).components())
    z = loc if starts is None else check_tensor("starts", starts, ("S", q.latent_dim)).double()
    # About the origin and in units of the smallest scale: elsewhere the last digits would never come to rest.
    origin, unit = loc.mean(0), scale.min()
    z, near = (z - origin) / unit, DiagGaussianMixture((loc - origin) / unit, scale / unit, log_weight)
    precision = near.scale.square().reciprocal()
    numerators = torch.cat([near.loc * precision, precision], -1)
    for _ in range(STEPS):
        pull, stiffness = near.posterior_mean(z, numerators).chunk(2, -1)
        z, previous = pull / stiffness, z
        if bool(((z - previous).abs().amax(-1) < tolerance).all()):
            return _distinct_maxima(near, z, separation) * unit + origin
    wanted = f"one that {STEPS} steps reach from every start"
    raise RuntimeError(f"tolerance: expected {wanted}, got {tolerance:g}; raise it")


def _distinct_maxima(q: DiagGaussianMixture, z: Tensor, distance: float) -> Tensor:
    kept: list[Tensor] = []
    for point in z:
        if not any((point - other).norm() < distance for other in kept):
            kept.append(point)
    curvatures = torch.stack([torch.autograd.functional.hessian(q.log_prob, point) for point in kept])
    return torch.stack(kept)[torch.linalg.eigvalsh(curvatures).amax(-1) < 0]
