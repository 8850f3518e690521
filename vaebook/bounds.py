r"""Bounds on log p(x), and its exact value where the latent space has at most two dimensions.

    ELBO(x) = E_q(z|x) log p(x|z) - KL(q(z|x) | p)  <=  E IWAE_K(x)  <=  log p(x) = log ∫ p(x|z) p(z) dz

All are in nats per datum and to be maximised. A "vae" is what `vaebook.adapters.adapt` makes, or any object with
`.encoder`, `.decoder` and `.prior` of the kinds that it takes. Terms are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook._checks import at_least_single, check_generator, check_index, check_int, check_number, check_type
from vaebook.adapters import AdaptedVAE, adapt_decoder, adapt_vae
from vaebook.integrals import Joint, integrand, log_evidence
from vaebook.parts import draw_from, optional

MOST = 10**9
"""The largest number of samples that is taken; so many already need hours and much memory."""


def elbo(
    vae: Any,
    x: Any,
    *,
    num_samples: int = 1,
    beta: float = 1.0,
    index: Tensor | None = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate the evidence lower bound with reparameterised samples.

    $\mathrm{ELBO}_\beta(x) = \mathbb E_{q(z\mid x)}\log p(x\mid z) - \beta\,\mathrm{KL}(q(z\mid x)\,\Vert\,p)$

    The KL is closed form under a prior that offers it (`kl`, as the `StandardNormal` does), otherwise the mean of
    log q - log p over the same samples. The model runs in the mode, training or evaluation, in which it is; dropout in
    training mode draws from torch's global generator.

    Args:
        vae: encoder, decoder and prior, as above.
        x: data, (B, …).
        num_samples: samples of z for each datum.
        beta: weight of the KL, >= 0; below 1 this is no bound on log p(x).
        index: which component of the prior belongs to each datum, (B), long, and is left out of it, by
            `prior.leave_one_out(index)`, as for training with an `ExemplarPrior`. None leaves out none.
        condition: what encoder or decoder take beside x or z, a row for each datum.
        generator: the source of randomness; None means torch's global one.

    Returns:
        One unbiased estimate a datum, (B), nats, in x's dtype, at least float32. Differentiable.

    Raises:
        TypeError: an argument, or what encoder or decoder return, is of the wrong kind; or index is given and the
            prior cannot leave anything out.
        ValueError: a shape or number is out of range, x or a code is not finite, or a scale is not positive.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> elbo(vae, torch.zeros(1, 2))  # exact encoder: log p(x), whatever the sample
        tensor([-2.6426])

    Source: Kingma & Welling (2014), equations 6 and 7; Higgins et al., beta-VAE (2017), equation 4.
    """
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    num_samples = check_int("num_samples", num_samples, minimum=1, maximum=MOST)
    beta = check_number("beta", beta, minimum=0)
    vae.check(x, condition)
    return objective(vae, x, num_samples, beta=beta, index=index, condition=condition, generator=generator)


def objective(
    vae: AdaptedVAE, x: Tensor, num_samples: int = 1, *, beta: float, index: Any, condition: Any, generator: Any
) -> Tensor:
    """Estimate what `elbo` does, of a model and of data that have been checked, as those of a minibatch have."""
    q = vae.encode(x, condition).base_dist
    leave_out = optional(vae.prior, "leave_one_out")
    if index is not None and leave_out is None:
        raise TypeError(f"index: expected None for priors without leave_one_out, got it for {type(vae.prior).__name__}")
    joint = Joint(vae, x, condition, None if index is None else leave_out(check_index("index", index, (len(x),))))
    z, log_q = _draw(q, num_samples, generator)
    kl = optional(joint.prior, "kl")
    cost = log_q() - joint.log_prior(z) if kl is None else kl(q.loc, q.scale)
    return (joint.log_likelihood(z) - beta * cost).mean(0).to(at_least_single(x.dtype))


def iwae_bound(
    vae: Any,
    x: Any,
    num_samples: int,
    *,
    condition: Any = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Estimate the importance-weighted bound with K samples.

    $\mathrm{IWAE}_K(x) = \log\frac1K\sum_{k=1}^K \frac{p(x\mid z_k)\,p(z_k)}{q(z_k\mid x)},\quad z_k\sim q(z\mid x)$

    Its expectation grows with K from the ELBO (K = 1) towards log p(x).

    Args:
        vae: encoder, decoder and prior, as above.
        x: data, (B, …).
        num_samples: K.
        condition: what encoder or decoder take beside x or z, a row for each datum.
        generator: the source of randomness; None means torch's global one.
        chunk_size: samples to decode at once; None chooses. Without gradients, memory grows with it alone.

    Returns:
        One estimate a datum, (B), nats, in x's dtype, at least float32. Differentiable.

    Raises:
        TypeError, ValueError: as `elbo`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> vae = PPCA(torch.zeros(2), torch.tensor([[2.0], [0.0]]), noise_variance=1.0)
        >>> iwae_bound(vae, torch.zeros(1, 2), 5)  # exact encoder: log p(x), whatever the samples
        tensor([-2.6426])

    Source: Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), equation 8.
    """
    vae = adapt_vae(vae)
    x, condition = vae.data(x, condition)
    vae.check(x, condition)
    q = vae.encode(x, condition).base_dist
    joint, generator = Joint(vae, x, condition), check_generator(generator, x.device)

    def log_weight(size: int) -> Tensor:
        z, log_q = _draw(q, size, generator)
        return joint(z) - log_q()

    size = joint.chunk if chunk_size is None else chunk_size
    return _log_mean(log_weight, num_samples, size).to(at_least_single(x.dtype))


def prior_sample_log_prob(
    decoder: Any,
    prior: Any,
    x: Any,
    num_samples: int,
    *,
    shared: bool = True,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate log p(x) naively, with K draws from the prior.

    $\log\hat p_K(x) = \log\frac1K\sum_{k=1}^K p(x\mid z_k),\quad z_k\sim p(z)$

    p̂_K(x) is unbiased for p(x); its logarithm is biased down by about Var/(2 K p²).

    Args:
        decoder: maps rows of codes to a distribution of x; all that `vaebook.adapters.adapt` takes, or makes.
        prior: a prior, torch distribution or flow.
        x: data, (B, …).
        num_samples: K.
        shared: True takes one set of K draws for all of x: the values are those of one density, a mixture of K
            components. False draws anew for each row: the rows are independent estimates.
        condition: what the decoder takes beside z, a row for each datum.
        generator: the source of randomness; None means torch's global one.

    Returns:
        The log-densities, (B), nats, in x's dtype, at least float32, without gradient.

    Raises:
        TypeError, ValueError: as `elbo`.

    Example:
        >>> from vaebook.ppca import PPCA
        >>> model = PPCA(torch.zeros(2), torch.zeros(2, 1), noise_variance=1.0)  # z has no effect
        >>> prior_sample_log_prob(model.decoder, model.prior, torch.zeros(1, 2), 4)
        tensor([-1.8379])

    Source: this book, chapter continuous/generative (claim gen/finite-k).
    """
    vae = adapt_decoder(decoder, prior)
    x, condition = vae.data(x, condition)
    generator = check_generator(generator, x.device)
    joint, rows = Joint(vae, x, condition), 1 if check_type("shared", shared, bool) else len(x)

    def log_weight(size: int) -> Tensor:
        return joint.log_likelihood(draw_from(vae.prior, (size, rows), generator).to(x.device))

    with torch.no_grad(), vae.evaluating(x, condition):
        return _log_mean(log_weight, num_samples, joint.chunk).to(at_least_single(x.dtype))


def quadrature_log_prob(
    decoder: Any,
    prior: Any,
    x: Any,
    *,
    condition: Any = None,
    limit: float = 8.0,
    tolerance: float = 1e-9,
    max_nodes: int = 5_000_000,
) -> Tensor:
    r"""Integrate log p(x) over z by the trapezoid rule, for D <= 2.

    $\log p(x) = \log\int p(x\mid z)\,p(z)\,dz$

    The step shrinks by a third until no value changes by more than the tolerance. Features far narrower than the
    first step (limit/512 for D = 1, limit/64 for D = 2), between whose nodes they vanish, can be missed.

    Args:
        decoder: maps rows of codes to a distribution of x; all that `vaebook.adapters.adapt` takes, or makes.
        prior: a prior, torch distribution or flow, D <= 2.
        x: data, (B, …); float64, as the decoder's parameters, unless tolerance >= 1e-4.
        condition: what the decoder takes beside z, a row for each datum.
        limit: the box is [-limit, limit]^D.
        tolerance: nats, at least 1e-14; the last change, and about the share of mass that the box may cut off.
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
    vae = adapt_decoder(decoder, prior)
    with integrand(vae, x, condition, tolerance=tolerance, max_nodes=max_nodes, limit=limit) as numbers:
        return log_evidence(*numbers)


def _draw(q: Normal, num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return reparameterised z (S, B, D), and log q(z|x) (S, B) for who asks; chunks do not change the noise.

    log q is computed from the noise itself: (z - loc) / scale loses digits.
    """
    generator = check_generator(generator, q.loc.device)
    noise = torch.stack([q.loc.new_empty(q.loc.shape).normal_(generator=generator) for _ in range(num_samples)])

    def log_q() -> Tensor:
        return (-0.5 * noise.double().square() - q.scale.double().log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    return q.loc + q.scale * noise, log_q


def _log_mean(log_weight: Callable[[int], Tensor], num_samples: int, size: int) -> Tensor:
    """Average weights, (samples, B), over samples that are drawn a chunk at a time; return the logarithm."""
    num_samples = check_int("num_samples", num_samples, minimum=1, maximum=MOST)
    size = check_int("chunk_size", size, minimum=1)
    parts = [log_weight(min(size, num_samples - done)).logsumexp(0) for done in range(0, num_samples, size)]
    return torch.stack(parts).logsumexp(0) - math.log(num_samples)
