"""Basis Sharing: the same matrices of neighbouring blocks stand on one basis, stored once: ranks are higher at equal bytes.

Of n blocks in a row, with G the mean of their grams and G = L Lᵀ: the truncated SVD of [W_1; ...; W_n] L, brought back by L⁻¹,
gives W_b ~ left_b [out, rank] @ right [rank, in] with one `right`; rank (n out + in) numbers are `keep` of n out in. With one
block it is `svd_llm`. Matrices that write into the stream (output projection, down) see inputs of their own block only, and
are factored alone, as in the paper; so is what has no neighbour of its shape, and experts.
Wang et al., ICLR 2025 (arXiv:2410.03765). Different: grams are of the untouched model, looked at once, and what follows is not
tuned to the compressed blocks before it. Needs the grams of all matrices at once, 4 in^2 bytes each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.edits import Edits, OnBasis, SetWeight
from trimtab.core.kinds import ModelMethod, Seen
from trimtab.core.knobs import count, flag, rate
from trimtab.core.places import Role, Site
from trimtab.formats import Chain, Dense, low_rank
from trimtab.formats.plain import plain
from trimtab.stats import Gram
from trimtab.tensors.lowrank import truncated
from trimtab.tensors.spd import cholesky

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

WRITERS = (Role.O, Role.DOWN)


@dataclass(frozen=True)
class BasisSharing(ModelMethod):
    card: ClassVar = Card(
        id="basis_sharing",
        title="Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model Compression",
        paper="arXiv:2410.03765",
        fidelity="variant",
        beside=("svd_llm", "d_rank", "foldgpt"),
        claims=(
            Claim(
                "beats-svd-llm-at-20",
                "basis_sharing(keep=0.8)",
                "<",
                "svd_llm(keep=0.8)",
                note="as many parameters on both sides",
            ),
            Claim(
                "sharing-beats-alone-at-30",
                "basis_sharing(keep=0.7)",
                "<",
                "basis_sharing(keep=0.7, blocks=1)",
                note="as many parameters on both sides",
            ),
        ),
    )
    needs: ClassVar = (Gram,)
    gives: ClassVar = (Chain, Dense)

    keep: float = rate("fraction of the parameters that bases and what stands on them may hold; 1: left as it is", 0.8, low=0.01)
    blocks: int = count("neighbouring blocks whose matrices share a basis", 2)
    writers: bool = flag("share also among the matrices that write into the stream", False)
    damping: float = rate("added to the grams, as a fraction of their mean diagonal", 1e-4)

    def rewrite(self, anatomy: "Anatomy", seen: Seen) -> Edits:
        inside = [s for s in anatomy.sites if s.block is not None and s.role is not Role.ROUTER]
        edits: Edits = []
        for group in _groups(inside, self.blocks, self.writers):
            edits += self._factored(anatomy, group, seen)
        return edits

    def _factored(self, anatomy: "Anatomy", group: Sequence[Site], seen: Seen) -> Edits:
        first, *others = group
        (out, inputs), grams = first.shape, [seen[Gram][site] for site in group]
        per_rank, whole = len(group) * out + inputs, len(group) * out * inputs
        rank = max(1, int(self.keep * whole / per_rank))
        if self.keep == 1 or rank * per_rank >= whole:
            seen.note(f"kept dense: {first.name}", "factors would hold as many parameters")
            return []
        stored = [plain(anatomy.weight(site)) for site in group]
        found = truncated(torch.cat(stored), rank, self._root(grams, first, seen))
        lefts = found.left.to(stored[0].dtype).split(out)
        lent = SetWeight(first, low_rank(lefts[0], found.right, stored[0].dtype))
        return [lent, *(OnBasis(site, left.clone(), first) for site, left in zip(others, lefts[1:], strict=True))]

    def _root(self, grams: Sequence[Tensor], site: Site, seen: Seen) -> Tensor:
        root, used = cholesky(torch.stack([*grams]).double().mean(0), self.damping)
        seen.note("damping", self.damping)
        if used != self.damping:
            seen.note(f"damping: {site.name}", used)
        return root


def _groups(sites: Sequence[Site], blocks: int, writers: bool) -> Iterator[list[Site]]:
    """Matrices of one role and shape in up to `blocks` neighbouring blocks, every one of `sites` in one group."""
    left = list(sites)
    while left:
        first = left[0]
        alone = first.index is not None or first.role is Role.OTHER or (first.role in WRITERS and not writers)
        group = [first] if alone else _alike(left, first)[:blocks]
        yield group
        left = [site for site in left if site not in group]


def _alike(sites: Sequence[Site], first: Site) -> list[Site]:
    """The first and what is like it in the blocks right behind it, one of each."""
    found = [first]
    for site in sites:
        here = found[-1].block
        if here is not None and (site.role, site.shape, site.block, site.index) == (first.role, first.shape, here + 1, None):
            found.append(site)
    return found
