"""The second moment of a matrix's inputs: what the layer-wise squared error depends on, and nothing else."""

import torch
from torch import Tensor

from trimtab import kernels

State = tuple[Tensor, int]
TILE = 128  # columns; a symmetric product in tiles skips the tiles above the diagonal


class Gram:
    """[in, in] float32: mean_t x_t x_tᵀ. An expert that saw no token has a zero gram."""

    on = "input"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros(shape[1], shape[1], device=device), 0

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        total, tokens = state
        if not kernels.add_gram(total, x):
            x = x.float()
            for row in range(0, x.shape[1], TILE):
                left = x[:, row : row + TILE]
                total[row : row + TILE, : row + TILE].addmm_(left.T, x[:, : row + TILE])
        return total, tokens + len(x)

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        total, tokens = state
        lower = total.tril()
        return (lower + total.tril(-1).T) / max(tokens, 1)
