"""The benchmark of searches: what it asks for can be read, its options too, and differences are paired over seeds."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import search

from trimtab.core.recipe import Recipe


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["search.py", "--quick"])
    return search.arguments()


@pytest.mark.parametrize("task", search.TASKS)
def test_its_recipes_can_be_read(task, given):
    recipes = search.recipes(task, given)
    assert len(set(recipes)) == len(recipes) >= 3
    assert all(Recipe.of(recipe).steps for recipe in recipes)


def test_one_task_is_asked_for_with_every_seed(given):
    given.only, given.seeds = "blocks", 2
    asked = [job.fields for job in search.jobs(given)]
    assert [fields["seed"] for fields in asked] == [0, 0, 0, 1, 1, 1]
    assert {fields["task"] for fields in asked} == {"blocks"}


def line(recipe: str, seed: int, losses: list[float], notes: tuple[str, ...] = ()) -> dict[str, Any]:
    cost = {"stored_bits": 3.0, "zeros": 0.0, "perplexity": 9.0, "seconds": 60.0 * (seed + 1)}
    return {"task": "bits", "recipe": recipe, "seed": seed, "losses": losses, "notes": notes, **cost}


def test_rows_are_set_against_the_first_over_the_seeds_that_both_have():
    found = [
        line("uniform", 0, [2.0, 3.0, 5.0]),
        line("uniform", 1, [2.0, 4.0, 5.0]),
        line("searched", 0, [1.5, 2.5, 4.5], ("12 candidates judged",)),
    ]
    told = search.page(found)
    assert told.count("## ") == 1
    first, second = [row for row in told.splitlines() if row.startswith("| `")]
    assert "| - |" in first
    assert "| 1.5 |" in first
    assert "-0.5000 (-0.5000 to -0.5000)" in second
    assert second.endswith("| 12 candidates judged |")
