"""What a model says token by token, and how much two models say the same: one pass, a slice of the logits at a time.

Perplexity only sees the probability of the token that came. Whether the whole prediction moved shows in KL(base || other) and
in how often the likeliest token is the same one. Both models read the same windows side by side, and of their logits only a
slice exists at a time, so memory grows with neither the text nor the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.core.errors import ModelError
from trimtab.core.progress import Progress, Watcher, unwatched
from trimtab.measure.nan_hunt import blame
from trimtab.measure.perplexity import (
    check_finite,
    check_windows,
    evaluating,
    logit_slices,
    nats,
    positions_at_once,
    rows_at_once,
)
from trimtab.measure.pieces import Keep, Result, digest, unkept
from trimtab.tensors.divergence import kl as divergence

AT_ONCE = 32  # tokens whose float64 probabilities are made at a time: those of more leave the processor's cache


@dataclass(frozen=True)
class Predictions:
    """Per scored token, all [windows, length - 1].

    losses: float64, nats. confidence: float64, probability of the likeliest token. right: bool, whether it was the one.
    """

    losses: Tensor
    confidence: Tensor
    right: Tensor


@dataclass(frozen=True)
class Agreement:
    """Two models on the same tokens, all [windows, length - 1]. kl: float64, nats, of (base || other). same_top: bool.

    kl and same_top are None where the vocabularies differ, kl also where it is infinite; `note` says so.
    """

    base: Predictions
    other: Predictions
    kl: Tensor | None
    same_top: Tensor | None
    note: str = ""


@torch.no_grad()
def predictions(
    model: PreTrainedModel,
    windows: Tensor,
    batch: int = 4,
    watch: Watcher = unwatched,
    name: str = "the model",
    keep: Keep = unkept,
) -> Predictions:
    """Of one model on windows [n, length] int64. Losses equal those of `token_losses`. name: for what is said of it.
    keep: of batches.

    Raises DataError for windows shorter than 2, ModelError when a loss is not finite.
    """
    check_windows(windows)
    size = positions_at_once(model)
    parts: list[Tensor] = []

    def made(ids: Tensor) -> Result:
        slices = zip(logit_slices(model, ids.to(model.device), size), _targets(model, ids, size), strict=True)
        return None, {"seen": torch.cat([_seen(logits, targets)[0] for logits, targets in slices])}

    with evaluating(model):
        for done, ids in _batches(windows, batch, size):
            watch(Progress("predictions", done, len(windows)))
            parts.append(keep({"predictions": digest(ids), "of": name}, partial(made, ids))[1]["seen"])
    return _predictions(model, parts, windows, name)


@torch.no_grad()
def agreement(
    base: PreTrainedModel,
    other: PreTrainedModel,
    windows: Tensor,
    batch: int = 4,
    watch: Watcher = unwatched,
    names: tuple[str, str] = ("the base", "the other model"),
    keep: Keep = unkept,
) -> Agreement:
    """Of two models that share a tokenizer, on windows [n, length] int64. names: for what is said of them. keep: of batches.

    Raises DataError for windows shorter than 2, ModelError when a loss is not finite.
    """
    if _vocabulary(base) != _vocabulary(other):
        return _apart(base, other, windows, batch, watch, names, keep)
    check_windows(windows)
    size = max(1, min(positions_at_once(base), positions_at_once(other)) // 2)  # two models' logits at once
    parts: list[dict[str, Tensor]] = []

    def made(ids: Tensor) -> Result:
        columns = zip(*_compared(base, other, ids, size), strict=True)
        return None, {name: torch.cat(column) for name, column in zip(("base", "other", "both"), columns, strict=True)}

    with evaluating(base), evaluating(other):
        for done, ids in _batches(windows, batch, size):
            watch(Progress("agreement", done, len(windows)))
            parts.append(keep({"agreement": digest(ids)}, partial(made, ids))[1])
    seen, others, both = ([part[name] for part in parts] for name in ("base", "other", "both"))
    kl, same = _columns(both, windows)
    found = _predictions(base, seen, windows, names[0]), _predictions(other, others, windows, names[1])
    if not kl.isfinite().all():
        return Agreement(*found, None, same.bool(), f"{names[1]} rules out tokens that {names[0]} may say: KL is infinite")
    return Agreement(*found, kl, same.bool())


def _apart(
    base: PreTrainedModel,
    other: PreTrainedModel,
    windows: Tensor,
    batch: int,
    watch: Watcher,
    names: tuple[str, str],
    keep: Keep,
) -> Agreement:
    """Where there is no common vocabulary, as after the rows of unused tokens were cut off."""
    note = f"{names[0]} and {names[1]} have {_vocabulary(base)} and {_vocabulary(other)} logits: no KL, no common top token"
    left = predictions(base, windows, batch, name=names[0], keep=keep)
    right = predictions(other, windows, batch, watch, names[1], keep)
    return Agreement(left, right, None, None, note)


def _compared(base: PreTrainedModel, other: PreTrainedModel, ids: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per slice: what each model says, [k, 3] like `_seen`, and [k, 2]: KL and whether the top is the same."""
    sides = (zip(logit_slices(m, ids.to(m.device), size), _targets(m, ids, size), strict=True) for m in (base, other))
    found = []
    for (left, left_targets), (right, right_targets) in zip(*sides, strict=True):
        (seen, top), (others, other_top) = _seen(left, left_targets), _seen(right, right_targets)
        both = torch.stack([_divergence(left, right.to(left.device)), (top == other_top).double()], dim=1)
        found.append((seen, others, both))
    return found


def _divergence(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([divergence(*pair) for pair in zip(left.split(AT_ONCE), right.split(AT_ONCE), strict=True)]).cpu()


def _seen(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[k, 3] float64: loss, confidence, right; and [k] the likeliest token."""
    losses = nats(logits, targets)
    highest, top = logits.max(dim=1)
    own = logits.gather(1, targets[:, None])[:, 0]
    # The loss is the logarithm of the sum less the token's own logit, so no second softmax is needed.
    confidence = torch.exp((highest.double() - own.double()) - losses).clamp_max(1)
    return torch.stack([losses, confidence, (top == targets).double()], dim=1).cpu(), top.cpu()


def _predictions(model: PreTrainedModel, parts: Sequence[Tensor], windows: Tensor, name: str) -> Predictions:
    losses, confidence, right = _columns(parts, windows)
    try:
        check_finite(losses, lambda window: blame(model, windows[window : window + 1].to(model.device)))
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return Predictions(losses, confidence, right.bool())


def _columns(parts: Sequence[Tensor], windows: Tensor) -> list[Tensor]:
    """The columns of all slices, [windows, length - 1] each. Laid out as a file gives them back, so that sums are the same."""
    return [column.reshape(len(windows), -1).contiguous() for column in torch.cat(list(parts)).unbind(1)]


def _batches(windows: Tensor, batch: int, size: int) -> list[tuple[int, Tensor]]:
    rows = rows_at_once(windows, batch, size)
    return [(number * rows, ids) for number, ids in enumerate(windows.split(rows))]


def _targets(model: PreTrainedModel, ids: Tensor, size: int) -> tuple[Tensor, ...]:
    return ids[:, 1:].flatten().to(model.device).split(size)


def _vocabulary(model: PreTrainedModel) -> int:
    found: int = model.config.get_text_config().vocab_size
    return found
