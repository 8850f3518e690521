"""Mixtures of Gaussians in the latent space of a variational autoencoder, exactly.

The modules, from the bottom up; each imports only from those above it in this list:

====================================  ==============================================================
``kernels`` ``data`` ``plots``        the sum over components, the data sets, the pictures
``tables``                            numbers rounded once, in one way
``mixture``                           `DiagGaussianMixture`: the object that the book is about
``models`` ``priors`` ``ppca``        VAEs, priors, and the case in which everything is closed form
``bounds`` ``aggregate``              ELBO, IWAE, quadrature; the aggregated posterior of an encoder
``training``                          fitting, saving and loading
``claims``                            every statement of the book as a check that runs and can fail
====================================  ==============================================================
"""

from vaebook.mixture import DiagGaussianMixture

__all__ = ["DiagGaussianMixture"]
__version__ = "0.1.0"
