"""SVD-LLM: the low rank that changes the layer's *output* least, not its weights.

With gram = L Lᵀ, the truncated SVD of W L brought back by L⁻¹ minimizes ||(W - W') X||_F, and dropping a singular value s
costs exactly s^2.  rank as in `svd`; inputs come from the already compressed prefix.
Wang et al., ICLR 2025 (arXiv:2403.07378). They whiten with the untouched model's inputs and then set the left factor anew for
those of the compressed prefix, U = W gram Aᵀ (A gram Aᵀ)⁻¹ with A the right one. Here the factors are the best of their rank for
the latter inputs at once, and that U is the left factor itself. Their fine-tuning, a low-rank update folded into one factor, then
into the other, is two steps that follow:
"svd_llm(keep=0.8) -> recover(learn='left') -> recover(learn='right')".
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import rate
from trimtab.formats import Dense
from trimtab.formats.factored import Factored
from trimtab.stats import Gram
from trimtab.tensors.lowrank import Factors, truncated
from trimtab.tensors.spd import cholesky


@dataclass(frozen=True)
class SvdLlm(Factored):
    card: ClassVar = Card(
        id="svd_llm",
        title="SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression",
        paper="arXiv:2403.07378",
        fidelity="variant",
        beside=("svd", "asvd", "saes_svd", "recover"),
        claims=(
            Claim(
                "beats-svd-at-20",
                "svd_llm(keep=0.8)",
                "<",
                "svd(keep=0.8)",
                published="7.94 < 20061, LLaMA-7B, WikiText2",
            ),
            Claim(
                "tuned-factors-beat-untuned",
                "svd_llm(keep=0.5) -> recover(steps=50, learn='left') -> recover(steps=50, learn='right')",
                "<",
                "svd_llm(keep=0.5)",
                note="the same bytes; the left side reads the calibration text for 100 steps more",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 1e-4)

    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        root, used = seen.once((SvdLlm, self.damping), lambda: cholesky(seen[Gram], self.damping))
        seen.note("damping", used)
        return truncated(weight.dense(), rank, root)
