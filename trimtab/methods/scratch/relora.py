"""ReLoRA: the matrix stands still while a low-rank change of it is trained, which is folded in and begun anew again and again.

W = base + (alpha / rank) left @ right. For the first `full` part of the steps the base itself is trained. Then left = 0,
right Kaiming-uniform, and every `every` steps the product goes into the base, both begin anew, the optimizer forgets them, and
the next updates are small ones. Lialin et al., ICLR 2024. Different: the optimizer forgets everything, not nine tenths of it, and
what rises again after a restart is the size of these parts' updates alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card
from trimtab.core.knobs import count, number, rate
from trimtab.core.places import Site
from trimtab.core.scratch import Renewed, Rounds, ScratchMethod, Structure, fixed, rest
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook, check_rank
from trimtab.formats.dense import Dense


@dataclass(frozen=True)
class ReLoRA(ScratchMethod):
    card: ClassVar = Card(
        id="relora",
        title="ReLoRA: High-Rank Training Through Low-Rank Updates",
        paper="arXiv:2307.05695",
        fidelity="variant",
        beside=("sltrain", "galore", "lora"),
        baseline=True,
    )

    rank: int = count("inner dimension of the change", 64)
    alpha: float = number("the change is multiplied by alpha / rank", 32.0, low=0.001)
    every: int = count("steps between restarts", 200)
    warm_up: int = count("small steps after a restart", 20, low=0)
    full: float = rate("part of the steps, at the beginning, in which the whole matrix is trained", 0.2)

    def fits(self, site: Site) -> None:
        check_rank(self.card.id, self.rank, site)

    def numbers(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "Restarted":
        return Restarted(weight, self.rank, self.alpha / self.rank, generator)

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> "Restarts":
        own = cast(Mapping[str, Restarted], structures)
        full = round(self.full * steps)
        return Restarts(own, full, Rounds(own, self.every, self.warm_up, seeds, full))


class Restarted(Renewed):
    """base [out, in] + scale * left [out, rank] @ right [rank, in]."""

    def __init__(self, base: Tensor, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        (out, inputs), device = base.shape, base.device
        self.base, self.scale = fixed(base.clone()), scale
        self.left = nn.Parameter(torch.zeros(out, rank, device=device))
        self.right = nn.Parameter(_fresh(rank, inputs, generator).to(device))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.base.T + self.scale * (x @ self.right.T @ self.left.T)

    def matrix(self) -> Tensor:
        return self.base + self.scale * self.left @ self.right

    def result(self) -> Dense:
        return Dense(self.matrix().detach())

    def parts(self) -> list[nn.Parameter]:
        return [self.left, self.right]

    @torch.no_grad()
    def renew(self, generator: torch.Generator, time: int) -> None:
        self.base.copy_(self.matrix())
        self.left.zero_()
        self.right.copy_(_fresh(*self.right.shape, generator))


class Restarts(Hook):
    """Trains the bases for the first `full` steps, and from then on the changes of them, in rounds."""

    def __init__(self, structures: Mapping[str, Restarted], full: int, rounds: Rounds):
        self.structures, self.full, self.rounds = structures.values(), full, rounds

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        for structure in self.structures:
            base, parts = [structure.base], structure.parts()
            still, moving = (parts, base) if step < self.full else (base, parts)
            rest(optimizer, still)
            for parameter in moving:
                parameter.requires_grad_()
        self.rounds.before_step(step, optimizer)

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        self.rounds.before_update(step, optimizer)

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        self.rounds.after_update(step, optimizer)


def _fresh(rank: int, inputs: int, generator: torch.Generator) -> Tensor:
    """[rank, in] within +-1/sqrt(in)."""
    bound = 1 / sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
