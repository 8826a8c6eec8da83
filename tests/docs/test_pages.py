"""Links lead somewhere, pages stay short, and the places that are filled in later are there."""

import re
from pathlib import Path

import pytest
from markdown_blocks import PAGES, ROOT

from trimtab.core.registry import ids

LINK = re.compile(r"\]\(([^)\s]+)\)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@every_page
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = page if not name else page.parent / name
        assert there.exists(), f"{target} does not exist"
        assert not anchor or anchor in _anchors(there), f"{target}: there is no such heading"


@every_page
def test_pages_are_short(page: Path):
    assert len(page.read_text(encoding="utf-8").splitlines()) < 400


def test_the_readme_has_a_place_for_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = text.index("<!-- results -->"), text.index("<!-- /results -->")
    assert begin < end
    assert "rounded to 4 bits (groups of 32) before we got them" in " ".join(text.split())


def test_the_changelog_names_every_method():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [id for id in ids() if f"`{id}`" not in text] == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
