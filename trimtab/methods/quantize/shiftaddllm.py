"""ShiftAddLLM: weights are sums of scaled signs, and the scales sums of a few powers of two, so that products become shifts.

W[o, i] ~ sum_j a_j s_j[o, i],  s_j = +-1,  a_j = +-2^e1 +- 2^e2 ...  (at most `terms` of them), by alternating least squares and
nearest levels (see `tensors.signs`) inside the optimal-brain sweep, on the weights as compensated until then. The weights that
share scales are, by `layout`, group_size of them
    column  down one input's column, fitted when the sweep reaches it (the paper's accuracy mode, there the whole column);
    block   8 inputs wide, fitted when the sweep reaches the first of them (its latency mode);
    row     along the inputs as elsewhere, stored as `BitPlanes`, which has kernels: signs +-a are 0, 2a with the offset -a.
With terms=1 the first two keep a byte for each scale instead of two. compensate=False is binary coding without the sweep
(LUT-GEMM). Bits per matrix: `shiftaddllm by shiftadd_bits(bits=...)`.
You et al., NeurIPS 2024 (arXiv:2406.05981). The scales are solved for exactly and not by conjugate gradients, the best round is
kept, and a last block that is short of rows is fitted together with some of the block before. Columns are fitted 32 at a time
as the sweep finds them, and each again, from there, when it is its turn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import choice, count, flag, rate
from trimtab.core.places import Site
from trimtab.formats import BitPlanes, Dense, SignPlanes, check_group_size
from trimtab.stats import Gram
from trimtab.tensors.bitplanes import Planes
from trimtab.tensors.columns import ByGroup, sweep
from trimtab.tensors.signs import exponents, fit
from trimtab.tensors.spd import inverse_upper

WIDTH = 8  # inputs of a block: as many activations as one look-up of the paper's kernel adds up
TOGETHER = 32  # columns that are fitted at once before each is fitted again: a fit costs as much for one as for all of them
AGAIN = 3  # rounds of that


@dataclass(frozen=True)
class ShiftAddLlm(LinearMethod):
    card: ClassVar = Card(
        id="shiftaddllm",
        title="ShiftAddLLM: Accelerating Pretrained LLMs via Post-Training Multiplication-Less Reparameterization",
        paper="arXiv:2406.05981",
        fidelity="exact",
        beside=("gptq", "hlq", "shiftadd_bits"),
        claims=(
            Claim(
                "beats-gptq-at-2-bit",
                "shiftaddllm",
                "<",
                "gptq(bits=2, clip=True)",
                published="22.7 points of perplexity below the best competitor at 2 bits, on average over model families",
                note="2.27 and 2.29 stored bits per weight; the baseline searches its clipping range",
            ),
            Claim(
                "sweep-beats-binary-coding",
                "shiftaddllm",
                "<",
                "shiftaddllm(compensate=False)",
                note="the same format and bits, fitted to the weights alone",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (SignPlanes, BitPlanes)

    bits: int = count("sign planes per weight", 2, 1, 4)
    group_size: int = count("weights that share scales; 0 = as many as a whole row or column", 128, 0)
    layout: str = choice("where they lie", "column", ("column", "block", "row"))
    terms: int = count("powers of two that add up to a scale; 0 = any number", 3, 0, 8)
    rounds: int = count("alternations of the fit", 15, 0, 100)
    compensate: bool = flag("fit inside the optimal-brain sweep instead of rounding to nearest", True)
    order: str = choice("columns with the most input energy first, or as given", "energy", ("energy", "given"))
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gram,) if self.compensate else ()

    def fits(self, site: Site) -> None:
        if self.layout == "row":
            check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        shape = [*site.shape]
        if self.layout == "row":
            group_size = self.group_size or site.shape[1]
            return {"kind": BitPlanes.kind, "shape": shape, "planes": self.bits, "group_size": group_size}
        rows, columns = self._block(site.shape)
        sizes = {"planes": self.bits, "rows": rows, "columns": columns, "shifts": self.terms == 1}
        return {"kind": SignPlanes.kind, "shape": shape, **sizes}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> SignPlanes | BitPlanes:
        matrix, (rows, columns) = weight.dense(), self._block(site.shape)
        order, upper = torch.arange(site.shape[1]), torch.eye(site.shape[1])
        if self.compensate:
            prepare = partial(_prepared, seen[Gram], self.order == "energy", columns, self.damping)
            order, upper, used = seen.once((ShiftAddLlm, self.order, columns, self.damping), prepare)
            seen.note("damping", used)
        order, upper = order.to(matrix.device), upper.to(matrix.device)
        if self.layout == "row":
            return self._along_rows(matrix, order, upper)
        chooser = _ByBlock(self._planes, site.shape[0], rows, columns)
        sweep(matrix[:, order], upper, chooser)
        codes, scale = chooser.codes[:, order.argsort()], chooser.scale[:, (order[::columns] // columns).argsort()]
        return SignPlanes(codes, exponents(scale) if self.terms == 1 else scale.half(), rows, columns)

    def _block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the matrix that share scales; row layouts have runs of a row instead, and their own order."""
        columns = min(WIDTH, shape[1]) if self.layout == "block" else 1
        return min(-(-(self.group_size or shape[0]) // columns), shape[0]), columns

    def _planes(self, weights: Tensor, start: Planes | None = None) -> Planes:
        rounds = self.rounds if start is None else min(self.rounds, AGAIN)
        return fit(weights, self.bits, rounds, self.terms, start)

    def _along_rows(self, matrix: Tensor, order: Tensor, upper: Tensor) -> BitPlanes:
        group_size = self.group_size or matrix.shape[1]
        chooser = ByGroup(self._with_offset, _nearest, group_size, order)
        sweep(matrix[:, order], upper, chooser)
        scale = torch.stack([planes.scale for planes in chooser.fitted], dim=1)  # [out, groups, bits]
        offset = torch.cat([planes.offset for planes in chooser.fitted], dim=1)  # [out, groups]
        return BitPlanes(chooser.codes.to(torch.uint8), scale.half(), offset.half(), group_size)

    def _with_offset(self, weights: Tensor) -> Planes:
        """As `BitPlanes` holds it: the offset is a float16 number."""
        planes = self._planes(weights)
        return Planes(planes.scale, planes.offset.half().float())


class _ByBlock:
    """Column chooser that fits scales to blocks [rows, columns] of the weights as compensated when the sweep enters them."""

    def __init__(self, fit: Callable[..., Planes], out: int, rows: int, columns: int):
        self.fit, self.rows, self.alone = fit, rows, columns == 1
        self.width = TOGETHER if self.alone else columns
        self.blocks = -(-out // rows)
        starts = (torch.arange(self.blocks) * rows).clamp(max=out - rows)
        self.members = starts[:, None] + torch.arange(rows)  # [blocks, rows]
        self._codes: list[Tensor] = []
        self._scales: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        blocks = columns[:, self.members]  # [columns, blocks, rows]
        self.start = start
        self.planes = self.fit(blocks if self.alone else blocks.transpose(0, 1).flatten(1))
        if not self.alone:
            self._scales.append(self.planes.scale / 2)

    def choose(self, index: int, column: Tensor) -> Tensor:
        planes = self.planes
        if self.alone:
            at = index - self.start
            planes = self.fit(column[self.members], Planes(planes.scale[at], planes.offset[at]))
            self._scales.append(planes.scale / 2)
        padded = torch.nn.functional.pad(column, (0, self.blocks * self.rows - len(column))).view(self.blocks, -1)
        codes = planes.codes(padded)
        self._codes.append(codes.flatten()[: len(column)].to(torch.uint8))
        return planes.values(codes).flatten()[: len(column)]

    @property
    def codes(self) -> Tensor:
        """uint8 [out, in], in the sweep's order; complete after it."""
        return torch.stack(self._codes, dim=1)

    @property
    def scale(self) -> Tensor:
        """a_j [row blocks, column blocks, bits], in the sweep's order."""
        return torch.stack(self._scales, dim=1)


def _nearest(planes: Planes, position: int, column: Tensor) -> tuple[Tensor, Tensor]:
    codes = planes.codes(column[:, None])
    return codes[:, 0], planes.values(codes)[:, 0]


def _prepared(gram: Tensor, by_energy: bool, width: int, damping: float) -> tuple[Tensor, Tensor, float]:
    """The order of inputs [in] in runs of `width`, U [in, in] float32 for it, and the damping used.

    by_energy: the runs with the most input energy first, one that is short last. Raises ArithmeticError as `spd.cholesky` does.
    """
    order, energy = torch.arange(len(gram), device=gram.device), gram.diagonal()
    if by_energy:
        whole = len(gram) // width
        runs = energy[: whole * width].view(whole, width).sum(1).argsort(descending=True, stable=True)
        order = torch.cat([order[: whole * width].view(whole, width)[runs].flatten(), order[whole * width :]])
    upper, used = inverse_upper(gram[order][:, order], damping)
    return order, upper.float(), used
