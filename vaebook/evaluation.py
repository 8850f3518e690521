r"""Running somebody's model for inference: in batches, with a condition, in evaluation mode, and the same way twice.

A *condition* (labels, a library size) is one row a datum: a mapping from names to tensors, passed on by name to
whichever function takes that name. A tensor without a name has the name "" and is passed on as the second argument.
"""

from __future__ import annotations

import gc
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.modules.module import register_module_forward_pre_hook

from vaebook._checks import at_least_single, check_finite, check_int, explained, new_seed

Condition = dict[str, Tensor] | None
Data = Tensor | np.ndarray | Iterable[Any]


@contextmanager
def evaluation_mode(*sources: object) -> Iterator[None]:
    """Run what is inside in evaluation mode: no dropout, and batch norm with its running statistics, left untouched.

    Every module that is called inside is seen at the moment of its call, and is put back into training mode at the end
    if it was in it. ``sources`` are modules, or functions around modules, to change at once. Compiled ones run
    uncompiled: each new hook would compile them again, until torch gives them up.
    """
    changed: list[nn.Module] = []

    def see(module: nn.Module, _: object = None) -> None:
        if getattr(module, "training", False):  # a frozen module of TorchScript does not say
            changed.append(module)
            module.training = False

    hook = register_module_forward_pre_hook(see)
    try:
        for part in (part for module in modules_of(*sources) for part in module.modules()):
            see(part)
        compiler = "torch._dynamo" in sys.modules  # whose import takes seconds
        with torch.compiler.set_stance("force_eager") if compiler else nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile")  # and that hooks are called inside of it
            yield
    finally:
        hook.remove()
        for module in changed:
            module.training = True


def modules_of(*sources: object) -> list[nn.Module]:
    """List the modules among some objects, each once.

    Also those behind methods, partials, lambdas and closures, and within distributions and callable objects.
    """
    found, queue, seen = [], list(sources), set()
    for source in queue:  # grows
        if id(source) in seen or isinstance(source, type):
            continue
        seen.add(id(source))
        if isinstance(source, nn.Module):
            found.append(source)
            queue += [part for part in vars(source).values() if isinstance(part, Distribution)]
        elif isinstance(source, partial):
            queue += [source.func, *source.args, *source.keywords.values()]
        elif inspect.ismethod(source):
            queue += [source.__self__] if isinstance(source.__self__, nn.Module) else _held(source.__self__)
        elif inspect.isfunction(source):
            named = [source.__globals__.get(name) for name in source.__code__.co_names]
            cells = [part for cell in source.__closure__ or () for part in gc.get_referents(cell)]  # none if empty
            queue += [*cells, *(value for value in named if isinstance(value, nn.Module)), *(source.__defaults__ or ())]
        elif isinstance(source, Distribution | Transform | list | dict) or callable(source):
            queue += _held(source)
    return found


def _held(source: object) -> list[Any]:
    """List the modules, distributions and transforms that an object refers to, in a dict, in slots or as items."""
    values = (v for part in gc.get_referents(source) for v in (part.values() if isinstance(part, dict) else [part]))
    return [value for value in values if isinstance(value, nn.Module | Distribution | Transform | list | dict)]


def weight_of(*sources: object) -> Tensor | None:
    """Return the first floating-point parameter or buffer, whose dtype and device tell those of a model, or None."""
    tensors = (t for m in modules_of(*sources) for f in (m.parameters, m.buffers) for t in f() if t.is_floating_point())
    return next(tensors, None)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let code that draws from torch's global generator draw from this one, and leave the global one as it was."""
    if generator is None:
        yield
        return
    seed, cards = new_seed(generator, 2**62), [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        for own in (torch.default_generator, *(torch.cuda.default_generators[card.index] for card in cards)):
            own.manual_seed(seed)
        yield


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Let errors about x, which a model calls its input, name the argument that it came from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not str(error).startswith("x: "):
            raise
        raise type(error)(f"{name}{str(error)[1:]}") from error


def call(name: str, function: Callable[..., Any], rows: Tensor, condition: Condition = None) -> Any:
    """Call a part of a model on a batch, with what it takes of the condition."""
    named = {key: value for key, value in (condition or {}).items() if accepts(function, key)}
    second, given = [named.pop("")] if "" in named else [], " with a condition" if condition else ""
    with explained(name, f"it to take a batch of shape {tuple(rows.shape)} and {rows.dtype}{given}"):
        return function(rows, *second, **named)


def accepts(function: Callable[..., Any], name: str, *, unknown: bool = True) -> bool:
    """Tell whether a function takes an argument of this name, the second one for ""; ``unknown`` if it does not say."""
    try:
        parameters = list(inspect.signature(getattr(function, "forward", function)).parameters.values())
    except (TypeError, ValueError):  # built in, without a signature: it gets the whole condition
        return unknown
    # DataParallel, torch.compile and partial say of the module that they call only that they pass on all they get.
    inner = getattr(function, "_orig_mod", getattr(function, "module", getattr(function, "func", None)))
    if callable(inner) and all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return accepts(inner, name, unknown=unknown)
    if name:
        return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
    # return_dict=True, or net=net in a lambda, is no place for a condition
    second = [p for p in parameters[1:2] if p.default is p.empty or p.default is None]
    positional = [p for p in second if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return bool(positional) or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def check_condition(condition: object, num: int | None, *functions: Any, device: Any = None) -> dict[str, Tensor]:
    """Check a condition for ``num`` data (None: not known yet), and that each part of it is taken by some function."""
    given = condition if isinstance(condition, Mapping) else {} if condition is None else {"": condition}
    for key, value in given.items():
        if not isinstance(value, Tensor | np.ndarray) or np.ma.is_masked(value) or not isinstance(key, str):
            wanted = "a tensor with a row for each datum, or tensors by name"
            raise TypeError(f"{_name_of(key)}: expected {wanted}, got {type(value).__name__}")
        if not any(accepts(function, key) for function in functions):
            wanted = f"as {key!r}" if key else "as second argument"
            raise ValueError(f"{_name_of(key)}: expected an encoder or a decoder that takes it {wanted}, got none")
    with explained("condition", "tensors or arrays of numbers"):
        parts = {key: torch.as_tensor(value, device=device) for key, value in given.items()}
    _check_rows(parts, num)
    return parts


def check_order(name: str, data: object, condition: object) -> None:
    """Refuse a loader that shuffles beside a condition whose rows belong to the data in their order."""
    samplers = [getattr(loader, "sampler", None) for loader in (data, getattr(data, "batch_sampler", None))]
    if condition is not None and any("Random" in type(s).__name__ for s in samplers):
        raise ValueError(f"{name}: expected data in the order of their condition, got a DataLoader that shuffles")


def take(condition: Condition, rows: Any) -> Condition:
    """Select rows of a condition."""
    return condition and {name: value[rows] for name, value in condition.items()}


def repeat(condition: Condition, shape: torch.Size) -> Condition:
    """Repeat a condition (B, …) for every row of a batch of this shape, (…, B), flattened."""
    return condition and {k: v.expand(*shape, *v.shape[1:]).reshape(-1, *v.shape[1:]) for k, v in condition.items()}


def as_data(name: str, value: object, dtype: torch.dtype | None = None) -> Tensor:
    """Return data, (N, …), as a tensor: arrays are copied; floating-point ones to ``dtype``, at least float32."""
    if not isinstance(value, Tensor):
        with explained(name, "an array"):
            array = np.asarray(value) if hasattr(value, "__array__") and not np.ma.is_masked(value) else value
        if type(array) is not np.ndarray or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise TypeError(f"{name}: expected a tensor or an array of real numbers, got {_kind(array)}")
        value = torch.from_numpy(np.array(array, f"{array.dtype.kind}{array.dtype.itemsize}", order="C"))  # native
        value = value.to(at_least_single(dtype)) if dtype is not None and value.is_floating_point() else value
    odd = value.is_complex() or value.is_nested or value.is_quantized or value.device.type == "meta"
    if odd or value.layout != torch.strided or (value.is_floating_point() and value.itemsize == 1):
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {value.layout}, {value.dtype}")
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (N, ...) with at least one value, got {tuple(value.shape)}")
    return check_finite(name, value) if value.is_floating_point() else value


def as_tensor(name: str, value: Any) -> Tensor:
    """Copy anything that numpy reads as real numbers into a float32 or float64 tensor, of at most two dimensions."""
    with explained(name, "a dense array of real numbers"):
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(at_least_single(value.dtype))
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    array = array.reshape(len(array), -1) if array.ndim > 2 and len(array) else array
    if array.dtype.kind not in "iuf" or np.ma.is_masked(value):
        raise TypeError(f"{name}: expected an array of real numbers, got {type(value).__name__} of dtype {array.dtype}")
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return torch.from_numpy(array.astype(np.float32 if single else np.float64))


def batches(
    data: Data, size: int, condition: Condition = None, dtype: torch.dtype | None = None, name: str = "x"
) -> Iterator[Any]:
    """Yield (x, condition) a batch at a time, from a tensor, an array (or a part of a file) or an iterable of batches.

    A batch of an iterable is x itself, or a tuple or list whose first entry is x.
    """
    size = check_int("batch_size", size, minimum=1)
    check_order(name, data, condition)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        odd = isinstance(data, Tensor) and (data.is_nested or data.layout != torch.strided)
        refused = odd or getattr(data, "ndim", 0) < 2 or 0 in data.shape  # by as_data
        parts = [data] if refused else (data[start : start + size] for start in range(0, len(data), size))
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes | memoryview | Mapping):
        parts = (batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in data)
    else:
        raise TypeError(f"{name}: expected a tensor, array or iterable of batches (DataLoader), got {_kind(data)}")
    stop = 0
    for part in parts:
        x = as_data(name, part, dtype)
        rows = take(condition, slice(stop, stop + len(x)))
        _check_rows(rows, len(x))
        stop += len(x)
        yield x, rows
    if not stop:
        raise ValueError(f"{name}: expected at least one datum, got none")
    _check_rows(condition, stop)


def whole(name: str, data: Data, dtype: torch.dtype | None = None) -> Tensor:
    """Return all data, (N, …), as one tensor; a tensor stays what it is."""
    parts = [x for x, _ in batches(data, 2**62, dtype=dtype, name=name)]
    with explained(name, "batches of one shape and kind"):
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _check_rows(condition: Condition, num: int | None) -> None:
    for key, value in (condition or {}).items():
        if value.ndim == 0 or num not in (None, len(value)):
            wanted = f"{num or 'N'} rows, one for each datum"
            raise ValueError(f"{_name_of(key)}: expected {wanted}, got shape {tuple(value.shape)}")


def _name_of(key: object) -> str:
    return "condition" if key == "" else f"condition[{key!r}]"


def check_repeatable(name: str, once: Tensor, again: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare two passes over the same rows, the second in a smaller batch; rounding may differ, nothing else.

    ``dtype`` is that of the weights: what was computed in single precision is no more exact for being returned in
    double.
    """
    eps = max(torch.finfo(d).eps for d in (once.dtype, at_least_single(dtype or once.dtype)))
    allowed = float(eps**0.5 * once.nan_to_num(0, 0, 0).abs().max())
    if not torch.allclose(once, again, rtol=0, atol=allowed, equal_nan=True):
        apart = float((once - again).abs().max())
        raise ValueError(
            f"{name}: expected the same from two passes over the same data, got values {apart:.3g} apart. Dropout, a "
            "draw of z, the statistics or the order of the batch enter: call its module's eval(), name it in modules=, "
            "put the batch first, or return parameters instead of a draw"
        )


def _kind(value: object) -> str:
    return f"an array of {value.dtype}" if type(value) is np.ndarray else type(value).__name__
