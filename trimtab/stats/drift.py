"""How far compression has moved a matrix's inputs, seen along the inputs it now gets."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class Drift:
    """[in, in] float32: mean_t (x°_t - x_t) x_tᵀ; x: inputs behind the compressed blocks, x°: of the untouched model."""

    on = "pair"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros(shape[1], shape[1], device=device), 0

    @staticmethod
    def update(state: State, x: Tensor, original: Tensor) -> State:
        total, tokens = state
        return total.addmm_((original.float() - x.float()).T, x.float()), tokens + len(x)

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        total, tokens = state
        return total / max(tokens, 1)
