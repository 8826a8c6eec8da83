"""Magnitude: drop the smallest weights.

score[o, i] = |W[o, i]|, compared over the whole matrix (the baseline of the Wanda and SparseGPT papers) or inside each row.
Han et al., NeurIPS 2015, without the retraining.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import choice, rate, text
from trimtab.core.places import Site
from trimtab.formats import Dense, Masked
from trimtab.formats.plain import check_pattern, plain
from trimtab.tensors.masks import Pattern, keep_top, keep_top_of_matrix


@dataclass(frozen=True)
class Magnitude(LinearMethod):
    card: ClassVar = Card(
        id="magnitude",
        title="Learning both Weights and Connections for Efficient Neural Networks",
        paper="arXiv:1506.02626",
        fidelity="variant",
        beside=("wanda", "sparsegpt"),
        baseline=True,
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Masked,)

    sparsity: float = rate("fraction of weights removed (an N:M pattern decides it instead)", 0.5, high=0.99)
    pattern: str = text("'unstructured' or 'N:M'", "unstructured", Pattern.parse)
    per: str = choice("what competes: the whole matrix, or each row", "matrix", ("matrix", "row"))

    def fits(self, site: Site) -> None:
        check_pattern(self.pattern, site.shape[1], site.name)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Masked:
        pattern, dense = Pattern.parse(self.pattern), weight.dense()
        if self.per == "matrix" and not pattern.m:
            return Masked(plain(weight), keep_top_of_matrix(dense.abs(), self.sparsity))
        return Masked(plain(weight), keep_top(dense.abs(), self.sparsity, pattern))
