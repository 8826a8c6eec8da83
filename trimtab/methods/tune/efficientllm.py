"""EfficientLLM: a model goes on with its pre-training and gets narrower meanwhile, its widths chosen as it goes.

A group is all that vanishes with one neuron, or with one key-value group and its queries. With g the gradients of a step,

    I = | sum_w (-g w + 1/2 g^2 w^2) |  over the weights of a group,    the sum remembered from step to step with `memory`

Every `every` steps, kind by kind, the group of least I per weight goes, from whatever block, until a part of the budget is gone;
that part rises as 1 - (1 - t)^3 over the `span` first of the steps. With q the columns that go from a consumer W, k those that
stay and H the gram of its inputs, `compensate` lets these say what went, W_k += W_q H_qk inverse(H_kk). All weights learn on.
Xing et al., 2025 (arXiv:2502.06663); its training was not published, and what it leaves open is reconstructed here. Different:
the residual stream keeps its width; H is that of the model before the training; g is the gradient that the step clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, flag, number, rate
from trimtab.core.narrowing import NarrowingMethod, Separable
from trimtab.core.places import Coupling, Site
from trimtab.core.taught import Pupil, gains
from trimtab.formats.gates import Gate, Ranker
from trimtab.formats.taught import Free
from trimtab.stats import Gram
from trimtab.tensors.schedules import between, cubic
from trimtab.tensors.spd import cholesky

if TYPE_CHECKING:
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

    def part(self, done: float) -> float:
        return cubic(between(done, 0.0, self.method.span))

    def of_units(self, coupling: Coupling) -> Tensor:
        found = []
        for member in coupling.members:
            weight = self.free[member.site].weight
            assert weight.grad is not None
            found.append(member.of_units(surplus(weight, weight.grad)).sum(1))
        return torch.stack(found).sum(0)

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


def surplus(weight: Tensor, gradient: Tensor) -> Tensor:
    """[out, in] float64: by how much the loss would rise without each weight, to second order. gradient: [out, in], of a step."""
    lost = weight.double() * gradient.double()
    return lost.square() / 2 - lost


def taken_over(weight: Tensor, gram: Tensor, left: Tensor, gone: Tensor, damping: float) -> Tensor:
    """[out, left]: what has to be added to the columns that are left for outputs to change least, in the mean square.

    weight: [out, in]; gram: [in, in]; left, gone: positions of columns. Raises ArithmeticError as `spd.cholesky` does.
    """
    factor, _ = cholesky(gram[left][:, left], damping)
    shares = torch.cholesky_solve(gram[left][:, gone].double(), factor)  # [left, gone]
    return (weight[:, gone].double() @ shares.T).to(weight.dtype)
