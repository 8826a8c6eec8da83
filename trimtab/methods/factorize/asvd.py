"""ASVD: truncated SVD of the matrix with its loud columns enlarged, so that they are kept more exactly.

W [out, in] ~ left @ right from the SVD of W diag(s), brought back by diag(1/s), s[i] = (mean_t |x[t, i]|)^power.
Yuan et al., 2023 (arXiv:2312.05821), rank as in `svd`, with the same `keep` everywhere: their search for the rank of every
matrix, by the perplexity with each one alone factored, is left out; `by d_rank` or `by welore` chooses ranks instead.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import rate
from trimtab.formats import Dense
from trimtab.formats.factored import Factored
from trimtab.stats import AbsMean
from trimtab.tensors.lowrank import Factors, audible, truncated


@dataclass(frozen=True)
class Asvd(Factored):
    card: ClassVar = Card(
        id="asvd",
        title="ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
        paper="arXiv:2312.05821",
        fidelity="variant",
        beside=("svd", "svd_llm"),
        claims=(
            Claim("beats-svd-at-20", "asvd(keep=0.8)", "<", "svd(keep=0.8)", note="the same bytes on both sides"),
            Claim(
                "svd-llm-beats-it-at-20",
                "svd_llm(keep=0.8)",
                "<",
                "asvd(keep=0.8)",
                published="7.94 < 11.14, LLaMA-7B, WikiText2",
            ),
        ),
    )
    needs: ClassVar = (AbsMean,)

    power: float = rate("of the mean magnitude of an input that its column is multiplied by", 0.5)

    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        return truncated(weight.dense(), rank, audible(seen[AbsMean]) ** self.power)
