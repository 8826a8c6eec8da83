"""SLiM-Quant: one scale for a whole matrix, clipped where the expected error over the distribution of the weights is least.

With p the histogram of |W| and Q the symmetric grid of 2^bits - 1 levels over -limit .. limit, the limit with the least
    sum over |w| < limit of p(w) (w - Q(w))^2  +  sum over |w| >= limit of p(w) (|w| - limit)^2,
searched among ten fractions of the largest weight, then among all edges of bins between the neighbours of the best.
Mozaffari et al., ICML 2025 (arXiv:2410.09615); needs no data. Q is the quantizer that is used, where the authors' rounds down
with another step. Without their activation-aware variant, which doubles the loudest columns. With their pruning and low-rank
compensation it is `slim`. The scale is stored for every row, as other grids are, which costs 16 / in bits per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.clipping import one_scale


@dataclass(frozen=True)
class SlimQuant(LinearMethod):
    card: ClassVar = Card(
        id="slim_quant",
        title="SLiM: One-shot Quantization and Sparsity with Low-rank Approximation for LLM Weight Compression",
        paper="arXiv:2410.09615",
        fidelity="exact",
        beside=("rtn", "slim"),
        claims=(
            Claim("clipping-beats-the-largest-weight-at-4-bit", "slim_quant(bits=4)", "<", "slim_quant(bits=4, clip=False)"),
            Claim(
                "beats-clipped-rtn-at-4-bit",
                "slim_quant(bits=4)",
                "<",
                "rtn(bits=4, group_size=0, symmetric=True, clip=True)",
                note="no data and the same stored bits on both sides; the baseline fits every row's range by itself",
            ),
        ),
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    clip: bool = flag("the range with the least expected error; else up to the largest weight", True)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, site.shape[1], symmetric=True)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        codes, scale = one_scale(weight.dense(), self.bits, self.clip)
        return Grouped(codes, scale, None, self.bits, site.shape[1])
