"""How loud every input channel is on average."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class AbsMean:
    """[in] float32: mean_t |x[t, i]|."""

    on = "input"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros(shape[1], device=device), 0

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        total, tokens = state
        return total + x.float().abs().sum(0), tokens + len(x)

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        total, tokens = state
        return total / max(tokens, 1)
