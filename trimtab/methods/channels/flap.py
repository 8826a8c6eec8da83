"""FLAP: remove the channels whose input hardly fluctuates, and put their mean into a bias.

S[j] = var_t(x[t, j]) * sum_i W[i, j]^2 over the consumer's columns ("wifv"; squared once more in the attention output, as in
the authors' code), standardized inside the matrix, averaged over the unit's channels. Other metrics: var_t(x[t, j]) alone
("ifv"), and mean_i |W[i, j]| * rms_t(x[t, j]) ("wifn").  Repair:  bias_i += sum_{j removed} mean(x_j) * W[i, j].
An et al., AAAI 2024 (arXiv:2312.11983). With grouped-query attention whole KV groups are the unit, each at its cost in weights.

Who competes: "al-am", all units of the model; "ul-um", those of one matrix, every matrix losing the same fraction; "al-mm",
all KV groups and all neurons among themselves; "ul-mm", those of one matrix. In the -mm forms `heads` is the fraction of KV
groups that goes, and neurons make up the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import ChannelMethod, LinearWeight, Pools, Seen
from trimtab.core.knobs import choice, flag, rate
from trimtab.core.places import Coupling, Unit
from trimtab.stats import Moments
from trimtab.tensors.saliency import fluctuation, standard, wanda


@dataclass(frozen=True)
class Flap(ChannelMethod):
    card: ClassVar = Card(
        id="flap",
        title="Fluctuation-based Adaptive Structured Pruning for Large Language Models",
        paper="arXiv:2312.11983",
        fidelity="exact",
        beside=("wanda_sp", "magnitude_sp", "llm_pruner", "shortgpt"),
        claims=(
            Claim(
                "bias-helps-at-20",
                "flap(sparsity=0.2)",
                "<",
                "flap(sparsity=0.2, bias=False)",
                note="the paper's ablation of the bias compensation",
            ),
            Claim(
                "beats-wanda-sp-at-20",
                "flap(sparsity=0.2)",
                "<",
                "wanda_sp(sparsity=0.2)",
                published="14.62 < 22.12, LLaMA-7B, WikiText2",
            ),
            Claim("beats-magnitude-sp-at-20", "flap(sparsity=0.2)", "<", "magnitude_sp(sparsity=0.2)"),
            Claim("beats-llm-pruner-at-20", "flap(sparsity=0.2)", "<", "llm_pruner(sparsity=0.2)", note="neither is tuned"),
            Claim(
                "search-beats-uniform-at-20",
                "flap(sparsity=0.2)",
                "<",
                "flap(sparsity=0.2, compete='ul-um')",
                note="units compete model-wide against the same fraction everywhere",
            ),
        ),
    )
    needs: ClassVar = (Moments,)

    bias: bool = flag("make up for the mean of what was removed by a bias", True)
    metric: str = choice("what a channel is worth", "wifv", ("wifv", "ifv", "wifn"))
    compete: str = choice("which units compete with each other", "al-am", ("al-am", "ul-um", "al-mm", "ul-mm"))
    heads: float = rate("fraction of KV groups removed, in the modes al-mm and ul-mm", 0.2, high=0.9)

    def score(self, coupling: Coupling, weight: LinearWeight, seen: Seen) -> Tensor:
        score = self._metric(weight.dense(), *seen[Moments])  # [in]
        if coupling.unit is Unit.KV_GROUP:
            score = score.square()
        return standard(score)[coupling.consumer.indices.to(score.device)].mean(1)

    def _metric(self, weight: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """[in] float64."""
        if self.metric == "wifn":
            return wanda(weight, variance + mean.square()).mean(0)
        return variance if self.metric == "ifv" else fluctuation(weight, variance)

    def pools(self, couplings: Sequence[Coupling], sparsity: float, seen: Seen) -> Pools:
        if self.compete == "al-am":
            return [(couplings, sparsity)]
        if self.compete == "al-mm":
            kinds = [[c for c in couplings if c.unit is unit] for unit in self.unit]
            return [(kind, self._part(kind[0], sparsity)) for kind in kinds if kind]
        return [([c], self._part(c, sparsity)) for c in couplings]

    def _part(self, coupling: Coupling, sparsity: float) -> float:
        by_hand = self.compete.endswith("-mm") and coupling.unit is Unit.KV_GROUP
        return self.heads if by_hand else sparsity

    def repair(self, coupling: Coupling, weight: LinearWeight, keep: Tensor, seen: Seen) -> Tensor | None:
        if not self.bias:
            return None
        gone = coupling.consumer.indices[~keep].flatten()
        mean = seen[Moments][0][gone]
        return (weight.dense().double()[:, gone] @ mean).float()
