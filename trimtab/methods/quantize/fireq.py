"""FireQ: weights in 4-bit integers with 8-bit scales, inputs in 8-bit floating point.

    w^ = t e4m3(s / t) q,   s = max|w| / 7 of a group,  q = clamp(round(w / w^ per q), -8, 7),
    y = W^ round(x),        round(x) = e4m3(448 x / max|x|) max|x| / 448, token by token,

t is a power of two for the whole matrix, so that its largest scale comes to at most 448 / 8 and eight times it is still a number.
arXiv:2505.20839, the part that decides about numbers. The whole is a recipe, `smoothquant(alpha=0.0) -> fireq_keys -> fireq`:
smoothquant at alpha 0 is the channel-wise scaling of the weights, fireq_keys that of the keys. Reconstructed: e4m3 scales are
rounded to nearest. Not as published: a kernel multiplies codes by their scale in a table of 16 numbers in e4m3, here these
products are not rounded once more; scales take 16 bits in the file, though e4m3 times t is what they are; keys and values are
a cache's business (`--kv-bits 4`). Simulated exactly, nothing is faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.formats import Activations, Dense, Grouped, Masked, check_group_size
from trimtab.formats.activations import activations_spec, check_inputs
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.activations import E4M3
from trimtab.tensors.rounding import LARGEST, SMALLEST, Grid

BITS = 4
WIDE = 8  # bits of an e4m3 number
MOST = torch.finfo(E4M3).max / 2 ** (BITS - 1)
LEAST = 2.0**-9  # the smallest e4m3 number


@dataclass(frozen=True)
class FireQ(LinearMethod):
    card: ClassVar = Card(
        id="fireq",
        title="FireQ: Fast INT4-FP8 Kernel and RoPE-aware Quantization for LLM Inference Acceleration",
        paper="arXiv:2505.20839",
        fidelity="reconstructed",
        beside=("fireq_keys", "smoothquant", "act_quant"),
        claims=(
            Claim(
                "beats-8-bit-integers-for-inputs",
                "fireq",
                "<",
                "rtn(bits=4, symmetric=True) -> act_quant(bits=8)",
                note="e4m3 has finer steps for small numbers, which is what most are where channels stand out",
                model="asset:own-5m-outliers",
            ),
            Claim(
                "channel-scaling-helps",
                "smoothquant(alpha=0.0) -> fireq",
                "<",
                "fireq",
                model="asset:own-5m-outliers",
            ),
        ),
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Activations,)

    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)

    def fits(self, site: Site) -> None:
        check_inputs(self.card.id, site)
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        inner = grouped_spec(site.shape, BITS, self.group_size or site.shape[1], True)
        return activations_spec(inner, WIDE, 0, 1.0, floating=True)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Activations:
        groups = weight.dense().reshape(site.shape[0], -1, self.group_size or site.shape[1])
        grid = Grid(group_scale(groups), torch.tensor(2.0 ** (BITS - 1), device=groups.device), BITS)
        return Activations(Grouped.on_grid(grid, groups, symmetric=True), WIDE, site.shape[1], floating=True)


def group_scale(groups: Tensor) -> Tensor:
    """groups [out, groups, group] -> [out, groups, 1], each an e4m3 number times one power of two, in float16's range."""
    wanted = groups.abs().amax(-1, keepdim=True) / (2 ** (BITS - 1) - 1)
    largest = float(wanted.max())
    if not largest <= LARGEST / 2:  # written so that NaN fails; rounding may make it larger
        raise ArithmeticError("a group's scale exceeds float16")
    if largest == 0:
        return torch.ones_like(wanted)
    factor = 2.0 ** ceil(log2(largest / MOST))
    stored = ((wanted / factor).clamp(min=LEAST).to(E4M3).float() * factor).half().float()
    return torch.where((wanted > 0) & (stored >= SMALLEST), stored, 1.0)
