"""Claims of the chapter aggregated/estimators: what a minibatch can tell about the aggregated posterior.

The inequalities hold for codes of any kind, so most are checked with codes that take a few values: then every batch in
every order, with every combination of codes, can be gone through, and an expectation is a finite sum.
"""

from __future__ import annotations

import math
from itertools import permutations, product

import torch
from torch import Tensor
from torch.distributions import Normal

from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import (
    Scheme,
    minibatch_decomposition,
    minibatch_information,
    minibatch_log_prob,
    minibatch_weights,
    pairwise_log_prob,
)

APART = 0.998 * torch.eye(5, dtype=torch.float64) + 0.002 / 5
"""Five data whose codes hardly overlap."""


@claim(
    "est/in-batch",
    falsehood=r"$\mathbb E\hat I=I$ for batches of fewer than all data.",
    kind="exact",
    source="concavity of information, Cover & Thomas (2006), theorem 2.7.4; independent batches: Poole et al. (2019)",
    section="aggregated/estimators",
)
def in_batch(generator: torch.Generator) -> Measurement:
    """Enumerate independent draws, subsets, consecutive windows, and the whole data set."""
    codes = _codes(5, 3, generator)
    exact, lhs, rhs, means, swapped = _kl(codes, codes.mean(0)).mean(), [], [], [], []
    for batches in (_independent(5, 2), _independent(5, 3), _subsets(5, 3), _windows(5, 3), _subsets(5, 5)):
        log_q, mass = _every_outcome(codes, batches)
        information = minibatch_information(log_q, minibatch_weights("in-batch", batches.shape[1]))
        mean, lost = (mass * information).sum(), _kl(codes[batches].mean(1), codes.mean(0)).mean()
        lhs += [mean, mean + lost, exact, information.max()]
        rhs += [exact, exact, mean + lost, torch.tensor(math.log(batches.shape[1]))]
        means.append(mean)
        swapped.append(mean + _kl(codes.mean(0), codes[batches].mean(1)).mean())
    # A sampler that balances: of three data two have one code, and the third is in every batch.
    twice = APART[[0, 0, 1]]
    log_q, mass = _every_outcome(twice, torch.tensor([[0, 2], [1, 2]]))
    balanced = (mass * minibatch_information(log_q, minibatch_weights("in-batch", 2))).sum()
    largest = minibatch_information(_every_outcome(APART, _subsets(5, 3))[0], minibatch_weights("in-batch", 3)).max()
    return Measurement(  # each identity as two inequalities
        sides=[("mean in-batch estimate", "I(n; z)")],
        lhs=torch.stack([*lhs, exact]),
        rhs=torch.stack([*rhs, means[-1]]),
        falsehood_lhs=exact,
        falsehood_rhs=torch.stack(means[:-1]),
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "the loss is the KL the other way round": Neighbour(torch.stack(swapped[:-1]), exact, "=="),
            "at most I for every sampler of batches": Neighbour(balanced, _kl(twice, twice.mean(0)).mean()),
            "at most 0.99 log B": Neighbour(largest, 0.99 * math.log(3)),
        },
    )


@claim(
    "est/leave-one-out",
    falsehood=r"$\mathbb E\hat I=I$; or $\mathbb E\hat I\ge\frac N{N-1}I$ for independent draws too.",
    kind="exact",
    source="Jensen's inequality; independent draws: Poole et al. (2019), section 2.5; without replacement: this book",
    section="aggregated/estimators",
)
def leave_one_out(generator: torch.Generator) -> Measurement:
    """Enumerate subsets of five data, independent draws of three similar ones, and pairs of nearly disjoint codes."""
    codes, similar = _codes(5, 3, generator), 1 + 0.3 * torch.rand(3, 3, generator=generator, dtype=torch.float64)
    similar = similar / similar.sum(1, keepdim=True)
    exact, exact_similar = (_kl(c, c.mean(0)).mean() for c in (codes, similar))
    others = _kl(codes, (codes.sum(0) - codes) / 4).mean()
    subsets = torch.stack([_mean("leave-one-out", codes, _subsets(5, size)) for size in (2, 3, 4, 5)])
    independent = torch.stack([_mean("leave-one-out", similar, _independent(3, size)) for size in (2, 3, 5)])
    pairs, log_n = _mean("leave-one-out", APART, _subsets(5, 2)), torch.tensor([math.log(5)], dtype=torch.float64)
    return Measurement(
        sides=[("mean leave-one-out estimate", "mean KL to the mixture of the others")],
        lhs=torch.cat([subsets, others[None], others[None], independent, pairs[None]]),
        rhs=torch.cat([others.expand(4), subsets[-1:], exact[None] * 5 / 4, exact_similar.expand(3), log_n]),
        falsehood_lhs=torch.cat([exact.expand(4), independent[-1:]]),
        falsehood_rhs=torch.cat([subsets, exact_similar[None] * 3 / 2]),
        relation=">=",
        tolerance=1e-10,
        neighbours={
            "equality for smaller batches": Neighbour(others, subsets[:3]),
            "log N bounds it": Neighbour(log_n, pairs),
            "at least (N/(N - 1))² I": Neighbour(*_least_left_out(5, (5 / 4) ** 2)),
            "at least 1.001 N/(N - 1) I": Neighbour(*_least_left_out(50, 1.001 * 50 / 49)),
        },
    )


def _least_left_out(num: int, factor: float) -> tuple[Tensor, Tensor]:
    """Mean KL(q_n | q_-n) and a multiple of I for codes each of which rules out one datum: near N/(N - 1) I."""
    codes = (1 - torch.eye(num, dtype=torch.float64)).clamp(min=1e-12)
    codes = codes / codes.sum(1, keepdim=True)
    others = (codes.sum(0) - codes) / (num - 1)
    return _kl(codes, others).mean(), factor * _kl(codes, codes.mean(0)).mean()


@claim(
    "est/mws",
    falsehood=r"$\mathbb E\hat I_\mathrm{MWS}\le\log N$, as every information about $N$ data is.",
    kind="exact",
    source="the estimator: Chen et al. (2018); its offsets: this book",
    section="aggregated/estimators",
)
def mws(generator: torch.Generator) -> Measurement:
    """Subtract both estimates and their gradients on a random batch; enumerate the expectation on five data."""
    loc, log_scale, noise = (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    loc, log_scale = loc.requires_grad_(), (0.3 * log_scale).requires_grad_()
    z = loc + log_scale.exp() * noise
    log_q, log_prior = pairwise_log_prob(z, loc, log_scale.exp()), Normal(0.0, 1.0).log_prob(z.mT)
    values, gradients = [], []
    for scheme in ("weighted", "in-batch"):
        parts = torch.stack(minibatch_decomposition(log_q, log_prior, minibatch_weights(scheme, 6, 50)))
        slopes = [torch.autograd.grad(part, (loc, log_scale), retain_graph=True) for part in parts]
        values.append(parts.detach())
        gradients.append(torch.cat([slope.flatten() for pair in slopes for slope in pair]))
    rate = (Normal(loc, log_scale.exp()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1).mean().detach()
    offsets = math.log(50) * torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    left = torch.cat([values[0], values[0].sum()[None], gradients[0]])
    right = torch.cat([values[1] + offsets, rate[None], gradients[1]])
    mean, log_n = _mean("weighted", _codes(5, 3, generator), _subsets(5, 3)), torch.tensor([math.log(5)])
    return Measurement(
        sides=[("information by weighted sampling", "in-batch information plus log N")],
        lhs=torch.cat([left, right, log_n]),
        rhs=torch.cat([right, left, mean[None]]),
        falsehood_lhs=mean,
        falsehood_rhs=math.log(5),
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "total correlation is off by D log N": Neighbour(values[0][1], values[1][1] + 3 * math.log(50), "==")
        },
    )


@claim(
    "est/mss",
    falsehood=r"The matrix widely copied is unbiased (each row but the first; B well below N); the stratified weights "
    r"are exact at $B=N\ge3$.",
    kind="exact",
    source="the stratified weights: Chen et al. (2018); equal weights: Rao-Blackwell, this book",
    section="aggregated/estimators",
)
def mss(generator: torch.Generator) -> Measurement:
    """Average the estimates of the density over all ordered batches, given who stands in row i; and the information."""
    codes, few = _codes(7, 4, generator), _subsets(7, 4)
    q_agg, stratified, equal = codes.mean(0), *(minibatch_weights(scheme, 4, 7) for scheme in ("stratified", "equal"))
    first, second = zip(*(_given_row(codes, few, w) for w in (stratified, equal)), strict=True)
    others = [_given_row(codes, few, _any_weights(4, 7, generator)) for _ in range(5)]
    misplaced = _given_row(codes, few, misplaced_weights(4, 7))[0]
    inside_weights = minibatch_weights("in-batch", 4)
    # A row whose own weight is 1/M has the bias (1/M - 1/N)(q_n - q_-n), here the last one.
    excess = (1 / 3 - 1 / 7) * (codes - (codes.sum(0) - codes) / 6)
    unbiased = [*first, *(moment for moment, _ in others)]
    equalities = [(moment, q_agg.expand(4, 7, 4)) for moment in unbiased] + [(misplaced[3], q_agg + excess)]
    spread = torch.stack([second[0], *(moment for _, moment in others)])
    exact = _kl(codes[:5], codes[:5].mean(0)).mean()
    inside, low, high = (_mean(s, codes[:5], _subsets(5, 3)) for s in ("in-batch", "equal", "stratified"))
    whole, whole_stratified = (_mean(s, codes[:5], _subsets(5, 5)) for s in ("equal", "stratified"))
    chain = torch.stack([exact, low, low - inside, whole, exact])
    above = torch.stack([low, high, torch.tensor(math.log(5 / 3)), exact, whole])
    most = minibatch_information(_every_outcome(codes[:5], _subsets(5, 3))[0], minibatch_weights("equal", 3, 5)).max()
    near, far = (_mean(s, APART, _subsets(5, 3)) for s in ("in-batch", "equal"))
    off = (misplaced - q_agg).abs().sum(2).mean(1)[1:]  # row by row, over z, on average over the data
    left, right = (torch.cat([side.flatten() for side in sides]) for sides in zip(*equalities, strict=True))
    return Measurement(
        sides=[("mean estimate of q_agg(z)", "q_agg(z)")],
        lhs=torch.cat([left, right, second[1].expand_as(spread).flatten(), chain, most[None]]),
        rhs=torch.cat([right, left, spread.flatten(), above, torch.tensor([math.log(5)])]),
        falsehood_lhs=torch.cat([off, whole_stratified[None] - exact]),
        falsehood_rhs=0.0,
        relation="<=",
        tolerance=1e-10,
        neighbours={
            "1/B for all is unbiased too": Neighbour(_given_row(codes, few, inside_weights)[0], q_agg, "=="),
            "stratified weights vary no more than equal ones": Neighbour(second[0], second[1]),
            "at most in-batch and 0.9 log(N/B)": Neighbour(far, near + 0.9 * math.log(5 / 3)),
            "equal weights stay below 0.95 log N": Neighbour(far, 0.95 * math.log(5)),
        },
    )


def _any_weights(batch_size: int, num_data: int, generator: torch.Generator) -> Tensor:
    """Draw weights with 1/N on the diagonal, the others at random, rows that sum to 1."""
    weights = torch.rand(batch_size, batch_size, generator=generator, dtype=torch.float64).fill_diagonal_(0.0)
    weights = weights / weights.sum(1, keepdim=True) * (num_data - 1) / num_data
    return weights.fill_diagonal_(1 / num_data)


def misplaced_weights(batch_size: int, num_data: int) -> Tensor:
    r"""Stratified weights as published code has them: columns 0 and 1 in place of the diagonal and its neighbour.

    $1/N$ in column 0, $(N-M)/(NM)$ in column 1 and at row B-2 of column 0, $1/M$ elsewhere; M = B-1. A toy, to be
    compared with ``minibatch_weights("stratified", …)``.

    Args:
        batch_size: B, at least 2.
        num_data: N.

    Returns:
        The weights, (B, B), float64.

    Example:
        >>> misplaced_weights(4, 12)[3]
        tensor([0.0833, 0.2500, 0.3333, 0.3333], dtype=torch.float64)

    Source: rebuilt from rtqichen/beta-tcvae (2018), whose pull request 1 reports it.
    """
    neighbour = 1 / (batch_size - 1) - 1 / num_data
    weights = torch.full((batch_size, batch_size), 1 / (batch_size - 1), dtype=torch.float64)
    weights[:, 0], weights[:, 1] = 1 / num_data, neighbour
    weights[batch_size - 2, 0] = neighbour
    return weights


def _codes(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw the posteriors of ``num`` data over ``size`` values of a discrete code: (num, size), rows summing to 1."""
    return (1.5 * torch.randn(num, size, generator=generator, dtype=torch.float64)).softmax(1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def _subsets(num: int, size: int) -> Tensor:
    """All batches without replacement, in every order, equally probable: (batches, size)."""
    return torch.tensor(list(permutations(range(num), size)))


def _independent(num: int, size: int) -> Tensor:
    """All batches of independent draws."""
    return torch.tensor(list(product(range(num), repeat=size)))


def _windows(num: int, size: int) -> Tensor:
    """Consecutive data from a random place on, counted cyclically: far from a random subset, yet fair to each datum."""
    return (torch.arange(num)[:, None] + torch.arange(size)) % num


def _every_outcome(codes: Tensor, batches: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices log q(z_i|x_j) for every batch and every combination of codes, and their probabilities."""
    size = batches.shape[1]
    z = torch.tensor(list(product(range(codes.shape[1]), repeat=size)))  # (outcomes, B)
    q = codes[batches][:, :, z].permute(0, 2, 3, 1)  # (batches, outcomes, code i, member j)
    return q.log(), q.diagonal(dim1=-2, dim2=-1).prod(-1) / len(batches)


def _mean(scheme: Scheme, codes: Tensor, batches: Tensor) -> Tensor:
    """Average the estimate of the information over all outcomes."""
    log_q, mass = _every_outcome(codes, batches)
    return (mass * minibatch_information(log_q, minibatch_weights(scheme, batches.shape[1], len(codes)))).sum()


def _given_row(codes: Tensor, batches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of the estimate of q_agg(z) in row i, given that its datum is n: (row i, n, z)."""
    size = batches.shape[1]
    log_q = codes.log()[batches].mT[:, :, None].expand(-1, -1, size, -1)  # (batches, z, row i, member j)
    estimates = minibatch_log_prob(log_q, weights).exp()  # (batches, z, row i)
    given = torch.nn.functional.one_hot(batches, len(codes)).double()
    given = given / given.sum(0)  # (batches, row i, n)
    return tuple(torch.einsum("bzi,bin->inz", estimates**power, given) for power in (1, 2))
