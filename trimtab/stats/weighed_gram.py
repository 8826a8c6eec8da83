"""The second moment of a matrix's inputs where tokens count differently: those that matter to the block count more.

Scores of the tokens of a window become weights by  floor + (1 - floor) * (score - least) / (most - least),  divided by their
mean: a window counts as much as without weights, only its tokens do not. (arXiv:2503.01820.)
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from trimtab.core.kinds import Statistic
from trimtab.stats.gram import Gram, State


def attention(drawn: Tensor) -> Tensor:
    """The attention that a token draws, over all heads and queries. [windows, length], as all of these."""
    return drawn


def norm(entering: Tensor, leaving: Tensor) -> Tensor:
    """How large a token is as it enters the block."""
    return entering.float().norm(dim=-1)


def change(entering: Tensor, leaving: Tensor) -> Tensor:
    """How little the block does to a token."""
    return -(leaving.float() - entering.float()).norm(dim=-1)


def distance(entering: Tensor, leaving: Tensor) -> Tensor:
    """How far a token is from the other ones of its window as they enter: the mean square, in float64."""
    x = entering.double()
    centred = x - x.mean(1, keepdim=True)
    return centred.square().sum(-1) + centred.square().sum(-1).mean(1, keepdim=True)


def first_half(entering: Tensor, leaving: Tensor) -> Tensor:
    """1 for the first half of a window, 0 for the second."""
    windows, length = entering.shape[:2]
    return (torch.arange(length, device=entering.device) < (length + 1) // 2).float().expand(windows, -1)


SCORES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (attention, norm, change, distance, first_half)}


def weights(scores: Tensor, floor: float, cap: float = 1.0, reverse: bool = False) -> Tensor:
    """[windows, length] float32, mean 1 in every window; equal where the scores are. See `weighed_gram`."""
    scores = scores.double()
    scores = -scores if reverse else scores
    most, least = scores.quantile(cap, dim=1, keepdim=True), scores.amin(1, keepdim=True)
    span = most - least
    rank = torch.where(span > 0, (scores - least) / span, 1.0).clamp(max=1.0)
    raised = floor + (1 - floor) * rank
    return (raised / raised.mean(1, keepdim=True)).float()


@cache
def weighed_gram(score: str, floor: float, cap: float = 1.0, reverse: bool = False) -> type[Statistic]:
    """The statistic [in, in] float32: mean_t r_t x_t x_tᵀ, mean r = 1. The same class for the same arguments.

    score: a name in `SCORES`. floor: what the least token of a window counts, the most important being 1. cap: from this
    quantile of a window on tokens count the same. reverse: the least important counts most.
    """
    measure = SCORES[score]

    class WeighedGram:
        on = "attended" if score == "attention" else "passage"
        start, merge, finish = staticmethod(Gram.start), staticmethod(Gram.merge), staticmethod(Gram.finish)

        @staticmethod
        def update(state: State, x: Tensor, *about: Tensor) -> State:
            counted = weights(measure(*about), floor, cap, reverse).reshape(-1, 1)  # [tokens, 1]
            return Gram.update(state, x.float() * counted.sqrt())

    return WeighedGram
