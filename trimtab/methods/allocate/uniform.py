"""Uniform: the most even mixture of levels that uses the budget up; one level everywhere where the budget is met by it.

Of all mixtures of the largest total cost within the budget, the one with the least mean square of the level over weights.
What searches begin with, and what they are measured against.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Seen, Storage
from trimtab.core.places import Site
from trimtab.formats.leveled import Leveled


@dataclass(frozen=True)
class Uniform(Leveled):
    card: ClassVar = Card(
        id="uniform",
        title="The same everywhere",
        paper="folklore",
        fidelity="exact",
        beside=("gptq", "evopress"),
        baseline=True,
    )
    needs: ClassVar = (Storage,)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, Any]:
        ladder = self.ladder(sites, seen[Storage])
        return self.chosen(ladder, ladder.start)
