"""How well a model predicts text: nats per token, perplexity, bits per byte.

Windows are the independent observations, tokens inside one are not: every standard error is taken over windows.
Logits are what costs memory here (length x vocabulary), so they are made a slice at a time: where the logits of one window
are too many, the body runs once, the input of the output head is kept, and the head is fed slices of it. What the model
does to its logits afterwards (soft capping, scaling) thus stays the model's own business.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from trimtab.core.errors import DataError, ModelError
from trimtab.core.report import Measurement
from trimtab.measure.nan_hunt import CURE, blame
from trimtab.measure.pieces import Keep, Result, digest, unkept

LOGIT_BYTES = 256 * 2**20  # logits of one slice, and what their log-softmax takes
AT_ONCE = 32  # positions whose logits are in float64 together: those of more leave the processor's cache


@torch.no_grad()
def token_losses(model: PreTrainedModel, windows: Tensor, batch: int = 4, keep: Keep = unkept) -> Tensor:
    """[n, length-1] float64: nats of every token but the first of each window, given those before it.

    windows: [n, length] int64. batch: windows in one forward pass, fewer where their logits would not fit. keep: of batches.
    Logits in the model's dtype, log-softmax in float64.
    Raises DataError for windows shorter than 2, ModelError when a loss is not finite.
    """
    check_windows(windows)
    size = positions_at_once(model)

    def made(ids: Tensor) -> Result:
        return None, {"losses": _losses(model, ids.to(model.device), size).cpu()}

    with evaluating(model):
        batches = windows.split(rows_at_once(windows, batch, size))
        losses = torch.cat([keep({"losses": digest(ids)}, partial(made, ids))[1]["losses"] for ids in batches])
        check_finite(losses, lambda window: blame(model, windows[window : window + 1].to(model.device)))
    return losses


def positions_at_once(model: PreTrainedModel) -> int:
    """How many positions' logits fit into `LOGIT_BYTES`."""
    vocabulary: int = model.config.get_text_config().vocab_size
    width = 8 if model.dtype == torch.float64 else 4
    return max(1, LOGIT_BYTES // (2 * width * vocabulary))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the previous mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_windows(windows: Tensor) -> None:
    """Raises DataError unless windows are [n >= 1, length >= 2]."""
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise DataError(f"windows must be [n, length >= 2], got {list(windows.shape)}; use at least one window of 2 tokens")


def rows_at_once(windows: Tensor, batch: int, size: int) -> int:
    """How many windows go through the model together: `batch`, fewer where their logits are more than `size` positions."""
    return max(1, min(batch, size // windows.shape[1]))


def _losses(model: PreTrainedModel, ids: Tensor, size: int) -> Tensor:
    targets = ids[:, 1:].flatten()
    slices = zip(logit_slices(model, ids, size), targets.split(size), strict=True)
    return torch.cat([nats(logits, wanted) for logits, wanted in slices]).view(len(ids), -1)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """[k] float64: cross-entropy of logits [k, vocabulary], summed in float64, a few rows at a time.

    A float32 sum over 49 152 words is too small every time: it takes 8e-6 nats from every token, which no mean takes away.
    """
    parts = zip(logits.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
    return torch.cat([F.cross_entropy(part.double(), wanted, reduction="none") for part, wanted in parts])


def logit_slices(model: PreTrainedModel, ids: Tensor, size: int) -> Iterator[Tensor]:
    """Slices [<= size, vocabulary] of the logits at all positions but the last of each window. No hook stays between them."""
    head = model.get_output_embeddings()
    if head is None or ids.numel() <= size:
        yield from model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).split(size)
        return
    kept = _head_input(model, head, ids)[:, :-1].flatten(0, 1)  # [tokens, width]
    for part in kept.split(size):
        with _head_sees(head, lambda _, part=part: part[None]):
            logits = model(input_ids=ids[:1, :1], use_cache=False).logits[0]
        yield logits


def _head_input(model: PreTrainedModel, head: nn.Module, ids: Tensor) -> Tensor:
    """[n, length, width]: what the head is given, while the head itself is spared all positions but one."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[:, :1]

    with _head_sees(head, keep):
        model(input_ids=ids, use_cache=False)
    return seen[0]


@contextmanager
def _head_sees(head: nn.Module, change: Any) -> Iterator[None]:
    handle = head.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        handle.remove()


def check_finite(losses: Tensor, reason: Callable[[int], str] = lambda window: f"the output overflows; {CURE}") -> None:
    """Raises ModelError that says where the first of losses [n, tokens] is that is not finite.

    reason: asked for the number of that window, says what is wrong there.
    """
    bad = ~losses.isfinite()
    if bad.any():
        window, position = bad.nonzero()[0].tolist()
        raise ModelError(
            f"{int(bad.sum())} of {losses.numel()} token losses are not finite, the first in window {window} at token "
            f"{position + 1}: {reason(window)}"
        )


def perplexity(losses: Tensor, setting: Mapping[str, Any] | None = None) -> Measurement:
    """exp(mean loss) of losses [n, tokens]. Standard error by the delta method, NaN for a single window."""
    mean, spread = mean_over_windows(losses)
    value = math.exp(mean)
    return Measurement("perplexity", value, value * spread, losses.numel(), "per token", dict(setting or {}))


def mean_over_windows(losses: Tensor) -> tuple[float, float]:
    """Mean of values [n, tokens] and its standard error; every window has the same number of tokens."""
    means = losses.double().mean(dim=1)  # [n]
    return float(means.mean()), float(_standard_error(means))


def _standard_error(values: Tensor) -> Tensor:
    return values.std() / math.sqrt(len(values)) if len(values) > 1 else torch.tensor(math.nan)


def bits_per_byte(losses: Tensor, bytes: Tensor, setting: Mapping[str, Any] | None = None) -> Measurement:
    """Bits of all losses [n, tokens] over the bytes [n] that the scored tokens stand for.

    Comparable across tokenizers. n counts bytes. Standard error of a ratio of sums over windows (delta method).
    """
    bits = losses.double().sum(dim=1) / math.log(2)  # [n]
    total = float(bytes.sum())
    if total <= 0:
        raise DataError("the scored tokens stand for no text; use windows of ordinary text")
    value = float(bits.sum()) / total
    spread = _standard_error(bits - value * bytes.double()) * len(bits) / total
    return Measurement("bits per byte", value, float(spread), int(total), "bits/byte", dict(setting or {}))
