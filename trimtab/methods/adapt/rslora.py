"""rsLoRA: LoRA whose product is divided by the square root of its rank.

y = W x + (alpha / sqrt(rank)) B A x. So the size of what is added, and of the gradients, does not shrink as the rank grows.
Kalajdzievski 2023. Without dropout.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import number
from trimtab.core.places import Site
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields


@dataclass(frozen=True)
class Rslora(RankedMethod):
    card: ClassVar = Card(
        id="rslora",
        title="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        paper="arXiv:2312.03732",
        fidelity="exact",
        beside=("lora",),
        claims=(
            Claim(
                "higher-rank-helps",
                "rslora(rank=64, alpha=8.0)",
                "<",
                "rslora(rank=4, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; more parameters on the left: the claim is that a higher rank is put to use",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / sqrt(rank)", 8.0, low=0.001)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, self.alpha / self.rank**0.5, seen.generator)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha, use_rslora=True)
