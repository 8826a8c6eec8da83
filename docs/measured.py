"""What the ledger knows of recipes: every side of every claim once, with its perplexities; for the generated pages."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.expression import steps

Results = Mapping[tuple[str, str], Mapping[str, Any]]
BETWEEN = re.compile(r" [<>] ")
MODEL = "asset:smollm2-135m"  # what most claims are run on; numbers of other models do not stand beside these
SAME_SIZE = 0.01  # relative difference in bits per weight


@dataclass
class Side:
    """A recipe that was measured. perplexities: one per seed; bits: stored per original weight of the compressed matrices."""

    recipe: str
    bits: float
    perplexities: tuple[float, ...]
    windows: int
    base: float
    claims: list[str] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.perplexities) / len(self.perplexities)

    def methods(self) -> set[str]:
        """The ids of all methods in it, allocators too."""
        return {one.card.id for pair in steps(self.recipe) for one in pair if one is not None}

    def shown(self) -> str:
        """`43.92 (43.40 to 44.71)`."""
        low, high = (_number(value) for value in (min(self.perplexities), max(self.perplexities)))
        return f"{_number(self.mean)} ({low} to {high})" if low != high else _number(self.mean)


def sides(results: Results) -> list[Side]:
    """Every recipe that was measured on `MODEL`, the one with the lowest perplexity first."""
    found: dict[tuple[str, float], Side] = {}
    for (method, claim), line in sorted(results.items()):
        if line.get("model") != MODEL or "left_ppl" not in line or line.get("quick"):
            continue
        for recipe, side in zip(BETWEEN.split(line["statement"], maxsplit=1), ("left", "right"), strict=True):
            made = Side(recipe, line[f"{side}_bits"], tuple(line[f"{side}_ppl"]), line["n"], line["base_ppl"])
            known = found.setdefault((recipe, round(made.bits, 3)), made)
            known.claims.append(f"{method} {claim}: {line['status']}")
    return sorted(found.values(), key=lambda side: side.mean)


def better(one: Side, others: Iterable[Side]) -> Side | None:
    """The best other recipe that takes no more bits and was better with every seed; None if there is none."""
    for other in others:  # the best first
        if other.bits <= one.bits * (1 + SAME_SIZE) and max(other.perplexities) < min(one.perplexities):
            return other
    return None


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
