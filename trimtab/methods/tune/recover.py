"""Recovery: what was cut is trained on ordinary text for a while, every matrix by a low-rank update that is folded in.

W' = W + (alpha / rank) B A, next-token cross-entropy, AdamW. This is how LLM-Pruner and its successors recover after pruning
(Ma et al., NeurIPS 2023, section 3.3, with LoRA by Hu et al.). rank = 0 trains all matrices and gains of the blocks as they
are. Entries that are exactly zero stay zero, so that a sparse matrix stays as sparse as it is.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, flag, number
from trimtab.core.taught import Pupil, TaughtMethod, gains
from trimtab.formats.taught import Reader, standing

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

    rank: int = count("of the update of every matrix, which is folded in; 0 = the matrices themselves are trained", 8, 0)
    alpha: float = number("the update is multiplied by alpha / rank", 16.0, low=0.001)
    zeros: bool = flag("entries that are zero stay zero", True)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 2e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        weights = {site: anatomy.weight(site).dense() for site in self.sites(anatomy)}
        return Reader(
            {site: standing(w, self.rank, self.alpha, self.zeros, seen.generator) for site, w in weights.items()},
            () if self.rank else gains(anatomy),
        )

    def trained(self, anatomy: "Anatomy") -> int:
        sites = self.sites(anatomy)
        return sum(min(self.rank, *s.shape) * sum(s.shape) if self.rank else s.shape[0] * s.shape[1] for s in sites)
