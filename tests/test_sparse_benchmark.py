"""The table of pruning methods: what it asks for can be read, and what it shows is paired against its first recipe."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import sparse

from trimtab.core.recipe import Recipe
from trimtab.measure.sides import Setting, Side


@pytest.mark.parametrize("name", [*sparse.LEVELS, sparse.MENDED])
def test_its_recipes_can_be_read(name: str) -> None:
    found = sparse.recipes(name)
    assert len(set(found)) == len(found) >= 5
    assert all(Recipe.of(recipe).steps for recipe in found)


def sides(level: float, seeds: int = 3) -> list[Side]:
    return [
        Side(torch.tensor([level, level + 1, level + 2], dtype=torch.float64), 16.0, seeds > 1, 10.0 + s) for s in range(seeds)
    ]


def test_rows_are_ordered_and_set_against_the_first() -> None:
    told = sparse.table("2:4", {"wanda": sides(3.0), "magnitude": sides(5.0, seeds=1), "armor": sides(2.5)})
    rows = [row for row in told.splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["armor", "wanda", "magnitude"]
    assert "-0.500 (-0.500 to -0.500)" in rows[0]
    assert "| 54.60 |  | 11 |" in rows[1]
    assert "+2.000 (+2.000 to +2.000)" in rows[2]


def test_the_head_names_the_setting() -> None:
    told = sparse.head(Setting(), sides(3.0))
    assert "`asset:smollm2-135m`" in told
    assert "seeds 0, 1, 2" in told
