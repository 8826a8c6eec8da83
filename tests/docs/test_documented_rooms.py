"""docs/architecture.md says who may import whom: the same as the house rules, which are checked against the code."""

import importlib.util
import re
from types import ModuleType

import pytest
from markdown_blocks import ROOT

PACKAGE = ROOT / "trimtab"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \|(.*)\|$", re.MULTILINE)


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house_rules_to_compare", ROOT / "tests" / "test_house_rules.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_imports_is_that_of_the_house_rules(rules):
    documented = {room: {room, *filter(None, others.strip().split(", "))} for room, others in ROW.findall(_section("Who may"))}
    enforced = {room: {room, *others} - {""} for room, others in rules.ALLOWED.items() if room}
    assert documented == enforced


def test_the_rooms_that_may_see_transformers_are_those_of_the_house_rules(rules):
    (said,) = re.findall(r"Only\n?((?:[ ,]|and|`\w+`)+) may import transformers", _section("Who may"))
    assert set(re.findall(r"`(\w+)`", said)) == rules.HOSTED


def test_methods_never_import_each_other(rules):
    assert "methods" not in rules.ALLOWED["methods"], "the page says so"


def test_every_room_is_described():
    rooms = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
    assert sorted(room for room, _ in ROW.findall(_section("The rooms"))) == rooms


def test_modules_named_on_the_page_exist():
    for name in re.findall(r"`([a-z_/]+\.py)`", TEXT):
        assert list(ROOT.glob(f"trimtab/**/{name}")) or (ROOT / name).exists(), f"there is no {name}"


def _section(title: str) -> str:
    """The text under the heading that begins so."""
    return next(part for part in TEXT.split("\n## ") if part.startswith(title))
