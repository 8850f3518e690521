r"""The result of a diagnosis, as text, a table, JSON with a schema, one HTML page and four pictures.

`vaebook.diagnosis.diagnose` makes it. Numbers are in nats unless stated otherwise, and have standard errors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
import types
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from vaebook.estimators import Estimate
from vaebook.holes import Holes
from vaebook.memorisation import Memorisation
from vaebook.page import page
from vaebook.panels import Panel, panels
from vaebook.population import Interval
from vaebook.storage import check_path, write_atomically
from vaebook.tables import Table, number, table

VERSION = "vaebook.diagnosis/1"
"""Name and version of the JSON's schema, which `json_schema` returns."""
STATUS = {"ok": "ok", "look": "look", "problem": "problem", "unknown": "cannot tell"}
"""The possible statuses of a verdict, and how each is written."""


class Verdict(NamedTuple):
    """One question and its answer."""

    topic: str
    """The question."""
    status: str
    """One of `STATUS`."""
    finding: str
    """The answer, in a sentence or two."""
    decides: str
    """The number that decides it, as text, with its standard error or interval."""
    advice: str
    """What to do."""


class Moments(NamedTuple):
    """Moments of q_agg, in units of the prior: at a stationary point of training means are 0, second moments 1."""

    mean: float
    """Of the means of all latents, the one farthest from 0; exact."""
    second: float
    """Of the mean squares of all latents, the one farthest from 1; exact."""


class Sampling(NamedTuple):
    """The decoder's scores of the candidates for drawing codes: "prior", "gmm" (a fitted mixture) and "q_agg"."""

    data: str
    """The data that were scored: "held-out data", or "training data, each left out"."""
    chosen: str
    """The candidate to sample from."""
    gains: dict[str, Estimate]
    """Log-likelihood less that under the prior, nats per datum."""
    log_likelihood: dict[str, Estimate]
    """Log-likelihood of the data under each."""
    training_log_likelihood: Estimate | None
    """Log-likelihood of training data under the prior; None without held-out data to compare it with."""
    effective_samples: dict[str, float]
    """Effective number of draws behind each gain, the median over the data."""
    copies: dict[str, Estimate]
    """Share of decoded samples closer to a training datum than 95 % of the reconstructions of other data are."""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `vaebook.diagnosis.diagnose` found about a VAE's latent space."""

    num_data: int
    """N, the number of data."""
    num_distinct: int
    """How many of their codes are distinct; exact copies are merged."""
    latent_dim: int
    """D, the dimension of z."""
    prior: str
    """The prior that the codes are compared with."""
    rate: Estimate
    """R, the KL term of the ELBO: mean KL(q(z|x) | p)."""
    information: Estimate
    """I(n; z), the information of a code about which of the N data it belongs to; at most log_num_data."""
    log_num_data: float
    """log N."""
    distinguishable: Estimate
    """exp(I), how many of the N codes can be told apart."""
    information_population: Interval | None
    """A 95 % bracket for I(x; z) in the population, which log N does not cap."""
    mismatch: Estimate
    """KL(q_agg | p) of the N data at hand; the gaps between their codes are part of it."""
    mismatch_population: Interval | None
    """A 95 % bracket for the mismatch of the population that the data were drawn from."""
    population_from: str
    """The codes from which the two brackets are computed."""
    total_correlation: Estimate
    """The part of the mismatch that is dependence between latents, KL(q_agg | product of its marginals)."""
    kl_per_dimension: tuple[float, ...] | None
    """The rate of each latent; None where the prior is no Gaussian with independent dimensions. Exact."""
    active: tuple[bool, ...]
    """Which latents are in use: the variance of the codes' means exceeds a hundredth of the prior's variance, or of
    their own mean variance if that is smaller."""
    holes: Holes | None
    """The largest hole found: where the prior has mass and codes are rare."""
    memorisation: Memorisation | None
    """Log-density of q_agg at codes of its own data, of own data left out, and of held-out data."""
    moments: Moments | None
    """Moments that should be 0 and 1 at the end of training; None unless the prior is one Gaussian."""
    sampling: Sampling | None
    """The decoder's scores; None without a decoder."""
    verdicts: tuple[Verdict, ...] = ()
    """The answers."""
    unknown: tuple[str, ...] = ()
    """What could not be determined, and what that would need."""
    notes: tuple[str, ...] = ()
    """What was done to the data, and warnings on the way."""
    shown: dict[str, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    """Draws for the pictures: "codes" and "prior", (S, D); "own", "leave_one_out", "held_out", (S)."""

    def numbers(self) -> list[tuple[str, Any, Any, str]]:
        """List all numbers as (name, value, standard error, meaning), in the order of the page."""
        h, m, moments = self.holes, self.memorisation, self.moments
        hole = h if h and h.mass else None
        rows = [
            ("rate R", self.rate, "KL term of the ELBO, mean over the data"),
            ("information I", self.information, f"of at most log N = {self.log_num_data:.2f}"),
            ("distinguishable codes exp(I)", self.distinguishable, f"of {self.num_distinct} distinct"),
            ("information, population", self.information_population, "of new data; log N does not limit it"),
            ("mismatch, N data", self.mismatch, "KL(q_agg | prior); includes gaps between the N codes"),
            ("mismatch, population", self.mismatch_population, "what more data would leave of it"),
            ("total correlation", self.total_correlation, "of the N data, dependence between latents"),
            ("latents in use", sum(self.active), f"of {self.latent_dim}"),
            ("mean farthest from 0", moments and moments.mean, "should be 0 at the end of training"),
            ("mean square farthest from 1", moments and moments.second, "should be 1 there"),
            ("smallest hole to be seen", h and h.least, "share of the prior; a smaller one could go unseen"),
            ("hole: share of the prior", hole and Estimate(hole.mass, hole.stderr, 1), "where codes are rare"),
            ("hole: share of the codes", hole and Estimate(hole.codes, hole.codes_stderr, 1), "in the same place"),
            ("log q_agg, own codes", m and m.own, "at codes of the data that it is made of"),
            ("log q_agg, left out", m and m.leave_one_out, "without the datum: as if it were new"),
            ("cost of leaving out", m and m.cost, "difference of the two above"),
            ("log q_agg, held out", m and m.held_out, "at codes of new data"),
            ("draws traced to their datum", m and m.traced, "probability, 1 if each code names its datum"),
            *(_decoded(self.sampling) if self.sampling else ()),
        ]
        return [(name, *_cells(value), meaning) for name, value, meaning in rows if value is not None]

    def table(self) -> Table:
        """Show all numbers, with their standard errors or intervals and their meaning."""
        names, values, errors, meanings = zip(*self.numbers(), strict=True)
        return table({"quantity": names, "value": values, "std. error": errors, "meaning": meanings})

    def __str__(self) -> str:
        """Write the verdicts, the numbers and what could not be determined, for a terminal."""
        head = f"{self.num_data} data, {self.latent_dim} latent dimensions, prior: {self.prior}"
        parts = [head, "=" * len(head), ""]
        for v in self.verdicts:
            parts.append(f"[{STATUS[v.status]}] {v.topic}")
            parts += [_wrap(v.finding), _wrap(f"Decided by: {v.decides}."), _wrap(f"Do: {v.advice}"), ""]
        parts += [str(self.table()), ""]
        for title, lines in (("What it could not tell", self.unknown), ("Notes", self.notes)):
            parts += [title, *(_wrap(line, "- ") for line in lines), ""] if lines else []
        return "\n".join(parts).rstrip()

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the diagnosis as JSON, and write it to a file if one is named. `json_schema` describes it.

        Args:
            path: the file; its folder must exist. None writes nothing.

        Returns:
            The text.

        Raises:
            TypeError: path is not a path.
            OSError: the file cannot be written.
        """
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "shown"}
        text = json.dumps({"schema": VERSION} | fields, indent=1, allow_nan=False)
        if path is not None:
            write_atomically(check_path(path), f"{text}\n".encode())
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return one self-contained HTML page, and write it to a file if one is named; arguments as `to_json`."""
        text = page(self, STATUS, self.panels())
        if path is not None:
            write_atomically(check_path(path), text.encode())
        return text

    def panels(self) -> list[Panel]:
        """Draw the four pictures, each with a title, a description and the SVG."""
        return panels(self)

    def _repr_html_(self) -> str:
        return page(self, STATUS, self.panels(), whole=False)


def _cells(value: Any) -> tuple[Any, Any]:
    """Write a number and its standard error, as the table shows them."""
    if isinstance(value, Interval):
        return f"{number(value.low)} to {number(value.high)}", "95 % interval"
    if isinstance(value, Estimate):
        return value.value, value.stderr if value.num_samples else "exact"
    return value, "" if isinstance(value, str) else "exact"


def _decoded(found: Sampling) -> list[tuple[str, Any, str]]:
    rows = []
    for name, gain in found.gains.items():
        rows.append((f"log-likelihood, z from {name}", found.log_likelihood[name], found.data))
        rows.append((f"gain over the prior, {name}", None if name == "prior" else gain, "nats per datum"))
    rows.append(("log-likelihood, training data", found.training_log_likelihood, "z from the prior"))
    rows += [(f"effective draws, {name}", number(value), "median") for name, value in found.effective_samples.items()]
    meaning = "share nearer to a training datum than 95 % of the yardstick"
    return rows + [(f"copies among samples, {name}", value, meaning) for name, value in found.copies.items()]


def _wrap(text: str, mark: str = "  ") -> str:
    return textwrap.fill(text, 100, initial_indent=mark, subsequent_indent=" " * len(mark))


def _plain(value: Any) -> Any:
    """Turn named tuples into objects, tuples into lists, draws into nothing, infinity into null."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if not isinstance(part, Tensor)}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `Diagnosis.to_json`, built from the types of its fields.

    Returns:
        The schema, of draft 2020-12, as a dictionary. A number that is not finite is null. The docstrings of
        `Diagnosis` and its parts say what each field means.

    Example:
        >>> json_schema()["properties"]["rate"]["required"]
        ['value', 'stderr', 'num_samples']
    """
    schema = _object({"schema": None, **get_type_hints(Diagnosis)}, skip=("shown",))
    schema["properties"]["schema"] = {"const": VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Diagnosis"} | schema


def _object(fields: dict[str, Any], skip: tuple[str, ...] = ()) -> dict[str, Any]:
    parts = {name: _schema(kind) for name, kind in fields.items() if name not in skip and kind is not Tensor}
    return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}


def _schema(kind: Any) -> dict[str, Any]:
    """Describe one type of a field."""
    names = {int: "integer", str: "string", bool: "boolean", type(None): "null"}
    if kind in names:
        return {"type": names[kind]}
    if hasattr(kind, "_fields"):
        return _object(get_type_hints(kind))
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(part) for part in parts]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(parts[1])}
    if origin is tuple and parts[1:] != (...,):
        return {"type": "array", "prefixItems": [*map(_schema, parts)], "minItems": len(parts), "items": False}
    return {"type": "array", "items": _schema(parts[0])} if origin is tuple else {"type": ["number", "null"]}
