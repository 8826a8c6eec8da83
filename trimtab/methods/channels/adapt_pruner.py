"""Adapt-Pruner, the one-shot part: many small steps, and in each the blocks that turn the stream least lose most.

In every step the model as it is then is looked at: importance of a block imp = -mean_t cos(entering_t, leaving_t), centred over
the blocks and divided by its largest size; a block loses  step - amplitude * imp  of the channels that it had at first, in
each of its matrices the units of least  sum |w g|  over all their weights (first-order Taylor, as in `llm_pruner`).
Pan et al., 2025 (arXiv:2502.03460), without the training between the steps. Different: what is less than a whole unit
is carried to the next step, and as many steps as the budget is worth divide it evenly; the last one makes it exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ChannelMethod, LinearWeight, Original, Pools, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Coupling
from trimtab.stats import BlockCosine, Gradient
from trimtab.tensors.saliency import taylor


@dataclass(frozen=True)
class AdaptPruner(ChannelMethod):
    card: ClassVar = Card(
        id="adapt_pruner",
        title="Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training",
        paper="arXiv:2502.03460",
        fidelity="variant",
        beside=("llm_pruner", "flap", "shortgpt"),
        claims=(
            Claim("beats-llm-pruner-at-40", "adapt_pruner(sparsity=0.4)", "<", "llm_pruner(sparsity=0.4)"),
            Claim(
                "adapting-helps-at-40",
                "adapt_pruner(sparsity=0.4)",
                "<",
                "adapt_pruner(sparsity=0.4, amplitude=0.0)",
                note="the same steps with every block losing the same",
            ),
        ),
    )
    needs: ClassVar = (Original, Gradient, BlockCosine)

    steps: int = count("steps in which all channels would be gone; a budget takes that part of them", 50, high=1000)
    amplitude: float = number("by how much a step differs between blocks", 0.02, low=0.0, high=1.0)
    windows: int = count("calibration windows that are looked at in every step", 10)

    def check(self) -> None:
        if self.uniform:
            raise UsageError("adapt_pruner gives every block a width of its own; leave uniform out, or use llm_pruner")

    def rounds(self) -> int:
        return max(1, ceil(self.sparsity * self.steps))

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        worth = [m.of_units(taylor(seen[Original][m.site], seen[Gradient][m.site], None)).sum(1) for m in coupling.members]
        return torch.stack(worth).sum(0)

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        importance = -seen[BlockCosine].double()  # [blocks]
        importance = importance - importance.mean()
        importance = importance / importance.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return [([c], max(0.0, sparsity - self.amplitude * float(importance[c.block]))) for c in couplings]
