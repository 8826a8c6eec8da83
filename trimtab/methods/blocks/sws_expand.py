"""SWS expand: a model of another depth begins with the matrices that stages have learned to repeat.

A stage is a run of blocks with the same matrices, as `sws` leaves them; where no two neighbours are alike, every block is one.
The blocks asked for are split over the stages in proportion to what these have now, at least one each, what is left by largest
remainder. A stage's blocks are then copies of those it has, spread evenly where it has more, repeated in place where it has less;
nothing is shared any more, and training goes on with matrices that go their own ways: "sws_expand(depth=8) -> recover(rank=0)".
Xia et al., 2024 (arXiv:2404.16897). Different: norms come along with the block that is copied.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Arrange, Edits
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import count
from trimtab.tensors.runs import divided, spread

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class SwsExpand(ModelMethod):
    card: ClassVar = Card(
        id="sws_expand",
        title="Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models",
        paper="arXiv:2404.16897",
        fidelity="reconstructed",
        beside=("sws", "shortgpt"),
        claims=(
            Claim(
                "stages-repeat-better-than-blocks",
                "sws(stages=3, steps=800, learning_rate=0.002) -> sws_expand(depth=8) -> recover(rank=0, steps=100)",
                "<",
                "sws_expand(depth=8) -> recover(rank=0, steps=100)",
                note="eight blocks of six; those on the right have not learned to be repeated, and saw less text",
                model="asset:own-5m",
            ),
        ),
    )

    depth: int = count("blocks of the result", 8)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        stages = _stages(anatomy)
        if self.depth < len(stages):
            raise UsageError(f"sws_expand: the model has {len(stages)} stages; depth={self.depth} leaves some out, use shortgpt")
        counts = divided(self.depth, [len(stage) for stage in stages])
        order = tuple(block for stage, wanted in zip(stages, counts, strict=True) for block in spread(stage, wanted))
        seen.note("blocks", list(order))
        return [Arrange(order)]


def _stages(anatomy: "Anatomy") -> list[range]:
    depth = len(anatomy.blocks)
    begins = [0, *(block for block in range(1, depth) if not _alike(anatomy, block - 1, block)), depth]
    return [range(first, end) for first, end in pairwise(begins)]


def _alike(anatomy: "Anatomy", one: int, other: int) -> bool:
    """Whether all matrices are the same, or the other block, a later one, has none of its own because it uses those of others."""
    left, right = anatomy.block_sites(one), anatomy.block_sites(other)
    return not right or (
        [s.shape for s in left] == [s.shape for s in right]
        and all(torch.equal(anatomy.weight(a).dense(), anatomy.weight(b).dense()) for a, b in zip(left, right, strict=True))
    )
