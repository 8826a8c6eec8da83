"""Uniform grids whose codes an optimal-brain sweep chooses: what GPTQ and the methods that only change its target share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import choice, count, flag, rate
from trimtab.core.places import Site
from trimtab.formats.dense import Dense
from trimtab.formats.grouped import Grouped, check_group_size
from trimtab.formats.masked import Masked
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.columns import ByGroup, Feed, prepared, sweep
from trimtab.tensors.rounding import Grid, fit


@dataclass(frozen=True)
class SweptGrid(LinearMethod):
    """The knobs of such a method, its promises, and `swept`, which its `solve` is made of."""

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

    def swept(
        self, weight: Dense | Masked, gram: Tensor, seen: Seen, feed: Callable[[Tensor, Tensor], Feed] | None = None
    ) -> Grouped:
        """The sweep's result. feed: what goes to later columns besides errors, made from (order [in], U [in, in])."""
        group_size = self.group_size or weight.shape[1]
        prepare = partial(prepared, gram, self.order == "energy", self.damping)
        order, upper, used = seen.once((SweptGrid, self.order, self.damping), prepare)
        seen.note("damping", used)
        keep = weight.keep if isinstance(weight, Masked) else None
        chooser = ByGroup(self._grid, _nearest, group_size, order, keep)
        sweep(weight.dense()[:, order], upper, chooser, feed(order, upper) if feed else None)
        scale = torch.cat([g.scale for g in chooser.fitted], dim=1).half()  # [out, groups]
        zero = torch.cat([g.zero for g in chooser.fitted], dim=1).to(torch.uint8)
        return Grouped(chooser.codes.to(torch.uint8), scale, None if self.symmetric else zero, self.bits, group_size)

    def _grid(self, weights: Tensor) -> Grid:
        return fit(weights, self.bits, self.symmetric, self.clip)


def _nearest(grid: Grid, position: int, column: Tensor) -> tuple[Tensor, Tensor]:
    codes = grid.codes(column[:, None])
    return codes[:, 0], grid.values(codes)[:, 0]
