"""Every numbered statement of the book, as a check that runs and could have failed.

`verify("index/joint")` runs one check and returns its `Evidence`; `ledger()` lists all claims. There is one module
for each chapter, named after the prefix of its ids; a check measures, and only `vaebook.claims.evidence` judges.
"""

# Importing registers the claims: in the order of the book.
# isort: off
from vaebook.claims import gen_vae
from vaebook.claims import index
from vaebook.claims import dims
from vaebook.claims import agg
from vaebook.claims import agg_population
from vaebook.claims import agg_surgery
from vaebook.claims import agg_holes
from vaebook.claims import agg_moments
from vaebook.claims import est
from vaebook.claims import prior
from vaebook.claims import prior_sampling
from vaebook.claims import agg_attention
from vaebook.claims import gen
from vaebook.claims import gen_limits
from vaebook.claims import gen_npmle

# isort: on
from vaebook.claims.registry import Claim, Evidence, Measurement, Neighbour, claim, ledger, verify

__all__ = [
    "Claim",
    "Evidence",
    "Measurement",
    "Neighbour",
    "agg",
    "agg_attention",
    "agg_holes",
    "agg_moments",
    "agg_population",
    "agg_surgery",
    "claim",
    "dims",
    "est",
    "gen",
    "gen_limits",
    "gen_npmle",
    "gen_vae",
    "index",
    "ledger",
    "prior",
    "prior_sampling",
    "verify",
]
