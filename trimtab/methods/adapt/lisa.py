"""LISA: all weights are trained, but only a few blocks at a time, drawn anew every few steps.

Embedding, head and final norm are always trained (`outer`); of the blocks `active` are, uniformly drawn, for `every` steps.
Pan et al., NeurIPS 2024, in its practical version. What the optimizer knows of a block is forgotten when the block leaves,
so memory is that of the active ones; the authors' code keeps it. The draw depends on the seed and the step alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.knobs import count, flag
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook, ScheduleMethod

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class Lisa(ScheduleMethod):
    card: ClassVar = Card(
        id="lisa",
        title="LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
        paper="arXiv:2403.17919",
        fidelity="variant",
        beside=("lora", "s2ft"),
        claims=(
            Claim(
                "beats-lora",
                "lisa(active=2)",
                "<",
                "lora(rank=64, alpha=64.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; gradients and optimizer states of about the same size",
            ),
        ),
    )
    usual_rate: ClassVar = 5e-5

    active: int = count("how many blocks are trained at a time", 2)
    every: int = count("steps between draws", 20)
    outer: bool = flag("embedding, head and final norm are trained, too", True)

    def trains(self, anatomy: "Anatomy") -> list[str]:
        inside = anatomy.blocks_path + "."
        return [name for name, _ in anatomy.model.named_parameters() if self.outer or name.startswith(inside)]

    def hook(self, anatomy: "Anatomy", seeds: Seeds) -> "Draws":
        return Draws(list(anatomy.blocks), self.active, self.every, seeds)


class Draws(Hook):
    """Which of the blocks want a gradient, step by step."""

    def __init__(self, blocks: Sequence[nn.Module], active: int, every: int, seeds: Seeds):
        self.blocks, self.active, self.every, self.seeds = blocks, active, every, seeds

    def chosen(self, step: int) -> list[int]:
        """The blocks that are trained in this step, ascending."""
        draw = self.seeds.at("lisa", step // self.every)
        return sorted(torch.randperm(len(self.blocks), generator=draw)[: self.active].tolist())

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        chosen = self.chosen(step)
        for index, block in enumerate(self.blocks):
            for parameter in block.parameters():
                parameter.requires_grad_(index in chosen)
                if index not in chosen:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)
