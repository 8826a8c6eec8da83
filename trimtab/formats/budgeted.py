"""Allocators that meet a budget of stored bytes: the knobs that name it, and the choice that uses it up.

What is met is either the average of stored bits per weight over the step's matrices - codes, scales, zero points, whatever
the method's container keeps - or the size of the model's weight files, headers and everything uncompressed included. It
is never exceeded, and of what the strengths allow the largest total is taken, whatever is seen: `trimtab plan` knows it.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, ClassVar

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Allocator, Storage
from trimtab.core.knobs import count, number, text
from trimtab.core.places import Site
from trimtab.core.sizes import in_bytes
from trimtab.tensors.allocation import best, most

UNKNOWN = "an earlier step decides by data what the matrices take"


def parse_size(value: str) -> None:
    """Raises ValueError for what is no size; nothing is none."""
    if value:
        in_bytes(value, 1)


def within_files(
    who: str, size: str, sites: Sequence[Site], storage: Storage, strengths: Sequence[Any], least: int, cheapest: tuple[str, str]
) -> int:
    """Bytes that the sites' tensors may take such that all weight files stay within `size`; never less than `least`.

    least: what the sites take at the least; cheapest: how, and how to get below, in words. Raises `UsageError` where that is
    too much.
    """
    if storage.rest is None:
        raise UsageError(f"{who}: size={size!r} cannot be met, the data decide what the other matrices take; use `bits`")
    rest = storage.rest + sum(max(storage.header(site, strength) for strength in strengths) for site in sites)
    asked = in_bytes(size, storage.before)
    if asked < rest + least:
        raise UsageError(
            f"{who}: size={size!r} ({asked} bytes) is below the smallest possible model: {cheapest[0]} "
            f"everywhere are size='{rest + least}'; ask for as much, {cheapest[1]}, or compress what is left as it is"
        )
    return max(least, min(asked, storage.largest) - rest)


@dataclass(frozen=True)
class Budgeted(Allocator):
    """The knobs of such an allocator, its promises, and `spent`, which its `allocate` is made of."""

    knob: ClassVar = "bits"

    bits: float = number("stored bits per weight, on average over the step's matrices, everything counted", 3.0, 1, 16)
    size: str = text("instead of bits: of all weight files, such as 60MB, or 40% of the model's tensors", "", parse_size)
    low: int = count("fewest bits that a matrix may get", 2, 1, 8)
    high: int = count("most bits that a matrix may get", 4, 2, 8)

    @property
    @abstractmethod
    def strengths(self) -> Sequence[int]:
        """The values of the knob to choose from, ascending."""

    def check(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"{self.card.id}: needs low < high, got low={self.low}, high={self.high}")
        if self.size and self.bits != Budgeted.bits:
            raise UsageError(f"{self.card.id}: bits={self.bits:g} and size={self.size!r} are two budgets; give one of them")

    def promises(self, sites: Sequence[Site], storage: Storage) -> int | None:
        costs = self._costs(sites, storage)
        if costs is None or (self.size and storage.rest is None):
            return None
        return most(costs, self._budget(sites, storage, costs))

    def spent(self, sites: Sequence[Site], storage: Storage, worth: Callable[[Site, int], float]) -> dict[Site, int]:
        """The strength at every site that is worth the most in all. worth: of a strength at a site; only differences count.

        Raises `UsageError` where the budget cannot be met, or cannot be known to be.
        """
        costs = self._costs(sites, storage)
        if costs is None:
            raise UsageError(f"{self.card.id}: {UNKNOWN}; put that step into a recipe of its own")
        budget = self._budget(sites, storage, costs)
        worths = [[worth(site, strength) for strength in self.strengths] for site in sites]
        return {site: self.strengths[at] for site, at in zip(sites, best(costs, worths, budget), strict=True)}

    def _costs(self, sites: Sequence[Site], storage: Storage) -> list[list[int]] | None:
        """Bytes by site and strength, None where they are not known yet."""
        table = [[storage.tensors(site, strength) for strength in self.strengths] for site in sites]
        known = [[cost for cost in row if cost is not None] for row in table]
        return known if all(len(row) == len(self.strengths) for row in known) else None

    def _budget(self, sites: Sequence[Site], storage: Storage, costs: list[list[int]]) -> int:
        """Bytes that the sites' tensors may take, at least what they take at the least."""
        least = sum(map(min, costs))
        if self.size:
            cheapest = f"{self.low} bits", "lower `low`"
            return within_files(self.card.id, self.size, sites, storage, self.strengths, least, cheapest)
        weights = sum(site.shape[0] * site.shape[1] for site in sites)
        budget = floor(self.bits * weights / 8)
        if budget < least:
            smallest = ceil(8000 * least / weights) / 1000
            raise UsageError(
                f"{self.card.id}: bits={self.bits:g} is below the smallest possible model: {self.low} bits everywhere are "
                f"{smallest:.3f} stored bits per weight; ask for as many, or lower `low`"
            )
        return budget
