"""Every numbered statement of the book, as a check that runs and could have failed.

`verify("index/joint")` runs one check and returns its `Evidence`; `ledger()` lists all claims. A module holds
the claims of one chapter or of one prefix; a check measures, and only `vaebook.claims.registry` judges.
"""

from vaebook.claims import gen_vae, index, dims, agg, gen  # isort: skip  (registers them in the order of the book)
from vaebook.claims.registry import Claim, Evidence, Measurement, claim, ledger, verify

__all__ = [
    "Claim",
    "Evidence",
    "Measurement",
    "agg",
    "claim",
    "dims",
    "gen",
    "gen_vae",
    "index",
    "ledger",
    "verify",
]
