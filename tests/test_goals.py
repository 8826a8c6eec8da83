"""A size alone becomes a recipe."""

import re

import pytest

from trimtab.core import shipped
from trimtab.core.errors import RecipeError, UsageError
from trimtab.core.goals import Goal, asked_for, goals, recipes_for


def test_one_budget_becomes_recipes_with_the_most_bits_first():
    recipes = [str(recipe) for recipe in recipes_for(bits=2.75)]
    assert all("bits=2.75" in recipe for recipe in recipes)
    assert "low=7, high=8" in recipes[0]
    assert "size='60MB'" in str(recipes_for(size="60MB")[-1])
    assert set(goals()) == {"bits", "size", "speedup", "fit", "max_ppl_increase"}


@pytest.mark.parametrize("given", [{}, {"bits": 3.0, "size": "60MB"}])
def test_exactly_one_goal(given):
    with pytest.raises(UsageError, match="one goal at a time"):
        recipes_for(**given)


@pytest.mark.parametrize(("given", "said"), [({"bits": 0.5}, "1 to 16"), ({"size": "much"}, "is no size")])
def test_what_no_budget_can_be_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        recipes_for(**given)


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("speedup", "2x", 2.0),
        ("speedup", "1.5", 1.5),
        ("fit", "2GiB", 2 * 1024**3),
        ("fit", "60MB", 60e6),
        ("max_ppl_increase", "3%", 0.03),
        ("max_ppl_increase", "0.5 %", 0.005),
    ],
)
def test_a_goal_is_read(name, said, value):
    goal = asked_for({name: said})
    assert isinstance(goal, Goal)
    assert goal.value == value
    assert str(goal) == f"--{name.replace('_', '-')} {said}"


@pytest.mark.parametrize(
    ("name", "said", "what"),
    [
        ("speedup", "1x", "write e.g. 2x"),
        ("speedup", "twice", "write e.g. 2x"),
        ("fit", "40%", "--size 40%"),
        ("fit", "0", "no size"),
        ("max_ppl_increase", "3", "write e.g. 3%"),
        ("max_ppl_increase", "0%", "write e.g. 3%"),
        ("max_ppl_increase", "-1%", "3%"),
    ],
)
def test_a_goal_that_means_nothing_is_refused(name, said, what):
    with pytest.raises(UsageError, match=re.escape(what)):
        asked_for({name: said})


def test_one_goal_of_all_kinds():
    with pytest.raises(
        UsageError, match=re.escape("one goal at a time (bits, size, speedup, fit, max-ppl-increase); given: bits and fit")
    ):
        asked_for({"bits": 3.0, "fit": "2GiB"})


def test_every_measured_recipe_is_shipped_and_is_what_was_measured():
    rows = shipped.measured()
    assert {row.name for row in rows} <= set(shipped.names())
    assert [row.increase for row in rows] == sorted(row.increase for row in rows)
    for row in rows:
        assert row.recipe.steps == type(row.recipe).of(row.steps).steps
        assert row.recipe.calibration.tokens == 8192
        assert row.base < min(row.perplexity) * 1.01


def test_a_shipped_recipe_goes_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.found("two-bit") == shipped.read("two-bit")
    (tmp_path / "two-bit").write_text("steps: [rtn]")
    assert str(shipped.found("two-bit")) == "rtn()"
    with pytest.raises(RecipeError, match="did you mean 'three-bit'"):
        shipped.found("tree-bit")
