"""SketchTune: weights of a row that are nearly equal are moved together, by one number that is trained.

The weights of a row, or of each of its `groups` parts, are sorted into 2^bits classes by k-means, in which an input counts by
how much the others need it: diag(H^-1)^-power, H the gram matrix of what was shown with 1 % of its mean diagonal added. W +
D[row, group, class of the weight], D zero at first, 2^bits * groups numbers a row; the classes never change. Zhang et al.
2024. Different: there the base is replaced by its sketch, the class means, and these are trained. Here the base stays what it
is, plain or rounded by any method before, and only the moves of the classes are trained. A row that has no more values than
classes has each value for a class, so that beside a base rounded row by row to as many bits that is the same; such a base may be
made with error feedback from column to column, as the paper's sketch is. Other classes are nearest means without it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod
from trimtab.formats.deltas import MatrixDelta, device_of
from trimtab.stats import Gram
from trimtab.tensors.packing import pack, packed_width, unpack
from trimtab.tensors.row_levels import row_levels
from trimtab.tensors.spd import cholesky

DAMPING = 0.01


@dataclass(frozen=True)
class Sketchtune(AdapterMethod):
    card: ClassVar = Card(
        id="sketchtune",
        title="Sketch to Adapt: Fine-Tunable Sketches for Efficient LLM Adaptation",
        paper="arXiv:2410.06364",
        fidelity="variant",
        beside=("lora", "s2ft"),
        claims=(
            Claim(
                "beats-lora",
                "sketchtune(bits=4)",
                "<",
                "lora(rank=8, alpha=8.0)",
                published="87.0 > 82.5 commonsense accuracy, Llama-3-8B",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k, about the same number of trained parameters",
            ),
            Claim(
                "beats-lora-beside-4-bits",
                "gptq(bits=4, group_size=0) -> sketchtune(bits=4)",
                "<",
                "gptq(bits=4, group_size=0) -> lora(rank=8, alpha=8.0)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; the same base, and about the same number of trained parameters",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    bits: int = count("a row, or part of one, has 2^bits classes", 4, high=8)
    groups: int = count("parts of a row with classes of their own", 1)
    power: float = number("how much the need for an input counts", 3.0, low=0.0, high=8.0)

    def fits(self, site: Site) -> None:
        out, inputs = site.shape
        if inputs % self.groups or inputs // self.groups < 2**self.bits:
            raise UsageError(
                f"sketchtune: {site.name} is {out} x {inputs}; use groups that divide a row into parts of at least "
                f"{2**self.bits} weights, or leave it out with --skip"
            )

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "ClassesDelta":
        dense = weight.dense()
        parts = dense.reshape(len(dense) * self.groups, -1)
        counts = needed(seen[Gram], self.power).view(self.groups, -1).repeat(len(dense), 1)
        _, codes = row_levels(parts, counts, 2**self.bits)
        ranks = value_ranks(parts)
        few = ranks.amax(1, keepdim=True) < 2**self.bits
        return ClassesDelta(pack(torch.where(few, ranks, codes).to(torch.uint8), self.bits), self.bits, site.shape)

    def blank(self, weight: LinearWeight, seen: Seen, site: Site) -> "ClassesDelta":
        out, inputs = site.shape
        width = packed_width(inputs // self.groups, self.bits)
        codes = torch.zeros(out * self.groups, width, dtype=torch.uint8, device=device_of(weight))
        return ClassesDelta(codes, self.bits, site.shape)


class ClassesDelta(MatrixDelta):
    """codes: packed, uint8 [parts, bytes], of the parts of all rows; moves [parts, 2^bits]: by how much each class is moved."""

    def __init__(self, codes: Tensor, bits: int, shape: tuple[int, int]):
        super().__init__()
        self.bits, self.shape = bits, shape
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.moves = nn.Parameter(torch.zeros(len(codes), 2**bits, device=codes.device))

    def change(self) -> Tensor:
        out, inputs = self.shape
        found: Tensor = Moved.apply(self.moves, self.codes, self.bits, out * inputs // len(self.codes))  # type: ignore[no-untyped-call]
        return found.view(self.shape)


class Moved(torch.autograd.Function):
    """[parts, n]: of every weight the move of its class. Unpacks the codes again for the gradient: eight bytes a weight else."""

    @staticmethod
    def forward(ctx: Any, moves: Tensor, codes: Tensor, bits: int, count: int) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.bits, ctx.classes = bits, moves.shape
        return moves.gather(1, unpack(codes, bits, count).long())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (codes,) = ctx.saved_tensors
        places = unpack(codes, ctx.bits, gradient.shape[1]).long()
        return gradient.new_zeros(ctx.classes).scatter_add_(1, places, gradient), None, None, None


def value_ranks(values: Tensor) -> Tensor:
    """[rows, n] int64: how many different smaller values there are in the row."""
    ordered, order = values.sort(1)
    steps = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0)).cumsum(1)
    return torch.empty_like(order).scatter_(1, order, steps)


def needed(gram: Tensor, power: float) -> Tensor:
    """[in] float64, mean 1: diag(inverse of the damped gram)^-power. Raises ArithmeticError where nothing was seen."""
    factor, _ = cholesky(gram, DAMPING)
    found = torch.cholesky_inverse(factor).diagonal().pow(-power)
    return found / found.mean()
