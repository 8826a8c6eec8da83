"""GPTQ: round column by column, each rounding error made up for by the columns to its right.

Minimizes ||(W - Q) X||^2 greedily through the inverse gram (see `tensors.columns`). Columns with the most input energy go
first, on grids fitted beforehand (the authors' later "act-order", with static groups, which stores nothing extra);
order="given" is the paper's: a group's grid is fitted to the compensated weights when the sweep enters it. Weights that an
earlier step pruned stay exactly zero.
Frantar et al., ICLR 2023 (arXiv:2210.17323). Silent input channels are kept, not zeroed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import choice, count, flag, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked, check_group_size
from trimtab.formats.plain import grouped_spec
from trimtab.stats import Gram
from trimtab.tensors.columns import ByGroup, prepared, sweep
from trimtab.tensors.rounding import Grid, fit


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
                "energy-order-helps-at-3-bit",
                "gptq(bits=3)",
                "<",
                "gptq(bits=3, order='given')",
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
    order: str = choice("columns with the most input energy first, or as given", "energy", ("energy", "given"))
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, self.group_size or site.shape[1], self.symmetric)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        group_size = self.group_size or site.shape[1]
        prepare = partial(prepared, seen[Gram], self.order == "energy", self.damping)
        order, upper, used = seen.once((Gptq, self.order, self.damping), prepare)
        seen.note("damping", used)
        keep = weight.keep if isinstance(weight, Masked) else None
        chooser = ByGroup(self._grid, _nearest, group_size, order, keep)
        sweep(weight.dense()[:, order], upper, chooser)
        scale = torch.cat([g.scale for g in chooser.fitted], dim=1).half()  # [out, groups]
        zero = torch.cat([g.zero for g in chooser.fitted], dim=1).to(torch.uint8)
        return Grouped(chooser.codes.to(torch.uint8), scale, None if self.symmetric else zero, self.bits, group_size)

    def _grid(self, weights: Tensor) -> Grid:
        return fit(weights, self.bits, self.symmetric, self.clip)


def _nearest(grid: Grid, position: int, column: Tensor) -> tuple[Tensor, Tensor]:
    codes = grid.codes(column[:, None])
    return codes[:, 0], grid.values(codes)[:, 0]
