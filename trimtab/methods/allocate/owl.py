"""OWL: blocks with many outliers are pruned less.

score = |W| * ||x||, as in Wanda;  D_b = share of the block's scores above `outlier` times their mean
    sparsity_b = mean - 2 * reach * (D_b - min D) / (max D - min D),  shifted so that the mean over weights holds
Yin et al., ICML 2024 (arXiv:2310.05175). The inputs are those of the untouched model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Allocator, Original, Seen
from trimtab.core.knobs import number, rate
from trimtab.core.places import Site
from trimtab.formats.blockwise import by_block, sparsities
from trimtab.stats import InputNorm


@dataclass(frozen=True)
class Owl(Allocator):
    card: ClassVar = Card(
        id="owl",
        title="Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity",
        paper="arXiv:2310.05175",
        fidelity="reconstructed",
        beside=("wanda", "sparsegpt", "sv_nup", "evopress"),
        claims=(Claim("beats-uniform-wanda", "wanda by owl(sparsity=0.7)", "<", "wanda(sparsity=0.7)"),),
    )
    needs: ClassVar = (InputNorm, Original)
    knob: ClassVar = "sparsity"

    sparsity: float = rate("fraction of weights removed, on average", 0.7, high=0.99)
    reach: float = rate("half the difference between the blocks that lose most and least", 0.08)
    outlier: float = number("times the mean score of its block that makes a weight an outlier", 5.0, 1)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, float]:
        shares = torch.stack([self._outliers(own, seen) for own in by_block(sites, self.card.id).values()])  # [blocks]
        span = (shares.max() - shares.min()).clamp_min(torch.finfo(torch.float64).tiny)
        return sparsities(sites, -2 * self.reach * (shares - shares.min()) / span, self.sparsity, self.card.id)

    def _outliers(self, sites: Sequence[Site], seen: Seen) -> torch.Tensor:
        """Share of the weights of these sites whose score is an outlier's, a float64 scalar."""
        scores = torch.cat([(seen[Original][s].float().abs() * seen[InputNorm][s]).flatten() for s in sites])
        return (scores > self.outlier * scores.mean(dtype=torch.float64)).double().mean()
