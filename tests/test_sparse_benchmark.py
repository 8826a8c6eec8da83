"""The tables of pruning methods: what they ask for can be read."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import sparse

from trimtab.core.recipe import Recipe


@pytest.mark.parametrize("name", [*sparse.LEVELS, sparse.MENDED])
def test_its_recipes_can_be_read(name: str) -> None:
    found = sparse.recipes(name)
    assert len(set(found)) == len(found) >= 5
    assert all(Recipe.of(recipe).steps for recipe in found)
