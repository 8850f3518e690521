r"""Priors p(z) over the latent space.

A prior has `latent_dim`, `log_prob(z)` (a normalised density, in nats) and `sample(sample_shape, generator=…)`.
Density and sampler describe the same distribution; a test compares them. The priors here are torch modules, and also
have `components()`, their log-weights, means and scales, and `config()`, the sizes that describe them.

`VampPrior` and `ExemplarPrior` (in `vaebook.code_priors`) are made by the encoder and change with it: they are trained
jointly with the model. `fit_gmm` (in `vaebook.gmm`) fits a prior after training, with everything else fixed. The
aggregated posterior itself, a `vaebook.DiagGaussianMixture`, serves as a prior as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaebook._checks import check_all, check_draw, check_int, check_tensor
from vaebook.adapters import Prior
from vaebook.code_priors import ExemplarPrior, VampPrior
from vaebook.evaluation import evaluation_mode, weight_of
from vaebook.gmm import GaussianMixture, fit_gmm
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import PriorModule, components, gaussian_kl

__all__ = [
    "ExemplarPrior",
    "GaussianMixture",
    "StandardNormal",
    "VampPrior",
    "as_mixture",
    "fit_gmm",
    "from_components",
    "on_cpu",
]


class StandardNormal(PriorModule):
    r"""The usual prior of a VAE, without parameters.

    $p(z) = \prod_{j=1}^D \mathcal N(z_j \mid 0, 1)$

    It follows its model through `.to(device)` and `.double()`, so that samples have the model's device and dtype.

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
        self.latent_dim = check_int("latent_dim", latent_dim, minimum=1, each=1)
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
            ValueError: its last dimension is not D, or it is not finite.

        Example:
            >>> import torch
            >>> StandardNormal(1).log_prob(torch.tensor([[2.0]]))
            tensor([-2.9189])
        """
        check_tensor("z", z, ("...", self.latent_dim), empty=True)
        return (-0.5 * z.double().square().sum(-1) - 0.5 * self.latent_dim * math.log(2 * math.pi)).to(z.dtype)

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
        return gaussian_kl(loc.double(), scale.double()).sum(-1)

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
        shape, generator = check_draw(sample_shape, generator, self._anchor.device, self.latent_dim)
        return self._anchor.new_empty(*shape, self.latent_dim).normal_(generator=generator)


def as_mixture(prior: Prior, device: torch.device | None = None) -> DiagGaussianMixture | GaussianMixture | None:
    """Return a prior that is a mixture of Gaussians as one with fixed components, None if it is not known to be one.

    A prior that is made by an encoder is computed once, in evaluation mode.

    Args:
        prior: a prior, as `vaebook.adapters.adapt_prior` returns it.
        device: where the mixture is to be; None leaves it where the prior is.

    Returns:
        The mixture, in float64 and without gradients, with the density of the prior.

    Example:
        >>> as_mixture(StandardNormal(2))
        DiagGaussianMixture(num_components=1, dim=2)
    """
    with torch.no_grad(), evaluation_mode():
        found = components(prior)
    return None if found is None else from_components(*(part.detach().to(device) for part in found))


def on_cpu(prior: Prior) -> Prior:
    """Return a prior that takes z on the processor: where its components are elsewhere, the mixture of them.

    Args:
        prior: a prior, as `vaebook.adapters.adapt_prior` returns it.

    Returns:
        The prior itself, or a mixture with its density.

    Example:
        >>> on_cpu(StandardNormal(2))
        StandardNormal(latent_dim=2)
    """
    weight = weight_of(prior)  # what is made of codes need not be encoded to tell where it is
    if weight is not None and weight.device.type == "cpu":
        return prior
    mixture = as_mixture(prior)
    return prior if mixture is None or mixture.loc.device.type == "cpu" else mixture.to("cpu")


def from_components(log_weight: Tensor, loc: Tensor, scale: Tensor) -> DiagGaussianMixture | GaussianMixture:
    """Make a mixture, in float64, from what `components` of any prior returns.

    Args:
        log_weight: natural logarithms of the weights, (K); they are normalised.
        loc: the means, (K, D).
        scale: the scales, (K, D), or the lower triangular factors of the covariances, (K, D, D).

    Returns:
        The mixture; with full covariances, components of weight 0 are dropped.

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
