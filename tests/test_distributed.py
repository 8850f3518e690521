"""Shards against one process, which holds all components."""

import functools
import itertools
import math
import os
import re
import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torch import distributed

from vaebook import _checks, shards
from vaebook import distributed as module
from vaebook.distributed import ShardedMixture
from vaebook.holes import hole_mass
from vaebook.information import active_units, decompose_kl, kl_per_dimension, mutual_information
from vaebook.mixture import DiagGaussianMixture
from vaebook.population import bracket_information, bracket_mismatch
from vaebook.priors import StandardNormal

DIM = 3
SHARDS = {  # how 60 components are divided
    "two": [(0, 25), (25, 60)],
    "three": [(0, 1), (1, 50), (50, 60)],
    "one is empty": [(0, 30), (30, 30), (30, 60)],
    "the first is empty": [(0, 0), (0, 60)],
}


def seeded():
    return torch.Generator().manual_seed(0)


def whole(weighted=True):
    generator = torch.Generator().manual_seed(0)
    loc = 3 * torch.randn(60, DIM, generator=generator, dtype=torch.float64)
    scale = (0.5 * torch.randn(60, DIM, generator=generator, dtype=torch.float64)).exp()
    log_weight = torch.randn(60, generator=generator, dtype=torch.float64).log_softmax(0)
    log_weight[7] = -torch.inf
    log_weight = log_weight - log_weight.logsumexp(0)
    points = 3 * torch.randn(40, DIM, generator=generator, dtype=torch.float64)
    index = torch.randint(60, (40,), generator=generator)
    return DiagGaussianMixture(loc, scale, log_weight if weighted else None), points, index


def answers(q, z, index):
    value, score = q.log_prob_and_score(z)
    return {
        "log_prob": q.log_prob(z),
        "value": value,
        "score": score,
        "leave-one-out": q.log_prob_leave_one_out(z, index),
        "mean": q.mean,
        "covariance": q.covariance,
        "marginals": q.log_prob_marginals(z),
        "active": active_units(q, threshold=9.0),
        "rates": kl_per_dimension(q),
    }


def answers_of_draws(q):
    """What is estimated from draws, which do not depend on the division."""
    parts = decompose_kl(q, StandardNormal(DIM), marginals=True, num_samples=3000, generator=seeded())
    found = {name: torch.tensor(part[:2]) for name, part in parts._asdict().items() if name != "how"}
    return found | {"told": torch.tensor(mutual_information(q, 3000, generator=seeded())[:2])}


def answers_of_the_population(q, generator=seeded):
    """Brackets and a hole, where the weights are equal and a draw may come from each component in turn."""
    sized = {"num_components": (1,), "num_samples": 40}
    brackets = [
        bracket_mismatch(q, StandardNormal(DIM), densities=[StandardNormal(DIM)], generator=generator(), **sized),
        bracket_information(q, generator=generator(), **sized),
    ]
    hole = hole_mass(q, StandardNormal(DIM), num_samples=400, generator=generator())
    found = {f"bracket {i}": torch.tensor(bracket[:6]) for i, bracket in enumerate(brackets)}
    return found | {"hole": torch.tensor(hole[:5]), "where": hole.points}


def shard(rank, shards, weighted):
    q, z, index = whole(weighted)
    rows = slice(*shards[rank])
    part = ShardedMixture(q.loc[rows], q.scale[rows], q.components()[0][rows] + 5.0 if weighted else None)
    return part, z, index


def joined(rank, size, path, work, *args):
    """Join the group and store what came of the work."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=40)
    )
    torch.save(work(rank, *args), f"{path}/{rank}.pt")
    distributed.destroy_process_group()


def start(size, path, *work, wait=True):
    """Start as many processes, all from one that has torch already: to import it takes seconds."""
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    arguments = (size, str(path), *work)
    return mp.start_processes(joined, arguments, nprocs=size, start_method="forkserver", join=wait)


def everything(rank, layouts):
    found = {}
    for name, weighted in itertools.product(layouts, (True, False)):
        q, z, index = shard(rank, SHARDS[name], weighted)
        drawn, number = q.sample_with_index((4000,), generator=torch.Generator().manual_seed(rank))
        found[f"{name}, {weighted}"] = (
            answers(q, z, index)
            | answers_of_draws(q)
            | ({} if weighted else answers_of_the_population(q))
            | {
                "drawn": drawn,
                "number": number,
                "own": q.log_prob_given(drawn, number),
                "again": q.sample((4000,), generator=torch.Generator().manual_seed(rank)),
            }
        )
    refuses_what_differs(q, z, index, rank)
    last = distributed.get_world_size() - 1
    ends = distributed.new_group([0, last])
    if rank in (0, last):  # one between them goes on
        answers_to_some(ends, min(rank, 1))
    return found


def answers_to_some(group, rank):
    """Processes of a group know their place and number in it, and wait for no other."""
    q, z, index = whole()
    rows = slice(30 * rank, 30 * rank + 30)
    part = ShardedMixture(q.loc[rows], q.scale[rows], q.components()[0][rows], group=group)
    for name, value in answers(q, z, index).items():
        torch.testing.assert_close(answers(part, z, index)[name], value, rtol=1e-10, atol=1e-10, msg=name)


def refuses_what_differs(q, z, index, rank):
    """What the processes do not agree about was added up nevertheless, or torch ended one of them."""
    last = slice(None, 7 - rank)
    calls = [
        ("z", lambda: q.log_prob(z + rank)),
        ("z", lambda: q.log_prob(z[last])),
        ("z", lambda: q.log_prob_and_score(z.roll(rank, 0))),
        ("z", lambda: (q.log_prob, q.log_prob_and_score)[min(rank, 1)](z)),
        ("z and index", lambda: q.log_prob_leave_one_out(z, index.roll(rank, 0))),
        ("z and index", lambda: q.log_prob_given(z[last], index[last])),
        ("z and index", lambda: q.log_prob_given(z + rank, index)),
        ("z and index", lambda: q.log_prob_given(z, index.roll(rank, 0))),
        ("index", lambda: q[index[last]]),
        ("index", lambda: q[(index + rank) % 60]),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=f"^{name}: expected the same in all processes"):
            call()
    with pytest.raises(ValueError, match=r"^sample_shape: expected as many draws"):
        q.sample((4 + rank,), generator=seeded())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the processes of each layout found."""
    results = {}
    for size in (2, 3):
        path = tmp_path_factory.mktemp(f"of{size}")
        layouts = [name for name, shards in SHARDS.items() if len(shards) == size]
        start(size, path, everything, layouts)
        stored = [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(size)]
        results |= {key: [one[key] for one in stored] for key in stored[0]}
    return results


@functools.cache
def of_one_process(weighted):
    """What does not depend on the division: of the whole, of its draws, of all in one shard, and of the population."""
    q, z, index = whole(weighted)
    alone = ShardedMixture(q.loc, q.scale, q.components()[0])
    estimated, plain = answers_of_draws(alone) | {"drawn": alone.sample((4000,), generator=seeded())}, {}
    if not weighted:
        estimated |= answers_of_the_population(alone)
        plain = answers_of_the_population(
            q, lambda: torch.Generator().manual_seed(int(torch.randint(2**30, (1,), generator=seeded())))
        )
    return answers(q, z, index), answers_of_draws(q), estimated, plain


@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "equal weights"])
@pytest.mark.parametrize("name", SHARDS)
def test_shards_are_one_mixture(name, weighted, found):
    one, *others = each = found[f"{name}, {weighted}"]
    q = whole(weighted)[0]
    exact, of_draws, estimated, plain = of_one_process(weighted)
    for name, value in exact.items():
        for answer in each:
            torch.testing.assert_close(answer[name], value, rtol=1e-10, atol=1e-10, msg=name)
    for other in others:  # all processes get the same draws
        assert all(torch.equal(one[name], other[name]) for name in ("drawn", "number", "own", "again"))
    drawn, number = one["drawn"], one["number"]
    assert torch.equal(one["again"], drawn)
    log_weight, loc, scale = q.components()
    own = torch.distributions.Normal(loc[number], scale[number]).log_prob(drawn).sum(1)
    torch.testing.assert_close(one["own"], own, rtol=1e-10, atol=1e-10)
    counts, expected = number.bincount(minlength=60).double(), 4000 * log_weight.exp()
    assert counts[expected == 0].sum() == 0
    chi2 = ((counts - expected).square() / expected)[expected > 0].sum()
    assert 20 < chi2 < 120  # 59 or 58 degrees of freedom
    for part, (value, stderr) in of_draws.items():  # the whole draws in another way
        error = (stderr.square() + one[part][1].square()).sqrt()
        assert abs(one[part][0] - value) <= 4 * error + 1e-10, part
    for part, value in plain.items():
        torch.testing.assert_close(one[part], value, rtol=1e-10, atol=1e-10, msg=part)
    for part, value in estimated.items():
        assert all(torch.equal(answer[part], one[part]) for answer in each), part
        torch.testing.assert_close(one[part], value, rtol=1e-10, atol=1e-10, msg=part)
    error = q.covariance.diagonal().div(4000).sqrt()
    assert bool(((drawn.mean(0) - q.mean).abs() < 5 * error).all())


def test_one_process_without_a_group():
    q, z, index = whole()
    found = answers(ShardedMixture(q.loc, q.scale, q.components()[0]), z, index)
    for name, value in answers(q, z, index).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("points", [7, 39, 40])
def test_many_points_are_answered_in_blocks(points, monkeypatch):
    monkeypatch.setattr(module, "POINTS", points)
    q, z, index = whole()
    found = answers(ShardedMixture(q.loc, q.scale, q.components()[0]), z, index)
    for name, value in answers(q, z, index).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


def test_rows_of_a_memory_map_are_read_in_parts(tmp_path):
    q, z, index = whole()
    for name, value in zip(("w", "loc", "scale"), q.components(), strict=True):
        np.save(tmp_path / f"{name}.npy", value.numpy())
    loc, scale, w = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("loc", "scale", "w"))
    parted = ShardedMixture(loc, scale, w, part_size=7)
    listed = ShardedMixture([loc[:13], loc[13:]], [scale[:13], scale[13:]], [w[:13], w[13:]], part_size=50)
    for name, value in answers(q, z, index).items():
        for found in (parted, listed):
            torch.testing.assert_close(answers(found, z, index)[name], value, rtol=1e-10, atol=1e-10)


class Rows:
    """A source whose rows are not those that its shape promises."""

    def __init__(self, shape, found):
        self.shape, self.found = shape, found

    def __getitem__(self, rows):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


ONES = np.ones((6, 2))
ODD = {
    "fewer rows": (Rows((6, 2), ONES[:5]), "loc: expected rows of shape (6, 2), as the source says, got (5, 2)"),
    "longer rows": (
        Rows((6, 2), np.ones((6, 3))),
        "loc: expected rows of shape (6, 2), as the source says, got (6, 3)",
    ),
    "no rows": (Rows((6, 2), OSError("gone")), "loc: expected rows that can be read, got OSError: gone"),
    "objects": (ONES.astype(object), "loc: expected an array of real numbers"),
    "words": (ONES.astype(str), "loc: expected an array of real numbers"),
    "records": (np.zeros((6, 2), [("a", "f8")]), "loc: expected an array of real numbers"),
    "complex": (ONES.astype(complex), "loc: expected an array of real numbers"),
    "hidden": (np.ma.array(ONES, mask=True), "loc: expected an array of real numbers, got MaskedArray"),
    "sparse": (torch.ones(6, 2).to_sparse(), "loc: expected rows that can be read, got NotImplementedError"),
}


@pytest.mark.parametrize(("rows", "told"), ODD.values(), ids=ODD)
def test_rows_that_are_not_what_their_source_says_name_the_argument(rows, told):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(told)):
        ShardedMixture(rows, torch.ones(6, 2)).log_prob(torch.zeros(1, 2))


def test_components_without_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"^loc: expected one D everywhere, got 0 and 0"):
        ShardedMixture(torch.zeros(6, 0), torch.ones(6, 0))


@pytest.mark.parametrize("kind", [">f8", "f2", "longdouble", "i4", "u1"])
def test_rows_of_any_kind_of_real_number_are_read(kind):
    found = ShardedMixture(np.zeros((6, 2), kind), np.ones((6, 2), kind), np.zeros(6, kind), part_size=4)
    assert found.log_prob(torch.zeros(1, 2)).item() == pytest.approx(-math.log(2 * math.pi))


def test_rows_of_safetensors_files_are_read_in_parts(tmp_path):
    q, z, index = whole(weighted=False)
    slices = {"loc": [], "scale": []}
    for number, rows in enumerate((slice(0, 22), slice(22, 60))):
        save_file({"loc": q.loc[rows].clone(), "scale": q.scale[rows].clone()}, tmp_path / f"{number}.safetensors")
        opened = safe_open(tmp_path / f"{number}.safetensors", "pt")
        for name, those in slices.items():
            those.append(opened.get_slice(name))
    found = answers(ShardedMixture(**slices, part_size=9), z, index)
    for name, value in answers(q, z, index).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


def test_results_have_the_dtype_and_shape_of_the_points():
    q, z, index = whole()
    sharded = ShardedMixture(q.loc.float(), q.scale.float())
    assert sharded.log_prob(z.float().reshape(4, 10, DIM)).dtype == torch.float32
    assert sharded.log_prob(z.reshape(4, 10, DIM)).shape == (4, 10)
    assert sharded.log_prob_leave_one_out(z.reshape(4, 10, DIM), index.reshape(4, 10)).shape == (4, 10)
    assert sharded.log_prob_given(z.reshape(4, 10, DIM), index.reshape(4, 10)).shape == (4, 10)
    assert sharded.log_prob(z[:0]).shape == (0,)
    assert sharded.log_prob(z.half()).dtype == torch.float32
    drawn = sharded.sample_with_index((2, 3), generator=seeded())
    assert [part.shape for part in drawn] == [(2, 3, DIM), (2, 3)]
    assert not sharded.log_prob(z.clone().requires_grad_()).requires_grad
    assert repr(sharded) == "ShardedMixture(num_components=60, dim=3)"


def dies(rank, shards):
    q, z, _ = shard(rank, shards, False)
    q.log_prob(z)
    if rank == 1:
        os.kill(os.getpid(), 9)
    start = time.monotonic()
    try:
        q.log_prob(z)
    except RuntimeError as error:
        return {"told": torch.tensor("one has ended" in str(error)), "after": torch.tensor(time.monotonic() - start)}
    return None


def test_a_process_that_dies_is_one_error_within_a_minute(tmp_path):
    context = start(3, tmp_path, dies, SHARDS["three"], wait=False)
    for process in context.processes:
        process.join(120)
    for rank in (0, 2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["told"]
        assert found["after"] < 60


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"loc": torch.zeros(0, 2), "scale": torch.ones(0, 2)}, ValueError, "loc: expected at least one component"),
        ({"scale": torch.ones(3, 1)}, ValueError, "expected \\(N, D\\), \\(N, D\\) and \\(N\\)"),
        (
            {"log_weight": torch.full((3,), -torch.inf)},
            ValueError,
            "^log_weight: expected numbers below infinity, not all",
        ),
        ({"log_weight": torch.tensor([0, torch.inf, 0])}, ValueError, "^log_weight: .* got a sum of weights of inf"),
        ({"log_weight": torch.tensor([0, torch.nan, 0])}, ValueError, "^log_weight: .* got a sum of weights of nan"),
        ({"log_weight": torch.zeros(2)}, ValueError, "expected \\(N, D\\), \\(N, D\\) and \\(N\\)"),
        ({"log_weight": torch.zeros(1)}, ValueError, "^loc: expected \\(N, D\\), \\(N, D\\) and \\(N\\)"),
        (
            {"loc": torch.zeros(3, 2, 2), "scale": torch.ones(3, 2, 2)},
            ValueError,
            "^loc: expected \\(N, D\\), \\(N, D\\) and \\(N\\) .*, got \\[\\(3, 2, 2\\), \\(3, 2, 2\\)\\]",
        ),
        ({"loc": torch.zeros(3)}, ValueError, "expected \\(N, D\\), \\(N, D\\) and \\(N\\)"),
        ({"loc": torch.zeros(3), "scale": torch.ones(3)}, ValueError, "expected \\(N, D\\), \\(N, D\\) and \\(N\\)"),
        ({"scale": -torch.ones(3, 2)}, ValueError, "scale: expected positive values"),
        ({"part_size": 0}, ValueError, "part_size: expected an int at least 1"),
        ({"loc": 3}, TypeError, "loc: expected rows with a shape, of loc, scale and log_weight, got int$"),
        ({"loc": None}, TypeError, "loc: expected rows with a shape, .*, got NoneType$"),
        ({"scale": None}, TypeError, "loc: expected rows"),
        ({"loc": [torch.zeros(3, 2)], "scale": []}, ValueError, "scale: expected as many"),
        ({"log_weight": []}, ValueError, "^scale: expected as many as loc, 1, got 1, 0 of log_weight"),
        (
            {"loc": [torch.zeros(3, 2), torch.zeros(3, 1)], "scale": [torch.ones(3, 2), torch.ones(3, 1)]},
            ValueError,
            "D",
        ),
    ],
)
def test_bad_input(change, error, told):
    with pytest.raises(error, match=told):
        ShardedMixture(**{"loc": torch.zeros(3, 2), "scale": torch.ones(3, 2)} | change).log_prob(torch.zeros(1, 2))


def test_bad_numbers_of_components():
    q = ShardedMixture(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(TypeError, match="index: expected a tensor of dtype"):
        q.log_prob_leave_one_out(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"index: expected shape \(1,\)"):
        q.log_prob_given(torch.zeros(1, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"index: expected values in \[0, 3\)"):
        q.log_prob_given(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(ValueError, match="z: expected shape"):
        q.log_prob(torch.zeros(1, 3))
    for density in (q.log_prob_given, q.log_prob_leave_one_out):
        for z in (None, "z", [[0.0, 0.0]], torch.zeros(1, 2).to_sparse()):
            with pytest.raises(TypeError, match="z: expected a"):
                density(z, torch.tensor([0]))
        with pytest.raises(TypeError, match=r"index: expected a tensor of dtype torch\.int64, got"):
            density(torch.zeros(1, 2), torch.tensor([0]).to_sparse())


def test_chosen_components_come_into_memory():
    q, _, index = whole()
    parted = ShardedMixture(q.loc.numpy(), q.scale.numpy(), q.components()[0].numpy(), part_size=7)
    for found, wanted in zip(parted[index[:9]].components(), q[index[:9]].components(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"index: expected values in \[0, 60\), got 3 to 60"):
        parted[torch.tensor([60, 3])]
    with pytest.raises(TypeError, match=r"^index: expected a tensor of dtype torch\.int64"):
        parted[[1, 2]]


def test_where_nothing_is_left_it_says_so():
    one = ShardedMixture(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"index: expected other components of positive weight to remain.*\(N = 1\)$"):
        one.log_prob_leave_one_out(torch.zeros(1, 2), torch.tensor([0]))
    weights = torch.tensor([0.0, -torch.inf]).double()
    other = ShardedMixture(torch.zeros(2, 2), torch.ones(2, 2), weights)
    with pytest.raises(ValueError, match=r"index: expected other components of positive weight to remain.*\(N = 2\)$"):
        other.log_prob_leave_one_out(torch.zeros(1, 2), torch.tensor([0]))


def test_far_off_everything_no_number_is_undetermined():
    q = ShardedMixture([torch.zeros(2, 1), torch.ones(1, 1)], [torch.ones(2, 1), torch.ones(1, 1)])
    far = torch.full((1, 1), 1e200, dtype=torch.float64)
    assert q.log_prob(far) == -torch.inf
    with pytest.raises(ValueError, match="z: expected points at which the score is finite"):
        q.log_prob_and_score(far)


def test_drawing_reads_each_part_once(monkeypatch):
    read, reads = shards.Part.read, []
    monkeypatch.setattr(shards.Part, "read", lambda part: (reads.append(part.first), read(part))[1])
    loc = np.zeros((30, 2), dtype=np.float32)
    ShardedMixture(loc, np.ones_like(loc), part_size=10).sample((50,), generator=torch.Generator().manual_seed(0))
    assert reads == [0, 10, 20]


def test_where_nothing_is_drawn_nothing_is_read(monkeypatch):
    monkeypatch.setattr(shards.Part, "read", lambda part: pytest.fail("read for no draw"))
    loc = np.zeros((30, 2), dtype=np.float32)
    z, index = ShardedMixture(loc, np.ones_like(loc)).sample_with_index((4, 0))
    assert z.shape == (4, 0, 2) and index.shape == (4, 0)


def test_what_is_in_memory_is_one_part_and_stays_prepared():
    loc, scale = torch.arange(20.0)[:, None], torch.ones(20, 1)
    for rows, kept, num in ((torch.Tensor, True, 1), (np.asarray, False, 3)):
        q = ShardedMixture(rows(loc), rows(scale), part_size=7)
        once, again = ([mixture for mixture, *_ in q.parts()] for _ in range(2))
        assert [mixture.in_clusters for mixture in once] == [kept] * num
        assert [one is two for one, two in zip(once, again, strict=True)] == [kept] * num


def test_three_files_are_taken_one_after_another():
    q, z, index = whole()
    weight, loc, scale = (list(part.split([20, 10, 30])) for part in q.components())
    found = ShardedMixture(loc, scale, weight)
    for name, value in answers(q, z, index).items():
        torch.testing.assert_close(answers(found, z, index)[name], value, rtol=1e-10, atol=1e-10)


def test_weights_in_single_precision_are_added_up_in_double():
    q, z, _ = whole()
    weight = q.components()[0].float()
    found = ShardedMixture(q.loc.numpy(), q.scale.numpy(), weight.numpy(), part_size=7).log_prob(z)
    exact = DiagGaussianMixture(q.loc, q.scale, weight.double().log_softmax(0)).log_prob(z)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


def test_a_part_far_off_does_not_spoil_the_score_of_the_others():
    loc, one = torch.tensor([[1e200], [0.0]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    value, score = ShardedMixture(loc.split(1), one.split(1)).log_prob_and_score(one[:1])
    torch.testing.assert_close(value, StandardNormal(1).log_prob(one[:1]).double() - math.log(2))
    assert score.tolist() == [[-1.0]]


def test_far_from_the_origin_the_covariance_keeps_its_digits():
    q, *_ = whole()
    far = ShardedMixture(q.loc + 2**24, q.scale, q.components()[0])
    torch.testing.assert_close(far.covariance, q.covariance, rtol=1e-7, atol=1e-7)


def test_a_place_at_an_end_or_past_the_last_is_in_an_interval_of_some_length():
    ends = torch.tensor([0.0, 0.25, 0.25, 1.0, 1.0])
    place = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.5])
    assert module._interval(ends, place).tolist() == [1, 3, 3, 3, 3]


def test_rounding_draws_no_component_without_weight(monkeypatch):
    """Where a part begins, what is left of a place may come out below 0, and its first component has no weight."""
    weight = torch.rand(200, generator=seeded(), dtype=torch.float64).log()
    weight[::2] = -torch.inf
    loc = torch.zeros(200, 1)
    q = ShardedMixture(loc.split(4), (loc + 1).split(4), weight.split(4))
    place = torch.tensor([log_mass for _, log_mass, _ in q.parts()], dtype=torch.float64).exp().cumsum(0)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: place)
    assert bool((q.sample_with_index((50,))[1] % 2 == 1).all())


def test_one_component_in_very_many_is_seen_to_weigh_less():
    """The others weigh so little more than equal weights that it is taken for rounding."""
    weight = torch.zeros(10**5, dtype=torch.float64)
    weight[3] = math.log(0.5)
    q = ShardedMixture(torch.zeros(10**5, 1), torch.ones(10**5, 1), weight)
    assert not shards.has_equal_weights(q)
    assert shards.has_equal_weights(ShardedMixture(torch.zeros(10**5, 1), torch.ones(10**5, 1), 0 * weight))


def test_a_mixture_in_shards_has_no_derivatives():
    q = DiagGaussianMixture(torch.zeros(2, 1, requires_grad=True), torch.ones(2, 1))
    assert q.log_prob(torch.zeros(1, 1)).requires_grad
    assert not module.in_shards("q", q).log_prob(torch.zeros(1, 1)).requires_grad


def test_tensors_are_told_apart_however_they_lie_in_memory():
    rows = torch.arange(6.0).reshape(2, 3)
    assert shards._checksum([rows.mT]) == shards._checksum([rows.mT.contiguous().requires_grad_()])
    assert len({shards._checksum([x]) for x in (rows, rows.mT, rows.reshape(3, 2), rows.flatten())}) == 4


def test_of_what_torch_says_the_first_line_is_told(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("closed by peer\nat a place in the source")

    processes = shards.Processes(False)
    processes.several = True
    monkeypatch.setattr(distributed, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(distributed, "all_reduce", fails)
    with pytest.raises(RuntimeError, match=r"^group: expected an answer of every .* or hangs: closed by peer$"):
        processes.reduced(torch.zeros(1))


LARGE = """
import resource, sys, time
import numpy as np, torch
from safetensors import safe_open
from vaebook.distributed import ShardedMixture

torch.set_num_threads(1)
folder, kind = sys.argv[1:]
if kind == "memory map":
    loc, scale = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("loc", "scale"))
else:
    opened = [safe_open(f"{folder}/{name}.safetensors", "pt") for name in ("loc", "scale")]
    loc, scale = (file.get_slice("rows") for file in opened)
q, start = ShardedMixture(loc, scale), time.perf_counter()
z, index = q.sample_with_index((64,), generator=torch.Generator().manual_seed(0))
log_prob, others = q.log_prob(z), q.log_prob_leave_one_out(z, index)
value, score = q.log_prob_and_score(z)
assert bool(others.isfinite().all() and score.isfinite().all() and (log_prob - value).abs().max() < 1e-9)
# the sum is no less than one of its terms
assert bool((log_prob >= q.log_prob_given(z, index) - np.log(q.num_components) - 1e-9).all())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{kind}: peak {peak:.2f} GiB, {time.perf_counter() - start:.0f} s")
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in KiB")
def test_ten_million_components_need_less_than_two_gigabytes(tmp_path):
    """1.3 GB of float32 in files, read a part at a time, in processes of their own whose memory is measured."""
    num, dim, rows = 10_000_000, 16, 500_000
    for name in ("loc", "scale"):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, (num, dim))
        numbers = np.random.default_rng(0 if name == "loc" else 1)
        for first in range(0, num, rows):
            drawn = numbers.standard_normal((rows, dim), dtype=np.float32)
            array[first : first + rows] = drawn if name == "loc" else np.exp(0.1 * drawn - 1)
        array.flush()
        save_numpy({"rows": array}, tmp_path / f"{name}.safetensors")
        del array
    for kind in ("memory map", "safetensors"):
        command = [sys.executable, "-c", LARGE, str(tmp_path), kind]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        print(run.stdout)
        assert float(run.stdout.split()[-1]) < 2e9 / 2**30


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("backend", "moved"), [("nccl", 1), ("gloo", 0), ("mpi", 0)])
def test_what_only_sends_from_graphics_cards_is_given_what_is_on_one(backend, moved, largest, monkeypatch):
    """Such a backend refused the sums, which are on the processor."""
    given, cards = [], []
    processes = shards.Processes(False)
    processes.several, processes.group = True, "some"
    monkeypatch.setattr(distributed, "get_backend", lambda group: {"some": backend}[group])
    monkeypatch.setattr(torch.Tensor, "cuda", lambda x: (cards.append(x.clone()), cards[0])[1])
    monkeypatch.setattr(distributed, "all_reduce", lambda x, op, group: (given.append((x, op)), x.mul_(3)))
    values = torch.tensor([1.0, 2.0])
    assert processes.reduced(values, largest=largest) is values
    assert values.tolist() == [3, 6] and len(cards) == moved
    sent, op = given[0]
    assert sent is (cards or [values])[0] and op == (distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM)


@pytest.mark.parametrize("place", [0, 1])
def test_a_part_without_weight_keeps_its_components(place):
    """Their densities and numbers do not depend on how components are divided."""
    loc = torch.arange(6.0, dtype=torch.float64)[:, None]
    scale, weight = torch.full_like(loc, 0.5), torch.zeros(6).double()
    weight[3 * place : 3 * place + 3] = -torch.inf
    parts = ShardedMixture(loc.split(3), scale.split(3), (weight - math.log(3)).split(3))
    alone = DiagGaussianMixture(loc, scale, weight - math.log(3))
    index, z = torch.arange(6), torch.zeros(6, 1).double()
    torch.testing.assert_close(parts.log_prob_given(z, index), alone.log_prob_given(z, index))
    torch.testing.assert_close(parts.log_prob(z), alone.log_prob(z))
    torch.testing.assert_close(parts.mean, alone.mean)
    torch.testing.assert_close(parts.covariance, alone.covariance)
    assert torch.equal(parts[index].loc, loc)
    drawn = parts.sample_with_index((200,), generator=torch.Generator().manual_seed(0))[1]
    assert bool((weight[drawn] > -torch.inf).all())


@pytest.fixture
def of_two(monkeypatch):
    """Make this process believe that it is one of two."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda group: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 2)


def test_a_mixture_of_this_process_alone_asks_no_other(of_two, monkeypatch):
    assert shards.Processes(None).size == 2
    monkeypatch.setattr(distributed, "all_reduce", None)
    q, z, index = whole()
    alone = shards.Processes(False)
    assert (alone.rank, alone.size, alone.several) == (0, 1, False)
    for part in (ShardedMixture(*q.components()[1:], q.components()[0], group=False), module.in_shards("q", q)):
        torch.testing.assert_close(part.log_prob(z), q.log_prob(z))
        torch.testing.assert_close(part.log_prob_given(z, index), q.log_prob_given(z, index))


@pytest.mark.parametrize("mark", [0, 2**31, 2**32 - 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_checksums_that_differ_by_one_are_told_apart(of_two, monkeypatch, mark, more):
    other = torch.tensor([mark + more, -mark - more], dtype=torch.float64)
    processes = shards.Processes(None)
    monkeypatch.setattr(shards, "_checksum", lambda values: mark)
    monkeypatch.setattr(processes, "reduced", lambda x, *, largest: torch.maximum(x, other.to(x.dtype)))
    if more == 0:
        processes.agree("z", 1)
    else:
        with pytest.raises(ValueError, match=r"^z: expected the same in all processes, got different ones$"):
            processes.agree("z", 1)


@pytest.mark.parametrize("more", [1, shards.TOLD, 3 * shards.TOLD])
@pytest.mark.parametrize("num", [0, 4])
def test_other_numbers_of_draws_are_told_apart(of_two, monkeypatch, num, more):
    """However far apart they are: also by a multiple of the checksums that there are."""
    sent, processes = [], shards.Processes(None)
    monkeypatch.setattr(processes, "gather", lambda mine: sent.append(mine) or torch.stack([sent[0], mine]))
    assert processes.common(seeded(), num).initial_seed() == processes.common(seeded(), num).initial_seed()
    with pytest.raises(ValueError, match=r"^sample_shape: expected as many draws in all processes, got different"):
        processes.common(seeded(), num + more)


def test_all_draw_with_thirty_bits_of_the_first_process():
    for seed in range(9):
        wanted = int(torch.randint(2**30, (), generator=torch.Generator().manual_seed(seed)))
        common = shards.Processes(None).common(torch.Generator().manual_seed(seed), 2**60)
        assert common.initial_seed() == wanted


@pytest.mark.parametrize("group", [None, False])
def test_what_is_no_generator_is_named(group):
    q = ShardedMixture(torch.zeros(3, 2), torch.ones(3, 2), group=group)
    for draw in (q.sample, q.sample_with_index):
        with pytest.raises(TypeError, match=r"^generator: expected a torch\.Generator or None, got int$"):
            draw((2,), generator=3)


def test_one_shard_draws_on_the_processor_with_a_generator_of_another_device(monkeypatch):
    asked = []
    monkeypatch.setattr(shards, "check_generator", lambda *given: asked.append(given))
    assert shards.Processes(False).common("a", 3) is None
    assert asked == [("a", torch.device("cpu"))]


@pytest.mark.parametrize("name", ["loc", "scale", "log_weight"])
def test_rows_that_cannot_be_read_are_those_of_the_argument_that_is_named(name):
    rows = {"loc": np.zeros((6, 2)), "scale": np.ones((6, 2)), "log_weight": np.zeros(6)}
    rows[name] = Rows(rows[name].shape, OSError("gone"))
    with pytest.raises(ValueError, match=rf"^{name}: expected rows that can be read, got OSError: gone$"):
        ShardedMixture(**rows).log_prob(torch.zeros(1, 2))


def test_of_several_files_some_may_have_no_weights():
    q, z, index = whole()
    log_weight, loc, scale = (part.split([20, 10, 30]) for part in q.components())
    found = ShardedMixture(loc, scale, (log_weight[0], None, log_weight[2]))
    want = DiagGaussianMixture(
        q.loc, q.scale, torch.cat([log_weight[0], torch.zeros(10), log_weight[2]]).log_softmax(0)
    )
    for name, value in answers(want, z, index).items():
        torch.testing.assert_close(answers(found, z, index)[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("shift", [-3000.0, 0.0, 3000.0])
def test_weights_far_from_normalised_are(shift):
    """Also where their sum is below or above every number, and in parts of very different weight."""
    q, z, _ = whole()
    for parts in ([60], [7, 53], [1] * 60):
        log_weight, loc, scale = (part.split(parts) for part in q.components())
        found = ShardedMixture(loc, scale, [weight + shift for weight in log_weight])
        torch.testing.assert_close(found.log_prob(z), q.log_prob(z), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.mean, q.mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("far", [1e2, 1e4])
def test_far_from_all_parts_densities_and_scores_are_right(far):
    """Where every density is 0 in numbers, and only its logarithm is one."""
    q, z, index = whole()
    parts = ShardedMixture(*(list(x.split(20)) for x in (q.loc, q.scale)), list(q.components()[0].split(20)))
    z = z + far
    for name in ("log_prob", "log_prob_and_score", "log_prob_marginals"):
        torch.testing.assert_close(getattr(parts, name)(z), getattr(q, name)(z), rtol=1e-10, atol=1e-10)
    others = parts.log_prob_leave_one_out(z, index)
    torch.testing.assert_close(others, q.log_prob_leave_one_out(z, index), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "num"), [((torch.Tensor, np.asarray), 1), ((np.asarray, torch.Tensor), 3)])
def test_means_tell_whether_components_are_in_parts(rows, num):
    loc, scale = (kind(x) for kind, x in zip(rows, (torch.zeros(20, 1), torch.ones(20, 1)), strict=True))
    q = ShardedMixture(loc, scale, part_size=7)
    assert [first for *_, first in q.parts()] == [0, 7, 14][:num]
    assert len({part.in_clusters for part, *_ in q.parts()}) == 1


def test_the_last_part_may_be_one_row_and_an_empty_file_is_none():
    for size, firsts in ((1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (7, [0]), (8, [0])):
        loc = [np.zeros((0, 1)), np.arange(7.0)[:, None], np.zeros((0, 1))]
        q = ShardedMixture(loc, [np.ones_like(x) for x in loc], part_size=size)
        assert [first for *_, first in q.parts()] == firsts and q.num_components == 7
        assert q.mean.item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("weights", "equal"),
    [
        ([0.5, 0.5], True),
        ([0.5 + 3e-6, 0.5 - 3e-6], True),
        ([0.5 + 3e-5, 0.5 - 3e-5], False),
        ([0.5 - 3e-5, 0.5 + 3e-5], False),
        ([0.5, 0.5, 0.0], False),
        ([0.0, 1.0], False),
        ([1.0], True),
        ([1.0, 0.0], False),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_weights_are_equal_but_for_rounding(weights, equal, apart):
    log_weight = torch.tensor(weights, dtype=torch.float64).log()
    rows = torch.zeros(len(weights), 1), torch.ones(len(weights), 1), log_weight
    q = ShardedMixture(*([x.split(1) for x in rows] if apart else rows))
    assert shards.has_equal_weights(q) is equal


def test_what_is_wrong_with_several_files_is_told_with_its_numbers():
    loc = [torch.zeros(3, 2), torch.zeros(3, 1)]
    with pytest.raises(ValueError, match=r"^loc: expected one D everywhere, got 1 and 2$"):
        ShardedMixture(loc, [x + 1 for x in loc])
    with pytest.raises(ValueError, match=r"^log_weight: .*, got a sum of weights of 0\.0$"):
        ShardedMixture(loc[0], loc[0] + 1, torch.full((3,), -torch.inf))


def test_alone_nothing_is_compared(monkeypatch):
    monkeypatch.setattr(shards, "_checksum", None)
    q, z, index = whole()
    ShardedMixture(q.loc, q.scale).log_prob_given(z, index)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_draws_are_places_among_the_cumulated_weights_and_noise_in_double_precision(shift):
    q, *_ = whole()
    log_weight, loc, scale = q.components()
    generator, num = seeded(), 500
    generator.manual_seed(int(torch.randint(2**30, (), generator=generator)))
    place = torch.rand(num, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, DIM, generator=generator, dtype=torch.float64)
    number = torch.searchsorted(log_weight.exp().cumsum(0), place, right=True)
    for parts in ([60], [1] * 60, [8, 52]):
        found = ShardedMixture(*(x.split(parts) for x in (loc, scale, log_weight + shift)))
        z, index = found.sample_with_index((num,), generator=seeded())
        assert torch.equal(index, number) and torch.equal(z, loc[number] + scale[number] * noise)
        assert torch.equal(found.sample((num,), generator=seeded()), z)


def test_each_component_may_be_a_part_and_left_out():
    q, z, _ = whole()
    q, index = q[:8], torch.arange(40) % 8
    found = ShardedMixture(*(x.split(1) for x in (q.loc, q.scale, q.log_weight)))
    others = found.log_prob_leave_one_out(z, index)
    torch.testing.assert_close(others, q.log_prob_leave_one_out(z, index), rtol=1e-10, atol=1e-10)


def test_components_in_single_precision_have_moments_in_double():
    q, *_ = whole()
    loc, scale = 1e3 + q.loc.float(), q.scale.float()
    double = DiagGaussianMixture(loc.double(), scale.double())
    for found in (ShardedMixture(loc, scale), ShardedMixture(loc.split(9), scale.split(9))):
        torch.testing.assert_close(found.mean, double.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(found.covariance, double.covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (), (1,), (2, 3)])
def test_points_of_any_number_are_answered_in_their_shape_without_derivatives(shape):
    q = whole()[0]
    part, number = ShardedMixture(q.loc, q.scale), torch.zeros(shape, dtype=torch.long)
    z = torch.zeros(*shape, DIM, requires_grad=True)
    assert part.log_prob_leave_one_out(z, number).shape == part.log_prob(z).shape == shape
    given = part.log_prob_given(z, number)
    assert given.shape == shape and given.dtype == torch.float64 and not given.requires_grad
    assert part.log_prob_marginals(z).shape == part.log_prob_and_score(z)[1].shape == (*shape, DIM)
    for density in (part.log_prob_given, part.log_prob_leave_one_out):
        with pytest.raises(ValueError, match=rf"^z: expected shape \(\.\.\., {DIM}\)"):
            density(torch.zeros(*shape, DIM + 1), number)
        with pytest.raises(ValueError, match=r"^index: expected shape"):
            density(z, torch.zeros(*shape, 2, dtype=torch.long))


def test_a_draw_that_does_not_fit_into_memory_is_refused(monkeypatch):
    part = ShardedMixture(torch.zeros(2, DIM), torch.ones(2, DIM))
    monkeypatch.setattr(_checks, "room", lambda: 33 * DIM)
    assert part.sample((33,)).shape == (33, DIM) and part.sample((3, 11)).shape == (3, 11, DIM)
    for shape in ((34,), (2, 17)):
        with pytest.raises(ValueError, match=r"^sample_shape: expected a size that fits into memory"):
            part.sample(shape)
    with pytest.raises(TypeError, match=r"^sample_shape: expected a tuple of ints, got str"):
        part.sample("12")


@pytest.mark.parametrize(("shape", "wanted"), [((), (1,)), ((1, 2), (1,)), ((2, 1, 1), (2,))])
def test_a_choice_of_components_that_is_no_row_names_the_index(shape, wanted):
    part = ShardedMixture(torch.zeros(2, DIM), torch.ones(2, DIM))
    with pytest.raises(ValueError) as error:
        part[torch.zeros(shape, dtype=torch.long)]
    assert str(error.value) == f"index: expected shape {wanted}, got {shape}"


def test_what_is_no_mixture_or_has_other_weights_is_named():
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    q = DiagGaussianMixture(torch.zeros(2, 1), torch.ones(2, 1), weights)
    for one in (q, ShardedMixture(torch.zeros(2, 1), torch.ones(2, 1), weights)):
        torch.testing.assert_close(
            module.in_shards("density", one).log_prob(torch.zeros(1, 1)), q.log_prob(torch.zeros(1, 1))
        )
        with pytest.raises(ValueError, match=r"^density: expected components of equal weight, one for each datum, got"):
            module.in_shards("density", one, equal=True)
    with pytest.raises(TypeError, match=r"^density: expected a DiagGaussianMixture or a ShardedMixture, got int"):
        module.in_shards("density", 3)
