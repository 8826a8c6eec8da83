"""DoRA: the direction of every row is adapted by LoRA, its length is trained by itself.

y = m * (W + s B A) x / ||W + s B A||, with the norm over a row's inputs, m its value at the start, and s = alpha / rank.
Liu et al., ICML 2024. As there, no gradient goes through the norm. Without dropout. A row of zeros begins with a length
of zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import number
from trimtab.core.places import Site
from trimtab.core.trained import Delta, RankedMethod, put
from trimtab.formats import Dense
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields


@dataclass(frozen=True)
class Dora(RankedMethod):
    card: ClassVar = Card(
        id="dora",
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        paper="arXiv:2402.09353",
        fidelity="exact",
        beside=("lora",),
        claims=(
            Claim(
                "beats-lora-at-a-small-rank",
                "dora(rank=4, alpha=8.0)",
                "<",
                "lora(rank=4, alpha=8.0)",
                published="85.2 > 82.5 commonsense accuracy, Llama-3-8B",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; dora trains one number a row more",
            ),
        ),
    )

    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "DirectionDelta":
        change = fresh_product(weight, self.rank, self.alpha / self.rank, seen.generator)
        return DirectionDelta(change, _norms(weight.dense()))

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, self.alpha, use_dora=True)


class DirectionDelta(Delta):
    """A low-rank change of the direction of every row, and the lengths, magnitude [out]."""

    def __init__(self, change: LowRankDelta, magnitude: Tensor):
        super().__init__()
        self.change, self.magnitude = change, nn.Parameter(magnitude)

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            left, right = self.change.factors()
            lengths = _lengths(weight() + self.change.scale * (left @ right))
        moved: Tensor = product + self.change(x, product, weight)
        return self.magnitude / lengths * moved - product

    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        if not isinstance(weight, Dense):
            return None
        moved = weight.weight.double() + self.change.change()
        return Dense(((self.magnitude.detach() / _lengths(moved))[:, None] * moved).to(weight.weight.dtype))

    def portable(self) -> dict[str, Tensor]:
        return {**self.change.portable(), "lora_magnitude_vector": self.magnitude.detach()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        self.change.adopt(tensors)
        put(self.magnitude, tensors["lora_magnitude_vector"])


def _lengths(rows: Tensor) -> Tensor:
    """[out]; 1 for a row of zeros."""
    found = _norms(rows)
    return torch.where(found > 0, found, torch.ones_like(found))


def _norms(rows: Tensor) -> Tensor:
    """[out]. Of contiguous rows: those of a transposed matrix are summed in another order, and a fresh delta adds zero."""
    norms: Tensor = torch.linalg.vector_norm(rows.contiguous(), dim=1)
    return norms
