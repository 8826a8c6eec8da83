"""Which channels to split and which to merge: QLLM's disassembly and assembly (arXiv:2310.08041), from second moments."""

import torch
from torch import Tensor


def copies(loudest: Tensor, threshold: float) -> Tensor:
    """[in] int64: in how many equal parts each channel goes so that none is louder than the threshold. loudest [in]."""
    return (loudest.double() / threshold).ceil().clamp(min=1).long()


def merge_costs(gram: Tensor, weight: Tensor) -> Tensor:
    """[in, in] float64: what two channels lose when both become their mean and their columns one, by tokens and outputs.

    Output n is off by (w_ni - w_nj) (x_i - x_j) / 2 at a token, so the mean square is a product of two squared distances.
    """
    return _squared_distances(gram.double()) * _squared_distances(weight.double().T @ weight.double()) / 4


def merges(costs: Tensor, free: Tensor, wanted: int) -> Tensor:
    """[in] int64: the channel that each one becomes part of, itself for most. free [in] bool: may take part.

    Every free even channel has the free odd one that costs least; the `wanted` cheapest pairs merge. Raises ArithmeticError
    where there are fewer pairs.
    """
    channels = torch.arange(len(costs), device=costs.device)
    into = channels.clone()
    even, odd = channels[free & (channels % 2 == 0)], channels[free & (channels % 2 == 1)]
    if wanted > len(even) or (wanted and not len(odd)):
        raise ArithmeticError(f"{wanted} channels cannot be merged, only {len(even)} are free to")
    if not wanted:
        return into
    cost, partner = costs[even][:, odd].min(1)
    cheapest = cost.argsort(stable=True)[:wanted]
    into[even[cheapest]] = odd[partner[cheapest]]
    return into


def reassembled(copies: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """(source, target) [entries] int64 of `formats.Reassembly`: channels in `copies` parts, then merged as `into` says.

    Outputs are in the order of the channels that they come from.
    """
    source = torch.arange(len(copies), device=copies.device).repeat_interleave(copies)
    stays = into == torch.arange(len(into), device=into.device)
    first = (copies * stays).cumsum(0) - copies * stays  # of every channel that stays, its first output
    part = torch.arange(len(source), device=source.device) - (copies.cumsum(0) - copies)[source]
    return source, first[into[source]] + part


def _squared_distances(gram: Tensor) -> Tensor:
    """[n, n] squared distances between vectors of which gram [n, n] holds the products."""
    size = gram.diagonal()
    return (size[:, None] + size - 2 * gram).clamp(min=0)
