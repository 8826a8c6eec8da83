"""adapter_series: behind a matrix a narrow network of two layers reads what the matrix says.

z = W x; y = z + up tanh(down z); down [width, out] from a normal distribution with deviation 0.02, up zero. Houlsby et al., ICML
2019, as in LLM-Adapters (Hu et al., EMNLP 2023), with the start that is the model itself. It stands behind the MLP, where
the paper's search puts it (`at`). Same as there except: z is without the layer's bias.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice, count, number
from trimtab.core.places import Role, Site
from trimtab.core.trained import AdapterMethod
from trimtab.formats.deltas import BottleneckDelta, fresh_bottleneck


@dataclass(frozen=True)
class AdapterSeries(AdapterMethod):
    card: ClassVar = Card(
        id="adapter_series",
        title="LLM-Adapters: An Adapter Family for Parameter-Efficient Fine-Tuning of Large Language Models",
        paper="arXiv:2304.01933",
        fidelity="exact",
        beside=("adapter_parallel", "lora"),
        claims=(
            Claim(
                "better-behind-the-mlp",
                "adapter_series(width=32)",
                "<",
                "adapter_series(width=32, at='attention')",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, equal trained parameters",
            ),
        ),
    )

    width: int = count("width of the narrow network", 64)
    scale: float = number("what it says is multiplied by this", 1.0, low=0.001)
    at: str = choice("behind what of a block, unless --only says it", "mlp", ("mlp", "attention", "both"))

    def wants(self, site: Site) -> bool:
        behind = {"mlp": (Role.DOWN,), "attention": (Role.O,), "both": (Role.DOWN, Role.O)}
        return site.role in behind[self.at]

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> BottleneckDelta:
        return fresh_bottleneck(weight, self.width, self.scale, "series", seen.generator)
