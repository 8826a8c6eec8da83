"""The side of a claim that is trained from random weights: the shape and the text of a model of ours, the method's structures.

Every method gets the same tokens, and its own learning rate: that with the best loss on rows that it does not train on. Seeds are
of everything random: weights, order of the rows, the method's own draws.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from trimtab.core.errors import UsageError
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Recipe, Where
from trimtab.core.scratch import ScratchMethod
from trimtab.data.examples import Examples, held_out
from trimtab.data.windows import evaluation_windows
from trimtab.host.homegrown import Homegrown, reading, untrained
from trimtab.host.pretrain import Course
from trimtab.host.scratch import changed, teach, text_rows
from trimtab.host.source import recorded
from trimtab.host.trainer import validation_loss
from trimtab.measure.perplexity import token_losses
from trimtab.measure.rates import Trial, best_trial
from trimtab.measure.sides import Setting, Side
from trimtab.measure.size import bits_per_weight
from trimtab.tensors.products import fast_products

RATES = (2e-3, 4e-3, 8e-3)
HELD_OUT = 0.02


def is_from_scratch(recipe: Recipe | None) -> bool:
    """Whether a model is to be trained from random weights. Raises `UsageError` where that is not the whole recipe."""
    if recipe is None or not any(isinstance(step.method, ScratchMethod) for step in recipe.steps):
        return False
    if len(recipe.steps) > 1 or recipe.steps[0].where != Where():
        raise UsageError(f"{recipe}: what is trained from scratch stands alone, and goes everywhere")
    return True


def measure_scratch_side(folder: str, recipe: Recipe, setting: Setting, watch: Watcher = unwatched) -> Side:
    """As `measure_side`. folder: of a model of ours, of which the description is taken and nothing else.

    Raises `UsageError` for a folder that holds none.
    """
    begun = perf_counter()
    described = recorded(Path(folder)).get("description")
    if described is None:
        raise UsageError(f"{folder} was not grown here, so nobody knows what it was trained on; use e.g. asset:own-2m")
    best = best_trial(RATES, lambda rate: _trained(as_described(described), recipe, rate, setting, watch))
    return Side(best.losses, best.bits, True, perf_counter() - begun)


def as_described(described: Mapping[str, Any]) -> Homegrown:
    """The description again, from the JSON beside a model."""
    return Homegrown(**{**described, "course": Course(**described["course"]), "texts": tuple(described["texts"])})


def _trained(grown: Homegrown, recipe: Recipe, rate: float, setting: Setting, watch: Watcher) -> Trial:
    method = recipe.steps[0].method
    assert isinstance(method, ScratchMethod)
    course = changed(grown.course, None, rate, recipe.seed)
    tokenizer, texts = reading(grown)
    model = untrained(replace(grown, course=course))
    rows, apart = held_out(Examples(tuple(text_rows(texts, tokenizer, course.length))), HELD_OUT, recipe.seed)
    with TemporaryDirectory() as scratch:
        teach(model, method, rows.rows, course, Path(scratch) / "state", watch)
    windows = evaluation_windows(setting.text, tokenizer, setting.windows, setting.length, 0)
    with fast_products():
        losses = token_losses(model, windows).mean(1)
        found = validation_loss(model, apart.rows, at_once=4)
    return Trial(found, losses, bits_per_weight(model)[0].value)
