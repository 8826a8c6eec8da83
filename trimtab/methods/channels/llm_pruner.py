"""LLM-Pruner: remove the units that the loss would miss least, by its gradient on a few windows of text.

Importance of a weight, with g the mean gradient and F the mean squared gradient of a window:  |w g| ("param_first"),
w^2 F / 2 ("param_second"), |w g - w^2 F / 2| ("param_mix"); summed over the unit's weights in each matrix.  "vectorize" is
|sum w g| instead. Then the matrices of the unit are joined: their sum, mean, largest or product, or the first of them alone.
Ma et al., NeurIPS 2023 (arXiv:2305.11627), without the tuning afterwards. The first and last blocks are left alone and the
others lose so much more that the budget is met. The factor 1/2 of "param_second" ranks alike. Memory: of gradients, only
those of one block are ever held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ChannelMethod, LinearWeight, Original, Pools, Seen
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Coupling, Member
from trimtab.stats import Fisher, Gradient
from trimtab.tensors.saliency import taylor


@dataclass(frozen=True)
class LLMPruner(ChannelMethod):
    card: ClassVar = Card(
        id="llm_pruner",
        title="LLM-Pruner: On the Structural Pruning of Large Language Models",
        paper="arXiv:2305.11627",
        fidelity="exact",
        beside=("flap", "wanda_sp", "magnitude_sp"),
        claims=(
            Claim(
                "beats-magnitude-sp-at-20",
                "llm_pruner(sparsity=0.2)",
                "<",
                "magnitude_sp(sparsity=0.2)",
                note="the paper's ablation of the importance, before tuning",
            ),
        ),
    )
    needs: ClassVar = (Original, Gradient, Fisher)

    importance: str = choice("what a weight is worth", "param_first", ("param_first", "param_second", "param_mix", "vectorize"))
    join: str = choice("how the matrices of a unit are joined", "sum", ("sum", "mean", "max", "prod", "first"))
    compete: str = choice("whose units compete: those of one matrix, or of the model", "matrix", ("matrix", "model"))
    first: float = rate("fraction of the blocks at the front that is left alone", 0.125, high=0.5)
    last: float = rate("fraction of the blocks at the end that is left alone", 0.0625, high=0.5)
    windows: int = count("calibration windows that gradients are taken of", 10)

    def check(self) -> None:
        if self.uniform and (self.first or self.last):
            raise UsageError("llm_pruner: uniform widths leave no block alone; add first=0.0 and last=0.0, or leave uniform out")

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        members = coupling.members[:1] if self.join == "first" else coupling.members
        worth = torch.stack([self._worth(member, seen) for member in members])  # [members, units]
        if self.join == "prod":
            return worth.clamp_min(torch.finfo(torch.float64).tiny).log().sum(0)  # ranks as the product does
        return {"max": worth.amax(0), "mean": worth.mean(0)}.get(self.join, worth.sum(0))

    def _worth(self, member: Member, seen: Seen) -> Tensor:
        """[units] of one matrix."""
        weight, gradient, fisher = (seen[need][member.site] for need in self.needs)
        if self.importance == "vectorize":
            return member.of_units(weight.double() * gradient.double()).sum(1).abs()
        used = None if self.importance == "param_second" else gradient, None if self.importance == "param_first" else fisher
        return member.of_units(taylor(weight, *used)).sum(1)

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        depth = max(c.block for c in couplings) + 1
        open_ = [c for c in couplings if int(self.first * depth) <= c.block < depth - int(self.last * depth)]
        raised = sparsity * _weights(couplings) / max(_weights(open_), 1)
        if raised >= 1:
            raise UsageError("llm_pruner: what may be pruned holds less than what shall go; lower first, last or sparsity")
        return [(open_, raised)] if self.compete == "model" else [([c], raised) for c in open_]


def _weights(couplings: Sequence[Coupling]) -> int:
    return sum(c.cost * c.units for c in couplings)
