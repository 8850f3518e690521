"""Change a kernel's numbers by as little as another processor changes them; loaded into a chapter's kernel only.

Another processor adds up in another order, and has other vector instructions for the same functions. What it gets
differs in the last digits. Here they are changed at random, wherever numbers come from: the draws that become initial
weights, noise and made-up data; the digits; stored weights; and every product of matrices.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import library

from vaebook import data, training

SIZE = 1e-7
"""Relative change of weights, draws and data: float32's last digit."""
DRAWS = ["normal_", "uniform_"]
PRODUCTS = ["mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"]


def start(seed: int, threads: int) -> None:
    """Change all that is computed from now on, and keep to so many threads whatever the chapter asks for."""
    noise = _Noise(seed)
    for name in DRAWS:
        _override(name, lambda out: out.mul_(noise.factor(out, SIZE)))
    for name in PRODUCTS:
        _override(name, lambda out: out.mul_(noise.factor(out, torch.finfo(out.dtype).eps)))
    data.digits = _changed(data.digits, lambda split: _change_split(split, noise))
    training.load = _changed(training.load, lambda vae: _change_weights(vae, noise))
    # Stored weights are in half precision, which is too coarse for the change.
    torch.nn.Module.float = _changed(torch.nn.Module.float, lambda module: _change_weights(module, noise))
    torch.set_num_threads(threads)
    torch.set_num_threads = lambda count: None


class _Noise:
    """Factors between 1 - size and 1: a value in [0, 1] stays there."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = torch.from_numpy(self._random.random(2**20))

    def factor(self, like: torch.Tensor, size: float) -> torch.Tensor:
        start = int(self._random.integers(len(self._pool)))
        end = start + like.numel()
        pool = self._pool if end <= len(self._pool) else self._pool.repeat(-(-end // len(self._pool)))
        return (1 - size * pool[start:end].view(like.shape)).to(like.dtype)


_LIBRARY = library.Library("aten", "IMPL")


def _override(name: str, change: object) -> None:
    kernel = library.get_kernel(f"aten::{name}", "CPU")

    def changed(keys: object, *args: object, **kwargs: object) -> torch.Tensor:
        out = kernel.call_boxed(keys, *args, **kwargs)
        return change(out) if out.is_floating_point() and out.numel() else out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced
        _LIBRARY.impl(name, changed, "CPU", with_keyset=True)


def _changed(function: object, change: object) -> object:
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return change(function(*args, **kwargs))

    return wrapper


def _change_split(split: data.Split, noise: _Noise) -> data.Split:
    return data.Split(*(part * noise.factor(part, SIZE) for part in split[:3]), *split[3:])


@torch.no_grad()
def _change_weights(vae: torch.nn.Module, noise: _Noise) -> torch.nn.Module:
    for parameter in vae.parameters():
        parameter.mul_(noise.factor(parameter, SIZE))
    return vae
