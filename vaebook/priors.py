r"""Priors p(z) over the latent space.

A prior is a module with three things: `latent_dim`, `log_prob(z)` (a normalised density, in nats) and
`sample(sample_shape, generator=…)`. Density and sampler describe the same distribution; a test holds them together.

Two of them, `VampPrior` and `ExemplarPrior`, are made of an encoder's codes and change with it: they are trained
jointly with the model. `fit_gmm` fits a prior afterwards, with everything else fixed. The aggregated posterior
itself, a `vaebook.DiagGaussianMixture`, serves as a prior as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaebook._checks import check_generator, check_int, check_number, check_same_device, check_shape, check_tensor
from vaebook.mixture import DiagGaussianMixture


class StandardNormal(nn.Module):
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

    def extra_repr(self) -> str:
        """Show the dimension in `repr`."""
        return f"latent_dim={self.latent_dim}"

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


class _CodePrior(nn.Module):
    """A mixture whose components are codes of an encoder that belongs to someone else, the VAE."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
        self._encoder = (encoder,)  # in a tuple, so that it is not registered, saved and counted twice

    @property
    def encoder(self) -> nn.Module:
        """The encoder that makes the components: the VAE's own."""
        return self._encoder[0]

    def mixture(self) -> DiagGaussianMixture:
        """Return the prior as a mixture; differentiable in everything that makes it."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s), in z's dtype. Differentiable; errors as those of the mixture."""
        return self.mixture().log_prob(z)

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples, (*s, D); errors as those of the mixture."""
        return self.mixture().sample(sample_shape, generator=generator)


class VampPrior(_CodePrior):
    r"""The average of an encoder's posteriors at K learned pseudo-inputs ("variational mixture of posteriors").

    $p(z) = \frac1K\sum_{k=1}^K q(z\mid u_k)$

    The pseudo-inputs are parameters, trained jointly with the encoder, and free to leave the range of the data.
    With K = N and u_n = x_n this is the aggregated posterior.

    Args:
        encoder: the VAE's encoder. The VAE owns it: it is not among this module's parameters.
        pseudo_inputs: initial values u, (K, P), for example training data.

    Raises:
        TypeError: encoder is not a module, or pseudo_inputs not a floating-point tensor.
        ValueError: pseudo_inputs have the wrong shape or are not finite.

    Example:
        >>> from vaebook.models import GaussianEncoder
        >>> prior = VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64))
        >>> prior.mixture()
        DiagGaussianMixture(num_components=5, dim=2)
        >>> prior.sample((3,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])

    Source: Tomczak & Welling, VAE with a VampPrior (2018), equation 9.
    """

    def __init__(self, encoder: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__(encoder)
        check_tensor("pseudo_inputs", pseudo_inputs, ("K", getattr(encoder, "data_dim", "P")))
        self.pseudo_inputs = nn.Parameter(pseudo_inputs.detach().clone())

    @property
    def latent_dim(self) -> int:
        """D, that of the encoder."""
        return self.encoder.latent_dim

    def extra_repr(self) -> str:
        """Show the sizes in `repr`."""
        return f"num_pseudo_inputs={len(self.pseudo_inputs)}, latent_dim={self.latent_dim}"

    def mixture(self) -> DiagGaussianMixture:
        """Encode the pseudo-inputs: K components, differentiable in them and in the encoder."""
        q = self.encoder(self.pseudo_inputs).base_dist
        return DiagGaussianMixture(q.loc, q.scale)


class ExemplarPrior(_CodePrior):
    r"""The average of N equal round Gaussians around the encoder's means of the training data, the exemplars.

    $p(z) = \frac1N\sum_{n=1}^N \mathcal N(z\mid\mu(x_n), s^2 I)$

    Unlike the aggregated posterior it shares one width s, learned jointly with the encoder. In training every datum
    is scored without its own component (`log_prob_leave_one_out`), or the prior would learn to name the data; new
    data are scored under all of it (`log_prob`).

    Args:
        encoder: the VAE's encoder, whose means are used. The VAE owns it.
        exemplars: the training data, (N, P). They are not saved with the weights.
        scale: initial value of s.

    Raises:
        TypeError: encoder is not a module, exemplars not a floating-point tensor, or scale no number.
        ValueError: exemplars have the wrong shape or are not finite, or scale is not positive.

    Example:
        >>> from vaebook.models import GaussianEncoder
        >>> prior = ExemplarPrior(GaussianEncoder(64, 2), torch.eye(5, 64))
        >>> z = prior.encoder(prior.exemplars).mean
        >>> bool((prior.log_prob_leave_one_out(z, torch.arange(5)) < prior.log_prob(z)).all())
        True

    Source: Norouzi, Fleet & Norouzi, Exemplar VAE (2020), equations 5 and 9.
    """

    def __init__(self, encoder: nn.Module, exemplars: Tensor, scale: float = 1.0) -> None:
        super().__init__(encoder)
        check_tensor("exemplars", exemplars, ("N", getattr(encoder, "data_dim", "P")))
        self.register_buffer("exemplars", exemplars.detach(), persistent=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(check_number("scale", scale, above=0))).to(exemplars))

    @property
    def latent_dim(self) -> int:
        """D, that of the encoder."""
        return self.encoder.latent_dim

    def extra_repr(self) -> str:
        """Show the sizes in `repr`."""
        return f"num_exemplars={len(self.exemplars)}, latent_dim={self.latent_dim}"

    def mixture(self) -> DiagGaussianMixture:
        """Encode the exemplars: N components, differentiable in the encoder and in s."""
        loc = self.encoder(self.exemplars).base_dist.loc
        return DiagGaussianMixture(loc, self.log_scale.exp().expand_as(loc))

    def log_prob_leave_one_out(self, z: Tensor, index: Tensor) -> Tensor:
        r"""Log-density of the prior without one exemplar, for the training of that very datum.

        $\log\frac1{N-1}\sum_{n\ne i}\mathcal N(z\mid\mu(x_n), s^2I)$

        Args:
            z: points, (*s, D).
            index: for each point which exemplar to leave out, (*s), long.

        Returns:
            The log-density in nats, (*s), in z's dtype. Differentiable.

        Raises:
            TypeError, ValueError: as `DiagGaussianMixture.log_prob_leave_one_out`.
        """
        return self.mixture().log_prob_leave_one_out(z, index)


class GaussianMixture(nn.Module):
    r"""A mixture of K Gaussians with full covariances, as `fit_gmm` makes it.

    $p(z) = \sum_{k=1}^K w_k\,\mathcal N(z\mid m_k, L_kL_k^\top)$

    Args:
        weight: w, (K), positive, summing to 1.
        loc: the means m, (K, D).
        scale_tril: lower triangular L, (K, D, D), with a positive diagonal.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes disagree, or values are out of range.

    Example:
        >>> prior = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> prior.log_prob(torch.zeros(3, 2))  # the standard normal
        tensor([-1.8379, -1.8379, -1.8379])

    Source: Bishop, Pattern Recognition and Machine Learning (2006), equation 9.7.
    """

    def __init__(self, weight: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        check_tensor("loc", loc, ("K", "D"))
        num, dim = loc.shape
        check_tensor("weight", weight, (num,))
        check_tensor("scale_tril", scale_tril, (num, dim, dim))
        self.latent_dim = dim
        for name, value in (("weight", weight), ("loc", loc), ("scale_tril", scale_tril)):
            self.register_buffer(name, value.detach().clone())
        self._distribution(torch.float64, validate_args=True)  # torch's own checks of values

    def extra_repr(self) -> str:
        """Show the sizes in `repr`."""
        return f"num_components={len(self.weight)}, latent_dim={self.latent_dim}"

    def _distribution(self, dtype: torch.dtype, *, validate_args: bool = False) -> MixtureSameFamily:
        weight, loc, scale_tril = (t.to(dtype) for t in (self.weight, self.loc, self.scale_tril))
        parts = MultivariateNormal(loc, scale_tril=scale_tril, validate_args=validate_args)
        return MixtureSameFamily(Categorical(weight, validate_args=validate_args), parts, validate_args=validate_args)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Probability of each component given z (S, D), as (S, K), in z's dtype."""
        check_tensor("z", z, ("S", self.latent_dim), empty=True)
        check_same_device(z=z, prior=self.loc)
        distribution = self._distribution(torch.float64)
        log_terms = distribution.component_distribution.log_prob(z.double()[:, None]) + self.weight.double().log()
        return log_terms.softmax(1).to(z.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of z (*s, D), as (*s); computed in float64, returned in z's dtype. Differentiable."""
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        check_same_device(z=z, prior=self.loc)
        rows = z.double().reshape(-1, self.latent_dim)
        distribution = self._distribution(torch.float64)
        parts = [distribution.log_prob(part) for part in rows.split(2**14)]
        return torch.cat(parts).reshape(z.shape[:-1]).to(z.dtype) if parts else z.new_empty(z.shape[:-1])

    def sample(self, sample_shape: tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples, (*s, D)."""
        check_generator(generator)
        shape = check_shape("sample_shape", sample_shape)
        index = torch.multinomial(self.weight, max(1, shape.numel()), replacement=True, generator=generator)
        index = index[: shape.numel()]
        noise = torch.randn(
            len(index), self.latent_dim, 1, generator=generator, dtype=self.loc.dtype, device=self.loc.device
        )
        z = self.loc[index] + (self.scale_tril[index] @ noise)[..., 0]
        return z.reshape(*shape, self.latent_dim)


def fit_gmm(
    data: DiagGaussianMixture | Tensor,
    num_components: int,
    *,
    num_samples: int = 10_000,
    min_variance: float = 1e-6,
    seed: int = 0,
) -> GaussianMixture:
    r"""Fit a mixture of K full Gaussians after training: the "ex-post density".

    $\max_p \frac1M\sum_{m=1}^M \log p(z_m),\quad z_m\sim q_{agg}$, which as $M\to\infty$ is
    $\min_p\mathrm{KL}(q_{agg}\,\Vert\,p)$

    Fitting to samples of q_agg is not the same as fitting to the means of its components, which leaves out their
    widths. scikit-learn's EM fits, from k-means; it finds a local maximum.

    Args:
        data: the aggregated posterior, of which num_samples are drawn, or samples z of it, (M, D).
        num_components: K.
        num_samples: M, if data is a mixture.
        min_variance: added to the covariances' diagonals in every step, which keeps the likelihood bounded.
        seed: of the samples and of the start.

    Returns:
        The fitted mixture, in float64.

    Raises:
        TypeError: data is neither a mixture nor a floating-point tensor, or a number is of the wrong type.
        ValueError: there are fewer samples than components, or a number is out of range.

    Example:
        >>> q_agg = DiagGaussianMixture(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1))
        >>> fit_gmm(q_agg, 2).weight.round(decimals=1)
        tensor([0.5000, 0.5000], dtype=torch.float64)

    Source: Ghosh et al., From variational to deterministic autoencoders (2020), section 4.
    """
    check_int("num_components", num_components, minimum=1)
    check_int("num_samples", num_samples, minimum=1)
    check_int("seed", seed, minimum=0)
    check_number("min_variance", min_variance, above=0)
    if isinstance(data, DiagGaussianMixture):
        data = data.double().sample((num_samples,), generator=torch.Generator().manual_seed(seed))
    check_tensor("data", data, ("M", "D"))
    if len(data) < max(2, num_components):
        wanted = f"at least {max(2, num_components)} samples for {num_components} components"
        raise ValueError(f"data: expected {wanted}, got {len(data)}")
    from sklearn.mixture import GaussianMixture as Fit  # here, because it takes a second to import

    fit = Fit(num_components, reg_covar=min_variance, random_state=seed).fit(data.detach().double().numpy())
    covariance = torch.from_numpy(fit.covariances_)
    return GaussianMixture(
        torch.from_numpy(fit.weights_), torch.from_numpy(fit.means_), torch.linalg.cholesky(covariance)
    )
