"""WeLore: ranks by one threshold for all matrices, under which normalized singular values count as nothing. No data.

Singular values s of every matrix become (s - min) / (max - min); a matrix keeps as many as are at or above the threshold,
which is the lowest at which all together hold `keep` of the parameters. A matrix whose factors would hold as many numbers as
itself stays as it is and is charged for that. Spectra with a heavy tail lose much rank, flat ones nearly none.
Jaiswal et al., 2024 (arXiv:2407.11239). Their budget is one of ranks, of which half saves nothing in a square matrix; here it
is one of parameters. They factor by plain SVD and then train the factors alone, what stayed dense stands still:
"svd by welore(keep=0.8) -> recover(rank=0, learn='factored')".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Allocator, Original, Seen
from trimtab.core.knobs import rate
from trimtab.core.places import Site

LEAST = 0.01  # the smallest `keep` that a method takes
WHOLE = 1e-6  # of a rank: what is added, so that rounding cannot take the last one away


@dataclass(frozen=True)
class WeLore(Allocator):
    card: ClassVar = Card(
        id="welore",
        title="From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
        paper="arXiv:2407.11239",
        fidelity="variant",
        beside=("svd", "svd_llm", "d_rank", "recover"),
        claims=(
            Claim(
                "beats-uniform-at-20",
                "svd by welore(keep=0.8)",
                "<",
                "svd(keep=0.8)",
                note="as many parameters on both sides",
            ),
            Claim(
                "factors-alone-beat-all",
                "svd by welore(keep=0.5) -> recover(rank=0, learn='factored', learning_rate=0.0003)",
                "<",
                "svd by welore(keep=0.5) -> recover(rank=0, learning_rate=0.0003)",
                note="the same bytes, steps and tokens; the left side trains fewer parameters. The paper: as good or better",
                model="asset:own-5m",
            ),
            Claim(
                "trained-factors-beat-untrained",
                "svd by welore(keep=0.5) -> recover(rank=0, learn='factored', learning_rate=0.0003)",
                "<",
                "svd by welore(keep=0.5)",
                note="the same bytes; the left side trains its factors for 100 steps",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Original,)
    knob: ClassVar = "keep"

    keep: float = rate("fraction of the parameters that all factors together may hold", 0.8, low=0.01)

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, float]:
        spectra = [_normalized(seen[Original][site]) for site in sites]
        threshold = self._threshold(sites, spectra)
        return {site: _share(site, _rank(one, threshold)) for site, one in zip(sites, spectra, strict=True)}

    def _threshold(self, sites: Sequence[Site], spectra: Sequence[Tensor]) -> float:
        """The lowest of all values at which the budget is met, found by halving: what is held falls as it rises."""
        values = torch.cat([*spectra]).unique()
        budget = self.keep * sum(s.shape[0] * s.shape[1] for s in sites)
        low, high = 0, len(values) - 1
        while low < high:
            middle = (low + high) // 2
            held = sum(_held(s, _rank(one, float(values[middle]))) for s, one in zip(sites, spectra, strict=True))
            low, high = (low, middle) if held <= budget else (middle + 1, high)
        return float(values[low])


def _normalized(weight: Tensor) -> Tensor:
    """[min(out, in)] float64 from 1 down to 0; all 1 where they are equal."""
    values = torch.linalg.svdvals(weight.double())
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.ones_like(values)


def _rank(spectrum: Tensor, threshold: float) -> int:
    return max(1, int((spectrum >= threshold).sum()))


def _held(site: Site, rank: int) -> int:
    """Parameters: of the factors, or of the matrix where they would be no fewer."""
    return min(rank * sum(site.shape), site.shape[0] * site.shape[1])


def _share(site: Site, rank: int) -> float:
    """The `keep` that gives this rank."""
    return max(LEAST, min(1.0, (rank + WHOLE) * sum(site.shape) / (site.shape[0] * site.shape[1])))
