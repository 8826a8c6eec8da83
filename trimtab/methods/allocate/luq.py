"""LUQ: ultra-low bits for the blocks whose outputs are the least varied, the high width for the others.

E = -sum_c p_c log p_c, p_c = share of a block's output tokens in cluster c of 100 (see `stats.OutputEntropy`). Blocks get `low`
in order of rising entropy until the budget is met, the rest `high`; ties: the later block is the less varied.
    worth of `high` at a matrix = rank of its block's entropy * bytes that `high` takes more
With that worth a budget of stored bytes cuts the same order (`tensors.allocation`); around the block at the cut single
matrices are exchanged to use the budget up.
Bhatnagar et al., 2025 (arXiv:2509.23729). Of text tokens alone here, and any method may be the ultra-low one (`hlq` at 1 bit).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import Seen, Storage
from trimtab.core.knobs import choice
from trimtab.core.places import Site
from trimtab.formats.budgeted import Budgeted
from trimtab.stats import OutputEntropy


@dataclass(frozen=True)
class Luq(Budgeted):
    card: ClassVar = Card(
        id="luq",
        title="LUQ: Layerwise Ultra-Low Bit Quantization for Multimodal Large Language Models",
        paper="arXiv:2509.23729",
        fidelity="reconstructed",
        beside=("gptq", "hlq", "layerwise_quant", "shiftadd_bits"),
        claims=(
            Claim(
                "entropy-beats-random",
                "gptq(clip=True) by luq(bits=3.303)",
                "<",
                "gptq(clip=True) by luq(bits=3.303, order='random')",
                note="4 and 2 bit, the same bytes to the last on both sides; the random side draws another order with every seed",
            ),
            Claim(
                "entropy-beats-reverse",
                "gptq(clip=True) by luq(bits=3.303)",
                "<",
                "gptq(clip=True) by luq(bits=3.303, order='reverse')",
                note="4 and 2 bit, the same bytes to the last on both sides",
            ),
        ),
    )
    needs: ClassVar = (OutputEntropy, Storage)

    order: str = choice("what makes a block worth the high width", "entropy", ("entropy", "random", "reverse"))

    @property
    def strengths(self) -> Sequence[int]:
        return self.low, self.high

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, int]:
        if outside := next((s.name for s in sites if s.block is None), None):
            raise UsageError(f"luq: {outside} is in no block; restrict `where` to the blocks")
        blocks = sorted({s.block for s in sites if s.block is not None})
        importance = self._importance(blocks, seen).tolist()
        rising = sorted(range(len(blocks)), key=lambda i: (importance[i], -i))
        rank = {blocks[i]: at for at, i in enumerate(rising, 1)}
        storage = seen[Storage]
        return self.spent(sites, storage, lambda s, bits: float(rank[s.block] * (storage.tensors(s, bits) or 0)))

    def _importance(self, blocks: Sequence[int], seen: Seen) -> Tensor:
        if self.order == "random":
            return torch.rand(len(blocks), generator=seen.generator, dtype=torch.float64)
        entropy: Tensor = seen[OutputEntropy][blocks]
        return -entropy if self.order == "reverse" else entropy
