r"""Priors made of an encoder's codes, which change with it: pseudo-inputs (VampPrior) and exemplars.

Both are trained jointly with the model, whose encoder they use and do not own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vaebook._checks import check_number
from vaebook.adapters import adapt_encoder
from vaebook.evaluation import Data, blaming, evaluation_mode, whole
from vaebook.mixture import DiagGaussianMixture, LeaveOneOut
from vaebook.parts import Components, PriorModule


class _CodePrior(PriorModule):
    """A mixture whose components are codes of an encoder that belongs to someone else, the VAE."""

    def __init__(self, encoder: Any, name: str) -> None:
        super().__init__()
        # Not a module, and so neither saved nor counted twice. `.to` and `.double` of the VAE change its encoder in
        # place, and copy.deepcopy keeps the two together: this stays the VAE's own.
        self._encoder, self._name = adapt_encoder(encoder), name

    def _taken(self, inputs: Data) -> Tensor:
        """Return what the components are made of as a tensor that the encoder takes."""
        x = whole(self._name, inputs, self._encoder.dtype)
        if not x.is_floating_point():
            raise TypeError(f"{self._name}: expected a floating-point tensor, got dtype {x.dtype}")
        with torch.no_grad(), evaluation_mode(self.encoder), blaming(self._name):
            self._encoder.check(x)
        self.latent_dim = self._encoder.latent_shape.numel()
        return x.detach()

    @property
    def encoder(self) -> Any:
        """The encoder that makes the components: the VAE's own."""
        return self._encoder.source

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
        pseudo_inputs: initial values u, (K, …), for example training data, in any form that data may have; copied.

    Raises:
        TypeError: encoder cannot be adapted, or pseudo_inputs are no numbers of the encoder's dtype.
        ValueError: pseudo_inputs have the wrong shape, are not finite, or are on another device than the encoder.

    Example:
        >>> from vaebook.models import GaussianEncoder
        >>> prior = VampPrior(GaussianEncoder(64, 2), torch.zeros(5, 64))
        >>> prior.mixture()
        DiagGaussianMixture(num_components=5, dim=2)

    Source: Tomczak & Welling, VAE with a VampPrior (2018), section 3.
    """

    def __init__(self, encoder: Any, pseudo_inputs: Data) -> None:
        super().__init__(encoder, "pseudo_inputs")
        self.pseudo_inputs = nn.Parameter(self._taken(pseudo_inputs).clone())

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
    is scored without its own component (`log_prob_leave_one_out`), or the encoder could set codes as far apart as
    it likes for log N nats; new data are scored under all of it (`log_prob`).

    Args:
        encoder: the VAE's encoder, or a VAE that `vaebook.adapters.adapt` made; its means are used. The VAE owns it.
        exemplars: the training data, (N, …), in any form that data may have. They are not saved with the weights, and
            a tensor is not copied: whoever loads the weights has to give the same exemplars again.
        scale: initial value of s.

    Raises:
        TypeError: encoder cannot be adapted, exemplars are no numbers of the encoder's dtype, or scale no number.
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

    def __init__(self, encoder: Any, exemplars: Data, scale: float = 1.0) -> None:
        super().__init__(encoder, "exemplars")
        self.register_buffer("exemplars", self._taken(exemplars), persistent=False)
        self.log_scale = nn.Parameter(self.exemplars.new_tensor(math.log(check_number("scale", scale, above=0))))

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

    def config(self) -> dict[str, int]:
        """Return what describes this prior besides its tensors and the exemplars."""
        return {"num_exemplars": len(self.exemplars)}
