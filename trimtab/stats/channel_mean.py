"""What statistics share that are a mean of some function of each input channel: the running sum, and the tokens in it."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class ChannelMean:
    """[in] float32. Abstract: a statistic says in `update` what it adds up."""

    on = "input"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros(shape[1], device=device), 0

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        total, tokens = state
        return total / max(tokens, 1)
