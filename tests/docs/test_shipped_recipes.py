"""Every recipe in trimtab/recipes/ fits a model: it can be read, planned and carried out."""

from pathlib import Path

import pytest
from markdown_blocks import ROOT

import trimtab
from trimtab.core.shipped import measured

RECIPES = sorted((ROOT / "trimtab" / "recipes").glob("*.yaml"))


def test_the_page_says_what_was_measured():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for one in measured():
        mean = sum(one.perplexity) / len(one.perplexity)
        row = f"| `{one.name}` | `{one.steps}` | {one.bits:.3f} | {mean:.2f} | {one.increase:+.1%} |".replace("% |", " % |")
        assert row in page


def test_there_are_some():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_runs(path: Path, small_world: Path):
    done = trimtab.compress("asset:smollm2-135m", str(path))
    steps = {receipt.step for receipt in done.report.receipts}
    assert steps == set(range(1, len(trimtab.Recipe.read(path).steps) + 1))
