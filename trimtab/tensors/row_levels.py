"""A few levels for every row of a matrix: k-means in one dimension, all rows at once, with a weight for every column."""

import torch
from torch import Tensor


def row_levels(values: Tensor, weights: Tensor, count: int, rounds: int = 20) -> tuple[Tensor, Tensor]:
    """(levels [rows, count] float64 ascending, codes uint8 [rows, n]) for values [rows, n]; count at most 256.

    weights: [rows, n] > 0, of the squared distance of a value to its level. The first levels are quantiles. A level that nothing
    is nearest to stays where it is.
    """
    values, weights = values.double(), weights.double()
    places = (torch.arange(count, device=values.device) + 0.5) / count * values.shape[1]
    levels = values.sort(1).values[:, places.long()]
    codes = _nearest(values, levels)
    for _ in range(rounds):
        total, mass = (torch.zeros_like(levels).scatter_add_(1, codes, of) for of in (weights * values, weights))
        levels = torch.where(mass > 0, total / mass.where(mass > 0, 1.0), levels).sort(1).values
        moved = _nearest(values, levels)
        if torch.equal(moved, codes):
            break
        codes = moved
    return levels, codes.to(torch.uint8)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """[rows, n] int64"""
    between = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return torch.searchsorted(between, values.contiguous())
