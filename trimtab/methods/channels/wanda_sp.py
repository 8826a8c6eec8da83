"""Wanda-SP: remove the units whose columns, times the size of what comes into them, are smallest.

score[u] = mean over the unit's columns of the consumer (down, attention output) of sum_i |W[i, j]| * rms_t(x[t, j]).
The structured form of Wanda that An et al. compare with (arXiv:2312.11983; Sun et al., arXiv:2306.11695). Every set of
channels is asked for the same fraction, and what whole key-value groups miss of it the neurons lose; or ("model") all units
compete. Nothing is mended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import ChannelMethod, LinearWeight, Pools, Seen
from trimtab.core.knobs import choice
from trimtab.core.places import Coupling
from trimtab.stats import InputNorm
from trimtab.tensors.saliency import wanda


@dataclass(frozen=True)
class WandaSP(ChannelMethod):
    card: ClassVar = Card(
        id="wanda_sp",
        title="A Simple and Effective Pruning Approach for Large Language Models (structured)",
        paper="arXiv:2306.11695",
        fidelity="variant",
        beside=("magnitude_sp", "flap", "llm_pruner"),
        claims=(
            Claim(
                "beats-magnitude-sp-at-20",
                "wanda_sp(sparsity=0.2)",
                "<",
                "magnitude_sp(sparsity=0.2)",
                note="both lose the same fraction of neurons and of groups",
            ),
        ),
    )
    needs: ClassVar = (InputNorm,)

    compete: str = choice("whose units compete: those of one matrix, or of the model", "matrix", ("matrix", "model"))

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        return coupling.consumer.of_units(wanda(weight.dense(), seen[InputNorm].square())).mean(1)

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        return [(couplings, sparsity)] if self.compete == "model" else [([c], sparsity) for c in couplings]
