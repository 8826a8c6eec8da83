"""What a training lowers, and what its matrix products are taken in."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trimtab.core.errors import UsageError
from trimtab.data.examples import IGNORED
from trimtab.tensors.losses import next_token

Batch = Mapping[str, Tensor]
Objective = Callable[[nn.Module, Batch, Tensor], Tensor]
COMPUTES = ("float32", "bfloat16")


def answers(model: nn.Module, given: Batch, count: Tensor) -> Tensor:
    """The usual objective: cross-entropy of the learned tokens, summed and divided by `count`, how many the whole step has."""
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], use_cache=False).logits
    return next_token(logits, given["labels"], IGNORED) / count


def computed_in(compute: str, objective: Objective) -> Objective:
    """The objective with matrix products in this dtype; parameters, their gradients and the loss stay float32."""
    check_compute(compute)

    def mixed(model: nn.Module, given: Batch, count: Tensor) -> Tensor:
        with torch.autocast(given["input_ids"].device.type, torch.bfloat16):
            return objective(model, given, count)

    return objective if compute == "float32" else mixed


def check_compute(compute: str) -> None:
    """Raises `UsageError` for what training cannot compute in."""
    if compute not in COMPUTES:
        raise UsageError(f"training computes in {' or '.join(COMPUTES)}, got {compute!r:.80}")
