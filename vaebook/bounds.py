r"""Bounds on log p(x), and its exact value where the latent space has at most two dimensions.

    ELBO(x) = E_q(z|x) log p(x|z) - KL(q(z|x) | p)  <=  E IWAE_K(x)  <=  log p(x) = log ∫ p(x|z) p(z) dz

All are in nats per datum and to be maximised. A "vae" here is any object with `.encoder(x)` → Independent(Normal, 1),
`.decoder(z)` → a distribution of x, and `.prior` with `log_prob(z)`. Terms are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from vaebook._checks import check_diag_normal, check_generator, check_int, check_number, check_tensor
from vaebook.adapters import adapt_vae

Decoder = Callable[[Tensor], Distribution]


def elbo(
    vae: Any,
    x: Tensor,
    *,
    num_samples: int = 1,
    beta: float = 1.0,
    index: Tensor | None = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate the evidence lower bound with reparameterised samples.

    $\mathrm{ELBO}_\beta(x) = \mathbb E_{q(z\mid x)}\log p(x\mid z) - \beta\,\mathrm{KL}(q(z\mid x)\,\Vert\,p)$

    The KL is closed form under a `StandardNormal`, otherwise the mean of log q - log p over the same samples.

    Args:
        vae: encoder, decoder and prior, as above.
        x: data, (B, P).
        num_samples: samples of z for each datum.
        beta: weight of the KL, >= 0; below 1 this is no bound on log p(x).
        condition: what encoder or decoder take beside x, a row for each datum: a tensor, or tensors by name.
        index: which component of the prior belongs to each datum, (B), long, and is left out of it:
            `prior.log_prob_leave_one_out` is called, as for training with an `ExemplarPrior`. None leaves out none.
        generator: the source of randomness; None means torch's global one.

    Returns:
        One unbiased estimate a datum, (B), nats, in x's dtype. Differentiable.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind; or index is given and the
            prior cannot leave anything out.
        ValueError: a shape or number is out of range, or x is not finite.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> elbo(vae, torch.zeros(1, 2))  # exact encoder: log p(x), whatever the sample
        tensor([-2.6426])

    Source: Kingma & Welling (2014), equations 6 and 7; Higgins et al., beta-VAE (2017), equation 4.
    """
    check_int("num_samples", num_samples, minimum=1)
    check_number("beta", beta, minimum=0)
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    _check_index(vae.prior, index, len(x))
    q = vae.encode(x, condition)
    z, log_q = _reparameterise(q, _noise(q, num_samples, generator))
    closed = getattr(vae.prior, "kl", None)
    cost = closed(*_loc_scale(q)) if closed else log_q - _log_prior(vae.prior, z, index)
    value = (vae.log_likelihood(z, x, condition) - beta * cost).mean(0)
    return value.to(torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32)


def _loc_scale(q: Independent) -> tuple[Tensor, Tensor]:
    return q.base_dist.loc, q.base_dist.scale


def iwae_bound(
    vae: Any, x: Tensor, num_samples: int, *, generator: torch.Generator | None = None, chunk_size: int | None = None
) -> Tensor:
    r"""Estimate the importance-weighted bound with K samples.

    $\mathrm{IWAE}_K(x) = \log\frac1K\sum_{k=1}^K \frac{p(x\mid z_k)\,p(z_k)}{q(z_k\mid x)},\quad z_k\sim q(z\mid x)$

    Its expectation grows with K from the ELBO (K = 1) towards log p(x).

    Args:
        vae: encoder, decoder and prior, as above.
        x: data, (B, P).
        num_samples: K.
        generator: the source of randomness; None means torch's global one.
        chunk_size: samples to decode at once; None chooses. Without gradients, memory grows with it alone.

    Returns:
        One estimate a datum, (B), nats, in x's dtype. Differentiable.

    Raises:
        TypeError, ValueError: as `elbo`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> iwae_bound(vae, torch.zeros(1, 2), 5)  # exact encoder: log p(x), whatever the samples
        tensor([-2.6426])

    Source: Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), equation 8.
    """
    check_tensor("x", x, ("B", "P"))
    q, parts = _encode(vae, x), []
    for size in _chunks(num_samples, x, chunk_size):
        z, log_q = _reparameterise(q, _noise(q, size, generator))
        parts.append((_log_likelihood(vae.decoder, z, x) + _log_prior(vae.prior, z) - log_q).logsumexp(0))
    return (torch.stack(parts).logsumexp(0) - math.log(num_samples)).to(x.dtype)


def prior_sample_log_prob(
    decoder: Decoder,
    prior: Any,
    x: Tensor,
    num_samples: int,
    *,
    shared: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate log p(x) naively, with K draws from the prior.

    $\log\hat p_K(x) = \log\frac1K\sum_{k=1}^K p(x\mid z_k),\quad z_k\sim p(z)$

    p̂_K(x) is unbiased for p(x); its logarithm is biased down by about Var/(2 K p²).

    Args:
        decoder: z (…, D) → a distribution of x.
        prior: an object with `sample(sample_shape, generator=…)`, such as `StandardNormal`.
        x: data, (B, P).
        num_samples: K.
        shared: True takes one set of K draws for all of x: the values are those of one density, a mixture of K
            components. False draws anew for each row: the rows are independent estimates.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The log-densities, (B), nats, in x's dtype.

    Raises:
        TypeError, ValueError: as `elbo`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(2), torch.zeros(2, 1), noise_variance=1.0)  # z has no effect
        >>> prior_sample_log_prob(model.decoder, model.prior, torch.zeros(1, 2), 4)
        tensor([-1.8379])

    Source: this book, chapter continuous/generative (claim gen/finite-k).
    """
    check_tensor("x", x, ("B", "P"))
    check_generator(generator)
    rows, parts = 1 if shared else len(x), []
    for size in _chunks(num_samples, x, None):
        z = prior.sample((size, rows), generator=generator).to(x)
        parts.append(_log_likelihood(decoder, z, x).logsumexp(0))
    return (torch.stack(parts).logsumexp(0) - math.log(num_samples)).to(x.dtype)


def quadrature_log_prob(
    decoder: Decoder, prior: Any, x: Tensor, *, limit: float = 8.0, tolerance: float = 1e-9, max_nodes: int = 5_000_000
) -> Tensor:
    r"""Integrate log p(x) over z by the trapezoid rule, for D <= 2.

    $\log p(x) = \log\int p(x\mid z)\,p(z)\,dz$

    The step shrinks by a third until no value changes by more than the tolerance. Features far narrower than the
    first step (limit/512 for D = 1, limit/64 for D = 2), between whose nodes they vanish, can be missed.

    Args:
        decoder: z (…, D) → a distribution of x.
        prior: an object with `log_prob(z)` and either `latent_dim` or `event_shape` (D), D <= 2.
        x: data, (B, P); float64, as the decoder's parameters, unless tolerance >= 1e-4.
        limit: the box is [-limit, limit]^D.
        tolerance: nats; the last change, and about the share of mass that the box may cut off.
        max_nodes: the finest grid allowed.

    Returns:
        log p(x), (B), float64, without gradient.

    Raises:
        TypeError, ValueError: as `elbo`.
        ValueError: D > 2; x's dtype cannot reach the tolerance; the box cuts off mass; the prior's mass is not 1.
        RuntimeError: max_nodes do not reach the tolerance.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(1), torch.ones(1, 1), noise_variance=1.0)
        >>> quadrature_log_prob(model.decoder, model.prior, torch.zeros(1, 1, dtype=torch.float64))  # N(0 | 0, 2)
        tensor([-1.2655], dtype=torch.float64)

    Source: Trefethen & Weideman, The exponentially convergent trapezoidal rule, SIAM Review 56 (2014), section 5.
    """
    check_tensor("x", x, ("B", "P"))
    check_number("limit", limit, above=0)
    check_number("tolerance", tolerance, above=0)
    check_int("max_nodes", max_nodes, minimum=2)
    if x.dtype != torch.float64 and tolerance < 1e-4:
        got = f"got {x.dtype}; use decoder.double() and x.double(), or a tolerance of at least 1e-4"
        raise ValueError(f"x: expected dtype torch.float64 for tolerance {tolerance:g}, {got}")
    dim, previous = _latent_dim(prior), None
    num_nodes = {1: 1025, 2: 129}[dim]
    while num_nodes**dim <= max_nodes:
        nodes, log_volume = _grid(dim, limit, num_nodes)
        with torch.no_grad():
            total, edge = _log_sums(decoder, prior, x, nodes.to(x), limit)
        _check_box(total, edge + math.log((num_nodes - 1) / 2), tolerance)
        value = total + log_volume
        if previous is not None and bool(((value - previous).abs() <= tolerance).all()):
            return _drop_prior(value, tolerance)
        # Not halved: at half the step the rule still makes the even half of its aliasing errors, unseen.
        previous, num_nodes = value, 3 * (num_nodes - 1) // 2 + 1
    raise RuntimeError(f"max_nodes: expected enough for tolerance {tolerance:g}, got {max_nodes}; raise one of them")


def _encode(vae: Any, x: Tensor) -> Independent:
    return check_diag_normal("vae.encoder", vae.encoder(x), len(x))


def _noise(q: Independent, num_samples: int, generator: torch.Generator | None) -> Tensor:
    """Draw standard normals (S, B, D), one call a sample: so they do not depend on how samples are chunked."""
    check_generator(generator)
    like = {"generator": generator, "dtype": q.base_dist.loc.dtype, "device": q.base_dist.loc.device}
    return torch.stack([torch.randn(q.base_dist.loc.shape, **like) for _ in range(num_samples)])


def _reparameterise(q: Independent, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return z (S, B, D) and log q(z|x) (S, B), from the noise itself: (z - loc) / scale would lose digits."""
    loc, scale = q.base_dist.loc, q.base_dist.scale
    log_q = -0.5 * noise.double().square() - scale.double().log() - 0.5 * math.log(2 * math.pi)
    return loc + scale * noise, log_q.sum(-1)


def _log_likelihood(decoder: Decoder, z: Tensor, x: Tensor) -> Tensor:
    decoded = decoder(z)
    event_shape = tuple(getattr(decoded, "event_shape", ()))
    if event_shape and event_shape != tuple(x.shape[1:]):  # else x would be repeated over the pixels, unnoticed
        raise ValueError(f"x: expected shape (B, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")
    value = decoded.log_prob(x)
    expected = (len(z), len(x))
    if value.shape != expected:
        raise ValueError(
            f"decoder: expected log_prob of shape {expected} (samples, data), got {tuple(value.shape)}; "
            "wrap a distribution over pixels in torch.distributions.Independent(…, 1)"
        )
    return value.double()


def _check_index(prior: Any, index: object, num: int) -> None:
    if index is None:
        return
    if not hasattr(prior, "log_prob_leave_one_out"):
        got = f"one for a prior without log_prob_leave_one_out, {type(prior).__name__}"
        raise TypeError(f"index: expected None, got {got}")
    if not isinstance(index, Tensor) or index.dtype != torch.long:
        got = f"dtype {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index: expected a tensor of dtype torch.int64, got {got}")
    if index.shape != (num,):
        raise ValueError(f"index: expected shape ({num},), one for each datum, got {tuple(index.shape)}")


def _log_prior(prior: Any, z: Tensor, index: Tensor | None = None) -> Tensor:
    value = prior.log_prob(z) if index is None else prior.log_prob_leave_one_out(z, index.expand(z.shape[:-1]))
    if value.shape != z.shape[:-1]:
        raise ValueError(f"prior: expected log_prob of shape {tuple(z.shape[:-1])}, got {tuple(value.shape)}")
    return value.double()


def _chunks(num_samples: int, x: Tensor, chunk_size: int | None) -> list[int]:
    """Sizes of chunks of samples; by default such that samples × data × pixels stay below 2^21 (16 MiB)."""
    check_int("num_samples", num_samples, minimum=1)
    size = max(1, 2**21 // x.numel()) if chunk_size is None else check_int("chunk_size", chunk_size, minimum=1)
    return [min(size, num_samples - start) for start in range(0, num_samples, size)]


def _latent_dim(prior: Any) -> int:
    dim = prior.latent_dim if hasattr(prior, "latent_dim") else prior.event_shape[0]
    if dim > 2:
        raise ValueError(f"prior: expected at most 2 latent dimensions, got {dim}; use iwae_bound")
    return dim


def _grid(dim: int, limit: float, num_nodes: int) -> tuple[Tensor, float]:
    """Lay a regular grid, edges included: nodes (M, D), and the log-volume of a cell."""
    axis = torch.linspace(-limit, limit, num_nodes, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    return nodes, dim * math.log(2 * limit / (num_nodes - 1))


def _log_sums(decoder: Decoder, prior: Any, x: Tensor, nodes: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """log-sum-exp of p(x|z) p(z), and of p(z) in the last column, over all nodes and over those on the edge."""
    parts, edges = [], []
    for z in nodes.split(_chunks(len(nodes), x, None)):
        log_prior = _log_prior(prior, z)[:, None]
        joint = torch.cat([log_prior + _log_likelihood(decoder, z[:, None], x), log_prior], 1)
        on_edge = z.abs().amax(1, keepdim=True) > limit * (1 - 1e-6)
        parts.append(joint.logsumexp(0))
        edges.append(joint.masked_fill(~on_edge, -torch.inf).logsumexp(0))
    return torch.stack(parts).logsumexp(0), torch.stack(edges).logsumexp(0)


def _check_box(total: Tensor, outside: Tensor, tolerance: float) -> None:
    """Reject a box that cuts off mass; outside it we count the density on its edge times limit."""
    if bool((outside - total > math.log(tolerance)).any()):
        raise ValueError("limit: expected a box that holds all mass, got one with mass on its edge; raise limit")


def _drop_prior(value: Tensor, tolerance: float) -> Tensor:
    """Check that the last column, the log of the prior's mass, is 0, and return the others."""
    if not abs(float(value[-1])) <= max(tolerance, 1e-12):
        mass = math.exp(float(value[-1]))
        raise ValueError(f"prior: expected a density with mass 1 in the box, got {mass:.6g}; raise limit, or normalise")
    return value[:-1]
