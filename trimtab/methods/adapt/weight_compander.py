"""Weight compander: every weight is trained through a curve that lets the small ones move and holds the large ones back.

W = a arctan(v / b), v trained instead of W, and so are log a and log b, two numbers a matrix. At first b / a = 1 / slope and
a = 2 headroom max|W| / pi: no weight can get larger than headroom times the largest one. Grebenstein et al. 2023 trains from
scratch; here v starts where the function is unchanged, and what is stored is the move of v, so an adapter is as large as the
matrices that it changes. Filled in: the start of a and b, and that both are learned. Weight decay acts on the moves, not on
v.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearWeight, Seen
from trimtab.core.knobs import number
from trimtab.core.places import Site
from trimtab.core.trained import AdapterMethod, Delta
from trimtab.formats import Dense
from trimtab.formats.deltas import added


@dataclass(frozen=True)
class WeightCompander(AdapterMethod):
    card: ClassVar = Card(
        id="weight_compander",
        title="Weight Compander: A Simple Weight Reparameterization for Regularization",
        paper="arXiv:2306.16993",
        fidelity="reconstructed",
        beside=("lora", "bone"),
        claims=(
            Claim(
                "beats-the-same-training-without-a-curve",
                "weight_compander()",
                "<",
                "lisa(active=1000, outer=False)",
                model="asset:own-5m",
                text="asset:gsm8k-rest",
                note="adapted to asset:gsm8k; every weight is trained on either side",
            ),
        ),
    )

    headroom: float = number("how many times the largest weight a weight can become", 1.5, low=1.01, high=1e3)
    slope: float = number("how many times as fast as v a weight near zero moves", 1.0, low=1e-3, high=1e3)

    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> "CurveDelta":
        dense = weight.dense().float()
        largest = dense.abs().amax()
        top = 2 / pi * self.headroom * torch.where(largest > 0, largest, torch.ones_like(largest))
        return CurveDelta(torch.zeros_like(dense), top, top / self.slope)


class CurveDelta(Delta):
    """moves [out, in] of v. top, width: a and b at first; log_top, log_width: logarithms of what multiplies them. All scalars."""

    def __init__(self, moves: Tensor, top: Tensor, width: Tensor):
        super().__init__()
        self.moves = nn.Parameter(moves.contiguous())
        self.top, self.width = (nn.Parameter(one.clone(), requires_grad=False) for one in (top, width))
        self.log_top, self.log_width = (nn.Parameter(torch.zeros_like(top)) for _ in range(2))

    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        return F.linear(x, self._change(weight()))

    @torch.no_grad()
    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        return added(weight, deepcopy(self).double()._change(weight.weight.double())) if isinstance(weight, Dense) else None

    def _change(self, weight: Tensor) -> Tensor:
        """Both ends by the same steps, so that nothing moved is nothing changed."""
        start = self.width * torch.tan(weight / self.top)
        top, width = self.top * self.log_top.exp(), self.width * self.log_width.exp()
        return top * torch.atan((start + self.moves) / width) - self.top * torch.atan(start / self.width)
