"""Mean and variance of every input channel, by the numerically safe pairwise update (Chan et al. 1979)."""

import torch
from torch import Tensor

State = tuple[Tensor, Tensor, int]


class Moments:
    """[2, in] float64: the mean and the (population) variance over tokens."""

    on = "input"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        zeros = torch.zeros(shape[1], dtype=torch.float64, device=device)
        return zeros, zeros.clone(), 0

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        if not len(x):
            return state
        mean = x.float().mean(0)
        squares = (x.float() - mean).square().sum(0)
        return Moments.merge(state, (mean.double(), squares.double(), len(x)))

    @staticmethod
    def merge(a: State, b: State) -> State:
        tokens = a[2] + b[2]
        if not tokens:
            return a
        step = b[0] - a[0]
        mean = a[0] + step * (b[2] / tokens)
        return mean, a[1] + b[1] + step.square() * (a[2] * b[2] / tokens), tokens

    @staticmethod
    def finish(state: State) -> Tensor:
        return torch.stack([state[0], state[1] / max(state[2], 1)])
