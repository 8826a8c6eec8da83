"""The exact median of more numbers than one wants to hold, or sort, at once.

Positive float32 numbers are ordered like their bit patterns read as integers. One pass counts the upper halves of the
patterns, another the lower halves of those whose upper half is the median's.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

HALF = 16  # bits


def spread(parts: Callable[[], Iterable[Tensor]]) -> tuple[float, float, float]:
    """The least, the median (of an even count: between the middle two) and the largest of all positive numbers.

    parts: gives the same float32 tensors at every call; numbers that are not above zero are passed over. Raises
    ArithmeticError if there is none.
    """

    def counted(lower_of: int | None) -> Tensor:
        counts = torch.zeros(1 << HALF, dtype=torch.int64)
        for part in parts():
            patterns = part[part > 0].float().view(torch.int32).long()
            chosen = patterns >> HALF if lower_of is None else patterns[patterns >> HALF == lower_of] & ((1 << HALF) - 1)
            counts += torch.bincount(chosen, minlength=1 << HALF).cpu()
        return counts

    upper = counted(None)
    count = int(upper.sum())
    if not count:
        raise ArithmeticError("there is no number above zero")

    def ranked(rank: int) -> float:
        high, before = _bin(upper, rank)
        low, _ = _bin(counted(high), rank - before)
        return float(torch.tensor((high << HALF) | low, dtype=torch.int32).view(torch.float32))

    middle = ranked(count // 2)
    if count % 2 == 0:
        middle = (ranked(count // 2 - 1) + middle) / 2
    return ranked(0), middle, ranked(count - 1)


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin in which the number of this rank lies, and how many numbers lie in the bins before."""
    ends = counts.cumsum(0)
    found = int(torch.searchsorted(ends, torch.tensor(rank), right=True))
    return found, int(ends[found] - counts[found])
