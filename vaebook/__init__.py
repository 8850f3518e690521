"""Mixtures of Gaussians in the latent space of a variational autoencoder, exactly.

The modules, from the bottom up; each imports only from those above it in this list:

====================================  ==============================================================
``tables`` ``kernels``                numbers rounded once, in one way; the sum over components, in constant memory
``clusters`` ``data`` ``plots``       the same sum over those that matter; the data sets, the pictures
``mixture`` ``estimators``            `DiagGaussianMixture`: the object that the book is about; standard errors, batches
``models`` ``priors``                 VAEs and what they take for p(z)
``ppca`` ``modes``                    the VAE in closed form; the modes of a mixture, which are not its components
``bounds`` ``aggregate`` ``npmle``    ELBO, IWAE, quadrature; the aggregated posterior of an encoder; the best prior
``training`` ``surgery``              fitting, saving and loading; what the KL term consists of
``certificates``                      what can be said of it without samples: bounds on information and mismatch, MMD
``inference``                         how far an encoder is from the exact posterior, and why
``claims``                            every statement of the book as a check that runs and can fail
====================================  ==============================================================
"""

from vaebook.mixture import DiagGaussianMixture

__all__ = ["DiagGaussianMixture"]
__version__ = "0.1.0"
