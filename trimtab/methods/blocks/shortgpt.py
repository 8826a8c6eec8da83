"""ShortGPT: remove the blocks that turn the residual stream least.

Block influence BI_l = 1 - mean_t cos(block input_t, block output_t); the blocks with the smallest influence go, all at once.
Men et al., 2024 (arXiv:2403.03853). Equal influences: the earlier block stays.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.edits import DropBlock, Edits
from trimtab.core.errors import UsageError
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import choice, count
from trimtab.stats import BlockCosine

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class ShortGPT(ModelMethod):
    card: ClassVar = Card(
        id="shortgpt",
        title="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        paper="arXiv:2403.03853",
        fidelity="exact",
        beside=("flap",),
        claims=(
            Claim(
                "beats-random-blocks",
                "shortgpt(drop=3)",
                "<",
                "shortgpt(drop=3, order='random')",
                note="the random side draws other blocks with every seed",
            ),
        ),
    )
    needs: ClassVar = (BlockCosine,)

    drop: int = count("blocks to remove", 1)
    order: str = choice("which go first: those of least influence, or random ones", "influence", ("influence", "random"))

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        blocks = len(anatomy.blocks)
        if self.drop >= blocks:
            raise UsageError(f"shortgpt: the model has {blocks} blocks, drop={self.drop} would leave none; use less")
        if self.order == "random":
            ranking = torch.randperm(blocks, generator=seen.generator)
        else:
            influence = 1 - seen[BlockCosine]  # [blocks]
            ranking = blocks - 1 - torch.argsort(influence.flip(0), stable=True)
        return [DropBlock(b) for b in sorted(ranking[: self.drop].tolist())]
