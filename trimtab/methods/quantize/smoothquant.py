"""SmoothQuant: the difficulty of rounding moves from the activations to the weights, channel by channel.

s = max_t |x_t|^alpha / max_rows |w|^(1 - alpha),  folded into the norm before: activations x / s, weights W diag(s).
alpha = 1 makes all activations equally loud, alpha = 0 all columns of the weights. Only behind norms, as published;
everywhere=True also between values and attention output and between up and down.
Xiao et al., ICML 2023 (arXiv:2211.10438). Made for rounded activations, which `act_quant` behind it gives; without, it is the
baseline of the methods that scale for weights alone. Channels whose inputs or weights are all zero keep scale 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, ScaleMethod, Seen
from trimtab.core.knobs import flag, rate
from trimtab.core.places import Fold, Gain, Site
from trimtab.stats import AbsMax

LEAST = 1e-5  # of a channel's largest weight, as in the authors' code


@dataclass(frozen=True)
class SmoothQuant(ScaleMethod):
    card: ClassVar = Card(
        id="smoothquant",
        title="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
        paper="arXiv:2211.10438",
        fidelity="exact",
        beside=("awq",),
        claims=(
            Claim(
                "helps-rtn-at-3-bit",
                "smoothquant -> rtn(bits=3)",
                "<",
                "rtn(bits=3)",
                note="published for rounded activations and weights; here the weights alone are rounded",
            ),
            Claim(
                "helps-rtn-where-channels-stand-out",
                "smoothquant -> rtn(bits=3, clip=True)",
                "<",
                "rtn(bits=3, clip=True)",
                note="what makes activations hard to round makes the columns they meet small, and equal again here",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    needs: ClassVar = (AbsMax,)

    alpha: float = rate("how much of the activations' range moves into the weights", 0.5)
    everywhere: bool = flag("also between matrices, not only behind norms", False)

    def scale(self, fold: Fold, weights: Mapping[Site, LinearWeight], seen: Seen) -> Tensor | None:
        if not (self.everywhere or isinstance(fold.source, Gain)):
            return None
        loudest = fold.pooled(seen[AbsMax][fold.consumers[0]].double(), "amax")  # [in]
        columns = torch.stack([weight.dense().abs().amax(0) for weight in weights.values()]).amax(0)
        largest = fold.pooled(columns.double(), "amax")
        scale = loudest.pow(self.alpha) / largest.clamp(min=LEAST).pow(1 - self.alpha)
        return torch.where((loudest > 0) & (largest > 0), scale, 1.0)
