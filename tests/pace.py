"""How slow this processor is, so that a limit of time asks the same of every one."""

import functools
import time

import torch

REFERENCE = 0.057
"""Seconds that the work below takes on a processor on which all limits hold, with room to spare."""


@functools.cache
def pace():
    """How many times as long as there a fixed piece of work takes here, at least 1."""
    return max(1.0, min(work() for _ in range(5)) / REFERENCE)


def work():
    """Seconds of the processor for what the tests do most: small tensors, the interpreter, products of matrices."""
    x, small = (torch.full((size, size), 0.5) for size in (300, 3))
    start = time.process_time()
    for _ in range(20):
        x = (x @ x).tanh()
    for i in range(10_000):
        small = (small + i % 7).sigmoid()
    return time.process_time() - start
