r"""Priors p(z) over the latent space.

A prior is a module with three things: `latent_dim`, `log_prob(z)` (a normalised density, in nats) and
`sample(sample_shape, generator=…)`. Density and sampler describe the same distribution; a test holds them together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaebook._checks import check_generator, check_int, check_same_device, check_shape, check_tensor


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
