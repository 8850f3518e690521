"""The page of a diagnosis in a browser: nothing is fetched, axe finds nothing, light and dark, wide and narrow."""

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from vaebook.diagnosis import diagnose


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    angle = torch.linspace(0, 6.28, 100)
    loc = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    path = tmp_path_factory.mktemp("report") / "report.html"
    diagnose({"loc": loc, "scale": torch.full_like(loc, 0.1)}).to_html(path)
    return path


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_page(browser, page_file, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]] == []
    assert page.evaluate("() => Array.from(document.images).every(i => i.naturalWidth > 0)")
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    context.close()
