"""The registry of claims: each check under its id, to be run by `verify`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

import torch

from vaebook._checks import check_int
from vaebook.claims.evidence import Claim, Evidence, Kind, Measurement, Neighbour

__all__ = ["Claim", "Evidence", "Measurement", "Neighbour", "claim", "ledger", "verify"]

_REGISTRY: dict[str, Claim] = {}


def claim(
    id: str, *, falsehood: str, kind: Kind, source: str, section: str
) -> Callable[[Callable[[torch.Generator], Measurement]], Callable[[torch.Generator], Measurement]]:
    """Register a check under a claim's id.

    Args:
        id: prefix/name, unique, lower case.
        falsehood: the wrong version that the check must reject.
        kind: "exact", "quadrature", "MC", "bound" or "empirical".
        source: who proved it first, or where it is derived.
        section: the chapter that states and proves it under this id, such as "mixture/index".

    Returns:
        A decorator that registers a function (generator → Measurement) and returns it unchanged.

    Raises:
        ValueError: the id is malformed or already registered, the kind is none of these, or a text is empty.

    Example:
        >>> from vaebook.claims import ledger
        >>> "index/joint" in {entry.id for entry in ledger()}
        True

    Source: none; the method of this book.
    """
    texts = dict(falsehood=falsehood, source=source, section=section)
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {get_args(Kind)} for claim {id!r}, got {kind!r}")
    if not re.fullmatch(r"[a-z]+/[a-z0-9-]+", id):
        raise ValueError(f"id: expected prefix/name in lower case, got {id!r}")
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"{name}: expected a text for claim {id!r}, got an empty one")
    if id in _REGISTRY:
        raise ValueError(f"id: expected a new id, got {id!r}, which is already registered")

    def register(check: Callable[[torch.Generator], Measurement]) -> Callable[[torch.Generator], Measurement]:
        _REGISTRY[id] = Claim(id, falsehood, kind, source, section, check)
        return check

    return register


def verify(id: str, *, seed: int = 0) -> Evidence:
    """Run the check of one claim.

    Args:
        id: the claim, such as "index/joint"; `ledger` lists all.
        seed: seed of the generator that the check draws from, a non-negative int.

    Returns:
        The evidence; in a notebook it shows as a table.

    Raises:
        ValueError: there is no claim of that id, or the seed is negative.
        TypeError: the seed is not an int.

    Example:
        >>> evidence = verify("index/joint")
        >>> evidence.holds, evidence.falsehood_rejected
        (True, True)

    Source: none; the method of this book.
    """
    if id not in _REGISTRY:
        raise ValueError(f"id: expected one of {sorted(_REGISTRY)}, got {id!r}")
    seed = check_int("seed", seed, minimum=0)
    return Evidence(_REGISTRY[id], seed, _REGISTRY[id].check(torch.Generator().manual_seed(seed)))


def ledger() -> list[Claim]:
    """List all claims, in the order of registration.

    Returns:
        The claims, with ``id``, ``falsehood``, ``kind``, ``source``, ``section``.

    Example:
        >>> ledger()[0].id
        'gen/elbo-identity'

    Source: none; the method of this book.
    """
    return list(_REGISTRY.values())
