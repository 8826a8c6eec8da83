"""Scaling channels before rounding: what a scale does to the output error, and the search along a curve of scales.

A column that is multiplied by s before it is rounded, and divided afterwards, keeps an error that is s times smaller in the
steps of its group's grid; the grid widens at most as much as the largest column grows. So loud channels, whose errors
count most, are bought precision at the cost of quiet ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.tensors.rounding import fit

SMALLEST = 1e-4  # no channel is scaled down further, before the scales are centred


@dataclass(frozen=True)
class Rounding:
    """Uniform grids as rtn fits them. group_size 0: the whole row."""

    bits: int
    group_size: int
    symmetric: bool = False
    clip: bool = False

    def nearest(self, weight: Tensor) -> Tensor:
        """weight [out, in] float32, rounded. Raises ArithmeticError if a group's scale exceeds float16."""
        groups = weight.reshape(weight.shape[0], -1, self.group_size or weight.shape[1])
        return fit(groups, self.bits, self.symmetric, self.clip).nearest(groups).reshape(weight.shape)

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Q(W diag(scale)) diag(1 / scale): weight [out, in] float32, scale [in]."""
        scale = scale.float()
        return self.nearest(weight * scale) / scale


def output_error(change: Tensor, gram: Tensor) -> float:
    """mean_t |D x_t|^2 = tr(D gram Dᵀ), for a change D [out, in] of a matrix: exact for the tokens that made the gram."""
    return float(((change @ gram) * change).sum(dtype=torch.float64))


def power(values: Tensor, exponent: float, centred: bool = True) -> Tensor:
    """[in] float64: values ** exponent; centred: so that the largest times the smallest is 1. Silent channels (0) get 1."""
    loud = values > 0
    scale = values.double().pow(exponent).clamp(min=SMALLEST)
    if centred and bool(loud.any()):
        scale = scale / (scale[loud].max() * scale[loud].min()).sqrt()
    return torch.where(loud, scale, 1.0)


@dataclass(frozen=True)
class Found:
    """The best of a search. relative: its error over that of the first exponent; 1 if that has none."""

    exponent: float
    scale: Tensor
    relative: float


def search(
    curve: Callable[[float], Tensor], steps: int, matrices: Sequence[Tensor], grams: Sequence[Tensor], rounding: Rounding
) -> Found:
    """Of the exponents 0, 1 / steps .. 1 - 1 / steps the one whose scale leaves the least output error, the first of equals.

    curve: exponent -> scale [in]. The error is summed over the matrices [out, in] that share the input, each with its gram.
    """

    def error(scale: Tensor) -> float:
        pairs = zip(matrices, grams, strict=True)
        return sum(output_error(rounding.scaled(matrix, scale) - matrix, gram) for matrix, gram in pairs)

    tried = [(error(curve(step / steps)), step / steps) for step in range(steps)]
    best, exponent = min(tried)
    return Found(exponent, curve(exponent), best / tried[0][0] if tried[0][0] > 0 else 1.0)
