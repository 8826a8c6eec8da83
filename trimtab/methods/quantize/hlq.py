"""HLQ: levels that need not be evenly spaced - an offset plus a sum of freely scaled binary planes per group.

W[o, i] ~ offset + sum_j scale_j * plane_j[o, i],  plane in {0, 1}; alternating least squares from the uniform grid (see
`tensors.bitplanes`). compensate=False rounds to nearest (HLQ-RTN); True fits each group inside the optimal-brain sweep of GPTQ
(HLQ-GPTQ): as in the authors' code all codes of a group are fixed when the sweep enters it, recode=True lets each column
choose again after it was compensated. order="energy" takes the columns with the most input energy first, on planes fitted
beforehand, as `gptq` does.
ELUTQ, arXiv:2510.19482. Scales are float16 during the fit; planes are sorted, negative ones flipped.
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
from trimtab.formats import BitPlanes, Dense, check_group_size
from trimtab.stats import Gram
from trimtab.tensors.bitplanes import Planes, fit
from trimtab.tensors.columns import ByGroup, prepared, sweep


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
                "gptq(bits=2, group_size=24, clip=True, order='given')",
                published="14.9 < 33.7, Llama-2-7B, C4, groups of 128",
                note="2.75 bits per weight on both sides; the baseline searches its clipping range",
            ),
            Claim(
                "beats-gptq-in-energy-order-at-2-bit",
                "hlq(bits=2, group_size=64, order='energy')",
                "<",
                "gptq(bits=2, group_size=24, clip=True)",
                note="as above, both sides in order of input energy, which is the stronger baseline",
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
    order: str = choice("columns as given, or by input energy (implies recode)", "given", ("given", "energy"))
    rounds: int = count("alternations of the fit", 10, 0, 100)
    damping: float = rate("added to the gram, as a fraction of its mean diagonal", 0.01)

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gram,) if self.compensate else ()

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        group_size = self.group_size or site.shape[1]
        return {"kind": BitPlanes.kind, "shape": [*site.shape], "planes": self.bits, "group_size": group_size}

    def solve(self, weight: Dense, seen: Seen, site: Site) -> BitPlanes:
        group_size = self.group_size or site.shape[1]
        if not self.compensate:
            groups = weight.dense().reshape(site.shape[0], -1, group_size)
            planes = fit(groups, self.bits, self.rounds)
            codes = planes.codes(groups).reshape(site.shape).to(torch.uint8)
            return BitPlanes(codes, planes.scale.half(), planes.offset.squeeze(-1).half(), group_size)
        prepare = partial(prepared, seen[Gram], self.order == "energy", self.damping)
        order, upper, used = seen.once((Hlq, self.order, self.damping), prepare)
        seen.note("damping", used)
        chooser = ByGroup(self._levels, self._level, group_size, order)
        sweep(weight.dense()[:, order], upper, chooser)
        scale = torch.stack([planes.scale for planes, _ in chooser.fitted], dim=1)  # [out, groups, bits]
        offset = torch.cat([planes.offset for planes, _ in chooser.fitted], dim=1)  # [out, groups]
        return BitPlanes(chooser.codes.to(torch.uint8), scale.half(), offset.half(), group_size)

    def _levels(self, weights: Tensor) -> tuple[Planes, Tensor]:
        """The planes of a group, and the codes its weights would have now, [out, group]."""
        planes = fit(weights, self.bits, self.rounds)
        return planes, planes.codes(weights)

    def _level(self, fitted: tuple[Planes, Tensor], position: int, column: Tensor) -> tuple[Tensor, Tensor]:
        planes, entered = fitted
        again = self.recode or self.order == "energy"
        codes = planes.codes(column[:, None]) if again else entered[:, position, None]
        return codes[:, 0], planes.values(codes)[:, 0]
