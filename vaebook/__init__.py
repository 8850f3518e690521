"""Mixtures of Gaussians in the latent space of a variational autoencoder, exactly.

The layers, from the top down; each imports only from those below it:

`__main__`
    the command `python -m vaebook diagnose codes.npz`
`claims` `diagnosis`
    every numbered statement of the book as a check that runs and can fail: `verify("index/joint")`; the latent space
    of any VAE, diagnosed in one call
`sampling` `verdicts`
    what the decoder says of codes from each candidate; from numbers to answers
`report`
    a diagnosis and its forms: text, table, JSON, a page, pictures
`training` `selection`
    fitting a VAE; which distribution of codes to sample from
`comparison`
    another name of `likelihood.compare_priors`
`likelihood`
    log p(x) under any prior, or several from the same draws, by importance sampling that adapts to each datum
`inference` `bounds` `proposals` `information`
    an encoder's distance from the exact posterior; ELBO and IWAE; where to draw codes that explain a datum; what the
    KL term consists of
`population` `integrals` `checkpoint` `ppca`
    brackets for the population; integrals over one or two latents; files; probabilistic PCA
`holes` `memorisation` `testing`
    parts of the prior without codes; own and new data; a density against its sampler
`page`
    the page of a diagnosis
`panels`
    its pictures
`aggregate` `models` `priors`
    the aggregated posterior of any encoder; a VAE of three parts; what takes the place of p(z)
`code_priors` `gmm`
    priors made of an encoder's codes: VampPrior, exemplars; mixtures with full covariances, given or fitted
`adapters` `distributed`
    anybody's encoder, decoder, prior and data, adapted once; a mixture spread over processes or files
`certificates` `modes` `networks` `parts` `shards`
    bounds without samples, and MMD; the modes of a mixture; networks that return distributions; adapted
    encoders, decoders and priors; the components of one process, in parts that fit into memory
`mixture` `outputs`
    `DiagGaussianMixture`, the object that the book is about; what encoders and decoders return
`gaussians` `sums`
    what a mixture is made of, its moments and draws; its density, prepared once and differentiable
`clusters` `estimators` `evaluation` `npmle` `data` `plots`
    the sum over the components that matter; standard errors, batches; evaluation mode; the best prior for a
    decoder; data sets; figures
`kernels` `storage` `tables` `weights`
    the sum over components, in constant memory; files, all or nothing; numbers rounded once, in one way; the best
    weights of given atoms
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaebook.adapters import adapt
    from vaebook.aggregate import aggregated_posterior
    from vaebook.diagnosis import diagnose
    from vaebook.mixture import DiagGaussianMixture

__all__ = ["DiagGaussianMixture", "adapt", "aggregated_posterior", "diagnose"]
__version__ = "0.1.0"
_LATER = dict(zip(__all__, ("mixture", "adapters", "aggregate", "diagnosis"), strict=True))


def __getattr__(name: str) -> Any:
    """Import what was asked for when it is asked for: torch, scikit-learn and matplotlib take seconds."""
    if name not in _LATER:
        raise AttributeError(f"module 'vaebook' has no attribute {name!r}")
    return getattr(import_module(f"vaebook.{_LATER[name]}"), name)
