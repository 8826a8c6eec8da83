"""StructuredFFN: matrices of the feed-forward layers with fewer numbers, which a whole matrix guides in the first half.

low_rank: left @ right. block_dense: left [out, rank] @ a block-diagonal matrix [rank, in] of `blocks` blocks, orthonormal rows at
first. block_shuffle: two block-diagonal matrices, behind each of which numbers change places so that every block meets others,
and all of them from rank blocks^2 on. Self-guided training: y = a G x + (1 - a) S x, G [out, in] begins as the very matrix that
the structure S is, and a falls from 1 to 0 along a cosine over the `guided` part of the steps; then G rests. Wei, Moalla, Pascanu
and Gulcehre, NeurIPS 2024. Left out: skipping G in some steps to save time. G counts in the memory of a training, not in its
result.
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
from trimtab.formats.permutation import Permutation
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
    structure: str = choice("what stands for a matrix", "low_rank", ("low_rank", "block_dense", "block_shuffle"))
    blocks: int = count("blocks of a block-diagonal matrix", 2)
    guided: float = rate("part of the steps, at the beginning, in which a whole matrix helps; 0: none", 0.5)

    def wants(self, site: Site) -> bool:
        return site.role in (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)

    def fits(self, site: Site) -> None:
        cut = {"low_rank": (), "block_dense": site.shape[1:], "block_shuffle": site.shape}[self.structure]
        if any(size % self.blocks for size in cut):
            sizes = " x ".join(map(str, site.shape))
            raise UsageError(f"structured_ffn: {site.name} is {sizes}, which {self.blocks} blocks do not divide evenly")

    def numbers(self, shape: tuple[int, int]) -> int:
        out, inputs = shape
        if self.structure == "low_rank":
            return rank_for(shape, self.keep) * (out + inputs)
        outer = out if self.structure == "block_dense" else out // self.blocks
        return self._rank(shape) * (outer + inputs // self.blocks)

    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> Structure:
        inner: Structure
        if self.structure == "low_rank":
            inner = Product.of(weight, rank_for(site.shape, self.keep))
        else:
            kind = BlockDense if self.structure == "block_dense" else BlockShuffle
            inner = kind.fresh(weight, self._rank(site.shape), self.blocks, generator)
        return Guided(inner) if self.guided else inner

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> Hook | None:
        if not self.guided:
            return None
        return Guidance(cast(Mapping[str, Guided], structures).values(), round(self.guided * steps))

    def _rank(self, shape: tuple[int, int]) -> int:
        """Where there are blocks: a multiple of their number. Two block-diagonal matrices need none above the smaller side."""
        out, inputs = shape
        outer = out if self.structure == "block_dense" else out / self.blocks
        fitting = int(self.keep * out * inputs / (outer + inputs / self.blocks))
        if self.structure == "block_shuffle":
            fitting = min(fitting, *shape)
        return max(1, fitting // self.blocks) * self.blocks


def _even_blocks(count: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[count, rows, columns] with orthonormal rows, or columns."""
    u, _, vt = torch.linalg.svd(torch.randn(count, rows, columns, generator=generator), full_matrices=False)
    return u @ vt


class BlockDense(Structure):
    """left [out, rank] @ the block-diagonal matrix of blocks [count, rank / count, in / count]."""

    def __init__(self, left: Tensor, blocks: Tensor):
        super().__init__()
        self.left, self.blocks = nn.Parameter(left), nn.Parameter(blocks)

    @classmethod
    def fresh(cls, weight: Tensor, rank: int, count: int, generator: torch.Generator) -> Self:
        """With outputs as large as those of weight [out, in]."""
        out, inputs = weight.shape
        blocks = _even_blocks(count, rank // count, inputs // count, generator)
        spread = (weight.square().mean() * inputs / rank).sqrt()
        left = torch.randn(out, rank, generator=generator).to(weight.device) * spread
        return cls(left, blocks.to(weight.device))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (len(self.blocks), -1))
        return torch.einsum("...bi,bri->...br", parts, self.blocks).flatten(-2) @ self.left.T

    def matrix(self) -> Tensor:
        return self.left @ torch.block_diag(*self.blocks)

    def result(self) -> Chain:
        return Chain((Dense(self.left.detach().clone()), BlockDiagonal(self.blocks.detach().clone())))


class BlockShuffle(Structure):
    """shuffle @ left @ shuffle @ right: left [count, out / count, rank / count], right [count, rank / count, in / count]."""

    def __init__(self, left: Tensor, right: Tensor):
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)

    @classmethod
    def fresh(cls, weight: Tensor, rank: int, count: int, generator: torch.Generator) -> Self:
        """With outputs as large as those of weight [out, in]."""
        out, inputs = weight.shape
        right = _even_blocks(count, rank // count, inputs // count, generator).to(weight.device)
        left = _even_blocks(count, out // count, rank // count, generator).to(weight.device)
        # |left right|^2 = sum_k |left[:, k]|^2 |right[k]|^2 for random signs, and all k are alike.
        scale = weight.norm() / (left.norm() * right.norm()) * rank**0.5
        return cls(left * scale, right)

    def forward(self, x: Tensor) -> Tensor:
        return _through(_through(x, self.right), self.left)

    def matrix(self) -> Tensor:
        unit = torch.eye(self.right[0].shape[1] * len(self.right), device=self.right.device, dtype=self.right.dtype)
        return self.forward(unit).mT

    def result(self) -> Chain:
        parts = []
        for blocks in (self.left, self.right):
            count, rows, _ = blocks.shape
            order = torch.arange(count * rows, device=blocks.device).view(count, rows).mT.flatten()
            parts += [Permutation(order), BlockDiagonal(blocks.detach().clone())]
        return Chain(tuple(parts))


def _through(x: Tensor, blocks: Tensor) -> Tensor:
    """Every block's first output, then every block's second, ..."""
    return torch.einsum("...bi,bri->...rb", x.unflatten(-1, (len(blocks), -1)), blocks).flatten(-2)


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
