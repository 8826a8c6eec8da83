"""Coupled channels that close while the model learns.

A unit is silent as soon as its consumer's columns are multiplied by zero, whatever its rows say, their biases included. So one
gate per coupling, in front of the matrix that reads it, makes the model that will be left; what rows and columns of it are then
worth nothing is cut out once, at the end. Gates are buffers or parameters of the pupil, which survive a kill.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.edits import Edits, Narrow
from trimtab.core.kinds import Learner
from trimtab.core.narrowing import NarrowingMethod
from trimtab.core.places import Coupling, Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Training
from trimtab.formats.dense import Dense
from trimtab.formats.taught import Reader
from trimtab.tensors.budget import Pools, keep_alike, keep_on


class Gate(nn.Module):
    """What the units of a coupling are multiplied by. keep: [units] bool, True = survives."""

    keep: Tensor

    def __init__(self, coupling: Coupling, device: torch.device):
        super().__init__()
        self.coupling = coupling
        self.rates: Mapping[str, float] = {}
        self.register_buffer("keep", torch.ones(coupling.units, dtype=torch.bool, device=device))
        indices = coupling.consumer.indices
        unit = torch.empty(coupling.consumer.site.shape[1], dtype=torch.int64)
        unit[indices] = torch.arange(len(indices)).unsqueeze(1).expand_as(indices)
        self.unit = unit.to(device)  # of every column

    def values(self) -> Tensor:
        """[units] float32, through which gradients may flow; exactly zero where a unit does not survive, once that is settled."""
        return self.keep.float()

    def columns(self) -> Tensor:
        """[in]: what every column of the consumer is multiplied by."""
        return self.values()[self.unit]

    @property
    def gone(self) -> int:
        """Weights that vanish."""
        return self.coupling.cost * int((~self.keep).sum())


class DrawnGate(Gate):
    """A gate that is a matter of chance until it is settled. drawn: [units] uniform in (0, 1), anew for every step."""

    drawn: Tensor
    settled: Tensor

    def __init__(self, coupling: Coupling, device: torch.device):
        super().__init__(coupling, device)
        self.register_buffer("drawn", torch.full((coupling.units,), 0.5, device=device))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool, device=device))

    def draw(self, generator: torch.Generator) -> None:
        few = torch.finfo(torch.float32).eps
        self.drawn.copy_(torch.rand(self.drawn.shape, generator=generator).clamp(few, 1 - few))


class Gated(Learner):
    """Another learner's matrix, whose columns a gate opens and closes."""

    def __init__(self, inner: Learner, gate: Gate):
        super().__init__()
        self.inner, self.gate = inner, gate
        own = getattr(inner, "rates", {})
        self.rates = {f"inner.{n}": r for n, r in own.items()} | {f"gate.{n}": r for n, r in gate.rates.items()}

    def matrix(self) -> Tensor:
        return self.inner.matrix() * self.gate.columns()

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


class Fixed(Learner):
    """W [out, in] float32 as it is: nothing of it is trained."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.rates, self.weight = {}, weight

    def matrix(self) -> Tensor:
        return self.weight

    def result(self) -> Dense:
        return Dense(self.weight)


class Narrower(Reader):
    """Learns to say the next token while gates close.

    inner: what stands for the matrices, those of the gates' consumers among them; where a consumer is missing, it stays as it
    is behind its gate. budget: weights that shall be gone in the end. uniform: gates of one kind keep equally many units.
    """

    def __init__(
        self,
        inner: Mapping[Site, Learner],
        gates: Sequence[Gate],
        budget: float,
        own: Sequence[str] = (),
        uniform: bool = False,
    ):
        behind = {gate.coupling.consumer.site: gate for gate in gates}
        super().__init__({s: Gated(learner, behind[s]) if s in behind else learner for s, learner in inner.items()}, own)
        self.inner, self.gates, self.budget, self.uniform = dict(inner), list(gates), budget, uniform

    @torch.no_grad()
    def close(self, scores: Sequence[Tensor], asked: Pools, budget: float) -> None:
        """Closes the units of lowest score, [units] for every gate, until `budget` weights are gone, as nearly as whole units
        allow. asked: gates that compete, by number, and the weights that each such pool loses; of uniform gates their kinds
        compete, and are asked for as much together. What is closed stays closed."""
        ranked = [score.masked_fill(~gate.keep, -torch.inf) for score, gate in zip(scores, self.gates, strict=True)]
        costs = [gate.coupling.cost for gate in self.gates]
        if self.uniform:
            kinds = [(g.coupling.unit, g.coupling.cost, g.coupling.units) for g in self.gates]
            keeps = keep_alike(ranked, costs, kinds, asked, budget)
        else:
            keeps = keep_on(ranked, costs, asked, budget)
        for gate, keep in zip(self.gates, keeps, strict=True):
            gate.keep.copy_(keep)

    def edits(self) -> Edits:
        return [*super().edits(), *self.cuts()]

    def cuts(self) -> Edits:
        return [Narrow(gate.coupling, gate.keep) for gate in self.gates if not bool(gate.keep.all())]

    def notes(self) -> dict[str, Any]:
        last = [gate.coupling.name for gate in self.gates if int(gate.keep.sum()) == 1]
        gone = sum(gate.gone for gate in self.gates)
        return {"weights_asked": round(self.budget), "weights_gone": gone, **({"last_unit_kept": last} if last else {})}


class Ranker(Narrower, ABC):
    """Remembers step by step what units are worth, S <- memory S + (1 - memory) now, and closes those of least worth every so
    many steps, and after the last one. worth: S of every gate's units, one after the other, float64."""

    worth: Tensor

    def __init__(
        self,
        inner: Mapping[Site, Learner],
        gates: Sequence[Gate],
        budget: float,
        method: NarrowingMethod,
        memory: float,
        every: int,
        own: Sequence[str] = (),
    ):
        super().__init__(inner, gates, budget, own, method.uniform)
        self.steps, self.memory, self.every = method.steps, memory, every
        units, device = sum(gate.coupling.units for gate in gates), gates[0].keep.device
        self.register_buffer("worth", torch.zeros(units, dtype=torch.float64, device=device))

    @abstractmethod
    def of_units(self, coupling: Coupling) -> Tensor:
        """[units] float64, from the gradients that are there now."""

    @abstractmethod
    def part(self, done: float) -> float:
        """Of the budget that shall be gone when this fraction of the steps is taken."""

    @abstractmethod
    def shrink(self, part: float) -> None:
        """Closes units until this part of the budget is gone."""

    def remembered(self) -> Sequence[Tensor]:
        """[units] of every gate."""
        return torch.split(self.worth, [gate.coupling.units for gate in self.gates])

    @torch.no_grad()
    def before_update(self, step: int, optimizer: Optimizer) -> None:
        now = torch.cat([self.of_units(gate.coupling) for gate in self.gates])
        self.worth.mul_(self.memory).add_(now, alpha=1 - self.memory)

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        taken = step + 1
        if taken == self.steps:
            self.shrink(1.0)
        elif taken % self.every == 0:
            self.shrink(self.part(taken / self.steps))


class Searcher(Narrower, ABC):
    """Learns gates for a part of the steps, `search`, and then chooses; what is chosen stands for the rest of them."""

    def __init__(
        self,
        inner: Mapping[Site, Learner],
        gates: Sequence[DrawnGate],
        budget: float,
        method: NarrowingMethod,
        search: float,
    ):
        super().__init__(inner, gates, budget, uniform=method.uniform)
        self.drawn, self.steps, self.search, self.step = list(gates), method.steps, search, 0
        self.seeds = Seeds()
        self.whole = sum(gate.coupling.cost * gate.coupling.units for gate in gates)

    @abstractmethod
    def choose(self) -> None:
        """Closes who goes."""

    @property
    def is_settled(self) -> bool:
        return bool(self.drawn[0].settled)

    def begin(self, training: Training) -> None:
        self.seeds = training.seeds

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        self.step = step
        if not self.is_settled and step >= self.search * self.steps:
            self.settle()
        if not self.is_settled:
            for number, gate in enumerate(self.drawn):
                gate.draw(self.seeds.at("gates", step, number))

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        if step + 1 == self.steps and not self.is_settled:
            self.settle()

    def settle(self) -> None:
        self.choose()
        for gate in self.drawn:
            gate.settled.fill_(True)


def alike(gates: Sequence[Gate]) -> Pools:
    """Every gate for itself, each losing the same fraction; budgets in proportion, to be scaled."""
    return [([number], float(gate.coupling.cost * gate.coupling.units)) for number, gate in enumerate(gates)]


def scaled(pools: Pools, budget: float) -> Pools:
    """The same pools with budgets that add up to `budget`."""
    whole = sum(cost for _, cost in pools)
    return [(members, cost * budget / whole) for members, cost in pools]
