"""Checks of arguments, so that bad input fails early with one clear sentence.

Every error reads ``name: expected …, got …`` and is a TypeError where the kind of object is wrong, a
ValueError where its content is. These helpers return what they checked, so that they can stand in an assignment.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes in which values are taken."""
NORMALISATION = 1e-5
"""How far from 0 the log-sum of log-weights may be: more is a mistake, less the rounding of single precision."""
MANY = 16
"""Of one batch, fewer logarithms may all be positive by chance; so may those of collapsed codes, but all below 0.1."""


def room() -> int:
    """How many numbers of 8 bytes fit into a quarter of this machine's memory, where it tells: they may be copied."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 32
    except (AttributeError, ValueError, OSError):
        return 2**58


@contextmanager
def explained(name: object, wanted: str, *, within: bool = False) -> Iterator[None]:
    """Turn whatever somebody's code or file brings about into one error that names it.

    What this package says stays as it is; ``within`` a file it becomes a ValueError that begins with the file's name.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, TypeError | ValueError) and ": expected" in str(error)
        if own and not within:
            raise
        told = one_line(next(iter(str(error).strip().splitlines()), ""))[:500]  # torch's go on, a file's may be long
        kind = "" if within and isinstance(error, ValueError) else f"{type(error).__name__}: "  # of files that is usual
        raise ValueError(f"{name}: {told if own else f'expected {wanted}, got {kind}{told}'}") from error


def one_line(text: object) -> str:
    """Write on one line what somebody's file may hold, without what steers a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


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
    free = shape[:1] == ("...",)
    sizes = shape[1:] if free else shape
    tail = value.shape[max(value.ndim - len(sizes), 0) :] if free else value.shape
    if len(sizes) != len(tail) or any(isinstance(w, int) and w != n for w, n in zip(sizes, tail, strict=True)):
        wanted = str(tuple(shape)).replace("'", "")
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
    if not empty and value.numel() == 0:
        raise ValueError(f"{name}: expected at least one element, got shape {tuple(value.shape)}")
    return check_finite(name, value) if finite else value


def check_finite(name: str, value: Tensor) -> Tensor:
    """Raise ValueError that names the first entry that is not finite; where the sum is finite, so is every entry."""
    finite = not value.is_meta and math.isfinite(value.detach().sum())
    return value if finite else check_all(name, value, value.isfinite(), "finite values")


def check_all(name: str, value: Tensor, good: Tensor, expected: str) -> Tensor:
    """Raise ValueError that names the first offending entry unless ``good`` is true everywhere."""
    if good.is_meta:
        raise TypeError(f"{name}: expected {expected}, got a tensor on the meta device, which holds no values")
    if not bool(good.all()):
        index = tuple((~good).nonzero()[0].tolist())
        at = f" at index {index}" * bool(index)
        raise ValueError(f"{name}: expected {expected}, got {value[index].item():.6g}{at}")
    return value


def check_positive(name: str, value: Tensor) -> Tensor:
    """Check that every entry is positive and finite; the message shows the smallest and where it is."""
    low, high = _extremes(value)
    if not 0 < low <= high < math.inf:
        index = tuple((value == check_finite(name, value).min()).nonzero()[0].tolist())
        raise ValueError(f"{name}: expected positive values, got min {value[index].item():.6g} at index {index}")
    return value


def check_unit(name: str, value: Tensor, wanted: str = "values in [0, 1]", *, slack: float = 0.0) -> Tensor:
    """Check that every entry is in [0, 1], or above it by no more than the slack."""
    low, high, most = *_extremes(value), 1 + slack  # one pass, a fraction of what comparing every entry takes
    return value if 0 <= low <= high <= most else check_all(name, value, (value >= 0) & (value <= most), wanted)


def _extremes(value: Tensor) -> tuple[float, float]:
    """Return the least and the largest entry, in one pass; both are nan if some entry is, or if none is known."""
    return (math.nan,) * 2 if value.is_meta or not value.numel() else tuple(map(float, value.detach().aminmax()))


def check_index(
    name: str, value: object, shape: Sequence[int], like: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Check for a tensor of indices of a given shape, on the device of another tensor, each below a size."""
    if not isinstance(value, Tensor) or value.dtype != torch.long or value.layout != torch.strided:
        got = f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a tensor of dtype torch.int64, got {got}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected all arguments on one device, {like.device}, got {value.device}")
    if size and value.numel() and not 0 <= (ends := check_finite(name, value).aminmax()).min <= ends.max < size:
        raise ValueError(f"{name}: expected values in [0, {size}), got {ends.min} to {ends.max}")
    return value


def excess_mass(mean: float, num: int) -> str:
    """Say that a density p has more mass than one, if the mean of log q/p at num draws of q leaves no doubt.

    The product of p/q over draws has an expectation of at most 1 where p has no more mass than q. Hence by Markov's
    inequality the sum of log q/p is below log 1e-5 with a probability of at most 1e-5, whatever p and q are. So it is
    for as many draws from each component of q, of equal weights, or from each of some chosen at random: the product's
    expectation is then at most a power of the mean over components, by the inequalities of the means and of Maclaurin.
    """
    sure = num * (mean + NORMALISATION) < math.log(1e-5)
    return "prior: expected a normalised density, got a negative KL(q_agg | prior)" if sure else ""


def check_log_weight(log_weight: Tensor) -> Tensor:
    """Check that log-weights are those of probabilities, and return the logarithm of their sum, which is nearly 0."""
    total = log_weight.detach().double().logsumexp(0)
    allowed = max(NORMALISATION, 8 * torch.finfo(log_weight.dtype).eps)  # weights in half precision are rough
    if not abs(float(total)) <= allowed:  # also catches nan
        wanted, hint = f"natural logarithms that log-sum to 0 within {allowed:g}", "torch.log_softmax(log_weight, 0)"
        raise ValueError(f"log_weight: expected {wanted}, got {float(total):.6g}; {hint} normalises them")
    return total


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results from arguments of this one: the same, but no less than float32."""
    return torch.promote_types(dtype, torch.float32)


def to_scale(name: str, value: Tensor, spread: str, loc: Tensor | None = None) -> Tensor:
    """Turn std (or scale), var or log_var into standard deviations; warn where the values look like another one.

    ``loc`` are the means of a batch that an encoder returned; without them the values are all that there are.
    """
    if spread in ("var", "log_var"):
        check_tensor(name, value, ("...",))
    low, high = _extremes(value)
    if spread != "log_var" and high < 0:
        raise ValueError(f"{name}: expected positive values, got none; logarithms of variances are named log_var")
    root = check_positive(name, value).sqrt() if spread == "var" else value
    scale, odd = (0.5 * value).exp() if spread == "log_var" else root, ""
    by_chance = loc is not None and (value.numel() < MANY or not high > 0.1)  # in an encoder's batch
    if spread == "log_var" and not by_chance and low > 0:
        odd = "all values are positive, so that every variance is above 1; std or var?"
    elif spread != "log_var" and loc is not None and low > 10 and (scale.amin(0) > 10 * (1 + loc.abs().amax(0))).all():
        odd = "every code is more than ten times as wide as all codes are apart; another spread?"
    if odd:
        warnings.warn(f"{name}: expected {spread} as named, got values that look different: {odd}", stacklevel=2)
    return scale


def check_type(name: str, value: object, kind: type[T], hint: str = "") -> T:
    """Check that an argument is of a class of this package, or of one of several."""
    if not isinstance(value, kind):
        wanted = " or a ".join(one.__name__ for one in getattr(kind, "__args__", (kind,)))
        raise TypeError(f"{name}: expected a {wanted}, got {type(value).__name__}{hint}")
    return value


def check_int(name: str, value: object, minimum: int, maximum: int = 2**63 - 1, each: int = 0, power: int = 1) -> int:
    """Check for an integer n in a range, numpy's included; each * n**power numbers must fit into memory."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    number = int(value)
    if not minimum <= number <= maximum:
        one = f"at least {minimum}" if number < minimum else f"at most {maximum}"
        wanted = f"between {minimum} and {maximum}" if maximum < 2**63 - 1 else one
        raise ValueError(f"{name}: expected an int {wanted}, got {_shown(number)}")
    if each * number**power > room():
        raise ValueError(f"{name}: expected a size that fits into memory, got {_shown(number)}")
    return number


def check_number(
    name: str, value: object, *, minimum: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """Check for a finite real number, at least ``minimum``, strictly above ``above``, strictly below ``below``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got {_shown(value)}") from None
    limits = {"a finite number": math.isfinite(number), f"a number >= {minimum}": number >= minimum}
    limits |= {f"a number > {above}": number > above, f"a number < {below}": number < below}
    if missed := [wanted for wanted, good in limits.items() if not good]:
        raise ValueError(f"{name}: expected {missed[0]}, got {value}")
    return number


def check_choice(name: str, value: object, choices: Sequence[str], wanted: str = "one of") -> Any:
    """Check for one of several words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected {wanted} {', '.join(choices)}, got {one_line(repr(value))[:100]}")
    return value


def check_sizes(name: str, value: object, *, minimum: int = 0, empty: bool = True) -> tuple[int, ...]:
    """Check for a tuple of sizes, each at least ``minimum``; a list or numpy's ints will do."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name}: expected a tuple of ints, got {type(value).__name__}")
    if not value and not empty:
        raise ValueError(f"{name}: expected at least one size, got {value}")
    return tuple(check_int(f"{name}[{i}]", size, minimum=minimum, each=1) for i, size in enumerate(value))


def check_shape(name: str, value: object, dim: int = 1) -> torch.Size:
    """Check for the shape of a draw: a tuple of sizes, none negative; draws of ``dim`` numbers must fit into memory."""
    sizes = check_sizes(name, value)
    check_int(name, math.prod(sizes), minimum=0, maximum=math.prod(sizes), each=dim)
    return torch.Size(sizes)


def _shown(number: Any) -> str:
    """Write a number for a message: long ones by their size."""
    return str(number) if abs(number) < 10**20 else f"one of {int(math.log10(abs(int(number)))) + 1} digits"


def check_generator(generator: object, device: torch.device | None = None) -> torch.Generator | None:
    """Check that ``generator`` is a torch.Generator or None; with ``device``, one of another seeds a new one there."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
    if None in (generator, device) or generator.device == device:
        return generator
    return torch.Generator(device).manual_seed(new_seed(generator))


def check_draw(
    sample_shape: object, generator: object, device: torch.device | None, dim: int
) -> tuple[torch.Size, torch.Generator | None]:
    """Check what every sampler takes: the shape of a draw and a generator; return the one of the device."""
    return check_shape("sample_shape", sample_shape, dim), check_generator(generator, device)


def new_seed(generator: torch.Generator | None, below: int = 2**31) -> int:
    """Draw a seed."""
    return int(torch.randint(below, (), generator=generator, device=getattr(generator, "device", None)))
