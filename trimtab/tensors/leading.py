"""The leading part of a singular value decomposition, for where a few triplets of many are wanted.

Subspace iteration (Halko, Martinsson & Tropp 2011, algorithm 4.4) from cosines instead of random vectors: the answer is the
same every time, and the first cosine, a constant, is close to the leading direction of a matrix of magnitudes.
"""

import math

import torch
from torch import Tensor

SPARE = 8  # directions that are carried along beyond those wanted
ROUNDS = 6
WORTH_IT = 4  # how many times fewer than all directions must be wanted


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left [out, rank] @ right [rank, in] float32: the best factors of matrix [out, in] of that rank, or nearly.

    Singular values are shared evenly between the factors. Exact where rank is not much below that of the matrix.
    """
    matrix, wanted = matrix.float(), rank + SPARE
    if WORTH_IT * wanted >= min(matrix.shape):
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        basis = _cosines(matrix.shape[1], wanted, matrix.device)
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
        u, s, turned = torch.linalg.svd((matrix @ basis).double(), full_matrices=False)
        vt = turned @ basis.T.double()
    half = s[:rank].sqrt()
    return (u[:, :rank] * half).float(), (half[:, None] * vt[:rank]).float()


def _cosines(length: int, count: int, device: torch.device) -> Tensor:
    """[length, count]: the slowest orthogonal cosines."""
    places, waves = torch.arange(length, device=device) + 0.5, torch.arange(count, device=device)
    return torch.cos(math.pi / length * places[:, None] * waves)
