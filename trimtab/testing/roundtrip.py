"""Carry out a recipe on a tiny model, save it, open it as anyone would, and compare the logits bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from trimtab.core.recipe import Recipe
from trimtab.engine.run import Bench, run
from trimtab.engine.teaching import needs_teacher
from trimtab.host.checkpoint import save
from trimtab.host.school import school
from trimtab.testing.problems import expect
from trimtab.testing.tiny import tiny, tokens


class Float64(TorchFunctionMode):
    """Inside, nothing falls back to float32: the norms and softmaxes of most families do, even in a float64 model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        raised = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*raised, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


def in_float64(family: str) -> PreTrainedModel:
    """A tiny model to be run inside `Float64()`."""
    model = tiny(family).double()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the grouped product of experts knows no float64
    return model


def ran(family: str, recipe: Recipe, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Bench]:
    """A tiny model after the recipe, and the record of what was done."""
    model = tiny(family, seed).to(dtype)
    teacher = tiny(family, seed) if needs_teacher(recipe) else None
    return model, run(model, recipe, shown(model), school=school, teacher=teacher)


def shown(model: PreTrainedModel) -> list[Tensor]:
    """Calibration token ids, two batches of [4, 24]."""
    return [tokens(model, batch=4, length=24, seed=seed) for seed in (1, 2)]


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """[2, 12, vocabulary] on tokens that calibration did not show."""
    return model(tokens(model, seed=7), use_cache=False).logits


def same_after_saving(family: str, recipe: Recipe, made: PreTrainedModel | None = None) -> None:
    """Raises AssertionError if plain `from_pretrained` does not bring back the very same function. made: by that recipe."""
    model = ran(family, recipe)[0] if made is None else made
    expect(not torch.equal(logits(model), logits(tiny(family))), f"{recipe} changes nothing on {family}")
    again = reopened(model)
    expect(torch.equal(logits(again), logits(model)), f"{family} after {recipe} says something else when opened again")


def reopened(model: PreTrainedModel) -> PreTrainedModel:
    """Saved, and opened by transformers' own loader."""
    with TemporaryDirectory() as place:
        folder = save(model, None, Path(place) / "model")
        again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return again.eval()
