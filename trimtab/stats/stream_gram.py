"""In which directions the residual stream moves, whatever its size: what a norm leaves of it."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class StreamGram:
    """[width, width] float32: mean over tokens of y yᵀ, y being what enters or leaves a block divided by its root mean square."""

    on = "block"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros((), device=device), 0

    @staticmethod
    def update(state: State, entering: Tensor, leaving: Tensor) -> State:
        tokens = torch.cat([entering, leaving]).float()
        unit = tokens / tokens.square().mean(-1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return state[0] + unit.T @ unit, state[1] + len(unit)

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        return state[0] / max(state[1], 1)
