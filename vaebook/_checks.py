"""Checks of arguments, so that bad input fails early with one clear sentence.

Every error reads ``name: expected …, got …`` and is a TypeError where the kind of object is wrong, a
ValueError where its content is. These helpers return what they checked, so that they can stand in an assignment.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes in which values are taken."""
NORMALISATION = 1e-5
"""How far from 0 the log-sum of log-weights may be: more is a mistake, less the rounding of single precision."""


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[int | str | None],
    *,
    finite: bool = True,
    empty: bool = False,
    like: Tensor | None = None,
) -> Tensor:
    """Check for a floating-point tensor of a given shape.

    ``shape`` holds one entry a dimension: an int for a fixed size, a letter for a free one (the letter is
    shown in the error message). A leading ``...`` allows any number of dimensions in front. ``like`` is a tensor on
    whose device it must be.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        bits = " of 16 to 64 bits" if value.is_floating_point() else ""
        raise TypeError(f"{name}: expected a floating-point tensor{bits}, got dtype {value.dtype}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected all arguments on one device, {like.device}, got {value.device}")
    if finite and value.is_meta:
        raise TypeError(f"{name}: expected a tensor with values, got one on device meta")
    leading = bool(shape) and shape[0] == "..."
    sizes = list(shape[1:]) if leading else list(shape)
    wanted = "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
    tail = list(value.shape[value.ndim - len(sizes) :]) if value.ndim >= len(sizes) else None
    fits = tail is not None and (leading or value.ndim == len(sizes))
    if not fits or any(isinstance(w, int) and w != got for w, got in zip(sizes, tail or [], strict=False)):
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
    if not empty and value.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {tuple(value.shape)}")
    if finite:
        check_all(name, value, torch.isfinite(value), "finite values")
    return value


def check_all(name: str, value: Tensor, good: Tensor, expected: str) -> Tensor:
    """Raise ValueError that names the first offending entry unless ``good`` is true everywhere."""
    if good.is_meta:
        raise TypeError(f"{name}: expected {expected}, got a tensor on the meta device, which holds no values")
    if not bool(good.all()):
        index = tuple(int(i) for i in (~good).nonzero()[0])
        at = f" at index {index}" if index else ""
        raise ValueError(f"{name}: expected {expected}, got {value[index].item():.6g}{at}")
    return value


def check_positive(name: str, value: Tensor) -> Tensor:
    """Check that every entry is positive and finite; the message shows the smallest and where it is."""
    check_all(name, value, torch.isfinite(value), "finite values")
    lowest = value.min()
    if not bool(lowest > 0):
        flat = int(value.argmin())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), value.shape))
        raise ValueError(f"{name}: expected positive values, got min {lowest.item():.6g} at index {index}")
    return value


def check_index(
    name: str, value: object, shape: Sequence[int], like: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Check for a tensor of indices of a given shape, on the device of another tensor, each below a size."""
    if not isinstance(value, Tensor) or value.dtype != torch.long:
        got = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name}: expected a tensor of dtype torch.int64, got {got}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected all arguments on one device, {like.device}, got {value.device}")
    if size is not None and value.numel() and not 0 <= (ends := value.aminmax()).min <= ends.max < size:
        raise ValueError(f"{name}: expected values in [0, {size}), got {ends.min} to {ends.max}")
    return value


def check_log_weight(log_weight: Tensor) -> Tensor:
    """Check that log-weights are those of probabilities, and return the logarithm of their sum, which is nearly 0."""
    total = log_weight.detach().double().logsumexp(0)
    allowed = max(NORMALISATION, 8 * torch.finfo(log_weight.dtype).eps)  # weights in half precision are rough
    if not abs(float(total)) <= allowed:  # also catches nan
        raise ValueError(
            f"log_weight: expected natural logarithms that log-sum to 0 within {allowed:g}, got {float(total):.6g}; "
            "torch.log_softmax(log_weight, 0) normalises them"
        )
    return total


def check_bool(name: str, value: object) -> bool:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return value


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results from arguments of this one: the same, but no less than float32."""
    return torch.promote_types(dtype, torch.float32)


def check_spread(name: str, value: Tensor) -> Tensor:
    """Turn a spread that is named, scale, var or log_var, into standard deviations; see that it looks like its name."""
    if name != "log_var" and value.numel() and bool((value < 0).all()):
        raise ValueError(f"{name}: expected positive values, got only negative ones; logarithms are named log_var")
    if name == "log_var" and bool((value > 0).all()):
        message = "log_var: all values are positive, so that all scales are above 1; are they what log_var means?"
        warnings.warn(message, stacklevel=3)
    if name == "scale":
        return value
    check_tensor(name, value, ("...",))
    return check_positive(name, value.double()).sqrt() if name == "var" else (0.5 * value.double()).exp()


def check_type(name: str, value: object, kind: type[T], hint: str = "") -> T:
    """Check that an argument is of a class of this package, or of one of several."""
    if not isinstance(value, kind):
        wanted = " or a ".join(one.__name__ for one in getattr(kind, "__args__", (kind,)))
        raise TypeError(f"{name}: expected a {wanted}, got {type(value).__name__}{hint}")
    return value


def check_int(name: str, value: object, *, minimum: int, maximum: int = 2**63 - 1) -> int:
    """Check for an integer in a range, numpy's included."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number = int(value)
    if not minimum <= number <= maximum:
        wanted = f"at least {minimum}" if number < minimum else f"at most {maximum}"
        if maximum < 2**63 - 1:
            wanted = f"between {minimum} and {maximum}"
        raise ValueError(f"{name}: expected an int {wanted}, got {_shown(number)}")
    return number


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Check for a finite real number, at least ``minimum``, strictly above ``above``, strictly below ``below``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got {_shown(value)}") from None
    limits = [
        (minimum is None or number >= minimum, f"a number >= {minimum}"),
        (above is None or number > above, f"a number > {above}"),
        (below is None or number < below, f"a number < {below}"),
        (math.isfinite(number), "a finite number"),
    ]
    for good, wanted in limits:
        if not good:
            raise ValueError(f"{name}: expected {wanted}, got {value}")
    return number


def check_shape(name: str, value: object) -> torch.Size:
    """Check for a tuple of sizes, none negative; a list or numpy's ints will do."""
    if not isinstance(value, (tuple, list)) or any(isinstance(n, bool) or not isinstance(n, Integral) for n in value):
        raise TypeError(f"{name}: expected a tuple of ints, got {value!r}")
    sizes = tuple(int(size) for size in value)
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name}: expected no negative sizes, got {sizes}")
    if math.prod(sizes) >= 2**63:
        raise ValueError(f"{name}: expected fewer than 2^63 draws, got {_shown(math.prod(sizes))}")
    return torch.Size(sizes)


def _shown(number: Any) -> str:
    """Write a number for a message: long ones by their size."""
    return str(number) if abs(number) < 10**20 else f"one of {int(math.log10(abs(number))) + 1} digits"


def check_generator(generator: object, device: torch.device | None = None) -> torch.Generator | None:
    """Check that ``generator`` is a torch.Generator or None; with ``device``, one of another seeds a new one there."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
    if None in (generator, device) or generator.device == device:
        return generator
    return torch.Generator(device).manual_seed(new_seed(generator))


def new_seed(generator: torch.Generator | None, below: int = 2**31) -> int:
    """Draw a seed."""
    return int(torch.randint(below, (), generator=generator, device=getattr(generator, "device", None)))
