"""Fitting a group of weights by an offset plus a sum of scaled binary planes: w = offset + sum_j scale_j * plane_j.

Uniform rounding is the special case scale_j = 2^j * scale_0; here the scales are free, so the 2^bits levels need not be
evenly spaced. (Alternating fit of ELUTQ's hierarchical linear quantization.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-6  # relative; a plane may be all 0 or all 1, then its scale is not determined


@dataclass(frozen=True)
class Planes:
    """scale [..., bits], offset [..., 1]; float32 holding float16 values. Scales are positive and ascending."""

    scale: Tensor
    offset: Tensor

    def levels(self) -> Tensor:
        """[..., 2^bits]: the value of every code; bit j of a code switches plane j."""
        return self.offset + self.scale @ _switches(self.scale.shape[-1], self.scale)

    def codes(self, weight: Tensor) -> Tensor:
        """Nearest code of every weight. weight [..., group] -> int64 [..., group]."""
        return (weight.unsqueeze(-1) - self.levels().unsqueeze(-2)).abs_().argmin(-1)

    def values(self, codes: Tensor) -> Tensor:
        return self.levels().gather(-1, codes)


def summed(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """offset + scale_0 * bit 0 of the codes + ..., in this order, to the bit what `formats.BitPlanes` says; gradients flow.

    codes [..., group] integers, scale [..., bits], offset [..., 1].
    """
    total = offset.expand(codes.shape)
    for plane in range(scale.shape[-1]):
        total = total + scale[..., plane, None] * ((codes >> plane) & 1).to(scale.dtype)
    return total


def fit(weight: Tensor, bits: int, rounds: int) -> Planes:
    """Alternate nearest codes and least-squares scales, starting from the uniform grid. weight [..., group] float32.

    Keeps the best of all rounds, judged with float16 scales. rounds = 0 is the uniform min-max grid.
    """
    best = _stored(*_uniform(weight, bits))
    codes = best.codes(weight)
    least = (best.values(codes) - weight).square_().sum(-1, keepdim=True)
    for _ in range(rounds):
        planes = _stored(*_least_squares(weight, codes, bits))
        codes = planes.codes(weight)
        error = (planes.values(codes) - weight).square_().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = Planes(torch.where(better, planes.scale, best.scale), torch.where(better, planes.offset, best.offset))
    return best


def _uniform(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    steps = torch.tensor([2.0**j for j in range(bits)], device=weight.device)
    return (high - low) / (2**bits - 1) * steps, low


def _least_squares(weight: Tensor, codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The scales and offset that fit best for given codes, by ridged normal equations in float64."""
    shifts = torch.arange(bits, device=codes.device)
    planes = ((codes.unsqueeze(-2) >> shifts.unsqueeze(-1)) & 1).to(weight.dtype)  # [..., bits, group]
    design = torch.cat([planes, torch.ones_like(planes[..., :1, :])], dim=-2)
    normal = (design @ design.mT).double()
    right = (design @ weight.unsqueeze(-1)).double()
    ridge = RIDGE * weight.shape[-1] * torch.eye(bits + 1, dtype=torch.float64, device=weight.device)
    solved = torch.linalg.solve(normal + ridge, right).squeeze(-1).float()
    return solved[..., :bits], solved[..., bits:]


def _stored(scale: Tensor, offset: Tensor) -> Planes:
    """Canonical form: a negative plane is the flipped plane and a lower offset; ascending order; float16."""
    offset = offset + scale.clamp(max=0).sum(-1, keepdim=True)
    scale = scale.abs().sort(dim=-1).values
    if bool((scale > 65504).any()) or bool((offset.abs() > 65504).any()):
        raise ArithmeticError("a group's scale or offset exceeds float16")
    return Planes(scale.half().float(), offset.half().float())


def _switches(bits: int, like: Tensor) -> Tensor:
    """[bits, 2^bits] of 0 and 1: column c holds the bits of code c."""
    codes = torch.arange(2**bits, device=like.device)
    return ((codes.unsqueeze(0) >> torch.arange(bits, device=like.device).unsqueeze(1)) & 1).to(like.dtype)
