"""OmniQuant: every group's clipping range is learned, block by block.

    scale = (sigmoid(c) max - sigmoid(b) min) / (2^bits - 1),  zero = round(-sigmoid(b) min / scale),
    W^ = scale (clamp(round(W / scale) + zero, 0, 2^bits - 1) - zero),  with b and c learned per group,

so that the block answers as the untouched one; rounding lets gradients pass.
Shao et al., ICLR 2024 (arXiv:2308.13137). Its learnable clipping, which is what it uses for weights alone; its learned
scales between layers are left to `smoothquant` or `awq` as a step before. Ranges begin where the squared rounding error is
least, unless clip is off; the paper begins at sigmoid(4) = 0.982 of the full range.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import number
from trimtab.formats.learned import Groups, LearnedGroups, Ranges
from trimtab.tensors.learned_grid import LearnedGrid


@dataclass(frozen=True)
class OmniQuant(LearnedGroups):
    card: ClassVar = Card(
        id="omniquant",
        title="OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models",
        paper="arXiv:2308.13137",
        fidelity="variant",
        beside=("rtn", "gptq", "flexround", "sliderquant"),
        claims=(
            Claim("beats-clipped-rtn-at-2-bit", "omniquant(bits=2)", "<", "rtn(bits=2, clip=True)"),
            Claim(
                "beats-gptq-at-2-bit",
                "omniquant(bits=2)",
                "<",
                "gptq(bits=2)",
                published="11.06 < 36.77, Llama-2-7B, WikiText2, groups of 128",
            ),
        ),
    )

    rate: float = number("learning rate of the ranges", 0.02, 0.0)

    def learner(self, weight: Tensor, keep: Tensor | None, seen: Seen) -> Groups:
        return Clipped(weight, keep, self)


class Clipped(Groups):
    """The weights as they are, on grids whose ranges are learned."""

    def __init__(self, weight: Tensor, keep: Tensor | None, method: OmniQuant):
        super().__init__(weight, keep, method)
        self.ranges = Ranges(self.weight, method.bits, method.clip)
        self.rates = {"ranges.logits": method.rate}

    def coded(self) -> tuple[LearnedGrid, Tensor]:
        grid = self.ranges(self.weight)
        return grid, grid.codes(self.weight / grid.scale)
