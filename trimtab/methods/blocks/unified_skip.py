"""Unified Skip, Unified Layer Skipping in its static form: blocks are kept at equal distances, the first and the last among them.

With L blocks, keep = floor(L / speedup) of them: block 0, block L - 1, and of those between, in order, every one whose index is
a multiple of floor(L / (keep - 1)), until there are enough. The rest is removed, for the prompt as for what is generated; no
data decide. Liu et al., 2024 (arXiv:2404.06954), where skipped blocks still read the prompt: so does `trimtab.skipping`, which
leaves the model whole and takes `skipped`. Different: where too few indices are such multiples, the lowest others fill up; two
blocks at least stay. `pattern` has what the paper compares with: the last blocks go ("early_exit"), or those in the middle
("contiguous").
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.edits import DropBlock, Edits
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import choice, number

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class UnifiedSkip(ModelMethod):
    card: ClassVar = Card(
        id="unified_skip",
        title="Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy",
        paper="arXiv:2404.06954",
        fidelity="variant",
        beside=("shortgpt", "foldgpt"),
        claims=(
            Claim(
                "beats-early-exit",
                "unified_skip(speedup=2.0)",
                "<",
                "unified_skip(speedup=2.0, pattern='early_exit')",
                note="neither is tuned, and the prompt skips the blocks too: both are far from the model",
            ),
            Claim("beats-contiguous", "unified_skip(speedup=2.0)", "<", "unified_skip(speedup=2.0, pattern='contiguous')"),
        ),
    )

    speedup: float = number("blocks there are for each block that is kept", 1.5, low=1.0)
    pattern: str = choice("which blocks stay", "unified", ("unified", "early_exit", "contiguous"))

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        return [DropBlock(block) for block in self.skipped(len(anatomy.blocks))]

    def skipped(self, depth: int) -> list[int]:
        """Of so many blocks, those that go, ascending. Raises `UsageError` where fewer than two would stay."""
        keep = int(depth / self.speedup)
        if keep < 2:
            raise UsageError(f"unified_skip: {depth} blocks at speedup={self.speedup} leave {keep}; two stay at least, use less")
        kept = {"unified": _spread, "early_exit": _front, "contiguous": _ends}[self.pattern](depth, keep)
        return [block for block in range(depth) if block not in kept]


def _spread(depth: int, keep: int) -> set[int]:
    interval = int(depth / (keep - 1))
    between = sorted(range(1, depth - 1), key=lambda block: (block % interval != 0, block))
    return {0, depth - 1, *between[: keep - 2]}


def _front(depth: int, keep: int) -> set[int]:
    return set(range(keep))


def _ends(depth: int, keep: int) -> set[int]:
    front = (keep + 1) // 2
    return {*range(front), *range(depth - keep + front, depth)}
