"""SLiM-Quant: one scale for a whole matrix, clipped where the expected error over the distribution of the weights is least.

With p the histogram of |W| and Q the symmetric grid of 2^bits - 1 levels over -limit .. limit, the limit with the least
    sum over |w| < limit of p(w) (w - Q(w))^2  +  sum over |w| >= limit of p(w) (|w| - limit)^2,
searched among ten fractions of the largest weight, then among all edges of bins between the neighbours of the best.
Mozaffari et al., ICML 2025 (arXiv:2410.09615); needs no data. Q is the quantizer that is used, where the authors' rounds down
with another step. Without their activation-aware variant, which doubles the loudest columns. Their pruning and low-rank
compensation are steps of a recipe: `wanda(pattern='2:4') -> slim_quant -> lqer`. The scale is stored for every row, as other
grids are, which costs 16 / in bits per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.rounding import LARGEST, SMALLEST

FEWEST, MOST, PER_BIN = 512, 20_000, 1000  # bins of the histogram, and how many weights ask for one
COARSE = 10
AT_ONCE = 256  # limits that are tried together


@dataclass(frozen=True)
class SlimQuant(LinearMethod):
    card: ClassVar = Card(
        id="slim_quant",
        title="SLiM: One-shot Quantization and Sparsity with Low-rank Approximation for LLM Weight Compression",
        paper="arXiv:2410.09615",
        fidelity="exact",
        beside=("rtn", "lqer", "wanda"),
        claims=(
            Claim("clipping-beats-the-largest-weight-at-4-bit", "slim_quant(bits=4)", "<", "slim_quant(bits=4, clip=False)"),
            Claim(
                "beats-clipped-rtn-at-4-bit",
                "slim_quant(bits=4)",
                "<",
                "rtn(bits=4, group_size=0, symmetric=True, clip=True)",
                note="no data and the same stored bits on both sides; the baseline fits every row's range by itself",
            ),
        ),
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    clip: bool = flag("the range with the least expected error; else up to the largest weight", True)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, site.shape[1], symmetric=True)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        dense = weight.dense()
        top = (1 << (self.bits - 1)) - 1
        limit = best_limit(dense.abs(), top) if self.clip else float(dense.abs().max())
        if not limit / top <= LARGEST:  # written so that NaN fails
            raise ArithmeticError("the scale of the matrix exceeds float16")
        scale = torch.full((len(dense), 1), limit / top if limit / top >= SMALLEST else 1.0, device=dense.device).half()
        codes = (dense / scale.float()).round_().clamp_(-top, top) + (top + 1)
        return Grouped(codes.to(torch.uint8), scale, None, self.bits, site.shape[1])


def best_limit(sizes: Tensor, top: int) -> float:
    """The clipping limit for integers -top .. top with the least expected squared error. sizes: |W|, any shape, float32."""
    largest = float(sizes.max())
    if largest == 0:
        return 0.0
    bins = min(max(FEWEST, sizes.numel() // PER_BIN), MOST)
    counts = torch.histc(sizes, bins, 0, largest).double()
    centres = torch.arange(bins, dtype=torch.float64, device=sizes.device) + 0.5  # everything in widths of a bin
    coarse = torch.linspace(bins / COARSE, bins, COARSE, dtype=torch.float64, device=sizes.device).round()
    near = int(_expected(coarse, centres, counts, top).argmin())
    low, high = (int(coarse[max(0, min(near + side, COARSE - 1))]) for side in (-1, 1))
    fine = torch.arange(1 if near == 0 else low, high + 1, dtype=torch.float64, device=sizes.device)
    best = float(fine[_expected(fine, centres, counts, top).argmin()])
    return best * largest / bins


def _expected(limits: Tensor, centres: Tensor, counts: Tensor, top: int) -> Tensor:
    """[limits]: squared error summed over the histogram, counts [bins] at centres [bins]."""
    errors = []
    for part in limits.split(AT_ONCE):
        step = part[:, None] / top
        errors.append(((centres / step).round_().clamp_(max=top) * step - centres).square_() @ counts)
    return torch.cat(errors)
