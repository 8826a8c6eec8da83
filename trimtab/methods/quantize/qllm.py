"""QLLM: weights and inputs are rounded, and a low-rank correction is learned inside the rounding of the weights.

    y = Q(W + B A) round(M x),   B = 0 at first,   Q: min to max of a row (or group) in `bits` bits, with a zero point,

so that `blocks` blocks together answer as the untouched ones; then B A is part of W and nothing is left of it but codes. M: how
`qllm_channels` splits and merges the inputs, if that went before; round: token by token.
Liu et al., ICLR 2024 (arXiv:2310.08041), step 4. Not as published: gains of norms are not learned with it; inputs are rounded on
grids symmetric about zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import BlockMethod, Learner, LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.formats import Activations, Chain, Dense, Grouped, Reassembly, check_group_size
from trimtab.formats.activations import check_inputs
from trimtab.tensors.activations import per_token
from trimtab.tensors.learned_grid import LearnedGrid, bounds

BEFORE = "qllm_channels -> qllm"


@dataclass(frozen=True)
class Qllm(BlockMethod):
    card: ClassVar = Card(
        id="qllm",
        title="QLLM: Accurate and Efficient Low-Bitwidth Quantization for Large Language Models",
        paper="arXiv:2310.08041",
        fidelity="variant",
        beside=("qllm_channels", "omniquant", "flatquant", "act_quant"),
        claims=(
            Claim(
                "beats-omniquant-at-4-bit-activations",
                BEFORE,
                "<",
                "omniquant(bits=4, group_size=0) -> act_quant(bits=4)",
                published="9.65 < 11.26, Llama-7B, WikiText2",
                note="omniquant learns without rounded inputs here",
                model="asset:own-5m-outliers",
            ),
            Claim(
                "beats-smoothquant-at-4-bit-activations",
                BEFORE,
                "<",
                "smoothquant -> rtn(bits=4, group_size=0) -> act_quant(bits=4)",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    takes: ClassVar = (Dense, Chain)
    gives: ClassVar = (Activations, Chain)

    bits: int = count("bits per code of the weights", 4, 2, 8)
    input_bits: int = count("bits per activation", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 0, 0)
    rank: int = count("inner dimension of the correction", 4)
    blocks: int = count("blocks that are learned together", 4)
    rate: float = number("learning rate of the correction", 5e-4, 0.0)
    epochs: int = count("passes over the calibration set", 10, 0)

    def windows(self, depth: int) -> Sequence[range]:
        return [range(start, min(start + self.blocks, depth)) for start in range(0, depth, self.blocks)]

    def fits(self, site: Site) -> None:
        check_inputs(self.card.id, site)
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def begin(self, weight: LinearWeight, seen: Seen, site: Site) -> "Corrected":
        channels: Any = None
        if isinstance(weight, Chain) and isinstance(weight.factors[-1], Reassembly):
            rest, channels = weight.factors[:-1], weight.factors[-1]
            weight = rest[0] if len(rest) == 1 else Chain(rest)
        return Corrected(weight.dense(), channels, self, seen)


class Corrected(Learner):
    """weight [out, channels] float32 and what is learned to be added to it. channels: what makes its inputs of x."""

    def __init__(self, weight: Tensor, channels: Reassembly | None, method: Qllm, seen: Seen):
        super().__init__()
        out, in_ = weight.shape
        self.weight, self.channels, self.bits, self.input_bits = weight, channels, method.bits, method.input_bits
        self.group_size = method.group_size or in_
        drawn = torch.randn(method.rank, in_, generator=seen.generator) / in_**0.5
        self.down = nn.Parameter(drawn.to(weight.device))
        self.up = nn.Parameter(torch.zeros(out, method.rank, device=weight.device))
        self.rates = {"down": method.rate, "up": method.rate}

    def feed(self, x: Tensor) -> Tensor:
        mixed = x if self.channels is None else self.channels.applied(x)
        return per_token(mixed, self.input_bits, mixed.shape[-1])

    def fed(self) -> Tensor:
        grid, codes = self._coded()
        return grid.values(codes).flatten(1)

    def matrix(self) -> Tensor:
        return self.fed() if self.channels is None else self.fed() @ self.channels.dense()

    def result(self) -> Activations | Chain:
        with torch.no_grad():
            grid, codes = self._coded()
        scale, zero = grid.scale.squeeze(-1).half(), grid.zero.squeeze(-1).to(torch.uint8)
        inner = Grouped(codes.flatten(1).to(torch.uint8), scale, zero, self.bits, self.group_size)
        rounding = Activations(inner, self.input_bits, self.weight.shape[1])
        return rounding if self.channels is None else Chain((rounding, self.channels))

    def _coded(self) -> tuple[LearnedGrid, Tensor]:
        groups = (self.weight + self.up @ self.down).view(len(self.weight), -1, self.group_size)
        grid = LearnedGrid.between(*bounds(groups), self.bits)
        return grid, grid.codes(groups / grid.scale)
