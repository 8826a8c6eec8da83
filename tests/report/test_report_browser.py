"""The page in a real browser: no complaint on the console, nothing fetched, nothing wider than the window, readable names.

Without Chromium these are skipped, unless TRIMTAB_NEED_BROWSER is set: then having none is a failure.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sample
from browser import Browser, browser, find

from trimtab.report import parse, render

WIDTHS = (400, 1400)
KINDS = ("sample", "hostile", "alone")
TOO_WIDE = """
[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll, .skip") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => `${e.tagName} ${e.className.baseVal ?? e.className}`)
"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LABELS = """
[...document.querySelectorAll("svg.picture")].filter(svg => svg.checkVisibility()).map(svg => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] };
  return {frame: box(svg), labels: [...svg.querySelectorAll(".label")].map(box)};
})
"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    program = find()
    if program is None:
        if os.environ.get("TRIMTAB_NEED_BROWSER"):
            pytest.fail("TRIMTAB_NEED_BROWSER is set and there is no Chromium; install one")
        pytest.skip("there is no Chromium here; the report was not looked at")
    with browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    texts = {
        "sample": page,
        "hostile": render(parse(sample.hostile())),
        "alone": render(parse({"format": 1, "others": [{"name": "a", "receipt": sample.receipt(4.5, 80, 1)}]})),
    }
    place = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (place / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: place / f"{name}.html" for name in texts}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_without_complaint_and_fits(kind, width, dark, window, pages):
    window.complaints.clear()
    window.fetched.clear()
    window.open(pages[kind], width, dark)
    assert window.complaints == []
    assert set(window.fetched) == {pages[kind].as_uri()}
    assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert window.evaluate(TOO_WIDE) == []
    assert window.evaluate("typeof window.pwned") == "undefined"


def test_the_screenshots_show_something(window, pages):
    shots = []
    for dark in (False, True):
        window.open(pages["sample"], 1400, dark)
        shots.append(window.screenshot())
    assert all(shot.startswith(b"\x89PNG") and len(shot) > 100_000 for shot in shots)
    assert shots[0] != shots[1]


def test_the_browser_notices_what_the_tests_look_for(window, tmp_path):
    """A page with every fault at once: the checks above could fail."""
    page = tmp_path / "bad.html"
    page.write_text('<body><script>console.error("x"); missing()</script><div style="width:3000px">y</div></body>', "utf-8")
    window.complaints.clear()
    window.open(page, 400)
    assert len(window.complaints) >= 2
    assert not window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert window.evaluate(TOO_WIDE)


def test_the_button_changes_the_colours(window, pages):
    window.open(pages["sample"], 1400)
    light = window.evaluate(BACKGROUND)
    assert window.evaluate('document.getElementById("theme").textContent') == "Dark"
    window.evaluate('document.getElementById("theme").click()')
    dark = window.evaluate(BACKGROUND)
    assert dark != light
    assert window.evaluate('document.getElementById("theme").getAttribute("aria-label")') == "Use light colours"
    window.open(pages["sample"], 1400, dark=True)
    assert window.evaluate(BACKGROUND) == dark


@pytest.mark.parametrize("width", WIDTHS)
def test_names_in_the_trade_off_can_be_read(width, window, pages):
    window.open(pages["sample"], width)
    drawn = [found for found in window.evaluate(LABELS) if found["labels"]]
    assert len(drawn) == 2
    for found in drawn:
        assert len(found["labels"]) == 3
        left, top, right, bottom = found["frame"]
        for number, one in enumerate(found["labels"]):
            assert left <= one[0] < one[2] <= right
            assert top <= one[1] < one[3] <= bottom
            for other in found["labels"][:number]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] + 3 or other[3] <= one[1] + 3


def test_narrow_tables_with_drawings_become_cards_and_stay_tables(window, pages):
    display = 'getComputedStyle(document.querySelector("table.stacks tbody tr")).display'
    window.open(pages["sample"], 1400)
    assert window.evaluate(display) == "table-row"
    window.open(pages["sample"], 400)
    assert window.evaluate(display) == "flex"
    assert window.evaluate('document.querySelector("table.stacks tbody tr").getAttribute("role")') == "row"


def test_the_focus_can_be_seen_and_reaches_the_content(window, pages):
    window.open(pages["sample"], 1400)
    for kind in ("keyDown", "keyUp"):
        window.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert window.evaluate("document.activeElement.className") == "skip"
    assert window.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert window.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


def test_it_prints_light_and_whole(window, pages):
    window.open(pages["sample"], 800, dark=True, media="print")
    assert window.evaluate('getComputedStyle(document.querySelector("nav")).display') == "none"
    assert window.evaluate(BACKGROUND) == "rgb(251, 250, 247)"
    pdf = base64.b64decode(window.ask("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000
    assert window.evaluate('document.querySelectorAll("details[open]").length') == 0  # as they were
