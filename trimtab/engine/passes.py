"""Passes in bfloat16 with compiled attention, seen from outside: a model calls PyTorch's and is answered by ours if that fits."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from trimtab import kernels


class CompiledAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` is computed by `kernels.attention` unless that declines."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        answer = kernels.attention(*args, **given) if func is F.scaled_dot_product_attention else None
        return func(*args, **given) if answer is None else answer


def compiled_attention(compute: torch.dtype) -> AbstractContextManager[Any]:
    """For a pass in this dtype: `CompiledAttention` where it would answer anything."""
    return CompiledAttention() if compute is torch.bfloat16 and kernels.serves_passes() else nullcontext()


def notes(model: torch.nn.Module, compute: torch.dtype) -> list[str]:
    """What a report says of passes that were made in this dtype, if compiled kernels had a part in them."""
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if compute is not torch.bfloat16 or not on_cpu or not kernels.serves_passes():
        return []
    return [f"passes in bfloat16: attention and grams by compiled kernels ({kernels.instruction_set()})"]
