"""SVD: the closest matrix of lower rank, in two thin factors.

W [out, in] ~ left [out, rank] @ right [rank, in], rank = keep * out * in / (out + in): `keep` counts parameters, not ranks.
No data; the error is the energy of the dropped singular values (Eckart & Young 1936). The baseline of the family.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtab.core.card import Card
from trimtab.core.kinds import Seen
from trimtab.formats import Dense
from trimtab.formats.factored import Factored
from trimtab.tensors.lowrank import Factors, truncated


@dataclass(frozen=True)
class Svd(Factored):
    card: ClassVar = Card(
        id="svd",
        title="The approximation of one matrix by another of lower rank",
        paper="doi:10.1007/BF02288367",
        fidelity="exact",
        beside=("svd_llm",),
        baseline=True,
    )

    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        return truncated(weight.dense(), rank)
