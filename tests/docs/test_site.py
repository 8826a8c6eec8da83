"""The site is built strictly: no dead link, no page that the menu forgets, nothing that a browser would fetch from elsewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_blocks import ROOT

from trimtab.core.registry import ids

pytestmark = pytest.mark.skipif(
    not (find_spec("mkdocs") and find_spec("material")), reason="mkdocs-material is not installed; pip install -e '.[docs]'"
)
FETCHED = re.compile(r"<(?:link|script|img|iframe)\b[^>]*?(?:href|src)=\"?((?:https?:)?//[^\"\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_method_and_every_page_of_the_repository_is_there(site):
    for id in ids():
        assert (site / "methods" / f"{id}.html").is_file()
    for name in ("index", "choosing", "api", "project/CHANGELOG", "project/claims/LEDGER", "decisions/001-float32-products"):
        assert (site / f"{name}.html").is_file()


def test_links_between_docs_and_repository_lead_to_pages_of_the_site(site):
    assert 'href="project/SECURITY.html"' in (site / "faq.html").read_text(encoding="utf-8")
    assert 'href="../adding_a_method.html"' in (site / "project" / "CONTRIBUTING.html").read_text(encoding="utf-8")


def test_fences_with_marks_are_code(site):
    page = (site / "recipes.html").read_text(encoding="utf-8")
    assert "file=recipe.yaml" not in page
    assert '<span class="nt">steps</span>' in page, "coloured as YAML"


def test_nothing_is_fetched_from_elsewhere(site):
    found = {path.name: FETCHED.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}
