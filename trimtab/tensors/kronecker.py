"""Kronecker products applied without being written out, and how a width is best split for one."""

from math import isqrt

from torch import Tensor


def along(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(left (x) right) applied to the last axis of x [..., b * d]; left [a, b], right [c, d] -> [..., a * c].

    b d (a + c) or so multiplications instead of a c b d.
    """
    grid = x.reshape(*x.shape[:-1], left.shape[1], right.shape[1])
    mixed: Tensor = left @ (grid @ right.T)
    return mixed.flatten(-2)


def even_split(width: int) -> tuple[int, int]:
    """The two factors of a width that are nearest to each other, the smaller one first; 1 and itself for a prime."""
    smaller = next(n for n in range(isqrt(width), 0, -1) if width % n == 0)
    return smaller, width // smaller
