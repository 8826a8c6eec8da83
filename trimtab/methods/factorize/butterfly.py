"""Butterfly: a matrix becomes a sum of products of log2 n sparse factors, the structure of fast transforms. No data.

W [out, in] ~ B_1 + ... + B_t, every B the butterfly product near what the ones before it left (`tensors.butterfly`), with n the
power of two that is not below `in`, zeros beyond the matrix, and ceil(out / n) butterflies on top of each other. As many terms
as `keep` allows; what one term could not save stays as it is.
Dao et al., ICML 2019 (arXiv:1903.05895). Different: factors are found in closed form instead of by descent from several random
starts, and no permutation is learned; several terms, since one holds a fixed and small number of parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab import formats
from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Sum
from trimtab.formats.butterfly import LARGEST, butterfly_spec
from trimtab.formats.registry import MOST_PARTS
from trimtab.tensors.butterfly import fitted, numbers


@dataclass(frozen=True)
class Butterfly(LinearMethod):
    card: ClassVar = Card(
        id="butterfly",
        title="Learning Fast Algorithms for Linear Transforms Using Butterfly Factorizations",
        paper="arXiv:1903.05895",
        fidelity="variant",
        beside=("svd", "compactifai"),
        claims=(
            Claim(
                "beats-svd-at-80",
                "butterfly(keep=0.2)",
                "<",
                "svd(keep=0.2)",
                note="at most as many parameters on the left side; they report transforms and trained layers, no projections",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Sum, Dense)

    keep: float = rate("fraction of the matrix's parameters that all terms may hold; 1: left as it is", 0.8, low=0.01)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        terms = self._terms(site)
        parts = [butterfly_spec(site.shape, spec["dtype"])] * terms
        return {"kind": Sum.kind, "shape": [*site.shape], "parts": parts} if terms else dict(spec)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Sum | Dense:
        assert isinstance(weight, Dense), "all that `takes` allows"
        rest, parts = weight.dense(), []
        for _ in range(self._terms(site)):
            parts.append(formats.Butterfly.of(fitted(rest).to(weight.weight.dtype), site.shape))
            rest = rest - parts[-1].dense()
        if not parts:
            seen.note("kept", "dense: one term would hold as many parameters")
            return weight
        return Sum(tuple(parts))

    def _terms(self, site: Site) -> int:
        """0 where one would save nothing."""
        weights, each = site.shape[0] * site.shape[1], numbers(site.shape)
        if self.keep == 1 or each >= weights or site.shape[1] > LARGEST:
            return 0
        return min(MOST_PARTS, max(1, int(self.keep * weights / each)))
