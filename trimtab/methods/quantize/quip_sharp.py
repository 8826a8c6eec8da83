"""QuIP# (`quip_sharp`): incoherent weights look normally distributed in every eight of them, so round those to a lattice.

W = R_out V R_inᵀ;  every 8 columns of V at once go to the nearest points scale * e of a codebook of 2^16 points of the lattice E8
(`tensors.lattice`), one scale for the matrix, and their errors to the columns behind them (block LDLQ: the optimal-brain sweep
with the error of a block spread by  inverse(U_bb) U_b,rest). bits = 2: one point; 3 and 4: a second one, of 2^8 or 2^16,
for what the first leaves.
Tseng et al., ICML 2024 (arXiv:2402.04396), without its fine-tuning. Scales are theirs but at 4 bits, where normal numbers lose
0.0084 of their square instead of 0.0097; the 29 points that fill up the codebook are other ones of the same length.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import choice
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense, Lattice, Sum
from trimtab.formats.incoherent import Incoherent
from trimtab.stats import Gram
from trimtab.tensors.columns import sweep
from trimtab.tensors.lattice import DIM, nearest, points

# By bits: what the root mean square of the matrix is in units of the scale, and of every point the book and how many times
# larger what was left is made for it.
STAGES: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = {
    2: (1.03, ((2, 1.0),)),
    3: (0.98, ((2, 1.0), (1, 2.04))),
    4: (0.90, ((2, 1.0), (2, 3.8))),
}


@dataclass(frozen=True)
class QuipSharp(Incoherent):
    card: ClassVar = Card(
        id="quip_sharp",
        title="QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks",
        paper="arXiv:2402.04396",
        fidelity="variant",
        beside=("quip", "pvq"),
        claims=(
            Claim(
                "beats-the-even-grid-at-2-bit",
                "quip_sharp(bits=2)",
                "<",
                "quip(bits=2)",
                note="2.00 and 2.03 stored bits per weight; both sides turned and swept alike",
            ),
            Claim(
                "beats-rotated-gptq-at-2-bit",
                "quip_sharp(bits=2)",
                "<",
                "quarot -> gptq(bits=2, clip=True)",
                note="2.00 and 2.29 stored bits per weight: the baseline has a scale for every 64 inputs",
            ),
        ),
    )
    needs: ClassVar = (Gram,)

    bits: int = choice("bits per weight", 2, tuple(STAGES))

    def fits(self, site: Site) -> None:
        if site.shape[1] % DIM:
            raise UsageError(f"quip_sharp: needs in % {DIM} == 0: {site.name} has in={site.shape[1]}; skip it or use quip")

    def held(self, shape: tuple[int, int]) -> dict[str, Any]:
        parts = [{"kind": Lattice.kind, "shape": [*shape], "bits": bits} for bits, _ in STAGES[self.bits][1]]
        return parts[0] if len(parts) == 1 else {"kind": Sum.kind, "shape": [*shape], "parts": parts}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        return self.turned(weight, seen[Gram], seen, self._swept)

    def _swept(self, matrix: Tensor, upper: Tensor) -> LinearWeight:
        spread, stages = STAGES[self.bits]
        grids = [(matrix.square().mean().sqrt() / (spread * finer)).half().view(1) for _, finer in stages]
        if not bool(grids[0].isfinite()):
            raise ArithmeticError("the scale of the matrix exceeds float16")
        chooser = _ByPoint([(scale.float(), bits) for scale, (bits, _) in zip(grids, stages, strict=True)])
        sweep(matrix, upper, chooser)
        codes = [torch.stack(found, dim=1) for found in zip(*chooser.codes, strict=True)]
        parts = tuple(Lattice(c, scale, bits) for c, scale, (bits, _) in zip(codes, grids, stages, strict=True))
        return parts[0] if len(parts) == 1 else Sum(parts)


class _ByPoint:
    """Column chooser that decides eight columns when the sweep enters them. codes: by block, then stage, [out] each."""

    width = DIM

    def __init__(self, stages: list[tuple[Tensor, int]]):
        """Of every stage the scale [1] and the bits."""
        self.stages = stages
        self.codes: list[list[Tensor]] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        left, found = columns.T.contiguous(), []  # [out, 8]
        for scale, bits in self.stages:
            codes = nearest(left / torch.where(scale > 0, scale, 1.0), bits)
            left = left - points(codes, bits) * scale
            found.append(codes)
        self.start, self.values = start, columns - left.T
        self.codes.append(found)

    def choose(self, index: int, column: Tensor) -> Tensor:
        return self.values[index - self.start]
