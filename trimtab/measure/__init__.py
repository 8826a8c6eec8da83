"""What a model is worth, in numbers that carry their uncertainty and their setting.

The room is its own verb: `trimtab.measure("smaller")` measures. Importing any module of a room binds the room's name in the
package, so the name cannot stand for a function beside it; instead the module can be called.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.core.errors import UsageError
from trimtab.core.progress import Watcher, unwatched
from trimtab.core.report import Measurement
from trimtab.data.windows import evaluation_windows
from trimtab.host.checkpoint import local_folder
from trimtab.host.kv.quantized import WHOLE
from trimtab.host.kv.reading import rounded_kv
from trimtab.host.model_assets import resolve_model
from trimtab.host.opening import load
from trimtab.measure.memory import peak_memory

# Renamed, because these two names belong to the submodules here.
from trimtab.measure.perplexity import bits_per_byte, token_losses
from trimtab.measure.perplexity import perplexity as perplexity_of
from trimtab.measure.pieces import Keep, Pieces, Result, depends_on, unkept
from trimtab.measure.size import size as size_of
from trimtab.measure.speed import decode_speed, prefill_speed
from trimtab.measure.tasks import HARNESS, answer, known
from trimtab.measure.text_bytes import scored_bytes
from trimtab.tensors.products import fast_products


def measure(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: str = "asset:boolq",
    windows: int = 24,
    length: int = 512,
    seed: int = 0,
    speed: bool = True,
    stride: int | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    watch: Watcher = unwatched,
    keep: Keep | None = None,
    kv_bits: int = WHOLE,
) -> list[Measurement]:
    """Perplexity and bits per byte on `windows` windows of the source, size, memory; if asked, speed and tasks.

    model: folder, hub name or asset, or a model in memory with its tokenizer.
    stride: windows overlap and only the last `stride` tokens of each are scored, which have the rest of it before them.
    tasks: names that `trimtab.measure.tasks` knows; limit: at most so many items of each, the same for every model.
    keep: of batches of windows and of items, so that a measurement that is stopped goes on behind the last; None: of a model
    in files kept until all is measured, of one in memory not at all. Speed and memory are those of this process.
    kv_bits: text and items are read through keys and values of so many bits, 2 to 8; 16: as they are. Not speed and memory.
    Raises UsageError for an unknown task or a missing tokenizer, DataError when the source is missing or too short,
    ModelError when the model's losses are not finite.
    """
    for task in tasks:
        known(task)
    name = str(model) if isinstance(model, str | Path) else None
    model, tokenizer = _opened(model, tokenizer)
    pieces = None if name is None else Pieces(depends_on(local_folder(resolve_model(name))))
    kept = _apart(keep or pieces or unkept, kv_bits)
    ids = evaluation_windows(source, tokenizer, windows, length, seed, stride)  # [windows, length]
    with fast_products(), peak_memory(model) as peak:
        found = _through(model, kv_bits, lambda: _text(model, tokenizer, ids, stride, source, seed, kept))
        found += size_of(model)
        if speed:
            found += [prefill_speed(model, ids[:1]), decode_speed(model, ids[:1, : min(32, length)])]
        for task in tasks:
            answers = partial(_task, model, tokenizer, task, limit, seed, watch, kept)
            found += _through(model, kv_bits, answers)
    if pieces is not None:
        pieces.forget()
    return [*found, *peak]


def _through(model: PreTrainedModel, kv_bits: int, make: Callable[[], list[Measurement]]) -> list[Measurement]:
    """Measured with keys and values of so many bits, which the setting then says."""
    if kv_bits == WHOLE:
        return make()
    with rounded_kv(model, kv_bits):
        return [replace(one, setting={**one.setting, "kv_bits": kv_bits}) for one in make()]


def _apart(keep: Keep, kv_bits: int) -> Keep:
    """Pieces that were read through rounded keys and values are others."""
    return keep if kv_bits == WHOLE else lambda what, make: keep({**what, "kv_bits": kv_bits}, make)


def _opened(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not isinstance(model, str | Path):
        if tokenizer is None:
            raise UsageError("a model in memory is measured with its tokenizer; pass it as the second argument")
        return model, tokenizer
    opened, found = load(model)
    if (tokenizer := tokenizer or found) is None:
        raise UsageError(f"{model} has no tokenizer; copy the tokenizer files of the original model into it")
    return opened, tokenizer


def _text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    stride: int | None,
    source: str,
    seed: int,
    keep: Keep,
) -> list[Measurement]:
    """Perplexity and bits per byte of the scored tokens of windows [windows, length]."""
    windows, length = ids.shape
    setting = {"source": source, "windows": windows, "length": length, "seed": seed}
    setting |= {"dtype": str(model.dtype).removeprefix("torch.")} | ({} if stride is None else {"stride": stride})
    scored = length - 1 if stride is None else stride
    losses = token_losses(model, ids, keep=keep)[:, -scored:]
    return [perplexity_of(losses, setting), bits_per_byte(losses, scored_bytes(tokenizer, ids[:, -scored - 1 :]), setting)]


def _task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    limit: int | None,
    seed: int,
    watch: Watcher,
    keep: Keep,
) -> list[Measurement]:
    """From lm-eval come all metrics that the task has there, from ours what follows from its items."""
    if task.startswith(HARNESS):
        from trimtab.measure.harness import harness

        def made() -> Result:
            return [asdict(found) for found in harness(model, tokenizer, [task.removeprefix(HARNESS)], limit, seed)], {}

        measured, _ = keep({"task": task, "limit": limit, "seed": seed}, made)
        return [Measurement(**found) for found in measured]
    return answer(model, tokenizer, task, limit, seed, watch, keep).measurements()


class _Room(ModuleType):
    def __call__(self, *given: Any, **named: Any) -> list[Measurement]:
        return measure(*given, **named)


sys.modules[__name__].__class__ = _Room
__signature__ = inspect.signature(measure)  # what help() and editors show of a call
