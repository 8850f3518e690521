"""Defaults and constants decide results that others rely on: whoever changes one says so here too."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

TABLE = """
__main__.SPREADS = ('scale', 'var', 'log_var')
__main__.CODES = ('loc', 'scale', 'var', 'log_var', 'log_weight')
__main__.main(arguments) = None
_checks.NORMALISATION = 1e-05
_checks.MANY = 16
_checks.explained(within) = False
_checks.check_tensor(finite) = True
_checks.check_tensor(empty) = False
_checks.check_tensor(like) = None
_checks.check_unit(wanted) = 'values in [0, 1]'
_checks.check_unit(slack) = 0.0
_checks.check_index(like) = None
_checks.check_index(size) = None
_checks.to_scale(loc) = None
_checks.check_type(hint) = ''
_checks.check_int(maximum) = 9223372036854775807
_checks.check_number(minimum) = -inf
_checks.check_number(above) = -inf
_checks.check_number(below) = inf
_checks.check_choice(wanted) = 'one of'
_checks.check_sizes(minimum) = 0
_checks.check_sizes(empty) = True
_checks.check_generator(device) = None
_checks.new_seed(below) = 2147483648
adapters.PROBE = 16
adapters.AdaptedVAE(prior) = None
adapters.AdaptedVAE(data_shape) = None
adapters.AdaptedVAE(condition) = None
adapters.AdaptedVAE(modules) = ()
adapters.adapt(decode) = None
adapters.adapt(prior) = None
adapters.adapt(likelihood) = None
adapters.adapt(spread) = 'std'
adapters.adapt(data_shape) = None
adapters.adapt(latent_shape) = None
adapters.adapt(condition) = None
adapters.adapt(modules) = ()
adapters.adapt_encoder(spread) = 'std'
adapters.adapt_codes(spread) = 'std'
adapters.AdaptedVAE.data(condition) = None
adapters.AdaptedVAE.data(name) = 'x'
adapters.AdaptedVAE.data(least) = 1
adapters.AdaptedVAE.batches(condition) = None
adapters.AdaptedVAE.batches(name) = 'x'
adapters.AdaptedVAE.encode(condition) = None
adapters.AdaptedVAE.forward(condition) = None
adapters.AdaptedVAE.log_likelihood(condition) = None
adapters.AdaptedVAE.evaluating(x) = None
adapters.AdaptedVAE.evaluating(condition) = None
adapters.AdaptedVAE.check(condition) = None
adapters.AdaptedVAE.sample(latent) = None
adapters.AdaptedVAE.sample(condition) = None
adapters.AdaptedVAE.sample(generator) = None
aggregate.SPREADS = ('scale', 'var', 'log_var')
aggregate.aggregated_posterior(spread) = 'std'
aggregate.aggregated_posterior(condition) = None
aggregate.aggregated_posterior(batch_size) = 1024
bounds.MOST = 1000000000
bounds.elbo(num_samples) = 1
bounds.elbo(beta) = 1.0
bounds.elbo(index) = None
bounds.elbo(condition) = None
bounds.elbo(generator) = None
bounds.iwae_bound(condition) = None
bounds.iwae_bound(generator) = None
bounds.iwae_bound(chunk_size) = None
bounds.prior_sample_log_prob(shared) = True
bounds.prior_sample_log_prob(condition) = None
bounds.prior_sample_log_prob(generator) = None
bounds.quadrature_log_prob(condition) = None
bounds.quadrature_log_prob(limit) = 8.0
bounds.quadrature_log_prob(tolerance) = 1e-09
bounds.quadrature_log_prob(max_nodes) = 5000000
certificates.BLOCK = 65536
checkpoint.save(config) = None
checkpoint.load(vae) = None
clusters.SIZE = 256
clusters.PAIRS = 2097152
clusters.COMPONENTS = 2048
clusters.BAND = 4096
clusters.ROWS = 512
clusters.COLUMNS = 2048
clusters.NEGLIGIBLE = 1e-10
clusters.ROUGH = 8.0
clusters.EACH = ('loc', 'scale', 'normaliser', 'keys')
clusters.SAMPLE = 64
clusters.WORTH = 0.45
clusters.MORE = 0.08
clusters.WITHIN = 900.0
clusters.evaluate(score) = False
code_priors.ExemplarPrior(scale) = 1.0
data.DIGITS_SIZES = (1297, 100, 400)
data.FASHION_VALIDATION = 10000
data.fashion_mnist(folder) = None
data.binarize(generator) = None
diagnosis.LEAST = 60
diagnosis.FEWEST = 10
diagnosis.PAIRS = 10000000000.0
diagnosis.MOST = 50000
diagnosis.WIDE = 50
diagnosis.ENOUGH = 40
diagnosis.SHOWN = 1000
diagnosis.diagnose(x) = None
diagnosis.diagnose(held_out) = None
diagnosis.diagnose(condition) = None
diagnosis.diagnose(held_out_condition) = None
diagnosis.diagnose(prior) = None
diagnosis.diagnose(num_data) = 500
diagnosis.diagnose(generator) = None
distributed.POINTS = 16384
distributed.LOWEST = -1.7976931348623157e+308
distributed.ShardedMixture(log_weight) = None
distributed.ShardedMixture(group) = None
distributed.ShardedMixture(part_size) = 131072
distributed.in_shards(equal) = False
distributed.ShardedMixture.sample(sample_shape) = ()
distributed.ShardedMixture.sample(generator) = None
distributed.ShardedMixture.sample_with_index(sample_shape) = ()
distributed.ShardedMixture.sample_with_index(generator) = None
distributed.ShardedMixture.sums(logarithms) = 1
distributed.ShardedMixture.sums(averages) = 0
estimators.minibatch_weights(num_data) = None
evaluation.COMPILED = 'Using `torch.compile'
evaluation.call(condition) = None
evaluation.accepts(unknown) = True
evaluation.as_data(dtype) = None
evaluation.batches(condition) = None
evaluation.batches(dtype) = None
evaluation.batches(name) = 'x'
evaluation.whole(dtype) = None
gaussians.ROUNDING = 1e-14
gaussians.CATEGORIES = 16777216
gaussians.WeightedGaussians(log_weight) = None
gaussians.WeightedGaussians(validate_args) = None
gaussians.WeightedGaussians.from_arrays(scale) = None
gaussians.WeightedGaussians.from_arrays(var) = None
gaussians.WeightedGaussians.from_arrays(log_var) = None
gaussians.WeightedGaussians.from_arrays(log_weight) = None
gaussians.WeightedGaussians.sample(sample_shape) = ()
gaussians.WeightedGaussians.sample(generator) = None
gaussians.WeightedGaussians.sample_with_index(sample_shape) = ()
gaussians.WeightedGaussians.sample_with_index(generator) = None
gmm.fit_gmm(covariance) = 'full'
gmm.fit_gmm(num_samples) = 10000
gmm.fit_gmm(min_variance) = 1e-06
gmm.fit_gmm(seed) = 0
gmm.GaussianMixture.sample(sample_shape) = ()
gmm.GaussianMixture.sample(generator) = None
holes.RARER = 0.1
holes.FALSE_ALARM = 0.01
holes.FOLDS = 3
holes.SIZES = (1, 5, 20)
holes.MOST = 20000
holes.HALF = 0.5
holes.LEAST = 60
holes.hole_mass(num_samples) = 6000
holes.hole_mass(generator) = None
inference.MOST_NODES = 100
inference.elbo_quadrature(condition) = None
inference.elbo_quadrature(tolerance) = 1e-09
inference.elbo_quadrature(max_nodes) = 100
inference.posterior_moments(condition) = None
inference.posterior_moments(limit) = 8.0
inference.posterior_moments(tolerance) = 1e-06
inference.posterior_moments(max_nodes) = 1000000
inference.inference_gap(condition) = None
inference.inference_gap(limit) = 8.0
inference.inference_gap(tolerance) = 1e-06
inference.inference_gap(num_nodes) = 10
inference.inference_gap(max_steps) = 200
information.decompose_kl(num_samples) = 10000
information.decompose_kl(marginals) = False
information.decompose_kl(generator) = None
information.kl_per_dimension(prior) = None
information.active_units(threshold) = 0.01
information.mutual_information(num_samples) = 10000
information.mutual_information(generator) = None
information.mutual_information_quadrature(tolerance) = 1e-10
information.mutual_information_quadrature(max_nodes) = 1000000
integrals.CELLS = 2097152
integrals.FINEST = 1e-14
integrals.SINGLE = 0.0001
integrals.Joint(condition) = None
integrals.Joint(prior) = None
integrals.integrand(max_nodes) = 2
integrals.integrand(limit) = 1.0
kernels.TOLERANCE = 1e-08
kernels.ROWS = 512
kernels.COLUMNS = 2048
kernels.ON_CARD = 8
kernels.POINTS = 16384
kernels.ENTRIES = 2097152
kernels.LOG2_E = 1.4426950408889634
kernels.FAR = -100000000.0
kernels.rounding_bound(dtype) = torch.float64
kernels.all_pairs(exclude) = None
kernels.all_pairs(score) = False
kernels.attend(exclude) = None
kernels.attend(score) = False
kernels.dense(exclude) = None
kernels.dense(score) = False
kernels.responsibilities(values) = None
kernels.log_terms(exclude) = None
kernels.log_terms(apart) = True
likelihood.ROWS = 32
likelihood.PRIOR_DRAWS = 4096
likelihood.TRUSTED = 50
likelihood.importance_log_prob(num_samples) = 1000
likelihood.importance_log_prob(prior) = None
likelihood.importance_log_prob(condition) = None
likelihood.importance_log_prob(generator) = None
likelihood.compare_priors(num_samples) = 1000
likelihood.compare_priors(leave_out) = None
likelihood.compare_priors(drawn_from) = None
likelihood.compare_priors(condition) = None
likelihood.compare_priors(generator) = None
memorisation.memorisation(held_out) = None
memorisation.memorisation(num_samples) = 4000
memorisation.memorisation(generator) = None
mixture.DiagGaussianMixture(log_weight) = None
mixture.DiagGaussianMixture(validate_args) = None
models.VAE.sample(latent) = None
models.VAE.sample(condition) = None
models.VAE.sample(generator) = None
modes.STEPS = 10000
modes.find_modes(starts) = None
modes.find_modes(tolerance) = 1e-10
modes.find_modes(separation) = 0.0001
networks.GaussianEncoder(hidden) = (256,)
networks.GaussianEncoder(gated) = False
networks.GaussianEncoder(log_scale_range) = None
networks.GaussianEncoder(generator) = None
networks.BernoulliDecoder(hidden) = (256,)
networks.BernoulliDecoder(gated) = False
networks.BernoulliDecoder(generator) = None
networks.GaussianDecoder(hidden) = (256,)
networks.GaussianDecoder(scale) = 'shared'
networks.GaussianDecoder(min_scale) = 0.0
networks.GaussianDecoder(generator) = None
npmle.ROUNDS = 50
npmle.fit_npmle(tolerance) = 0.0001
npmle.fit_npmle(separation) = 0.001
outputs.GreyBernoulli(probs) = None
outputs.GreyBernoulli(logits) = None
outputs.GreyBernoulli(validate_args) = None
outputs.read_codes(spread) = 'std'
outputs.read_likelihood(likelihood) = None
page.page(whole) = True
panels.SIZE = (4.6, 3.3)
parts.PROBE = 16
parts.log_density(name) = 'prior'
parts.adapt_prior(latent_dim) = None
parts.adapt_prior(name) = 'prior'
parts.gaussian_kl(middle) = 0.0
parts.gaussian_kl(spread) = 1.0
parts.Encoder(spread) = 'std'
parts.Encoder(latent_shape) = None
parts.Decoder(likelihood) = None
parts.Decoder(latent_shape) = None
parts.Prior.sample(sample_shape) = ()
parts.Prior.sample(generator) = None
parts.Encoder.check(condition) = None
parts.Decoder.log_likelihood(condition) = None
parts.Decoder.check(condition) = None
plots.DASHES = ('solid', (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
plots.ellipses(labels) = None
plots.ellipses(alpha) = 0.1
plots.density(limit) = 4.0
plots.density(num_points) = 161
plots.image_strip(shape) = (8, 8)
plots.image_strip(captions) = None
plots.image_strip(num_columns) = 10
plots.curves(xlabel) = ''
plots.curves(ylabel) = ''
plots.intervals(xlabel) = ''
population.FOLDS = 3
population.GROUPS = 20
population.FEWEST = 10
population.MOST = 100000
population.bracket_mismatch(densities) = ()
population.bracket_mismatch(num_components) = (1, 5, 10, 30)
population.bracket_mismatch(num_samples) = 10000
population.bracket_mismatch(confidence) = 0.95
population.bracket_mismatch(generator) = None
population.bracket_information(densities) = ()
population.bracket_information(num_components) = (1, 5, 10, 30)
population.bracket_information(num_samples) = 10000
population.bracket_information(confidence) = 0.95
population.bracket_information(generator) = None
ppca.PPCA.log_prob_under(leave_out_index) = None
priors.as_mixture(device) = None
priors.StandardNormal.sample(sample_shape) = ()
priors.StandardNormal.sample(generator) = None
proposals.STEPS = 4
proposals.RESERVE = 0.1
proposals.STARTS = 16
proposals.ROUNDS = 2
proposals.ROUND_SAMPLES = 500
proposals.PAIRS = 32
proposals.Sampler(num_starts) = 16
proposals.Sampler(round_samples) = 500
report.VERSION = 'vaebook.diagnosis/1'
report.Diagnosis(verdicts) = ()
report.Diagnosis(unknown) = ()
report.Diagnosis(notes) = ()
report.Diagnosis.to_json(path) = None
report.Diagnosis.to_html(path) = None
sampling.CLEAR = 2
sampling.NUM_SAMPLES = 250
sampling.SCORED = 64
sampling.SAMPLES = 400
sampling.AGAINST = 20000
selection.ORDER = ('prior', 'gmm', 'q_agg')
selection.FOLDS = 3
selection.COVARIANCES = ('full', 'diag')
selection.FIT_SAMPLES = 4000
selection.NUM_SAMPLES = 250
selection.CLEAR = 2
selection.FEW = 10
selection.choose_prior(condition) = None
selection.choose_prior(held_out) = None
selection.choose_prior(held_out_condition) = None
selection.choose_prior(num_components) = (1, 3, 10, 30)
selection.choose_prior(num_data) = 300
selection.choose_prior(generator) = None
shards.NORMALISATION = 1e-05
shards.TOLD = 1048576
shards.Processes.reduced(largest) = False
shards.Processes.common(num) = 0
storage.MOST_HEADER = 1048576
storage.check_fits(prefix) = ''
sums.prepared(num_points) = 0
sums.evaluate(exclude) = None
sums.evaluate(score) = False
tables.DIGITS = 4
testing.PARTS = 5
testing.KERNELS = 1000
testing.SHARE = 0.1
testing.assert_density_matches_sampler(num_samples) = 20000
testing.assert_density_matches_sampler(false_alarm) = 0.001
testing.assert_density_matches_sampler(generator) = None
training.fit(learning_rate) = 0.001
training.fit(beta) = 1.0
training.fit(generator) = None
training.fit(validation) = None
training.fit(patience) = None
training.fit(progress) = True
training.fit(condition) = None
training.fit(validation_condition) = None
verdicts.HALF = 0.5
verdicts.CLEAR = 2
verdicts.FEW = 10
verdicts.SURE = 3
verdicts.SMALL = 0.5
verdicts.LARGE = 2.0
verdicts.LARGE_HOLE = 0.05
verdicts.UNSEEN = 0.1
verdicts.STATIONARY = 0.1
verdicts.BLUNT = 0.5
verdicts.NOTHING = 1e-06
verdicts.TELL = 0.05
verdicts.VAGUE = 5.0
verdicts.COPIES = 0.2
verdicts.NOTHING_TO_DO = 'Nothing.'
verdicts.KEEP = 'Draw z from the prior, as before.'
verdicts.plus(unit) = ' nats'
weights.STEPS = 200
weights.em(log_weight) = None
weights.fit_weights(tolerance) = 1e-09
weights.check_log_likelihood(possible) = True
"""
MODULES = sorted(p.stem for p in Path(__file__).parents[1].joinpath("vaebook").glob("*.py") if p.stem != "__init__")


def plain(value):
    """Tell whether a value is a number or a name, or several."""
    return all(map(plain, value)) if isinstance(value, tuple) else isinstance(value, int | float | str)


def own(things, module):
    """Return what is public and defined there, by name."""
    return {n: v for n, v in vars(things).items() if n[0] != "_" and getattr(v, "__module__", "") == module.__name__}


def lines_of(name):
    """List the constants of a module, and the defaults of its functions, classes and their methods."""
    module = importlib.import_module(f"vaebook.{name}")
    found = [f"{name}.{n} = {v!r}" for n, v in vars(module).items() if n.isupper() and n[0] != "_" and plain(v)]
    public = own(module, module)
    classes = {n: v for n, v in public.items() if inspect.isclass(v)}
    public |= {f"{n}.{m}": getattr(cls, m) for n, cls in classes.items() for m in own(cls, module)}
    for path, thing in public.items():
        parameters = inspect.signature(thing).parameters if callable(thing) else {}
        given = {n: p.default for n, p in parameters.items() if p.default is not p.empty and not callable(p.default)}
        found += [f"{name}.{path}({n}) = {default!r}" for n, default in given.items() if repr(default)[0] != "<"]
    return [line for line in dict.fromkeys(found) if len(line) <= 120]


@pytest.mark.parametrize("name", MODULES)
def test_defaults_and_constants_are_those_that_were_written_down(name):
    assert lines_of(name) == [line for line in TABLE.splitlines() if line.startswith(f"{name}.")]


def test_nothing_is_written_down_of_modules_that_are_gone():
    assert {line.partition(".")[0] for line in TABLE.split("\n")[1:-1]} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_all_names_that_a_module_offers_are_there(name):
    module = importlib.import_module(f"vaebook.{name}")
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []
