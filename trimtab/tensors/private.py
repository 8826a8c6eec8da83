"""The Gaussian mechanism on pairs of factors: every example's pair is clipped before anything is added up, then noise is added.

With P pairs, bounds C_i and noise of deviation sigma * C_i * sqrt(P) on pair i, the whole step is one Gaussian mechanism with
multiplier sigma: an example moves pair i by at most C_i, which is 1 / (sigma * sqrt(P)) deviations, and sqrt(P) of those together
are 1 / sigma. That is what an accountant has to be told.
"""

from math import sqrt

import torch
from torch import Tensor


def clipped(left: Tensor, right: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Sums over examples of gradients left [n, out, rank] and right [n, rank, in], each pair first made no longer than `bound`.

    A pair that is not finite counts as zero: no bound would hold for it.
    """
    lengths = (left.double().square().sum((1, 2)) + right.double().square().sum((1, 2))).sqrt()  # [n]
    finite = torch.isfinite(lengths)
    factors = torch.where(finite, (bound / lengths.clamp(min=1e-300)).clamp(max=1.0), 0.0)[:, None, None].to(left.dtype)
    left, right = (torch.where(finite[:, None, None], value, 0.0) for value in (left, right))
    return (factors * left).sum(0), (factors * right).sum(0)


def deviation(noise: float, bound: float, pairs: int) -> float:
    """Of the noise on one of `pairs` pairs, so that all together have the multiplier `noise`."""
    return noise * bound * sqrt(pairs)


def noisy(value: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """With independent normal noise, drawn on the CPU."""
    return value + (deviation * torch.randn(value.shape, generator=generator)).to(value.device, value.dtype)
