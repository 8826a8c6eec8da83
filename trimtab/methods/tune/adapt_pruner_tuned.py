"""Adapt-Pruner tuned, with the training between its steps: a little goes, the whole model learns, a little more goes.

At the first step of each of `stages` equal parts of the training, importance of a block is imp = -mean_t cos(entering_t,
leaving_t), centred over the blocks and divided by its largest size; a block shall then have lost  (1 - amplitude imp) / stages
of the budget's fraction more than before, the units of least  sum |w g|  over all their weights, g the gradient of that step.
The optimizer goes on with what it knows of the units that stay, and one learning-rate curve spans all stages.
Pan et al., 2025 (arXiv:2502.03460), "Adapt-Accel". Different: the calibration windows of a stage are those of its first
training step; one cut a stage, where the paper cuts many small ones; equal stages. What leaves the last block is taken from
behind the final norm, without its gain: the same direction, but for what a layer norm takes off. stages = 1 prunes once.
With `uniform` all blocks lose the same, whatever the amplitude.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, number
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Site
from trimtab.core.taught import Pupil, Said, gains
from trimtab.formats.gates import Gate, Narrower
from trimtab.formats.taught import Free
from trimtab.tensors.saliency import taylor

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class AdaptPrunerTuned(NarrowingMethod):
    card: ClassVar = Card(
        id="adapt_pruner_tuned",
        title="Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training",
        paper="arXiv:2502.03460",
        fidelity="variant",
        beside=("adapt_pruner", "loraprune", "recover"),
        claims=(
            Claim(
                "stages-beat-pruning-once-at-50",
                "adapt_pruner_tuned(sparsity=0.5, steps=300)",
                "<",
                "adapt_pruner_tuned(sparsity=0.5, steps=300, stages=1)",
                note="equal steps and tokens; one stage removes everything first",
                model="asset:own-5m",
            ),
        ),
    )

    stages: int = count("equal parts of the training, before each of which something goes", 10)
    amplitude: float = number("by how much of it a stage's cut differs between blocks, at most", 1.0, low=0.0, high=1.0)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 1e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners = {site: Free(anatomy.weight(site).dense()) for site in self.sites(anatomy)}
        found = seen[Separable]
        budget = self.budget(found, found.couplings)
        return Interleaved(learners, found.couplings, budget, gains(anatomy), _Ending.of(anatomy), self)


@dataclass(frozen=True)
class _Ending:
    """What the final norm multiplies by, and adds, [width] each."""

    gain: Tensor
    shift: Tensor

    @classmethod
    def of(cls, anatomy: "Anatomy") -> "_Ending":
        norm = anatomy.norms()[-1]
        module = anatomy.model.get_submodule(norm.path)
        weight = module.weight
        assert isinstance(weight, Tensor)
        gain = weight.detach() + norm.offset
        bias = getattr(module, "bias", None)
        return cls(gain, torch.zeros_like(gain) if bias is None else bias.detach())

    def before(self, y: Tensor) -> Tensor:
        """The direction [..., width] of what the norm was given."""
        return (y - self.shift) / torch.where(self.gain == 0, 1.0, self.gain)


class Interleaved(Narrower):
    """owed: [gates] float64, the weights that every coupling shall have lost by now."""

    owed: Tensor

    def __init__(
        self,
        learners: Mapping[Site, Free],
        couplings: Sequence[Coupling],
        budget: float,
        own: Sequence[str],
        ending: _Ending,
        method: AdaptPrunerTuned,
    ):
        device = next(iter(learners.values())).weight.device
        super().__init__(learners, [Gate(c, device) for c in couplings], budget, own, method.uniform)
        self.free, self.ending, self.method = dict(learners), ending, method
        self.register_buffer("owed", torch.zeros(len(couplings), dtype=torch.float64, device=device))
        parts = min(method.stages, method.steps)
        self.behind = {number * method.steps // parts: number + 1 for number in range(parts)}  # step -> stages
        self.cosines: list[Tensor] = []  # of the windows of the step under way, [blocks] each
        self.looks = False

    @property
    def hidden(self) -> bool:  # type: ignore[override]
        """Only where a step is one that cuts."""
        return self.looks

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        self.looks = step in self.behind
        self.cosines = []

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        if said.hidden:
            self.cosines.append(self._cosines(said.hidden))
        return super().loss(said, taught, ids, share)

    @torch.no_grad()
    def _cosines(self, hidden: Sequence[Tensor]) -> Tensor:
        states = [*hidden[:-1], self.ending.before(hidden[-1])]
        return torch.stack([F.cosine_similarity(a.float(), b.float(), dim=-1).double().mean() for a, b in pairwise(states)])

    @torch.no_grad()
    def before_update(self, step: int, optimizer: Optimizer) -> None:
        if step not in self.behind:
            return
        part = 1 / len(self.behind)
        losing = part * (1 - self.method.amplitude * importance(torch.stack(self.cosines).mean(0)))  # [blocks]
        whole = sum(gate.coupling.cost * gate.coupling.units for gate in self.gates)
        for i, gate in enumerate(self.gates):
            own = gate.coupling.cost * gate.coupling.units
            self.owed[i] += losing[gate.coupling.block].clamp_min(0) * self.budget * own / whole
        asked = [([i], float(cost)) for i, cost in enumerate(self.owed)]
        self.close([self._worth(gate.coupling) for gate in self.gates], asked, self.behind[step] * part * self.budget)

    def _worth(self, coupling: Coupling) -> Tensor:
        """[units] float64."""
        found = []
        for member in coupling.members:
            weight = self.free[member.site].weight
            found.append(member.of_units(taylor(weight, weight.grad, None)).sum(1))
        return torch.stack(found).sum(0)


def importance(cosines: Tensor) -> Tensor:
    """[blocks] within -1 and 1, larger = turns the stream more than the others. cosines: [blocks] float64."""
    found = cosines.mean() - cosines
    return found / found.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
