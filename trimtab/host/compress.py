"""The main job from end to end: open a model, check the plan, run the recipe, write the result or nothing at all."""

import hashlib
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Original, Storage
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.core.recipe import Calibration, Recipe
from trimtab.core.report import Report
from trimtab.data.windows import calibration_windows
from trimtab.engine.plan import Plan
from trimtab.engine.plan import plan as planned
from trimtab.engine.references import named
from trimtab.engine.run import run
from trimtab.host.card import model_card, receipt
from trimtab.host.checkpoint import load, save
from trimtab.host.gguf_import import history, resolve_model
from trimtab.host.provenance import provenance
from trimtab.host.publish import check_apart, check_target, ensure_space


@dataclass(frozen=True)
class Compressed:
    """The model in memory, ready to use, with its tokenizer and what was done to it. folder: None if not written."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    report: Report
    plan: Plan
    folder: Path | None = None


def compress(
    model: str | Path | PreTrainedModel,
    recipe: str | Recipe,
    out: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    packed: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    watch: Watcher = unwatched,
) -> Compressed:
    """Compress a model and, with `out`, write it as an ordinary Hugging Face folder.

    model: folder, hub name, `asset:smollm2-135m`, or a model in memory (changed in place; give its tokenizer too).
    recipe: a `Recipe`, an expression such as "gptq(bits=3)", or the path of a .yaml file.
    packed: store sparse results compactly instead of as plain matrices with zeros. dtype: what is not compressed is cast to.
    Raises `UsageError` (and its kinds) before any weight moves if the request does not fit; the output is all or nothing.
    """
    recipe = as_recipe(recipe)
    if out is not None:
        check_target(out, overwrite)
        if isinstance(model, str | Path):
            check_apart(model, out)
    name = str(model) if isinstance(model, str | Path) else model.config.name_or_path or type(model).__name__
    watch(Progress("load", 0, 1, name))
    model, tokenizer, notes = _opened(model, tokenizer, dtype, device)
    expected = planned(Anatomy.of(model), recipe, packed)
    if out is not None:
        ensure_space(Path(out), expected.bytes_after or expected.bytes_before)
    batches = _batches(model, tokenizer, recipe)
    bench = run(model, recipe, batches, watch, packed, {n: load(resolve_model(n), device)[0] for n in named(recipe)})
    report = Report(
        name,
        recipe.to_dict(),
        bench.receipts,
        notes=[*notes, *bench.notes],
        profile=dict(bench.profile.seconds),
        peak_memory=peak_memory(),
        seeded=bench.drew or needs_calibration(recipe),
        shown=_shown(recipe, batches),
        made=provenance(),
    )
    if out is None:
        return Compressed(model, tokenizer, report, expected)
    watch(Progress("save", 0, 1, str(out)))
    folder = save(model, tokenizer, out, recipe.yaml(), model_card(report), overwrite, receipt=receipt(report))
    watch(Progress("save", 1, 1, str(out)))
    return Compressed(model, tokenizer, report, expected, folder)


def plan(
    model: str | Path | PreTrainedModel, recipe: str | Recipe, *, dtype: torch.dtype | None = None, packed: bool = False
) -> Plan:
    """What `compress` would do, step by step, and the size of the result. Changes nothing."""
    opened, _, _ = _opened(model, None, dtype, None)
    return planned(Anatomy.of(opened), as_recipe(recipe), packed)


def as_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe from what a user has at hand: a `Recipe`, a .yaml path, or an expression."""
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.read(recipe) if recipe.endswith((".yaml", ".yml")) else Recipe.of(recipe)


def needs_calibration(recipe: Recipe) -> bool:
    """Whether any step looks at activations."""
    methods = [m for step in recipe.steps for m in (step.method, step.by) if m is not None]
    return any(need not in (Original, Storage) for method in methods for need in method.needs)


def peak_memory() -> int:
    """Bytes: the most this process ever held."""
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo


def _opened(model: Any, tokenizer: Any, dtype: torch.dtype | None, device: Any) -> tuple[PreTrainedModel, Any, list[str]]:
    if not isinstance(model, str | Path):
        return (model if dtype is None else model.to(dtype)), tokenizer, []
    folder = resolve_model(str(model))
    opened, found = load(folder, device, dtype or "auto")
    past = history(Path(folder))
    return opened, tokenizer or found, [past] if past else []


def _batches(model: PreTrainedModel, tokenizer: Any, recipe: Recipe) -> Sequence[Tensor]:
    """Token ids [batch, length] each. Recipes that look at no data get a few arbitrary tokens, for the shape checks."""
    if not needs_calibration(recipe):
        return [torch.arange(16).remainder(model.config.get_text_config().vocab_size)[None].to(model.device)]
    if tokenizer is None:
        raise UsageError("this recipe needs calibration text, and the model came without a tokenizer; pass tokenizer=")
    shown: Calibration = recipe.calibration
    windows = calibration_windows(shown.text, tokenizer, shown.tokens, shown.length, recipe.seed)
    return list(windows.to(model.device).split(shown.batch))


def _shown(recipe: Recipe, batches: Sequence[Tensor]) -> dict[str, Any]:
    """What was shown to the model, in a form that tells whether two runs saw the same; empty where nothing was."""
    if not needs_calibration(recipe):
        return {}
    digest = hashlib.sha256(torch.cat(list(batches)).cpu().numpy().tobytes()).hexdigest()
    return {**asdict(recipe.calibration), "sha256": digest}
