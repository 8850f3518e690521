"""Tests. A package, because a library of the experiments brings one of this name, which would stand in its way."""
