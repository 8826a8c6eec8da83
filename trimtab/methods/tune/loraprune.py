"""LoRAPrune: heads and neurons go while low-rank updates learn, chosen by the gradients of these updates alone.

With W + s B A, s = alpha / rank, and g the gradients of a step:

    G = g_B A + B g_A - g_B g_A,    importance of a weight  |G (W + s B A)|,    of a unit: the sum over its rows or columns

Each matrix's vector of units is divided by its norm, the matrices of a coupling are added, and S <- memory S + (1 - memory) of
that, step by step. Every `every` steps the units of least S close, the same fraction in all open blocks; that fraction rises
as 1 - (1 - t)^3 between `warm_up` and 1 - `warm_up` of the steps. The first blocks and the last one are left alone, and the
others lose so much more that the budget is met. "magnitude" takes |W + s B A| for the importance of a weight.
Zhang et al., Findings of ACL 2024 (arXiv:2305.18403). Different: no dropout; gradients are those that the step clips, which
scales the term g_B g_A; whole key-value groups are the unit. A last choice makes the budget exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.knobs import choice, count, number, rate
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Member, Site
from trimtab.core.taught import Pupil
from trimtab.formats.gates import Gate, Ranker, alike, scaled
from trimtab.formats.taught import Updated
from trimtab.tensors.schedules import between, cubic

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class LoRAPrune(NarrowingMethod):
    card: ClassVar = Card(
        id="loraprune",
        title="LoRAPrune: Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning",
        paper="arXiv:2305.18403",
        fidelity="variant",
        beside=("llm_pruner", "adapt_pruner", "recover"),
        claims=(
            Claim(
                "beats-llm-pruner-at-50",
                "loraprune(sparsity=0.5, steps=300)",
                "<",
                "llm_pruner(sparsity=0.5) -> recover(steps=300, learning_rate=0.0003)",
                published="30.12 < 38.12, LLaMA-7B, WikiText2",
                note="equal steps, tokens, rank and rate",
                model="asset:own-5m",
            ),
            Claim(
                "gradients-beat-magnitude-at-50",
                "loraprune(sparsity=0.5, steps=300)",
                "<",
                "loraprune(sparsity=0.5, steps=300, criterion='magnitude')",
                note="the paper's ablation of the criterion",
                model="asset:own-5m",
            ),
        ),
    )

    criterion: str = choice("what a weight is worth", "lora", ("lora", "magnitude"))
    rank: int = count("of the update of every matrix, which is folded in", 8)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    memory: float = rate("of earlier steps in what a unit is worth", 0.9, high=0.999)
    warm_up: float = rate("of the steps before anything goes, and as many after everything is gone", 0.1, high=0.5)
    every: int = count("steps after which units close", 10)
    first: float = rate("fraction of the blocks at the front that is left alone", 0.1, high=0.5)
    last: int = count("blocks at the end that are left alone", 1, 0)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 3e-4, low=1e-8)

    def check(self) -> None:
        if self.uniform and (self.first or self.last):
            raise UsageError("loraprune: uniform widths leave no block alone; add first=0.0 and last=0, or leave uniform out")

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners = {}
        for site in self.sites(anatomy):
            weight, scale = anatomy.weight(site).dense(), self.alpha / self.rank
            learners[site] = Updated(weight, min(self.rank, *site.shape), scale, seen.generator)
        open_ = [c for c in seen[Separable].couplings if self._is_open(c.block, len(anatomy.blocks))]
        return Pruner(learners, open_, self.budget(seen[Separable], open_), self)

    def _is_open(self, block: int, depth: int) -> bool:
        return int(self.first * depth) <= block < depth - self.last

    def trained(self, anatomy: "Anatomy") -> int:
        return sum(min(self.rank, *s.shape) * sum(s.shape) for s in self.sites(anatomy))


class Pruner(Ranker):
    def __init__(self, learners: Mapping[Site, Updated], open_: Sequence[Coupling], budget: float, method: LoRAPrune):
        device = next(iter(learners.values())).weight.device
        super().__init__(learners, [Gate(c, device) for c in open_], budget, method, method.memory, method.every)
        self.updates, self.method = dict(learners), method

    def part(self, done: float) -> float:
        return cubic(between(done, self.method.warm_up, 1 - self.method.warm_up))

    def shrink(self, part: float) -> None:
        self.close(self.remembered(), scaled(alike(self.gates), part * self.budget), part * self.budget)

    def of_units(self, coupling: Coupling) -> Tensor:
        found = [self._of_member(member) for member in coupling.members]
        return torch.stack([worth / worth.norm().clamp_min(torch.finfo(worth.dtype).tiny) for worth in found]).sum(0)

    def _of_member(self, member: Member) -> Tensor:
        learner = self.updates[member.site]
        worth = learner.matrix().double().abs()
        if self.method.criterion == "lora":
            worth = worth * surrogate(learner).double().abs()
        return member.of_units(worth).sum(1)


def surrogate(learner: Updated) -> Tensor:
    """[out, in] float32: what a step of gradient descent at rate 1 takes off the product B A, from its factors' gradients."""
    left, right = learner.left.grad, learner.right.grad
    assert left is not None
    assert right is not None
    return left @ learner.right + (learner.left - left) @ right
