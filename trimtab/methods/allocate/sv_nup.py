"""SV-NUP: blocks that the model misses most are pruned least, by Shapley values in sliding windows.

Players are the blocks. v(S) = -KL(model as it is || blocks outside of S pruned at the mean sparsity), per held-out token;
phi_i = the Shapley value of i among the `window` blocks around it, all others intact (`tensors.shapley`).
    sparsity_i = mean - reach * (phi_i - mean(phi)) / max |phi - mean(phi)|,  shifted so that the mean over weights holds
Sun et al., 2025 (arXiv:2505.01731); the value function and the mapping to sparsities are filled in by us.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Allocator, Candidate, Seen, Trials
from trimtab.core.knobs import count, rate
from trimtab.core.places import Site
from trimtab.formats.blockwise import by_block, sparsities
from trimtab.tensors.shapley import Absent, coalitions, windowed_shapley
from trimtab.tensors.spreading import centred


@dataclass(frozen=True)
class SvNup(Allocator):
    card: ClassVar = Card(
        id="sv_nup",
        title="Efficient Shapley Value-based Non-Uniform Pruning of Large Language Models",
        paper="arXiv:2505.01731",
        fidelity="reconstructed",
        beside=("sparsegpt", "wanda", "owl", "evopress"),
        claims=(
            Claim(
                "beats-uniform-sparsegpt",
                "sparsegpt by sv_nup(sparsity=0.7)",
                "<",
                "sparsegpt(sparsity=0.7)",
                published="18.01 % lower perplexity, LLaMA-7B",
            ),
            Claim("beats-uniform-wanda", "wanda by sv_nup(sparsity=0.7)", "<", "wanda(sparsity=0.7)"),
        ),
    )
    needs: ClassVar = (Trials,)
    knob: ClassVar = "sparsity"

    sparsity: float = rate("fraction of weights removed, on average", 0.7, high=0.99)
    reach: float = rate("how far the block that is farthest from the mean may go", 0.05)
    window: int = count("blocks of which some are pruned together", 3, 1, 12)
    held_out: int = count("held-out tokens on which teams of blocks are judged", 4096)

    @property
    def strengths(self) -> Sequence[float]:
        return (self.sparsity,)

    def trials(self, places: Sequence[Site], windows: int) -> tuple[int, int]:
        judged = len(coalitions(len(by_block(places, self.card.id)), self.window))
        return judged, judged * windows

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, float]:
        blocks = list(by_block(sites, self.card.id))
        trials: Trials = seen[Trials]

        def values(teams: Sequence[Absent]) -> list[float]:
            losses = trials.losses([self._pruned(sites, {blocks[i] for i in absent}) for absent in teams])
            if not all(map(isfinite, losses)):
                raise ArithmeticError("a team of blocks could not be judged, so nobody's share is known")
            return [-loss for loss in losses]

        shares = torch.tensor(windowed_shapley(len(blocks), self.window, values), dtype=torch.float64)
        return sparsities(sites, -self.reach * centred(shares), self.sparsity, self.card.id)

    def _pruned(self, sites: Sequence[Site], absent: set[int]) -> Candidate:
        return tuple(self.sparsity if site.block in absent else None for site in sites)
