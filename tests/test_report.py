"""The forms of a diagnosis made by hand: every row with its number, JSON, text and page."""

import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser

import jsonschema
import pytest
import torch

from tests.diagnoses import PLAIN, about, hole, interval, memory, sampling
from tests.texts import check_text
from vaebook import page as pages
from vaebook.estimators import Estimate
from vaebook.holes import Coordinate
from vaebook.panels import Panel
from vaebook.report import STATUS, VERSION, Moments, Verdict, json_schema

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


def test_what_a_number_means_is_told_with_the_numbers_that_belong_to_it():
    found = dataclasses.replace(FULL, sampling=FULL.sampling._replace(data="some"))
    meaning = {name: told for name, *_, told in found.numbers()}
    assert meaning["information I"] == "of at most log N = 7.60"
    assert meaning["distinguishable codes exp(I)"] == "of 1000 distinct"
    assert meaning["latents in use"] == "of 2"
    assert "0" in meaning["mean farthest from 0"] and "1" in meaning["mean square farthest from 1"]
    assert [meaning[f"log-likelihood, z from {name}"] for name in ("prior", "gmm", "q_agg")] == ["some"] * 3
    names = list(meaning)
    own, left, cost = (
        names.index(name) for name in ("log q_agg, own codes", "log q_agg, left out", "cost of leaving out")
    )
    assert (own, left) == (cost - 2, cost - 1) and meaning[names[cost]] == "difference of the two above"


def test_a_zero_is_a_number_and_an_error_of_zero_is_none_that_is_missing():
    zero = dataclasses.replace(FULL, active=(False, False), moments=Moments(0.0, 0.0), mismatch=Estimate(0.0, 0.0, 9))
    assert [row[:3] for row in zero.numbers() if not isinstance(row[1], str) and row[1] == 0] == [
        ("mismatch, N data", 0.0, 0.0),
        ("latents in use", 0, "exact"),
        ("mean farthest from 0", 0.0, "exact"),
        ("mean square farthest from 1", 0.0, "exact"),
    ]


def test_an_interval_is_told_by_its_limits():
    between = interval(1.0, 2.0)._replace(low_estimate=1.2, high_estimate=1.8)
    found = dataclasses.replace(FULL, mismatch_population=between)
    assert [row[1] for row in found.numbers() if row[0] == "mismatch, population"] == ["1.000 to 2.000"]


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
    assert found["schema"] == "vaebook.diagnosis/1" == VERSION == json_schema()["properties"]["schema"]["const"]
    assert found["rate"] == {"value": 3.0, "stderr": 0.0, "num_samples": 0}
    assert found["information_population"]["high"] is None and found["information_population"]["low"] == 1.0
    assert "points" not in found["holes"] and found["holes"]["where"][0]["index"] == 1
    assert found["active"] == [True, True] and found["kl_per_dimension"] == [1.0, 2.0]
    assert found["sampling"]["gains"]["gmm"]["value"] == 0.1
    assert "shown" not in found
    for change in ({"extra": 1}, {"active": [1, 2]}, {"num_data": 1.5}, {"prior": None}, {"verdicts": [{}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(found | change, json_schema())
    for name in found:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: value for key, value in found.items() if key != name}, json_schema())
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


def test_long_lines_of_the_text_are_broken_and_stay_under_their_mark():
    long = "A word that is repeated. " * 9
    found = dataclasses.replace(
        FULL, verdicts=(Verdict("Is it?", "ok", long, long, long),), unknown=(long,), notes=(long,)
    )
    lines = [line for line in str(found).splitlines() if "word" in line]
    assert len(lines) > 14 and max(map(len, lines)) <= 100
    assert all(line.startswith("  ") or line.startswith("- A word") for line in lines)


@pytest.mark.parametrize("form", ["to_json", "to_html"])
def test_a_file_is_written_whole_or_not_at_all(form, tmp_path, monkeypatch):
    shown = dataclasses.replace(FULL, shown={"codes": torch.zeros(3, 2), "prior": torch.ones(3, 2)})
    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            getattr(shown, form)(tmp_path / "a")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


MARKUP = """<i>"&'</i>"""


class Figures(HTMLParser):
    """Alternative texts, texts, and tags of a page, as a browser has them."""

    def __init__(self, text):
        super().__init__()
        self.alt, self.text, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.alt += [dict(attributes).get("alt")] if tag == "img" else []

    def handle_data(self, text):
        self.text.append(text)


@pytest.mark.parametrize("whole", [True, False])
def test_no_text_of_a_diagnosis_becomes_markup(whole):
    found = dataclasses.replace(
        FULL, prior=MARKUP, verdicts=(Verdict(MARKUP, "look", MARKUP, MARKUP, MARKUP),), unknown=(MARKUP,),
        notes=(MARKUP,), sampling=FULL.sampling._replace(data=MARKUP),
    )  # fmt: skip
    seen = Figures(pages.page(found, STATUS, [Panel(MARKUP, MARKUP, b"")], whole=whole))
    assert "i" not in seen.tags and seen.alt == [MARKUP]
    # prior; topic, finding, decides, advice; unknown; notes; title and caption; what three candidates were scored on
    assert "".join(seen.text).count(MARKUP) == 1 + 4 + 1 + 1 + 2 + 3


def test_a_picture_has_its_own_words_and_the_page_its_language():
    shown = dataclasses.replace(FULL, shown={"codes": torch.zeros(3, 2), "prior": torch.ones(3, 2)})
    assert Figures(shown.to_html()).alt == [panel.alt for panel in shown.panels()]
    assert '<html lang="en">' in shown.to_html()


def test_the_page_counts_data_and_says_what_is_unknown_and_noted_under_their_titles():
    text = pages.page(FULL, STATUS, [])
    assert "<p class=soft>2,000 data, 2 latent dimensions" in text
    unknown, notes = text.index("<h2>What it could not tell</h2>"), text.index("<h2>Notes</h2>")
    assert unknown < text.index("<li>Something.</li>") < notes < text.index("<li>Merged.</li>")
    assert f"1 nat is {1 / math.log(2):.2f} bits" in text and "the sum of information and mismatch" in text


def test_text_json_and_page_read_as_they_are_stored():
    """From the first letter to the last; the pictures have tests of their own."""
    every = tuple(Verdict(f"Is it {status}?", status, "Perhaps.", "1 & 2", "Look.") for status in STATUS)
    found = dataclasses.replace(FULL, verdicts=every)
    check_text("report.txt", f"{found}\n")
    check_text("report.json", f"{found.to_json()}\n")
    check_text("schema.json", json.dumps(json_schema()) + "\n")
    page, part = (
        pages.page(found, STATUS, [Panel("A <title>", "What is seen.", b"<svg/>")], whole=whole)
        for whole in (True, False)
    )
    check_text("page.html", page)
    assert part.count(pages.STYLE) == 1  # which stands in the page
    check_text("part.html", part.replace(pages.STYLE, "[STYLE]"))


def test_every_status_has_a_colour_by_day_and_by_night():
    day, night = pages.STYLE.split("@media (prefers-color-scheme:dark){.vb{")
    for status in STATUS:
        colours = [re.findall(rf"--{status}:(#\w+)", part) for part in (day, night)]
        assert [len(colour) for colour in colours] == [1, 1] and colours[0] != colours[1], status


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
