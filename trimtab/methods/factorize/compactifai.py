"""CompactifAI: a matrix becomes a matrix product operator, a row of small cores, whose bonds are cut to a budget. No data.

out = o_1 ... o_N and in = i_1 ... i_N; N - 1 singular value decompositions, each cut to the bond b, leave cores of b o_j i_j b
numbers (`tensors.mpo`). Two sites are a sum of b Kronecker products. One bond for all cuts of a matrix, the largest that `keep`
allows.
Tomut et al., 2024 (arXiv:2401.14109), the decomposition. Healing trains the cores and is a step of its own, which follows:
"compactifai(keep=0.8) -> recover(rank=0)", or with learn="factored" the cores alone; how sensitive every layer is, and
quantizing what remains, are others. Widths are split as evenly as their divisors allow, where the paper chooses none; nothing
is padded, so a prime width stays in one core. What would hold as much as the matrix stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, LinearWeight, Seen
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats import Dense, Mpo
from trimtab.formats.mpo import mpo_spec
from trimtab.tensors.mpo import axes, bonds_for, decomposed, numbers

Plan = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class CompactifAI(LinearMethod):
    card: ClassVar = Card(
        id="compactifai",
        title="CompactifAI: Extreme Compression of Large Language Models using Quantum-Inspired Tensor Networks",
        paper="arXiv:2401.14109",
        fidelity="reconstructed",
        beside=("svd", "svd_llm", "recover"),
        claims=(
            Claim(
                "beats-svd-at-20",
                "compactifai(keep=0.8)",
                "<",
                "svd(keep=0.8)",
                note="as many parameters on both sides, neither healed",
            ),
            Claim(
                "healing-beats-none",
                "compactifai(keep=0.5) -> recover(rank=0, learn='factored', learning_rate=0.0003)",
                "<",
                "compactifai(keep=0.5)",
                note="the same bytes; the left side trains its cores for 100 steps",
                model="asset:own-5m",
            ),
            Claim(
                "healed-beats-healed-svd",
                "compactifai(keep=0.5) -> recover(rank=0, learn='factored', learning_rate=0.0003)",
                "<",
                "svd(keep=0.5) -> recover(rank=0, learn='factored', learning_rate=0.0003)",
                note="as many parameters, steps and tokens; the paper does not compare itself with this",
                model="asset:own-5m",
            ),
        ),
    )
    takes: ClassVar = (Dense,)
    gives: ClassVar = (Mpo, Dense)

    keep: float = rate("fraction of the matrix's parameters that the cores may hold; 1: left as it is", 0.8, low=0.01)
    sites: int = count("cores that a matrix becomes", 3, 2, 6)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        plan = self._plan(site)
        return mpo_spec(*plan, spec["dtype"]) if plan else dict(spec)

    def solve(self, weight: LinearWeight, seen: Seen, site: Site) -> Mpo | Dense:
        assert isinstance(weight, Dense), "all that `takes` allows"
        plan = self._plan(site)
        if plan is None:
            seen.note("kept", "dense: cores would hold as many parameters")
            return weight
        return Mpo(tuple(core.to(weight.weight.dtype) for core in decomposed(weight.dense(), *plan)))

    def _plan(self, site: Site) -> Plan | None:
        """(outputs, inputs, bonds) of the cores; None where they would save nothing."""
        weights = site.shape[0] * site.shape[1]
        rows, columns = axes(site.shape, self.sites)
        of = bonds_for(rows, columns, self.keep * weights)
        return (rows, columns, of) if self.keep < 1 and numbers(rows, columns, of) < weights else None
