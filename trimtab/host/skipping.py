"""Blocks that read the prompt and are skipped for what comes after it: speed chosen in use, where the model stays whole.

    with skipping(model, UnifiedSkip(speedup=2).skipped(30)):
        model.generate(prompt)

While tokens come with a cache that already holds some, skipped blocks hand the stream on as it is, for every sequence the same
ones; their own caches stay at the prompt, and nobody asks for them. The other blocks see every token, so theirs are complete.
Liu et al., 2024 (arXiv:2404.06954). For good, and for the prompt as well, `unified_skip` in a recipe removes the same blocks.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from trimtab.anatomy import Anatomy
from trimtab.core.errors import UsageError
from trimtab.engine.sweep import forms
from trimtab.host.kv.quantized import full_layers


@contextmanager
def skipping(model: PreTrainedModel, blocks: Collection[int]) -> Iterator[None]:
    """Inside, these blocks, numbered from 0, are skipped in every call whose cache is not empty; afterwards nothing is changed.

    Without a cache (`use_cache=False`) every call is a prompt, and nothing is skipped. Raises `UsageError` for block 0, by whose
    cache transformers counts tokens, for numbers that are no blocks, and where layers attend to a part only.
    """
    anatomy = Anatomy.of(model)
    full_layers(model.config, "skipping")
    depth, chosen = len(anatomy.blocks), sorted({*blocks})
    if chosen and not 0 < chosen[0] <= chosen[-1] < depth:
        raise UsageError(f"skipping: blocks 1 to {depth - 1} can be skipped, got {', '.join(map(str, chosen))}")
    later = _Later()
    with torch.no_grad():
        kinds = forms(anatomy, torch.zeros(1, 1, dtype=torch.int64, device=model.device)) if chosen else []
    handle = model.base_model.register_forward_pre_hook(later.see, with_kwargs=True)
    try:
        for block in chosen:
            owner = anatomy.blocks[block]
            owner.forward = later.passing(owner.forward, kinds[block] is tuple)
        yield
    finally:
        handle.remove()
        for block in chosen:
            anatomy.blocks[block].__dict__.pop("forward", None)


class _Later:
    """Whether the call under way comes after the prompt."""

    def __init__(self) -> None:
        self.now = False

    def see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.now = cache is not None and cache.get_seq_length() > 0

    def passing(self, forward: Callable[..., Any], in_tuple: bool) -> Callable[..., Any]:
        def as_it_is(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self.now:
                return forward(hidden_states, *args, **kwargs)
            return (hidden_states,) if in_tuple else hidden_states

        return as_it_is
