"""HUT: every weight is multiplied by a number, and these numbers are one plus a product of two thin matrices.

W * (1 + B A), element by element; A uniform within 1 / sqrt(in) of zero, B zero, so that all numbers are one at first. The
change has a rank that no product of this size has, zeros stay zeros, and the changed matrix is made once a step, whatever the
number of tokens. Zhang et al. 2024, the form without an additive part; peft has it as HiRA.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.places import Site
from trimtab.core.trained import Delta, RankedMethod, put
from trimtab.formats import Dense
from trimtab.formats.deltas import LowRankDelta, added, fresh_product


@dataclass(frozen=True)
class Hut(RankedMethod):
    card: ClassVar = Card(
        id="hut",
        title="HUT: A More Computation Efficient Fine-Tuning Method With Hadamard Updated Transformation",
        paper="arXiv:2409.13501",
        fidelity="reconstructed",
        beside=("lora", "bone"),
        claims=(
            Claim(
                "beats-lora",
                "hut(rank=8)",
                "<",
                "lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
        ),
    )
    usual_rate: ClassVar = 1e-3

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "ElementwiseDelta":
        return ElementwiseDelta(fresh_product(weight, self.rank, 1.0, seen.generator))

    def portable(self) -> dict[str, Any]:
        return {"peft_type": "HIRA", "r": self.rank, "hira_dropout": 0.0}


class ElementwiseDelta(Delta):
    """weight * factor, factor of low rank and zero at first."""

    def __init__(self, factor: LowRankDelta):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        left, right = self.factor.factors()
        return F.linear(x, weight() * (left @ right))

    @torch.no_grad()
    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return added(weight, weight.weight.double() * self.factor.change()) if isinstance(weight, Dense) else None

    def portable(self) -> dict[str, Tensor]:
        return {"hira_A": self.factor.right.detach(), "hira_B": self.factor.left.detach()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.factor.right, tensors["hira_A"])
        put(self.factor.left, tensors["hira_B"])
