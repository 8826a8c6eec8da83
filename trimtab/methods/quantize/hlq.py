"""HLQ: levels that need not be evenly spaced - an offset plus a sum of freely scaled binary planes per group.

W[o, i] ~ offset + sum_j scale_j * plane_j[o, i],  plane in {0, 1}; alternating least squares from the uniform grid (see
`tensors.bitplanes`). compensate=False rounds to nearest (HLQ-RTN); True fits each group inside the optimal-brain sweep of GPTQ
(HLQ-GPTQ): as in the authors' code all codes of a group are fixed when the sweep enters it, recode=True lets each column
choose again after it was compensated.
ELUTQ, arXiv:2510.19482. Scales are float16 during the fit; planes are sorted, negative ones flipped.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count, flag, rate
from trimtab.core.places import Site
from trimtab.formats import BitPlanes, Dense, check_group_size
from trimtab.stats import Gram
from trimtab.tensors.bitplanes import Planes, fit
from trimtab.tensors.columns import sweep
from trimtab.tensors.spd import inverse_upper


@dataclass(frozen=True)
class Hlq(LinearMethod):
    card: ClassVar = Card(
        id="hlq",
        title="ELUTQ: Efficient LUT-Aware Quantization for Deploying Large Language Models on Edge Devices",
        paper="arXiv:2510.19482",
        fidelity="exact",
        beside=("gptq", "rtn"),
        claims=(
            Claim(
                "beats-gptq-at-2-bit",
                "hlq(bits=2, group_size=64)",
                "<",
                "gptq(bits=2, group_size=24, clip=True)",
                published="14.9 < 33.7, Llama-2-7B, C4, groups of 128",
                note="2.75 bits per weight on both sides; the baseline searches its clipping range",
            ),
            Claim(
                "recoded-beats-gptq-at-2-bit",
                "hlq(bits=2, group_size=64, recode=True)",
                "<",
                "gptq(bits=2, group_size=24, clip=True)",
                note="as above, with codes chosen again after compensation",
            ),
            Claim(
                "sweep-beats-nearest",
                "hlq(bits=2, group_size=64)",
                "<",
                "hlq(bits=2, group_size=64, compensate=False)",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (BitPlanes,)

    bits: int = count("binary planes per weight", 2, 1, 4)
    group_size: int = count("inputs that share scales; 0 = the whole row", 64, 0)
    compensate: bool = flag("fit inside the optimal-brain sweep instead of rounding to nearest", True)
    recode: bool = flag("let each column choose its codes again after compensation", False)
    rounds: int = count("alternations of the fit", 10, 0, 100)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gram,) if self.compensate else ()

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, weight: LinearWeight) -> dict[str, Any]:
        group_size = self.group_size or site.shape[1]
        return {"kind": BitPlanes.kind, "shape": [*site.shape], "planes": self.bits, "group_size": group_size}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> BitPlanes:
        group_size = self.group_size or site.shape[1]
        if not self.compensate:
            groups = weight.dense().reshape(site.shape[0], -1, group_size)
            planes = fit(groups, self.bits, self.rounds)
            codes = planes.codes(groups).reshape(site.shape).to(torch.uint8)
            return BitPlanes(codes, planes.scale.half(), planes.offset.squeeze(-1).half(), group_size)
        upper, used = seen.once((Hlq, self.damping), lambda: inverse_upper(seen[Gram], self.damping))
        seen.note("damping", used)
        chooser = Levels(self, group_size)
        sweep(weight.dense(), upper, chooser)
        return chooser.result()


class Levels:
    """Column chooser: a level of the group's planes, fixed on entering the group or chosen again column by column."""

    def __init__(self, method: Hlq, group_size: int):
        self.method, self.width = method, group_size
        self.planes: list[Planes] = []
        self.entered = torch.empty(0)
        self.codes: list[Tensor] = []

    def enter(self, start: int, columns: Tensor, diagonal: Tensor) -> None:
        self.planes.append(fit(columns.T, self.method.bits, self.method.rounds))
        self.entered = self.planes[-1].codes(columns.T)  # [out, group]

    def choose(self, index: int, column: Tensor) -> Tensor:
        planes = self.planes[-1]
        codes = planes.codes(column[:, None]) if self.method.recode else self.entered[:, index % self.width, None]
        self.codes.append(codes)
        return planes.values(codes)[:, 0]

    def result(self) -> BitPlanes:
        scale = torch.stack([p.scale for p in self.planes], dim=1)  # [out, groups, bits]
        offset = torch.cat([p.offset for p in self.planes], dim=1)  # [out, groups]
        codes = torch.cat(self.codes, dim=1).to(torch.uint8)  # [out, in]
        return BitPlanes(codes, scale.half(), offset.half(), self.width)
