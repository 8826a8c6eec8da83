"""Which of several recipes a model can meet its budget with."""

from collections.abc import Sequence
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.core.recipe import Recipe
from trimtab.host.checkpoint import load
from trimtab.host.compress import plan
from trimtab.host.model_assets import resolve_model


def first_that_fits(model: str, recipes: Sequence[Recipe], dtype: Any = None) -> Recipe:
    """The first recipe that can be planned for the model, which is opened in `dtype`; the last one if none can.

    Planning the last one then says what is wrong. Raises `ModelError` as `load` does.
    """
    opened, _ = load(resolve_model(model), dtype=dtype)
    return next((recipe for recipe in recipes[:-1] if _fits(opened, recipe)), recipes[-1])


def _fits(model: Any, recipe: Recipe) -> bool:
    try:
        plan(model, recipe)
    except UsageError:
        return False
    return True
