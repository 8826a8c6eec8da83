"""Distillation: the compressed model learns to answer as the untouched one did, token by token.

loss = (1 - weight) CE(next token) + weight T^2 KL(softmax(teacher / T) || softmax(student / T)), Hinton et al., 2015; over all
matrices and gains of the blocks, or over low-rank updates of the matrices (rank > 0). Where the weights are sparse, entries
that are exactly zero stay zero.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, flag, number, rate
from trimtab.core.taught import Pupil, TaughtMethod, Teacher, gains
from trimtab.formats.taught import Student, standing

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class Distill(TaughtMethod):
    card: ClassVar = Card(
        id="distill",
        title="Distilling the Knowledge in a Neural Network",
        paper="arXiv:1503.02531",
        fidelity="exact",
        beside=("recover",),
        baseline=True,
    )
    preserves: ClassVar = True
    needs: ClassVar = (Teacher,)

    rank: int = count("of the update of every matrix, which is folded in; 0 = the matrices themselves are trained", 0, 0)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    weight: float = rate("of the teacher's answers in the loss; the rest is for the text's next token", 1.0)
    temperature: float = number("of both models' answers", 1.0, low=0.01)
    zeros: bool = flag("entries that are zero stay zero", True)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 5e-5, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        weights = {site: anatomy.weight(site).dense() for site in self.sites(anatomy)}
        standings = {site: standing(w, self.rank, self.alpha, self.zeros, seen.generator) for site, w in weights.items()}
        return Student(standings, () if self.rank else gains(anatomy), self.weight, self.temperature)
