"""Laws of the doors: how a model writes down what it means does not change what it means."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import generator, law, mixtures, normal, same, seeds
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from vaebook.adapters import adapt, adapt_prior
from vaebook.aggregate import aggregated_posterior
from vaebook.mixture import DiagGaussianMixture
from vaebook.outputs import Decoded
from vaebook.parts import components

FORMS = {
    "pair": (lambda m, s: (m, s), "std"),
    "pair of variances": (lambda m, s: (m, s**2), "var"),
    "pair of logarithms": (lambda m, s: (m, 2 * s.log()), "log_var"),
    "Normal": (lambda m, s: Normal(m, s), "std"),
    "Independent": (lambda m, s: Independent(Normal(m, s), 1), "std"),
    "MultivariateNormal": (lambda m, s: MultivariateNormal(m, torch.diag_embed(s**2)), "std"),
    "mapping": (lambda m, s: {"mu": m, "logvar": 2 * s.log()}, "std"),
    "object": (lambda m, s: SimpleNamespace(mean=m, variance=s**2), "std"),
    "images": (lambda m, s: (m[:, None, :, None], s[:, None, :, None]), "std"),
}
forms = st.sampled_from(sorted(FORMS))


def parameters(seed, num, dim):
    w = normal(seed, 3, dim)
    return normal(seed + 1, num, 3), lambda x: (x @ w, (0.5 * (x @ w).cos()).exp() * 0.4)


@law
@given(seeds, forms, forms, st.integers(1, 9), st.integers(1, 3))
def test_any_two_forms_give_the_same_q_agg(seed, one, two, num, dim):
    x, codes = parameters(seed, num, dim)
    q, r = (
        aggregated_posterior(lambda x, form=FORMS[name][0]: form(*codes(x)), x, spread=FORMS[name][1])
        for name in (one, two)
    )
    same(r.loc, q.loc, rtol=1e-12, atol=1e-12)
    same(r.scale, q.scale, rtol=1e-12, atol=1e-12)


@law
@given(seeds, forms, st.integers(2, 9))
def test_a_datum_has_the_same_code_in_any_company(seed, form, num):
    x, codes = parameters(seed, num, 2)
    make, spread = FORMS[form]
    vae = adapt(lambda x: make(*codes(x)), spread=spread)
    whole = vae.encode(x).base_dist
    alone = [vae.encode(row[None]).base_dist for row in x]
    same(torch.cat([q.loc for q in alone]), whole.loc)
    same(torch.cat([q.scale for q in alone]), whole.scale)


@law
@given(seeds, st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_decoding_is_row_by_row(seed, num_samples, num, dim):
    v = normal(seed, dim, 4)
    vae = adapt(lambda x: (x[:, :dim], x[:, :dim].exp()), lambda z: (z @ v).sigmoid(), likelihood="bernoulli",
                latent_shape=(dim,))  # fmt: skip
    x, z = normal(seed + 1, num, 4).sigmoid(), normal(seed + 2, num_samples, num, dim)
    whole = vae.log_likelihood(z, x)
    for s in range(num_samples):
        for n in range(num):
            same(vae.log_likelihood(z[s : s + 1, n : n + 1], x[n : n + 1])[0, 0], whole[s, n], rtol=1e-9)


@law
@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_one_code_for_all_data_is_the_code_for_each(seed, num_samples, num):
    v = normal(seed, 2, 4)
    vae = adapt(lambda x: (x[:, :2], x[:, :2].exp()), lambda z: Normal(z @ v, 1.0), latent_shape=(2,))
    x, z = normal(seed + 1, num, 4), normal(seed + 2, num_samples, 1, 2)
    same(vae.log_likelihood(z, x), vae.log_likelihood(z.expand(num_samples, num, 2).contiguous(), x))


@law
@given(seeds, st.permutations(range(5)))
def test_data_and_conditions_go_together(seed, order):
    x, y, order = normal(seed, 5, 3), normal(seed + 1, 5, 3), list(order)
    vae = adapt(lambda x, shift: (x + shift, x.exp()), lambda z, shift: Normal(z - shift, 1.0))
    whole = vae.encode(*vae.data(x, {"shift": y})).base_dist
    turned = vae.encode(*vae.data(x[order], {"shift": y[order]})).base_dist
    same(turned.loc, whole.loc[order])
    z = normal(seed + 2, 4, 5, 3)
    one = vae.log_likelihood(z, x, {"shift": y})
    same(vae.log_likelihood(z[:, order], x[order], {"shift": y[order]}), one[:, order])


@law
@given(mixtures(), seeds)
def test_a_mixture_is_the_same_prior_in_torchs_words(q, seed):
    part = Independent(Normal(q.loc, q.scale), 1)
    prior = adapt_prior(MixtureSameFamily(Categorical(logits=q.double().log_weight), part))
    z = q.sample((8,), generator=generator(seed))
    same(prior.log_prob(z), q.log_prob(z), rtol=1e-7, atol=1e-7)
    again = DiagGaussianMixture(components(prior)[1], components(prior)[2], components(prior)[0].log_softmax(0))
    same(again.log_prob(z), q.log_prob(z), rtol=1e-9)


@law
@given(seeds, st.integers(1, 4))
def test_the_closed_form_of_the_kl_is_its_average(seed, dim):
    loc, scale = normal(seed, dim), normal(seed + 1, dim).exp()
    prior = adapt_prior(Independent(Normal(loc, scale), 1))
    m, s = normal(seed + 2, 3, dim), normal(seed + 3, 3, dim).exp()
    noise = normal(seed + 4, 4000, 3, dim)
    z = m + s * noise
    draws = Normal(m, s).log_prob(z).sum(-1) - prior.log_prob(z)
    error = 6 * draws.std(0) / 4000**0.5 + 1e-9
    assert bool(((draws.mean(0) - prior.kl(m, s)).abs() <= error).all())


@law
@given(seeds, st.sampled_from([(6,), (1, 2, 3), (2, 3), (3, 1, 2)]))
def test_the_shape_of_data_is_no_matter(seed, shape):
    loc, x = normal(seed, 4, 6), normal(seed + 1, 4, 6)
    flat = Decoded(Independent(Normal(loc, 1.0), 1), (4,)).log_prob(x)
    shaped = Decoded(Normal(loc.reshape(4, *shape), 1.0), (4,))
    same(shaped.log_prob(x.reshape(4, *shape)), flat)
    same(shaped.log_prob(x), flat)
