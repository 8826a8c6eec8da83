"""Things in a row cut into runs, and runs made longer or shorter."""

from collections.abc import Sequence


def runs(length: int, count: int) -> list[range]:
    """0 .. length - 1 in so many runs, as equal as can be. count: at most `length`."""
    bounds = [number * length // count for number in range(count + 1)]
    return [range(bounds[number], bounds[number + 1]) for number in range(count)]


def divided(length: int, sizes: Sequence[int]) -> list[int]:
    """`length` split in proportion to sizes, at least one each; what is left goes by largest remainder, earlier ones first.

    length: at least as many as there are sizes.
    """
    shares = [length * size / sum(sizes) for size in sizes]
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) < length:
        counts[max(range(len(sizes)), key=lambda i: shares[i] - counts[i])] += 1
    while sum(counts) > length:
        counts[min((i for i in range(len(sizes)) if counts[i] > 1), key=lambda i: shares[i] - counts[i])] -= 1
    return counts


def spread(run: range, count: int) -> list[int]:
    """So many of a run, in order and evenly: some are left out if it has more, and come again if it has less."""
    return [run[place * len(run) // count] for place in range(count)]
