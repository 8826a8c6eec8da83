"""How much a block turns the residual stream: the mean cosine between what enters and what leaves it."""

import torch
from torch import Tensor

State = tuple[Tensor, int]


class BlockCosine:
    """Scalar float64: mean_t cos(block input_t, block output_t). 1 = the block does nothing that a direction shows."""

    on = "block"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return torch.zeros((), dtype=torch.float64, device=device), 0

    @staticmethod
    def update(state: State, entering: Tensor, leaving: Tensor) -> State:
        cosine = torch.nn.functional.cosine_similarity(entering.float(), leaving.float(), dim=-1)
        return state[0] + cosine.double().sum(), state[1] + len(entering)

    @staticmethod
    def merge(a: State, b: State) -> State:
        return a[0] + b[0], a[1] + b[1]

    @staticmethod
    def finish(state: State) -> Tensor:
        return state[0] / max(state[1], 1)
