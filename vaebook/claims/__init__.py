"""Every numbered statement of the book, as a check that runs and could have failed.

`verify("index/joint")` runs one check and returns its `Evidence`; `ledger()` lists all claims. There is one module
for each prefix of the ids; a check measures, and only `vaebook.claims.registry` judges.
"""

# isort: off  (this registers the claims, in the order of the book)
from vaebook.claims import agg, gen, gen_limits, gen_npmle, index

# isort: on
from vaebook.claims.registry import Claim, Evidence, Measurement, claim, ledger, verify

__all__ = [
    "Claim",
    "Evidence",
    "Measurement",
    "agg",
    "claim",
    "gen",
    "gen_limits",
    "gen_npmle",
    "index",
    "ledger",
    "verify",
]
