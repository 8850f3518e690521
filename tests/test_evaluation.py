"""A model is run for inference in evaluation mode, twice the same, on data and conditions of any form."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from vaebook import evaluation
from vaebook.adapters import adapt, adapt_decoder
from vaebook.aggregate import aggregated_posterior
from vaebook.evaluation import as_data, evaluation_mode, modules_of
from vaebook.priors import StandardNormal

N, P, D = 37, 6, 2
X = torch.randn(N, P, generator=torch.Generator().manual_seed(0))
W = torch.randn(P, 2 * D, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """An encoder with dropout and batch norm, of which one layer is frozen."""

    def __init__(self, num_in=P, num_out=2 * D):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.frozen = nn.BatchNorm1d(num_in), nn.BatchNorm1d(num_in)
        self.net = nn.Sequential(nn.Linear(num_in, 8), nn.Dropout(0.5), nn.Linear(8, num_out))
        for _ in range(3):  # running statistics of its own
            self(3 + 2 * torch.randn(50, num_in))
        self.train()
        self.frozen.eval()

    def forward(self, x):
        return self.net(self.frozen(self.norm(x)))

    def encode(self, x):
        return F.dropout(self(x), 0.5, self.training).chunk(2, 1)

    def quiet(self, x):
        """Nothing that is called tells that this module is in training mode."""
        return F.dropout(x @ self.net[0].weight.mT, 0.5, self.training)[:, : 2 * D].chunk(2, 1)

    def state(self):
        modes = [module.training for module in self.modules()]
        return modes, {name: value.clone() for name, value in self.state_dict().items()}


def assert_same_state(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())


class Plain:
    """An object that is no module and holds one."""

    def __init__(self, net):
        self.net = net

    def encode(self, x):
        return self.net.encode(x)


def closure(net):
    def encode(x):
        return net(x).chunk(2, 1)

    return lambda x: encode(x)


@pytest.mark.slow  # torch's compiler takes seconds to import
@pytest.mark.parametrize("way", [lambda net: net, lambda net: lambda x: net(x), lambda net: net.forward])
def test_compiled_modules_run_in_evaluation_mode_without_a_warning(way):
    """Torch warns of the hook that finds hidden modules at each call of a compiled one."""
    net = Net()
    compiled = []
    before, call = net.state(), way(torch.compile(net, backend=lambda graph, _: compiled.append(graph) or graph))
    vae = adapt(lambda x: call(x).chunk(2, 1), spread="log_var")
    with warnings.catch_warnings(action="error"):
        q = aggregated_posterior(vae, X)
    assert_same_state(before, net.state())
    assert compiled == []  # for each new hook it would be compiled again, until torch gives it up
    torch.testing.assert_close(q.loc, net.eval()(X)[:, :D].detach())
    call(X)
    assert len(compiled) == 1


def test_what_a_model_warns_of_is_still_heard():
    with warnings.catch_warnings(record=True) as told, evaluation_mode():
        warnings.simplefilter("always", append=True)
        for message in ("of somebody's own", "Using `torch.compile(module)` when there are global hooks", "more"):
            warnings.warn(message, stacklevel=1)
    assert [str(one.message) for one in told] == ["of somebody's own", "more"]


HIDDEN = {}
WAYS = {
    "lambda": lambda net: lambda x: net(x).chunk(2, 1),
    "closure of a closure": closure,
    "partial": lambda net: partial(lambda n, x: n(x).chunk(2, 1), net),
    "partial by name": lambda net: partial(lambda x, n: n(x).chunk(2, 1), n=net),
    "default argument": lambda net: lambda x, n=net: n(x).chunk(2, 1),
    "method": lambda net: net.encode,
    "lambda around a method": lambda net: lambda x: net.encode(x),
    "method of an object": lambda net: Plain(net).encode,
    "found nowhere but called": lambda net: lambda x: HIDDEN["net"](x).chunk(2, 1),
}


@pytest.mark.parametrize("way", WAYS)
def test_encoders_run_in_evaluation_mode(way):
    net = HIDDEN["net"] = Net()
    before = net.state()
    vae = adapt(WAYS[way](net), spread="log_var")
    q = aggregated_posterior(vae, X, batch_size=5)
    with vae.evaluating(X):
        again = vae.encode(X)
    assert_same_state(before, net.state())
    expected = net.eval()(X)
    torch.testing.assert_close(q.loc, expected[:, :D])
    torch.testing.assert_close(q.scale, (expected[:, D:] / 2).exp())
    torch.testing.assert_close(again.base_dist.loc, expected[:, :D])


@pytest.mark.parametrize("way", [lambda net: net, lambda net: lambda z: net(z), lambda net: net.forward])
def test_decoders_run_in_evaluation_mode(way):
    net = Net(D, P)
    before = net.state()
    vae = adapt(lambda x: (x[:, :D], x[:, :D].exp()), way(net), likelihood="bernoulli_logits")
    x, z = X.sigmoid(), torch.randn(3, N, D)
    only = adapt_decoder(vae.decoder, StandardNormal(D))
    values = []
    for model in (vae, only):
        with model.evaluating(x):
            values.append(model.log_likelihood(z, x))
    means = vae.sample(20, generator=torch.Generator().manual_seed(0))
    assert_same_state(before, net.state())
    net.eval()
    logits = torch.stack([net(row[None])[0] for row in z.reshape(-1, D)]).reshape(3, N, P)
    expected = (x * logits - F.softplus(logits)).sum(-1).double()
    for value in values:
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    z = vae.prior.sample((20,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(means, net(z).sigmoid())


def test_modes_and_statistics_come_back_after_an_error():
    net = Net()
    before = net.state()

    def fail(x):
        net(x)
        raise KeyError("no such thing")

    with pytest.raises(ValueError, match=r"encoder: expected it to take a batch of .*, got KeyError: 'no such thing'"):
        aggregated_posterior(fail, X)
    with pytest.raises(RuntimeError, match="mine"), evaluation_mode(net):
        raise RuntimeError("mine")
    assert_same_state(before, net.state())
    net(X)  # no hook is left behind
    assert not torch.equal(before[1]["norm.running_mean"], net.norm.running_mean)


def test_a_hidden_module_is_named():
    """A draw that only the mode of a module decides, where no call tells the module."""
    net = HIDDEN["net"] = Net()
    encode = lambda x: HIDDEN["net"].quiet(x)  # noqa: E731
    with pytest.raises(ValueError, match=r"encoder: expected the same from two passes .* name it in modules="):
        aggregated_posterior(adapt(encode, spread="log_var"), X)
    vae = adapt(encode, spread="log_var", modules=(net,))
    q = aggregated_posterior(vae, X)
    torch.testing.assert_close(q.loc, net.eval().quiet(X)[0])


def ones(loc):
    return loc, torch.ones_like(loc)


@pytest.mark.parametrize(
    "encode",
    [
        lambda x: ones(F.dropout(x, 0.5, training=True)),
        lambda x: ones(x + torch.randn_like(x)),
        lambda x: ones((x - x.mean(0)) / x.std(0)),
        lambda x: ones(nn.BatchNorm1d(P, track_running_stats=False)(x)),
        lambda x: ones(torch.softmax(x @ x.mT, 1) @ x),  # attention of a datum to the others in the batch
        lambda x: (x, torch.rand_like(x) + 0.1),
    ],
    ids=["dropout", "draw", "statistics of the batch", "batch norm", "attention", "random scale"],
)
def test_an_encoder_that_does_not_repeat_itself_is_refused(encode):
    for run in (lambda: aggregated_posterior(encode, X), lambda: adapt(encode).evaluating(X).__enter__()):
        with pytest.raises(ValueError, match="encoder: expected the same from two passes over the same data, got"):
            run()


@pytest.mark.parametrize(
    "decode",
    [
        lambda z: Normal(F.dropout(z @ W[:D, :P // 2].repeat(1, 2), 0.5), 1.0),
        lambda z: Normal((z @ W.mT[:D] - (z @ W.mT[:D]).mean(0)), 1.0),
        lambda z: Normal(nn.MultiheadAttention(D, 1)(z, z, z)[0] @ W.mT[:D], 1.0),
    ],
    ids=["dropout", "statistics of the batch", "attention"],
)  # fmt: skip
def test_a_decoder_that_does_not_repeat_itself_is_refused(decode):
    vae = adapt(lambda x: ones(x[:, :D]), decode)
    for model in (vae, adapt_decoder(decode, StandardNormal(D))):
        with pytest.raises(ValueError, match="decoder: expected the same from two passes"), model.evaluating(X):
            pass


def test_rounding_and_infinite_log_likelihoods_are_no_difference():
    x = (X > 0).float()
    sure = torch.zeros(P).index_fill(0, torch.tensor([0]), 1.0)
    vae = adapt(
        lambda x: ones(x[:, :D]), lambda z: Independent(Bernoulli(sure.expand(len(z), P), validate_args=False), 1)
    )
    net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(32, 2 * D))
    wide = adapt(lambda x: ones(net(1e4 * x[:, None])))
    with vae.evaluating(x), wide.evaluating(X):
        pass


LONG = np.dtype(np.longdouble).itemsize > 8  # which torch has not


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], i


class TestData:
    @staticmethod
    def encode(x):
        return ones(x @ W[:, :D])

    @pytest.mark.parametrize("batch_size", [1, 5, N, 1000])
    def test_every_form(self, batch_size, tmp_path):
        np.save(tmp_path / "x.npy", X.numpy())
        read_only = X.numpy().copy()
        read_only.flags.writeable = False
        forms = [
            X,
            X.numpy(),
            X.numpy().astype("float64"),
            X.numpy().astype(">f4"),
            read_only,
            np.load(tmp_path / "x.npy", mmap_mode="r"),
            X.numpy()[::-1][::-1],
            X.t().contiguous().t(),
            X.split(4),
            [X[:3], X[3:].numpy()],
            (x for x in X.split(7)),
            ((x, "anything") for x in X.split(7)),
            DataLoader(X, batch_size=8),
            DataLoader(TensorDataset(X, torch.arange(N)), batch_size=8),
            DataLoader(Rows(), batch_size=6),
        ]
        net = nn.Linear(P, 2 * D)
        vae = adapt(lambda x: net(x).chunk(2, 1), spread="log_var")
        for data in forms:
            q = aggregated_posterior(vae, data, batch_size=batch_size)
            torch.testing.assert_close(q.loc, net(X)[:, :D].detach())
        for data in (f for f in forms if not hasattr(f, "__next__")):
            x, _ = vae.data(data)
            assert torch.equal(x, X)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, np.int32, np.uint8, np.bool_])
    def test_integers_go_through_as_they_are(self, dtype):
        seen, x = [], X > 0
        x = x.to(dtype) if isinstance(dtype, torch.dtype) else x.numpy().astype(dtype)
        q = aggregated_posterior(lambda x: (seen.append(x.dtype), ones(x.float()))[1], x)
        assert torch.equal(q.loc, (X > 0).float())
        assert not seen[0].is_floating_point

    def test_a_memory_map_is_read_a_batch_at_a_time_and_never_written(self, tmp_path):
        array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1000, P))
        array[:] = 1
        array.flush()
        array, sizes = np.load(tmp_path / "x.npy", mmap_mode="r+"), []

        def encode(x):
            sizes.append(len(x))
            return ones(x.mul_(2.0))

        q = aggregated_posterior(encode, array, batch_size=100)
        assert max(sizes) == 100
        assert q.num_components == 1000
        assert bool((array == 1).all())

    def test_a_generator_is_read_once_and_not_ahead(self):
        events = []

        def stream():
            for number in range(4):
                events.append(f"read {number}")
                yield X[:3] + number

        aggregated_posterior(lambda x: (events.append("encode"), self.encode(x))[1], stream())
        assert [e for e in events if e != "encode"] == [f"read {n}" for n in range(4)]
        assert events.index("encode") == 1

    @pytest.mark.parametrize("split", [1, 4, N])
    def test_a_condition_goes_along(self, split):
        y = torch.arange(N)[:, None]
        expected = X[:, :D] + y
        by_name = lambda x, *, label: ones(x[:, :D] + label)  # noqa: E731
        for data in (X, X.numpy(), X.split(split), (x for x in X.split(split))):
            q = aggregated_posterior(by_name, data, condition={"label": y}, batch_size=split)
            assert torch.equal(q.loc, expected)
        q = aggregated_posterior(lambda x, y: ones(x[:, :D] + y), X.split(split), condition=y.numpy())
        assert torch.equal(q.loc, expected)

    @pytest.mark.parametrize("num", [0, 1, N - 1, N + 1])
    @pytest.mark.parametrize("data", [X, X.split(5), X.split(36)], ids=["whole", "batches", "last of one"])
    def test_a_condition_of_other_rows_is_refused(self, num, data):
        with pytest.raises(ValueError, match=r"condition: expected .* rows, one for each datum, got shape"):
            aggregated_posterior(lambda x, y: ones(x[:, :D] + y), data, condition=torch.zeros(num, 1))

    @pytest.mark.parametrize(
        ("error", "match", "data"),
        [
            (TypeError, "x: expected a tensor or an array of .* got an array of complex", np.ones((2, 2)) * 1j),
            (TypeError, "got an array of object", np.array([[object()]])),
            (TypeError, "got an array of (complex|float)", np.ones((2, P), np.longdouble) * (1 if LONG else 1j)),
            (TypeError, "got an array of <U1", np.array([["a"]])),
            (TypeError, "got an array of datetime64", np.array([["2020-01-01"]], dtype="datetime64[D]")),
            (TypeError, r"x: expected a tensor, array or iterable of batches \(DataLoader\), got NoneType", None),
            (TypeError, r"iterable of batches \(DataLoader\), got str", "x"),
            (TypeError, r"iterable of batches \(DataLoader\), got dict", {"x": X}),
            (TypeError, r"\(DataLoader\), got TensorDataset", torch.utils.data.TensorDataset(X)),
            (TypeError, "x: expected a tensor or an array of real numbers, got dict", [{"x": X}]),
            (TypeError, "x: expected a dense tensor of real numbers", X.to_sparse()),
            (TypeError, "x: expected a dense tensor of real numbers", X.to(torch.float8_e4m3fn)),
            (TypeError, "x: expected a dense tensor of real numbers", X.to("meta")),
            (TypeError, "x: expected a dense tensor of real numbers", X.to(torch.complex64)),
            (TypeError, "x: expected a dense tensor of real numbers", torch.nested.nested_tensor([X, X[:2]])),
            (ValueError, "x: expected at least one datum, got none", []),
            (ValueError, "x: expected at least one datum, got none", iter(())),
            (ValueError, r"x: expected shape \(N, ...\) with at least one value, got \(3, 0\)", X[:3, :0]),
            (ValueError, r"x: expected shape \(N, ...\) .* got \(0, 6\)", [X, X[:0]]),
            (ValueError, "x: expected finite values, got nan at index", np.full((2, P), np.nan)),
            (ValueError, "encoder: expected it to take a batch of shape", [X, X[:, :4]]),
        ],
    )  # fmt: skip
    def test_bad(self, error, match, data):
        with pytest.raises(error, match=match):
            aggregated_posterior(self.encode, data)
        if "encoder" not in match:
            with pytest.raises(error, match=match.replace("x:", "held_out:")):
                adapt(self.encode).data(data, name="held_out")

    def test_batches_that_do_not_fit_together(self):
        with pytest.raises(ValueError, match="x: expected batches of one shape and kind, got RuntimeError"):
            adapt(self.encode).data([X, X[:, :4]])

    @pytest.mark.parametrize("kind", ["B", "H", "I", "L", "b", "h", "i", "q", "e", "f", "d", "?"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_every_kind_of_number(self, kind, order):
        array = np.array([[1, 0], [1, 1]]).astype(np.dtype(kind).newbyteorder(order))
        assert as_data("x", array).tolist() == array.tolist()


def test_the_first_data_are_enough_for_one():
    """One datum has no half: it is compared with itself."""
    q = aggregated_posterior(lambda x: ones(x), X[:1])
    assert torch.equal(q.loc, X[:1])


def test_a_condition_is_repeated_for_every_row_of_a_batch_of_codes():
    """Codes (4, 3): the rows of the condition belong to the last dimension, and come four times, in order."""
    condition = {"a": torch.arange(6.0).reshape(3, 2), "b": torch.arange(3)}
    repeated = evaluation.repeat(condition, torch.Size([4, 3]))
    assert repeated["a"].shape == (12, 2) and repeated["b"].tolist() == [0, 1, 2] * 4
    torch.testing.assert_close(repeated["a"].reshape(4, 3, 2)[2], condition["a"])
    assert evaluation.repeat(None, torch.Size([4, 3])) is None


def test_rows_of_a_condition_are_taken():
    rows = slice(1, 3)
    assert evaluation.take(None, rows) is None
    assert evaluation.take({"a": torch.arange(4)}, rows)["a"].tolist() == [1, 2]


@pytest.mark.parametrize("error", [1e-4, 1e-3])
def test_two_passes_may_differ_by_the_root_of_the_rounding(error):
    """In single precision by 3e-4 of the largest value."""
    once = torch.tensor([0.0, 1.0, -2.0, torch.inf, torch.nan])
    again = once + torch.tensor([2 * error, 0, 0, 0, 0])
    if error < 3e-4:
        evaluation.check_repeatable("encoder", once, again)
    else:
        with pytest.raises(ValueError, match=r"^encoder: expected the same from two passes .* got values"):
            evaluation.check_repeatable("encoder", once, again)


def test_a_generator_stands_for_the_global_one_and_leaves_it_alone():
    state = torch.get_rng_state()
    with evaluation.seeded(torch.Generator().manual_seed(0)):
        one = torch.rand(3)
    with evaluation.seeded(torch.Generator().manual_seed(0)):
        two = torch.rand(3)
    assert torch.equal(one, two) and torch.equal(torch.get_rng_state(), state)
    with evaluation.seeded(None):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("found nowhere")])
def test_modules_are_found_behind_functions(way):
    net = Net()
    assert evaluation.modules_of(WAYS[way](net)) == [net]
    assert evaluation.modules_of(WAYS[way](net), net, WAYS[way](net)) == [net]


GLOBAL, TABLE = nn.Linear(2, 2), {"a": 1}


def test_modules_are_found_among_globals_and_nothing_else_is():
    assert evaluation.modules_of(lambda x: (GLOBAL(x), TABLE), 3, None, TABLE) == [GLOBAL]


class Weights(nn.Module):
    def __init__(self, parameters=(), buffers=()):
        super().__init__()
        for number, dtype in enumerate(parameters):
            setattr(self, f"p{number}", nn.Parameter(torch.ones(1, dtype=dtype), requires_grad=False))
        for number, dtype in enumerate(buffers):
            self.register_buffer(f"b{number}", torch.ones(1, dtype=dtype))


@pytest.mark.parametrize(
    ("modules", "dtype"),
    [
        ([Weights([torch.float64], [torch.float32])], torch.float64),  # parameters before buffers
        ([Weights([], [torch.int64, torch.float16])], torch.float16),  # numbers of steps are none
        ([Weights([torch.int32, torch.float64])], torch.float64),
        ([Weights(), Weights([torch.float16], [])], torch.float16),
        ([Weights([], [torch.float32]), Weights([torch.float64])], torch.float32),  # the first module that has one
        ([Weights([], [torch.int64])], None),
        ([], None),
    ],
)
def test_the_dtype_of_a_model_is_that_of_its_first_weight(modules, dtype):
    weight = evaluation.weight_of(*modules)
    assert weight is None if dtype is None else weight.dtype is dtype


def test_other_generators_give_other_draws():
    draws = []
    for seed in (0, 1):
        with evaluation.seeded(torch.Generator().manual_seed(seed)):
            draws.append(torch.rand(3))
    assert not torch.equal(*draws)


class Own(ValueError):
    """An error of a kind of its own."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("x: expected more"), "data: expected more"),
        (TypeError("x: expected another"), "data: expected another"),
        (Own("x: expected more"), "data: expected more"),
        (ValueError("xs: expected more"), None),
        (ValueError("scale: of x: expected"), None),
        (KeyError("x: expected more"), None),
    ],
)
def test_errors_about_the_input_name_the_argument(error, message):
    with pytest.raises(type(error)) as told, evaluation.blaming("data"):
        raise error
    if message is None:
        assert told.value is error
    else:
        assert type(told.value) is type(error) and str(told.value) == message and told.value.__cause__ is error


class Takes(nn.Module):
    def forward(self, x, y=None):
        return y


class Alone(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("function", "second", "named"),
    [
        (lambda x: (), False, False),
        (lambda x, y: (y,), True, True),
        (lambda x, y=None: (y,), True, True),
        (lambda x, y=3: (y,), False, True),  # an option: by its name alone
        (lambda x, t: (t,), True, False),
        (lambda x, t, y=None: (t, y), True, True),
        (lambda x, /, y: (y,), True, True),
        (eval("lambda x, t, /: (t,)"), True, False),
        (lambda x, *, y: (y,), False, True),
        (lambda x, *rest: rest, True, False),
        (lambda x, **rest: rest, False, True),
        (lambda *all: all[1:], True, False),
        (Takes(), True, True),
        (Alone(), False, False),
        (max, True, True),  # without a signature it gets everything
    ],
)
def test_who_takes_a_condition(function, second, named):
    assert evaluation.accepts(function, "") is second
    assert evaluation.accepts(function, "y") is named


def test_each_function_gets_what_it_takes():
    y, t = torch.ones(3), torch.zeros(3)
    seen = lambda *given, **named: ([v is y for v in given[1:]], sorted(named))  # noqa: E731
    assert evaluation.call("f", seen, X, {"": y, "t": t}) == ([True], ["t"])
    assert evaluation.call("f", lambda x, t: t, X, {"t": t}) is t
    assert evaluation.call("f", lambda x, t=3: t, X, {"y": y}) == 3
    assert evaluation.call("f", lambda x: len(x), X, {"": y, "y": y}) == N
    with pytest.raises(
        ValueError, match=r"^f: expected it to take a batch of shape \(37, 6\) .* with a condition, got K"
    ):
        evaluation.call("f", lambda x, y: {}[0], X, {"y": y})


def test_one_function_that_takes_a_condition_is_enough():
    given = {"y": torch.arange(N)}
    found = evaluation.check_condition(given, N, lambda x: x, lambda x, y: x)
    assert found.keys() == {"y"} and torch.equal(found["y"], given["y"])


@pytest.mark.parametrize("num", [None, 1, 5])
def test_a_condition_has_rows(num):
    with pytest.raises(ValueError, match=r"^condition: expected . rows?.*, one for each datum, got shape \(\)"):
        evaluation.check_condition(torch.tensor(1.0), num, lambda x, y: x)


def test_whole_numbers_of_an_array_stay_so_in_a_model_of_any_dtype():
    assert as_data("x", np.array([[1, 2]]), torch.float64).dtype == torch.int64
    assert as_data("x", np.array([[1.0, 2.0]]), torch.float32).dtype == torch.float32
    assert as_data("x", torch.ones(1, 2), torch.float64).dtype == torch.float32  # a tensor stays what it is


@pytest.mark.parametrize("num", [1, 1024, 1025, 3000])
def test_one_tensor_is_not_copied(num):
    x = torch.zeros(num, 2)
    assert evaluation.whole("x", x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("data", [X, X.numpy()], ids=["tensor", "array"])
def test_what_has_rows_comes_in_batches_of_the_size_asked(data):
    assert [len(x) for x, _ in evaluation.batches(data, 15)] == [15, 15, 7]


@pytest.mark.parametrize("made", [np.asfortranarray, lambda x: x[::-1], lambda x: x[:, ::2], lambda x: x.T])
def test_arrays_in_any_order_can_be_viewed_in_another_shape(made):
    array = made(np.arange(24.0).reshape(4, 6))
    for x in (as_data("x", array), as_data("x", array.astype(int))):
        assert x.is_contiguous() and x.tolist() == array.tolist()
        assert x.view(2, -1).shape == (2, array.size // 2)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (torch.ones(N), r"^condition: expected an encoder or a decoder that takes it as second argument, got none"),
        ({"t": torch.ones(N)}, "expected an encoder or a decoder that takes it as 't', got none"),
    ],
)
def test_a_condition_that_no_function_takes_is_refused(condition, told):
    with pytest.raises(ValueError, match=told):
        evaluation.check_condition(condition, N, lambda x: x, lambda x, *, y: x)


class Holder:
    """A callable object around a module, with or without a dict of its own."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


class Slotted(Holder):
    __slots__ = ("held",)


def test_modules_that_a_callable_object_holds_are_found():
    net, other = nn.Linear(1, 1), nn.Linear(1, 1)
    both = Slotted(net)
    both.held = other
    assert modules_of(Holder(net)) == [net] and set(modules_of(both)) == {net, other}
    assert set(modules_of(Holder([other, {"a": net}]))) == {net, other}
