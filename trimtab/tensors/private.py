"""The Gaussian mechanism on pairs of factors: every example's pair is clipped before anything is added up, then noise is added.

With P pairs, bounds C_i and noise of deviation sigma * C_i * sqrt(P) on pair i, the whole step is one Gaussian mechanism with
multiplier sigma: an example moves pair i by at most C_i, which is 1 / (sigma * sqrt(P)) deviations, and sqrt(P) of those together
are 1 / sigma. That is what an accountant has to be told. How many examples were clipped is told with noise of its own, and the
multiplier of both together is `joint`.
"""

from collections.abc import Sequence
from math import hypot, sqrt

import torch
from torch import Tensor


def clipped(left: Tensor, right: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Sums over examples of gradients left [n, out, rank] and right [n, rank, in], each pair first made no longer than `bound`.

    A pair that is not finite counts as zero: no bound would hold for it.
    """
    lengths = pair_lengths(left, right)
    finite = torch.isfinite(lengths)
    factors = torch.where(finite, (bound / lengths.clamp(min=1e-300)).clamp(max=1.0), 0.0)[:, None, None].to(left.dtype)
    left, right = (torch.where(finite[:, None, None], value, 0.0) for value in (left, right))
    return (factors * left).sum(0), (factors * right).sum(0)


def pair_lengths(left: Tensor, right: Tensor) -> Tensor:
    """[n] float64: of every example's pair."""
    return (left.double().square().sum((1, 2)) + right.double().square().sum((1, 2))).sqrt()


def clip_votes(lengths: Sequence[Tensor], bounds: Sequence[float], groups: Sequence[int]) -> Tensor:
    """[groups] float64: over examples, the share of a group's pairs that is clipped, less a half.

    lengths: [n] for every pair; groups: the group of every pair, counted from 0. One example moves each by at most a half, so
    noise of deviation `noise * sqrt(groups) / 2` on each is one Gaussian mechanism of multiplier `noise`.
    """
    votes = torch.zeros(max(groups) + 1, dtype=torch.float64)
    for length, bound, group in zip(lengths, bounds, groups, strict=True):
        over = (length > bound).double() - 0.5
        votes[group] += float(over.sum()) / groups.count(group)
    return votes


def joint(*noises: float) -> float:
    """The multiplier of Gaussian mechanisms with these ones, on the same examples."""
    return 1 / hypot(*(1 / noise for noise in noises))


def deviation(noise: float, bound: float, pairs: int) -> float:
    """Of the noise on one of `pairs` pairs, so that all together have the multiplier `noise`."""
    return noise * bound * sqrt(pairs)


def noisy(value: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """With independent normal noise, drawn on the CPU."""
    return value + (deviation * torch.randn(value.shape, generator=generator)).to(value.device, value.dtype)
