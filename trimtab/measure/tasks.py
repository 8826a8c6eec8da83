"""Zero-shot tasks: what a model knows and understands, item by item, so that two models can be compared on the same items.

Tasks come from the offline pack, from arms of the closed-book comparison (`kick:...`), from a .jsonl file of the user's, and
through `lm-eval:NAME` from lm-evaluation-harness. Nothing is asked in a chat template and no worked examples are shown.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import UsageError, did_you_mean
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.seeds import Seeds
from trimtab.data.evidence import ARMS
from trimtab.data.pack import SOURCES, Request, file_requests, pack_requests
from trimtab.measure.items import ABSENT, Items
from trimtab.measure.pieces import Keep, unkept
from trimtab.measure.score import Score, scores

HARNESS = "lm-eval:"


def tasks() -> list[str]:
    """Names of the tasks that are always there."""
    return sorted(about())


def about() -> dict[str, str]:
    """What each of them asks."""
    return {name: source.about for name, source in SOURCES.items()} | {name: arm.about for name, arm in ARMS.items()}


def known(task: str) -> None:
    """Raises UsageError if there is no such task. A task of lm-evaluation-harness is looked up when it runs."""
    if not task.startswith(HARNESS) and not task.endswith(".jsonl") and task not in tasks():
        raise UsageError(f"there is no task {task!r}{did_you_mean(task, tasks())}")


def requests(task: str) -> list[Request]:
    """All items of a task. Raises UsageError for an unknown task or one of lm-eval, DataError for a damaged file."""
    known(task)
    if task.startswith(HARNESS):
        raise UsageError(f"the items of {task} are known to lm-eval only")
    if task.endswith(".jsonl"):
        return file_requests(Path(task))
    return ARMS[task].requests() if task in ARMS else pack_requests(task)


def sampled(found: list[Request], limit: int | None, seed: int) -> list[Request]:
    """The same `limit` items for every model, in order. Tasks of equally many items (arms) give the same sample."""
    if limit is None or limit >= len(found):
        return found
    if limit < 1:
        raise UsageError(f"the limit of items must be at least 1, got {limit}")
    chosen = torch.randperm(len(found), generator=Seeds(seed).at("items", len(found)))[:limit]
    return [found[number] for number in sorted(chosen.tolist())]


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    limit: int | None = None,
    seed: int = 0,
    watch: Watcher = unwatched,
    keep: Keep = unkept,
) -> Items:
    """How the model answers the task. limit: so many items, the same seeded sample for every model. keep: of batches of items.

    A context that does not fit loses its beginning, with a warning that says how many did. Raises UsageError for an unknown
    task, DataError for damaged items, ModelError when a log-likelihood is not finite.
    """
    if task.startswith(HARNESS):
        from trimtab.measure.harness import harness_items

        return harness_items(model, tokenizer, task.removeprefix(HARNESS), limit, seed)
    chosen = sampled(requests(task), limit, seed)
    pairs = [list(zip(item.contexts, item.continuations, strict=True)) for item in chosen]
    found = scores(model, tokenizer, pairs, watch, task, keep)
    setting = {"limit": limit, "seed": seed, "dtype": str(model.dtype).removeprefix("torch.")}
    items = as_items(task, chosen, found, setting)
    if items.truncated:
        asked = sum(map(len, pairs))
        warnings.warn(f"{task}: {items.truncated} of {asked} contexts were too long and lost their beginning", stacklevel=1)
    return items


def as_items(task: str, chosen: list[Request], found: list[list[Score]], setting: dict[str, object]) -> Items:
    """One line of a table per item, filled up where an item has fewer choices than others."""
    width = max(len(item.continuations) for item in chosen)
    cut = sum(score.cut for own in found for score in own)
    return Items(
        task=task,
        ids=tuple(item.id for item in chosen),
        gold=torch.tensor([item.gold for item in chosen]),
        scores=torch.tensor([_filled([s.nats for s in own], width, ABSENT) for own in found], dtype=torch.float64),
        sizes=torch.tensor([_filled([len(c.lstrip().encode()) for c in item.continuations], width, 0) for item in chosen]),
        domains=tuple(item.domain or task for item in chosen),
        greedy=torch.tensor([_filled([s.greedy for s in own], width, False) for own in found]),
        truncated=cut,
        setting={**setting, "truncated": cut},
    )


def _filled(values: Sequence[float], width: int, filler: float) -> list[float]:
    return [*values, *[filler] * (width - len(values))]
