"""Reading text through a cache: a model that is called without one fills a cache of ours, and attends to what that holds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from trimtab.host.kv.quantized import WHOLE, check_bits, quantized_cache


def rounded_kv(
    model: PreTrainedModel, bits: int, group_size: int = 0, window: int = 0, turned: bool = False
) -> AbstractContextManager[None]:
    """Inside, every call without a cache of its own reads through keys and values of so many bits; at 16 nothing changes."""
    check_bits(bits)
    if bits == WHOLE:
        return nullcontext()
    make = partial(quantized_cache, model.config, bits, group_size, window, turned)
    make()  # what cannot be held is refused before anything is read
    return reading_through(model, make)


@contextmanager
def reading_through(model: nn.Module, make: Callable[[], Cache]) -> Iterator[None]:
    """Inside, every call without a cache of its own has a fresh one."""

    def filled(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("past_key_values") is not None:
            return args, dict(kwargs)
        return args, {**kwargs, "past_key_values": make(), "use_cache": True}

    handle = model.register_forward_pre_hook(filled, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
