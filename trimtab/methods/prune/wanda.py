"""Wanda: drop the weights with the smallest |weight| * ||input||, compared inside each row.

score[o, i] = |W[o, i]| * sqrt(mean_t x[t, i]^2);  no weight update, no backward pass.
Sun et al., ICLR 2024. Same as the paper, except that the norm is a mean, so that the token count does not change scores.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import rate, text
from trimtab.core.places import Site
from trimtab.formats import Dense, Masked
from trimtab.formats.plain import check_pattern, plain
from trimtab.stats import InputNorm
from trimtab.tensors.masks import Pattern, keep_top


@dataclass(frozen=True)
class Wanda(LinearMethod):
    card: ClassVar = Card(
        id="wanda",
        title="A Simple and Effective Pruning Approach for Large Language Models",
        paper="arXiv:2306.11695",
        fidelity="exact",
        beside=("magnitude", "sparsegpt"),
        claims=(
            Claim(
                "beats-magnitude",
                "wanda(sparsity=0.5)",
                "<",
                "magnitude(sparsity=0.5)",
                published="7.26 < 17.29, LLaMA-7B, WikiText2",
            ),
        ),
    )
    needs: ClassVar = (InputNorm,)
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Masked,)

    sparsity: float = rate("fraction of weights removed (an N:M pattern decides it instead)", 0.5, high=0.99)
    pattern: str = text("'unstructured' or 'N:M'", "unstructured", Pattern.parse)

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Masked:
        score = weight.dense().abs() * seen[InputNorm]  # [out, in]
        return Masked(plain(weight), keep_top(score, self.sparsity, Pattern.parse(self.pattern)))
