r"""The components that one process holds, cut into parts that fit into memory; and what it says to other processes.

A tensor is one part. Rows of anything else that has a shape, such as a numpy memory map or a slice of an open
safetensors file, are read a part at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from vaebook._checks import NORMALISATION, check_generator, explained, new_seed
from vaebook.evaluation import as_tensor
from vaebook.mixture import DiagGaussianMixture

TOLD = 2**20
"""How many checksums a seed can carry along: with it a float64 still holds 30 bits of randomness exactly."""


class Processes:
    """The processes of a group of `torch.distributed`; this one alone where there is none or the group is False."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.several = group is not False and dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(group), dist.get_world_size(group)) if self.several else (0, 1)

    def reduced(self, values: Tensor, *, largest: bool = False) -> Tensor:
        """Return the sum of what all have, or their largest: in ``values`` itself."""
        if self.several:
            try:
                sent = values.cuda() if dist.get_backend(self.group) == "nccl" else values  # it takes no others
                dist.all_reduce(sent, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=self.group)
                values.copy_(sent)
            except RuntimeError as error:
                wanted, told = "an answer of every process, one has ended or hangs", str(error).partition("\n")[0]
                raise RuntimeError(f"group: expected {wanted}: {told}") from error
        return values

    def gather(self, mine: Tensor) -> Tensor:
        """Rows of all processes, in their order."""
        table = mine.new_zeros(self.size, len(mine))
        table[self.rank] = mine
        return self.reduced(table)

    def agree(self, name: str, *values: object) -> None:
        """Refuse arguments that are not the same in all, before results of different sizes are added up."""
        mark = self.several and float(_checksum(values))
        top = self.reduced(torch.tensor([mark, -mark], dtype=torch.float64), largest=True)
        if top[0] != -top[1]:  # both are largest at once only if all are equal
            raise ValueError(f"{name}: expected the same in all processes, got different ones")

    def common(self, generator: torch.Generator | None, num: int = 0) -> torch.Generator | None:
        """Return a source of randomness that is the same in all, seeded by that of process 0, for so many draws."""
        if self.group is False:  # as if there were no shards
            return check_generator(generator, torch.device("cpu"))
        seed, told = new_seed(check_generator(generator), 2**30), _checksum([num]) % TOLD
        seeds = self.gather(torch.tensor([seed * TOLD + told], dtype=torch.float64))[:, 0].long()
        if (seeds % TOLD != told).any():
            raise ValueError("sample_shape: expected as many draws in all processes, got different numbers")
        return torch.Generator().manual_seed(int(seeds[0]) // TOLD)


class Part(NamedTuple):
    """Some components of this process, in memory or not."""

    loc: Any
    scale: Any
    log_weight: Any
    rows: slice
    first: int  # its first component's number in this process
    log_mass: float
    dim: int

    def read(self) -> DiagGaussianMixture:
        """Make the mixture of these components alone."""
        loc, scale = _rows("loc", self.loc, self.rows), _rows("scale", self.scale, self.rows)
        if self.log_weight is None or self.log_mass == -math.inf:  # of a part without mass any weights will do
            return DiagGaussianMixture(loc, scale)
        return DiagGaussianMixture(loc, scale, _rows("log_weight", self.log_weight, self.rows).double() - self.log_mass)


def cut(loc: Any, scale: Any, log_weight: Any, size: int) -> Iterator[Part]:
    """Cut this process's components into parts: tensors whole, other rows by size."""
    locs, scales = (x if isinstance(x, (list, tuple)) else [x] for x in (loc, scale))
    weights = log_weight if isinstance(log_weight, (list, tuple)) else [log_weight] * len(locs)
    wanted, *got = (len(x) for x in (locs, scales, weights))
    if got != [wanted, wanted]:
        raise ValueError(f"scale: expected as many as loc, {wanted}, got {got[0]}, {got[1]} of log_weight")
    first = 0
    for one in zip(locs, scales, weights, strict=True):
        shapes = [_shape(x) for x in (one if one[2] is not None else one[:2])]
        if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2:] not in ([], [shapes[0][:1]]):
            raise ValueError(f"loc: expected (N, D), (N, D) and (N) of loc, scale and log_weight, got {shapes}")
        num, dim = shapes[0]
        step = num if isinstance(one[0], Tensor) else size
        for start in range(0, num, max(1, step)):
            rows = slice(start, min(start + step, num))
            weight = None if one[2] is None else _rows("log_weight", one[2], rows).double()
            mass = math.log(rows.stop - start) if weight is None else float(weight.logsumexp(0))
            yield Part(*one, rows, first + start, mass, dim)
        first += num


def has_equal_weights(q: Any) -> bool:
    """Tell whether the components of a mixture, spread or not, have one weight but for rounding."""
    log_num = math.log(q.num_components)
    apart = q.average(lambda weight, loc, scale: ((weight + log_num).abs() >= NORMALISATION) / weight.exp())
    return bool(apart == 0)  # nan where a weight is 0


def _checksum(values: Iterable[object]) -> int:
    """Return a number that tells values apart, up to chance: by bytes and shape of tensors, by print of others."""
    told = 0
    for value in values:
        dense = value.detach().contiguous().numpy() if isinstance(value, Tensor) else b""
        told = zlib.crc32(dense, zlib.crc32(str(getattr(value, "shape", value)).encode(), told))
    return told


def _shape(rows: Any) -> tuple[int, ...]:
    """Shape of rows; those of an open safetensors file have a method for it."""
    shape = rows.get_shape() if hasattr(rows, "get_shape") else getattr(rows, "shape", None)
    if shape is None:
        raise TypeError(f"loc: expected rows with a shape, of loc, scale and log_weight, got {type(rows).__name__}")
    return tuple(shape)


def _rows(name: str, source: Any, rows: slice) -> Tensor:
    """Read rows into a tensor: as many, and as long, as the source's shape says."""
    with explained(name, "rows that can be read"):
        found = source[rows]
    found = found if isinstance(found, Tensor) else as_tensor(name, found)
    if found.shape != (wanted := (rows.stop - rows.start, *_shape(source)[1:])):
        raise ValueError(f"{name}: expected rows of shape {wanted}, as the source says, got {tuple(found.shape)}")
    return found
