"""The published numbers name their sources and the reasons why they do not compare."""

import json
import re

from fingerprint import ROOT

PUBLISHED = json.loads((ROOT / "book" / "results" / "published.json").read_text(encoding="utf-8"))
ROWS = PUBLISHED["nll"] + PUBLISHED["fid"]
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
KEYS = set(re.findall(r"^@\w+\{([\w-]+),", BIBLIOGRAPHY, re.MULTILINE))


def test_every_number_has_a_source_and_a_reason():
    sources = {row["source"] for row in ROWS} | {row["pythae"]["source"] for row in PUBLISHED["nll"] if row["pythae"]}
    assert sources <= KEYS
    assert all(row["not_comparable"] for row in ROWS)
    assert {reason for row in ROWS for reason in row["not_comparable"]} == set(PUBLISHED["reasons"])


def test_reasons_follow_from_the_protocol():
    for row in PUBLISHED["nll"]:
        reasons = set(row["not_comparable"])
        assert ("static" in reasons) == (row["binarisation"] == "static"), row["id"]
        assert ("other data" in reasons) == (row["data"] != "Fashion-MNIST"), row["id"]
        assert ("few samples" in reasons) == (row["samples"] < 5000), row["id"]
        assert ("two layers of latents" in reasons) == ("HVAE" in row["model"] or row["model"] == "PixelSNAIL"), row[
            "id"
        ]
        assert ("convolutions" in reasons) == (row["model"] in ("ConvHVAE", "PixelSNAIL")), row["id"]
        assert ("quoted there" in reasons) == (row["prior"] == "lars"), row["id"]
        assert (row["ours"] is not None) == (row["data"] == "Fashion-MNIST" and row["model"] == "VAE"), row["id"]


def test_what_was_not_seen_at_its_source_says_so():
    assert all(row["seen"] in ("repository", "elsewhere") for row in ROWS)
    assert {row["source"] for row in ROWS if row["seen"] == "repository"} == {"norouzi2020exemplar"}


def test_the_order_of_priors_has_the_one_exception_that_the_chapter_names():
    value = {(r["model"], r["data"], r["prior"]): r["value"] for r in PUBLISHED["nll"] if r["seen"] == "repository"}
    kinds = {key[:2] for key in value}
    assert len(kinds) == 12
    ordered = {kind for kind in kinds if value[*kind, "normal"] > value[*kind, "vamp"] > value[*kind, "exemplar"]}
    assert kinds - ordered == {("PixelSNAIL", "MNIST")}


def test_numbers_are_told_apart():
    ids = [row["id"] for row in PUBLISHED["nll"]]
    assert len(ids) == len(set(ids))
    protocol = ("source", "data", "model", "prior", "binarisation", "samples")
    rows = [tuple(row[key] for key in protocol) for row in PUBLISHED["nll"]]
    assert len(rows) == len(set(rows))
    for row in PUBLISHED["nll"]:
        assert round(row["value"], row["decimals"]) == row["value"], row["id"]
