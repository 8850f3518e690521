"""Loaded by the kernels of the chapters' tests: Python looks for garbage less often, a tenth of a chapter's time.

What torch and others import are hundreds of thousands of objects that stay, and each search looks at all of them.
"""

import gc

gc.set_threshold(50_000, 20, 50)
