r"""Running somebody's model for inference: in batches, with a condition, in evaluation mode, and the same way twice.

A *condition* (labels, a library size) is one row a datum: a tensor, passed on as the second argument, or a mapping from
names to tensors, passed on by name to whichever function takes that name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from vaebook._checks import check_all, check_int

Condition = Tensor | dict[str, Tensor] | None
Data = Tensor | np.ndarray | Iterable[Any]


@contextmanager
def evaluation_mode(*sources: object) -> Iterator[None]:
    """Run what is inside in evaluation mode: no dropout, and batch norm with its running statistics, left untouched.

    Every module that is called inside is seen at the moment of its call, also behind a lambda, and is put back into
    training mode at the end if it was in it. ``sources`` are modules, or methods of modules, to change at once.
    """
    changed: list[nn.Module] = []

    def see(module: nn.Module, _: object = None) -> None:
        if module.training:
            changed.append(module)
            module.training = False

    hook = register_module_forward_pre_hook(see)
    try:
        for module in modules_of(*sources):
            for part in module.modules():
                see(part)
        yield
    finally:
        hook.remove()
        for module in changed:
            module.training = True


def modules_of(*sources: object) -> list[nn.Module]:
    """List the modules among some objects, and those that own a method among them, each once."""
    owners = [getattr(source, "__self__", source) for source in sources]
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, nn.Module)))


def dtype_of(*sources: object) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter or buffer, None where there is none to be seen."""
    tensors = (t for m in modules_of(*sources) for t in (*m.parameters(), *m.buffers()) if t.is_floating_point())
    return next((tensor.dtype for tensor in tensors), None)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let code that draws from torch's global generator draw from this one, and leave the global one as it was."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def call(name: str, function: Callable[..., Any], rows: Tensor, condition: Condition = None) -> Any:
    """Call a part of a model on a batch; what it raises becomes one error that says what it was called with."""
    positional, named = accepted(function, condition)
    try:
        return function(rows, *positional, **named)
    except Exception as error:
        if isinstance(error, TypeError | ValueError) and ": expected" in str(error):
            raise
        given = f"a batch of shape {tuple(rows.shape)} and {rows.dtype}" + (
            "" if condition is None else " with its condition"
        )
        told = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ValueError(f"{name}: expected it to take {given}, got {told}") from error


def accepted(function: Callable[..., Any], condition: Condition) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the part of a condition that a function takes, as positional and as named arguments."""
    if condition is None:
        return (), {}
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature: it gets everything
        parameters = None
    if isinstance(condition, Tensor):
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        takes = parameters is None or sum(2 if p.kind is p.VAR_POSITIONAL else p.kind in kinds for p in parameters) > 1
        return ((condition,) if takes else ()), {}
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return (), condition
    names = {p.name for p in parameters}
    return (), {name: value for name, value in condition.items() if name in names}


def check_condition(condition: object, num: int | None, *functions: Callable[..., Any] | None) -> Condition:
    """Check a condition for ``num`` data (None: not known yet), and that each part of it is taken by some function."""
    if condition is None:
        return None
    named = dict(condition) if isinstance(condition, Mapping) else {"": condition}
    parts: dict[str, Tensor] = {}
    for key, value in named.items():
        name = f"condition[{key!r}]" if key else "condition"
        if not isinstance(value, Tensor | np.ndarray) or not isinstance(key, str):
            kind = type(value).__name__
            raise TypeError(f"{name}: expected a tensor with a row for each datum, or tensors by name, got {kind}")
        parts[key] = torch.as_tensor(value)
        if parts[key].ndim == 0 or num not in (None, len(parts[key])):
            raise ValueError(f"{name}: expected {num or 'N'} rows, one for each datum, got {tuple(parts[key].shape)}")
        piece = parts[key] if not key else {key: parts[key]}
        if not any(any(accepted(function, piece)) for function in functions if function is not None):
            wanted = "an encoder or a decoder that takes it" + (f" as {key!r}" if key else " as second argument")
            raise ValueError(f"{name}: expected {wanted}, got none")
    return parts[""] if set(parts) == {""} else parts


def take(condition: Condition, rows: Any) -> Condition:
    """Select rows of a condition."""
    if isinstance(condition, dict):
        return {name: value[rows] for name, value in condition.items()}
    return None if condition is None else condition[rows]


def repeat(condition: Condition, batch_shape: torch.Size) -> Condition:
    """Repeat a condition (B, …) for every row of a batch (…, B), flattened."""
    if isinstance(condition, dict):
        return {name: repeat(value, batch_shape) for name, value in condition.items()}
    if condition is None:
        return None
    return condition.expand(*batch_shape, *condition.shape[1:]).reshape(-1, *condition.shape[1:])


def as_data(name: str, value: object, dtype: torch.dtype | None = None) -> Tensor:
    """Return data, (N, …), as a tensor: arrays are converted, to ``dtype`` where they hold floating-point numbers."""
    if not isinstance(value, Tensor):
        if not hasattr(value, "__array__"):
            raise TypeError(f"{name}: expected a tensor or an array, got {type(value).__name__}")
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise TypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
        value = torch.tensor(array)  # a copy: an array that is read only, or a part of a file, stays as it is
        value = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    if value.layout != torch.strided or value.is_complex() or value.device.type == "meta":
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {value.layout}, {value.dtype}")
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (N, ...) with at least one value, got {tuple(value.shape)}")
    return check_all(name, value, value.isfinite(), "finite values") if value.is_floating_point() else value


def batches(data: Data, size: int, condition: Condition = None, dtype: torch.dtype | None = None) -> Iterator[Any]:
    """Yield (x, condition) a batch at a time, from a tensor, an array (or a part of a file) or an iterable of batches.

    A batch of an iterable is x itself, or a tuple or list whose first entry is x.
    """
    check_int("batch_size", size, minimum=1)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        if not isinstance(data, Tensor) and (getattr(data, "ndim", 0) < 2 or 0 in data.shape):
            as_data("x", data)  # which says what is wrong
        parts = (data[start : start + size] for start in range(0, len(data), size)) if data.ndim > 1 else [data]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        parts = (batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in data)
    else:
        raise TypeError(f"x: expected a tensor, an array or an iterable of batches, got {type(data).__name__}")
    start = 0
    for part in parts:
        x = as_data("x", part, dtype)
        yield x, take(condition, slice(start, start + len(x)))
        start += len(x)
    if not start:
        raise ValueError("x: expected at least one datum, got none")


def check_repeatable(name: str, once: Tensor, again: Tensor) -> None:
    """Compare two passes over the same rows, the second in a smaller batch; rounding may differ, nothing else."""
    spread = float(once.abs().max())
    allowed = torch.finfo(once.dtype).eps ** 0.5 * max(spread, torch.finfo(once.dtype).tiny)
    apart = float((once - again).abs().max())
    if not apart <= allowed and np.isfinite(spread):
        raise ValueError(
            f"{name}: expected the same from two passes over the same data, got values {apart:.3g} apart. Dropout, a "
            "draw of z or the statistics of the batch enter: call its module's eval(), name it in modules=, or return "
            "parameters instead of a draw"
        )
