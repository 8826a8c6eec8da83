"""LoRA: a frozen matrix and beside it a product of two thin ones that are trained.

y = W x + (alpha / rank) B A x, with A uniform within 1 / sqrt(in) of zero and B zero, so that nothing is added at first.
Hu et al., ICLR 2022. Without dropout.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from trimtab.core.card import Card
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod, check_rank
from trimtab.formats.deltas import LowRankDelta, fresh_right, lora_fields


@dataclass(frozen=True)
class Lora(AdapterMethod):
    card: ClassVar = Card(
        id="lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        paper="arXiv:2106.09685",
        fidelity="exact",
        beside=("rslora", "dora", "pissa"),
        baseline=True,
    )

    rank: int = count("inner dimension of the product", 16)
    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)

    def fits(self, site: Site) -> None:
        check_rank(self.card.id, self.rank, site)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        out, inputs = site.shape
        device = next(iter(weight.tensors().values())).device
        right = fresh_right(self.rank, inputs, seen.generator, device)
        return LowRankDelta(torch.zeros(out, self.rank, device=device), right, self.alpha / self.rank)

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha)
