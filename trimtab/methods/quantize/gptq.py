"""GPTQ: round column by column, each rounding error made up for by the columns to its right.

Minimizes ||(W - Q) X||^2 greedily through the inverse gram (see `tensors.columns`). Columns with the most input energy go
first, on grids fitted beforehand (the authors' later "act-order", with static groups, which stores nothing extra);
order="given" is the paper's: a group's grid is fitted to the compensated weights when the sweep enters it. Weights that an
earlier step pruned stay exactly zero.
Frantar et al., ICLR 2023 (arXiv:2210.17323). Silent input channels are kept, not zeroed.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.swept import SweptGrid
from trimtab.stats import Gram


@dataclass(frozen=True)
class Gptq(SweptGrid):
    card: ClassVar = Card(
        id="gptq",
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        paper="arXiv:2210.17323",
        fidelity="exact",
        beside=("rtn", "hlq"),
        claims=(
            Claim(
                "beats-rtn-at-3-bit",
                "gptq(bits=3)",
                "<",
                "rtn(bits=3)",
                published="6.42 < 6.66, Llama-2-7B, WikiText2, groups of 128",
            ),
            Claim(
                "energy-order-helps-at-3-bit",
                "gptq(bits=3)",
                "<",
                "gptq(bits=3, order='given')",
            ),
            Claim(
                "beats-clipped-rtn-at-3-bit",
                "gptq(bits=3, clip=True)",
                "<",
                "rtn(bits=3, clip=True)",
                note="the same grids searched for the least rounding error on both sides",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        return self.swept(weight, seen[Gram], seen)
