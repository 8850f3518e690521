r"""Variational autoencoders, whose parts return torch distributions.

With `q = vae.encoder(x)` and `z = q.rsample()` the evidence lower bound is one line,
`vae.decoder(z).log_prob(x) + vae.prior.log_prob(z) - q.log_prob(z)`, in nats per datum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaebook._checks import check_type
from vaebook.adapters import adapt_prior_of, adapt_vae
from vaebook.networks import BernoulliDecoder, GaussianDecoder, GaussianEncoder

__all__ = ["VAE", "BernoulliDecoder", "GaussianDecoder", "GaussianEncoder"]


class VAE(nn.Module):
    r"""A variational autoencoder: an encoder q(z|x), a decoder p(x|z) and a prior p(z).

    $\log p(x) \ge \mathbb E_{q(z\mid x)}[\log p(x\mid z)] - \mathrm{KL}(q(z\mid x)\,\|\,p(z))$

    Args:
        encoder: a module that maps x (B, …) to codes, in one of the forms that `vaebook.adapters.adapt` takes without
            a name for the spread, such as Independent(Normal, 1) with event shape (D,).
        decoder: a module that maps z (B, D) to a distribution over x.
        prior: a `vaebook.priors.StandardNormal`, an aggregated posterior, or another object with `latent_dim`,
            `log_prob(z)` and `sample(sample_shape, *, generator)`; these stay as they are. A torch distribution over
            vectors or a flow is adapted, and a flow's parameters are trained and saved with the model.

    Raises:
        TypeError: encoder or decoder is not a module, or prior cannot be adapted.
        ValueError: the parts disagree on P or D, or the prior is made of the codes of another encoder.

    Example:
        >>> from vaebook.priors import StandardNormal
        >>> vae = VAE(GaussianEncoder(64, 2), BernoulliDecoder(2, 64), StandardNormal(2))
        >>> vae(torch.zeros(5, 64)).mean.shape
        torch.Size([5, 2])

    Source: Kingma & Welling, Auto-Encoding Variational Bayes (2014), equation 3.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: Any) -> None:
        super().__init__()
        self.encoder = check_type("encoder", encoder, nn.Module)
        self.decoder = check_type("decoder", decoder, nn.Module)
        self.prior = adapt_prior_of(encoder, decoder, prior)

    def forward(self, x: Tensor) -> Any:
        """Encode: the same as `self.encoder(x)`.

        Args:
            x: data, (B, …).

        Returns:
            What the encoder returns, q(z|x).

        Raises:
            TypeError, ValueError: as the encoder.
        """
        return self.encoder(x)

    def sample(
        self, num_samples: int, *, latent: Any = None, condition: Any = None, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw codes and return the decoder's means, $\mathbb E[x\mid z^{(s)}]$ with $z^{(s)}\sim p(z)$.

        These are the pictures one looks at. They are not draws from p(x), which lack the pixels' noise. The decoder
        runs in evaluation mode.

        Args:
            num_samples: S.
            latent: where z comes from instead of the prior, for example the aggregated posterior. Its draws are
                converted to the dtype of the decoder's weights: what is fitted after training is in float64.
            condition: what the decoder takes beside z, a row for each draw: a tensor, or tensors by name.
            generator: the source of randomness; None means torch's global one.

        Returns:
            The means, (S, …), without gradients.

        Raises:
            TypeError: num_samples is not an int, latent cannot be adapted, generator is not a torch.Generator, or the
                decoder returns no distribution.
            ValueError: num_samples is below 1, latent draws codes that the decoder does not take, or the decoder's
                distribution has no mean.

        Example:
            >>> from vaebook.priors import StandardNormal
            >>> vae = VAE(GaussianEncoder(64, 2), BernoulliDecoder(2, 64), StandardNormal(2))
            >>> vae.sample(5, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([5, 64])
        """
        return adapt_vae(self).sample(num_samples, latent=latent, condition=condition, generator=generator)
