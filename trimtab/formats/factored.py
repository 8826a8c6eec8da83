"""Two thin factors in the place of a matrix: what all methods share that differ in the metric or in what they aim at.

`keep` counts parameters, not ranks. Where factors of that rank would hold as much as the matrix itself (rank * (out + in) >=
out * in), the matrix is left as it is, and the receipt says so: at keep=1, and where a matrix is too small for a rank.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats.dense import Dense
from trimtab.formats.lowrank import Chain, low_rank
from trimtab.formats.plain import low_rank_spec
from trimtab.tensors.lowrank import Factors, rank_for


@dataclass(frozen=True)
class Factored(LinearMethod):
    """The knob of such a method, its promises, and its `solve`, which asks for `factors`."""

    takes: ClassVar = (Dense,)
    gives: ClassVar = (Chain, Dense)

    keep: float = rate("fraction of the matrix's parameters that the two factors may hold; 1: left as it is", 0.8, low=0.01)
    multiple: int = count("of which a rank is a multiple, rounded down, where it is not below", 1)

    @abstractmethod
    def factors(self, weight: Dense, rank: int, seen: Seen) -> Factors:
        """Factors of this rank; the inputs are declared in `needs`."""

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any] | None:
        rank = self._rank(site)
        return low_rank_spec(site.shape, rank, spec["dtype"]) if rank else dict(spec)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Chain | Dense:
        assert isinstance(weight, Dense), "all that `takes` allows"
        rank = self._rank(site)
        if not rank:
            seen.note("kept", "dense: factors would hold as many parameters")
            return weight
        found = self.factors(weight, rank, seen)
        return low_rank(found.left, found.right, weight.weight.dtype)

    def _rank(self, site: Site) -> int:
        """0 beyond the break-even."""
        rank, (out, inputs) = rank_for(site.shape, self.keep), site.shape
        rank -= rank % self.multiple if rank > self.multiple else 0
        return rank if self.keep < 1 and rank * (out + inputs) < out * inputs else 0
