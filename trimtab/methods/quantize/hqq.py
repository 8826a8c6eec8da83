"""HQQ: uniform codes whose offsets are not bound to the grid, fitted without data to what most weights of a group need.

W[o, i] ~ scale * code + offset,  code in -2^(bits-1) .. 2^(bits-1) - 1;  scales from the range of the group. The offset lessens
sum |W - W'|^p with p < 1, which forgives the few weights that fit badly, by half-quadratic splitting. With d = W - W', rounds of
    e = sign(d) max(|d| - |d|^(p-1) / beta, 0),   offset = mean over the group of (W - e - scale * code),   beta = 10, times 1.01.
Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog and the authors' code, which writes offset = -scale * zero and stops
all groups of a matrix together when mean |d| grows: here each group keeps its best round. The start is the grid of `rtn`, so
rounds=0 is that. beta is not free of units: for weights as small as those of language models |d|^(p-1) / 10 exceeds |d| nearly
everywhere, e is zero, and the offset merely minimizes squares. relative=True measures d in steps of the grid, where e acts.
The offsets are a product of [out, groups] numbers and the 0-1 matrix that spreads them, so that every part has a kernel. Cost:
bits + 32 / group_size, and the spreading matrix, two bits per group and input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag, number
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense, Grouped, Sum, check_group_size
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.rounding import fit

BETA, GROWTH = 10.0, 1.01


@dataclass(frozen=True)
class Hqq(LinearMethod):
    card: ClassVar = Card(
        id="hqq",
        title="Half-Quadratic Quantization of Large Machine Learning Models",
        paper="https://mobiusml.github.io/hqq_blog",
        fidelity="exact",
        beside=("rtn", "awq", "hlq"),
        claims=(
            Claim(
                "beats-clipped-rtn-at-3-bit",
                "hqq(bits=3, group_size=64)",
                "<",
                "rtn(bits=3, group_size=32, clip=True)",
                note="no data on either side; the baseline's whole zero points allow smaller groups in slightly more stored bits",
            ),
            Claim(
                "clipped-beats-clipped-rtn-at-3-bit",
                "hqq(bits=3, group_size=64, clip=True)",
                "<",
                "rtn(bits=3, group_size=32, clip=True)",
                note="as above; the authors do not search the clipping range, so the gain of the offsets alone is on trial",
            ),
            Claim(
                "clipped-beats-clipped-rtn-at-2-bit",
                "hqq(bits=2, group_size=64, clip=True)",
                "<",
                "rtn(bits=2, group_size=32, clip=True)",
                note="as above",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Sum,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale and an offset; 0 = the whole row", 64, 0)
    clip: bool = flag("start from the clipping range with the least squared error", False)
    norm: float = number("p of the error that the offsets lessen", 0.7, 0.1, 1.0)
    relative: bool = flag("measure the errors in steps of the grid instead of as they are", False)
    rounds: int = count("alternations of the fit", 20, 0, 200)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        out, inputs = site.shape
        group_size = self.group_size or inputs
        groups = inputs // group_size
        offsets = [
            {"kind": Dense.kind, "shape": [out, groups], "dtype": "float16"},
            grouped_spec((groups, inputs), 2, inputs, symmetric=True),
        ]
        parts = [
            grouped_spec(site.shape, self.bits, group_size, symmetric=True),
            {"kind": Chain.kind, "shape": [out, inputs], "parts": offsets},
        ]
        return {"kind": Sum.kind, "shape": [out, inputs], "parts": parts}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Sum:
        group_size = self.group_size or site.shape[1]
        groups = weight.dense().reshape(site.shape[0], -1, group_size)
        scale, offset = self._fitted(groups)
        codes = (self._codes(groups, scale, offset) + self._centre).to(torch.uint8).reshape(site.shape)
        uniform = Grouped(codes, scale.squeeze(-1).half(), None, self.bits, group_size)
        return Sum((uniform, Chain((Dense(offset.squeeze(-1).half()), _spread(groups.shape[1], group_size, groups.device)))))

    @property
    def _centre(self) -> int:
        return 1 << (self.bits - 1)

    def _codes(self, groups: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Nearest codes of groups [..., group], as float, centred on zero."""
        return ((groups - offset) / scale).round_().clamp_(-self._centre, self._centre - 1)

    def _fitted(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and, of all rounds, the offsets with the least mean |d|; [..., 1] float32 holding float16 values."""
        grid = fit(groups, self.bits, clip=self.clip)
        scale, offset, beta = grid.scale, _stored((self._centre - grid.zero) * grid.scale), BETA
        best, least = offset, torch.full_like(offset, torch.inf)
        for _ in range(self.rounds + 1):
            rounded = self._codes(groups, scale, offset) * scale
            change = groups - rounded - offset
            error = change.abs().mean(-1, keepdim=True)
            best, least = torch.where(error < least, offset, best), torch.minimum(error, least)
            shrunk = scale * self._shrunk(change / scale, beta) if self.relative else self._shrunk(change, beta)
            offset = _stored((groups - shrunk - rounded).mean(-1, keepdim=True))
            beta *= GROWTH
        return scale, best

    def _shrunk(self, change: Tensor, beta: float) -> Tensor:
        """The proximal step of sum |e|^p: what of the change is set apart as an outlier's."""
        size = change.abs()
        return change.sign() * (size - size.pow(self.norm - 1) / beta).clamp_(min=0)


def _stored(offset: Tensor) -> Tensor:
    """float32 holding float16 values. Raises ArithmeticError if one exceeds float16."""
    rounded = offset.half().float()
    if not bool(rounded.isfinite().all()):
        raise ArithmeticError("a group's offset exceeds float16")
    return rounded


def _spread(groups: int, group_size: int, device: torch.device) -> Grouped:
    """[groups, groups * group_size]: row g is one where the inputs of group g are, else zero."""
    mine = torch.eye(groups, device=device).repeat_interleave(group_size, dim=1)
    one = torch.ones(groups, 1, dtype=torch.float16, device=device)
    return Grouped((mine + 2).to(torch.uint8), one, None, 2, groups * group_size)
