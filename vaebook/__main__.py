"""The command `python -m vaebook diagnose codes.npz`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import torch

    from vaebook._checks import check_int, explained, one_line
    from vaebook.aggregate import SPREADS, as_codes
    from vaebook.checkpoint import load_density
    from vaebook.diagnosis import diagnose
    from vaebook.mixture import DiagGaussianMixture
    from vaebook.storage import read_arrays
except KeyboardInterrupt:  # they take seconds
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None

CODES = ("loc", *SPREADS, "log_weight")
HELP = (
    "an npz or safetensors file with loc and one of scale (standard deviations), var (variances) and log_var (their "
    "logarithms), each (N, D), a row for each datum"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 2 where something is wrong with what was given, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m vaebook", description="Tools for the latent space of a VAE.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("diagnose", help="diagnose codes from any framework")
    command.add_argument("codes", metavar="CODES", help=HELP)
    command.add_argument("--held-out", metavar="FILE", help="codes of data that had no part in training, likewise")
    other = "what to compare codes with, if not N(0, I): of save_density, or a mixture as CODES, with its log_weight"
    command.add_argument("--prior", metavar="FILE", help=other)
    command.add_argument("--json", metavar="FILE", help="write the diagnosis as JSON")
    command.add_argument("--html", metavar="FILE", help="write it as one page with pictures")
    command.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    given = parser.parse_args(arguments)
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
        try:
            report = _diagnose(given)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (TypeError, ValueError, OSError, MemoryError) as error:
            print(f"error: {one_line(error) or type(error).__name__}", file=sys.stderr)
            return 2
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    code = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(str(report).encode(code, "backslashreplace").decode(code), flush=True)
    except OSError as error:  # a full disk, a pipe that nobody reads
        sys.stdout = None  # at its end Python would try again
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _diagnose(given: argparse.Namespace) -> Any:
    named = [Path(path).resolve() for path in vars(given).values() if isinstance(path, str)]
    for path in (path for path in (given.json, given.html) if path is not None):
        target = Path(path).resolve()
        if target.is_dir() or not target.parent.is_dir():
            raise ValueError(f"{path}: expected a file in a folder that exists")
        if named.count(target) > 1:
            raise ValueError(f"{path}: expected a file of its own to write to, got one that is named twice")
    check_int("--seed", given.seed, minimum=-(2**63))
    codes, other = _codes(given.codes), None if given.held_out is None else _codes(given.held_out)
    prior = None if given.prior is None else _prior(given.prior)
    report = diagnose(codes, held_out=other, prior=prior, generator=torch.Generator().manual_seed(given.seed))
    if given.json is not None:
        report.to_json(given.json)
    if given.html is not None:
        report.to_html(given.html)
    return report


def _codes(path: str) -> DiagGaussianMixture:
    """Read codes; errors name the file. Leave out what else the file holds, labels for instance."""
    arrays = read_arrays(path, CODES)
    codes = {name: value for name, value in arrays.items() if name in CODES}
    if "loc" not in codes or sum(key in codes for key in SPREADS) != 1:
        held = one_line(", ".join(arrays))[:500] or "nothing"
        raise ValueError(f"{path}: expected loc and exactly one of {', '.join(SPREADS)}, got {held}")
    with explained(path, "codes", within=True):
        return as_codes("codes", codes)


def _prior(path: str) -> Any:
    arrays = read_arrays(path, ())
    return _codes(path) if "loc" in arrays and any(key in arrays for key in SPREADS) else load_density(path)


if __name__ == "__main__":
    sys.exit(main())
