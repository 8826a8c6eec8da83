"""LQER: a low-rank term that makes up for what an earlier step took away.

With s[i] the root mean square of input i, the truncated SVD of (W - W') diag(s), brought back by diag(1/s), is added to the
compressed W':  W ~ W' + left @ right.  Works on top of any format.
Zhang et al., ICML 2024 (arXiv:2402.02446), the activation-scaled form; s is not renormalized, which changes nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Original, Seen
from trimtab.core.places import Site
from trimtab.formats import Sum
from trimtab.formats.mended import Mended
from trimtab.stats import InputNorm
from trimtab.tensors.lowrank import audible


@dataclass(frozen=True)
class Lqer(Mended):
    card: ClassVar = Card(
        id="lqer",
        title="LQER: Low-Rank Quantization Error Reconstruction for LLMs",
        paper="arXiv:2402.02446",
        fidelity="exact",
        beside=("eora", "svd_llm", "gptq"),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "rtn(bits=3) -> lqer(rank=32)",
                "<",
                "rtn(bits=3)",
                note="the left side is larger by the two factors",
            ),
        ),
    )
    needs: ClassVar = (InputNorm, Original)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Sum:
        return self.mended(weight, seen, audible(seen[InputNorm]))
