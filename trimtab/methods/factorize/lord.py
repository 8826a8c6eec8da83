"""LoRD: the outputs' principal directions are kept, and their mean exactly.

With C = mean_t x xᵀ - m mᵀ (m = mean_t x) and Q [out, rank] the leading eigenvectors of W C Wᵀ:  W' = Q (Qᵀ W), and the bias
grows by (W - W') m, so that directions that were dropped put out their mean. About zero (`centred=False`) the same W' is what
`svd_llm` finds, and no bias is made.
Kaushal, Vaidhya, Rish, 2023 (arXiv:2309.14021). Different: rank as in `svd`, the same `keep` everywhere, where they round to
multiples of 128 (`multiple`) and leave out layers whose loss shows it (`where`, or `by d_rank`). C is damped, so that with few
tokens the directions that no token shows are the matrix's own. Experts have no bias of their own: theirs stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import flag, rate
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense
from trimtab.formats.factored import Factored
from trimtab.stats import Gram, Moments
from trimtab.tensors.lowrank import Factors, principal


@dataclass(frozen=True)
class Lord(Factored):
    card: ClassVar = Card(
        id="lord",
        title="LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression",
        paper="arXiv:2309.14021",
        fidelity="reconstructed",
        beside=("svd_llm", "svd", "d_rank"),
        claims=(
            Claim("beats-svd-at-20", "lord(keep=0.8)", "<", "svd(keep=0.8)", note="the left side is larger by the biases"),
            Claim(
                "the-mean-helps-at-20",
                "lord(keep=0.8)",
                "<",
                "svd_llm(keep=0.8)",
                note="the left side is larger by the biases",
            ),
        ),
    )
    needs: ClassVar = (Gram, Moments)

    centred: bool = flag("directions about the mean of the outputs, which the bias then holds", True)
    damping: float = rate("added to the inputs' covariance, as a fraction of the gram's mean diagonal", 1e-4)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any] | None:
        """Nothing where a bias may be made, which no spec of a matrix counts."""
        return None if self.centred and self._rank(site) else super().promises(site, spec)

    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        gram = seen[Gram].double()
        if not bool(torch.isfinite(gram).all()):
            raise ArithmeticError("the gram matrix is not finite")
        mean = seen[Moments][0]
        spread = gram - torch.outer(mean, mean) if self.centred else gram.clone()
        spread.diagonal().add_(self.damping * gram.diagonal().mean())
        seen.note("damping", self.damping)  # never raised: no factor of the covariance is taken
        return principal(weight.dense(), rank, spread)

    def shift(self, weight: LinearWeight, solved: LinearWeight, seen: Seen) -> Tensor | None:
        if not self.centred or not isinstance(solved, Chain):
            return None
        mean: Tensor = seen[Moments][0]
        return (weight.dense() - solved.dense()).double() @ mean
