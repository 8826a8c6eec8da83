"""Distillation: the compressed model learns to answer as the untouched one did, token by token.

loss = (1 - weight) CE(next token) + weight T^2 KL(softmax(teacher / T) || softmax(student / T)), Hinton et al., 2015; over all
matrices and gains of the blocks, or over low-rank updates of the matrices (rank > 0). Where the weights are sparse, entries
that are exactly zero stay zero. With `tail` the last blocks also learn to leave in the residual stream what the teacher's last
ones do, + pull mean |h - t|^2 / |t|^2 over blocks and tokens: the cure of FoldGPT (Liu et al., 2024, arXiv:2407.00928).
Factored matrices learn as in `recover`, by their factors and cores.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen
from trimtab.core.knobs import choice, count, flag, number, rate
from trimtab.core.taught import Pupil, TaughtMethod, Teacher, gains
from trimtab.formats import relearned
from trimtab.formats.relearned import Course
from trimtab.formats.taught import Student

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
    takes: ClassVar = relearned.TAKES
    needs: ClassVar = (Teacher,)

    rank: int = count("of the update of every matrix, which is folded in; 0 = the matrices themselves are trained", 0, 0)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    weight: float = rate("of the teacher's answers in the loss; the rest is for the text's next token", 1.0)
    temperature: float = number("of both models' answers", 1.0, low=0.01)
    tail: int = count("last blocks whose hidden states are the teacher's, too; counted from the end", 0, 0)
    pull: float = number("how much their distance counts in the loss", 1.0, low=0.0)
    zeros: bool = flag("entries that are zero stay zero", True)
    learn: str = choice("what learns: all, only factors and cores, or one factor of every product", "all", relearned.LEARN)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 5e-5, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        if self.tail > len(anatomy.blocks):
            raise UsageError(f"distill: a tail of {self.tail} blocks, but there are {len(anatomy.blocks)}; use fewer")
        weights = {site: anatomy.weight(site) for site in self.sites(anatomy)}
        learners = relearned.learners(weights, self._course(), "distill", seen.generator)
        own = () if self.rank or self.learn != "all" else gains(anatomy)
        return Student(learners, own, self.weight, self.temperature, self.tail, self.pull)

    def trained(self, anatomy: "Anatomy") -> int:
        return relearned.count({site: anatomy.weight(site) for site in self.sites(anatomy)}, self._course())

    def _course(self) -> Course:
        return Course(self.learn, self.rank, self.alpha, self.zeros)
