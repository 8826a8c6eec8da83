"""EfficientLLM: a model goes on with its pre-training and gets narrower meanwhile, its widths chosen as it goes.

A group is all that vanishes with one neuron, or with one key-value group and its queries. With g_i the gradient of window i of a
step, g their mean and F the mean of their squares (the diagonal Fisher information),

    I = | sum_w (-g w + 1/2 F w^2) |  over the weights of a group,    the sum remembered from step to step with `memory`

Every `every` steps, kind by kind, the group of least I per weight goes, from whatever block, until a part of the budget is gone;
that part rises as 1 - (1 - t)^3 over the `span` first of the steps. With q the columns that go from a consumer W, k those that
stay and H the gram of its inputs, `compensate` lets these say what went, W_k += W_q H_qk inverse(H_kk). All weights learn on.
Xing et al., 2025 (arXiv:2502.06663); its training was not published, and what it leaves open is reconstructed here. Different:
the residual stream keeps its width; H is that of the model before the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, flag, number, rate
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Member, Site
from trimtab.core.taught import Pupil, Said, gains
from trimtab.core.trained import Training
from trimtab.formats.gates import Gate, Ranker
from trimtab.formats.taught import Free
from trimtab.stats import Gram
from trimtab.tensors.schedules import between, cubic
from trimtab.tensors.spd import cholesky

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class EfficientLLM(NarrowingMethod):
    card: ClassVar = Card(
        id="efficientllm",
        title="EfficientLLM: Scalable Pruning-Aware Pretraining for Architecture-Agnostic Edge Language Models",
        paper="arXiv:2502.06663",
        fidelity="reconstructed",
        beside=("adapt_pruner_tuned", "loraprune", "llm_pruner"),
        claims=(
            Claim(
                "beats-pruning-before-at-50",
                "efficientllm(sparsity=0.5, steps=400, learning_rate=0.0005)",
                "<",
                "llm_pruner(sparsity=0.5) -> recover(rank=0, steps=400, learning_rate=0.0005)",
                note="equal size, steps and tokens; all weights are trained in both",
                model="asset:own-5m",
            ),
            Claim(
                "compensation-helps-at-50",
                "efficientllm(sparsity=0.5, steps=400, learning_rate=0.0005)",
                "<",
                "efficientllm(sparsity=0.5, steps=400, learning_rate=0.0005, compensate=False)",
                note="what goes is said by what stays, or lost",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Separable, Gram)

    memory: float = rate("of earlier steps in what a group is worth", 0.9, high=0.999)
    span: float = rate("of the steps, after which everything is gone", 0.7, low=0.01)
    every: int = count("steps after which groups go", 10)
    compensate: bool = flag("what stays takes over from what goes", True)
    damping: float = rate("added to the grams, as a fraction of their mean diagonals", 0.01)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 1e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners = {site: Free(anatomy.weight(site).dense()) for site in self.sites(anatomy)}
        found = seen[Separable]
        grams = {c.consumer.site: seen[Gram][c.consumer.site] for c in found.couplings}
        return Shrinker(learners, found.couplings, self.budget(found, found.couplings), gains(anatomy), grams, self)


class Shrinker(Ranker):
    """worth: the signed sums. grams: [in, in] by consumer."""

    def __init__(
        self,
        learners: Mapping[Site, Free],
        couplings: Sequence[Coupling],
        budget: float,
        own: Sequence[str],
        grams: Mapping[Site, Tensor],
        method: EfficientLLM,
    ):
        device = next(iter(learners.values())).weight.device
        super().__init__(learners, [Gate(c, device) for c in couplings], budget, method, method.memory, method.every, own)
        self.free, self.grams, self.method = dict(learners), grams, method
        self.looked: dict[str, tuple[Tensor, Tensor]] = {}  # sums of g w and of its squares, [units] each, of the step under way
        self.passes = 0

    def part(self, done: float) -> float:
        return cubic(between(done, 0.0, self.method.span))

    def begin(self, training: Training) -> None:
        for gate in self.gates:
            for member in gate.coupling.members:
                weight = self.free[member.site].weight
                weight.register_hook(partial(self._look, gate.coupling, member, weight))

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        self.passes += 1
        return super().loss(said, taught, ids, share)

    @torch.no_grad()
    def _look(self, coupling: Coupling, member: Member, weight: Tensor, gradient: Tensor) -> None:
        """At what a window adds to the gradient of the step, before that is clipped."""
        lost = weight.double() * gradient.double()
        first, second = (member.of_units(values).sum(1) for values in (lost, lost.square()))
        had = self.looked.get(coupling.name, (torch.zeros_like(first), torch.zeros_like(second)))
        self.looked[coupling.name] = had[0] + first, had[1] + second

    def of_units(self, coupling: Coupling) -> Tensor:
        # A window adds g_i / n, so that g is the sum of what they add, and F the sum of its squares times n.
        first, second = self.looked[coupling.name]
        return self.passes / 2 * second - first

    def before_update(self, step: int, optimizer: "Optimizer") -> None:
        super().before_update(step, optimizer)
        self.looked, self.passes = {}, 0

    @torch.no_grad()
    def shrink(self, part: float) -> None:
        scores = [worth.abs() / gate.coupling.cost for worth, gate in zip(self.remembered(), self.gates, strict=True)]
        before = [gate.keep.clone() for gate in self.gates]
        self.close(scores, [(range(len(self.gates)), part * self.budget)], part * self.budget)
        if self.method.compensate:
            for gate, kept in zip(self.gates, before, strict=True):
                self._take_over(gate, kept & ~gate.keep)

    def _take_over(self, gate: Gate, going: Tensor) -> None:
        """going: [units] bool, those that were there until now."""
        if bool(going.any()):
            site = gate.coupling.consumer.site
            weight, gram = self.free[site].weight, self.grams[site]
            left, gone = (which[gate.unit].nonzero().flatten() for which in (gate.keep, going))
            weight[:, left] += taken_over(weight, gram, left, gone, self.method.damping)

    def notes(self) -> dict[str, Any]:
        return {**super().notes(), "units_left": {gate.coupling.name: int(gate.keep.sum()) for gate in self.gates}}


def taken_over(weight: Tensor, gram: Tensor, left: Tensor, gone: Tensor, damping: float) -> Tensor:
    """[out, left]: what has to be added to the columns that are left for outputs to change least, in the mean square.

    weight: [out, in]; gram: [in, in]; left, gone: positions of columns. Raises ArithmeticError as `spd.cholesky` does.
    """
    factor, _ = cholesky(gram[left][:, left], damping)
    shares = torch.cholesky_solve(gram[left][:, gone].double(), factor)  # [left, gone]
    return (weight[:, gone].double() @ shares.T).to(weight.dtype)
