"""SliderQuant: blocks are learned in windows that slide, wider at both ends of the model, and columns are rounded bit by bit.

Windows over blocks: growing at the start ([0], [0, 1], ...), of two from there on, shrinking at the end (..., [L-2, L-1],
[L-1]); every block is learned several times, the first and last ones most often. Learned in each: the clipping ranges of the
groups, and a low-rank change inside of the rounding,

    W^ = Q(W + B A),   A [rank, in], B [out, rank] zero at first,

so that the window answers as the untouched one. For the first half of a window's steps only the first half of each row's
groups is rounded, then all of them.
As in the authors' code (deep-optimization/SliderQuant), except: rounding by halves is done within every window, not in two
passes over all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, flag, number
from trimtab.formats.learned import Groups, LearnedGroups, Ranges
from trimtab.tensors.learned_grid import LearnedGrid


@dataclass(frozen=True)
class SliderQuant(LearnedGroups):
    card: ClassVar = Card(
        id="sliderquant",
        title="SliderQuant: Accurate Post-Training Quantization for LLMs",
        paper="deep-optimization/SliderQuant",
        fidelity="variant",
        beside=("omniquant", "flexround"),
        claims=(
            Claim(
                "windows-help-at-2-bit",
                "sliderquant(bits=2)",
                "<",
                "sliderquant(bits=2, ends=1, middle=1, epochs=22)",
                note="one block at a time with as many steps for each block in all, on a model of eight blocks",
                model="asset:own-5m",
            ),
            Claim("beats-omniquant-at-2-bit", "sliderquant(bits=2)", "<", "omniquant(bits=2, epochs=22)", model="asset:own-5m"),
        ),
    )

    ends: int = count("blocks in the widest windows at the two ends of the model", 4)
    middle: int = count("blocks in the windows between them", 2)
    rank: int = count("rank of the change inside of the rounding; 0 = none", 4, 0)
    ramp: bool = flag("round only half of the groups for the first half of the steps", True)
    rate: float = number("learning rate of the ranges", 0.01, 0.0)
    change_rate: float = number("learning rate of the low-rank change", 5e-4, 0.0)

    def windows(self, depth: int) -> Sequence[range]:
        ends = max(1, min(self.ends, depth // 2))
        first = [range(size) for size in range(1, ends + 1)]
        between = [range(at, at + self.middle) for at in range(max(0, ends - 1), depth - ends) if at + self.middle <= depth]
        last = [range(depth - size, depth) for size in range(ends, 0, -1)]
        return [window for window in dict.fromkeys((*first, *between, *last)) if window]

    def learner(self, weight: Tensor, keep: Tensor | None, seen: Seen) -> Groups:
        return Changed(weight, keep, self, seen)


class Changed(Groups):
    """The weights and a low-rank change of them, on grids whose ranges are learned."""

    def __init__(self, weight: Tensor, keep: Tensor | None, method: SliderQuant, seen: Seen):
        super().__init__(weight, keep, method)
        out, in_ = weight.shape
        drawn = torch.randn(method.rank, in_, generator=seen.generator) / in_**0.5
        self.ramp = method.ramp
        self.ranges = Ranges(self.weight, method.bits, method.clip)
        self.down = nn.Parameter(drawn.to(weight.device))
        self.up = nn.Parameter(torch.zeros(out, method.rank, device=weight.device))
        self.rates = {"ranges.logits": method.rate, "down": method.change_rate, "up": method.change_rate}

    def _changed(self) -> Tensor:
        return self.weight + (self.up @ self.down).view_as(self.weight)

    def coded(self) -> tuple[LearnedGrid, Tensor]:
        weight = self._changed()
        grid = self.ranges(weight)
        return grid, grid.codes(weight / grid.scale)

    def matrix(self) -> Tensor:
        rounded = super().matrix()
        if not self.ramp or self.progress >= 0.5:
            return rounded
        half = ceil(self.weight.shape[1] / 2) * self.group_size
        plain = self._changed() if self.keep is None else self._changed() * self.keep
        return torch.cat((rounded[:, :half], plain.flatten(1)[:, half:]), dim=1)
