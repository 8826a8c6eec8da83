"""Fitting a group of weights by a sum of scaled signs, the scales being sums of a few powers of two (binary coding).

w ~ sum_j a_j s_j with s_j = +-1 has the 2^bits levels of planes of 0 and 1 with scales 2 a_j and the offset -sum_j a_j, and is
answered as such (`bitplanes.Planes`): levels symmetric around zero, one number fewer to store. A product with a power of two
is an addition to the exponent. (Alternating fit of ShiftAddLLM, arXiv:2406.05981.)
"""

import torch
from torch import Tensor

from trimtab.tensors.bitplanes import RIDGE, Planes

LEAST, MOST = -64, 63  # exponents of two that a shift may have; below the least a scale is zero
NOTHING = -128  # instead of an exponent: zero
ROUND_UP = 0x800000 - 0x3504F3  # carries into the exponent of a float32 whose mantissa is above sqrt(2)
POWER = ~0x7FFFFF  # sign and exponent of a float32


def powers(values: Tensor, terms: int) -> Tensor:
    """Each float32 by a sum of at most `terms` signed powers of two: always the nearest, in the logarithm, to what is left."""
    total = torch.zeros_like(values)
    for _ in range(terms):
        left = values - total
        total += ((left.view(torch.int32) + ROUND_UP) & POWER).view(torch.float32)
    return total


def exponents(scale: Tensor) -> Tensor:
    """int8: e of scales 2^e, `NOTHING` for what is below 2^LEAST."""
    _, above = torch.frexp(scale)
    return torch.where(scale < 2.0**LEAST, NOTHING, above - 1).to(torch.int8)


def shifted(exponent: Tensor) -> Tensor:
    """float32: the scales of `exponents`."""
    return torch.where(exponent == NOTHING, 0.0, torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent.int()))


def fit(weight: Tensor, bits: int, rounds: int, terms: int, start: Planes | None = None) -> Planes:
    """Greedy signs, then alternate least-squares scales and nearest levels. weight [..., group] float32.

    start: what to begin with instead, an answer for similar weights. terms: powers of two in each a_j, 0 = any number; a_j is
    float16, with one term a power from 2^LEAST on. Keeps the best of all rounds. The scales of the answer are 2 a_j, ascending.
    Raises ArithmeticError where one exceeds its format.
    """
    signs = _signs(bits, weight)
    best = _rounded(_greedy(weight, bits), terms) if start is None else start.scale / 2
    codes, least = _nearest(weight, best @ signs.T)
    for _ in range(rounds):
        scale = _rounded(_least_squares(weight, signs[codes]), terms)
        before = codes
        codes, error = _nearest(weight, scale @ signs.T)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(least, error)
        if torch.equal(codes, before):  # every later round would be this one again
            break
    return _planes(best, terms)


def _greedy(weight: Tensor, bits: int) -> Tensor:
    """[..., bits]: each scale the mean magnitude of what those before it left."""
    left, found = weight, []
    for _ in range(bits):
        scale = left.abs().mean(-1, keepdim=True)
        found.append(scale)
        left = left - torch.where(left < 0, -scale, scale)
    return torch.cat(found, dim=-1)


def _nearest(weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of levels [..., 2^bits] to every weight: codes [..., group], and the squared error [..., 1] of them all."""
    distance, codes = (weight.unsqueeze(-1) - levels.unsqueeze(-2)).abs_().min(-1)
    return codes, distance.square_().sum(-1, keepdim=True)


def _least_squares(weight: Tensor, signs: Tensor) -> Tensor:
    """[..., bits]: the scales that fit best for given signs [..., group, bits], by ridged normal equations in float64."""
    normal, right = (signs.mT @ signs).double(), (signs.mT @ weight.unsqueeze(-1)).double()
    normal.diagonal(dim1=-2, dim2=-1).add_(RIDGE * weight.shape[-1])  # signs of two planes may be all the same
    solved: Tensor = torch.linalg.solve(normal, right)
    return solved.squeeze(-1).float()


def _rounded(scale: Tensor, terms: int) -> Tensor:
    """As the a_j will be stored. A negative scale is the opposite signs."""
    scale = powers(scale.abs(), terms) if terms else scale.abs()
    return scale.where(scale >= 2.0**LEAST, 0.0) if terms == 1 else scale.half().float()


def _planes(scale: Tensor, terms: int) -> Planes:
    """Ascending. Raises ArithmeticError where a scale is too large to be stored."""
    # Where planes are of 0 and 1, twice the scale is stored.
    most = 2.0**MOST if terms == 1 else torch.finfo(torch.float16).max / 2
    if not bool((scale <= most).all()):
        raise ArithmeticError("a group's scale exceeds its format")
    scale = scale.sort(dim=-1).values
    return Planes(2 * scale, -scale.sum(-1, keepdim=True))


def _signs(bits: int, like: Tensor) -> Tensor:
    """[2^bits, bits] of -1 and 1: row c is for code c, bit j of which is the sign in plane j."""
    codes = torch.arange(2**bits, device=like.device)
    return (((codes.unsqueeze(1) >> torch.arange(bits, device=like.device)) & 1) * 2 - 1).to(like.dtype)
