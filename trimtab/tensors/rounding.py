"""Uniform grids: the range of a group, the grid over it, and rounding to it.

A grid is (scale, zero): value = (code - zero) * scale with code in 0 .. 2^bits - 1 and an integer zero, so that an exact
zero stays an exact zero. Scales are rounded to float16 before anything is rounded to the grid: the stored grid is the grid
used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 2.0**-24  # the smallest positive float16
LARGEST = 65504.0
SHRINKS = tuple(1 - step / 50 for step in range(40))  # clipped range as a fraction of the full one, 1.00 down to 0.22


@dataclass(frozen=True)
class Grid:
    """scale, zero: [..., 1], broadcast over the group's weights; float32 holding float16 and integer values."""

    scale: Tensor
    zero: Tensor
    bits: int

    def codes(self, weight: Tensor) -> Tensor:
        """Nearest codes, as float."""
        return torch.round(weight / self.scale).add_(self.zero).clamp_(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    def nearest(self, weight: Tensor) -> Tensor:
        return self.values(self.codes(weight))


def fit(weight: Tensor, bits: int, symmetric: bool = False, clip: bool = False) -> Grid:
    """The grid of every group. weight [..., group] float32. Raises ArithmeticError if a scale exceeds float16.

    Plain: the range is min .. max, widened to hold zero. clip: of 40 shrunk ranges the one with the least squared error.
    """
    low, high = weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    grid = _grid(low, high, bits, symmetric)
    return _clipped(weight, grid, low, high, bits, symmetric) if clip else grid


def _grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Grid:
    top = 2**bits - 1
    scale = (high - low) / top
    if not bool((scale <= LARGEST).all()):  # written so that NaN fails
        raise ArithmeticError("a group's scale exceeds float16")
    scale = scale.half().float()
    scale = torch.where(scale >= SMALLEST, scale, 1.0)  # an all-zero group: any scale, all codes at zero
    zero = torch.full_like(scale, (top + 1) / 2) if symmetric else torch.round(-low / scale).clamp_(0, top)
    return Grid(scale, zero, bits)


def _clipped(weight: Tensor, best: Grid, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Grid:
    scale, zero = best.scale, best.zero
    least = (best.nearest(weight) - weight).square_().sum(-1, keepdim=True)
    for shrink in SHRINKS[1:]:
        grid = _grid(low * shrink, high * shrink, bits, symmetric)
        error = (grid.nearest(weight) - weight).square_().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scale, zero = torch.where(better, grid.scale, scale), torch.where(better, grid.zero, zero)
    return Grid(scale, zero, bits)
