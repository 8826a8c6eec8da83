"""Two numbers of an attention layer that rounding elsewhere moves, and what puts them back (QuantVLA, arXiv:2602.20309).

How far its logits spread, head by head, which is a temperature; and how large its output is. What differs by less than a neutral
band is taken for noise and left alone, and no factor goes further than a clamp: both as published.
"""

import torch
from torch import Tensor

COOLEST, HOTTEST, LUKEWARM = 0.7, 1.4, 0.02
FURTHEST, LEVEL = 0.30, 0.03  # of the logarithm of the output's size


def logit_spread(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """[heads] float64: the standard deviation of query keyᵀ / sqrt(width) over everything that is attended to.

    query [batch, heads, tokens, width], key [batch, heads, others, width]; mask bool, True = is attended to, broadcast over
    [batch, heads, tokens, others].
    """
    logits = (query.double() @ key.double().mT / query.shape[-1] ** 0.5).transpose(0, 1)  # [heads, batch, tokens, others]
    if mask is None:
        return logits.flatten(1).std(1, correction=0)
    attended = mask.expand(query.shape[0], query.shape[1], *logits.shape[2:]).transpose(0, 1)
    return torch.stack([one[kept].std(correction=0) for one, kept in zip(logits, attended, strict=True)])


def temperature(wanted: Tensor, found: Tensor) -> Tensor:
    """What queries are multiplied by so that logits spread as wanted. Both [heads] positive."""
    factor = (wanted / found).clamp(COOLEST, HOTTEST)
    return torch.where((factor - 1).abs() < LUKEWARM, 1.0, factor)


def balance(wanted: Tensor, found: Tensor) -> Tensor:
    """What an output of root mean square `found` is multiplied by to be as large as wanted. Positive, of any one shape."""
    step = (wanted / found).log().clamp(-FURTHEST, FURTHEST)
    return torch.where(step.abs() < LEVEL, torch.zeros_like(step), step).exp()
