"""FLAP: remove the channels whose input hardly fluctuates, and put their mean into a bias.

S[j] = var_t(x[t, j]) * sum_i W[i, j]^2 over the consumer's columns (down, attention output; squared once more there, as in
the authors' code), standardized inside the matrix, averaged over the unit's channels; all units of the model compete by
score, each at its cost in weights.  Repair:  bias_i += sum_{j removed} mean(x_j) * W[i, j].
An et al., AAAI 2024 (arXiv:2312.11983). With grouped-query attention whole KV groups are the unit.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import ChannelMethod, LinearWeight, Seen
from trimtab.core.knobs import flag, rate
from trimtab.core.places import Coupling, Unit
from trimtab.stats import Moments


@dataclass(frozen=True)
class Flap(ChannelMethod):
    card: ClassVar = Card(
        id="flap",
        title="Fluctuation-based Adaptive Structured Pruning for Large Language Models",
        paper="arXiv:2312.11983",
        fidelity="exact",
        beside=("shortgpt",),
        claims=(
            Claim(
                "bias-helps-at-20",
                "flap(sparsity=0.2)",
                "<",
                "flap(sparsity=0.2, bias=False)",
                note="the paper's ablation of the bias compensation",
            ),
        ),
    )
    needs: ClassVar = (Moments,)
    unit: ClassVar = (Unit.NEURON, Unit.KV_GROUP)

    sparsity: float = rate("fraction of the coupled weights removed, model-wide", 0.2, high=0.9)
    bias: bool = flag("make up for the mean of what was removed by a bias", True)

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        _, variance = seen[Moments]
        score = variance * weight.dense().double().square().sum(0)  # [in]
        if coupling.unit is Unit.KV_GROUP:
            score = score.square()
        spread = score.std(correction=0)
        standard = (score - score.mean()) / spread if float(spread) > 0 else score * 0
        return standard[coupling.consumer.indices.to(score.device)].mean(1)

    def repair(self, coupling: Coupling, weight: LinearWeight, keep: Tensor, seen: Seen) -> Tensor | None:
        if not self.bias:
            return None
        gone = coupling.consumer.indices[~keep].flatten()
        mean = seen[Moments][0][gone]
        return (weight.dense().double()[:, gone] @ mean).float()
