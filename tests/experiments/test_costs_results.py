"""What functions cost: no public one that takes a size is forgotten; sums grow as they must; slices measured again."""

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections import Counter

import pytest
from costs import CASES, CONFIG, GROWTH, NOISE, PAIRS, exponent, settings
from harness import ROOT, read_result

RESULT = read_result("costs", CONFIG)
ROWS = {row["name"]: row for row in RESULT["rows"]}
WITHOUT = {
    "__main__": "reads a file and calls diagnose",
    "claims": "their sizes are the book's",
    "sampling": "a part of diagnose",
    "verdicts": "of one diagnosis",
    "page": "of one diagnosis; Diagnosis.to_html",
    "panels": "of one diagnosis; Diagnosis.to_html",
    "tables": "of the few rows that are shown",
    "proposals": "beneath importance_log_prob",
    "integrals": "beneath quadrature_log_prob and inference_gap",
    "networks": "one pass of a network: VAE.forward",
    "parts": "beneath AdaptedVAE",
    "outputs": "beneath AdaptedVAE",
    "evaluation": "beneath AdaptedVAE and aggregated_posterior",
    "gaussians": "the base of DiagGaussianMixture, under whose name it is measured",
    "sums": "beneath DiagGaussianMixture",
    "clusters": "beneath DiagGaussianMixture",
    "kernels": "beneath DiagGaussianMixture",
    "shards": "beneath ShardedMixture",
    "storage": "beneath save_density and load_density",
    "report.Diagnosis": "made by diagnose",
    "report.Diagnosis.numbers": "as many as there are numbers in a diagnosis",
    "report.Diagnosis.table": "as many rows as a diagnosis has",
    "report.Diagnosis.to_json": "as many numbers as a diagnosis has",
    "report.Diagnosis.panels": "called by Diagnosis.to_html",
    "report.json_schema": "no argument",
    "selection.Choice.table": "a row for each candidate",
    "population.bracket_both": "beneath bracket_mismatch and bracket_information",
    "checkpoint.save": "the size of the model",
    "checkpoint.load": "the size of the model",
    "ppca.PPCA": "keeps its arguments",
    "ppca.PPCA.encoder": "another name of posterior",
    "ppca.PPCA.decoder": "another name of likelihood",
    "ppca.PPCA.prior": "D alone",
    "models.VAE": "keeps its arguments",
    "priors.StandardNormal": "D alone",
    "priors.StandardNormal.components": "D alone",
    "priors.StandardNormal.config": "one number",
    "priors.StandardNormal.extra_repr": "one number",
    "priors.as_mixture": "keeps its argument's components",
    "priors.on_cpu": "keeps its argument's components",
    "priors.from_components": "makes one of the mixtures",
    "code_priors.VampPrior.config": "one number",
    "code_priors.VampPrior.encoder": "a part",
    "code_priors.VampPrior.extra_repr": "one number",
    "code_priors.ExemplarPrior.config": "one number",
    "code_priors.ExemplarPrior.encoder": "a part",
    "code_priors.ExemplarPrior.extra_repr": "one number",
    "bounds.objective": "beneath elbo",
    "gmm.fit_quietly": "another name of fit_gmm, without its warnings",
    "gmm.GaussianMixture": "keeps its arguments",
    "gmm.GaussianMixture.components": "keeps its arguments",
    "gmm.GaussianMixture.config": "one number",
    "gmm.GaussianMixture.extra_repr": "one number",
    "adapters.adapt": "calls nothing",
    "adapters.adapt_vae": "calls nothing",
    "adapters.adapt_prior_of": "calls nothing",
    "adapters.adapt_encoder": "calls nothing",
    "adapters.adapt_codes": "calls nothing",
    "adapters.adapt_decoder": "calls nothing",
    "adapters.AdaptedVAE": "calls nothing",
    "adapters.AdaptedVAE.forward": "another name of encode",
    "adapters.AdaptedVAE.batches": "a part of aggregated_posterior",
    "adapters.AdaptedVAE.check": "of a few data",
    "adapters.AdaptedVAE.evaluating": "of a few data",
    "adapters.AdaptedVAE.data": "brings data to a device",
    "adapters.AdaptedVAE.condition": "brings conditions to a device",
    "adapters.AdaptedVAE.only": "a copy without its tensors",
    "adapters.AdaptedVAE.device": "a part",
    "adapters.AdaptedVAE.dtype": "a part",
    "adapters.AdaptedVAE.holder": "a part",
    "adapters.AdaptedVAE.latent_dim": "one number",
    "adapters.AdaptedVAE.prior": "a part",
    "distributed.ShardedMixture.double": "returns itself",
    "distributed.ShardedMixture.parts": "beneath its other methods",
    "distributed.ShardedMixture.sums": "beneath its densities",
    "distributed.in_shards": "keeps its argument",
    "distributed.sums_without": "beneath ShardedMixture.log_prob_leave_one_out",
    "certificates.mismatch_bound": "two numbers",
    "mixture.DiagGaussianMixture.config": "one number",
    "mixture.DiagGaussianMixture.latent_dim": "one number",
    "mixture.DiagGaussianMixture.num_components": "one number",
    "mixture.DiagGaussianMixture.log_weight": "keeps its argument",
    "mixture.DiagGaussianMixture.leave_one_out": "keeps its argument; LeaveOneOut.log_prob",
    "data.digits": "one data set",
    "data.fashion_mnist": "one data set",
    "plots.use_style": "no argument",
    "plots.prior_rings": "three circles",
    "weights.check_log_likelihood": "beneath em and fit_weights",
}
"""Modules, functions and methods that are not measured by themselves, and why."""
SLICE = ("mixture.DiagGaussianMixture.log_prob", "information.kl_per_dimension", "certificates.mmd_squared")


def functions():
    """All public functions, classes that are called with arguments, and their methods: module.name."""
    spec = importlib.util.spec_from_file_location("api", ROOT / "book" / "_ext" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    found = set()
    for module in (module for names, _ in api.layers() for module in names):
        for name in api.public(module):
            value = getattr(importlib.import_module(f"vaebook.{module}"), name)
            if not (inspect.isclass(value) and issubclass(value, tuple)):  # those with fields only keep them
                found.add(f"{module}.{name}")
            found |= {f"{module}.{name}.{method}" for method in methods(value)}
    return found


def methods(value):
    """Public methods and properties that the package itself wrote."""
    for name in dir(value) if inspect.isclass(value) else ():
        member = inspect.getattr_static(value, name)
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(member) and member.__module__.startswith("vaebook."):
            yield name


def measured(*calls):
    """Measure calls, each with its N and D, in a new process."""
    command = [
        sys.executable,
        str(ROOT / "book" / "experiments" / "costs.py"),
        *(str(x) for call in calls for x in call),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def enough(stored):
    """Megabytes that a call may take where it took so many: libraries keep more or less for themselves."""
    return 1.5 * stored + 50


def test_every_public_function_is_measured_or_says_why_not():
    found, cases = functions(), {name.partition(",")[0] for name in CASES}
    assert len(found) > 200
    open_ones = {name for name in found - cases if not {name, name.partition(".")[0]} & WITHOUT.keys()}
    assert open_ones == set(), "add a case to book/experiments/costs.py, or a reason here"
    assert cases <= found
    assert WITHOUT.keys() <= found | {name.partition(".")[0] for name in found} | {"claims", "__main__"}
    assert not {name for name in cases if {name, name.partition(".")[0]} & WITHOUT.keys()}


def test_every_row_is_there_and_exponents_follow():
    assert list(ROWS) == list(CASES)
    for name, row in ROWS.items():
        case = CASES[name]
        assert (row["counts"], row["N"], row["D"]) == (case.counts, case.num, case.dim)
        for kind, least in NOISE.items():
            for size in settings(case).keys() - {""}:
                power = row.get(f"{GROWTH[kind]}_{size}")
                assert (power is None) == (row[kind] < least), name
                if power is not None:
                    assert power == pytest.approx(exponent(row[kind], row[f"{kind}_{size}"]), abs=0.02), name


def test_only_what_needs_all_pairs_takes_more_than_in_proportion():
    """The time of all pairs grows with the square of N, the memory of a matrix of them too; caches blur exponents."""
    for name, row in ROWS.items():
        pairs, matrix = name in PAIRS, name.startswith("estimators.")
        assert row.get("time_N", 0) < (2.7 if pairs else 1.8), name
        assert row.get("memory_N", 0) < (2.3 if matrix else 1.7), name
        assert row.get("time_D", 0) < 1.8 and row.get("memory_D", 0) < 1.7, name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux only")
def test_a_slice_takes_the_memory_that_is_stored():
    for found in measured(*((name, CASES[name].num, CASES[name].dim) for name in SLICE)):
        stored = ROWS[found["name"]]
        assert 0.3 * stored["megabytes"] - 5 < found["megabytes"] < enough(stored["megabytes"]), found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux only")
def test_every_call_takes_the_memory_and_about_the_time_that_are_stored():
    """Processors differ, and so do their libraries: ten times the time is a fault on any."""
    calls = [(name, size, *each) for name, case in CASES.items() for size, each in settings(case).items()]
    found = measured(*((name, *sizes) for name, _, *sizes in calls))
    assert Counter(each["name"] for each in found) == Counter(name for name, *_ in calls)
    for (name, size, num, dim), each in zip(calls, found, strict=True):
        print(f"{name}, N = {num:,}, D = {dim}: {each['cpu_seconds']:.3f} s, {each['megabytes']:.0f} MB")
        end = f"_{size}" if size else ""
        assert each["megabytes"] < enough(ROWS[name]["megabytes" + end]), (name, num, dim)
        assert each["cpu_seconds"] < 10 * ROWS[name]["cpu_seconds" + end] + 2, (name, num, dim)
