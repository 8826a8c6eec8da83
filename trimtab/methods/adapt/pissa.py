"""PiSSA: the adapter begins as the largest singular directions of the matrix, and the rest is frozen.

W = U S V^T; B = U_r sqrt(S_r), A = sqrt(S_r) V_r^T; y = (W - B_0 A_0) x + B A x. B_0, A_0 are what B, A were at the start.
Meng et al., NeurIPS 2024. Same as the paper except: the frozen matrix stays W, B_0 A_0 is subtracted beside it, which is the
same function. So the base may be in any format and is never written again, and the result is an ordinary LoRA of twice the
rank that fits the original model. The frozen rest is not quantized. The decomposition is exact, of W in float64.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import LowRankDelta, lora_fields
from trimtab.tensors.lowrank import truncated


@dataclass(frozen=True)
class Pissa(RankedMethod):
    card: ClassVar = Card(
        id="pissa",
        title="PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        paper="arXiv:2404.02948",
        fidelity="exact",
        beside=("lora",),
        claims=(
            Claim(
                "beats-lora",
                "pissa(rank=8)",
                "<",
                "lora(rank=8, alpha=8.0)",
                published="72.86 > 67.7 GSM8K accuracy, Mistral-7B",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
        ),
    )

    rank: int = count("how many singular directions are trained", 16)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> LowRankDelta:
        factors = truncated(weight.dense(), self.rank)
        return LowRankDelta(factors.left, factors.right, from_start=True)

    def portable(self) -> dict[str, Any]:
        return lora_fields(2 * self.rank, 2.0 * self.rank)
