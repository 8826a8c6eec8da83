"""A step that promises the same function is held to it, on a few tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trimtab.core.errors import TrimtabError

# Relative. The norms of most families compute in float32 even in a float64 model.
PRESERVED = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@contextmanager
def preserved(model: nn.Module, ids: Tensor, who: str) -> Iterator[None]:
    """Raises `TrimtabError` naming `who` if the logits for ids [1, length] are others afterwards."""
    before = model(ids, use_cache=False).logits
    yield
    after = model(ids, use_cache=False).logits
    change = float((after - before).double().norm() / before.double().norm())
    if not change <= PRESERVED[before.dtype]:
        raise TrimtabError(f"{who} promised the same function, but the logits moved by {change:.2g} of their size")
