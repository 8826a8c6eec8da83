"""A size alone becomes a recipe."""

import pytest

from trimtab.core.errors import UsageError
from trimtab.core.goals import goals, recipes_for


def test_one_budget_becomes_recipes_with_the_most_bits_first():
    recipes = [str(recipe) for recipe in recipes_for(bits=2.75)]
    assert all("bits=2.75" in recipe for recipe in recipes)
    assert "low=7, high=8" in recipes[0]
    assert "size='60MB'" in str(recipes_for(size="60MB")[-1])
    assert set(goals()) == {"bits", "size"}


@pytest.mark.parametrize("given", [{}, {"bits": 3.0, "size": "60MB"}])
def test_exactly_one_goal(given):
    with pytest.raises(UsageError, match="one goal at a time"):
        recipes_for(**given)


@pytest.mark.parametrize(("given", "said"), [({"bits": 0.5}, "1 to 16"), ({"size": "much"}, "is no size")])
def test_what_no_budget_can_be_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        recipes_for(**given)
