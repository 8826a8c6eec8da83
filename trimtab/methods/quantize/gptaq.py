"""GPTAQ: GPTQ that also makes up for what quantizing the blocks before has done to a matrix's inputs.

The target is the untouched model's output:  ||Q X - W X°||^2, with X the inputs behind the quantized blocks and X° those of
the untouched model. Besides its rounding error, column i sends  w_i P[i, j]  to the columns j > i:
    P = strength * striu(D Uᵀ) U,   D = mean_t (x° - x) xᵀ,   inverse(gram) = Uᵀ U.
Li et al., ICML 2025 (arXiv:2504.02692). strength: 1 by the derivation, 0.25 in the authors' code, because D is noisy.
From one lazy block to the next the rounded columns are sent on, as the authors' code does; needs two streams of activations.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import number
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.swept import SweptGrid
from trimtab.stats import Drift, Gram
from trimtab.tensors.columns import Feed, fed


@dataclass(frozen=True)
class Gptaq(SweptGrid):
    card: ClassVar = Card(
        id="gptaq",
        title="GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
        paper="arXiv:2504.02692",
        fidelity="exact",
        beside=("gptq", "rescomp", "residual_start"),
        claims=(
            Claim("beats-gptq-at-3-bit", "gptaq(bits=3)", "<", "gptq(bits=3)"),
            Claim("beats-gptq-at-2-bit", "gptaq(bits=2)", "<", "gptq(bits=2)"),
        ),
    )
    needs: ClassVar = (Gram, Drift)

    strength: float = number("how much of the drift is made up for", 0.25, 0, 1)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        drift = seen[Drift]
        return self.swept(weight, seen[Gram], seen, lambda order, upper: Feed(self.strength * fed(drift[order][:, order], upper)))
