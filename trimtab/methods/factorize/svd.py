"""SVD: the closest matrix of lower rank, in two thin factors.

W [out, in] ~ left [out, rank] @ right [rank, in], rank = keep * out * in / (out + in): `keep` counts parameters, not ranks.
No data; the error is the energy of the dropped singular values (Eckart & Young 1936). The baseline of the family.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats import Chain, Dense, low_rank
from trimtab.formats.plain import low_rank_spec
from trimtab.tensors.lowrank import rank_for, truncated


@dataclass(frozen=True)
class Svd(LinearMethod):
    card: ClassVar = Card(
        id="svd",
        title="The approximation of one matrix by another of lower rank",
        paper="doi:10.1007/BF02288367",
        fidelity="exact",
        beside=("svd_llm",),
        baseline=True,
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain,)

    keep: float = rate("fraction of the matrix's parameters that the two factors may hold", 0.8, low=0.01, high=0.99)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return low_rank_spec(site.shape, rank_for(site.shape, self.keep), spec["dtype"])

    def solve(self, weight: Dense, seen: Seen, site: Site) -> Chain:
        factors = truncated(weight.dense(), rank_for(site.shape, self.keep))
        return low_rank(factors.left, factors.right, weight.weight.dtype)
