"""Haar's wavelets, one level: neighbours become their sum and their difference, over sqrt(2), so that lengths are kept."""

from math import sqrt

import torch
from torch import Tensor


def bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """(sums, differences), each [..., n / 2], of x [..., n] with n even."""
    first, second = x[..., ::2], x[..., 1::2]
    return (first + second) / sqrt(2), (first - second) / sqrt(2)


def joined(sums: Tensor, differences: Tensor) -> Tensor:
    """[..., n], the inverse, and the transpose, of `bands`."""
    return torch.stack([sums + differences, sums - differences], -1).flatten(-2) / sqrt(2)
