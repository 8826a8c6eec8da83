"""Allocators that choose among given levels of any knob, for a budget: its mean, or the size of the weight files.

The budget is used up and never exceeded: what all sites cost together is the most that the levels can reach within it, and is
the same for every candidate. Costs are whole numbers, so that this is exact: bytes where a size is asked for, else what the
knob says, times the weights it is said of (of a rank: times inputs plus outputs), in parts of its common denominator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import lcm

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Allocator, Storage
from trimtab.core.knobs import choice, number, text
from trimtab.core.places import Site
from trimtab.formats.budgeted import parse_size, within_files
from trimtab.tensors.allocation import best, most

FEWEST = 2
Level = int | float


@dataclass(frozen=True)
class Ladder:
    """What a search moves on. places: the sites that have a level in common; costs[place][choice]; start: the even choices."""

    places: tuple[tuple[Site, ...], ...]
    costs: list[list[int]]
    start: tuple[int, ...]


def parse_levels(value: str) -> tuple[str, tuple[Level, ...]]:
    """(knob, levels ascending) of `bits=2,3,4`. Raises ValueError."""
    knob, _, values = value.partition("=")
    try:
        levels = sorted({_number(word.strip()) for word in values.split(",")})
    except ValueError:
        levels = []
    if not knob.strip().isidentifier() or len(levels) < FEWEST:
        raise ValueError(f"{value!r:.80} names no levels; write a knob and at least {FEWEST} values, such as bits=2,3,4")
    return knob.strip(), tuple(levels)


def _number(word: str) -> Level:
    Fraction(word)  # refuses nan and inf
    return float(word) if "." in word else int(word)


@dataclass(frozen=True)
class Leveled(Allocator):
    """The knobs of such an allocator, and the `ladder` that its `allocate` is made of."""

    levels: str = text("the knob that is set and the values it may have", "bits=2,3,4", parse_levels)
    mean: float = number("what the knob is on average over the step's weights, at most (a sparsity: at least)", 3.0, 0, 10**6)
    size: str = text("instead of mean: of all weight files, such as 60MB, or 40% of the model's tensors", "", parse_size)
    per: str = choice("what has a level of its own: every matrix, block or kind of matrix", "site", ("site", "block", "role"))

    @property
    def knob(self) -> str:  # type: ignore[override]
        return parse_levels(self.levels)[0]

    @property
    def strengths(self) -> Sequence[Level]:
        """The levels, ascending."""
        return parse_levels(self.levels)[1]

    def check(self) -> None:
        low, high = self.strengths[0], self.strengths[-1]
        if self.size and self.mean != Leveled.mean:
            raise UsageError(f"{self.card.id}: mean={self.mean:g} and size={self.size!r} are two budgets; give one of them")
        if not self.size and not low <= self.mean <= high:
            raise UsageError(f"{self.card.id}: no mixture of {self.levels} has mean={self.mean:g}; ask for {low:g} to {high:g}")

    def promises(self, sites: Sequence[Site], storage: Storage) -> int | None:
        """The bytes of a size; of a mean none are known. Raises as `ladder` does."""
        sizes = self._bytes(sites, storage)
        if sizes is None or storage.rest is None:
            return None
        return most(sizes, self._within(sites, storage, sizes))

    def ladder(self, sites: Sequence[Site], storage: Storage) -> Ladder:
        """Raises `UsageError` where the budget cannot be met, or does not depend on the levels."""
        places = self.places(sites)
        single = self._costs(sites, storage)
        by_site = dict(zip(sites, single, strict=True))
        costs = [[sum(column) for column in zip(*(by_site[s] for s in place), strict=True)] for place in places]
        # Of mixtures that cost the same, the least sum of squares is the most even one.
        worths = [[-sum(_amount(self.knob, s) for s in place) * float(v) ** 2 for v in self.strengths] for place in places]
        return Ladder(places, costs, tuple(best(costs, worths, self._budget(sites, storage, single))))

    def chosen(self, ladder: Ladder, choices: Sequence[int]) -> dict[Site, Level]:
        """The level of every site."""
        return {site: self.strengths[at] for place, at in zip(ladder.places, choices, strict=True) for site in place}

    def places(self, sites: Sequence[Site]) -> tuple[tuple[Site, ...], ...]:
        """The sites that have a level in common."""
        if self.per == "site":
            return tuple((site,) for site in sites)
        together: dict[int | str | None, list[Site]] = {}
        for site in sites:
            together.setdefault(site.block if self.per == "block" else site.role, []).append(site)
        return tuple(map(tuple, together.values()))

    def _costs(self, sites: Sequence[Site], storage: Storage) -> list[list[int]]:
        if not self.size:
            unit = _unit(self.strengths)
            return [[int(_cost(self.knob, v) * _amount(self.knob, s) * unit) for v in self.strengths] for s in sites]
        sizes = self._bytes(sites, storage)
        if sizes is None:
            raise UsageError(f"{self.card.id}: an earlier step decides by data what the matrices take; use `mean`")
        return sizes

    def _bytes(self, sites: Sequence[Site], storage: Storage) -> list[list[int]] | None:
        """By site and level where a size is asked for, None where unknown yet. Raises `UsageError` if all are alike."""
        if not self.size:
            return None
        table = [[storage.tensors(site, level) for level in self.strengths] for site in sites]
        known = [[cost for cost in row if cost is not None] for row in table]
        if not all(len(row) == len(self.strengths) for row in known):
            return None
        if all(len(set(row)) == 1 for row in known):
            raise UsageError(
                f"{self.card.id}: size={self.size!r} says nothing about {self.knob}: all levels are stored in as many bytes "
                "(sparse matrices are, unless --packed); use `mean`"
            )
        return known

    def _budget(self, sites: Sequence[Site], storage: Storage, costs: list[list[int]]) -> int:
        if self.size:
            return self._within(sites, storage, costs)
        weights = sum(_amount(self.knob, site) for site in sites)
        return int(_cost(self.knob, self.mean) * weights * _unit(self.strengths))

    def _within(self, sites: Sequence[Site], storage: Storage, costs: list[list[int]]) -> int:
        cheapest = f"the cheapest of {self.levels}", "use cheaper levels"
        return within_files(self.card.id, self.size, sites, storage, self.strengths, sum(map(min, costs)), cheapest)


def _cost(knob: str, value: Level) -> Fraction:
    """What a weight takes, in parts of what it would take: of a sparsity what is left."""
    exact = Fraction(str(value))
    return 1 - exact if knob == "sparsity" else exact


def _amount(knob: str, site: Site) -> int:
    return sum(site.shape) if knob == "rank" else site.shape[0] * site.shape[1]


def _unit(levels: Sequence[Level]) -> int:
    """What makes whole numbers of all levels."""
    return reduce(lcm, (Fraction(str(level)).denominator for level in levels))
