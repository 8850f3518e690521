"""A second device to test with where there is none: tensors that say they are on it, and compute on the processor.

As on a graphics card, no operation takes tensors of both devices, but for numbers (0-d tensors) of the processor and
indices of it; a generator of one device draws nothing on the other; and numpy sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Card:
    """What torch asks of a device's module; draws of the second device come from the processor's generators."""

    is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda *_: None)


_setup_privateuseone_for_python_backend("card", _Card)
CARD = torch.device("card", 0)
aten = torch.ops.aten
_GENERATOR = torch.Generator
INDEXED = {aten.index.Tensor, aten.index_put_.default}
SIZES = {
    aten.sym_size.default: Tensor.size,
    aten.sym_stride.default: Tensor.stride,
    aten.sym_numel.default: Tensor.numel,
    aten.size.default: Tensor.size,
    aten.dim.default: Tensor.dim,
    aten.is_contiguous.default: Tensor.is_contiguous,
}
"""Questions that torch asks of a tensor."""
MARK = 2**63
"""Seeds of generators of the second device are at least this."""
COPIES = {aten._to_copy.default, aten.copy_.default}


class There(Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        """Wrap a tensor of the processor."""
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=CARD,
            dispatch_sizes_strides_policy="sizes",
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        """Show where it is."""
        return f"There({self.held})"

    def item(self) -> Any:
        """Return the only value."""
        return self.held.detach().item()

    def tolist(self) -> Any:
        """Return the values."""
        return self.held.detach().tolist()

    def __bool__(self) -> bool:
        """Return the only value."""
        return bool(self.held)

    def __float__(self) -> float:
        """Return the only value."""
        return float(self.item())

    def __int__(self) -> int:
        """Return the only value."""
        return int(self.item())

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the processor."""
        return run(function, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Generator(_GENERATOR):
    """A generator of the processor or of the second device; inside torch its seed tells which."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Make one on the processor."""
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self.there = torch.device(device).type == CARD.type
        self.manual_seed(0)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return CARD if self.there else torch.device("cpu")

    def manual_seed(self, seed: int) -> Generator:
        """Set the seed."""
        super().manual_seed(MARK * self.there + seed)
        return self

    def clone_state(self) -> Generator:
        """Make another one in the same state, on the same device."""
        return Generator(self.device).set_state(self.get_state())


def convert(what: Any, each: Callable[[Any], Any]) -> Any:
    """Apply a function to all that lists, tuples and dictionaries hold; torch's own walk took half of the time."""
    if isinstance(what, list | tuple):
        made = [convert(part, each) for part in what]
        return made if isinstance(what, list) else tuple(made)
    if isinstance(what, dict):
        return {key: convert(part, each) for key, part in what.items()}
    return each(what)


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold, or refuse it as a graphics card would."""
    if function in SIZES:
        return SIZES[function](args[0].held)
    tensors: list[Tensor] = []

    def held(x: Any) -> Any:
        if isinstance(x, Tensor):
            tensors.append(x)
        return x.held if isinstance(x, There) else x

    plain = convert(args, held), convert(kwargs, held)
    there = [x for x in tensors if isinstance(x, There)]
    device = kwargs.get("device")
    device = None if device is None else torch.device(device)
    generator = kwargs.get("generator")
    target = device.type == "card" if device is not None else bool(there)
    if function in INDEXED:
        if there and not isinstance(args[0], There):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    elif there and function not in COPIES:
        here = [x for x in tensors if not isinstance(x, There) and x.ndim]
        if here:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two, card:0 and cpu!")
    if generator is not None and (generator.initial_seed() >= MARK) != target:
        kinds = ("card", "cpu") if target else ("cpu", "card")
        raise RuntimeError(f"Expected a '{kinds[0]}' device type for generator but found '{kinds[1]}'")
    if device is not None:
        plain[1]["device"] = torch.device("cpu")
    result = function(*plain[0], **plain[1])
    if function is aten.copy_.default:
        return args[0]
    if function._schema.is_mutable and not function.__name__.startswith("_fused"):
        # in place: the tensor that was given comes back
        known = {id(x.held): x for x in there}
        return convert(result, lambda x: known.get(id(x), There(x) if target else x) if isinstance(x, Tensor) else x)
    return convert(result, lambda x: There(x) if target and isinstance(x, Tensor) else x)


def _empty(size: Any, stride: Any, dtype: Any = None, **_: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    here, there = (x.held if isinstance(x, There) else x for x in (source, target))
    there.copy_(here)
    return target


_LIBRARY = library.Library("aten", "IMPL")
_LIBRARY.impl("empty_strided", _empty, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


class _Mode(TorchDispatchMode):
    pass


def _dispatch(mode: _Mode, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return run(function, args, kwargs or {})


# A method that the class is born with, torch wraps against its compiler, which takes a second.
_Mode.__torch_dispatch__ = _dispatch


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Have the second device inside."""
    with patch("torch.Generator", Generator), _Mode():
        yield CARD


def move(module: nn.Module) -> nn.Module:
    """Move a module there."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(There(value.detach()), requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = There(value)
    return module
