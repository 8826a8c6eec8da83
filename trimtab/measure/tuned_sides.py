"""The side of a claim whose last step is trained: compressed first if there are steps before it, then adapted, then measured.

Every method gets the same rows, steps and tokens, and its own learning rate: that with the best loss on rows that it does not
train on. So a claim compares methods and not somebody's choice of a rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook, TrainedMethod
from trimtab.data.examples import examples, held_out
from trimtab.data.windows import calibration_windows, evaluation_windows
from trimtab.host.adapt import prepared, shown, still_there
from trimtab.host.checkpoint import load
from trimtab.host.compress import compress
from trimtab.host.pretrain import Course
from trimtab.host.trainer import Pace, tune
from trimtab.host.tuned import Tuned
from trimtab.measure.perplexity import token_losses
from trimtab.measure.rates import Trial, best_trial
from trimtab.measure.sides import Setting, Side
from trimtab.measure.size import bits_per_weight
from trimtab.tensors.products import fast_products

TEXT = "asset:gsm8k"  # to measure on there is asset:gsm8k-rest
GENERAL = Calibration().text
COURSE = Course(steps=200, batch=4, length=256, decay=0.0)
RATES = (3e-4, 1e-3, 3e-3)
HELD_OUT = 0.1


def is_tuned(recipe: Recipe | None) -> bool:
    """Whether a step is trained. Raises `UsageError` where that is not the last one, or not to be done everywhere."""
    if recipe is None:
        return False
    kinds = [isinstance(step.method, TrainedMethod) for step in recipe.steps]
    if any(kinds[:-1]):
        raise UsageError(f"{recipe}: only the last step can be one that is trained")
    return kinds[-1]


def measure_tuned_side(folder: str, recipe: Recipe, setting: Setting, watch: Watcher = unwatched) -> Side:
    """As `measure_side`: the losses of the setting's windows after the training with the best rate."""
    begun = perf_counter()

    def run(rate: float) -> Trial:
        return _tuned(folder, recipe, setting, replace(COURSE, learning_rate=rate, seed=recipe.seed), watch)

    best = best_trial(RATES, run)
    return Side(best.losses, best.bits, True, perf_counter() - begun)


@dataclass(frozen=True, eq=False)
class Taught:
    """A model after its training. bits: per weight of what stands beside an adapter; parameters: how many were trained."""

    model: PreTrainedModel
    tokenizer: Any
    bits: float
    parameters: int
    done: Tuned

    @property
    def apart(self) -> float:
        """The best loss on the rows held out, nats per learned token."""
        return min(loss for _, loss in self.done.validations)


def taught(
    folder: str, recipe: Recipe, course: Course, data: str, watch: Watcher = unwatched, beside: Sequence[Hook] = ()
) -> Taught:
    """Compresses with all steps but the last, and trains with that. beside: hooks that look on, before the method's own."""
    model, tokenizer = load(folder)
    if tokenizer is None:
        raise ModelError(f"{folder} has no tokenizer; copy the tokenizer files of the original model into it")
    *first, last = recipe.steps
    if first:
        compress(model, replace(recipe, steps=tuple(first)), tokenizer=tokenizer, watch=watch)
    bits = bits_per_weight(model)[0].value
    assert isinstance(last.method, TrainedMethod)
    rows, apart = held_out(examples(data, tokenizer, course.length), HELD_OUT, recipe.seed)

    def general(count: int) -> Tensor:
        return calibration_windows(GENERAL, tokenizer, count * course.length, course.length, recipe.seed)

    seen = shown(last.method, rows, general, recipe.seed, model.device)
    trained, deltas, hooks = prepared(Anatomy.of(model), last.method, last.where, Seeds(recipe.seed), seen, watch)
    with TemporaryDirectory() as scratch:
        done = tune(
            model,
            trained,
            rows.rows,
            course,
            Path(scratch) / "state",
            validation=apart.rows,
            pace=Pace(at_once=course.batch, every=max(1, course.steps // 4)),
            hooks=[*beside, *hooks],
            general=general,
            identity={"recipe": str(recipe), "layers": list(deltas)},
            watch=watch,
        )
    return Taught(model, tokenizer, bits, still_there(model, trained), done)


def _tuned(folder: str, recipe: Recipe, setting: Setting, course: Course, watch: Watcher) -> Trial:
    """bits: per weight of what stands beside the adapter."""
    found = taught(folder, recipe, course, TEXT, watch)
    windows = evaluation_windows(setting.text, found.tokenizer, setting.windows, setting.length, 0)
    with fast_products():
        losses = token_losses(found.model, windows).mean(1)
    return Trial(found.apart, losses, found.bits)
