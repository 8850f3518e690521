"""What does a mixture that is spread over processes cost? Seconds a call, bytes to send; `make bench` runs it.

One, two and three processes under gloo hold equal shares of a random mixture and call the same methods. Bytes are the
payload of what a process hands to `torch.distributed.all_reduce`, not what its algorithm makes of it. Where processes
are more than processor cores, more of them are not faster: what is measured is what they add. From the seconds of one
process and the bytes follows, on paper, what 10⁸ and 10⁹ components cost. Everything goes to book/results/shards.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import scale
import torch
import torch.multiprocessing as mp
from harness import as_json, provenance, rounded
from torch import Tensor, distributed

from vaebook.distributed import POINTS, ShardedMixture
from vaebook.storage import write_atomically
from vaebook.tables import table

RANKS, ROUNDS, SEED = (1, 2, 3), 3, 0
SETTINGS = ((10_000, 2, 1_000), (10_000, 16, 1_000), (10_000, 16, 4_000), (100_000, 16, 1_000))
"""Components in all, dimensions and points."""
PAPER = ((10**8, 100), (10**9, 1_000))
"""Components and processes of which the cost is computed, one process a core."""
LINK = 1.25e9
"""Bytes a second that each process can send, for the cost on paper: 10 Gbit/s."""
METHODS = {
    "log_prob": lambda q, z, index: q.log_prob(z),
    "log_prob_and_score": lambda q, z, index: q.log_prob_and_score(z),
    "log_prob_leave_one_out": lambda q, z, index: q.log_prob_leave_one_out(z, index),
    "sample": lambda q, z, index: q.sample((len(z),), generator=torch.Generator().manual_seed(SEED)),
}


def payload(method: str, dim: int, points: int, ranks: int) -> int:
    """Bytes that one process hands over in a call, whatever the number of components: float64 throughout.

    A density sends for each point a maximum and a sum, and two numbers a block that tell whether the points agree.
    """
    blocks = -(-points // POINTS)
    numbers = {
        "log_prob": 2 * points + 2 * blocks,
        "log_prob_and_score": (2 + dim) * points + 2 * blocks,
        "log_prob_leave_one_out": 4 * points + 2 * blocks,  # the weight that is left, too
        "sample": (dim + 1) * points + ranks,  # the draws, the components that they came from, and a seed
    }
    return 8 * numbers[method]


def mixture(num: int, dim: int) -> tuple[Tensor, Tensor]:
    """Draw means and scales, distributed as in `scale.mixture`."""
    generator = torch.Generator().manual_seed(SEED)
    loc = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return loc, (0.3 * torch.randn(loc.shape, generator=generator).double() - 1).exp()


def process(rank: int, size: int, folder: str, settings: Any, rounds: int) -> None:
    """Be one of the processes; the first one stores what came of it."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size, timeout=timedelta(minutes=5)
    )
    sent, reduce = [0], distributed.all_reduce

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent[0] += tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **options)

    distributed.all_reduce = counted
    rows = []
    for num, dim, points in settings:
        loc, spread = mixture(num, dim)
        q = ShardedMixture(*(x.tensor_split(size)[rank].clone() for x in (loc, spread)))
        z, index = q.sample_with_index((points,), generator=torch.Generator().manual_seed(SEED + 1))
        exact = scale.oracle(scale.DiagGaussianMixture(loc, spread), z[:10])
        for name, method in METHODS.items():
            method(q, z, index)  # prepares what later calls keep
            seconds, sent[0] = [], 0
            for _ in range(rounds):
                distributed.barrier()
                start = time.perf_counter()
                method(q, z, index)
                seconds.append(time.perf_counter() - start)
            row = {"num": num, "dim": dim, "points": points, "ranks": size, "method": name}
            row |= {"bytes": sent[0] // rounds, "seconds": statistics.median(seconds), "rounds": seconds}
            error = {"error": float((q.log_prob(z[:10]) - exact).abs().max())} if name == "log_prob" else {}
            rows.append(row | error)
    if rank == 0:
        write_atomically(Path(folder, f"{size}.json"), json.dumps(rows).encode())
    distributed.destroy_process_group()


def measure(settings: Any, rounds: int) -> list[dict[str, Any]]:
    """Let one, two and three processes measure."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in RANKS:
            mp.start_processes(process, (size, folder, settings, rounds), nprocs=size, start_method="spawn")
            rows += json.loads(Path(folder, f"{size}.json").read_text())
    return rows


def paper(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute the cost of larger mixtures, from what one process took for the largest that was measured.

    Sums are taken to cost as much a pair of a point and a component as there; an all-reduce sends its payload twice.
    """
    largest = max((row["num"] * row["points"], row["dim"]) for row in rows)
    found = []
    for num, ranks in PAPER:
        for row in rows:
            if row["ranks"] > 1 or row["method"] == "sample" or (row["num"] * row["points"], row["dim"]) != largest:
                continue
            dim, points = row["dim"], row["points"]
            size = payload(row["method"], dim, points, ranks)
            found.append(
                {"num": num, "ranks": ranks, "dim": dim, "points": points, "method": row["method"], "bytes": size}
                | {"seconds": row["seconds"] * num / ranks / row["num"], "link_seconds": 2 * size / LINK}
            )
    return rounded(found, 4)


def main() -> None:
    """Measure, show and store."""
    options = scale.arguments(__doc__, ROUNDS, "shards.json").parse_args()
    rows = rounded(measure(SETTINGS, options.rounds), 4)
    shown = [{key: value for key, value in row.items() if key not in ("rounds", "error")} for row in rows]
    print(table({key: [row[key] for row in shown] for key in shown[0]}), flush=True)
    made = {"provenance": provenance(("torch",)) | {"seed": SEED, "link": LINK}, "rows": rows, "paper": paper(rows)}
    print(table({key: [row[key] for row in made["paper"]] for key in made["paper"][0]}))
    scale.store(options.output, as_json(made) + "\n")


if __name__ == "__main__":
    main()
