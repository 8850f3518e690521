"""The reference of the package says what the docstrings say."""

import importlib.util
from types import SimpleNamespace

import pytest
import yaml
from fingerprint import ROOT
from sphinx.ext import napoleon

spec = importlib.util.spec_from_file_location("api", ROOT / "book" / "_ext" / "api.py")
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)
SETTINGS = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]

SENTENCES = {
    "R, the KL term of the ELBO: its mean over the data.": None,
    "Codes: those of the data: all of them.": None,
    "No colon at all.": None,
    "`rate`: what it is.": "``rate``: what it is.",
    "``a: b``, and what that is: a pair.": None,
    "$f: x$ at one point: a number.": ":math:`f: x` at one point: a number.",
    "The mixture, on two lines: here\nand here.": None,
}


def shown(what, text):
    """What is left of a docstring when napoleon has taken its sections apart."""
    app = SimpleNamespace(config=napoleon.Config(**{k: v for k, v in SETTINGS.items() if k.startswith("napoleon_")}))
    lines = text.split("\n")
    api.read_markdown(app, what, "name", None, None, lines)
    napoleon._process_docstring(app, what, "name", None, None, lines)
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("what", ["attribute", "property"])
def test_what_stands_before_a_colon_of_an_attribute_is_no_type(what, text):
    assert shown(what, text) == " ".join((SENTENCES[text] or text).split())


@pytest.mark.parametrize("text", SENTENCES)
def test_what_stands_before_a_colon_of_a_result_is_no_type(text):
    indented = text.replace("\n", "\n    ")
    docstring = f"Compute it.\n\nReturns:\n    {indented}\n\nRaises:\n    ValueError: it is wrong: too large."
    said = " ".join((SENTENCES[text] or text).split())
    assert shown("function", docstring) == f"Compute it. :returns: {said} :raises ValueError: it is wrong: too large."


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("It is *not* q.", "It is *not* q."),
        ("*What is left out.* One.", "*What is left out.* One."),
        ("**The gains** are", "**The gains** are"),
        ("a * b and *args", r"a \* b and \*args"),
    ],
)
def test_emphasis_stays_and_other_asterisks_are_written(piece, text):
    assert shown("function", piece) == text
