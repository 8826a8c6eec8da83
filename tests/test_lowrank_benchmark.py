"""The tables of factored models: what they ask for can be read, at the sizes they say, and transforms are found."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import lowrank

from trimtab.core.recipe import Recipe


@pytest.mark.parametrize("name", [*lowrank.REMOVED, lowrank.CODES])
def test_its_recipes_can_be_read(name: str) -> None:
    found = lowrank.recipes(name)
    assert len(set(found)) == len(found) >= 5
    assert all(Recipe.of(recipe).steps for recipe in found)


def test_transforms_are_found_from_their_matrices() -> None:
    rows = [row.split("|") for row in lowrank.transforms((8, 32)).splitlines() if row.startswith(("| 8", "| 32"))]
    assert [row[2].strip() for row in rows] == ["48 of 64", "320 of 1024"]
    assert all(float(cell) < 1e-10 for row in rows for cell in row[3:5])
