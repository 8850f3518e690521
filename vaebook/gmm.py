r"""Mixtures of Gaussians with full covariances, as priors: given, or fitted to codes after training."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vaebook._checks import check_all, check_choice, check_draw, check_int, check_number, check_positive, check_tensor
from vaebook.gaussians import draw_indices
from vaebook.mixture import DiagGaussianMixture
from vaebook.parts import Components, PriorModule

Covariance = Literal["full", "diag"]
"""Whether the components of a fitted mixture may have correlations."""


class GaussianMixture(PriorModule):
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
        check_positive("weight", check_tensor("weight", weight, (num,), like=loc))
        check_tensor("scale_tril", scale_tril, (num, self.latent_dim, self.latent_dim), like=loc)
        check_all("scale_tril", scale_tril, scale_tril.triu(1) == 0, "zeros above the diagonal")
        check_positive("scale_tril's diagonal", scale_tril.diagonal(dim1=-2, dim2=-1))
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
        check_tensor("z", z, ("...", self.latent_dim), empty=True, like=self.loc)
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
        shape, generator = check_draw(sample_shape, generator, self.loc.device, self.latent_dim)
        index = draw_indices(self.weight, shape.numel(), generator)
        z = torch.randn(len(index), self.latent_dim, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
        for k in index.unique().tolist():  # one component at a time: all at once would copy L for every draw
            own = index == k
            z[own] = self.loc[k] + z[own] @ self.scale_tril[k].mT
        return z.reshape(*shape, self.latent_dim)


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
    num_components = check_int("num_components", num_components, minimum=1)
    num_samples = check_int("num_samples", num_samples, minimum=1, each=1)
    seed = check_int("seed", seed, minimum=0, maximum=2**32 - 1)
    min_variance = check_number("min_variance", min_variance, above=0)
    check_choice("covariance", covariance, get_args(Covariance))
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


def fit_quietly(*args: Any, **options: Any) -> Any:
    """Fit as `fit_gmm` does, without its warnings, where other data judge what EM has found when its steps run out."""
    with warnings.catch_warnings(action="ignore"):
        return fit_gmm(*args, **options)


def _check_enough(name: str, z: Tensor, num_components: int, covariance: str) -> None:
    """Compare the number of samples with that of components and of parameters."""
    (num, dim), least = z.shape, max(2, num_components)
    # One coordinate usually tells, in a tenth of the time.
    if len(z[:, 0].unique()) < least and (distinct := len(z.unique(dim=0))) < least:
        wanted = f"expected at least {least} distinct samples for {num_components} components"
        raise ValueError(f"{name}: {wanted}, got {distinct}")
    parameters = num_components * (1 + dim + (dim * (dim + 1) // 2 if covariance == "full" else dim)) - 1
    if num < parameters:
        remedy = 'more samples, fewer components or covariance="diag"' if covariance == "full" else "more samples"
        warnings.warn(
            f"{name}: expected at least {parameters}, as many as the fit has parameters, got {num}; on other data its "
            f"likelihood may be far lower than on these: {remedy}",
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
