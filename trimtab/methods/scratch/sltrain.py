"""SLTrain: low rank plus a sparse matrix whose support is drawn once and never moves.

W = (alpha / rank) left @ right + S. left is zero at first, right Kaiming-uniform, S has `density` * out * in entries anywhere,
uniform within +-1/sqrt(in). W is made for a product and thrown away; for the backward pass the input and the factors are kept,
never W. Han et al., NeurIPS 2024. Different: `keep` says how many numbers there are in all (the positions of S, which are
not trained, come on top: 4 bytes each in training, one bit per weight of the matrix in the result), and the rank follows.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.core.knobs import number, rate
from trimtab.core.places import Site
from trimtab.core.scratch import ScratchMethod, Structure
from trimtab.formats.lowrank import low_rank
from trimtab.formats.masked import Masked
from trimtab.formats.sum import Sum


@dataclass(frozen=True)
class SLTrain(ScratchMethod):
    card: ClassVar = Card(
        id="sltrain",
        title="SLTrain: a sparse plus low-rank approach for parameter and memory efficient pretraining",
        paper="arXiv:2406.02214",
        fidelity="exact",
        beside=("low_rank", "relora", "galore"),
        claims=(
            Claim(
                "beats-low-rank",
                "sltrain(keep=0.3)",
                "<",
                "low_rank(keep=0.3)",
                published="34.15 < 78.18, LLaMA-60M, C4",
                model="asset:own-2m",
                note="trained from random weights on equal tokens, with equally many trained numbers",
            ),
        ),
    )

    keep: float = rate("trained numbers, as a fraction of the matrix's", 0.5, low=0.001)
    density: float = rate("fraction of the matrix that the sparse part may hold", 0.03)
    alpha: float = number("the low-rank part is multiplied by alpha / rank", 16.0, low=0.001)

    def check(self) -> None:
        if self.density > self.keep:
            raise UsageError(f"sltrain: density {self.density:g} is more than keep {self.keep:g} leaves; use a smaller one")

    def numbers(self, shape: tuple[int, int]) -> int:
        return self._rank(shape) * sum(shape) + self._entries(shape)

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> "SparsePlusLowRank":
        (out, inputs), rank, device = site.shape, self._rank(site.shape), weight.device
        bound = 1 / sqrt(inputs)
        right = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        order = torch.randperm(out * inputs, generator=generator)[: self._entries(site.shape)].sort().values
        values = torch.empty(len(order)).uniform_(-bound, bound, generator=generator)
        left, scale = torch.zeros(out, rank), self.alpha / max(rank, 1)
        return SparsePlusLowRank(left, right, values, order.int(), scale).to(device)

    def _rank(self, shape: tuple[int, int]) -> int:
        """0 where the sparse part takes everything."""
        return int((self.keep - self.density) * shape[0] * shape[1] / sum(shape))

    def _entries(self, shape: tuple[int, int]) -> int:
        return round(self.density * shape[0] * shape[1])


class SparsePlusLowRank(Structure):
    """scale * left [out, rank] @ right [rank, in], and values [entries] at flat positions [entries] int32, ascending."""

    positions: Tensor

    def __init__(self, left: Tensor, right: Tensor, values: Tensor, positions: Tensor, scale: float):
        super().__init__()
        self.left, self.right, self.values = nn.Parameter(left), nn.Parameter(right), nn.Parameter(values)
        self.register_buffer("positions", positions)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        product: Tensor = _Times.apply(flat, self.left, self.right, self.values, self.positions, self.scale)
        return product.view(*x.shape[:-1], -1)

    def matrix(self) -> Tensor:
        return _made(self.left, self.right, self.values, self.positions, self.scale)

    def result(self) -> LinearWeight:
        keep = torch.zeros(len(self.left) * self.right.shape[1], dtype=torch.bool, device=self.left.device)
        keep[self.positions.long()] = True
        sparse = torch.zeros_like(keep, dtype=torch.float32)
        sparse[self.positions.long()] = self.values.detach()
        shape = len(self.left), self.right.shape[1]
        masked = Masked(sparse.view(shape), keep.view(shape))
        if not len(self.right):
            return masked
        left = (self.scale * self.left).detach()
        product = low_rank(left, self.right.detach().clone(), torch.float32)
        return Sum((product, masked)) if len(self.values) else product


def _made(left: Tensor, right: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """[out, in]"""
    product = scale * (left @ right)
    return product.flatten().index_add(0, positions, values).view_as(product)


class _Times(torch.autograd.Function):
    """x W^T without keeping W, or anything of its size, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, left, right, values, positions)
        ctx.scale = scale
        return x @ _made(left, right, values, positions, scale).T

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        x, left, right, values, positions = ctx.saved_tensors
        weight = _made(left, right, values, positions, ctx.scale)
        gradient = above[0].T @ x  # [out, in]
        parts = ctx.scale * gradient @ right.T, ctx.scale * left.T @ gradient, gradient.flatten()[positions]
        return above[0] @ weight, *parts, None, None
