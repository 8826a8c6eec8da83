"""adapter_parallel: beside a matrix a narrow network of two layers reads what the matrix reads.

y = W x + up tanh(down x); down [width, in] from a normal distribution with deviation 0.02, up zero. Hu et al., EMNLP 2023 (LLM-
Adapters), after He et al. 2022, with the start that is the model itself. Where it stands is `at`; the paper's search puts it
beside the matrices of the MLP.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, count, number
from trimtab.core.places import Role, Site
from trimtab.core.trained import AdapterMethod
from trimtab.formats.deltas import BottleneckDelta, fresh_bottleneck

MLP = (Role.GATE, Role.UP, Role.DOWN, Role.GATE_UP)
ATTENTION = (Role.Q, Role.K, Role.V, Role.O, Role.QKV)


@dataclass(frozen=True)
class AdapterParallel(AdapterMethod):
    card: ClassVar = Card(
        id="adapter_parallel",
        title="LLM-Adapters: An Adapter Family for Parameter-Efficient Fine-Tuning of Large Language Models",
        paper="arXiv:2304.01933",
        fidelity="exact",
        beside=("adapter_series", "lora"),
        claims=(
            Claim(
                "better-beside-the-mlp",
                "adapter_parallel(width=7)",
                "<",
                "adapter_parallel(width=16, at='attention')",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, about the same number of trained parameters",
            ),
        ),
    )

    width: int = count("width of the narrow network", 64)
    scale: float = number("what it says is multiplied by this", 1.0, low=0.001)
    at: str = choice("beside which matrices of a block, unless --only says it", "mlp", ("mlp", "attention", "all"))

    def wants(self, site: Site) -> bool:
        return self.at == "all" or site.role in (MLP if self.at == "mlp" else ATTENTION)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> BottleneckDelta:
        return fresh_bottleneck(weight, self.width, self.scale, "parallel", seen.generator)
