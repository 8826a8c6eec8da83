"""WaRA: a low-rank change between the wavelet bands of inputs and outputs, the same one for every band.

Neighbouring inputs (2i, 2i + 1) become their sum and difference over sqrt(2), Haar's wavelets; B A [out / 2, in / 2] is
applied to the half of sums and to the half of differences, and the outputs go the way back: W + s T_out^T (I_2 (x) B A) T_in,
s = alpha / r. A as in LoRA, B zero. Heidari et al. 2025, first version, one level. There a transform over the tokens comes on
top; since all bands share B A it cancels, so here it is left out and no token sees a later one. The change has rank 2 r with
the parameters of a LoRA of rank r / 2, and is written as a LoRA of rank 2 r.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import LowRankDelta, device_of, fresh_right, lora_fields
from trimtab.tensors.haar import bands, joined


@dataclass(frozen=True)
class Wara(RankedMethod):
    card: ClassVar = Card(
        id="wara",
        title="WaRA: Wavelet Low Rank Adaptation",
        paper="arXiv:2506.24092",
        fidelity="variant",
        beside=("lora",),
        claims=(
            Claim(
                "beats-lora-at-equal-parameters",
                "wara(rank=8, alpha=8.0)",
                "<",
                "lora(rank=4, alpha=4.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; published for images, nothing is expected of an order of hidden units",
            ),
        ),
    )

    rank: int = count("inner dimension of the product of one band", 16)
    alpha: float = number("the product is multiplied by alpha / rank", 32.0, low=0.001)

    def fits(self, site: Site) -> None:
        if any(size % 2 for size in site.shape) or 2 * self.rank > min(site.shape):
            out, inputs = site.shape
            raise UsageError(
                f"wara: {site.name} is {out} x {inputs}; both have to be even and at least twice the rank {self.rank}; "
                f"use a lower rank, or leave it out with --skip"
            )

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "BandsDelta":
        (out, inputs), device = site.shape, device_of(weight)
        right = fresh_right(self.rank, inputs // 2, seen.generator, device)
        return BandsDelta(torch.zeros(out // 2, self.rank, device=device), right, self.alpha / self.rank)

    def portable(self) -> dict[str, Any]:
        return lora_fields(2 * self.rank, 2 * self.alpha)


class BandsDelta(LowRankDelta):
    """left [out / 2, rank], right [rank, in / 2], for sums and differences alike."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """Of twice the rank: what is made of the sums, then what is made of the differences."""
        none = torch.zeros_like(self.right)
        rights = torch.cat([joined(self.right, none), joined(none, self.right)], 0)
        rows, nothing = self.left.mT, torch.zeros_like(self.left.mT)
        return torch.cat([joined(rows, nothing), joined(nothing, rows)], 0).mT, rights

    def forward(self, x: Tensor, product: Tensor, weight: object) -> Tensor:
        sums, differences = ((band @ self.right.mT) @ self.left.mT for band in bands(x))
        return self.scale * joined(sums, differences)
