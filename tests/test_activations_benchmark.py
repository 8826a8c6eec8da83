"""The ladder of rounded activations: what it asks for can be read, and differs from table to table."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import activations

from trimtab.core.recipe import Recipe
from trimtab.host.kv.quantized import check_bits


@pytest.mark.parametrize("name", activations.TABLES)
def test_its_recipes_can_be_read(name: str) -> None:
    found = activations.recipes(name)
    assert len(set(found)) == len(found) == (14 if name == "W4A8KV4" else 11)
    assert all(Recipe.of(recipe).steps for recipe in found)
    check_bits(activations.TABLES[name][2])


def test_every_table_is_another_one() -> None:
    asked = [(*activations.recipes(name), activations.TABLES[name][2]) for name in activations.TABLES]
    assert len(set(asked)) == len(asked)
