"""D-Rank: parameters of factors where the outputs have many directions, by effective rank.

With s^2 the spectrum of W L (gram = L Lᵀ), p = s^2 / sum s^2 and R = exp(-sum p log p), the ranks k with the least
    sum of R / k   subject to   sum of k (out + in) = keep * all weights   are   k ~ sqrt(R / (out + in)),
none beyond the break-even, where a matrix is left as it is and the others share what it cannot use. Then every block moves
`rebalance` of the parameters of its query and key matrices to its value matrix, as far as that can hold them.
arXiv:2509.25622 (2025), for one block at a time: bases that several blocks share are not stored here. The closed form is derived
from the metric they give. Needs the grams of all matrices at once, 4 in^2 bytes each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Allocator, Original, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Role, Site
from trimtab.stats import Gram
from trimtab.tensors.allocation import filled
from trimtab.tensors.spd import cholesky
from trimtab.tensors.spectrum import effective_rank

LEAST = 0.01  # the smallest `keep` that a method takes


@dataclass(frozen=True)
class DRank(Allocator):
    card: ClassVar = Card(
        id="d_rank",
        title="Layer-wise dynamic rank for compressing large language models",
        paper="arXiv:2509.25622",
        fidelity="reconstructed",
        beside=("svd_llm", "svd", "welore"),
        claims=(
            Claim(
                "beats-uniform-at-20",
                "svd_llm by d_rank(keep=0.8)",
                "<",
                "svd_llm(keep=0.8)",
                note="as many parameters on both sides",
            ),
            Claim(
                "rebalancing-helps-at-20",
                "svd_llm by d_rank(keep=0.8)",
                "<",
                "svd_llm by d_rank(keep=0.8, rebalance=0.0)",
                note="as many parameters on both sides",
            ),
        ),
    )
    needs: ClassVar = (Gram, Original)
    knob: ClassVar = "keep"

    keep: float = rate("fraction of the parameters that all factors together may hold", 0.8, low=0.01)
    rebalance: float = rate("fraction of a block's query and key parameters that go to its value matrix", 0.3)
    damping: float = rate("added to the grams, as a fraction of their mean diagonals", 1e-4)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, float]:
        varied = torch.tensor([self._effective_rank(site, seen) for site in sites], dtype=torch.float64)
        sizes = torch.tensor([s.shape[0] * s.shape[1] for s in sites], dtype=torch.float64)
        per_rank = torch.tensor([sum(s.shape) for s in sites], dtype=torch.float64)
        low = torch.maximum(LEAST * sizes, torch.minimum(per_rank, sizes))
        held = filled((varied * per_rank).sqrt(), low, sizes, self.keep * float(sizes.sum()))
        for block in {s.block for s in sites}:
            roles = {s.role: i for i, s in enumerate(sites) if s.block == block and s.index is None}
            self._rebalance(held, low, sizes, roles)
        return {site: float(share) for site, share in zip(sites, (held / sizes).clamp(max=1.0), strict=True)}

    def _effective_rank(self, site: Site, seen: Seen) -> float:
        root, used = cholesky(seen[Gram][site], self.damping)
        seen.note("damping", self.damping)
        if used != self.damping:
            seen.note(f"damping: {site.name}", used)
        return effective_rank(torch.linalg.svdvals(seen[Original][site].double() @ root).square())

    def _rebalance(self, held: Tensor, low: Tensor, sizes: Tensor, roles: dict[Role, int]) -> None:
        """Changes `held`, parameters by site."""
        givers = torch.tensor([roles[role] for role in (Role.Q, Role.K) if role in roles], dtype=torch.int64)
        if Role.V not in roles or not len(givers):
            return
        value = roles[Role.V]
        given = torch.minimum(self.rebalance * held[givers], held[givers] - low[givers])
        taken = min(float(given.sum()), float(sizes[value] - held[value]))
        if taken > 0:
            held[givers] -= given * (taken / float(given.sum()))
            held[value] += taken
