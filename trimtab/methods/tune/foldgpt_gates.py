"""FoldGPT gates: which blocks can go is learned, all of them seeing what the others do.

What a block adds to the stream is multiplied by a gate  g = a^2 / (a^2 + e),  e falling from 0.1 to 0.0001 and drawing gates to
0 or 1. Weights are frozen; a begins at 1 and lowers

    cross-entropy + balance |sum_l g_l c_l / sum_l c_l - what shall stay|,    c the parameters of a block

The `drop` blocks of the smallest gates go, and the others are as they were: `foldgpt_gates(drop=4) -> foldgpt(share=3) ->
distill(rank=8, weight=0.5, tail=4, steps=300)` is the whole of the paper's course.
Liu et al., 2024 (arXiv:2407.00928), whose gate is not given in full; this one is of the family that it names. Different: the
gate stands in front of attention output and MLP output, each; their biases, where there are any, are not gated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.edits import DropBlock, Edits
from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Role, Site
from trimtab.core.taught import Pupil, TaughtMethod
from trimtab.formats.dense import Dense
from trimtab.formats.taught import Reader
from trimtab.tensors.gates import polar

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

WRITERS = (Role.O, Role.DOWN)
SOFT, HARD = 0.1, 1e-4


@dataclass(frozen=True)
class FoldGPTGates(TaughtMethod):
    card: ClassVar = Card(
        id="foldgpt_gates",
        title="FoldGPT: Simple and Effective Large Language Model Compression Scheme",
        paper="arXiv:2407.00928",
        fidelity="reconstructed",
        beside=("foldgpt", "shortgpt", "unified_skip"),
        claims=(
            Claim(
                "gates-beat-influence",
                "foldgpt_gates(drop=8)",
                "<",
                "shortgpt(drop=8)",
                note="the same number of blocks removed, a quarter and more; nothing is tuned afterwards",
            ),
        ),
    )

    drop: int = count("blocks to remove", 1)
    balance: float = number("how much the loss counts what is gone too much or too little", 10.0, low=0.0)
    steps: int = count("steps of training", 200)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one, of the gates", 0.05, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        depth = len(anatomy.blocks)
        if self.drop >= depth:
            raise UsageError(f"{self.card.id}: the model has {depth} blocks; {self.drop} of them cannot go, use less")
        costs = torch.tensor([float(sum(p.numel() for p in block.parameters())) for block in anatomy.blocks])
        gates = [BlockGate(anatomy.weight(anatomy.sites[0]).dense().device) for _ in range(depth)]
        learners = dict[Site, Learner]()
        for block, gate in enumerate(gates):
            writers = [site for site in anatomy.block_sites(block) if site.role in WRITERS and site.index is None]
            if {site.role for site in writers} != set(WRITERS):
                raise ModelError(
                    f"{self.card.id}: block {block} has no attention and MLP output of its own to gate; use shortgpt"
                )
            learners |= {site: Scaled(anatomy.weight(site).dense(), gate) for site in writers}
        return Chooser(learners, gates, costs, self)

    def trained(self, anatomy: "Anatomy") -> int:
        return len(anatomy.blocks)


class BlockGate(nn.Module):
    def __init__(self, device: torch.device):
        super().__init__()
        self.strength = nn.Parameter(torch.ones((), device=device))

    def value(self, progress: float) -> Tensor:
        """[] from 0 to 1. progress: fraction of the training that is done."""
        return polar(self.strength, SOFT * (HARD / SOFT) ** progress)


class Scaled(Learner):
    """W [out, in], frozen, times a gate."""

    def __init__(self, weight: Tensor, gate: BlockGate):
        super().__init__()
        self.rates, self.weight, self.gate = {}, weight, gate

    def matrix(self) -> Tensor:
        return self.weight * self.gate.value(self.progress)

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


class Chooser(Reader):
    """costs: [blocks] parameters."""

    def __init__(self, learners: Mapping[Site, Learner], gates: Sequence[BlockGate], costs: Tensor, method: FoldGPTGates):
        super().__init__(learners)
        self.gates, self.shares, self.method = list(gates), costs / costs.sum(), method

    def values(self) -> Tensor:
        """[blocks], as far as the training is."""
        progress = next(iter(self.stands().values())).progress
        return torch.stack([gate.value(progress) for gate in self.gates])

    def penalty(self) -> Tensor:
        values = self.values()
        stays = 1 - self.method.drop / len(self.gates)
        return self.method.balance * ((values * self.shares.to(values)).sum() - stays).abs()

    def edits(self) -> Edits:
        least = torch.stack([gate.strength.detach().abs() for gate in self.gates]).argsort(stable=True)
        return [DropBlock(block) for block in sorted(least[: self.method.drop].tolist())]

    def notes(self) -> dict[str, Any]:
        return {"gates": self.values().tolist(), "strengths": [abs(float(gate.strength)) for gate in self.gates]}
