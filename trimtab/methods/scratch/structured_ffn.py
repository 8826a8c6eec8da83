"""StructuredFFN: matrices of the feed-forward layers with fewer numbers, which a whole matrix guides in the first half.

low_rank: left @ right. block_dense: left [out, rank] @ a block-diagonal matrix [rank, in] of `blocks` blocks, orthonormal rows at
first. Self-guided training: y = a G x + (1 - a) S x, G [out, in] begins as the very matrix that the structure S is, and a falls
from 1 to 0 along a cosine over the `guided` part of the steps; then G rests. Wei, Moalla, Pascanu and Gulcehre, NeurIPS 2024.
Left out: their block_shuffle, and skipping G in some steps to save time. G counts in the memory of a training, not in its result.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight
from trimtab.core.knobs import choice, count, rate
from trimtab.core.places import Role, Site
from trimtab.core.scratch import ScratchMethod, Structure, rest
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook
from trimtab.formats.block_diagonal import BlockDiagonal
from trimtab.formats.dense import Dense
from trimtab.formats.lowrank import Chain
from trimtab.formats.trained import Product
from trimtab.tensors.lowrank import rank_for


@dataclass(frozen=True)
class StructuredFFN(ScratchMethod):
    card: ClassVar = Card(
        id="structured_ffn",
        title="Building on Efficient Foundations: Effectively Training LLMs with Structured Feedforward Layers",
        paper="arXiv:2406.16450",
        fidelity="variant",
        beside=("low_rank", "sltrain"),
        claims=(
            Claim(
                "guidance-helps",
                "structured_ffn(keep=0.32)",
                "<",
                "structured_ffn(keep=0.32, guided=0.0)",
                model="asset:own-2m",
                note="trained from random weights on equal tokens",
            ),
        ),
    )

    keep: float = rate("numbers of the structure, as a fraction of the matrix's", 0.32, low=0.001)
    structure: str = choice("what stands for a matrix", "low_rank", ("low_rank", "block_dense"))
    blocks: int = count("blocks of block_dense", 2)
    guided: float = rate("part of the steps, at the beginning, in which a whole matrix helps; 0: none", 0.5)

    def wants(self, site: Site) -> bool:
        return site.role in (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)

    def fits(self, site: Site) -> None:
        if self.structure == "block_dense" and site.shape[1] % self.blocks:
            raise UsageError(f"structured_ffn: {site.name} has {site.shape[1]} inputs, not a multiple of {self.blocks} blocks")

    def numbers(self, shape: tuple[int, int]) -> int:
        out, inputs = shape
        if self.structure == "low_rank":
            return rank_for(shape, self.keep) * (out + inputs)
        return self._rank(shape) * (out + inputs // self.blocks)

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> Structure:
        inner: Structure
        if self.structure == "low_rank":
            inner = Product.of(weight, rank_for(site.shape, self.keep))
        else:
            inner = BlockDense.fresh(weight, self._rank(site.shape), self.blocks, generator)
        return Guided(inner) if self.guided else inner

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> Hook | None:
        if not self.guided:
            return None
        return Guidance(cast(Mapping[str, Guided], structures).values(), round(self.guided * steps))

    def _rank(self, shape: tuple[int, int]) -> int:
        """Of block_dense: a multiple of the blocks."""
        out, inputs = shape
        fitting = int(self.keep * out * inputs / (out + inputs / self.blocks))
        return max(1, fitting // self.blocks) * self.blocks


class BlockDense(Structure):
    """left [out, rank] @ the block-diagonal matrix of blocks [count, rank / count, in / count]."""

    def __init__(self, left: Tensor, blocks: Tensor):
        super().__init__()
        self.left, self.blocks = nn.Parameter(left), nn.Parameter(blocks)

    @classmethod
    def fresh(cls, weight: Tensor, rank: int, count: int, generator: torch.Generator) -> Self:
        """With outputs as large as those of weight [out, in]."""
        out, inputs = weight.shape
        drawn = torch.randn(count, rank // count, inputs // count, generator=generator)
        u, _, vt = torch.linalg.svd(drawn, full_matrices=False)
        spread = (weight.square().mean() * inputs / rank).sqrt()
        left = torch.randn(out, rank, generator=generator).to(weight.device) * spread
        return cls(left, (u @ vt).to(weight.device))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (len(self.blocks), -1))
        return torch.einsum("...bi,bri->...br", parts, self.blocks).flatten(-2) @ self.left.T

    def matrix(self) -> Tensor:
        return self.left @ torch.block_diag(*self.blocks)

    def result(self) -> Chain:
        return Chain((Dense(self.left.detach().clone()), BlockDiagonal(self.blocks.detach().clone())))


class Guided(Structure):
    """share * guide [out, in] + (1 - share) * inner. What is stored is the inner one."""

    def __init__(self, inner: Structure):
        super().__init__()
        self.inner, self.share = inner, 1.0
        self.guide = nn.Parameter(inner.matrix().detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        own: Tensor = self.inner(x)
        return torch.lerp(own, x @ self.guide.T, self.share) if self.share else own

    def matrix(self) -> Tensor:
        return torch.lerp(self.inner.matrix(), self.guide, self.share) if self.share else self.inner.matrix()

    def result(self) -> LinearWeight:
        return self.inner.result()


class Guidance(Hook):
    """Lets the guides' share fall over the first `steps`, and rests them then."""

    def __init__(self, structures: Iterable[Guided], steps: int):
        self.structures, self.steps = structures, steps

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        share = (1 + cos(pi * step / self.steps)) / 2 if step < self.steps else 0.0
        for structure in self.structures:
            structure.share = share
            if not share:
                rest(optimizer, [structure.guide])
