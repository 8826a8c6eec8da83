"""Activations rounded as they come: every token, or every group of its channels, on a grid of its own.

Integers symmetric about zero, scale = clip max|x| / (2^(bits - 1) - 1), codes from -2^(bits - 1) to 2^(bits - 1) - 1. Nothing is
calibrated; the grid is made of the very numbers it rounds, so a loud channel makes it coarse for all others of its group. Or
numbers of eight bits with a floating point (e4m3: four of exponent, three of fraction), whose step follows each number.
"""

import torch
from torch import Tensor

from trimtab.tensors.through import rounded, through

LOUD = 8  # bits of the groups that are loud
E4M3 = torch.float8_e4m3fn


def per_token(x: Tensor, bits: int, group_size: int, clip: float | Tensor = 1.0, loud: int = 0) -> Tensor:
    """x [..., in] rounded, in the dtype of x; computed in float32 for narrower types. group_size divides in.

    loud: so many groups, the first ones, have `LOUD` bits. clip: the part of each group's range that the grid covers.
    Gradients pass the rounding, and reach clip. Groups of zeros, or of numbers too small to divide by, become zeros.
    """
    wide = x if x.dtype.itemsize >= 4 else x.float()
    groups = wide.reshape(*x.shape[:-1], -1, group_size)
    top = torch.full((groups.shape[-2], 1), 2.0 ** (bits - 1) - 1, dtype=wide.dtype, device=x.device)
    top[:loud] = 2.0 ** (LOUD - 1) - 1
    scale = groups.abs().amax(-1, keepdim=True) * clip / top
    usable = scale.masked_fill(scale == 0, 1.0)
    values = rounded(groups / usable).clamp(-top - 1, top) * scale
    return values.reshape(x.shape).to(x.dtype)


def per_token_e4m3(x: Tensor, group_size: int) -> Tensor:
    """x [..., in] rounded to e4m3, the largest of each group of channels to 448, in the dtype of x; float32 scales.

    Gradients pass the rounding. Numbers below 2^-19 of their group's largest become zeros.
    """
    wide = x if x.dtype.itemsize >= 4 else x.float()
    groups = wide.reshape(*x.shape[:-1], -1, group_size)
    top = torch.finfo(E4M3).max
    scale = groups.abs().amax(-1, keepdim=True) / top
    usable = scale.masked_fill(scale == 0, 1.0)
    steps = (groups / usable).clamp(-top, top)  # the largest one may have been rounded past the end, which e4m3 has no number for
    values = through(steps, steps.detach().to(E4M3).to(wide.dtype)) * scale
    return values.reshape(x.shape).to(x.dtype)
