"""Claims of chapter aggregated/surgery: information and mismatch in the KL term, and where the mismatch lies."""

from __future__ import annotations

import math

import torch
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

from vaebook.certificates import gaussian_cap, mutual_information_bounds
from vaebook.claims.registry import Measurement, Neighbour, claim
from vaebook.estimators import Estimate, estimate
from vaebook.information import decompose_kl, mutual_information, mutual_information_quadrature
from vaebook.mixture import DiagGaussianMixture
from vaebook.priors import StandardNormal

CHAPTER = "aggregated/surgery"
SAMPLES = 20_000


def _codes(num: int, dim: int, generator: torch.Generator) -> DiagGaussianMixture:
    """Make codes with correlated means, clearly apart from each other and from N(0, I), with unequal weights."""
    mixing = torch.eye(dim, dtype=torch.float64) + 0.6
    loc = 1.3 * torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing + 0.5
    scale = (-0.7 + 0.3 * torch.randn(num, dim, generator=generator, dtype=torch.float64)).exp()
    weight = (0.3 * torch.randn(num, generator=generator, dtype=torch.float64)).log_softmax(0)
    return DiagGaussianMixture(loc, scale, weight)


def _kl(q_agg: DiagGaussianMixture, prior: object, generator: torch.Generator) -> Estimate:
    """KL(q_agg | p) from draws of its own."""
    z = q_agg.sample((SAMPLES,), generator=generator)
    return estimate(q_agg.log_prob(z) - prior.log_prob(z))


def _moment_match(q_agg: DiagGaussianMixture) -> MultivariateNormal:
    return MultivariateNormal(q_agg.mean, q_agg.covariance)


def _rate(q_agg: DiagGaussianMixture, prior: MultivariateNormal) -> float:
    """Mean KL(q(z|n) | p) under any Gaussian prior, by torch's closed form."""
    each = kl_divergence(MultivariateNormal(q_agg.loc, scale_tril=torch.diag_embed(q_agg.scale)), prior)
    return float(q_agg.log_weight.exp() @ each)


def _standard(dim: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))


def integrated_kl(q_agg: DiagGaussianMixture) -> float:
    """KL(q_agg | N(0, 1)) for D = 1, by the trapezoid rule on the two densities themselves."""
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    log_q = q_agg.log_prob(z[:, None])
    return float(torch.trapezoid(log_q.exp() * (log_q - Normal(z.new_zeros(()), 1.0).log_prob(z)), z))


@claim(
    "agg/surgery",
    falsehood=r"$R = \mathrm{KL}(q_\mathrm{agg}\,\|\,p)$: the KL term measures the mismatch with the prior.",
    kind="MC",
    source="Hoffman & Johnson (2016)",
    section=CHAPTER,
)
def surgery(generator: torch.Generator) -> Measurement:
    """Sample I and the mismatch separately in three dimensions, under N(0, I) and under a correlated Gaussian."""
    q_agg, lhs, rhs, wrong, errors, wrong_errors = _codes(30, 3, generator), [], [], [], [], []
    moments = float(kl_divergence(_moment_match(q_agg), _standard(3)))
    for prior in (_standard(3), MultivariateNormal(q_agg.mean + 1, 2 * q_agg.covariance)):
        information, mismatch = mutual_information(q_agg, SAMPLES, generator=generator), _kl(q_agg, prior, generator)
        lhs.append(_rate(q_agg, prior))
        rhs.append(information.value + mismatch.value)
        wrong.append(mismatch.value)
        errors.append(math.hypot(information.stderr, mismatch.stderr))
        wrong_errors.append(mismatch.stderr)
    return Measurement(
        sides=[("rate R in closed form", "information plus mismatch, sampled")] * 2,
        lhs=torch.tensor(lhs),
        rhs=torch.tensor(rhs),
        falsehood_rhs=torch.tensor(wrong),
        stderr=torch.tensor(errors),
        falsehood_stderr=torch.tensor(wrong_errors),
        neighbours={
            "the mismatch of the moments in its place": Neighbour(lhs[0], rhs[0] - wrong[0] + moments, unit=errors[0]),
        },
    )


@claim(
    "agg/optimal-prior",
    falsehood="A prior that matches the mean and the covariance of $q_\\mathrm{agg}$ is as good.",
    kind="MC",
    source="Tomczak & Welling (2018); Hoffman & Johnson (2016)",
    section=CHAPTER,
)
def optimal_prior(generator: torch.Generator) -> Measurement:
    """Try N(0, 1), the matched Gaussian, a random mixture and q_agg itself (in another order) against integrated I."""
    left, right = _codes(8, 1, generator), _codes(8, 1, generator)
    loc, log_weight = torch.cat([left.loc - 4, right.loc + 4]), torch.cat([left.log_weight, right.log_weight])
    q_agg = DiagGaussianMixture(loc, torch.cat([left.scale, right.scale]), log_weight - math.log(2))
    information = mutual_information_quadrature(q_agg)
    order = torch.randperm(16, generator=generator)
    same = DiagGaussianMixture(q_agg.loc[order], q_agg.scale[order], q_agg.log_weight[order])
    other = DiagGaussianMixture(left.loc, 3 * left.scale + 3)
    matched = Independent(Normal(q_agg.mean, q_agg.variance.sqrt()), 1)
    rates = [
        decompose_kl(q_agg, prior, num_samples=SAMPLES, generator=generator).rate
        for prior in (StandardNormal(1), matched, other, same)
    ]
    values, errors = zip(*[(rate.value, max(rate.stderr, 1e-9)) for rate in rates], strict=True)
    return Measurement(  # the last pair: with the first to the fourth, equality at q_agg
        sides=[("mean KL to a prior", "I(n; z)")] * 4 + [("I(n; z)", "mean KL to q_agg itself")],
        lhs=torch.tensor([*values, information], dtype=torch.float64),
        rhs=torch.tensor([*[information] * 4, values[3]], dtype=torch.float64),
        falsehood_lhs=information,
        falsehood_rhs=values[1],
        relation=">=",
        stderr=torch.tensor([*errors, errors[3]], dtype=torch.float64),
        falsehood_stderr=1e-9,
        neighbours={"the mean KL is at least 1.1 I": Neighbour(values[3], 1.1 * information, unit=errors[3])},
    )


@claim(
    "agg/mismatch",
    falsehood=r"$\mathrm{KL}(q_\mathrm{agg}\,\|\,p)\le\mathbb E\,\mathrm{KL}(q(z\mid x)\,\|\,p(z\mid x))$ alone: exact "
    "inference makes the two agree.",
    kind="quadrature",
    source="Rosca, Lakshminarayanan & Mohamed (2018); chain rule of KL, Cover & Thomas (2006)",
    section=CHAPTER,
)
def mismatch(generator: torch.Generator) -> Measurement:
    """Integrate all four terms for five symbols, a random decoder, a Gaussian encoder and data that do not fit."""
    slope = torch.linspace(-2, 2, 5, dtype=torch.float64) + 0.3 * torch.rand(
        5, generator=generator, dtype=torch.float64
    )
    z = torch.linspace(-10, 10, 4_001, dtype=torch.float64)
    log_decoder = (z[:, None] * slope + 0.3 * torch.randn(5, generator=generator, dtype=torch.float64)).log_softmax(1)
    log_p = Normal(z.new_zeros(()), 1.0).log_prob(z)
    p_model = torch.trapezoid((log_decoder + log_p[:, None]).exp(), z, dim=0)
    log_posterior = log_decoder + log_p[:, None] - p_model.log()
    loc = torch.trapezoid(log_posterior.exp() * z[:, None], z, dim=0)
    variance = torch.trapezoid(log_posterior.exp() * (z[:, None] - loc).square(), z, dim=0)
    p_data = torch.tensor([0.02, 0.02, 0.02, 0.04, 0.9], dtype=torch.float64)
    log_q = Normal(loc, variance.sqrt()).log_prob(z[:, None])
    q_agg = DiagGaussianMixture(loc[:, None], variance.sqrt()[:, None], p_data.log())
    log_agg = q_agg.log_prob(z[:, None])
    in_z = torch.trapezoid(log_agg.exp() * (log_agg - log_p), z)
    in_x = kl_divergence(Categorical(p_data), Categorical(p_model))
    inference = p_data @ torch.trapezoid(log_q.exp() * (log_q - log_posterior), z, dim=0)
    backward = Categorical(logits=log_q + p_data.log())  # q(x|z), by Bayes' rule
    lost = torch.trapezoid(log_agg.exp() * kl_divergence(backward, Categorical(logits=log_decoder)), z)
    return Measurement(  # the inequality, then the equality as two
        sides=[("mismatch", "misfit of the model plus error of inference")],
        lhs=torch.stack([in_z, in_z + lost, in_x + inference]),
        rhs=torch.stack([in_x + inference, in_x + inference, in_z + lost]),
        falsehood_lhs=in_z,
        falsehood_rhs=inference,
        relation="<=",
        tolerance=1e-8,
        neighbours={
            "an equality": Neighbour(in_x + inference, in_z),
            "the model's misfit alone": Neighbour(in_z + lost, in_x),
        },
    )


@claim(
    "agg/tc-split",
    falsehood="The same split for a correlated prior with those marginals.",
    kind="MC",
    source="Chen et al. (2018)",
    section=CHAPTER,
)
def tc_split(generator: torch.Generator) -> Measurement:
    """Integrate the divergences of the marginals in closed form and by quadrature; sample KL and TC separately."""
    q_agg, correlation = _codes(12, 2, generator), torch.tensor([[1.0, -0.7], [-0.7, 1.0]], dtype=torch.float64)
    parts = decompose_kl(q_agg, StandardNormal(2), num_samples=SAMPLES, marginals=True, generator=generator)
    total = parts.total_correlation
    loc, scale, log_weight = q_agg.loc, q_agg.scale, q_agg.log_weight
    single = sum(integrated_kl(DiagGaussianMixture(loc[:, [j]], scale[:, [j]], log_weight)) for j in range(2))
    mismatch = _kl(q_agg, _standard(2), generator)
    wrong = _kl(q_agg, MultivariateNormal(torch.zeros(2, dtype=torch.float64), correlation), generator)
    return Measurement(
        sides=[("mismatch, sampled", "total correlation plus KL of the marginals")],
        lhs=mismatch.value,
        rhs=total.value + single,
        falsehood_lhs=wrong.value,
        falsehood_rhs=total.value + single,
        stderr=math.hypot(mismatch.stderr, total.stderr),
        falsehood_stderr=math.hypot(wrong.stderr, total.stderr),
        neighbours={"the single coordinates show all of it": Neighbour(mismatch.value, single, unit=mismatch.stderr)},
    )


@claim(
    "agg/pythagoras",
    falsehood=r"The same with $\mathcal N(\bar\mu,\sum_nw_n\Sigma_n)$ in the middle.",
    kind="MC",
    source="Csiszár (1975) on I-projections; for q_agg, this book",
    section=CHAPTER,
)
def pythagoras(generator: torch.Generator) -> Measurement:
    """Sample both divergences of q_agg separately; the one between Gaussians is closed form."""
    q_agg = _codes(25, 3, generator)
    total = _kl(q_agg, _standard(3), generator)
    within = torch.diag(q_agg.log_weight.exp() @ q_agg.scale.square())
    sums, errors = [], []
    for middle in (
        _moment_match(q_agg),
        MultivariateNormal(q_agg.mean, within),
        MultivariateNormal(q_agg.mean + 1.0, q_agg.covariance),
    ):
        first = _kl(q_agg, middle, generator)
        sums.append(first.value + float(kl_divergence(middle, _standard(3))))
        errors.append(math.hypot(first.stderr, total.stderr))
    return Measurement(
        sides=[("mismatch, sampled", "KL to the Gaussian plus its own mismatch")],
        lhs=total.value,
        rhs=sums[0],
        falsehood_rhs=sums[1],
        stderr=errors[0],
        falsehood_stderr=errors[1],
        neighbours={"another mean in the middle": Neighbour(total.value, sums[2], unit=errors[2])},
    )


@claim(
    "agg/gaussian-cap",
    falsehood=r"$I$ equals the right-hand side.",
    kind="MC",
    source="this book; entropy of a Gaussian is largest at given covariance, Cover & Thomas (2006), theorem 8.6.5",
    section=CHAPTER,
)
def cap(generator: torch.Generator) -> Measurement:
    """Sample both terms separately in three dimensions; the codes are four clusters, so far from one Gaussian."""
    centre = 3 * torch.tensor([[1, 1, 0], [-1, 1, 0], [0, -1, 1], [0, -1, -1]], dtype=torch.float64)
    loc = centre.repeat(8, 1) + 0.5 * torch.randn(32, 3, generator=generator, dtype=torch.float64)
    q_agg = DiagGaussianMixture(loc, (-1 + 0.3 * torch.randn(loc.shape, generator=generator).double()).exp())
    information = mutual_information(q_agg, SAMPLES, generator=generator)
    shape = _kl(q_agg, _moment_match(q_agg), generator)
    apart = DiagGaussianMixture(centre.repeat_interleave(2, 0), torch.full((8, 3), 0.1).double())  # each code twice
    told = mutual_information(apart, 1_000, generator=generator).value
    return Measurement(  # the second entry: how far I exceeds H(m/N), which it reaches where codes are far apart
        sides=[("I(n; z) plus KL to the Gaussian", "closed form of the cap"), ("I(n; z) beyond H(m/N)", "none")],
        lhs=torch.tensor([information.value + shape.value, max(0.0, told - math.log(4))], dtype=torch.float64),
        rhs=torch.tensor([gaussian_cap(q_agg), 0.0], dtype=torch.float64),
        falsehood_lhs=information.value,
        falsehood_rhs=gaussian_cap(q_agg),
        stderr=torch.tensor([math.hypot(information.stderr, shape.stderr), 1e-9], dtype=torch.float64),
        falsehood_stderr=information.stderr,
        neighbours={"I is at most 0.99 H(m/N)": Neighbour(max(0.0, told - 0.99 * math.log(4)), 0.0, unit=1e-9)},
    )


@claim(
    "agg/entropy-sandwich",
    falsehood=r"The upper bound with $\mathrm{KL}(j\,\|\,i)$.",
    kind="bound",
    source="Kolchinsky & Tracey (2017); that the upper bound is below H(m/N): this book",
    section=CHAPTER,
)
def entropy_sandwich(generator: torch.Generator) -> Measurement:
    """Integrate I between the bounds for random codes, three of them equal; refute the other order by an example."""
    ladder = []
    for spread in (0.3, 1.0, 3.0, 30.0):
        places = spread * (torch.arange(6, dtype=torch.float64) + 0.5 * torch.rand(6, generator=generator).double())
        loc = places.repeat_interleave(torch.tensor([1, 3, 1, 1, 1, 1]))[:, None]
        scale = (0.3 * torch.randn(6, generator=generator, dtype=torch.float64)).exp()
        scale = scale.repeat_interleave(torch.tensor([1, 3, 1, 1, 1, 1]))[:, None]
        q_agg = DiagGaussianMixture(loc, scale)
        bounds, information = mutual_information_bounds(q_agg), mutual_information_quadrature(q_agg)
        entropy = math.log(8) - 3 / 8 * math.log(3)
        ladder += [(bounds.lower, information), (information, bounds.pairwise_upper), (bounds.pairwise_upper, entropy)]
    ladder.append((entropy, bounds.lower + 1e-3))  # far apart, the bounds meet
    unit = 0.5 + float(torch.rand((), generator=generator))
    scale = unit * torch.tensor([[0.05]] * 20 + [[1.0]], dtype=torch.float64)
    example = DiagGaussianMixture(torch.zeros_like(scale), scale)
    swapped = kl_divergence(Normal(torch.zeros_like(scale), scale), Normal(torch.zeros_like(scale.mT), scale.mT)).mT
    lhs, rhs = torch.tensor(ladder, dtype=torch.float64).T
    return Measurement(
        sides=[("lower bound", "I(n; z) by quadrature")],
        lhs=lhs,
        rhs=rhs,
        falsehood_lhs=mutual_information_quadrature(example),
        falsehood_rhs=-((-swapped).logsumexp(1) - math.log(21)).mean(),
        relation="<=",
        tolerance=1e-9,
        neighbours={
            "a lower bound larger by a hundredth": Neighbour(1.01 * bounds.lower, information),
            "0.99 H(m/N) as the upper one": Neighbour(information, 0.99 * entropy),
        },
    )
