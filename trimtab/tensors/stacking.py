"""Room shared out between stacks of blocks of which any number of the first ones may be taken."""

from collections.abc import Sequence
from itertools import accumulate


def ranking(worths: Sequence[Sequence[float]]) -> list[int]:
    """The one order in which blocks are taken: of each, the number of its stack. First blocks are first, as the stacks stand.

    worths: of every block of every stack. The worthier the earlier, but no block before those under it in its stack. Equal
    ones go by their height in the stack, then by the stack's number.
    """
    rates = [accumulate(stack, min) for stack in worths]
    above = [(-rate, height, number) for number, stack in enumerate(rates) for height, rate in enumerate(stack) if height]
    return [*range(len(worths)), *(number for _, _, number in sorted(above))]


def taken(order: Sequence[int], costs: Sequence[int], room: int) -> list[int]:
    """How many blocks of each stack the longest beginning of the order has that costs at most `room`; at least one of each.

    costs: of one block of each stack.
    """
    counts = [1] * len(costs)
    room -= sum(costs)
    for number in order[len(costs) :]:
        room -= costs[number]
        if room < 0:
            break
        counts[number] += 1
    return counts
