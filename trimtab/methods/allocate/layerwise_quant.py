"""Layer-Wise Quantization: whole blocks at the high or the low bit width, the influential ones high.

LIM importance = 1 - mean_t cos(block input_t, block output_t).  ZD importance = -(share of the block's weights whose z-score
exceeds 1).  For an average of `bits` between `low` and `high`, round(blocks * (bits - low) / (high - low)) blocks get `high`;
here `bits` are those of codes, as the paper counts, and not stored ones.
Dumitru et al., 2024 (arXiv:2406.17415). Ties: the earlier block counts as more important.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Allocator, Original, Seen
from trimtab.core.knobs import choice, count, number
from trimtab.core.places import Site
from trimtab.stats import BlockCosine
from trimtab.tensors.allocation import best


@dataclass(frozen=True)
class LayerwiseQuant(Allocator):
    card: ClassVar = Card(
        id="layerwise_quant",
        title="Layer-Wise Quantization: A Pragmatic and Effective Method for Quantizing LLMs Beyond Integer Bit-Levels",
        paper="arXiv:2406.17415",
        fidelity="exact",
        beside=("gptq", "rtn"),
        claims=(
            Claim(
                "lim-beats-random",
                "gptq(clip=True) by layerwise_quant(bits=3)",
                "<",
                "gptq(clip=True) by layerwise_quant(bits=3, order='random')",
                note="mixed 4 and 2 bit; the random side draws another order with every seed",
            ),
        ),
    )
    needs: ClassVar = (BlockCosine, Original)
    knob: ClassVar = "bits"

    bits: float = number("average bits per code", 3.0, 2, 8)
    low: int = count("bits of the less important blocks", 2, 2, 8)
    high: int = count("bits of the more important blocks", 4, 2, 8)
    order: str = choice("what makes a block important", "lim", ("lim", "zd", "random", "reverse"))

    def check(self) -> None:
        if not self.low < self.high or not self.low <= self.bits <= self.high:
            raise UsageError(f"layerwise_quant: needs low < high and low <= bits <= high, got {self}")

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, int]:
        if outside := next((s.name for s in sites if s.block is None), None):
            raise UsageError(f"layerwise_quant: {outside} is in no block; restrict `where` to the blocks")
        blocks = sorted({s.block for s in sites if s.block is not None})
        importance = self._importance(blocks, sites, seen)
        share = (self.bits - self.low) / (self.high - self.low)
        ranking = sorted(range(len(blocks)), key=lambda i: (-float(importance[i]), i))
        worth = {i: [0, len(blocks) - place] for place, i in enumerate(ranking)}
        chosen = best([[0, 1]] * len(blocks), [worth[i] for i in range(len(blocks))], round(len(blocks) * share))
        bits = {block: (self.low, self.high)[at] for block, at in zip(blocks, chosen, strict=True)}
        return {s: bits[s.block] for s in sites if s.block is not None}

    def _importance(self, blocks: Sequence[int], sites: Sequence[Site], seen: Seen) -> Tensor:
        if self.order == "random":
            return torch.rand(len(blocks), generator=seen.generator, dtype=torch.float64)
        if self.order == "zd":
            return torch.tensor([-_share_of_large([seen[Original][s] for s in sites if s.block == b]) for b in blocks])
        importance = 1 - seen[BlockCosine][blocks]
        return -importance if self.order == "reverse" else importance


def _share_of_large(weights: Sequence[Tensor]) -> float:
    """Share of weights more than one standard deviation above the mean of all of them."""
    flat = torch.cat([w.flatten() for w in weights]).double()
    return float((flat > flat.mean() + flat.std()).double().mean())
