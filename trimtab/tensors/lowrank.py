"""The best approximation of a given rank, in the metric that the inputs define.

min over rank k of || (W - W') L ||_F  with  L Lᵀ = gram  is the truncated SVD of W L, brought back by L⁻¹: the squared error
over the calibration tokens equals the sum of the squared dropped singular values (Eckart & Young 1936).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SILENT = 1e-3  # of the mean: channels that were not heard keep a little weight, so that it can be divided by


@dataclass(frozen=True)
class Factors:
    """weight ~ left [out, rank] @ right [rank, in], float32; dropped: squared error in the metric, float64."""

    left: Tensor
    right: Tensor
    dropped: float


def truncated(weight: Tensor, rank: int, root: Tensor | None = None) -> Factors:
    """Best rank-`rank` factors of weight [out, in]. root: lower triangular or diagonal-as-vector L, or None for identity.

    Singular values are shared evenly between the factors, so that both can be stored with the same precision.
    Raises ArithmeticError where the product W L is beyond what a decomposition can do.
    """
    weight = weight.double()
    try:
        u, s, vt = torch.linalg.svd(_times(weight, root), full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # made at run time by torch
        raise ArithmeticError("weight and inputs have no singular values: they are not finite or too far apart") from error
    half = s[:rank].sqrt()
    right = _undo(half[:, None] * vt[:rank], root)
    return Factors((u[:, :rank] * half).float(), right.float(), float(s[rank:].square().sum()))


def principal(weight: Tensor, rank: int, spread: Tensor) -> Factors:
    """Factors Q, Qᵀ W with Q [out, rank] the leading eigenvectors of W C Wᵀ, orthonormal; spread: C [in, in], symmetric.

    Of all projections of the outputs of that rank the one that leaves the least of them. No factor of C is taken, which may be
    singular.
    """
    wide = weight.double()
    energy, directions = torch.linalg.eigh(wide @ spread.double() @ wide.T)  # ascending
    kept = directions.flip(1)[:, :rank]
    return Factors(kept.float(), (kept.T @ wide).float(), float(energy.clamp(min=0).flip(0)[rank:].sum()))


def audible(sizes: Tensor) -> Tensor:
    """A diagonal metric [in] float64 from sizes of channels [in] >= 0 that may be zero: those get a thousandth of the mean.

    Ones where all are zero.
    """
    sizes = sizes.double()
    return sizes.clamp(min=SILENT * float(sizes.mean())) if bool(sizes.any()) else torch.ones_like(sizes)


def rank_for(shape: tuple[int, int], keep: float) -> int:
    """The largest rank whose factors hold at most keep * out * in numbers; at least 1. Full rank stays out of reach."""
    out, inputs = shape
    return max(1, int(keep * out * inputs / (out + inputs)))


def _times(weight: Tensor, root: Tensor | None) -> Tensor:
    if root is None:
        return weight
    return weight * root if root.ndim == 1 else weight @ root


def _undo(right: Tensor, root: Tensor | None) -> Tensor:
    if root is None:
        return right
    if root.ndim == 1:
        return right / root
    solved: Tensor = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return solved
