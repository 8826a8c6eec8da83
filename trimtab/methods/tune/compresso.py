"""Compresso: a gate in front of every head and neuron is learned together with low-rank updates, under a budget.

    z = clip(1.2 sigmoid((logit u + a) / (2/3)) - 0.1, 0, 1),  u uniform,  P(z > 0) = sigmoid(a - (2/3) log(0.1 / 1.1))
    lowered: cross-entropy + m1 (s - t) + m2 (s - t)^2,  s the expected sparsity;  m1 and m2 rise by the same gradient
    t rises evenly from 0 to what is asked for, in the first `warm_up` of the search

When `searched` of the steps are taken, the choice is made: of every coupling the units of lowest a go, as many as are expected to
be shut, neurons making up what is missing to the budget. The others keep z without noise, clip(1.2 sigmoid(0.8 a / (2/3)) - 0.1),
folded into their consumer's columns, and the updates learn on. Updates go to queries and values ("qv") or to all matrices.
Guo et al., 2023 (arXiv:2310.05015). Different: no gates on the residual stream or on whole blocks; no prompt that tells the
model what happens to it, the calibration text being no instructions; one learning rate for the updates in both phases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import choice, count, number, rate
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Role, Site, Unit
from trimtab.core.taught import Pupil
from trimtab.formats.gates import DrawnGate, Fixed, Searcher
from trimtab.formats.taught import Updated
from trimtab.tensors.gates import hard_concrete, likely_open, reversed_, without_noise
from trimtab.tensors.schedules import between

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

FAR = math.log(100)  # how far a logit goes at most, either way
OPEN = {Unit.NEURON: math.log(0.99 / 0.01), Unit.KV_GROUP: 10.0}  # logits in the beginning
SPREAD = 0.01  # of neurons' logits, so that no two are alike
FEW = (Role.Q, Role.V, Role.QKV)


@dataclass(frozen=True)
class Compresso(NarrowingMethod):
    card: ClassVar = Card(
        id="compresso",
        title="Compresso: Structured Pruning with Collaborative Prompting Learns Compact Large Language Models",
        paper="arXiv:2310.05015",
        fidelity="variant",
        beside=("loraprune", "llm_pruner", "recover"),
        claims=(
            Claim(
                "beats-llm-pruner-at-20",
                "compresso(steps=400, update='all')",
                "<",
                "llm_pruner(sparsity=0.2) -> recover(steps=400)",
                published="+2.62 points in reading comprehension over the dense model, LLaMA-7B to 5.4 B",
                note="perplexity at equal size, steps and tokens; every matrix has an update",
                model="asset:own-5m",
            ),
        ),
    )

    searched: float = rate("of the steps in which gates are learned; in the rest they are fixed", 0.7, low=0.01)
    warm_up: float = rate("of the search in which the budget rises to what is asked for", 0.5)
    gate_rate: float = number("the highest learning rate of gates and multipliers", 0.1, low=1e-8)
    update: str = choice("which matrices get an update: queries and values, or all", "qv", ("qv", "all"))
    rank: int = count("of the update of a matrix, which is folded in", 8)
    alpha: float = number("the update is multiplied by alpha / rank", 8.0, low=0.001)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one, of the updates", 4e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        found, learners = seen[Separable], dict[Site, Learner]()
        consumers = {c.consumer.site for c in found.couplings}
        for site in self.sites(anatomy):
            weight, scale = anatomy.weight(site).dense(), self.alpha / self.rank
            if self._updates(site):
                learners[site] = Updated(weight, min(self.rank, *site.shape), scale, seen.generator)
            elif site in consumers:
                learners[site] = Fixed(weight)
        gates = [Concrete(c, anatomy.weight(c.consumer.site).dense().device, self.gate_rate, seen) for c in found.couplings]
        return Balanced(learners, gates, self.budget(found, found.couplings), self)

    def _updates(self, site: Site) -> bool:
        return self.update == "all" or site.role in FEW

    def trained(self, anatomy: "Anatomy") -> int:
        return sum(min(self.rank, *s.shape) * sum(s.shape) for s in self.sites(anatomy) if self._updates(s))


class Concrete(DrawnGate):
    """A hard concrete gate. logits: a, [units]."""

    def __init__(self, coupling: Coupling, device: torch.device, learning_rate: float, seen: Seen):
        super().__init__(coupling, device)
        start = torch.full((coupling.units,), OPEN[coupling.unit])
        if coupling.unit is Unit.NEURON:
            start += SPREAD * torch.randn(coupling.units, generator=seen.generator)
        self.logits = nn.Parameter(start.to(device))
        self.rates = {"logits": learning_rate}

    def values(self) -> Tensor:
        if bool(self.settled):
            return without_noise(self.logits.detach()) * self.keep
        return hard_concrete(self.logits, self.drawn)


class Balanced(Searcher):
    """first, second: the multipliers m1 and m2."""

    def __init__(self, learners: Mapping[Site, Learner], gates: Sequence[Concrete], budget: float, method: Compresso):
        super().__init__(learners, gates, budget, method, method.searched)
        self.concrete, self.method = list(gates), method
        device = gates[0].logits.device
        self.first, self.second = (nn.Parameter(torch.zeros((), device=device)) for _ in range(2))

    def rates(self) -> dict[str, float]:
        return {**super().rates(), "first": self.method.gate_rate, "second": self.method.gate_rate}

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        with torch.no_grad():
            for gate in self.concrete:
                gate.logits.clamp_(-FAR, FAR)
        super().after_update(step, optimizer)

    def penalty(self) -> Tensor | None:
        if self.is_settled:
            return None
        off = self.sparsity() - self.target()
        return reversed_(self.first) * off + reversed_(self.second) * off.square()

    def sparsity(self) -> Tensor:
        """[]: the fraction of the weights that is expected to go."""
        return 1 - torch.stack([g.coupling.cost * likely_open(g.logits).sum() for g in self.concrete]).sum() / self.whole

    def target(self) -> float:
        done = self.step / (self.method.searched * self.method.steps)
        return self.budget / self.whole * between(done, 0, self.method.warm_up)

    @torch.no_grad()
    def choose(self) -> None:
        logits = [gate.logits.double() for gate in self.concrete]
        shut = [float((1 - likely_open(a)).sum()) for a in logits]
        self.close(logits, [([i], gate.coupling.cost * shut[i]) for i, gate in enumerate(self.concrete)], self.budget)
