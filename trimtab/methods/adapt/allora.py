"""ALLoRA: LoRA in which a row of B moves the faster the closer it still is to zero; neither alpha nor dropout.

y = W x + B A x. Row i of B is given the rate 1 / sqrt(||B_i|| + 1 / eta^2) times the common one: a row of zeros moves eta
times as fast. Huang & Balestriero 2024, the rule from the card, where the norm is not squared. Different: the rate acts on B
only, not also on what flows through B to A; and by default on the step that the optimizer takes, since Adam divides a
constant factor of the gradient out again ("gradient" is the published place).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, number
from trimtab.core.places import Site
from trimtab.core.trained import Delta, Hook, RankedMethod
from trimtab.formats.deltas import LowRankDelta, fresh_product, lora_fields


@dataclass(frozen=True)
class Allora(RankedMethod):
    card: ClassVar = Card(
        id="allora",
        title="ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws",
        paper="arXiv:2410.09692",
        fidelity="reconstructed",
        beside=("lora",),
        claims=(
            Claim(
                "beats-lora",
                "allora(rank=8)",
                "<",
                "lora(rank=8, alpha=16.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k in few steps, equal trained parameters",
            ),
        ),
    )

    eta: float = number("how many times as fast a row of zeros moves", 2.0, low=1.0, high=100.0)
    acts_on: str = choice("what the rates multiply", "step", ("step", "gradient"))

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        return fresh_product(weight, self.rank, 1.0, seen.generator)

    def hook(self, deltas: Mapping[Site, Delta]) -> "Rates":
        lefts = [delta.left for delta in deltas.values() if isinstance(delta, LowRankDelta)]
        return Rates(lefts, self.eta, self.acts_on == "gradient")

    def portable(self) -> dict[str, Any]:
        return lora_fields(self.rank, float(self.rank))


class Rates(Hook):
    """Multiplies the gradients of `lefts` [out, rank], or the steps that they take, row by row."""

    def __init__(self, lefts: Sequence[Tensor], eta: float, of_gradients: bool):
        self.lefts, self.eta, self.of_gradients = lefts, eta, of_gradients
        self.before: list[Tensor] = []

    @torch.no_grad()
    def before_update(self, step: int, optimizer: Optimizer) -> None:
        if not self.of_gradients:
            self.before = [left.clone() for left in self.lefts]
            return
        for left in self.lefts:
            if left.grad is not None:
                left.grad *= rates(left, self.eta)

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for left, before in zip(self.lefts, self.before, strict=not self.of_gradients):
            left.copy_(before + rates(before, self.eta) * (left - before))
        self.before = []


def rates(left: Tensor, eta: float) -> Tensor:
    """[out, 1]: how many times as fast each row moves."""
    norms: Tensor = torch.linalg.vector_norm(left, dim=1, keepdim=True)
    return torch.rsqrt(norms + eta**-2)
