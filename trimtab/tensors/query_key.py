"""One matrix instead of queries and keys (OFQ's query-key reparameterization, arXiv:2302.02210).

A head's scores are x Wqᵀ Wk yᵀ / sqrt(width): rounded apart, two matrices whose product matters oscillate against each other;
M = Wqᵀ Wk, rounded as one, cannot. It has in x in entries a head however narrow the head is, and there is none where positions
turn queries and keys between the two (rotary embeddings). Biases are left out, as published.
"""

import torch
from torch import Tensor


def joined(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """[heads * in, in]: the rows of every head's Wqᵀ Wk, one head below the other. query, key [heads * width, in].

    Divided by sqrt(width), so that `scores` needs to know no width.
    """
    queries, keys = (weight.view(heads, -1, weight.shape[1]) for weight in (query, key))
    both: Tensor = queries.mT @ keys / queries.shape[1] ** 0.5
    return both.flatten(0, 1)


def scores(x: Tensor, others: Tensor, both: Tensor) -> Tensor:
    """[batch, heads, tokens, others] logits of attention. x [batch, tokens, in], others [batch, others, in], both `joined`."""
    turned = torch.einsum("bti,hij->bhtj", x, both.view(-1, x.shape[-1], both.shape[1]))
    return turned @ others.unsqueeze(1).mT
