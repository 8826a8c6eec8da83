"""How much attention every token draws, seen from outside: no model is asked for its probabilities, few would give them.

While a block runs, its calls of PyTorch's attention are answered as always, and the probabilities behind them are computed
once more from the same queries and keys. A model that writes its attention out itself ends in a softmax over
[windows, heads, queries, keys], which is looked at instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Attention(TorchFunctionMode):
    """`with Attention(windows, length) as attention: block(...)`; then `attention.drawn` is what `probabilities` sum to.

    drawn: [windows, length] float32, summed over heads, queries and calls; None if no call of this size was seen.
    """

    def __init__(self, windows: int, length: int):
        super().__init__()
        self.windows, self.length = windows, length
        self.drawn: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self._add(_drawn(*args, **(kwargs or {})))
        elif func is F.softmax and answer.ndim == 4:
            self._add(answer.float().sum((1, 2)))
        return answer

    def _add(self, drawn: Tensor) -> None:
        """drawn: [windows, keys]; beyond the tokens there may be a sink."""
        if drawn.shape[0] == self.windows and drawn.shape[1] >= self.length:
            drawn = drawn[:, : self.length]
            self.drawn = drawn if self.drawn is None else self.drawn + drawn


def _drawn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[windows, keys] from what `scaled_dot_product_attention` is called with, under its names for it."""
    if attn_mask is not None:
        attn_mask = attn_mask.expand(len(query), *attn_mask.shape[-3:])
    drawn = []
    for window in range(len(query)):  # one at a time: all probabilities of a batch would be large
        mask = None if attn_mask is None else attn_mask[window]
        drawn.append(probabilities(query[window], key[window], mask, is_causal, scale).sum((0, 1)))
    return torch.stack(drawn)


def probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """[heads, queries, keys] float32 of one window. query [heads, queries, width], key [heads or fewer, keys, width].

    mask: True = looks, or what is added to the scores. causal: query i looks at keys 0 .. i.
    """
    key = key.repeat_interleave(len(query) // len(key), 0)
    scores = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask.float()
    return scores.softmax(-1)
