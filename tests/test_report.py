"""The forms of a diagnosis made by hand: every row with its number, JSON, text and page."""

import dataclasses
import json
import math
from html.parser import HTMLParser

import jsonschema
import pytest
import torch

from tests.diagnoses import PLAIN, about, hole, interval, memory, sampling
from vaebook.estimators import Estimate
from vaebook.holes import Coordinate
from vaebook.report import VERSION, Verdict, json_schema

FULL = dataclasses.replace(
    PLAIN,
    rate=Estimate(3.0, 0.0, 0),
    information_population=interval(1.0, math.inf),
    holes=hole(0.25)._replace(points=torch.zeros(4, 2), where=(Coordinate(1, -0.5, 0.5, -1.3, 1.3),)),
    memorisation=memory(held=-1.5),
    sampling=sampling("gmm", copies={"prior": about(0.05)}, training_log_likelihood=about(-49.0)),
    verdicts=(Verdict("Is <it>?", "unknown", "Perhaps.", "1 & 2", "Look."),),
    unknown=("Something.",),
    notes=("Merged.",),
    shown={"codes": torch.zeros(3, 2)},
)


def test_every_number_has_its_row():
    assert [row[:3] for row in FULL.numbers()] == [
        ("rate R", 3.0, "exact"),
        ("information I", 2.0, 0.1),
        ("distinguishable codes exp(I)", 7.0, 0.1),
        ("information, population", "1.000 to inf", "95 % interval"),
        ("mismatch, N data", 1.0, 0.1),
        ("mismatch, population", "0 to 0.4000", "95 % interval"),
        ("total correlation", 0.1, 0.1),
        ("latents in use", 2, "exact"),
        ("mean farthest from 0", 0.01, "exact"),
        ("mean square farthest from 1", 1.01, "exact"),
        ("smallest hole to be seen", 0.01, "exact"),
        ("hole: share of the prior", 0.25, 0.001),
        ("hole: share of the codes", 0.0005, 0.0001),
        ("log q_agg, own codes", -1.0, 0.1),
        ("log q_agg, left out", -1.2, 0.1),
        ("cost of leaving out", pytest.approx(0.2), 0.1),
        ("log q_agg, held out", -1.5, 0.1),
        ("draws traced to their datum", 0.1, 0.1),
        ("log-likelihood, z from prior", -50.0, 0.1),
        ("log-likelihood, z from gmm", -50.0, 0.1),
        ("gain over the prior, gmm", 0.1, 0.01),
        ("log-likelihood, z from q_agg", -50.0, 0.1),
        ("gain over the prior, q_agg", -9.0, 0.01),
        ("log-likelihood, training data", -49.0, 0.1),
        ("effective draws, prior", "99", ""),
        ("effective draws, gmm", "99", ""),
        ("effective draws, q_agg", "99", ""),
        ("copies among samples, prior", 0.05, 0.1),
    ]
    assert [row[0] for row in FULL.table().rows] == [name for name, *_ in FULL.numbers()]


def test_what_is_missing_has_no_row():
    none = dataclasses.replace(
        FULL,
        information_population=None,
        mismatch_population=None,
        moments=None,
        holes=None,
        memorisation=memory(),
        sampling=None,
    )
    names = [name for name, *_ in none.numbers()]
    assert names == [
        "rate R",
        "information I",
        "distinguishable codes exp(I)",
        "mismatch, N data",
        "total correlation",
        "latents in use",
        "log q_agg, own codes",
        "log q_agg, left out",
        "cost of leaving out",
        "draws traced to their datum",
    ]
    unseen = [name for name, *_ in dataclasses.replace(FULL, holes=hole()).numbers() if "hole" in name]
    assert unseen == ["smallest hole to be seen"]
    assert not any(name.startswith("log q_agg") for name, *_ in dataclasses.replace(none, memorisation=None).numbers())


def test_json_has_all_but_draws_and_no_infinity(tmp_path):
    found = json.loads(FULL.to_json(tmp_path / "a.json"))
    jsonschema.validate(found, json_schema())
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == FULL.to_json() + "\n"
    assert found["schema"] == VERSION == json_schema()["properties"]["schema"]["const"]
    assert found["rate"] == {"value": 3.0, "stderr": 0.0, "num_samples": 0}
    assert found["information_population"]["high"] is None and found["information_population"]["low"] == 1.0
    assert "points" not in found["holes"] and found["holes"]["where"][0]["index"] == 1
    assert found["active"] == [True, True] and found["kl_per_dimension"] == [1.0, 2.0]
    assert found["sampling"]["gains"]["gmm"]["value"] == 0.1
    assert "shown" not in found
    for change in ({"extra": 1}, {"active": [1, 2]}, {"num_data": 1.5}, {"prior": None}, {"verdicts": [{}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found | change, json_schema())
    for pair in (3, [1.0], [1.0, 2.0, 3.0], ["a", 1.0]):
        bracket = found["mismatch_population"] | {"candidates": {"leave-one-out": pair}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found | {"mismatch_population": bracket}, json_schema())


def test_text_has_the_answers_first_and_remarks_last():
    lines = str(FULL).splitlines()
    assert lines[:2] == ["2000 data, 2 latent dimensions, prior: standard normal", "=" * len(lines[0])]
    assert lines[3:7] == ["[cannot tell] Is <it>?", "  Perhaps.", "  Decided by: 1 & 2.", "  Do: Look."]
    assert lines[-5:] == ["What it could not tell", "- Something.", "", "Notes", "- Merged."]
    assert "Notes" not in str(dataclasses.replace(FULL, notes=()))


class Outline(HTMLParser):
    """Elements that are open, and texts that stand in none but those that hold everything."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bare = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if text.strip() and (
            not self.open or self.open[-1] in ("html", "head", "body", "main", "div", "ul", "dl", "tr")
        ):
            self.bare.append(text)


def test_the_page_is_well_formed():
    shown = dataclasses.replace(FULL, shown={"codes": torch.zeros(3, 2), "prior": torch.ones(3, 2)})
    for page in (shown.to_html(), shown._repr_html_()):
        outline = Outline(page)
        assert (outline.open, outline.bare) == ([], [])


def test_the_page_escapes_and_explains(tmp_path):
    shown = dataclasses.replace(FULL, shown={"codes": torch.zeros(3, 2), "prior": torch.ones(3, 2)})
    page, part = shown.to_html(tmp_path / "a.html"), shown._repr_html_()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page
    for write in (shown.to_html, shown.to_json):
        with pytest.raises(TypeError, match=r"^path: expected a str or a PathLike, got int"):
            write(3)
    for text in (page, part):
        assert "Is &lt;it&gt;?" in text and "Decided by: 1 &amp; 2." in text and "--tone:var(--unknown)" in text
        assert "<li>Something.</li>" in text and "<li>Merged.</li>" in text
        assert '<th scope="row">rate R</th><td class=n>3.000</td><td class=n>exact</td>' in text
    assert page.startswith("<!doctype html>") and "<h1>" in page and "What the words mean" in page
    assert part.startswith("<style>") and "<h1>" not in part and "<h3>Answers</h3>" in part
    assert "<h2>Answers</h2>" in page and "<h3><span class=tag>cannot tell</span> · Is" in page
