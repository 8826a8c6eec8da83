"""Residual start: move a weight to where its drifted inputs give the untouched model's outputs, before it is quantized.

For any Q:  ||Q X - W X°||^2 = ||(Q - W') X||^2 + const,   W' = W + strength * W D inverse(gram),   D = mean_t (x° - x) xᵀ,
so the asymmetric problem of GPTAQ and ResComp is the symmetric one from another start, exactly at strength 1. Whatever follows
in the recipe (gptq, hlq, sparsegpt ...) solves it: `residual_start -> gptq(bits=3)`.
The identity is ours; the problem is that of arXiv:2504.02692 and arXiv:2604.07955. The inverse is damped.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import number, rate
from trimtab.core.places import Site
from trimtab.formats import Dense
from trimtab.stats import Drift, Gram
from trimtab.tensors.spd import cholesky


@dataclass(frozen=True)
class ResidualStart(LinearMethod):
    card: ClassVar = Card(
        id="residual_start",
        title="Rethinking Residual Errors in Compensation-based LLM Quantization",
        paper="arXiv:2604.07955",
        fidelity="variant",
        beside=("gptaq", "rescomp", "gptq"),
        claims=(
            Claim("beats-gptq-at-3-bit", "residual_start -> gptq(bits=3)", "<", "gptq(bits=3)"),
            Claim("beats-gptaq-at-3-bit", "residual_start -> gptq(bits=3)", "<", "gptaq(bits=3)"),
            Claim("beats-gptq-at-2-bit", "residual_start -> gptq(bits=2)", "<", "gptq(bits=2)"),
        ),
    )
    needs: ClassVar = (Gram, Drift)
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Dense,)

    strength: float = number("how much of the drift is made up for", 1.0, 0, 1)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Dense:
        shift, used = seen.once((ResidualStart, self.damping), lambda: _shift(seen[Drift], seen[Gram], self.damping))
        seen.note("damping", used)
        moved = weight.dense() + self.strength * (weight.dense() @ shift)
        return Dense(moved.to(weight.weight.dtype))


def _shift(drift: Tensor, gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """D inverse(gram) [in, in] float32, and the damping used."""
    root, used = cholesky(gram, damping)
    return torch.cholesky_solve(drift.double().T, root).T.float(), used
