"""Cosine: blocks that turn the residual stream least are pruned most, after ShortGPT's block influence.

BI_b = 1 - mean_t cos(block input_t, block output_t)
    sparsity_b = mean - reach * (BI_b - mean(BI)) / max |BI - mean(BI)|,  shifted so that the mean over weights holds
The heuristic that searches are measured against; for bits see `layerwise_quant`, for whole blocks `shortgpt`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Allocator, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats.blockwise import by_block, sparsities
from trimtab.stats import BlockCosine
from trimtab.tensors.spreading import centred


@dataclass(frozen=True)
class Cosine(Allocator):
    card: ClassVar = Card(
        id="cosine",
        title="Sparsity by block influence",
        paper="arXiv:2403.03853",
        fidelity="variant",
        beside=("sparsegpt", "wanda", "owl", "evopress"),
        baseline=True,
    )
    needs: ClassVar = (BlockCosine,)
    knob: ClassVar = "sparsity"

    sparsity: float = rate("fraction of weights removed, on average", 0.7, high=0.99)
    reach: float = rate("how far the block that is farthest from the mean may go", 0.1)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, float]:
        blocks = list(by_block(sites, self.card.id))
        influence = 1 - seen[BlockCosine][blocks]
        return sparsities(sites, -self.reach * centred(influence), self.sparsity, self.card.id)
