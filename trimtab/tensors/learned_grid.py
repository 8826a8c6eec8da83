"""Uniform grids whose range is learned: scale and zero point from two bounds, and rounding that gradients go through."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.tensors.rounding import LARGEST, SMALLEST
from trimtab.tensors.through import halved, rounded


@dataclass(frozen=True)
class LearnedGrid:
    """scale, zero: [..., 1] float32 holding float16 and whole values, as they will be stored; gradients go through them."""

    scale: Tensor
    zero: Tensor
    bits: int

    @classmethod
    def between(cls, low: Tensor, high: Tensor, bits: int) -> "LearnedGrid":
        """The grid of 2^bits points from low <= 0 to high >= 0, [..., 1] each. Zero is one of its points."""
        top = 2**bits - 1
        scale = halved(((high - low) / top).clamp(SMALLEST, LARGEST))
        return cls(scale, rounded(-low / scale).clamp(0, top), bits)

    def codes(self, steps: Tensor) -> Tensor:
        """Codes [..., group], as float, of weights in units of the scale: of `weight / scale`, divided by whatever is learned."""
        return (rounded(steps) + self.zero).clamp(0, 2**self.bits - 1)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale


def bounds(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of each group, widened to hold zero. weight [..., group] -> [..., 1] each."""
    return weight.amin(-1, keepdim=True).clamp(max=0), weight.amax(-1, keepdim=True).clamp(min=0)
