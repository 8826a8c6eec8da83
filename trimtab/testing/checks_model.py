"""What a model method must keep: the function, where it promises that, and a model that can be saved."""

import torch

from trimtab.core.errors import ModelError
from trimtab.core.kinds import ModelMethod
from trimtab.core.recipe import Recipe
from trimtab.engine.run import run
from trimtab.testing.problems import brief, expect, settings
from trimtab.testing.roundtrip import Float64, in_float64, logits, ran, same_after_saving, shown

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "smollm3")
EXACT = 1e-9  # relative, in float64


def preserves_the_function(method: type[ModelMethod]) -> None:
    """Where `preserves` says so: float64 logits are unchanged. A family may be refused with `ModelError`, but not all."""
    if not method.preserves:
        return
    served = [family for family in FAMILIES if _preserved(method, family)]
    expect(bool(served), f"it refuses all of {', '.join(FAMILIES)}")


def _preserved(method: type[ModelMethod], family: str) -> bool:
    with Float64():
        before = logits(in_float64(family))
        for made in settings(method):
            model = in_float64(family)
            try:
                run(model, Recipe((made,)), shown(model))
            except ModelError:
                return False
            change = float((logits(model) - before).norm() / before.norm())
            expect(change <= EXACT, f"{made} moves the float64 logits of {family} by {change:.2g} of their size")
    return True


def answers_the_same_twice(method: type[ModelMethod]) -> None:
    for made in map(brief, settings(method)):
        (once, _), (again, _) = ran("llama", Recipe((made,))), ran("llama", Recipe((made,)))
        expect(torch.equal(logits(once), logits(again)), f"{made} gives another model the second time")


def is_the_same_after_saving(method: type[ModelMethod]) -> None:
    for made in map(brief, settings(method)):
        same_after_saving("llama", Recipe((made,)))


CHECKS = (preserves_the_function, answers_the_same_twice, is_the_same_after_saving)
