"""RTN: round every weight to the nearest point of its group's uniform grid.

W[o, i] ~ (code - zero) * scale, one (scale, zero) per row and group of consecutive inputs; no data. The baseline of every
quantization paper, plain (range = min .. max) or with a searched clipping range (least squared rounding error).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Site
from trimtab.formats import Dense, Grouped, Masked, check_group_size
from trimtab.formats.plain import grouped_spec
from trimtab.tensors.rounding import fit


@dataclass(frozen=True)
class Rtn(LinearMethod):
    card: ClassVar = Card(
        id="rtn",
        title="Round to nearest",
        paper="folklore; defined as the baseline in arXiv:2210.17323",
        fidelity="exact",
        beside=("gptq", "hlq"),
        baseline=True,
    )
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)
    symmetric: bool = flag("grid centred on zero, no stored zero point", False)
    clip: bool = flag("search the clipping range with the least squared error", False)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, self.group_size or site.shape[1], self.symmetric)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        groups = weight.dense().reshape(site.shape[0], -1, self.group_size or site.shape[1])
        return Grouped.on_grid(fit(groups, self.bits, self.symmetric, self.clip), groups, self.symmetric)
