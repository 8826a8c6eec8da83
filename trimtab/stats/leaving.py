"""Tokens as they leave a block, for what looks at the inputs of the head: the final norm of these is what it reads."""

import torch
from torch import Tensor

MOST = 4096  # tokens, the first that are seen; windows come from a shuffle of the documents

State = tuple[Tensor, ...]


class Leaving:
    """[tokens, width] float16: each token divided by its root mean square, to which norms are blind. At most `MOST` of them."""

    on = "block"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return ()

    @staticmethod
    def update(state: State, entering: Tensor, leaving: Tensor) -> State:
        room = MOST - sum(map(len, state))
        some = leaving[: max(room, 0)].float()
        size = some.square().mean(1, keepdim=True).sqrt()
        return Leaving.merge(state, ((some / torch.where(size > 0, size, 1.0)).half(),))

    @staticmethod
    def merge(a: State, b: State) -> State:
        room = MOST - sum(map(len, a))
        for piece in b:
            if room <= 0:
                break
            a, room = (*a, piece[:room]), room - len(piece)
        return a

    @staticmethod
    def finish(state: State) -> Tensor:
        return torch.cat(state) if state else torch.zeros(0, 0, dtype=torch.float16)
