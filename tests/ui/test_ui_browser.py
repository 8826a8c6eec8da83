"""The page in a real browser: it opens without a complaint, fits, streams, plans, starts, cancels. What computes is a stub.

Without Chromium these are skipped, unless TRIMTAB_NEED_BROWSER is set: then having none is a failure.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from browser import Browser, browser, find
from furnished import furnish
from served import Visitor, serving

WIDTHS = (400, 1400)
PAGES = ("/", "/?folder=more", "/result?at=four-bit", "/talk?at=four-bit", "/compress", "/result?at=nothing")
PATIENCE = 20.0
TOO_WIDE = """
[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll, .skip, .hidden") && e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => `${e.tagName} ${e.className.baseVal ?? e.className}`)
"""
SAID = '[...document.querySelectorAll(".voice .said")].map(said => said.textContent)'
JOB = '(document.querySelector("#job h2")?.textContent ?? "")'


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    pytest.importorskip("fastapi", reason="the page needs fastapi and uvicorn")
    program = find()
    if program is None:
        if os.environ.get("TRIMTAB_NEED_BROWSER"):
            pytest.fail("TRIMTAB_NEED_BROWSER is set and there is no Chromium; install one")
        pytest.skip("there is no Chromium here; the page was not looked at")
    with browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(window: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Site"]:
    root = furnish(tmp_path_factory.mktemp("site"))
    with serving(root) as keys:
        window.open(keys.address, 1400)
        yield Site(window, Visitor(keys), root)


class Site:
    """The served page, seen in the window."""

    def __init__(self, window: Browser, visitor: Visitor, root: Path):
        self.window, self.visitor, self.root = window, visitor, root

    def open(self, path: str, width: int = 1400, dark: bool = False) -> None:
        self.window.complaints.clear()
        self.window.fetched.clear()
        self.window.open(f"http://127.0.0.1:{self.visitor.keys.port}{path}", width, dark)
        self.loaded()

    def loaded(self) -> None:
        """Scripts have run: what is asked of the page before that is lost."""
        self.until('document.readyState === "complete"')

    def js(self, script: str) -> Any:
        return self.window.evaluate(script)

    def until(self, script: str) -> Any:
        """What a script gives, as soon as it gives something."""
        end = monotonic() + PATIENCE
        while not (found := self.js(script)):
            assert monotonic() < end, f"it never came to {script}; the job says {self.visitor.get('/api/job').text:.600}"
            sleep(0.02)
        return found

    def click(self, words: str, where: str = "body") -> None:
        self.js(f'[...document.querySelectorAll(`{where} button`)].find(b => b.textContent === "{words}").click()')


def test_the_key_opens_the_page_and_is_gone_from_the_address(site):
    site.window.open(site.visitor.keys.address, 1400)
    assert site.js("location.search") == ""
    assert site.js("document.title") == f"{site.root.name} · trimtab"
    assert site.js("document.cookie") == ""  # scripts do not see it


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_it_opens_without_complaint_and_fits(site, path, width, dark):
    site.open(path, width, dark)
    expected = ["status of 400"] if "nothing" in path else []
    assert [said for said in site.window.complaints if not any(known in said for known in expected)] == []
    assert site.js("document.documentElement.scrollWidth <= innerWidth")
    assert site.js(TOO_WIDE) == []
    own = f"http://127.0.0.1:{site.visitor.keys.port}/"
    assert [url for url in site.window.fetched if not url.startswith(own)] == []
    assert site.window.screenshot().startswith(b"\x89PNG")


def test_colours_are_kept_from_page_to_page(site):
    background = "getComputedStyle(document.body).backgroundColor"
    site.open("/")
    light = site.js(background)
    site.js('document.getElementById("theme").click()')
    assert site.js(background) != light
    site.open("/compress")
    assert site.js(background) != light
    assert site.js('document.getElementById("theme").textContent') == "Light"
    site.js("localStorage.clear()")


def test_points_and_rows_are_the_same_results(site):
    site.open("/")
    over = 'document.querySelector(`tr[data-name="four-bit"]`).dispatchEvent(new PointerEvent("pointerenter"))'
    site.js(over)
    lit = '[...document.querySelectorAll("circle.lit title")].map(title => title.textContent.split(":")[0])'
    assert set(site.js(lit)) == {"four-bit"}
    site.js('document.querySelector("circle.lit").dispatchEvent(new MouseEvent("click"))')
    assert site.until('document.querySelector("h1")?.textContent === "four-bit"')
    site.loaded()


def test_two_models_speak_word_by_word_and_can_be_stopped(site):
    site.open("/talk?at=four-bit")
    options = '[...document.querySelectorAll(".voice select")].map(select => select.value)'
    assert site.js(options) == ["asset:own-2m", "four-bit"]
    site.js('document.querySelector("[name=new_tokens]").value = 256; document.getElementById("ask").requestSubmit()')
    first = site.until(f"{SAID}.every(said => said.length > 60) && {SAID}")
    assert first[0].startswith("The capital of France is own-2m1 own-2m2")
    later = site.until(f"{SAID}[0].length > {len(first[0])} && {SAID}")
    assert later[0].startswith(first[0])
    assert site.js('document.getElementById("stop").disabled') is False
    site.click("Stop")
    site.until('document.getElementById("difference").textContent')
    assert site.js('document.querySelectorAll(".voice.live").length') == 0
    rates = site.js('[...document.querySelectorAll(".voice .rate")].map(rate => rate.textContent)')
    assert all(rate.endswith("stopped") and "tokens/s" in rate for rate in rates), rates
    assert site.js('document.querySelectorAll(".voice mark").length') > 0
    assert site.window.complaints == []


def test_a_model_that_fails_says_so_in_its_place(site):
    site.open("/talk?at=four-bit")
    site.js(
        'const select = document.querySelector("#model-right"); select.append(new Option("broken", "asset:broken"));'
        'select.value = "asset:broken"; document.getElementById("ask").requestSubmit()'
    )
    assert site.until('document.querySelector(".voice.failed .state")?.textContent') == "broken has no weights; fetch it again"


def fill(site: Site, model: str, name: str) -> None:
    site.open("/compress")
    site.js('sessionStorage.clear(); document.querySelector("[name=way][value=method]").click()')
    site.until('document.querySelectorAll("#knobs label").length')
    for field, value in (("model", model), ("name", name)):
        typed = f'field.value = "{value}"; field.dispatchEvent(new Event("input", {{ bubbles: true }}))'
        site.js(f'{{ const field = document.querySelector("[name={field}]"); {typed} }}')
    site.js('document.querySelector("[data-knob=bits]").value = 3; document.querySelector("[data-knob=clip]").click()')
    site.js('document.getElementById("wish").requestSubmit()')


def test_plan_then_start_then_look(site):
    fill(site, "asset:own-2m", "fresh")
    site.until(f'{JOB} === "Plan"')
    said = site.js('document.getElementById("job").textContent')
    assert "538 MB → 101 MB" in said
    assert "5.35 times smaller" in said
    assert "trimtab compress asset:own-2m --method=gptq --bits=3 --clip -o fresh" in said
    site.click("Start", "#job")
    site.until(f'{JOB} === "Done"')
    assert (site.root / "fresh").is_dir()
    links = site.js('[...document.querySelectorAll("#job a")].map(link => link.getAttribute("href"))')
    assert links == ["/talk?at=fresh", "/result?at=fresh", "/?folder="]
    assert site.window.complaints == []


def test_progress_is_seen_from_every_page_and_can_be_cancelled(site):
    fill(site, "asset:slow", "never")
    site.until(f'{JOB} === "Plan"')
    site.click("Start", "#job")
    site.until('document.querySelectorAll("#job .strip i.full").length === 12')
    site.open("/")
    site.until('document.querySelectorAll("#job .strip i.full").length === 12')
    assert "going through the blocks, 12 of 30" in site.js('document.getElementById("job").textContent')
    assert site.js("document.documentElement.scrollWidth <= innerWidth")
    site.click("Cancel", "#job")
    site.until(f'{JOB} === "Cancelled"')
    assert not (site.root / "never").exists()
    site.click("Close", "#job")
    assert site.js('document.getElementById("job").hidden')


def test_what_is_wrong_stands_where_one_looks(site):
    fill(site, "asset:broken", "another")
    site.until(f'{JOB} === "That did not work"')
    assert site.js('document.querySelector("#job .error").textContent') == "broken has no block; give another model"
    fill(site, "/etc", "another")
    assert "lies outside of" in site.until('document.querySelector("#wish .error:not([hidden])")?.textContent')
    assert [said for said in site.window.complaints if "status of 400" not in said] == []


def test_measuring_from_the_page(site):
    site.open("/")
    site.js('document.querySelector("[data-opens=measure]").click()')
    assert site.js('document.getElementById("measure").open')
    site.js('document.querySelector("#measure form").requestSubmit()')
    end = monotonic() + PATIENCE
    while (job := site.visitor.get("/api/job").json())["kind"] != "measure" or job["state"] == "running":
        assert monotonic() < end, job
        sleep(0.02)
    assert job["state"] == "done", job


def test_the_page_can_be_used_without_a_mouse(site):
    site.open("/compress")
    for kind in ("keyDown", "keyUp"):
        site.window.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert site.js("document.activeElement.className") == "skip"
    unnamed = """[...document.querySelectorAll("input, select, textarea, button, a")].filter(e => e.checkVisibility() &&
      !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map(e => e.outerHTML)"""
    for path in ("/", "/talk?at=four-bit", "/compress"):
        site.open(path)
        assert site.js(unnamed) == []
