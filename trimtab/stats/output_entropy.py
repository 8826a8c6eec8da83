"""How varied the outputs of a block are: the entropy of the clusters that its tokens fall into."""

import torch
from torch import Tensor

from trimtab.tensors.clusters import kmeans

CLUSTERS = 100
MOST = 8192  # tokens, the first that are seen; windows come from a shuffle of the documents

State = tuple[Tensor, ...]


class OutputEntropy:
    """Scalar float64, nats: -sum_c p_c log p_c, p_c = share of the block's output tokens in cluster c of 100 (k-means).

    Channels are centred and scaled to unit variance first: otherwise a few massive ones would be all that k-means sees.
    """

    on = "block"

    @staticmethod
    def start(shape: tuple[int, int], device: torch.device) -> State:
        return ()

    @staticmethod
    def update(state: State, entering: Tensor, leaving: Tensor) -> State:
        return OutputEntropy.merge(state, (leaving.float(),))

    @staticmethod
    def merge(a: State, b: State) -> State:
        room = MOST - sum(map(len, a))
        for piece in b:
            if room <= 0:
                break
            a, room = (*a, piece[:room].clone()), room - len(piece)
        return a

    @staticmethod
    def finish(state: State) -> Tensor:
        tokens = sum(map(len, state))
        if not tokens:
            return torch.zeros((), dtype=torch.float64)
        kept = torch.cat(state)
        spread = kept.std(0, correction=0)
        points = (kept - kept.mean(0)) / torch.where(spread > 0, spread, 1.0)
        share = torch.bincount(kmeans(points, CLUSTERS)).double() / tokens
        return torch.special.entr(share).sum()
