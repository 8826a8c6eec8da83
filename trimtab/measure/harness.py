"""lm-evaluation-harness, for any of its tasks: its own evaluator, with our opened model as its `hf` model.

`pip install trimtab[eval]`. Its tasks fetch their data sets from the hub. Where that is out of reach, `pack:arc_easy` runs
its evaluator on our items of that task, which is also how its numbers are compared with ours.
"""

import copy
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import TrimtabError, UsageError, did_you_mean
from trimtab.core.report import Measurement
from trimtab.core.seeds import Seeds
from trimtab.data.pack import Request
from trimtab.measure.items import Items
from trimtab.measure.perplexity import evaluating
from trimtab.measure.score import Score

PACK = "pack:"
BATCH = 8
RESAMPLES = 1000  # for the standard errors that lm-eval has no formula for
Results = Mapping[str, Any]


def harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
) -> list[Measurement]:
    """Every metric that lm-eval reports for these tasks. limit: so many items of each, the same ones for every model.

    Raises UsageError for an unknown task or without lm-eval, TrimtabError when a task cannot be loaded.
    """
    results = _evaluated(model, tokenizer, tasks, limit, seed)
    counts = results["n-samples"]
    setting = {"limit": limit, "seed": seed, "lm_eval": _version(), "dtype": str(model.dtype).removeprefix("torch.")}
    return [
        _measurement(f"lm-eval:{task}", key, metrics, int(counts.get(task, {}).get("effective", 0)), setting)
        for task, metrics in results["results"].items()
        for key in metrics
        if "," in key and "_stderr," not in key
    ]


def harness_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, limit: int | None = None, seed: int = 0
) -> Items:
    """The answers item by item, of a task or of a group of tasks (whose names are then the domains).

    Raises UsageError besides if the task is not made of log-likelihoods of given texts.
    """
    samples = _evaluated(model, tokenizer, [task], limit, seed)["samples"]
    rows = [(leaf, sample) for leaf, own in samples.items() for sample in own]
    setting = {"limit": limit, "seed": seed, "lm_eval": _version(), "dtype": str(model.dtype).removeprefix("torch.")}
    return _items(f"lm-eval:{task}", [_row(leaf, sample) for leaf, sample in rows], setting)


def _evaluated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], limit: int | None, seed: int
) -> Results:
    lm_eval = _installed()
    from lm_eval.models.huggingface import HFLM

    with _quiet(), evaluating(model):
        loaded = _loaded(tasks)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        # It gives the tokenizer a padding token; ours stays as it is.
        host = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=BATCH)
        samples = {name: _sample(len(task.eval_docs), limit, seed) for name, task in loaded["tasks"].items()}
        results: Results = lm_eval.evaluate(host, loaded, samples=samples, bootstrap_iters=RESAMPLES, log_samples=True)
    return results


def _installed() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise UsageError("lm-evaluation-harness is not installed; run: pip install 'trimtab[eval]'") from error
    return lm_eval


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


@contextmanager
def _quiet() -> Iterator[None]:
    """Bars, warnings and retries of the libraries are not ours to show; errors come as exceptions."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("lm_eval", "huggingface_hub"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _loaded(tasks: Sequence[str]) -> dict[str, Any]:
    """What lm-eval makes of task names: tasks, groups of tasks, and which is in which."""
    from lm_eval.tasks import TaskManager

    ours = [_pack_task(name) for name in tasks if name.startswith(PACK)]
    theirs = [name for name in tasks if not name.startswith(PACK)]
    if not theirs:
        return {"tasks": {task.config.task: task for task in ours}, "groups": {}, "group_map": {}}
    manager = TaskManager()
    for name in theirs:
        if name not in manager.all_tasks:
            raise UsageError(f"lm-eval has no task {name!r}{did_you_mean(name, manager.all_tasks)}")
    # Whatever goes wrong while it fetches and prepares a data set, the task cannot be had.
    try:
        return dict(manager.load([*ours, *theirs]))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        hint = f"{PACK}NAME runs it on items of the offline pack"
        raise TrimtabError(f"lm-eval cannot load {', '.join(theirs)}: {reason}; its data come from the hub, {hint}") from error


def _pack_task(name: str) -> Any:
    from trimtab.measure.harness_task import PackTask
    from trimtab.measure.tasks import requests

    return PackTask(name, requests(name.removeprefix(PACK)))


def _sample(count: int, limit: int | None, seed: int) -> list[int]:
    """Numbers of the items, ascending; the same that `tasks.sampled` takes."""
    order = torch.randperm(count, generator=Seeds(seed).at("items", count)).tolist()
    return sorted(order[:limit])


def _measurement(task: str, key: str, metrics: Mapping[str, Any], n: int, setting: dict[str, Any]) -> Measurement:
    name, _, chosen = key.partition(",")
    spread = metrics.get(f"{name}_stderr,{chosen}")
    label = name if chosen == "none" else f"{name} ({chosen})"
    stderr = float(spread) if isinstance(spread, int | float) else float("nan")
    return Measurement(f"{task} {label}", float(metrics[key]), stderr, n, "as lm-eval has it", setting)


def _row(leaf: str, sample: Mapping[str, Any]) -> tuple[Request, list[Score]]:
    pairs, answers = sample["arguments"], sample["filtered_resps"]
    if not all(len(pair) == 2 for pair in pairs) or not all(isinstance(a, list | tuple) and len(a) == 2 for a in answers):
        raise UsageError(f"lm-eval:{leaf} is not answered by log-likelihoods, so there is nothing to compare item by item")
    scored = [Score(float(nats), bool(greedy), False) for nats, greedy in answers]
    if leaf.startswith(PACK):
        return Request(**sample["doc"]), scored
    contexts, continuations = zip(*pairs, strict=True)
    return Request(f"{leaf}/{sample['doc_id']}", contexts, continuations, _gold(leaf, sample, continuations), leaf), scored


def _gold(leaf: str, sample: Mapping[str, Any], continuations: Sequence[str]) -> int:
    if len(continuations) == 1:
        return 0
    target = sample["target"]
    texts = [text.strip() for text in continuations]
    if isinstance(target, str) and target.strip() in texts:
        return texts.index(target.strip())
    if isinstance(target, int) and 0 <= target < len(continuations):
        return target
    raise UsageError(f"lm-eval:{leaf} has an item without a single right choice (its target is {target!r:.40})")


def _items(task: str, rows: Sequence[tuple[Request, list[Score]]], setting: dict[str, Any]) -> Items:
    from trimtab.measure.tasks import as_items

    return as_items(task, [request for request, _ in rows], [answers for _, answers in rows], setting)
