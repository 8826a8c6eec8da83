"""Which weights survive: True = survives, everywhere.

A pattern is "unstructured" or "N:M": of every M consecutive inputs of a row, N survive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """n of every m; n = m = 0 is unstructured."""

    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Raises ValueError unless text is "unstructured" or "N:M" with 0 < N < M <= 64."""
        if text == "unstructured":
            return cls()
        n, colon, m = text.partition(":")
        if not (colon and n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m) <= 64):
            raise ValueError(f"a pattern is 'unstructured' or 'N:M' with 0 < N < M <= 64, e.g. '2:4', got {text!r}")
        return cls(int(n), int(m))

    def sparsity(self, otherwise: float) -> float:
        return 1 - self.n / self.m if self.m else otherwise


def keep_top(score: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Per row, the weights with the largest scores. score [out, in] -> bool [out, in].

    Unstructured: exactly floor(sparsity * in) of each row go. Of equal scores those to the left stay.
    Raises ValueError if in % m != 0.
    """
    out, inputs = score.shape
    if pattern.m:
        if inputs % pattern.m:
            raise ValueError(f"pattern {pattern.n}:{pattern.m} needs the number of inputs to be a multiple of {pattern.m}")
        groups = score.reshape(-1, pattern.m)
        return _drop_lowest(groups, pattern.m - pattern.n).reshape(out, inputs)
    return _drop_lowest(score, int(sparsity * inputs + 1e-9))


def keep_top_of_matrix(score: Tensor, sparsity: float) -> Tensor:
    """The weights with the largest scores of the whole matrix; exactly floor(sparsity * size) go."""
    return _drop_lowest(score.reshape(1, -1), int(sparsity * score.numel() + 1e-9)).reshape(score.shape)


def _drop_lowest(score: Tensor, drop: int) -> Tensor:
    """score [rows, n]; exactly `drop` of each row are False. Of equal scores those to the left stay."""
    if not drop:
        return torch.ones_like(score, dtype=torch.bool)
    # topk, not sort: a full sort of a big matrix takes several times as long. Which of several equals topk takes is its
    # own affair, so it only says where the border runs.
    border = score.topk(drop, dim=-1, largest=False, sorted=False).values.amax(-1, keepdim=True)
    keep = ~(score <= border)  # a NaN stays, where it is noticed
    missing = score.shape[-1] - drop - keep.sum(-1, keepdim=True)
    tied = missing.squeeze(-1).nonzero().squeeze(-1)
    if len(tied):
        ties = score[tied] == border[tied]
        keep[tied] |= ties & (ties.cumsum(-1) <= missing[tied])
    return keep
