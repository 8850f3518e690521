"""The checks themselves: each limit from both sides, and what the message names."""

import math
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from vaebook import _checks as checks
from vaebook.mixture import DiagGaussianMixture
from vaebook.ppca import PPCA

ONE = torch.ones(2, 3)
META = torch.ones(2, 3, device="meta")
GOOD = [
    lambda: checks.check_tensor("a", ONE, (2, "D")),
    lambda: checks.check_tensor("a", ONE, ("...", 3)),
    lambda: checks.check_tensor("a", ONE[0], ("...", "D")),
    lambda: checks.check_tensor("a", ONE.reshape(1, 2, 1, 3), ("...", "N", 3)),
    lambda: checks.check_tensor("a", torch.tensor(1.0), ("...",)),
    lambda: checks.check_tensor("a", torch.ones(0, 3), ("N", 3), empty=True),
    lambda: checks.check_tensor("a", ONE * math.nan, (2, 3), finite=False),
    lambda: checks.check_tensor("a", META, (2, 3), finite=False),
    lambda: checks.check_index("i", torch.tensor([0, 2]), (2,), size=3),
    lambda: checks.check_index("i", torch.zeros(0, dtype=torch.long), (0,), size=3),
    lambda: checks.check_positive("s", torch.tensor([5e-324], dtype=torch.float64)),
    lambda: checks.check_int("n", np.int64(3), minimum=3, maximum=3),
    lambda: checks.check_int("n", 2**63 - 1, minimum=1),
    lambda: checks.check_number("t", 0, minimum=0),
    lambda: checks.check_number("t", np.float32(0.5), above=0.25, below=0.75),
    lambda: checks.check_type("b", False, bool),
    lambda: checks.check_shape("s", [np.int64(2), 0]),
    lambda: checks.check_shape("s", (2**10, 2**10), 2**5),
    lambda: checks.check_generator(torch.Generator()),
    lambda: checks.check_generator(None),
    lambda: checks.check_log_weight(torch.tensor([0.5, 0.5]).log() + 0.9e-5),
    lambda: checks.check_log_weight(torch.tensor([1e-5], dtype=torch.float64)),
    lambda: checks.check_log_weight(torch.full((3,), 1 / 3).bfloat16().log()),
    lambda: checks.to_scale("var", torch.tensor([1.0, 4.0]), "var"),
    lambda: checks.check_type("q", DiagGaussianMixture(ONE, ONE), DiagGaussianMixture | PPCA),
]


@pytest.mark.parametrize("call", GOOD)
def test_what_is_good_passes(call):
    call()


BAD = [
    (TypeError, "a: expected a torch.Tensor, got ndarray", lambda: checks.check_tensor("a", np.ones(3), (3,))),
    (
        TypeError,
        "a: expected a floating-point tensor, got dtype torch.int64",
        lambda: checks.check_tensor("a", ONE.long(), (2, 3)),
    ),
    (
        TypeError,
        "a: expected a floating-point tensor of 16 to 64 bits, got dtype torch.float8_e5m2",
        lambda: checks.check_tensor("a", ONE.to(torch.float8_e5m2), (2, 3)),
    ),
    (
        TypeError,
        "a: expected a dense tensor, got layout torch.sparse_coo",
        lambda: checks.check_tensor("a", ONE.to_sparse(), (2, 3)),
    ),
    (
        TypeError,
        "a: expected a dense tensor, got layout torch.strided",
        lambda: checks.check_tensor("a", torch.nested.nested_tensor([ONE, ONE[:1]]), ("B", "N", "D")),
    ),
    (
        TypeError,
        "a: expected finite values, got a tensor on the meta device",
        lambda: checks.check_tensor("a", META, (2, 3)),
    ),
    (
        ValueError,
        "a: expected all arguments on one device, cpu, got meta",
        lambda: checks.check_tensor("a", META, (2, 3), finite=False, like=ONE),
    ),
    (ValueError, "a: expected shape (2, 4), got (2, 3)", lambda: checks.check_tensor("a", ONE, (2, 4))),
    (ValueError, "a: expected shape (N,), got (2, 3)", lambda: checks.check_tensor("a", ONE, ("N",))),
    (ValueError, "a: expected shape (N, D, P), got (2, 3)", lambda: checks.check_tensor("a", ONE, ("N", "D", "P"))),
    (ValueError, "a: expected shape (..., 4), got (2, 3)", lambda: checks.check_tensor("a", ONE, ("...", 4))),
    (
        ValueError,
        "a: expected shape (..., B, D), got (3,)",
        lambda: checks.check_tensor("a", ONE[0], ("...", "B", "D")),
    ),
    (
        ValueError,
        "a: expected at least one element, got shape (0, 3)",
        lambda: checks.check_tensor("a", ONE[:0], ("N", 3)),
    ),
    (
        ValueError,
        "a: expected finite values, got inf at index (1, 2)",
        lambda: checks.check_tensor("a", torch.tensor([[1.0, 2, 3], [4, 5, math.inf]]), (2, 3)),
    ),
    (
        ValueError,
        "s: expected positive values, got min 0 at index (1, 0)",
        lambda: checks.check_positive("s", torch.tensor([[1.0, 2.0], [0.0, 3.0]])),
    ),
    (
        ValueError,
        "s: expected finite values, got nan",
        lambda: checks.check_positive("s", torch.tensor([1.0, math.nan])),
    ),
    (
        ValueError,
        "x: expected values in [0, 1], got 1.5 at index (1,)",
        lambda: checks.check_unit("x", torch.tensor([1.0, 1.5])),
    ),
    (
        ValueError,
        "x: expected values in [0, 1], got -1e-30 at index (1,)",
        lambda: checks.check_unit("x", torch.tensor([0.0, -1e-30])),
    ),
    (
        ValueError,
        "x: expected values in [0, 1], got nan at index (1,)",
        lambda: checks.check_unit("x", torch.tensor([0.0, math.nan])),
    ),
    (
        ValueError,
        "x: expected probabilities, got 1.01 at index (0,)",
        lambda: checks.check_unit("x", torch.tensor([1.01]), "probabilities", slack=0.005),
    ),
    (
        ValueError,
        "x: expected values in [0, 1], got -0.001 at index (0,)",
        lambda: checks.check_unit("x", torch.tensor([-0.001]), slack=0.005),
    ),
    (
        TypeError,
        "i: expected a tensor of dtype torch.int64, got torch.int32",
        lambda: checks.check_index("i", ONE.int(), (2, 3)),
    ),
    (TypeError, "i: expected a tensor of dtype torch.int64, got list", lambda: checks.check_index("i", [1], (1,))),
    (ValueError, "i: expected shape (3,), got (2,)", lambda: checks.check_index("i", torch.tensor([0, 1]), (3,))),
    (
        ValueError,
        "i: expected values in [0, 3), got 0 to 3",
        lambda: checks.check_index("i", torch.tensor([0, 3]), (2,), size=3),
    ),
    (
        ValueError,
        "i: expected values in [0, 3), got -1 to 2",
        lambda: checks.check_index("i", torch.tensor([2, -1]), (2,), size=3),
    ),
    (
        ValueError,
        "i: expected all arguments on one device, cpu, got meta",
        lambda: checks.check_index("i", META.long(), (2, 3), like=ONE),
    ),
    (
        ValueError,
        "log_weight: expected natural logarithms that log-sum to 0 within 1e-05",
        lambda: checks.check_log_weight(torch.tensor([0.5, 0.5]).log() + 1.2e-5),
    ),
    (
        ValueError,
        "log_weight: expected natural",
        lambda: checks.check_log_weight(torch.tensor([0.5, 0.5]).log() - 1.2e-5),
    ),
    (ValueError, "log_weight: expected natural", lambda: checks.check_log_weight(torch.tensor([0.0, math.nan]))),
    (TypeError, "b: expected a bool, got int", lambda: checks.check_type("b", 1, bool)),
    (ValueError, "var: expected positive values, got none", lambda: checks.to_scale("var", -ONE, "var")),
    (ValueError, "var: expected positive values, got min 0", lambda: checks.to_scale("var", ONE - 1, "var")),
    (
        TypeError,
        "q: expected a DiagGaussianMixture, got int, no",
        lambda: checks.check_type("q", 3, DiagGaussianMixture, ", no"),
    ),
    (
        TypeError,
        "q: expected a DiagGaussianMixture or a PPCA",
        lambda: checks.check_type("q", 3, DiagGaussianMixture | PPCA),
    ),
    (TypeError, "n: expected an int, got bool", lambda: checks.check_int("n", True, minimum=0)),
    (TypeError, "n: expected an int, got float", lambda: checks.check_int("n", 3.0, minimum=0)),
    (ValueError, "n: expected an int at least 3, got 2", lambda: checks.check_int("n", 2, minimum=3)),
    (ValueError, "n: expected an int between 3 and 4, got 5", lambda: checks.check_int("n", 5, minimum=3, maximum=4)),
    (
        ValueError,
        f"n: expected an int at most {2**63 - 1}, got {2**63}",
        lambda: checks.check_int("n", 2**63, minimum=3),
    ),
    (ValueError, "got one of 21 digits", lambda: checks.check_int("n", 10**20, minimum=3)),
    (TypeError, "t: expected a number, got bool", lambda: checks.check_number("t", True)),
    (TypeError, "t: expected a number, got str", lambda: checks.check_number("t", "1")),
    (ValueError, "t: expected a finite number, got one of 401 digits", lambda: checks.check_number("t", 10**400)),
    (ValueError, "t: expected a finite number, got inf", lambda: checks.check_number("t", math.inf)),
    (ValueError, "t: expected a number >= 0, got -1e-09", lambda: checks.check_number("t", -1e-9, minimum=0)),
    (ValueError, "t: expected a number > 0, got 0", lambda: checks.check_number("t", 0, above=0)),
    (ValueError, "t: expected a number < 1, got 1.0", lambda: checks.check_number("t", 1.0, below=1)),
    (ValueError, "t: expected a finite number, got nan", lambda: checks.check_number("t", math.nan, above=0)),
    (TypeError, "s: expected a tuple of ints, got int", lambda: checks.check_shape("s", 3)),
    (TypeError, "s[0]: expected an int, got bool", lambda: checks.check_shape("s", (True,))),
    (TypeError, "s[0]: expected an int, got float", lambda: checks.check_shape("s", (1.0,))),
    (ValueError, "s[1]: expected an int at least 0, got -1", lambda: checks.check_shape("s", (2, -1))),
    (
        ValueError,
        f"s: expected a size that fits into memory, got {2**40}",
        lambda: checks.check_shape("s", (2**20, 2**20)),
    ),
    (
        ValueError,
        f"n: expected a size that fits into memory, got {2**40}",
        lambda: checks.check_int("n", 2**40, minimum=1, each=1),
    ),
    (
        ValueError,
        f"n: expected a size that fits into memory, got {2**20}",
        lambda: checks.check_int("n", 2**20, minimum=1, each=2**20),
    ),
    (
        ValueError,
        f"n: expected a size that fits into memory, got {2**20}",
        lambda: checks.check_int("n", 2**20, minimum=1, each=1, power=2),
    ),
    (
        ValueError,
        f"s[1]: expected a size that fits into memory, got {2**40}",
        lambda: checks.check_sizes("s", (1, 2**40)),
    ),
    (
        ValueError,
        "t: expected a finite number, got one of 401 digits",
        lambda: checks.check_number("t", Fraction(10**401, 3)),
    ),
    (TypeError, "generator: expected a torch.Generator or None, got int", lambda: checks.check_generator(3)),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_what_is_bad_is_named(error, message, call):
    with pytest.raises(error, match="^" + re.escape(message) if ": " in message else re.escape(message)):
        call()


def test_what_is_returned():
    assert (
        checks.check_int("n", np.int32(3), minimum=1) == 3
        and type(checks.check_int("n", np.int32(3), minimum=1)) is int
    )
    assert type(checks.check_number("t", 3)) is float
    assert checks.check_shape("s", [2, 3]) == torch.Size([2, 3])
    assert checks.check_tensor("a", ONE, (2, 3)) is checks.check_positive("a", ONE) is ONE
    assert float(checks.check_log_weight(torch.tensor([0.5, 0.5]).log() + 0.5e-5)) == pytest.approx(0.5e-5, rel=0.1)
    assert [checks.at_least_single(d) for d in (torch.float16, torch.float32, torch.float64)] == [
        torch.float32, torch.float32, torch.float64,
    ]  # fmt: skip


def test_shares_lie_in_the_unit_interval():
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64):
        ends = torch.tensor([0, 1]).to(dtype)
        assert checks.check_unit("x", ends) is ends
    assert checks.check_unit("x", torch.zeros(0)).shape == (0,)
    assert checks.check_unit("x", torch.tensor([1.001]), slack=0.005) == torch.tensor([1.001])


def test_spreads_become_standard_deviations():
    for spread, value in (("scale", [0.5, 3.0]), ("std", [0.5, 3.0]), ("var", [0.25, 9.0])):
        scale = checks.to_scale("a", torch.tensor(value), spread)
        torch.testing.assert_close(scale, torch.tensor([0.5, 3.0]))
    scale = checks.to_scale("a", torch.tensor([0.25, 9.0]).log(), "log_var")
    torch.testing.assert_close(scale, torch.tensor([0.5, 3.0]))
    with pytest.raises(ValueError, match=r"^log_var: expected finite values, got inf"):
        checks.to_scale("log_var", torch.tensor([0.0, math.inf]), "log_var")


@pytest.mark.parametrize("dtype", checks.FLOATS)
def test_finite_is_every_entry_and_not_the_sum(dtype):
    most = torch.finfo(dtype).max
    value = torch.full((3, 2), most, dtype=dtype, requires_grad=True)  # its sum overflows
    assert checks.check_finite("a", value) is value
    assert checks.check_finite("a", value[:0]).shape == (0, 2)
    for bad in ([math.inf, -math.inf], [math.nan, 0.0], [-math.inf, most]):
        with pytest.raises(ValueError, match=rf"^a: expected finite values, got {bad[0]} at index \(1, 0\)$"):
            checks.check_finite("a", torch.tensor([[0.0, 0.0], bad], dtype=dtype))
    with pytest.raises(TypeError, match=r"^a: expected finite values, got a tensor on the meta device"):
        checks.check_finite("a", META)


@pytest.mark.parametrize(
    ("error", "within", "message"),
    [
        (ValueError("z: expected more, got 1"), False, None),  # what this package says stays as it is
        (TypeError("z: expected more, got 1"), False, None),
        (ValueError("no number"), False, "f: expected a thing, got ValueError: no number"),
        (KeyError("a: expected b"), False, "f: expected a thing, got KeyError: 'a: expected b'"),
        (ValueError("z: expected more, got 1"), True, "f: z: expected more, got 1"),
        (TypeError("z: expected more, got 1"), True, "f: z: expected more, got 1"),
        (ValueError("no number"), True, "f: expected a thing, got no number"),
        (TypeError("no number"), True, "f: expected a thing, got TypeError: no number"),
        (RuntimeError("\n one\ntwo"), False, "f: expected a thing, got RuntimeError: one"),
        (RuntimeError(""), False, "f: expected a thing, got RuntimeError: "),
        (RuntimeError("a\x1b[31mb\tc"), False, "f: expected a thing, got RuntimeError: a [31mb c"),
        (RuntimeError("x" * 501), False, "f: expected a thing, got RuntimeError: " + "x" * 500),
    ],
)
def test_errors_of_others_are_explained(error, within, message):
    with pytest.raises((TypeError, ValueError)) as told, checks.explained("f", "a thing", within=within):
        raise error
    if message is None:
        assert told.value is error
    else:
        assert type(told.value) is ValueError and str(told.value) == message and told.value.__cause__ is error


def test_scales_are_finite_and_the_first_of_the_smallest_is_named():
    with pytest.raises(ValueError, match=r"^s: expected finite values, got inf at index \(1,\)$"):
        checks.check_positive("s", torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match=r"got min -2 at index \(0, 1\)$"):
        checks.check_positive("s", torch.tensor([[1.0, -2.0], [-2.0, 3.0]]))


def test_log_weights_are_summed_in_double_precision():
    log_weight = torch.randn(999, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    assert torch.equal(checks.check_log_weight(log_weight), log_weight.double().logsumexp(0))


@pytest.mark.parametrize(
    ("spread", "value", "warns"),
    [
        ("log_var", [0.01, 0.02], True),  # of all that there are, few and small ones tell
        ("log_var", [0.0, 0.02], False),
        ("log_var", [-0.01, 0.02], False),
        ("log_var", [-3.0, -0.01], False),
        ("std", [1e6, 1e6], False),  # nothing to compare with
        ("var", [1e6, 1e6], False),
    ],
)
def test_values_without_means_are_all_that_there_are(spread, value, warns):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        checks.to_scale("s", torch.tensor(value), spread)
    assert [str(one.message).startswith(f"s: expected {spread} as named, got values") for one in told] == [True] * warns


@pytest.mark.parametrize("value", [np.array(["one"]), np.array(["one", "two"]), ["one"], None])
def test_a_choice_is_a_word(value):
    with pytest.raises(ValueError, match=r"^c: expected one of one, two, got "):
        checks.check_choice("c", value, ("one", "two"))


def test_a_generator_stays_itself_and_seeds_another_one_elsewhere(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert checks.check_generator(generator) is checks.check_generator(generator, torch.device("cpu")) is generator
    assert torch.equal(generator.get_state(), before)
    monkeypatch.setattr(checks, "new_seed", lambda given: 7 if given is generator else None)
    made = checks.check_generator(generator, torch.device("cpu", 0))
    assert made is not generator and made.initial_seed() == 7


def test_a_seed_is_drawn_from_the_generator_that_is_given():
    seeds = {checks.new_seed(torch.Generator().manual_seed(3)) for _ in range(2)}
    assert len(seeds) == 1 and seeds != {checks.new_seed(torch.Generator().manual_seed(4))}
    assert {checks.new_seed(torch.Generator().manual_seed(k), below=2) for k in range(20)} == {0, 1}
    torch.manual_seed(5)
    expected = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(5)))
    assert checks.new_seed(None) == expected


@pytest.mark.parametrize("low", [19.5, 20.5])
def test_every_coordinate_of_a_batch_is_compared_with_its_own_means(low):
    loc, value = torch.tensor([[0.5, 0.0], [-1.0, 0.0], [0.0, 0.0]]), torch.tensor([[low, 10.5]] * 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        checks.to_scale("s", value, "std", loc)
    assert len(told) == (low > 20)
    assert all(one.filename != checks.__file__ for one in told)  # they point at who called


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            "a: expected finite values, got nan",
            lambda: checks.check_finite("a", torch.tensor(math.nan)),
        ),
        (
            ValueError,
            "a: expected values below 2, got 2.5 at index (0, 1)",
            lambda: checks.check_all(
                "a", ONE * 2.5, torch.tensor([[True, False, False], [False] * 3]), "values below 2"
            ),
        ),
        (
            ValueError,
            "s: expected positive values, got min -0.333333 at index ()",
            lambda: checks.check_positive("s", torch.tensor(-1 / 3)),
        ),
        (
            TypeError,
            "i: expected a tensor of dtype torch.int64, got torch.int64 torch.sparse_coo",
            lambda: checks.check_index("i", ONE.long().to_sparse(), (2, 3)),
        ),
        (TypeError, "q: expected a int or a str, got float", lambda: checks.check_type("q", 1.0, int | str)),
        (
            ValueError,
            "n: expected an int between 3 and 4, got 2",
            lambda: checks.check_int("n", 2, minimum=3, maximum=4),
        ),
        (
            ValueError,
            f"n: expected an int between 3 and {2**63 - 2}, got {2**63 - 1}",
            lambda: checks.check_int("n", 2**63 - 1, minimum=3, maximum=2**63 - 2),
        ),
        (
            ValueError,
            "n: expected an int at least 3, got one of 21 digits",
            lambda: checks.check_int("n", -(10**20), minimum=3),
        ),
        (
            ValueError,
            f"n: expected an int at most {2**63 - 1}, got {10**20 - 1}",
            lambda: checks.check_int("n", 10**20 - 1, minimum=3),
        ),
        (
            ValueError,
            "t: expected a number > 0.5, got 0.5",
            lambda: checks.check_number("t", 0.5, minimum=0.5, above=0.5),
        ),
        (
            ValueError,
            "c: expected one of one, two, got 'three'",
            lambda: checks.check_choice("c", "three", ("one", "two")),
        ),
        (
            ValueError,
            "c: expected a word of one, got '" + "x" * 99,
            lambda: checks.check_choice("c", "x" * 200, ("one",), "a word of"),
        ),
        (ValueError, "c: expected one of one, got 'a b'", lambda: checks.check_choice("c", "a  b", ("one",))),
        (TypeError, "s: expected a tuple of ints, got str", lambda: checks.check_sizes("s", "12")),
        (ValueError, "s: expected at least one size, got ()", lambda: checks.check_sizes("s", (), empty=False)),
        (ValueError, "s[1]: expected an int at least 1, got 0", lambda: checks.check_sizes("s", (1, 0), minimum=1)),
        (
            ValueError,
            "s: expected a size that fits into memory, got one of 25 digits",
            lambda: checks.check_shape("s", (10**6,) * 4),
        ),
        (
            ValueError,
            "log_weight: expected natural logarithms that log-sum to 0 within 1e-05, got 1.09861; "
            "torch.log_softmax(log_weight, 0) normalises them",
            lambda: checks.check_log_weight(torch.zeros(3)),
        ),
        (
            ValueError,
            "log_weight: expected natural logarithms that log-sum to 0 within 0.0625, got -0.078125; "
            "torch.log_softmax(log_weight, 0) normalises them",
            lambda: checks.check_log_weight(torch.tensor([-5 / 64]).bfloat16()),
        ),
    ],
)
def test_the_whole_of_a_message(error, message, call):
    with pytest.raises(error, match="^" + re.escape(message) + "$"):
        call()


@pytest.mark.parametrize(
    "call", [lambda: checks.check_positive("s", META), lambda: checks.to_scale("s", META, "log_var")]
)
def test_scales_without_values_are_told(call):
    with pytest.raises(TypeError, match=r"^s: expected finite values, got a tensor on the meta device, which holds no"):
        call()


def test_sizes_of_any_kind_of_list():
    assert checks.check_sizes("s", []) == () == checks.check_shape("s", ())
    assert checks.check_sizes("s", [np.int64(0), 1]) == (0, 1) and checks.check_sizes("s", (1,), minimum=1) == (1,)


def test_a_generator_is_made_on_the_device_of_a_draw():
    """On a device without generators that fails, in torch; nothing is drawn with one of another device."""
    generator = torch.Generator().manual_seed(0)
    for draw in (lambda *given: checks.check_draw(*given, 1), lambda _, *given: checks.check_generator(*given)):
        with pytest.raises(RuntimeError, match=r"(?i)meta"):
            draw((2,), generator, torch.device("meta"))
    assert checks.check_draw((2,), generator, generator.device, 1) == ((2,), generator)
    assert checks.check_draw((2,), None, torch.device("meta"), 1) == ((2,), None)
