"""Where a number first went wrong: asked only when a result is not finite, because it looks at every module's output."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CURE = "try dtype float32, else compress less"


@torch.no_grad()
def blame(model: PreTrainedModel, ids: Tensor) -> str:
    """Half a sentence that names the first module to produce a value that is not finite on ids [n, length], and what to do."""
    found = first_not_finite(model, ids)
    if found is None:
        return f"its layers give finite values one by one; {CURE}"
    name, module = found
    bad = _damaged(module)
    if bad:
        return f"first in {name}, whose {bad}; the file is damaged or the compression failed there"
    return f"first in {name}, from finite weights: its output overflows {_dtype(model)}; {CURE}"


@torch.no_grad()
def first_not_finite(model: nn.Module, ids: Tensor) -> tuple[str, nn.Module] | None:
    """The first module in the order of work whose output is not finite; the innermost one, since it finishes first."""
    met: list[tuple[str, nn.Module]] = []
    with _watched(model, met):
        model(input_ids=ids, use_cache=False)
    return met[0] if met else None


@contextmanager
def _watched(model: nn.Module, met: list[tuple[str, nn.Module]]) -> Iterator[None]:
    def look(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not met and not all(tensor.isfinite().all() for tensor in _tensors(output)):
                met.append((name or "the model", module))

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Floating-point tensors of a module's output. Masks hold -inf by design, but no module gives one out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def _damaged(module: nn.Module) -> str | None:
    """Which of the module's own tensors is not finite, and how much of it."""
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{name} holds {int((~tensor.isfinite()).sum())} values that are not finite"
    return None


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
