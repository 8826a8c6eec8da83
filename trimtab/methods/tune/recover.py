"""Recovery: what was cut is trained on ordinary text for a while, every matrix by a low-rank update that is folded in.

W' = W + (alpha / rank) B A, next-token cross-entropy, AdamW. This is how LLM-Pruner and its successors recover after pruning
(Ma et al., NeurIPS 2023, section 3.3, with LoRA by Hu et al.). rank = 0 trains all matrices and gains of the blocks as they
are. Entries that are exactly zero stay zero, so that a sparse matrix stays as sparse as it is.

Of factored matrices the factors are trained, each with an update of its own or itself, and of matrix product operators the
cores themselves: `compactifai -> recover`. learn = "factored" trains nothing else, "left" and "right" only the first or the last
factor of every product. Codes in a sum stand as they are; matrices that are codes alone are for `pv_tuning`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Seen
from trimtab.core.knobs import choice, count, flag, number
from trimtab.core.taught import Pupil, TaughtMethod, gains
from trimtab.formats import relearned
from trimtab.formats.relearned import Course
from trimtab.formats.taught import Reader

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class Recover(TaughtMethod):
    card: ClassVar = Card(
        id="recover",
        title="LLM-Pruner: On the Structural Pruning of Large Language Models",
        paper="arXiv:2305.11627",
        fidelity="variant",
        beside=("distill",),
        baseline=True,
    )
    preserves: ClassVar = True
    takes: ClassVar = relearned.TAKES

    rank: int = count("of the update of every matrix, which is folded in; 0 = the matrices themselves are trained", 8, 0)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    zeros: bool = flag("entries that are zero stay zero", True)
    learn: str = choice("what learns: all, only factors and cores, or one factor of every product", "all", relearned.LEARN)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 2e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        weights = {site: anatomy.weight(site) for site in self.sites(anatomy)}
        learners = relearned.learners(weights, self._course(), "recover", seen.generator)
        return Reader(learners, () if self.rank or self.learn != "all" else gains(anatomy))

    def trained(self, anatomy: "Anatomy") -> int:
        return relearned.count({site: anatomy.weight(site) for site in self.sites(anatomy)}, self._course())

    def _course(self) -> Course:
        return Course(self.learn, self.rank, self.alpha, self.zeros)
