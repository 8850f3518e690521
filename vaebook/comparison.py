"""Another name of `vaebook.likelihood.compare_priors`, by which the experiment that was fixed beforehand imports it."""

from vaebook.likelihood import compare_priors

__all__ = ["compare_priors"]
