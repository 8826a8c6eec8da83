"""A few levels for many numbers, so that the squared distance to the nearest level is small (Lloyd 1957, Max 1960)."""

import torch
from torch import Tensor

ROUNDS = 100


def fit(values: Tensor, count: int) -> Tensor:
    """[count] ascending levels for values [n] >= 0: means of what is nearest to them, alternated from quantiles.

    If any value is exactly 0, so is the first level: what is nothing must not become something.
    """
    ranked = values.double().sort().values
    if len(ranked) and float(ranked[0]) == 0.0:
        return torch.cat([ranked[:1], _fit(ranked[ranked > 0], count - 1)]).float()
    return _fit(ranked, count).float()


def nearest_level(values: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest of the ascending levels [count], in the shape of values."""
    return torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)


def _fit(ranked: Tensor, count: int) -> Tensor:
    """[count] float64 from ascending values; zeros where there are none."""
    if not len(ranked):
        return ranked.new_zeros(count)
    places = (torch.arange(count, device=ranked.device) + 0.5) / count * len(ranked)
    levels = ranked[places.long()]
    for _ in range(ROUNDS):
        codes = nearest_level(ranked, levels)
        total = torch.zeros_like(levels).index_add_(0, codes, ranked)
        size = torch.bincount(codes, minlength=count)
        levels = torch.where(size > 0, total / size.clamp(min=1), levels)
    return levels
