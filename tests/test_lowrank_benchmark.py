"""The tables of factored models: what they ask for can be read, at the sizes they say, and transforms are found."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import lowrank

from trimtab.core.recipe import Recipe
from trimtab.measure.sides import Setting, Side


@pytest.mark.parametrize("name", [*lowrank.REMOVED, lowrank.CODES])
def test_its_recipes_can_be_read(name: str) -> None:
    found = lowrank.recipes(name)
    assert len(set(found)) == len(found) >= 5
    assert all(Recipe.of(recipe).steps for recipe in found)


def sides(level: float) -> list[Side]:
    return [Side(torch.tensor([level, level + 1], dtype=torch.float64), 14.4, True, 10.0 + seed) for seed in range(3)]


def test_rows_are_ordered_and_set_against_the_first() -> None:
    told = lowrank.table("10 %", {"svd_llm": sides(3.0), "svd": sides(5.0), "lord": sides(2.5)})
    rows = [row for row in told.splitlines() if row.startswith("| `")]
    assert told.startswith("## 10 % of the parameters removed")
    assert [row.split("`")[1] for row in rows] == ["lord", "svd_llm", "svd"]
    assert "-0.500 (-0.500 to -0.500)" in rows[0]
    assert "14.400 | 33.12 |  | 11 |" in rows[1]


def test_the_head_says_what_is_removed() -> None:
    assert "at 14.40 bits per weight of the blocks" in lowrank.head(Setting(), sides(3.0))


def test_transforms_are_found_from_their_matrices() -> None:
    rows = [row.split("|") for row in lowrank.transforms((8, 32)).splitlines() if row.startswith(("| 8", "| 32"))]
    assert [row[2].strip() for row in rows] == ["48 of 64", "320 of 1024"]
    assert all(float(cell) < 1e-10 for row in rows for cell in row[3:5])
