"""ATP: one small network says which heads and neurons stay, and learns it while low-rank updates learn with what it says.

A fixed random row [32] for every coupling goes through a bidirectional GRU [64], a layer norm, GELU, and a matrix of its own:

    m = round(sigmoid((logits + gumbel + 3) / 0.4)),  backward as without rounding;  r: the fraction of the weights that stays
    lowered: cross-entropy + balance log(max(r, p) / min(r, p)) + lasso (sum of ||B_i|| over rows, ||A_j|| over columns that go)

p is what shall stay, B and A the factors of the updates. When `searched` of the steps are taken, noise is left out, the units of
the lowest logits of the whole model go until the budget is met, and the updates learn on without them.
Lu et al., 2024 (arXiv:2412.14426), as far as it says; the network is that of DISP-LLM (arXiv:2410.11988). Different: network and
updates learn together in every step, on the same text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Site
from trimtab.core.taught import Pupil
from trimtab.formats.gates import DrawnGate, Searcher
from trimtab.formats.taught import Updated
from trimtab.tensors.gates import gumbel_sigmoid
from trimtab.tensors.through import through

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

ROW, HIDDEN = 32, 64


@dataclass(frozen=True)
class Atp(NarrowingMethod):
    card: ClassVar = Card(
        id="atp",
        title="All-in-One Tuning and Structural Pruning for Domain-Specific LLMs",
        paper="arXiv:2412.14426",
        fidelity="reconstructed",
        beside=("loraprune", "compresso", "llm_pruner"),
        claims=(
            Claim(
                "beats-two-stages-at-40",
                "atp(sparsity=0.4, steps=400)",
                "<",
                "llm_pruner(sparsity=0.4) -> recover(steps=400)",
                published="88 % of the dense quality at 40 %, LLaMA2-7B, health care and legal tasks; best of all compared",
                note="perplexity; equal steps, tokens and rank",
                model="asset:own-5m",
            ),
        ),
    )

    searched: float = rate("of the steps in which masks move; in the rest they are fixed", 0.6, low=0.01)
    balance: float = number("how much the loss counts a size that is not the one asked for", 8.0, low=0.0)
    lasso: float = number("how much the loss counts what updates have on units that go", 1e-3, low=0.0)
    generator_rate: float = number("the highest learning rate of the network", 1e-3, low=1e-8)
    rank: int = count("of the update of every matrix, which is folded in", 8)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one, of the updates", 2e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners, found = {}, seen[Separable]
        for site in self.sites(anatomy):
            weight = anatomy.weight(site).dense()
            learners[site] = Updated(weight, min(self.rank, *site.shape), self.alpha / self.rank, seen.generator)
        return Generated(learners, found.couplings, self.budget(found, found.couplings), self, seen.generator)

    def trained(self, anatomy: "Anatomy") -> int:
        updates = sum(min(self.rank, *s.shape) * sum(s.shape) for s in self.sites(anatomy))
        return updates + sum(s.shape[1] * (2 * HIDDEN + 1) for s in self.sites(anatomy))


class MaskedGate(DrawnGate):
    """logits: [units] of the step under way, which the network said; its gradient is gathered and handed back to it."""

    def __init__(self, coupling: Coupling, device: torch.device):
        super().__init__(coupling, device)
        self.logits = torch.zeros(coupling.units, device=device)

    def values(self) -> Tensor:
        if bool(self.settled):
            return self.keep.float()
        soft = gumbel_sigmoid(self.logits, self.drawn)
        return through(soft, soft.detach().round())


class Network(nn.Module):
    """Logits of every gate, [units] each. rows: [gates, 32], fixed."""

    rows: Tensor

    def __init__(self, units: Sequence[int], generator: torch.Generator, device: torch.device):
        super().__init__()
        with torch.device("meta"):  # nothing is drawn from the global generator
            self.gru = nn.GRU(ROW, HIDDEN, bidirectional=True)
            self.norm = nn.LayerNorm(2 * HIDDEN)
            self.heads = nn.ModuleList(nn.Linear(2 * HIDDEN, n) for n in units)
        self.to_empty(device=device)
        self.register_buffer("rows", torch.randn(len(units), ROW, generator=generator).to(device))
        for name, parameter in self.named_parameters():
            within = HIDDEN**-0.5 if name.startswith("gru") else (2 * HIDDEN) ** -0.5
            drawn = (2 * torch.rand(parameter.shape, generator=generator) - 1) * within
            parameter.data.copy_(drawn)
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self) -> list[Tensor]:
        said = F.gelu(self.norm(self.gru(self.rows)[0]))
        return [head(row) for head, row in zip(self.heads, said, strict=True)]


class Generated(Searcher):
    def __init__(
        self,
        learners: Mapping[Site, Updated],
        couplings: Sequence[Coupling],
        budget: float,
        method: Atp,
        generator: torch.Generator,
    ):
        device = next(iter(learners.values())).weight.device
        gates = [MaskedGate(c, device) for c in couplings]
        super().__init__(learners, gates, budget, method, method.searched)
        self.updates, self.masks, self.method = dict(learners), gates, method
        self.network = Network([c.units for c in couplings], generator, device)
        self.said: list[Tensor] = []  # by the network in the step under way, with its gradients' way back

    def rates(self) -> dict[str, float]:
        own = {f"network.{name}": self.method.generator_rate for name, _ in self.network.named_parameters()}
        return {**super().rates(), **own}

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        super().before_step(step, optimizer)
        if not self.is_settled:
            self._say()

    def _say(self) -> None:
        with torch.enable_grad():
            self.said = self.network()
        for gate, logits in zip(self.masks, self.said, strict=True):
            gate.logits = logits.detach().requires_grad_()

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        if not self.is_settled:
            torch.autograd.backward(self.said, [gate.logits.grad for gate in self.masks])

    def penalty(self) -> Tensor | None:
        shut = [~gate.keep if self.is_settled else gate.values().detach() == 0 for gate in self.masks]
        reliance = [self._reliance(gate.coupling, some) for gate, some in zip(self.masks, shut, strict=True)]
        lasso = self.method.lasso * torch.stack(reliance).sum()
        if self.is_settled:
            return lasso
        kept = torch.stack([gate.coupling.cost * gate.values().sum() for gate in self.masks]).sum() / self.whole
        asked = 1 - self.budget / self.whole
        return lasso + self.method.balance * (kept.clamp_min(1 / self.whole).log() - log(asked)).abs()

    def _reliance(self, coupling: Coupling, shut: Tensor) -> Tensor:
        """[]: what the updates have on the units that are shut, [units] bool."""
        found = []
        for member in coupling.members:
            learner, places = self.updates[member.site], member.indices.to(shut.device)[shut].flatten()
            found.append((learner.left[places] if member.axis == "rows" else learner.right[:, places].T).square().sum(1))
        sums = torch.cat(found)
        return torch.where(sums > 0, sums, 1.0).sqrt().mul(sums > 0).sum()  # whose slope is finite at zero

    @torch.no_grad()
    def choose(self) -> None:
        self._say()
        self.close([gate.logits.double() for gate in self.masks], [(range(len(self.masks)), self.budget)], self.budget)
