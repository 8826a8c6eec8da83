"""How fast a model reads and writes, through its own `generate`, so that whatever serves `generate` is what is timed.

A streamer takes the time of every token: the first one ends the prefill, the rest is decoding. A first run that is not
counted pays for lazy set-up. Medians, because a busy machine only ever makes things slower.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, stdev
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from trimtab.core.errors import UsageError
from trimtab.core.report import Measurement
from trimtab.measure.perplexity import evaluating

MEDIAN_SPREAD = math.sqrt(math.pi / 2)  # standard error of a median over that of a mean, normal observations


def decode_speed(model: PreTrainedModel, prompt: Tensor, new_tokens: int = 32, repeats: int = 5) -> Measurement:
    """Tokens per second after the first new token. prompt: [batch, length] int64; tokens of all rows count.

    Median of `repeats` runs, standard error from their spread (NaN for one run); n counts tokens.
    """
    if new_tokens < 2:
        raise UsageError(f"decode_speed needs new_tokens >= 2, got {new_tokens}; the first token belongs to the prefill")
    steps = (new_tokens - 1) * len(prompt)
    rates = [steps / (ticks[-1] - ticks[1]) for ticks in _timed(model, prompt, new_tokens, repeats)]
    return rate("decode speed", rates, steps, _setting(model, prompt, repeats) | {"new_tokens": new_tokens})


def prefill_speed(model: PreTrainedModel, prompt: Tensor, repeats: int = 5) -> Measurement:
    """Prompt tokens per second until the first new token. Median, standard error and n as in `decode_speed`."""
    rates = [prompt.numel() / (ticks[1] - ticks[0]) for ticks in _timed(model, prompt, 1, repeats)]
    return rate("prefill speed", rates, prompt.numel(), _setting(model, prompt, repeats))


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Inside, torch shares CPU operations out among so many threads; None: as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Clock(BaseStreamer):
    """Notes when each token arrives; the prompt comes through the same door first."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def put(self, value: Tensor) -> None:
        self.ticks.append(perf_counter())

    def end(self) -> None:
        pass


def _timed(model: PreTrainedModel, prompt: Tensor, new_tokens: int, repeats: int) -> list[list[float]]:
    """Per counted run: when it began, then when each new token was there."""
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    with evaluating(model):
        return [_run(model, prompt.to(model.device), new_tokens) for _ in range(repeats + 1)][1:]


def _run(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> list[float]:
    clock = _Clock()
    begun = perf_counter()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        streamer=clock,
    )
    return [begun, *clock.ticks[1:]]


def rate(name: str, rates: list[float], tokens: int, setting: dict[str, Any], unit: str = "tokens/s") -> Measurement:
    """The median of `rates`, one per run; tokens: in each of them."""
    spread = MEDIAN_SPREAD * stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else math.nan
    return Measurement(name, median(rates), spread, tokens * len(rates), unit, setting)


def kernels(model: nn.Module) -> str:
    """What computes the linear layers: torch, or the names that compressed modules give to what serves them.

    A module that has no `kernel` to name unpacks its weight and leaves the product to torch.
    """
    packed = [module for module in model.modules() if hasattr(module, "weight_value")]
    served = Counter(getattr(module, "kernel", "torch, unpacked") for module in packed)
    named = [f"{name} ({count} of {len(packed)})" if len(served) > 1 else name for name, count in served.most_common()]
    return "; ".join(named) or "torch"


def _setting(model: PreTrainedModel, prompt: Tensor, repeats: int) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "kernel": kernels(model),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch": len(prompt),
        "prompt": prompt.shape[1],
        "repeats": repeats,
    }
