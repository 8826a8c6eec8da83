"""GPTQ: round column by column, each rounding error made up for by the columns to its right.

Minimizes ||(W - Q) X||^2 greedily through the inverse gram (see `tensors.columns`); the grid of a group is fitted to the
compensated weights when the sweep enters it. Weights that an earlier step pruned stay exactly zero.
Frantar et al., ICLR 2023 (arXiv:2210.17323). Silent input channels are kept, not zeroed; order="energy" is the
authors' later act-order with grids fitted beforehand, which stores nothing extra.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import choice, count, flag, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked, check_group_size
from trimtab.stats import Gram
from trimtab.tensors.columns import sweep
from trimtab.tensors.rounding import Grid, fit
from trimtab.tensors.spd import inverse_upper


@dataclass(frozen=True)
class Gptq(LinearMethod):
    card: ClassVar = Card(
        id="gptq",
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        paper="arXiv:2210.17323",
        fidelity="exact",
        beside=("rtn", "hlq"),
        claims=(
            Claim(
                "beats-rtn-at-3-bit",
                "gptq(bits=3)",
                "<",
                "rtn(bits=3)",
                published="6.42 < 6.66, Llama-2-7B, WikiText2, groups of 128",
            ),
            Claim(
                "beats-clipped-rtn-at-3-bit",
                "gptq(bits=3, clip=True)",
                "<",
                "rtn(bits=3, clip=True)",
                note="the same grids searched for the least rounding error on both sides",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)
    symmetric: bool = flag("grid centred on zero, no stored zero point", False)
    clip: bool = flag("search each group's clipping range with the least squared error", False)
    order: str = choice("columns as given, or those with the most input energy first", "given", ("given", "energy"))
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, weight: LinearWeight) -> dict[str, Any]:
        group_size = self.group_size or site.shape[1]
        uniform = {"bits": self.bits, "group_size": group_size, "symmetric": self.symmetric}
        return {"kind": Grouped.kind, "shape": [*site.shape], **uniform}

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        gram = seen[Gram]
        order = torch.arange(len(gram)) if self.order == "given" else gram.diagonal().argsort(descending=True, stable=True)
        key = (Gptq, self.damping, self.order)
        upper, used = seen.once(key, lambda: inverse_upper(gram[order][:, order], self.damping))
        seen.note("damping", used)
        keep = weight.keep[:, order] if isinstance(weight, Masked) else None
        chooser = Rounding(self, self.group_size or site.shape[1], order, keep)
        sweep(weight.dense()[:, order], upper, chooser)
        return chooser.result()


class Rounding:
    """Column chooser: the nearest point of the column's grid.

    In the given order a group's grid is fitted when the sweep enters it. In another order a group's columns are met far
    apart, so all grids are fitted at the start, to the uncompensated weights ("static groups").
    """

    def __init__(self, method: Gptq, group_size: int, order: Tensor, keep: Tensor | None):
        self.method, self.group_size, self.order = method, group_size, order.tolist()
        self.width = group_size if method.order == "given" else len(order)
        self.keep = None if keep is None else keep.T
        self.grids: list[Grid] = []
        self.codes: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        if self.keep is not None:
            columns = columns * self.keep[start : start + self.width]
        if self.method.order != "given":
            columns = columns[torch.tensor(self.order, device=columns.device).argsort()]
        for group in columns.split(self.group_size):
            grid = fit(group.T, self.method.bits, self.method.symmetric, self.method.clip)
            self.grids.append(Grid(grid.scale[:, 0], grid.zero[:, 0], grid.bits))

    def choose(self, index: int, column: Tensor) -> Tensor:
        if self.keep is not None:
            column = column * self.keep[index]
        grid = self.grids[self.order[index] // self.group_size]
        codes = grid.codes(column)
        self.codes.append(codes)
        return grid.values(codes)

    def result(self) -> Grouped:
        codes = torch.stack(self.codes, dim=1)[:, torch.tensor(self.order).argsort()].to(torch.uint8)  # [out, in]
        scale = torch.stack([g.scale for g in self.grids], dim=1).half()  # [out, groups]
        zero = torch.stack([g.zero for g in self.grids], dim=1).to(torch.uint8)
        return Grouped(codes, scale, None if self.method.symmetric else zero, self.method.bits, self.group_size)
