"""How the loss of a text changes with every weight, on average over windows."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class Gradient:
    """[out, in] float32: mean over windows of d loss / d weight, loss being the mean over a window's tokens, in nats."""

    on = "gradient"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros(shape, device=device), 0

    @staticmethod
    def update(state: State, gradient: Tensor) -> State:
        """gradient: [out, in], of one window."""
        return state[0] + gradient.float(), state[1] + 1

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        return state[0] / max(state[1], 1)
