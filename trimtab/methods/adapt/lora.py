"""LoRA: a frozen matrix and beside it a product of two thin ones that are trained.

y = W x + (alpha / rank) B A x, with A uniform within 1 / sqrt(in) of zero and B zero, so that nothing is added at first.
Hu et al., ICLR 2022. Without dropout.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import number
from trimtab.core.places import Site
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields


@dataclass(frozen=True)
class Lora(RankedMethod):
    card: ClassVar = Card(
        id="lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        paper="arXiv:2106.09685",
        fidelity="exact",
        beside=("rslora", "dora", "pissa"),
        baseline=True,
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha)
