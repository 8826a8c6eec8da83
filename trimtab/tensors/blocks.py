"""Products with block-diagonal matrices, given as their blocks: what is zero is neither stored nor multiplied."""

import torch
from torch import Tensor


def from_left(blocks: Tensor, x: Tensor) -> Tensor:
    """diag(blocks) @ x: blocks [count, rows, columns], x [count * columns, n] -> [count * rows, n]."""
    count, rows, columns = blocks.shape
    return torch.bmm(blocks, x.reshape(count, columns, -1)).reshape(count * rows, -1)


def from_right(x: Tensor, blocks: Tensor) -> Tensor:
    """x @ diag(blocks): x [n, count * rows], blocks [count, rows, columns] -> [n, count * columns]."""
    count, rows, columns = blocks.shape
    parts = torch.bmm(x.reshape(-1, count, rows).transpose(0, 1), blocks)  # [count, n, columns]
    return parts.transpose(0, 1).reshape(-1, count * columns)


def identity(width: int, block: int, like: Tensor) -> Tensor:
    """The blocks [width / block, block, block] of an identity, where and as `like` is."""
    return torch.eye(block, dtype=like.dtype, device=like.device).repeat(width // block, 1, 1)


def largest_width(width: int, most: int, multiple: int = 1) -> int:
    """The widest block up to `most` that tiles `width` and is a multiple of `multiple`, itself a divisor of width."""
    return max(w for w in range(multiple, max(most, multiple) + 1, multiple) if width % w == 0)
