"""AWQ, its clipping (awq_clip): round to nearest on grids whose ranges are shrunk for the least output error of each group.

Per row and group of inputs, of the limits  p * max |w|,  p of {1, 0.95 .. 0.55},  the one with the least
    mean_t |sum over the group of (Q(clamp(w, -limit, limit)) - w) x_t|^2 = d gram_group dᵀ.
Queries and keys (and fused projections that hold them) are rounded without clipping: their product is sensitive to it.
Lin et al., MLSys 2024 (arXiv:2306.00978). The error comes from the group's block of the gram, so all calibration tokens count
and not a sample. Meant to follow `awq` with the same bits and group_size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import LinearMethod, Seen
from trimtab.core.knobs import count, flag
from trimtab.core.places import Role, Site
from trimtab.formats import Dense, Grouped, Masked, check_group_size
from trimtab.formats.plain import grouped_spec
from trimtab.stats import Gram
from trimtab.tensors.rounding import fit

LIMITS = tuple(1 - step / 20 for step in range(10))
SENSITIVE = (Role.Q, Role.K, Role.QKV)


@dataclass(frozen=True)
class AwqClip(LinearMethod):
    card: ClassVar = Card(
        id="awq_clip",
        title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        paper="arXiv:2306.00978",
        fidelity="exact",
        beside=("awq", "rtn", "gptq"),
        claims=(
            Claim("beats-rtn-at-3-bit", "awq_clip(bits=3)", "<", "rtn(bits=3)"),
            Claim(
                "beats-the-clipping-of-weights-at-3-bit",
                "awq(bits=3) -> awq_clip(bits=3)",
                "<",
                "awq(bits=3) -> rtn(bits=3, clip=True)",
                note="the range with the least output error against the one with the least rounding error",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    takes: ClassVar = (Dense, Masked)
    gives: ClassVar = (Grouped,)

    bits: int = count("bits per code", 4, 2, 8)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)
    symmetric: bool = flag("grid centred on zero, no stored zero point", False)
    everywhere: bool = flag("also clip queries and keys", False)

    def fits(self, site: Site) -> None:
        check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)

    def promises(self, site: Site, spec: Mapping[str, Any]) -> dict[str, Any]:
        return grouped_spec(site.shape, self.bits, self.group_size or site.shape[1], self.symmetric)

    def solve(self, weight: Dense | Masked, seen: Seen, site: Site) -> Grouped:
        group_size = self.group_size or site.shape[1]
        groups = weight.dense().reshape(site.shape[0], -1, group_size)  # [out, groups, group]
        limits = LIMITS if self.everywhere or site.role not in SENSITIVE else LIMITS[:1]
        clipped = self._clipped(groups, _blocks(seen[Gram], group_size), limits)
        grid = fit(clipped, self.bits, self.symmetric)
        return Grouped.on_grid(grid, clipped, self.symmetric)

    def _clipped(self, groups: Tensor, gram: Tensor, limits: tuple[float, ...]) -> Tensor:
        """The groups, each clamped to the limit with the least output error."""
        size = groups.abs().amax(-1, keepdim=True)
        best, least = groups, torch.full_like(size, torch.inf)
        for limit in limits:
            clipped = groups.clamp(-limit * size, limit * size)
            change = fit(clipped, self.bits, self.symmetric).nearest(clipped) - groups
            error = (torch.einsum("ogi,gij->ogj", change, gram) * change).sum(-1, keepdim=True)
            best, least = torch.where(error < least, clipped, best), torch.minimum(error, least)
        return best


def _blocks(gram: Tensor, size: int) -> Tensor:
    """[groups, size, size] the blocks on the diagonal of a gram [in, in]."""
    tiles = gram.reshape(len(gram) // size, size, len(gram) // size, size)
    return tiles.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
