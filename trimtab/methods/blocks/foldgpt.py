"""FoldGPT, the part without training: blocks of little influence go, and neighbours that say much the same share one block.

Influence of a block is 1 - mean_t cos(entering_t, leaving_t). The `drop` blocks of least influence go; then, among neighbours
that are left, without the first and the last block, the pairs whose second turns the stream least share the matrices of their
first. Every position keeps norms and a cache position of its own; matrices are stored once, and computed with as often as before.
Liu et al., 2024 (arXiv:2407.00928). Different: the paper trains gates that say which blocks go, and tunes afterwards
(low-rank updates, distillation of the last blocks); neither is done here.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.edits import DropBlock, Edits, Share
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import count
from trimtab.stats import BlockCosine

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class FoldGPT(ModelMethod):
    card: ClassVar = Card(
        id="foldgpt",
        title="FoldGPT: Simple and Effective Large Language Model Compression Scheme",
        paper="arXiv:2407.00928",
        fidelity="variant",
        beside=("shortgpt", "unified_skip"),
        claims=(
            Claim(
                "sharing-beats-removal",
                "foldgpt(share=3)",
                "<",
                "shortgpt(drop=3)",
                note="both store three blocks less; sharing computes as much as before",
            ),
        ),
    )
    needs: ClassVar = (BlockCosine,)

    drop: int = count("blocks to remove", 0, low=0)
    share: int = count("pairs of neighbours that use the matrices of one block", 1)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        cosine = seen[BlockCosine].tolist()
        depth = len(cosine)
        if depth - self.drop < 2 * self.share + 2:
            raise UsageError(
                f"foldgpt: {depth} blocks without {self.drop} have not {self.share} pairs between first and last; use less"
            )
        dropped = sorted(range(depth), key=lambda block: (-cosine[block], -block))[: self.drop]
        left = [block for block in range(depth) if block not in dropped]
        pairs = _pairs(left[1:-1], cosine, self.share)
        return [*(Share(block, source) for source, block in pairs), *(DropBlock(block) for block in sorted(dropped))]


def _pairs(blocks: list[int], cosine: list[float], count: int) -> list[tuple[int, int]]:
    """(first, second) of neighbours, no block in two pairs, as alike as leaves room for as many as asked for."""
    found: list[tuple[int, int]] = []
    for first, second in sorted(pairwise(blocks), key=lambda pair: (-cosine[pair[1]], pair)):
        free = [b for b in blocks if all(b not in pair for pair in [*found, (first, second)])]
        if all(b not in (first, second) for pair in found for b in pair) and _room(blocks, free) >= count - len(found) - 1:
            found.append((first, second))
        if len(found) == count:
            break
    return sorted(found)


def _room(blocks: list[int], free: list[int]) -> int:
    """How many pairs of neighbours `free` still has room for."""
    room, run = 0, 0
    for block in blocks:
        run = run + 1 if block in free else 0
        room += run > 0 and run % 2 == 0
    return room
