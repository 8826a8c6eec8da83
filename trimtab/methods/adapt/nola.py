"""NOLA: both factors of a low-rank change are mixtures of random matrices; only what they are mixed by is trained.

W + (alpha / r) B A, A = A_0 + sum_i a_i A_i, B = sum_j b_j B_j, all A_i [r, in] and B_j [out, r] uniform within 1 /
sqrt(bases) of zero and A_0 as LoRA's, drawn from `key` and never trained. a and b are zero at first, so nothing is added. 2 *
bases numbers are trained for a matrix, whatever its size or rank. Koohpayegani et al., ICLR 2024, with the start of the authors'
text code. Different: matrices of the same size share the random ones, which therefore stay in memory instead of being drawn
again at every step.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import RankedMethod
from trimtab.formats.deltas import ProductDelta, device_of


@dataclass(frozen=True)
class Nola(RankedMethod):
    card: ClassVar = Card(
        id="nola",
        title="NOLA: Compressing LoRA using Linear Combination of Random Basis",
        paper="arXiv:2310.02556",
        fidelity="variant",
        beside=("randlora", "tera", "lora"),
        claims=(
            Claim(
                "more-bases-help",
                "nola(rank=8, bases=128)",
                "<",
                "nola(rank=8, bases=16)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; more parameters on the left: the claim is that coefficients alone are put to use",
            ),
        ),
    )
    usual_rate: ClassVar = 1e-3

    rank: int = count("inner dimension of the product", 8)
    alpha: float = number("the product is multiplied by alpha / rank", 64.0, low=0.001)
    bases: int = count("how many random matrices either factor is mixed of", 64, high=4096)
    key: int = count("what the random matrices are drawn from", 0, low=0)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "MixtureDelta":
        (out, inputs), device = site.shape, device_of(weight)
        lefts = seen.once(("left", out, device), lambda: self._drawn("left", self.bases, out).to(device))
        rights = seen.once(("right", inputs, device), lambda: self._drawn("right", 1 + self.bases, inputs).to(device))
        return MixtureDelta(lefts, rights, self.alpha / self.rank)

    def _drawn(self, side: str, how_many: int, size: int) -> Tensor:
        """[how_many, rank, size]; the first of the right ones is A_0."""
        generator = Seeds(self.key).at("nola", side, size, self.rank, self.bases)
        found: Tensor = (2 * torch.rand(how_many, self.rank, size, generator=generator) - 1) * self.bases**-0.5
        if side == "right":
            found[0] *= (self.bases / size) ** 0.5
        return found


class MixtureDelta(ProductDelta):
    """lefts [bases, rank, out], rights [1 + bases, rank, in]: frozen, shared; the first of rights is always there."""

    lefts: Tensor
    rights: Tensor

    def __init__(self, lefts: Tensor, rights: Tensor, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("lefts", lefts, persistent=False)
        self.register_buffer("rights", rights, persistent=False)
        self.of_left, self.of_right = (nn.Parameter(torch.zeros(len(lefts), device=lefts.device)) for _ in range(2))

    def factors(self) -> tuple[Tensor, Tensor]:
        left = torch.tensordot(self.of_left, self.lefts, 1).mT
        return left, self.rights[0] + torch.tensordot(self.of_right, self.rights[1:], 1)
