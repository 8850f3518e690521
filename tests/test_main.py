"""The command: files of all kinds in, a diagnosis out, or one sentence and exit status 2."""

import errno
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.texts import check_text
from vaebook import __main__ as command
from vaebook.__main__ import main
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import GaussianMixture
from vaebook.training import save_density

LOC = np.random.default_rng(0).normal(size=(80, 2)) * 0.8
SCALE = np.full_like(LOC, 0.6)


def npz(folder, name="codes.npz", **arrays):
    np.savez(folder / name, **arrays)
    return str(folder / name)


def test_an_npz_in_and_all_forms_out(tmp_path, capsys):
    codes, more = (
        npz(tmp_path, loc=LOC, scale=SCALE, labels=np.arange(80)),
        npz(tmp_path, "b.npz", loc=LOC, var=SCALE**2),
    )
    page, stored = tmp_path / "report.html", tmp_path / "report.json"
    assert main(["diagnose", codes, "--held-out", more, "--json", str(stored), "--html", str(page)]) == 0
    shown = capsys.readouterr()
    assert "80 data, 2 latent dimensions, prior: standard normal" in shown.out
    assert shown.err == ""
    found = json.loads(stored.read_text())
    assert found["num_data"] == 80 and found["population_from"] == "held-out codes"
    assert found["memorisation"]["held_out"]["num_samples"] > 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_of_any_precision(tmp_path, capsys, dtype):
    path = str(tmp_path / "codes.safetensors")
    safetensors.torch.save_file({"loc": torch.tensor(LOC).to(dtype), "log_var": torch.zeros(80, 2, dtype=dtype)}, path)
    assert main(["diagnose", path]) == 0
    assert "80 data" in capsys.readouterr().out


def test_the_seed_is_0_unless_another_is_given(tmp_path):
    codes, stored = npz(tmp_path, loc=LOC[:8], scale=SCALE[:8]), tmp_path / "report.json"

    def found(*options):
        assert main(["diagnose", codes, "--json", str(stored), *options]) == 0
        return stored.read_text()

    assert found() == found("--seed", "0") != found("--seed", "1")
    assert found("--seed", str(2**63 - 1)) != found("--seed", str(-(2**63)))


def test_priors(tmp_path, capsys):
    codes = npz(tmp_path, loc=LOC, scale=SCALE)
    density = DiagGaussianMixture(torch.tensor(LOC), torch.tensor(SCALE))
    save_density(tmp_path / "own.safetensors", density)
    for prior in (codes, str(tmp_path / "own.safetensors")):
        assert main(["diagnose", codes, "--prior", prior]) == 0
        assert "prior: DiagGaussianMixture" in capsys.readouterr().out


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def bad_files(folder):
    objects = np.array([Evil(), None], dtype=object)
    yield "pickled", npz(folder, "a.npz", loc=objects, scale=SCALE), "Object arrays cannot be loaded"
    yield "missing", npz(folder, "b.npz", mu=LOC, scale=SCALE), "expected loc and exactly one of scale, var, log_var"
    yield "both", npz(folder, "c.npz", loc=LOC, scale=SCALE, var=SCALE), "expected loc and exactly one"
    yield "nan", npz(folder, "d.npz", loc=LOC * np.nan, scale=SCALE), "loc: expected finite values"
    yield "zero", npz(folder, "e.npz", loc=LOC, scale=0 * SCALE), "scale: expected positive values"
    yield "rows", npz(folder, "f.npz", loc=LOC, scale=SCALE[1:]), "scale: expected shape"
    yield "none", npz(folder, "g.npz", loc=LOC[:0], scale=SCALE[:0]), "loc: expected"
    yield "strings", npz(folder, "h.npz", loc=np.array([["a"]]), scale=SCALE), "loc: expected an array of real numbers"
    yield "nowhere", str(folder / "nowhere.npz"), "got no file"
    yield "folder", str(folder), "got no file"
    for name, content in {"empty": b"", "text": b"loc, scale\n1, 2\n", "half": b"PK\x03\x04" + b"\0" * 40}.items():
        (folder / f"{name}.npz").write_bytes(content)
        yield name, str(folder / f"{name}.npz"), "expected an npz or safetensors file of arrays, got "
    whole = (folder / "b.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    yield "cut", str(folder / "cut.npz"), "expected an npz or safetensors file of arrays"
    with zipfile.ZipFile(folder / "huge.npz", "w") as archive:
        archive.writestr(
            "loc.npy", b"\x93NUMPY\x01\x00F\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000, 2)}\n"
        )
    yield "huge", str(folder / "huge.npz"), "expected an npz or safetensors file of arrays"


def test_bad_files_are_one_sentence_and_status_2(tmp_path, capsys):
    for name, path, message in bad_files(tmp_path):
        assert main(["diagnose", path]) == 2, name
        shown = capsys.readouterr()
        assert shown.out == "", name
        assert shown.err.startswith("error: "), name
        assert message in shown.err, f"{name}: {shown.err}"
        assert shown.err.count("\n") == 1, name


def test_other_bad_arguments(tmp_path, capsys):
    codes = npz(tmp_path, loc=LOC, scale=SCALE)
    assert main(["diagnose", codes, "--html", str(tmp_path / "no" / "report.html")]) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err
    assert main(["diagnose", codes, "--seed", str(2**70)]) == 2
    assert main(["diagnose", codes, "--held-out", npz(tmp_path, "b.npz", loc=LOC[:, :1], scale=SCALE[:, :1])]) == 2
    assert "held_out: expected codes of dimension 2, got 1" in capsys.readouterr().err


def test_warnings_are_said(tmp_path, capsys):
    assert main(["diagnose", npz(tmp_path, loc=LOC, log_var=SCALE)]) == 0
    assert (
        "warning: log_var: expected log_var as named, got values that look different: all values are positive"
        in capsys.readouterr().err
    )


GOOD = {"loc": LOC, "scale": SCALE}
FLAT = {"loc": LOC[:, :1], "scale": SCALE[:, :1]}
TAKEN = {
    "one latent": FLAT,
    "one datum": {"loc": LOC[:1], "var": SCALE[:1]},
    "half precision": {"loc": LOC.astype("f2"), "scale": SCALE.astype("f2")},
    "integers": {"loc": np.arange(60).reshape(30, 2) % 7, "scale": np.ones((30, 2), int)},
}
REFUSED = {
    "std": ({"loc": LOC, "std": SCALE}, "expected loc and exactly one of scale, var, log_var, got loc, std"),
    "D": ({"loc": LOC, "scale": SCALE[:, :1]}, "scale: expected shape (80, 2), got (80, 1)"),
    "inf": ({"loc": np.full_like(LOC, np.inf), "scale": SCALE}, "loc: expected finite values"),
    "negative": ({"loc": LOC, "var": -SCALE}, "var: expected positive values"),
    "bool": ({"loc": LOC, "scale": SCALE > 0}, "scale: expected an array of real numbers"),
    "flat": ({"loc": LOC[:, 0], "scale": SCALE[:, 0]}, "loc: expected shape (N, D), got (80,)"),
    "no arrays": ({}, "got nothing"),
}


def run_as_module(monkeypatch, *arguments):
    """Run the very module, in this process; return its exit status."""
    monkeypatch.delitem(sys.modules, "vaebook.__main__", raising=False)
    monkeypatch.setattr(sys, "argv", ["vaebook", "diagnose", *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("vaebook", run_name="__main__", alter_sys=True)
    return done.value.code


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_module_takes(name, tmp_path, capsys, monkeypatch):
    assert run_as_module(monkeypatch, npz(tmp_path, **TAKEN[name])) == 0
    assert f"{len(TAKEN[name]['loc'])} data" in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_takes_many_latents(tmp_path, capsys, monkeypatch):
    loc = 0.8 * np.random.default_rng(0).normal(size=(70, 512))
    assert run_as_module(monkeypatch, npz(tmp_path, loc=loc, scale=np.full_like(loc, 0.6))) == 0
    assert "70 data, 512 latent dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("option", [None, "--held-out", "--prior"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_module_refuses_names_the_file(name, option, tmp_path, capsys, monkeypatch):
    arrays, message = REFUSED[name]
    bad = npz(tmp_path, "bad.npz", **arrays)
    line = [bad] if option is None else [npz(tmp_path, **GOOD), option, bad]
    assert run_as_module(monkeypatch, *line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {bad}: ")
    assert shown.err.count("\n") == 1
    if option != "--prior":  # which may be a file of another kind, too
        assert message in shown.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_that_may_not_be_read(tmp_path, capsys, monkeypatch):
    path = npz(tmp_path, **GOOD)
    os.chmod(path, 0)
    assert run_as_module(monkeypatch, path) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["codes.npz", "--json", "codes.npz"],
        ["codes.npz", "--html", "folder/../codes.npz"],
        ["codes.npz", "--html", "link.npz"],
        ["codes.npz", "--held-out", "other.npz", "--json", "other.npz"],
        ["codes.npz", "--prior", "other.npz", "--html", "other.npz"],
        ["codes.npz", "--json", "report", "--html", "report"],
    ],
)
def test_no_file_that_is_read_is_overwritten_and_none_is_written_twice(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.npz").symlink_to("codes.npz")
    held = {path: path.read_bytes() for path in (Path(npz(tmp_path, f"{n}.npz", **GOOD)) for n in ("codes", "other"))}
    assert main(["diagnose", *line]) == 2
    refused = "expected a file of its own to write to, got one that is named twice"
    assert capsys.readouterr() == ("", f"error: {line[-1]}: {refused}\n")
    assert {path: path.read_bytes() for path in held} == held and not (tmp_path / "report").exists()


def test_a_folder_in_place_of_a_report_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    assert run_as_module(monkeypatch, npz(tmp_path, **GOOD), "--json", str(tmp_path)) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "vaebook", "diagnose", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert subprocess.run([sys.executable, "-m", "vaebook", "--help"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TypeError("a kind"), "a kind"),
        (ValueError("a value\nthat is long"), "a value"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_is_wrong_is_one_sentence_and_status_2(error, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: (_ for _ in ()).throw(error))
    assert main(["diagnose", npz(tmp_path, **GOOD)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {told}") and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("place", ["", "no/report", "report/report"])
def test_a_report_that_has_no_place_is_refused_before_the_work(option, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: pytest.fail("worked"))
    (tmp_path / "report").touch()
    assert main(["diagnose", npz(tmp_path, **GOOD), option, str(tmp_path / place)]) == 2
    assert "expected a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seed", "told"),
    [
        (2**63, f"at most {2**63 - 1}, got {2**63}"),
        (-(2**63) - 1, f"at least {-(2**63)}, got {-(2**63) - 1}"),
        (2**70, f"at most {2**63 - 1}, got one of 22 digits"),
    ],
)
def test_a_seed_of_more_than_64_bits_is_refused(seed, told, tmp_path, capsys):
    assert main(["diagnose", npz(tmp_path, **GOOD), f"--seed={seed}"]) == 2
    assert capsys.readouterr().err == f"error: --seed: expected an int {told}\n"


def test_each_option_is_handed_on(tmp_path, capsys, monkeypatch):
    """Codes with their weights and nothing else, held-out codes, a prior of either form, and both reports."""
    asked = []

    class Report:
        def to_json(self, path):
            asked.append(("json", path))

        def to_html(self, path):
            asked.append(("html", path))

    monkeypatch.setattr(command, "diagnose", lambda codes, **named: asked.append((codes, named)) or Report())
    weight = np.log(np.arange(1, 81) / np.arange(1, 81).sum())
    codes = npz(tmp_path, loc=LOC, scale=SCALE, log_weight=weight, labels=weight)
    other = npz(tmp_path, "b.npz", loc=LOC + 1, var=SCALE)
    full = GaussianMixture(torch.ones(1), torch.zeros(1, 2), (torch.eye(2) + 0.5).tril()[None])
    save_density(tmp_path / "full.safetensors", full)
    line = ["diagnose", codes, "--held-out", other, "--seed=7", "--json", "a", "--html", "b", "--prior"]
    monkeypatch.chdir(tmp_path)
    assert main([*line, other]) == main([*line, "full.safetensors"]) == main(["diagnose", codes]) == 0
    (given, named), json, html, (_, of_density), *_, (_, plain) = asked
    assert (json, html) == (("json", "a"), ("html", "b"))
    np.testing.assert_allclose(given.log_weight, weight)
    np.testing.assert_allclose(named["held_out"].loc, LOC + 1)
    np.testing.assert_allclose(named["prior"].scale, SCALE**0.5)
    assert isinstance(of_density["prior"], GaussianMixture)
    assert (plain["held_out"], plain["prior"]) == (None, None)
    assert [one["generator"].initial_seed() for one in (named, plain)] == [7, 0]


def test_of_many_arrays_the_first_are_named(tmp_path, capsys):
    assert main(["diagnose", npz(tmp_path, **{f"{'a' * 50}{n}": LOC for n in range(50)})]) == 2
    assert len(capsys.readouterr().err) < 800 + len(str(tmp_path))


@pytest.mark.parametrize("option", [None, "-h", "--help"])
def test_the_command_shows_how_it_is_used(option, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as done:
        main([option] if option else [])
    shown = capsys.readouterr()
    assert done.value.code == (0 if option else 2)
    assert (shown.out or shown.err).startswith("usage: python -m vaebook [-h] COMMAND ...\n")
    assert "Tools for the latent space of a VAE." in shown.out or not option
    assert "diagnose codes from any framework" in shown.out or not option
    with pytest.raises(SystemExit):
        main(["diagnose", option or "--unknown"])
    shown = capsys.readouterr()
    usage = " ".join((shown.out or shown.err).split())
    files = "[--held-out FILE] [--prior FILE] [--json FILE] [--html FILE] [--seed SEED] CODES"
    assert usage.startswith(f"usage: python -m vaebook diagnose [-h] {files}")
    for said in (
        f"CODES {command.HELP} ",
        "--held-out FILE codes of data that had no part in training, likewise ",
        "--prior FILE what to compare codes with, if not N(0, I): of save_density, or a mixture as CODES, with its ",
        "--json FILE write the diagnosis as JSON ",
        "--html FILE write it as one page with pictures ",
        "--seed SEED of the draws (0)",
    ):
        assert said in usage or not option


def test_every_warning_is_said_as_often_as_it_comes_and_the_report_behind_them(tmp_path, capsys, monkeypatch):
    def diagnose(*_, **__):
        for message in ("one", "other", "one"):
            warnings.warn(message, stacklevel=1)
        return "report"

    monkeypatch.setattr(command, "diagnose", diagnose)
    assert main(["diagnose", npz(tmp_path, **GOOD)]) == 0
    assert capsys.readouterr() == ("report\n", "warning: one\nwarning: other\nwarning: one\n")


def test_help_and_errors_read_as_they_are_stored(tmp_path, capsys, monkeypatch):
    """From the first letter to the last, on one line each."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: pytest.fail("worked"))
    codes = npz(tmp_path, **GOOD)
    calls = [["--help"], ["diagnose", "--help"], ["diagnose", codes, "--seed", str(2**63)]]
    calls += [["diagnose", codes, option, str(tmp_path / "no" / "a")] for option in ("--json", "--html")]
    wrong = {"nothing": {}, "loc": {"loc": LOC}, "two": {"loc": LOC, "var": SCALE, "scale": SCALE}, "one": {"var": LOC}}
    for name, arrays in (wrong | {"zero": {"loc": LOC, "var": np.zeros_like(LOC)}}).items():
        made = npz(tmp_path, f"{name}.npz", **arrays)
        calls += [["diagnose", made], ["diagnose", codes, "--held-out", made]]
    told = []
    for call in calls:
        try:
            status = main(call)
        except SystemExit as done:
            status = done.code
        shown = capsys.readouterr()
        said = " ".join((shown.out or shown.err).replace(str(tmp_path), "FOLDER").split())
        told.append(f"{status} {said}")
    check_text("command.txt", "\n".join(told) + "\n")


def test_a_prior_without_loc_is_no_codes(tmp_path, capsys):
    assert main(["diagnose", npz(tmp_path, **GOOD), "--prior", npz(tmp_path, "b.npz", var=SCALE)]) == 2
    assert "expected loc" not in capsys.readouterr().err


@pytest.fixture
def answered(monkeypatch):
    """The command, with a diagnosis that is there at once and that not every terminal can show."""
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: "5.92 ± 0.01 nats")


def test_a_terminal_that_cannot_show_all_signs_shows_the_rest(answered, tmp_path, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["diagnose", npz(tmp_path, **GOOD)]) == 0
    assert shown.buffer.getvalue() == b"5.92 \\xb1 0.01 nats\n"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_a_report_that_nobody_reads_or_that_has_no_room_is_one_line(number, answered, tmp_path, capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        assert main(["diagnose", npz(tmp_path, **GOOD)]) == 2
        assert sys.stdout is None  # or Python would try again at its end, and say so
    assert capsys.readouterr().err == f"error: [Errno {number}] {os.strerror(number)}\n"


def test_a_report_that_nobody_wants_to_see(answered, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["diagnose", npz(tmp_path, **GOOD)]) == 0


def test_an_interruption_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["diagnose", npz(tmp_path, **GOOD)]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path):
    """As much as a command takes, importing torch takes."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, "-m", "vaebook", "diagnose", "codes.npz"]
    done = subprocess.run(line, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
