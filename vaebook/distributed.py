r"""A mixture whose components are spread over processes, or lie in files larger than memory.

A sum over components is a sum of sums over parts of them:

    log q(z) = log sum_k m_k q_k(z),      grad log q(z) = sum_k r_k(z) grad log q_k(z),      r_k = m_k q_k/q,

with m_k the weight of part k, a `DiagGaussianMixture`. Between processes goes, for each point, one maximum and one sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaebook._checks import at_least_single, check_all, check_index, check_int, check_shape, check_tensor, check_type
from vaebook.mixture import DiagGaussianMixture
from vaebook.shards import Processes, cut, has_equal_weights
from vaebook.sums import check_others, log_sum_of_others

POINTS = 2**14
"""Points that one pass over all components, and one exchange between processes, serves."""
LOWEST = torch.finfo(torch.float64).min


class ShardedMixture:
    r"""The mixture of all components that the processes of a group hold.

    $q(z) = \sum_r\sum_{n\in r} w_n\prod_j\mathcal N(z_j\mid\mu_{nj},\sigma_{nj}^2)$

    Every process makes it with components of its own, some or none, and calls the same methods with the same points;
    each gets the whole answer. What lies on a graphics card is computed there, what is drawn or averaged comes to the
    processor. Components are numbered through the processes, those of process 0 first. Without `torch.distributed`
    there is one process, and components may still be read as they are needed.

    Args:
        loc: means of this process's components, (N, D), N = 0 allowed: a tensor, or anything with a shape of which
            rows can be taken, such as a numpy memory map or ``safe_open(file, "pt").get_slice("loc")``. A list of
            them, from several files, is taken one after another.
        scale: their standard deviations, (N, D), or a list.
        log_weight: natural logarithms of their weights, (N), or a list; they are normalised over all processes. None
            means weight 1 each, before that.
        group: of `torch.distributed`; None means all processes, False this one alone, whatever others there are.
        part_size: how many rows are taken at once of what is no tensor.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes or the arguments of two processes differ, no process has a component, or all weights are 0.
        RuntimeError: another process has ended, or did not answer within the time that the group allows.

    Example:
        >>> loc = torch.tensor([[-2.0], [2.0]])
        >>> ShardedMixture(loc, torch.ones(2, 1)).log_prob(torch.zeros(1, 1))
        tensor([-2.9189])

    Source: Milakov & Gimelshein, Online normalizer calculation for softmax (2018), whose sums over blocks are sums over
    parts here.
    """

    def __init__(
        self, loc: Any, scale: Any, log_weight: Any = None, *, group: Any = None, part_size: int = 2**17
    ) -> None:
        part_size = check_int("part_size", part_size, minimum=1)
        self.processes = Processes(group)
        self._parts, self._kept = list(cut(loc, scale, log_weight, part_size)), {}
        mass = torch.tensor([part.log_mass for part in self._parts], dtype=torch.float64)
        dims = [part.dim for part in self._parts]
        num = sum(part.rows.stop - part.rows.start for part in self._parts)
        mine = [num, max(dims, default=0), min(dims, default=math.inf), float(mass.logsumexp(0))]
        told = self.processes.gather(torch.tensor(mine, dtype=torch.float64))
        self.num_components, self.latent_dim = int(told[:, 0].sum()), int(told[:, 1].max())
        if not self.num_components:
            raise ValueError("loc: expected at least one component in some process, got none")
        if not 0 < told[:, 2].min() == self.latent_dim:
            raise ValueError(f"loc: expected one D everywhere, got {int(told[:, 2].min())} and {self.latent_dim}")
        total = float(told[:, 3].logsumexp(0))
        if not math.isfinite(total):
            wanted = "numbers below infinity, not all of them -inf"
            raise ValueError(f"log_weight: expected {wanted}, got a sum of weights of {math.exp(total)}")
        self._first = int(told[: self.processes.rank, 0].sum())
        self._log_mass, self._log_total = told[:, 3].log_softmax(0), total

    def __repr__(self) -> str:
        """Show the sizes."""
        return f"ShardedMixture(num_components={self.num_components}, dim={self.latent_dim})"

    def parts(self) -> Iterator[tuple[DiagGaussianMixture, float, int]]:
        """Go through this process's parts: the mixture, its log-weight in the whole, its first component's number."""
        for place, part in enumerate(self._parts):
            mixture = self._kept.get(place) or part.read()
            mixture.in_clusters = isinstance(part.loc, Tensor)
            if mixture.in_clusters:  # in memory anyhow: what is prepared for the sums stays
                self._kept[place] = mixture
            yield mixture, part.log_mass - self._log_total, part.first + self._first

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s), in z's dtype, at least float32; without derivatives."""
        return self.sums(z, lambda q, first, rows: q.log_prob(rows)[:, None])[..., 0]

    def log_prob_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density, (*s), and its gradient in z, (*s, D); see `DiagGaussianMixture.log_prob_and_score`."""
        both = self.sums(z, lambda q, _, rows: torch.column_stack(q.log_prob_and_score(rows)), averages=self.latent_dim)
        check_all("z", z, both[..., 1:].isfinite(), "points at which the score is finite")
        return both[..., 0], both[..., 1:]

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        """Log-density, (*s), of the others where one component is left out, their weights normalised anew.

        Args:
            z: points, (*s, D).
            index: the number, over all processes, of the component to leave out, (*s), long.

        Returns:
            The log-density, (*s); see `DiagGaussianMixture.log_prob_leave_one_out`.
        """
        of = lambda q, first, rows, chosen: sums_without(q, rows, chosen - first)  # noqa: E731
        density, rest = self.sums(z, of, self._checked(z, index), logarithms=2).unbind(-1)
        return density - check_others(rest, self.num_components)

    def _checked(self, z: Tensor, index: Tensor) -> Tensor:
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        return check_index("index", index, z.shape[:-1], size=self.num_components).cpu().reshape(-1)

    def log_prob_given(self, z: Tensor, index: Tensor) -> Tensor:
        """Log-density, (*s), of one component each, log N(z | mu_n, sigma_n²), for z (*s, D) and numbers n (*s)."""
        flat, points = self._checked(z, index), z.detach().cpu().reshape(-1, self.latent_dim)
        value = torch.zeros(len(flat), dtype=torch.float64)
        self.processes.agree("z and index", points.double(), flat)
        for q, _, first in self.parts():
            own = _inside(flat - first, q)
            value[own] = _at(q, q.log_prob_given, points[own], flat[own] - first)
        return self.processes.reduced(value).reshape(z.shape[:-1]).to(z.device)

    def log_prob_marginals(self, z: Tensor) -> Tensor:
        """Log-densities of the D marginals, (*s, D); see `DiagGaussianMixture.log_prob_marginals`."""
        return self.sums(z, lambda q, first, rows: q.log_prob_marginals(rows), logarithms=self.latent_dim)

    def sample(self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples, (*s, D), the same in all processes; see `sample_with_index`."""
        return self.sample_with_index(sample_shape, generator=generator)[0]

    def sample_with_index(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw samples and the number of the component that each came from, the same in all processes.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness, of process 0; None means torch's global one. Draws do not depend on how
                components are divided.

        Returns:
            z, (*s, D), float64, and n, (*s), long.
        """
        shape = check_shape("sample_shape", sample_shape, self.latent_dim)
        num = shape.numel()
        generator = self.processes.common(generator, num)
        place = torch.rand(num, generator=generator, dtype=torch.float64)  # among the cumulated weights
        noise = torch.randn(num, self.latent_dim, generator=generator, dtype=torch.float64)
        z, index = torch.zeros_like(noise), torch.zeros_like(place)
        masses = [part.log_mass - self._log_total for part in self._parts]
        process, parts = (x.exp().cumsum(0) for x in (self._log_mass, torch.tensor(masses, dtype=torch.float64)))
        mine = (_interval(process, place) == self.processes.rank).nonzero()[:, 0]
        rest = place[mine] - process[self.processes.rank] + self._log_mass[self.processes.rank].exp()
        own = _interval(parts, rest)
        for k, (q, log_mass, first) in enumerate(self.parts() if len(mine) else ()):
            rows, (log_weight, loc, scale) = mine[own == k], q.components()
            ends = (log_weight.cpu() + log_mass).exp().cumsum(0)
            number = _interval(ends, (rest[own == k] - parts[k] + ends[-1]).clamp(min=0))
            index[rows], z[rows] = (number + first).double(), loc[number].cpu() + scale[number].cpu() * noise[rows]
        return self.processes.reduced(z).reshape(*shape, z.size(1)), self.processes.reduced(index).long().reshape(shape)

    def __getitem__(self, index: Tensor) -> DiagGaussianMixture:
        """Return the mixture of the chosen components, (K) numbers, in this process's memory."""
        index = check_index("index", index, getattr(index, "shape", ())[:1] or (1,), size=self.num_components).cpu()
        self.processes.agree("index", index)
        rows = torch.zeros(len(index), 1 + 2 * self.latent_dim, dtype=torch.float64)
        for q, log_mass, first in self.parts():
            own = _inside(index - first, q)
            log_weight, loc, scale = (x[index[own] - first].cpu() for x in q.components())
            rows[own] = torch.cat([(log_weight + log_mass)[:, None], loc, scale], 1)
        weight, loc, scale = self.processes.reduced(rows).tensor_split([1, 1 + self.latent_dim], 1)
        return DiagGaussianMixture(loc, scale, weight[:, 0].log_softmax(0))

    def double(self) -> ShardedMixture:
        """Return the same mixture: all is computed in float64."""
        return self

    @property
    def mean(self) -> Tensor:
        r"""$\sum_n w_n\mu_n$, (D), float64."""
        return self.average(lambda log_weight, loc, scale: loc)

    @property
    def covariance(self) -> Tensor:
        r"""$\sum_n w_n(\mathrm{diag}\,\sigma_n^2 + (\mu_n-m)(\mu_n-m)^\top)$ with m the mean, (D, D), float64."""
        mean = self.mean
        total = torch.zeros(2 * mean.shape, dtype=torch.float64)
        for part, log_mass, _ in self.parts():
            q = part.double()
            apart = q.mean.cpu() - mean
            total += math.exp(log_mass) * (q.covariance.cpu() + apart[:, None] * apart)
        return self.processes.reduced(total)

    def average(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Average over all components; see `DiagGaussianMixture.average`."""
        one = torch.ones(1, self.latent_dim, dtype=torch.float64)  # it tells the shape, where there is no part, too
        total = torch.zeros_like(function(one[:, 0], one, one)[0])
        for q, log_mass, _ in self.parts():
            total += math.exp(log_mass) * q.average(lambda w, m, s, more=log_mass: function(w + more, m, s)).cpu()
        return self.processes.reduced(total)

    def sums(self, z: Tensor, of: Callable, *beside: Tensor, logarithms: int = 1, averages: int = 0) -> Tensor:
        """Add up over all components: logarithms of sums, and averages under the first, (*s, logarithms + averages).

        ``of`` takes a part, the number of its first component and points, and returns for that part, with
        weights that sum to 1, logarithms and averages side by side. ``beside`` goes along with the points.
        """
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        points, results = z.detach().cpu().double().reshape(-1, self.latent_dim), []
        self.processes.agree("z and index" if beside else "z", logarithms, averages, points, *beside)
        for block in zip(*(x.split(POINTS) for x in (points, *beside)), strict=True):
            local = points.new_tensor([-torch.inf] * logarithms + [0.0] * averages).repeat(len(block[0]), 1)
            for q, log_mass, first in self.parts():
                part = _at(q, partial(of, q, first), *block)
                local = _added(local, part[:, :logarithms] + log_mass, part[:, logarithms:])
            results.append(self._joined(local, logarithms))
        return torch.cat(results).to(z.device, at_least_single(z.dtype)).reshape(*z.shape[:-1], logarithms + averages)

    def _joined(self, local: Tensor, logarithms: int) -> Tensor:
        """Add up what all processes have of some points: one maximum and one sum of each point.

        ``local``, (S, C), begins with so many logarithms of sums; averages under the first of them follow.
        """
        logs = local[:, :logarithms]
        top = self.processes.reduced(logs.clone(), largest=True)
        shares = (logs - top.clamp(min=LOWEST)).exp()  # 0 where no process has anything
        sums = self.processes.reduced(torch.cat([shares, local[:, logarithms:] * shares[:, :1]], 1))
        return torch.cat([sums[:, :logarithms].log() + top, sums[:, logarithms:] / sums[:, :1]], 1)


Mixture = DiagGaussianMixture | ShardedMixture


def in_shards(name: str, q: Any, *, equal: bool = False) -> ShardedMixture:
    """Return a mixture, of ``equal`` weights if need be, in the form that serves both: one not spread is one shard."""
    if isinstance(check_type(name, q, Mixture), DiagGaussianMixture):
        log_weight, *rest = (part.detach() for part in q.components())
        q = ShardedMixture(*rest, log_weight, group=False)
    if equal and not has_equal_weights(q):
        raise ValueError(f"{name}: expected components of equal weight, one for each datum, got others")
    return q


def _at(q: DiagGaussianMixture, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Compute where the components are, and bring the result back."""
    return function(*(x.to(q.loc.device) for x in values)).cpu()


def _added(local: Tensor, logs: Tensor, averages: Tensor) -> Tensor:
    """Add a part's logarithms and averages to what the parts before it came to."""
    before = local[:, : logs.shape[1]]
    total = torch.logaddexp(before, logs)
    old, new = ((x - total.clamp(min=LOWEST))[:, :1].exp() for x in (before, logs))
    return torch.cat([total, old * local[:, logs.shape[1] :] + new * averages], 1)


def _interval(ends: Tensor, place: Tensor) -> Tensor:
    """Tell which of the intervals with these ends, empty ones among them, each place lies in; the last has no end."""
    return torch.bucketize(place, ends.masked_fill(ends == ends[-1:], torch.inf), right=True)


def _inside(numbers: Tensor, q: DiagGaussianMixture) -> Tensor:
    """Places at which a number is that of a component."""
    return ((numbers >= 0) & (numbers < q.num_components)).nonzero()[:, 0]


def sums_without(q: DiagGaussianMixture, z: Tensor, index: Tensor) -> Tensor:
    """Logarithms of the sums of weighted densities at z (S, D), and of weights, without one component each, (S, 2).

    A number in index (S) that is none of a component's leaves out nothing.
    """
    logs = torch.stack([q.log_prob(z), z.new_zeros(len(z))], 1)
    own = _inside(index, q)
    logs[own, 1] = log_sum_of_others(q.components()[0])[index[own]]
    left = own[logs[own, 1] > -torch.inf]
    logs[own, 0] = -torch.inf
    logs[left, 0] = q.log_prob_leave_one_out(z[left], index[left]) + logs[left, 1]
    return logs
