"""How far two predictions of the next token are apart, and at which tokens it is worth asking."""

import torch
from torch import Tensor


def kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(other)) per token, nats. [tokens, vocabulary] each -> [tokens] float64."""
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def spread_positions(length: int, count: int) -> Tensor:
    """At most `count` positions of a window, evenly spread over all but the first, which is often an attention sink."""
    return torch.linspace(1, length - 1, min(count, length - 1)).round().long()
