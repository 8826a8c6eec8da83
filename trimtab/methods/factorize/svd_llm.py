"""SVD-LLM: the low rank that changes the layer's *output* least, not its weights.

With gram = L Lᵀ, the truncated SVD of W L brought back by L⁻¹ minimizes ||(W - W') X||_F, and dropping a singular value s
costs exactly s^2.  rank as in `svd`; inputs come from the already compressed prefix.
Wang et al., ICLR 2025 (arXiv:2403.07378): truncation-aware whitening, without the later fine-tuning of the factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense, low_rank
from trimtab.formats.plain import low_rank_spec
from trimtab.stats import Gram
from trimtab.tensors.lowrank import rank_for, truncated
from trimtab.tensors.spd import cholesky


@dataclass(frozen=True)
class SvdLlm(LinearMethod):
    card: ClassVar = Card(
        id="svd_llm",
        title="SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
        paper="arXiv:2403.07378",
        fidelity="exact",
        beside=("svd",),
        claims=(
            Claim(
                "beats-svd-at-20",
                "svd_llm(keep=0.8)",
                "<",
                "svd(keep=0.8)",
                published="7.94 < 20061, LLaMA-7B, WikiText2",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    keep: float = rate("fraction of the matrix's parameters that the two factors may hold", 0.8, low=0.01, high=0.99)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 1e-4)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return low_rank_spec(site.shape, rank_for(site.shape, self.keep), spec["dtype"])

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        root, used = seen.once((SvdLlm, self.damping), lambda: cholesky(seen[Gram], self.damping))
        seen.note("damping", used)
        factors = truncated(weight.dense(), rank_for(site.shape, self.keep), root)
        return low_rank(factors.left, factors.right, weight.weight.dtype)
