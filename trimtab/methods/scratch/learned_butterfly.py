"""Learned butterfly: a matrix as log2 n sparse factors, the structure of fast transforms, trained from random numbers.

n is the power of two not below the inputs, at least 8; more outputs than n take several butterflies on top of each other. Every
factor mixes pairs by 2 x 2 matrices of their own: at most 2 n log2 n numbers for n^2. They begin as normal numbers that keep a
vector's size, up to what the model wants at this place. Dao et al., ICML 2019. Left out: learned permutations and complex
numbers, which recovering a transform needs; that has a closed form (`butterfly`).
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.formats.butterfly import LARGEST, Butterfly
from trimtab.tensors import butterfly


@dataclass(frozen=True)
class LearnedButterfly(ScratchMethod):
    card: ClassVar = Card(
        id="learned_butterfly",
        title="Learning Fast Algorithms for Linear Transforms Using Butterfly Factorizations",
        paper="arXiv:1903.05895",
        fidelity="variant",
        beside=("butterfly", "low_rank", "structured_ffn"),
        claims=(
            Claim(
                "beats-low-rank",
                "learned_butterfly",
                "<",
                "low_rank(keep=0.092)",
                model="asset:own-2m",
                note="trained from random weights on equal tokens, with 2 % fewer trained numbers in the blocks",
            ),
        ),
    )

    def fits(self, site: Site) -> None:
        if site.shape[1] > LARGEST:
            raise UsageError(f"learned_butterfly: {site.name} has {site.shape[1]} inputs, at most {LARGEST} can be")

    def numbers(self, shape: tuple[int, int]) -> int:
        return butterfly.numbers(shape)

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "Factors":
        return Factors.fresh(weight, generator)


class Factors(Structure):
    """The factors of a matrix [out, in], as far as it needs them; shapes as in `formats.Butterfly`."""

    def __init__(self, first: Tensor, middle: Tensor, last: Tensor):
        super().__init__()
        self.first, self.middle, self.last = nn.Parameter(first), nn.Parameter(middle), nn.Parameter(last)

    @classmethod
    def fresh(cls, weight: Tensor, generator: torch.Generator) -> Self:
        (out, inputs), size = weight.shape, butterfly.size_for(weight.shape[1])
        stacks = butterfly.stacks_for((out, inputs))
        drawn = torch.randn(stacks, size.bit_length() - 1, size // 2, 2, 2, generator=generator) * 0.5**0.5
        # Every number of the product is one path through the factors, so its variance would be 1 / n.
        drawn[:, -1] *= float(weight.square().mean().sqrt()) * size**0.5
        return cls(*(part.contiguous() for part in butterfly.used(drawn.to(weight.device), (out, inputs))))

    def forward(self, x: Tensor) -> Tensor:
        flat = pad(x.reshape(-1, x.shape[-1]), (0, 2 * self.middle.shape[2] - x.shape[-1]))
        product = butterfly.applied(flat[:, None], self._twiddle()).flatten(1)[:, : len(self.last)]
        return product.view(*x.shape[:-1], -1)

    def matrix(self) -> Tensor:
        whole = butterfly.product(self._twiddle()).flatten(0, 1)
        return whole[: len(self.last), : self.first.shape[1]]

    def result(self) -> Butterfly:
        return Butterfly(*(part.detach().clone() for part in (self.first, self.middle, self.last)))

    def _twiddle(self) -> Tensor:
        return butterfly.whole(self.first, self.middle, self.last)
