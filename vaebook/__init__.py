"""Mixtures of Gaussians in the latent space of a variational autoencoder, exactly.

The modules, from the bottom up; each imports only from those above it in this list:

====================================  ==============================================================
``tables`` ``attention``              numbers rounded once, in one way; log-sum-exp of scores, in constant memory
``kernels`` ``data`` ``plots``        the sum over components, the data sets, the pictures
``mixture`` ``estimators``            `DiagGaussianMixture`: the object that the book is about; standard errors, batches
``models`` ``priors``                 VAEs and what they take for p(z)
``integrals``                         log p(x, z) of any model, and rules that are refined until they agree
``ppca`` ``modes``                    the VAE in closed form; the modes of a mixture, which are not its components
``bounds`` ``aggregate`` ``npmle``    ELBO, IWAE, quadrature; the aggregated posterior of an encoder; the best prior
``training`` ``surgery``              fitting, saving and loading; what the KL term consists of
``certificates``                      what can be said of it without samples: bounds on information and mismatch, MMD
``laplace`` ``likelihood``            maxima of p(x, z) over z; log p(x) under any prior, by importance sampling
``inference``                         how far an encoder is from the exact posterior, and why
``claims``                            every statement of the book as a check that runs and can fail
====================================  ==============================================================
"""

from vaebook.mixture import DiagGaussianMixture

__all__ = ["DiagGaussianMixture"]
__version__ = "0.1.0"
