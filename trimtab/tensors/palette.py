"""Palettes that are differentiable: every weight is an average of a few shared values, the nearest ones counting most.

    a_j(w) = softmax_j(-(w - c_j)^2 / temperature),   c_j <- sum_w a_j(w) w / sum_w a_j(w), a few times,   w~ = sum_j a_j(w) c_j

Weights of 16 bits have at most 65 536 distinct values, so all of this is done once for each distinct value and its count, and
memory no longer grows with the number of weights times the size of the palette. Value and gradient are those of the plain
computation, which the tests hold. (DKM; uniquification is eDKM's, arXiv:2309.00964.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.tensors.through import through


@dataclass(frozen=True)
class Distinct:
    """values [n] float32, ascending; where [weights] int64: which of them every weight is; counts [n] float32."""

    values: Tensor
    where: Tensor
    counts: Tensor


def distinct(weight: Tensor) -> Distinct:
    """The bfloat16 values that occur in weight [...]."""
    rough = weight.detach().bfloat16().float().flatten()
    values, where, counts = rough.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    return Distinct(values, where, counts.float())


def quantiles(weight: Tensor, entries: int) -> Tensor:
    """[entries] float32: the middles of as many equal parts of the sorted weights."""
    order = weight.flatten().sort().values
    places = (torch.arange(entries, device=weight.device) + 0.5) / entries * len(order)
    return order[places.long()].clone()


def shares(values: Tensor, palette: Tensor, temperature: Tensor) -> Tensor:
    """a [n, entries]. values [n], palette [entries]."""
    return (-((values.unsqueeze(1) - palette).square()) / temperature).softmax(1)


def settled(values: Tensor, counts: Tensor, palette: Tensor, temperature: Tensor, rounds: int) -> Tensor:
    """The palette after some rounds of moving to what it stands for. Entries that stand for nothing stay."""
    for _ in range(rounds):
        weights = shares(values, palette, temperature) * counts.unsqueeze(1)
        total = weights.sum(0)
        palette = torch.where(total > 0, (weights * values.unsqueeze(1)).sum(0) / total.clamp(min=1e-30), palette)
    return palette


def soft(weight: Tensor, palette: Tensor, temperature: Tensor, rounds: int) -> Tensor:
    """w~ of weight [...], after `rounds` from this palette; gradients reach the weights through the shares and the palette."""
    found = distinct(weight)
    flat = weight.flatten()
    # The mean of equal weights: each of them moves the palette by its own part.
    mean = torch.zeros_like(found.values).index_add(0, found.where, flat) / found.counts
    moved = settled(through(mean, found.values), found.counts, palette, temperature, rounds)
    portions = shares(found.values, moved, temperature)
    table = portions @ moved
    with torch.no_grad():  # how a weight's own value turns its shares: the variance of the palette under them
        slope = 2 / temperature * (portions @ moved.square() - table.square())
    return (table[found.where] + slope[found.where] * (flat - flat.detach())).view_as(weight)


def nearest(weight: Tensor, palette: Tensor) -> Tensor:
    """int64 [...]: the entry of every weight, for a palette [entries] in any order."""
    found = distinct(weight)
    return (found.values.unsqueeze(1) - palette).abs().argmin(1)[found.where].view(weight.shape)
