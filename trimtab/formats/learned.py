"""Uniform grids that are learned block by block: what OmniQuant, FlexRound and the methods of their kind share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.kinds import BlockMethod, Learner, LinearWeight, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Site
from trimtab.formats.dense import Dense
from trimtab.formats.grouped import Grouped, check_group_size
from trimtab.formats.masked import Masked
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.learned_grid import LearnedGrid, bounds
from trimtab.tensors.rounding import fit

WIDEST = 4.0  # logit of the part of the range that is kept where nothing better is known: 0.982
TIGHTEST = 0.02


@dataclass(frozen=True)
class LearnedGroups(BlockMethod):
    """The knobs of such a method and its promises. It says what stands for a matrix by `learner`."""

    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)
    clip: bool = flag("begin with each group's range of least squared error", True)
    epochs: int = count("passes over the calibration set", 10, 0)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, self.group_size or site.shape[1], False)

    def begin(self, weight: LinearWeight, seen: Seen, site: Site) -> Learner:
        keep = weight.keep if isinstance(weight, Masked) else None
        return self.learner(weight.dense(), keep, seen)

    @abstractmethod
    def learner(self, weight: Tensor, keep: Tensor | None, seen: Seen) -> "Groups":
        """weight [out, in] float32; keep [out, in] bool, True = survives, or None where everything does."""


class Groups(Learner):
    """A matrix [out, in] by groups [out, groups, group] while the grids of its groups, and what is rounded, are learned."""

    def __init__(self, weight: Tensor, keep: Tensor | None, method: LearnedGroups):
        super().__init__()
        self.bits, self.group_size = method.bits, method.group_size or weight.shape[1]
        self.weight = weight.view(weight.shape[0], -1, self.group_size)
        self.keep = None if keep is None else keep.view_as(self.weight)

    @abstractmethod
    def coded(self) -> tuple[LearnedGrid, Tensor]:
        """The grid as it is now and the codes [out, groups, group] on it, as float."""

    def matrix(self) -> Tensor:
        grid, codes = self._alive()
        return grid.values(codes).flatten(1)

    def result(self) -> Grouped:
        with torch.no_grad():
            grid, codes = self._alive()
        scale, zero = grid.scale.detach().squeeze(-1).half(), grid.zero.detach().squeeze(-1).to(torch.uint8)
        return Grouped(codes.detach().flatten(1).to(torch.uint8), scale, zero, self.bits, self.group_size)

    def _alive(self) -> tuple[LearnedGrid, Tensor]:
        grid, codes = self.coded()
        return grid, codes if self.keep is None else torch.where(self.keep, codes, grid.zero)


class Ranges(nn.Module):
    """The part of each group's full range that its grid covers, learned: logits [2, out, groups, 1], below and above zero."""

    def __init__(self, weight: Tensor, bits: int, clip: bool):
        super().__init__()
        self.bits = bits
        logits = torch.full((2, *weight.shape[:2], 1), WIDEST, device=weight.device)
        self.logits = nn.Parameter(logits.minimum(_least(weight, bits)) if clip else logits)

    def forward(self, weight: Tensor) -> LearnedGrid:
        """The grid for weight [out, groups, group]."""
        low, high = bounds(weight)
        below, above = self.logits.sigmoid()
        return LearnedGrid.between(below * low, above * high, self.bits)


def _least(weight: Tensor, bits: int) -> Tensor:
    """The logit of the shrunk range whose squared rounding error is least, the same below and above zero."""
    low, high = bounds(weight)
    full = (high - low) / (2**bits - 1)
    part = fit(weight, bits, clip=True).scale / full.clamp(min=torch.finfo(full.dtype).tiny)
    logit: Tensor = part.clamp(TIGHTEST, 1 - TIGHTEST).logit()
    return logit
