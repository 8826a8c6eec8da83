"""ResComp: GPTAQ whose sweep also pulls a compensated column back towards what it was.

Besides GPTAQ's term, column i sends  (w0_i - w_i) R[i, j]  to the columns j > i, w0 the weight before the sweep:
    R = rebound * striu(C Uᵀ) U,   C = D + gram = mean_t x° xᵀ.
arXiv:2604.07955, the authors' code. With an undrifted input the term counts the compensation twice, so `rebound` is small and
acts as shrinkage towards the original weight (see `residual_start` for the exact minimizer).
`sent`: the compensated columns (3 bit and more) or the rounded ones (2 bit). The compensated ones are not clamped to the
range of their group, as the authors do.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import choice, number
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.swept import SweptGrid
from trimtab.stats import Drift, Gram
from trimtab.tensors.columns import Feed, fed


@dataclass(frozen=True)
class Rescomp(SweptGrid):
    card: ClassVar = Card(
        id="rescomp",
        title="Rethinking Residual Errors in Compensation-based LLM Quantization",
        paper="arXiv:2604.07955",
        fidelity="variant",
        beside=("gptq", "gptaq", "residual_start"),
        claims=(
            Claim("beats-gptaq-at-3-bit", "rescomp(bits=3)", "<", "gptaq(bits=3)"),
            Claim("beats-gptq-at-3-bit", "rescomp(bits=3)", "<", "gptq(bits=3)"),
        ),
    )
    needs: ClassVar = (Gram, Drift)

    strength: float = number("how much of the drift is made up for", 0.25, 0, 1)
    rebound: float = number("how much of a column's compensation is taken back by the later ones", 0.25, 0, 1)
    sent: str = choice("what one lazy block hands to the next", "compensated", ("compensated", "chosen"))

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        drift, gram = seen[Drift], seen[Gram]

        def feed(order: Tensor, upper: Tensor) -> Feed:
            there = [moment[order][:, order] for moment in (drift, drift + gram)]
            inputs, rebound = (fed(moment, upper) for moment in there)
            return Feed(self.strength * inputs, self.rebound * rebound, chosen=self.sent == "chosen")

        return self.swept(weight, gram, seen, feed)
