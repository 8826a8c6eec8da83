"""Compresso: a gate in front of every head and neuron is learned together with low-rank updates, under a budget.

    z = clip(1.2 sigmoid((logit u + a) / (2/3)) - 0.1, 0, 1),  u uniform,  P(z > 0) = sigmoid(a - (2/3) log(0.1 / 1.1))
    lowered: cross-entropy + m1 (s - t) + m2 (s - t)^2,  s the expected sparsity;  m1 and m2 rise by the same gradient
    t rises evenly from 0 to what is asked for, in the first `warm_up` of the search

When `searched` of the steps are taken, the choice is made: of every coupling the units of lowest a go, as many as are expected to
be shut, neurons making up what is missing to the budget. The others keep z without noise, clip(1.2 sigmoid(0.8 a / (2/3)) - 0.1),
folded into their consumer's columns, and the updates learn on. Updates go to queries and values ("qv") or to all matrices.
With `hidden`, one more gate stands before all that is written to the residual stream; the size that is expected to be left is the
mean P of its channels times the sum over couplings of cost P, embedding and head not counted. Its channels are chosen first. With
`prompt`, a text that tells the model what happens to it stands before every window, and is to stand before every text afterwards.
Guo et al., 2023 (arXiv:2310.05015). Different: no gates on whole blocks; the residual stream's gate and the prompt, which is in
our words, are off unless asked for; the width left is one that heads divide; one learning rate for the updates in both phases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, Untie
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import choice, count, flag, number, rate, text
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Role, Site, Unit, query_heads
from trimtab.core.taught import Pupil
from trimtab.formats.gates import DrawnGate, Fixed, Searcher
from trimtab.formats.stream_gate import WRITERS, StreamGate, Written, check_writers, cut
from trimtab.formats.taught import Updated
from trimtab.tensors.gates import hard_concrete, likely_open, reversed_, without_noise
from trimtab.tensors.schedules import between

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

FAR = math.log(100)  # how far a logit goes at most, either way
OPEN = {Unit.NEURON: math.log(0.99 / 0.01), Unit.KV_GROUP: 10.0}  # logits in the beginning
OPEN_STREAM = 10.0  # the same of the residual stream's: every block hears of a channel that is drawn shut
MULTIPLE = 8  # of which the width left is one
SPREAD = 0.01  # of neurons' logits, so that no two are alike
FEW = (Role.Q, Role.V, Role.QKV)
PROMPT = (
    "While you read this, some of your heads and neurons are being taken away for good. "
    "Help to find those that you can do without, and learn to say with the others what all of you would have said."
)


def _written(prompt: str) -> None:
    if "\0" in prompt:
        raise ValueError("a prompt is text, without NUL characters")


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
            Claim(
                "the-prompt-helps",
                f"compresso(steps=400, update='all', prompt={PROMPT!r})",
                "<",
                "compresso(steps=400, update='all')",
                note="both are judged without a prompt, on plain windows; not expected to show below a billion parameters",
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
    hidden: bool = flag("channels of the residual stream may go, too", False)
    prompt: str = text("stands before every window, and before every text afterwards; none if empty", "", _written)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one, of the updates", 4e-4, low=1e-8)

    def check(self) -> None:
        if self.hidden and self.of == "model":
            raise UsageError("compresso: hidden gates count coupled weights alone; leave of='coupled', or hidden out")

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        found, learners = seen[Separable], dict[Site, Learner]()
        consumers = {c.consumer.site for c in found.couplings}
        budget, stream = self.budget(found, found.couplings), self._stream(anatomy) if self.hidden else None
        for site in [*(anatomy.sites[:1] if stream else []), *self.sites(anatomy)]:
            weight, scale = anatomy.weight(site).dense(), self.alpha / self.rank
            if self._updates(site):
                learners[site] = Updated(weight, min(self.rank, *site.shape), scale, seen.generator)
            elif site in consumers or stream:
                learners[site] = Fixed(weight)
            if stream and site.role in WRITERS:
                learners[site] = Written(learners[site], stream, site.role)
        gates = [Concrete(c, anatomy.weight(c.consumer.site).dense().device, self.gate_rate, seen) for c in found.couplings]
        if stream:
            return Narrowed(learners, gates, budget, self, stream, anatomy)
        return Balanced(learners, gates, budget, self)

    def _stream(self, anatomy: "Anatomy") -> StreamGate:
        """Raises `ModelError` where the stream cannot be narrowed."""
        check_writers("compresso (hidden)", anatomy.sites, anatomy.bias)
        anatomy.gains("compresso (hidden)")  # raises where the stream's norms are no plain ones
        first = anatomy.sites[0]
        step, device = math.lcm(MULTIPLE, query_heads(anatomy.couplings())), anatomy.weight(first).dense().device
        return StreamGate(first.shape[1], step, OPEN_STREAM, self.gate_rate, device)

    def _updates(self, site: Site) -> bool:
        return site.role is not Role.EMBED and (self.update == "all" or site.role in FEW)

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
        return 1 - self.likely() / self.whole

    def likely(self) -> Tensor:
        """[]: the weights that are expected to stay."""
        return torch.stack([g.coupling.cost * likely_open(g.logits).sum() for g in self.concrete]).sum()

    def target(self) -> float:
        done = self.step / (self.method.searched * self.method.steps)
        return self.budget / self.whole * between(done, 0, self.method.warm_up)

    def choose(self) -> None:
        self.choose_units(self.budget)

    @torch.no_grad()
    def choose_units(self, budget: float) -> None:
        logits = [gate.logits.double() for gate in self.concrete]
        shut = [float((1 - likely_open(a)).sum()) for a in logits]
        self.close(logits, [([i], gate.coupling.cost * shut[i]) for i, gate in enumerate(self.concrete)], budget)

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), **({"prompt": self.method.prompt} if self.method.prompt else {})}


class Narrowed(Balanced):
    """With a gate on the residual stream besides: weights are an outer product of its channels and the couplings' units."""

    def __init__(
        self,
        learners: Mapping[Site, Learner],
        gates: Sequence[Concrete],
        budget: float,
        method: Compresso,
        stream: StreamGate,
        anatomy: "Anatomy",
    ):
        super().__init__(learners, gates, budget, method)
        self.stream, self.anatomy = stream, anatomy

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        super().before_step(step, optimizer)
        if not self.is_settled:
            self.stream.draw(self.seeds.at("stream", step))

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        with torch.no_grad():
            self.stream.logits.clamp_(-FAR, FAR)
        super().after_update(step, optimizer)

    def likely(self) -> Tensor:
        return likely_open(self.stream.logits).mean() * super().likely()

    def choose(self) -> None:
        left = 1 - self.budget / self.whole
        wanted = float(likely_open(self.stream.logits.detach().double()).sum())
        self.stream.settle(wanted, left * self.stream.width)
        self.choose_units(max(0.0, self.whole * (1 - left / self._part)))  # in weights of the whole width

    @property
    def _part(self) -> float:
        return self.stream.left / self.stream.width

    def edits(self) -> Edits:
        own, anatomy, gain = self.stands(), self.anatomy, self.anatomy.model.get_parameter
        weights = ((s, own[s].matrix().detach() if s in own else anatomy.weight(s).dense()) for s in anatomy.sites)
        norms = [(f"{n.path}.weight", gain(f"{n.path}.weight").detach(), n.offset) for n in anatomy.norms()]
        return [*([Untie()] if anatomy.tied else []), *cut(weights, norms, self.stream.keep), *self.cuts()]

    def notes(self) -> dict[str, Any]:
        gone = round(self.whole - (self.whole - sum(gate.gone for gate in self.gates)) * self._part)
        return {**super().notes(), "weights_gone": gone, "width": self.stream.left, "width_before": self.stream.width}
