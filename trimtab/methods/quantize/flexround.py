"""FlexRound: rounding is learned by dividing every weight by a number of its own, block by block.

    code = clamp(round(W / (s1 * S2 * s3)) + zero, 0, 2^bits - 1),   W^ = s1 (code - zero);

s1 [out, groups] is the stored scale, S2 [out, in] and s3 [out, 1] begin at one and are gone at the end. Rounding lets
gradients pass; that of S2 carries W / S2^2, so large weights can move by several steps and small ones hardly by one.
Lee et al., ICML 2023 (arXiv:2306.00317). All three are learned as logarithms, which keeps them positive. Groups instead of one
scale for the matrix, and zero points that stay as they began. The paper mixes inputs of the untouched model in at random where
activations are rounded as well; here they are not.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import flag, number
from trimtab.formats.learned import Groups, LearnedGroups
from trimtab.tensors.learned_grid import LearnedGrid
from trimtab.tensors.rounding import LARGEST, SMALLEST, fit
from trimtab.tensors.through import halved


@dataclass(frozen=True)
class FlexRound(LearnedGroups):
    card: ClassVar = Card(
        id="flexround",
        title="FlexRound: Learnable Rounding based on Element-wise Division for Post-Training Quantization",
        paper="arXiv:2306.00317",
        fidelity="exact",
        beside=("rtn", "omniquant", "sliderquant"),
        claims=(
            Claim("beats-clipped-rtn-at-3-bit", "flexround(bits=3)", "<", "rtn(bits=3, clip=True)"),
            Claim(
                "a-number-for-every-weight-helps",
                "flexround(bits=2)",
                "<",
                "flexround(bits=2, elements=False)",
                note="against learning the scales of groups and rows alone",
            ),
        ),
    )

    elements: bool = flag("learn a divisor for every weight", True)
    rate: float = number("learning rate of the logarithms", 0.002, 0.0)

    def learner(self, weight: Tensor, keep: Tensor | None, seen: Seen) -> Groups:
        return Divided(weight, keep, self)


class Divided(Groups):
    """Logarithms: of the scale [out, groups, 1], of the rows' divisors [out, 1, 1], and of the weights' [out, groups, group]."""

    def __init__(self, weight: Tensor, keep: Tensor | None, method: FlexRound):
        super().__init__(weight, keep, method)
        start = fit(self.weight, method.bits, clip=method.clip)
        self.zero = start.zero
        self.scale = nn.Parameter(start.scale.log())
        self.row = nn.Parameter(torch.zeros(len(weight), 1, 1, device=weight.device))
        self.element = nn.Parameter(torch.zeros_like(self.weight), requires_grad=method.elements)
        self.rates = dict.fromkeys(("scale", "row", "element"), method.rate)

    def coded(self) -> tuple[LearnedGrid, Tensor]:
        grid = LearnedGrid(halved(self.scale.exp().clamp(SMALLEST, LARGEST)), self.zero, self.bits)
        return grid, grid.codes(self.weight / grid.scale * (-self.row - self.element).exp())
