"""RD-Prune: rate-distortion curves of every matrix, and the mixture of least total distortion by dynamic programming.

D_l(level) = mean_t KL(model as it is || model with matrix l alone at the level), on held-out tokens; a curve is its running
maximum towards stronger levels.  min sum_l D_l(level_l) over all mixtures of the largest total within the budget.
Xu et al., ICCV 2023 (arXiv:2308.10438): there the distortion is the largest mean squared change of the outputs over samples, the
model is a vision model, and pruning and training alternate; here predictions are compared, once. Any knob may have levels:
the same program allots bits. The exact program is that of `tensors.allocation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Any, ClassVar

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Candidate, Seen, Storage, Trials
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.formats.leveled import Ladder, Leveled
from trimtab.tensors.allocation import best

BEYOND = 1e3  # times the largest distortion: a level with which nothing could be judged


@dataclass(frozen=True)
class RdPrune(Leveled):
    card: ClassVar = Card(
        id="rd_prune",
        title="Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
        paper="arXiv:2308.10438",
        fidelity="variant",
        beside=("gptq", "magnitude", "evopress", "uniform"),
        claims=(
            Claim(
                "beats-uniform-magnitude",
                "magnitude by rd_prune(levels='sparsity=0.3,0.4,0.5,0.6,0.7,0.8', mean=0.6, per='block', held_out=1024)",
                "<",
                "magnitude(sparsity=0.6)",
            ),
            Claim(
                "beats-uniform-bits",
                "gptq(clip=True) by rd_prune(levels='bits=2,3,4', mean=3, held_out=1024)",
                "<",
                "gptq(bits=3, clip=True)",
                note="the same bytes on both sides",
            ),
        ),
    )
    needs: ClassVar = (Trials, Storage)

    held_out: int = count("held-out tokens on which distortions are measured", 4096)

    def trials(self, places: Sequence[Site], windows: int) -> tuple[int, int]:
        judged = len(self.places(places)) * len(self.strengths)
        return judged, judged * windows

    def allocate(self, sites: Sequence[Site], seen: Seen) -> dict[Site, Any]:
        ladder = self.ladder(sites, seen[Storage])
        asked = [self._alone(sites, place, level) for place in ladder.places for level in self.strengths]
        losses = iter(seen[Trials].losses(asked))
        curves = [[next(losses) for _ in self.strengths] for _ in ladder.places]
        worths = [[-d for d in curve] for curve in _finite(list(map(_rising, curves, ladder.costs)))]
        return self.chosen(ladder, best(ladder.costs, worths, self._spent(ladder)))

    def _spent(self, ladder: Ladder) -> int:
        """What every mixture costs; the budget itself need not be reachable."""
        return sum(costs[at] for costs, at in zip(ladder.costs, ladder.start, strict=True))

    def _alone(self, sites: Sequence[Site], place: Sequence[Site], level: Any) -> Candidate:
        return tuple(level if site in place else None for site in sites)


def _rising(curve: Sequence[float], costs: Sequence[int]) -> list[float]:
    """The running maximum from the costliest level to the cheapest."""
    order = sorted(range(len(curve)), key=lambda at: -costs[at])
    highest = accumulate((curve[at] for at in order), max)
    by_choice = dict(zip(order, highest, strict=True))
    return [by_choice[at] for at in range(len(curve))]


def _finite(curves: list[list[float]]) -> list[list[float]]:
    largest = max((d for curve in curves for d in curve if d < inf), default=0.0)
    return [[min(d, BEYOND * (1 + largest)) for d in curve] for curve in curves]
