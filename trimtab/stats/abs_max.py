"""The loudest value of every input channel. Not a mean: one token decides it."""

import torch
from torch import Tensor

State = tuple[Tensor]


class AbsMax:
    """[in] float32: max_t |x[t, i]|; 0 where nothing was seen."""

    on = "input"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return (torch.zeros(shape[1], device=device),)

    @staticmethod
    def update(state: State, x: Tensor) -> State:
        return (torch.maximum(state[0], x.float().abs().amax(0)),) if len(x) else state

    @staticmethod
    def merge(a: State, b: State) -> State:
        return (torch.maximum(a[0], b[0]),)

    @staticmethod
    def finish(state: State) -> Tensor:
        return state[0]
