"""What a method that trains a whole model must keep: it learns, the same twice, and what it leaves can be saved."""

from dataclasses import replace
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.recipe import Recipe
from trimtab.core.taught import TaughtMethod
from trimtab.engine.run import Bench
from trimtab.testing.problems import brief, expect, settings
from trimtab.testing.roundtrip import logits, ran, same_after_saving


def _made(method: type[TaughtMethod]) -> list[TaughtMethod]:
    return [brief(made) for made in settings(method)]


def _recipe(made: TaughtMethod) -> Recipe:
    """The step alone, or after one that quantizes or factors if it begins from what is quantized or factored."""
    if made.packed:
        return Recipe.of(f"rtn(bits=2) -> {made}")
    return Recipe.of(f"svd(keep=0.5) -> {made}" if getattr(made, "learn", "all") != "all" else str(made))


@lru_cache(maxsize=1)
def _once(recipe: Recipe) -> tuple[PreTrainedModel, Bench]:
    """What several checks of one method look at, and leave as it is."""
    return ran("llama", recipe)


def is_the_same_after_saving(method: type[TaughtMethod]) -> None:
    first, *others = map(_recipe, _made(method))
    same_after_saving("llama", first, _once(first)[0])
    for recipe in others:
        same_after_saving("llama", recipe)


def answers_the_same_twice(method: type[TaughtMethod]) -> None:
    made = _made(method)[0]
    (once, _), (again, _) = _once(_recipe(made)), ran("llama", _recipe(made))
    expect(torch.equal(logits(once), logits(again)), f"{made} gives another model the second time")


def leaves_nothing_of_the_training_behind(method: type[TaughtMethod]) -> None:
    """No module, no hook, no other precision; and as many numbers were trained as the forecast counts."""
    made = _made(method)[0]
    model, bench = ran("qwen2", _recipe(made), dtype=torch.bfloat16)
    left = [name for name, _ in model.named_modules() if "pupil" in name or "parametrizations" in name]
    expect(not left, f"{made} leaves {left[:1]} in the model")
    floats = {p.dtype for p in model.parameters() if p.is_floating_point() and p.ndim > 1}
    expect(floats <= {torch.bfloat16}, f"{made} leaves {floats} in a model of bfloat16")
    expect(made.trained(Anatomy.of(model)) > 0, "`trained` says that nothing is")
    expect([r.step for r in bench.receipts].count(len(bench.recipe.steps)) == 1, "one receipt for the step")


def learns_in_bfloat16_too(method: type[TaughtMethod]) -> None:
    """About the same, where matrix products are taken in bfloat16."""
    recipe = _recipe(_made(method)[0])
    mixed = replace(recipe, calibration=replace(recipe.calibration, compute="bfloat16"))
    last = [bench.receipts[-1].notes["last_loss"] for _, bench in (_once(recipe), ran("llama", mixed))]
    expect(abs(last[1] - last[0]) < 0.02 * abs(last[0]) + 0.01, f"the last loss is {last[0]:.4g}, and {last[1]:.4g} in bfloat16")


CHECKS = (
    is_the_same_after_saving,
    answers_the_same_twice,
    leaves_nothing_of_the_training_behind,
    learns_in_bfloat16_too,
)
