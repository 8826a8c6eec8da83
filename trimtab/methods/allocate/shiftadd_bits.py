"""shiftadd_bits: the bit allocation of ShiftAddLLM - more bits where large weights meet inputs that nothing makes up for.

M = |W| / diag(U) with inverse(damped gram) = Uᵀ U: what a weight means once the columns after it have made up for its rounding.
    criterion = ||M||_F / sqrt(weights) * std(M)^2      worth of b bits = -weights * criterion * 4^-b
The paper sorts matrices by ||M||_F std(M)^2 and gives fixed fractions of them 2 and 3 bits; that its code halves the norm where
a matrix is four times as large is the square root here. The criterion stands for the error of a weight, fourfold less with
every bit, and a budget of stored bytes takes the place of fractions (`tensors.allocation`).
You et al., NeurIPS 2024 (arXiv:2406.05981). The inputs are those of the untouched model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Original, Seen, Storage
from trimtab.core.places import Site
from trimtab.formats.budgeted import Budgeted
from trimtab.stats import Pivots


@dataclass(frozen=True)
class ShiftaddBits(Budgeted):
    card: ClassVar = Card(
        id="shiftadd_bits",
        title="ShiftAddLLM: Accelerating Pretrained LLMs via Post-Training Multiplication-Less Reparameterization",
        paper="arXiv:2406.05981",
        fidelity="variant",
        beside=("gptq", "hlq", "luq", "layerwise_quant"),
        claims=(
            Claim(
                "mixed-beats-uniform-3-bit",
                "gptq(clip=True) by shiftadd_bits(bits=3.303)",
                "<",
                "gptq(bits=3, clip=True)",
                note="2, 3 and 4 bit against 3 bit everywhere, which takes 3.303 stored bits per weight",
            ),
            Claim(
                "beats-whole-blocks",
                "gptq(clip=True) by shiftadd_bits(bits=3.303)",
                "<",
                "gptq(clip=True) by layerwise_quant(bits=3)",
                note="2, 3 and 4 bit matrix by matrix against 2 and 4 bit block by block, at the same size",
            ),
        ),
    )
    needs: ClassVar = (Pivots, Original, Storage)

    @property
    def strengths(self) -> Sequence[int]:
        return range(self.low, self.high + 1)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, int]:
        pivots, matrices = seen[Pivots], seen[Original]
        stakes = {site: stake(matrices[site], pivots[site]) for site in sites}
        return self.spent(sites, seen[Storage], lambda site, bits: -stakes[site] * 4.0**-bits)


def stake(weight: Tensor, pivots: Tensor) -> float:
    """weights * criterion. weight: [out, in]; pivots: [in], see `stats.Pivots`."""
    meaning = weight.double().abs() * pivots
    return float(meaning.norm() * meaning.var(correction=0)) * meaning.numel() ** 0.5
