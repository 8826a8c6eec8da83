"""Magnitude-SP: remove the units whose own weights are smallest.

score[u] = sum of |w| ("l1"), or the root of the sum of w^2 ("l2"), over all rows and columns that the unit owns, in every
matrix it takes part in. Nothing is looked at and nothing is mended. The structured form of magnitude pruning that papers on
structured pruning compare with. Every set of channels is asked for the same fraction, and what whole
key-value groups miss of it the neurons lose; or ("model") all units compete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card
from trimtab.core.kinds import ChannelMethod, LinearWeight, Original, Pools, Seen
from trimtab.core.knobs import choice
from trimtab.core.places import Coupling


@dataclass(frozen=True)
class MagnitudeSP(ChannelMethod):
    card: ClassVar = Card(
        id="magnitude_sp",
        title="Fluctuation-based Adaptive Structured Pruning for Large Language Models (its baseline)",
        paper="arXiv:2312.11983",
        fidelity="variant",
        beside=("wanda_sp", "flap", "llm_pruner"),
        baseline=True,
    )
    needs: ClassVar = (Original,)

    norm: str = choice("how weights add up", "l2", ("l1", "l2"))
    compete: str = choice("whose units compete: those of one matrix, or of the model", "matrix", ("matrix", "model"))

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        power = 1 if self.norm == "l1" else 2
        sizes = [m.of_units(seen[Original][m.site].double().abs() ** power).sum(1) for m in coupling.members]
        return torch.stack(sizes).sum(0) ** (1 / power)

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        return [(couplings, sparsity)] if self.compete == "model" else [([c], sparsity) for c in couplings]
