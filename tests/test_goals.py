"""A size alone becomes a recipe."""

import pytest

from trimtab.core.errors import UsageError
from trimtab.core.goals import goals, recipe_for


def test_one_budget_becomes_one_recipe():
    assert "bits=2.75" in str(recipe_for(bits=2.75))
    assert "size='60MB'" in str(recipe_for(size="60MB"))
    assert set(goals()) == {"bits", "size"}


@pytest.mark.parametrize("given", [{}, {"bits": 3.0, "size": "60MB"}])
def test_exactly_one_goal(given):
    with pytest.raises(UsageError, match="one goal at a time"):
        recipe_for(**given)


@pytest.mark.parametrize(("given", "said"), [({"bits": 0.5}, "1 to 16"), ({"size": "much"}, "is no size")])
def test_what_no_budget_can_be_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        recipe_for(**given)
