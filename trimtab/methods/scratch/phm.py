"""PHM: a matrix as a sum of Kronecker products, W = sum_i A_i x F_i: an algebra that is learned, and its components.

A [n, n, n] and F [n, out / n, in / n]: about 1 / n of the numbers. With n = 4 and A the products of the quaternions' units it
would be a quaternion layer; here A is learned, too. Grassucci, Zhang and Comminiello, IEEE TNNLS 2022, of whose layers this is
the fully connected one. Different: F begins with the spread that the model wants for the matrix.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.formats.kronecker import Kronecker
from trimtab.formats.registry import MOST_PARTS
from trimtab.formats.sum import Sum


@dataclass(frozen=True)
class Phm(ScratchMethod):
    card: ClassVar = Card(
        id="phm",
        title="PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
        paper="arXiv:2110.04176",
        fidelity="variant",
        beside=("low_rank", "structured_ffn"),
        claims=(
            Claim(
                "beats-low-rank",
                "phm(components=2)",
                "<",
                "low_rank(keep=0.5)",
                model="asset:own-2m",
                note="trained from random weights on equal tokens, with equally many trained numbers",
            ),
        ),
    )

    components: int = count("n: products in the sum; numbers fall to about 1 / n", 2, high=MOST_PARTS)

    def fits(self, site: Site) -> None:
        if any(width % self.components for width in site.shape):
            out, inputs = site.shape
            raise UsageError(
                f"phm: {site.name} is {out} x {inputs}, which {self.components} components do not divide; use a common divisor"
            )

    def numbers(self, shape: tuple[int, int]) -> int:
        return self.components**3 + shape[0] * shape[1] // self.components

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "KroneckerSum":
        n, (out, inputs) = self.components, site.shape
        bound = sqrt(3 / n)  # Xavier: the products then have F's spread
        algebra = torch.empty(n, n, n).uniform_(-bound, bound, generator=generator)
        parts = torch.randn(n, out // n, inputs // n, generator=generator) * weight.square().mean().sqrt().cpu()
        return KroneckerSum(algebra, parts).to(weight.device)


class KroneckerSum(Structure):
    """sum_i algebra[i] [n, n] x parts[i] [out / n, in / n]."""

    def __init__(self, algebra: Tensor, parts: Tensor):
        super().__init__()
        self.algebra, self.parts = nn.Parameter(algebra), nn.Parameter(parts)

    def matrix(self) -> Tensor:
        return torch.einsum("iab,icd->acbd", self.algebra, self.parts).flatten(2).flatten(0, 1)

    def result(self) -> Sum:
        pairs = zip(self.algebra.detach().clone(), self.parts.detach().clone(), strict=True)
        return Sum(tuple(Kronecker(left, right) for left, right in pairs))
