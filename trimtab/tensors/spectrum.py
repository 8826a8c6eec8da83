"""Singular values and what is read off them: the largest, how many count, how evenly they are spread."""

import math

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """[min(rows, columns)] float64, descending, from the eigenvalues of the smaller gram matrix.

    Those below 1e-8 of the largest are noise: squares lose half of the digits.
    """
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    ascending: Tensor = torch.linalg.eigvalsh(gram)
    return ascending.clamp(min=0).sqrt().flip(0)


def largest_singular_value(matrix: Tensor, iterations: int, generator: torch.Generator) -> float:
    """By power iteration from a random vector, in float64: never above the true one, and equal to it in the limit.

    The relative error shrinks like (second / first) ^ (4 * iterations).
    """
    wide = matrix.double()
    direction = torch.randn(wide.shape[1], generator=generator, dtype=torch.float64).to(wide.device)
    for _ in range(iterations):
        direction = wide.T @ (wide @ (direction / direction.norm().clamp(min=torch.finfo(torch.float64).tiny)))
    norm = direction.norm()
    return float((wide @ (direction / norm)).norm()) if norm > 0 else 0.0


def stable_rank(matrix: Tensor, largest: float) -> float:
    """Squared Frobenius norm over the squared largest singular value; 0 for the zero matrix."""
    return float(matrix.double().square().sum()) / largest**2 if largest > 0 else 0.0


def effective_rank(sizes: Tensor) -> float:
    """exp(entropy of sizes / sum): how many equal ones would be spread as evenly. sizes [n] >= 0; 0 if all are zero.

    Of singular values it is the effective rank of Roy and Vetterli (2007); of their squares, that of the energy.
    """
    total = float(sizes.sum())
    if total <= 0:
        return 0.0
    share = sizes[sizes > 0].double() / total
    return math.exp(float(-(share * share.log()).sum()))
