"""Low rank: two thin factors in the place of every matrix, from the first step on.

W = left @ right with as many numbers as `keep` of the matrix. They begin as the nearest such product to the random matrix that
would have stood there, its singular values shared evenly (Khodak et al., ICLR 2021). What the others are measured against.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod
from trimtab.formats.trained import Product
from trimtab.tensors.lowrank import rank_for


@dataclass(frozen=True)
class LowRank(ScratchMethod):
    card: ClassVar = Card(
        id="low_rank",
        title="Initialization and Regularization of Factorized Neural Layers",
        paper="arXiv:2105.01029",
        fidelity="variant",
        beside=("sltrain", "svd"),
        baseline=True,
    )

    keep: float = rate("numbers of the two factors, as a fraction of the matrix's", 0.5, low=0.001)

    def numbers(self, shape: tuple[int, int]) -> int:
        return rank_for(shape, self.keep) * sum(shape)

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> Product:
        return Product.of(weight, rank_for(site.shape, self.keep))
