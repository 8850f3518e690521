"""What the laws draw from: mixtures of any size, in any unit, with duplicates, unequal weights and far tails."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vaebook.mixture import DiagGaussianMixture

law = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**31 - 1)
factors = st.sampled_from([1e-4, 0.03, 0.5, 1.0, 7.0, 300.0, 1e5])
signs = st.sampled_from([1.0, -1.0])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@st.composite
def mixtures(draw, max_components=25, max_dim=4, min_components=2, weighted=True, dim=None):
    """A mixture in float64, whose scales vary over three orders of magnitude."""
    seed, num = draw(seeds), draw(st.integers(min_components, max_components))
    dim = dim or draw(st.integers(1, max_dim))
    loc = normal(seed, num, dim) * draw(st.sampled_from([0.3, 1.0, 5.0]))
    scale = (normal(seed + 1, num, dim) * draw(st.sampled_from([0.1, 1.0]))).exp()
    if weighted and draw(st.booleans()):
        return DiagGaussianMixture(loc, scale, normal(seed + 2, num).log_softmax(0))
    return DiagGaussianMixture(loc, scale)


@st.composite
def affine(draw, dim):
    """z → a z + b, each coordinate in its own unit; b is of the size of a, so that no digits are lost."""
    a = torch.tensor([draw(factors) * draw(signs) for _ in range(dim)], dtype=torch.float64)
    return a, 3 * a.abs() * normal(draw(seeds), dim)


def moved(q, a, b):
    """The mixture of a z + b."""
    return DiagGaussianMixture(a * q.loc + b, a.abs() * q.scale, q.double().log_weight)


def points(q, seed, num=9):
    """Some draws of the mixture, and some far outside of it."""
    z = q.sample((num,), generator=generator(seed))
    return torch.cat([z, z + 20 * q.scale.amax(0) * normal(seed + 1, num, z.shape[1])])


def same(got, expected, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), rtol=rtol, atol=atol)
