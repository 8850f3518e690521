r"""Priors p(z) over the latent space.

A prior has `latent_dim`, `log_prob(z)` (a normalised density, in nats) and `sample(sample_shape, generator=…)`.
Density and sampler describe the same distribution; a test holds them together. These here are modules, and have
also `components()`, their log-weights, means and scales, and `config()`, the sizes that describe them.

Two of them, `VampPrior` and `ExemplarPrior`, are made of an encoder's codes and change with it: they are trained
jointly with the model. `fit_gmm` fits a prior afterwards, with everything else fixed. The aggregated posterior
itself, a `vaebook.DiagGaussianMixture`, serves as a prior as it is.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from vaebook._checks import (
    check_all,
    check_generator,
    check_int,
    check_number,
    check_positive,
    check_same_device,
    check_shape,
    check_tensor,
)
from vaebook.adapters import Components, Prior, adapt_encoder, components
from vaebook.evaluation import as_data, blaming, evaluation_mode
from vaebook.mixture import DiagGaussianMixture, LeaveOneOut

Covariance = Literal["full", "diag"]
"""Whether the components of a fitted mixture may have correlations."""


class _Prior(nn.Module):
    latent_dim: int

    def config(self) -> dict[str, int]:
        """Return the sizes that, with its tensors, make this prior again."""
        return {"latent_dim": self.latent_dim}

    def extra_repr(self) -> str:
        """Show the sizes in `repr`."""
        return ", ".join(f"{name}={size}" for name, size in (self.config() | _Prior.config(self)).items())


class StandardNormal(_Prior):
    r"""The usual prior of a VAE, without parameters.

    $p(z) = \prod_{j=1}^D \mathcal N(z_j \mid 0, 1)$

    It follows its model through `.to(device)` and `.double()`, so that samples come in the right place and dtype.

    Args:
        latent_dim: D.

    Raises:
        TypeError: latent_dim is not an int.
        ValueError: latent_dim is below 1.

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), section 3.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = check_int("latent_dim", latent_dim, minimum=1)
        # Empty: it only remembers the device and dtype that the module was moved to.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        r"""Log-density in nats.

        $\log p(z) = -\tfrac12\lVert z\rVert^2 - \tfrac D2\log 2\pi$

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log p(z), (*s), computed in float64 and returned in z's dtype. Differentiable.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is not finite, or it is on another device than the prior.

        Example:
            >>> import torch
            >>> StandardNormal(1).log_prob(torch.tensor([[2.0]]))
            tensor([-2.9189])
        """
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        check_same_device(z=z, prior=self._anchor)
        constant = 0.5 * self.latent_dim * math.log(2 * math.pi)
        return (-0.5 * z.double().square().sum(-1) - constant).to(z.dtype)

    def kl(self, loc: Tensor, scale: Tensor) -> Tensor:
        r"""KL divergence of diagonal Gaussians from this prior, in closed form and nats.

        $\mathrm{KL}(\mathcal N(\mu, \mathrm{diag}\,\sigma^2)\,\Vert\,p)
        = \tfrac12\sum_j(\mu_j^2+\sigma_j^2-1-2\log\sigma_j)$

        Args:
            loc: the means mu, (*s, D).
            scale: the standard deviations sigma, (*s, D).

        Returns:
            The divergences, (*s), float64. Differentiable.

        Example:
            >>> import torch
            >>> StandardNormal(2).kl(torch.ones(2), torch.ones(2))
            tensor(1., dtype=torch.float64)
        """
        check_tensor("loc", loc, ("...", self.latent_dim), empty=True)
        check_tensor("scale", scale, tuple(loc.shape), empty=True)
        check_all("scale", scale, scale > 0, "positive values")
        loc, scale = loc.double(), scale.double()
        return 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weight (1), mean (1, D) and scale (1, D) of the one component."""
        zero = self._anchor.new_zeros(1, self.latent_dim)
        return zero[:, 0], zero, torch.ones_like(zero)

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D).

        Raises:
            TypeError: sample_shape is not a tuple of ints, or generator not a torch.Generator.

        Example:
            >>> import torch
            >>> StandardNormal(3).sample((5,), generator=torch.Generator().manual_seed(0)).shape
            torch.Size([5, 3])
        """
        check_generator(generator)
        shape = (*check_shape("sample_shape", sample_shape), self.latent_dim)
        return torch.randn(shape, generator=generator, device=self._anchor.device, dtype=self._anchor.dtype)


class _CodePrior(_Prior):
    """A mixture whose components are codes of an encoder that belongs to someone else, the VAE."""

    def __init__(self, encoder: Any, name: str, inputs: Tensor) -> None:
        super().__init__()
        # Not a module, and so neither saved nor counted twice. `.to` and `.double` of the VAE change its encoder in
        # place, and copy.deepcopy keeps the two together: this stays the VAE's own.
        self._encoder, self._name = adapt_encoder(encoder), name
        if not as_data(name, inputs).is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got dtype {inputs.dtype}")
        with torch.no_grad(), evaluation_mode(self.encoder):
            with blaming(name):
                self._encoder.check(inputs)
            self.latent_dim = self._encode(inputs[:16]).loc.shape[1]  # so many tell what a spread looks like

    @property
    def encoder(self) -> Any:
        """The encoder that makes the components: the VAE's own."""
        return self._encoder.source

    def mixture(self) -> DiagGaussianMixture:
        """Return the prior as a mixture, differentiable in everything that makes it."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats.

        Encodes all that the components are made of, at every call. For many calls with fixed weights take
        `mixture()` once, without gradients.

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log p(z), (*s), computed in float64 and returned in z's dtype. Differentiable in z, the encoder and the
            parameters.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is not finite, or it is on another device than the encoder.
            TypeError, ValueError: as `mixture`.

        Example:
            >>> from vaebook.models import GaussianEncoder
            >>> prior = VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64))
            >>> prior.log_prob(torch.zeros(3, 2)).shape
            torch.Size([3])
        """
        return self.mixture().log_prob(z)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples: a component, each as likely as the others, then a point of its Gaussian.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in the encoder's dtype, without gradients.

        Raises:
            TypeError: sample_shape is not a tuple of ints, or generator not a torch.Generator.
            ValueError: sample_shape has a negative entry.
            TypeError, ValueError: as `mixture`.

        Example:
            >>> from vaebook.models import GaussianEncoder
            >>> prior = VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64))
            >>> prior.sample((3,), generator=torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        with evaluation_mode(self.encoder):
            return self.mixture().sample(sample_shape, generator=generator)

    def leave_one_out(self, index: Tensor) -> LeaveOneOut:
        """Return the density that leaves out a component of its own for each of B data; index (B), long."""
        return self.mixture().leave_one_out(index)

    def components(self) -> Components:
        """Log-weights (K), means and scales (K, D), differentiable in everything that makes them."""
        return self.mixture().components()

    def _encode(self, inputs: Tensor) -> Normal:
        with blaming(self._name):
            return self._encoder(inputs).base_dist


class VampPrior(_CodePrior):
    r"""The average of an encoder's posteriors at K learned pseudo-inputs ("variational mixture of posteriors").

    $p(z) = \frac1K\sum_{k=1}^K q(z\mid u_k)$

    The pseudo-inputs are parameters, trained jointly with the encoder, and free to leave the range of the data.
    With K = N and u_n = x_n this is the aggregated posterior.

    Args:
        encoder: the VAE's encoder, or a VAE that `vaebook.adapters.adapt` made. The VAE owns it: it is not among this
            module's parameters.
        pseudo_inputs: initial values u, (K, …), for example training data; copied.

    Raises:
        TypeError: encoder cannot be adapted, or pseudo_inputs is not a tensor of the encoder's dtype.
        ValueError: pseudo_inputs have the wrong shape, are not finite, or are on another device than the encoder.

    Example:
        >>> from vaebook.models import GaussianEncoder
        >>> prior = VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64))
        >>> prior.mixture()
        DiagGaussianMixture(num_components=5, dim=2)

    Source: Tomczak & Welling, VAE with a VampPrior (2018), section 3.
    """

    def __init__(self, encoder: Any, pseudo_inputs: Tensor) -> None:
        super().__init__(encoder, "pseudo_inputs", pseudo_inputs)
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())

    def mixture(self) -> DiagGaussianMixture:
        """Encode the pseudo-inputs and average their posteriors.

        Returns:
            The mixture, K components of equal weight, differentiable in the pseudo-inputs and in the encoder.

        Raises:
            TypeError: the encoder returns no Gaussian of the codes, or has another dtype by now.
            ValueError: its codes are not finite, a scale is not positive, or it is on another device by now.

        Example:
            >>> from vaebook.models import GaussianEncoder
            >>> VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64)).mixture().num_components
            5
        """
        q = self._encode(self.pseudo_inputs)
        return DiagGaussianMixture(q.loc, q.scale)

    def config(self) -> dict[str, int]:
        """Return what describes this prior besides its tensors."""
        return {"num_pseudo_inputs": len(self.pseudo_inputs)}


class ExemplarPrior(_CodePrior):
    r"""The average of N equal round Gaussians around the encoder's means of the training data, the exemplars.

    $p(z) = \frac1N\sum_{n=1}^N \mathcal N(z\mid\mu(x_n), s^2 I)$

    Unlike the aggregated posterior it shares one width s, learned jointly with the encoder. In training every datum
    is scored without its own component (`log_prob_leave_one_out`), or the prior would learn to name the data; new
    data are scored under all of it (`log_prob`).

    Args:
        encoder: the VAE's encoder, or a VAE that `vaebook.adapters.adapt` made; its means are used. The VAE owns it.
        exemplars: the training data, (N, …). They are neither copied nor saved with the weights: whoever loads the
            weights has to give the same exemplars again.
        scale: initial value of s.

    Raises:
        TypeError: encoder cannot be adapted, exemplars is no tensor of the encoder's dtype, or scale no number.
        ValueError: exemplars have the wrong shape, are not finite or on another device than the encoder, or scale is
            not positive.

    Example:
        >>> from vaebook.models import GaussianEncoder
        >>> prior = ExemplarPrior(GaussianEncoder(64, 2), torch.eye(5, 64))
        >>> z = prior.encoder(prior.exemplars).mean
        >>> bool((prior.log_prob_leave_one_out(z, torch.arange(5)) < prior.log_prob(z)).all())
        True

    Source: Norouzi, Fleet & Norouzi, Exemplar VAE (2020), section 3.
    """

    exemplars: Tensor

    def __init__(self, encoder: Any, exemplars: Tensor, scale: float = 1.0) -> None:
        super().__init__(encoder, "exemplars", exemplars)
        self.register_buffer("exemplars", exemplars.detach(), persistent=False)
        self.log_scale = nn.Parameter(exemplars.new_tensor(math.log(check_number("scale", scale, above=0))))

    def mixture(self) -> DiagGaussianMixture:
        """Encode the exemplars and put equal Gaussians around their means.

        Returns:
            The mixture, N components of equal weight, differentiable in the encoder and in s.

        Raises:
            TypeError: the encoder returns no Gaussian of the codes, or has another dtype by now.
            ValueError: its means or s are not finite, s is not positive, or it is on another device by now.

        Example:
            >>> from vaebook.models import GaussianEncoder
            >>> ExemplarPrior(GaussianEncoder(64, 2), torch.eye(5, 64), scale=0.5).mixture().scale[0]
            tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)
        """
        loc = self._encode(self.exemplars).loc
        return DiagGaussianMixture(loc, self.log_scale.exp().to(loc).expand_as(loc))

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        r"""Log-density of the prior without one exemplar, for the training of that very datum.

        $\log\frac1{N-1}\sum_{n\ne i}\mathcal N(z\mid\mu(x_n), s^2I)$

        Args:
            z: points, (*s, D).
            index: for each point which exemplar to leave out, (*s), long.

        Returns:
            The log-density in nats, (*s), in z's dtype. Differentiable.

        Raises:
            TypeError, ValueError: as `DiagGaussianMixture.log_prob_leave_one_out`, for instance if there is a single
                exemplar, and as `mixture`.

        Example:
            >>> from vaebook.models import GaussianEncoder
            >>> prior = ExemplarPrior(GaussianEncoder(64, 1), torch.eye(2, 64))
            >>> other = prior.encoder(prior.exemplars[1:]).mean  # under the other exemplar alone
            >>> prior.log_prob_leave_one_out(other, torch.tensor([0])).detach()
            tensor([-0.9189])

        Source: Norouzi, Fleet & Norouzi, Exemplar VAE (2020), section 3.
        """
        return self.mixture().log_prob_leave_one_out(z, index)

    def leave_one_out(self, index: Tensor) -> LeaveOneOut:
        """Return the density that leaves out an exemplar for each of B data, by `log_prob_leave_one_out`."""
        return LeaveOneOut(self, index)

    def config(self) -> dict[str, int]:
        """Return what describes this prior besides its tensors and the exemplars."""
        return {"num_exemplars": len(self.exemplars)}


class GaussianMixture(_Prior):
    r"""A mixture of K Gaussians with full covariances, as `fit_gmm` makes it.

    $p(z) = \sum_{k=1}^K w_k\,\mathcal N(z\mid m_k, L_kL_k^\top)$

    Args:
        weight: w, (K), positive, summing to 1 within 1e-5; they are then normalised exactly.
        loc: the means m, (K, D).
        scale_tril: L, (K, D, D), lower triangular with a positive diagonal.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices disagree, or values are not finite or out of range.

    Example:
        >>> prior = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> prior.log_prob(torch.zeros(3, 2))  # the standard normal
        tensor([-1.8379, -1.8379, -1.8379])

    Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 9.7.
    """

    def __init__(self, weight: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        check_tensor("loc", loc, ("K", "D"))
        num, self.latent_dim = loc.shape
        check_positive("weight", check_tensor("weight", weight, (num,)))
        _check_lower_triangular(check_tensor("scale_tril", scale_tril, (num, self.latent_dim, self.latent_dim)))
        check_same_device(weight=weight, loc=loc, scale_tril=scale_tril)
        total, allowed = float(weight.detach().double().sum()), max(1e-5, 8 * torch.finfo(weight.dtype).eps)
        if abs(total - 1) > allowed:
            raise ValueError(f"weight: expected values that sum to 1 within {allowed:g}, got {total:.6g}")
        for name, value in (("weight", weight / total), ("loc", loc), ("scale_tril", scale_tril)):
            self.register_buffer(name, value.detach().clone())

    def components(self) -> Components:
        """Log-weights (K), means (K, D) and lower triangular factors of the covariances (K, D, D)."""
        return self.weight.log(), self.loc, self.scale_tril

    def config(self) -> dict[str, int]:
        """Return what describes this prior besides its tensors."""
        return {"num_components": len(self.weight), "latent_dim": self.latent_dim}

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats.

        Args:
            z: points, (*s, D), of any floating dtype.

        Returns:
            log p(z), (*s), computed in float64 and returned in z's dtype. Differentiable in z.

        Raises:
            TypeError: z is not a floating-point tensor.
            ValueError: its last dimension is not D, it is not finite, or it is on another device than the prior.

        Example:
            >>> prior = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 2 * torch.eye(2)[None])
            >>> prior.log_prob(torch.zeros(3, 2))  # N(0, 4 I)
            tensor([-3.2242, -3.2242, -3.2242])
        """
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        check_same_device(z=z, prior=self.loc)
        parts = MultivariateNormal(self.loc.double(), scale_tril=self.scale_tril.double(), validate_args=False)
        weights = Categorical(logits=self.weight.double().log(), validate_args=False)
        mixture = MixtureSameFamily(weights, parts, validate_args=False)
        rows = z.double().reshape(-1, self.latent_dim)
        chunk = max(1, 2**23 // self.loc.numel())  # about 64 MiB of differences at once
        return torch.cat([mixture.log_prob(part) for part in rows.split(chunk)]).reshape(z.shape[:-1]).to(z.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples: a component by its weight, then a point of its Gaussian.

        Args:
            sample_shape: the shape s of the draw.
            generator: the source of randomness; None means torch's global one.

        Returns:
            z, (*s, D), in the dtype of loc.

        Raises:
            TypeError: sample_shape is not a tuple of ints, or generator not a torch.Generator.
            ValueError: sample_shape has a negative entry.

        Example:
            >>> prior = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
            >>> prior.sample((5,), generator=torch.Generator().manual_seed(0)).shape
            torch.Size([5, 2])
        """
        check_generator(generator)
        shape = check_shape("sample_shape", sample_shape)
        # multinomial refuses to draw nothing
        index = torch.multinomial(self.weight, max(1, shape.numel()), replacement=True, generator=generator)
        index, like = index[: shape.numel()], {"dtype": self.loc.dtype, "device": self.loc.device}
        z = torch.randn(len(index), self.latent_dim, generator=generator, **like)
        for k in index.unique().tolist():  # one component at a time: all at once would copy L for every draw
            own = index == k
            z[own] = self.loc[k] + z[own] @ self.scale_tril[k].mT
        return z.reshape(*shape, self.latent_dim)


def as_mixture(prior: Prior) -> DiagGaussianMixture | GaussianMixture | None:
    """Return a prior that is a mixture of Gaussians as one with fixed components, None if it is not known to be one.

    A prior made of codes is encoded here, once and in evaluation mode, and not again at every call.

    Args:
        prior: a prior, as `vaebook.adapters.adapt_prior` returns it.

    Returns:
        The mixture, in float64 and without gradients: one density with the prior's.

    Example:
        >>> as_mixture(StandardNormal(2))
        DiagGaussianMixture(num_components=1, dim=2)
    """
    with torch.no_grad(), evaluation_mode():
        found = components(prior)
    return None if found is None else from_components(*(part.detach() for part in found))


def from_components(log_weight: Tensor, loc: Tensor, scale: Tensor) -> DiagGaussianMixture | GaussianMixture:
    """Make a mixture, in float64, of what `components` of any prior returns.

    Args:
        log_weight: natural logarithms of the weights, (K); they are normalised.
        loc: the means, (K, D).
        scale: the scales, (K, D), or the lower triangular factors of the covariances, (K, D, D).

    Returns:
        The mixture; one of full covariances has no components of weight 0.

    Raises:
        TypeError, ValueError: as the two mixtures.

    Example:
        >>> from_components(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2))
        DiagGaussianMixture(num_components=1, dim=2)

    Source: none; two forms of one thing.
    """
    log_weight, loc, scale = log_weight.double().log_softmax(0), loc.double(), scale.double()
    if scale.ndim == loc.ndim:
        return DiagGaussianMixture(loc, scale, log_weight)
    keep = log_weight.exp() > 0
    return GaussianMixture(log_weight[keep].exp(), loc[keep], scale[keep])


def fit_gmm(
    data: DiagGaussianMixture | Tensor,
    num_components: int,
    *,
    covariance: Covariance = "full",
    num_samples: int = 10_000,
    min_variance: float = 1e-6,
    seed: int = 0,
) -> GaussianMixture | DiagGaussianMixture:
    r"""Fit a mixture of K Gaussians after training: the "ex-post density".

    $\max_p \frac1M\sum_{m=1}^M \log p(z_m),\quad z_m\sim q_{agg}$, which as $M\to\infty$ tends to
    $\min_p\mathrm{KL}(q_{agg}\,\Vert\,p)$

    Fitting to samples of q_agg is not the same as fitting to the means of its components, which leaves out their
    widths. scikit-learn's EM fits, from k-means: it climbs to a local maximum, and stops where a step gains less than
    1e-3 nats a sample. After 100 steps it stops anyway, with scikit-learn's ConvergenceWarning; what it has reached
    by then is a density like any other, and every step has raised its likelihood. EM works on coordinates of mean 0
    and variance 1, so that the fit does not depend on the units of z; where units differ between coordinates, k-means
    sees that.

    Args:
        data: the aggregated posterior, of which num_samples are drawn, or samples z of it, (M, D).
        num_components: K.
        covariance: "full", or "diag" for components without correlations, which need fewer samples.
        num_samples: M, if data is a mixture.
        min_variance: added to the variances in every step, in units of the samples' own variance in each coordinate;
            it keeps the likelihood bounded.
        seed: of the samples and of the start, below 2^32.

    Returns:
        The fitted mixture, in float64, on the device of the data: for "diag" a `DiagGaussianMixture`.

    Raises:
        TypeError: data is neither a mixture nor a floating-point tensor, or a number is of the wrong type.
        ValueError: there are fewer distinct samples than components, all samples agree in a coordinate, a number is
            out of range, or min_variance is too small for the covariances to stay positive definite.

    Warns:
        UserWarning: there are fewer samples than parameters. With M samples for that many parameters the fit loses
            about parameters/(2 M) nats on other data, if M is large, and far more if it is not.

    Example:
        >>> q_agg = DiagGaussianMixture(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1))
        >>> fit_gmm(q_agg, 2).weight.round(decimals=1)
        tensor([0.5000, 0.5000], dtype=torch.float64)

    Source: Ghosh et al., From variational to deterministic autoencoders (2020), section 4; on the loss, Akaike, A new
    look at the statistical model identification (1974).
    """
    check_int("num_components", num_components, minimum=1)
    check_int("num_samples", num_samples, minimum=1)
    check_int("seed", seed, minimum=0, maximum=2**32 - 1)
    check_number("min_variance", min_variance, above=0)
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance: expected one of {', '.join(get_args(Covariance))}, got {covariance!r}")
    name, z = "data", data
    if isinstance(data, DiagGaussianMixture):
        generator = torch.Generator(data.loc.device).manual_seed(seed)
        name, z = "num_samples", data.double().sample((num_samples,), generator=generator)
    z = check_tensor("data", z, ("M", "D")).detach().double()
    _check_enough(name, z, num_components, covariance)
    unit = z.std(0, correction=0)
    check_all("data's standard deviation", unit, unit > 0, "different values in every coordinate")
    weight, loc, scale = _em((z - z.mean(0)) / unit, unit, num_components, covariance, min_variance, seed)
    loc = z.mean(0) + unit * loc
    if covariance == "diag":
        return DiagGaussianMixture(loc, unit * scale, weight.log())
    return GaussianMixture(weight, loc, unit[:, None] * scale)


def _check_enough(name: str, z: Tensor, num_components: int, covariance: str) -> None:
    """Compare the number of samples with that of components and of parameters."""
    (num, dim), least = z.shape, max(2, num_components)
    distinct = len(torch.unique(z, dim=0)) if num >= least else num
    if num < least or distinct < num_components:
        got = f"{num}" if num < least else f"{distinct} distinct ones"
        raise ValueError(f"{name}: expected at least {least} samples for {num_components} components, got {got}")
    of_covariance = dim * (dim + 1) // 2 if covariance == "full" else dim
    parameters = num_components * (1 + dim + of_covariance) - 1
    if num < parameters:
        remedy = 'more samples, fewer components or covariance="diag"' if covariance == "full" else "more samples"
        warnings.warn(
            f"{name}: expected at least {parameters}, as many as the fit has parameters, got {num}; on other data its "
            f"likelihood may be far lower than on these: {remedy}",
            UserWarning,
            stacklevel=3,
        )


def _em(z: Tensor, unit: Tensor, num_components: int, covariance: str, min_variance: float, seed: int) -> list[Tensor]:
    """Fit to standardised samples: weights, means, and triangular factors or, for diagonal covariances, scales."""
    from sklearn.cluster import KMeans  # here, because it takes a second to import
    from sklearn.mixture import GaussianMixture as Fit

    original = z * (unit / unit.square().mean().sqrt())
    group = KMeans(num_components, n_init=1, random_state=seed).fit(original.cpu().numpy()).labels_
    parts = [z[torch.from_numpy(group == k).to(z.device)] for k in range(num_components)]
    loc, diagonal = torch.stack([part.mean(0) for part in parts]), covariance == "diag"
    variance = torch.stack([(part - m).mT @ (part - m) / len(part) for part, m in zip(parts, loc, strict=True)])
    variance = variance + min_variance * torch.eye(len(unit)).to(z)
    try:
        precision = 1 / variance.diagonal(dim1=-2, dim2=-1) if diagonal else torch.linalg.inv(variance)
        start = {"weights_init": [len(part) / len(z) for part in parts], "means_init": loc.cpu().numpy()}
        start["precisions_init"] = precision.cpu().numpy()
        fit = Fit(num_components, covariance_type=covariance, reg_covar=min_variance, **start).fit(z.cpu().numpy())
        weight, loc, variance = (torch.from_numpy(part).to(z) for part in (fit.weights_, fit.means_, fit.covariances_))
        return [weight, loc, variance.sqrt() if diagonal else torch.linalg.cholesky(variance)]
    except (ValueError, RuntimeError) as error:  # all else that it could refuse has been checked
        wanted = "enough for all covariances to be positive definite"
        raise ValueError(f"min_variance: expected {wanted}, got {min_variance:g}") from error


def _check_lower_triangular(scale_tril: Tensor) -> None:
    check_all("scale_tril", scale_tril, scale_tril.triu(1) == 0, "zeros above the diagonal")
    check_positive("scale_tril's diagonal", scale_tril.diagonal(dim1=-2, dim2=-1))
