"""eDKM: every matrix gets a palette of 2^bits values that is learned with the weights, by a differentiable k-means.

    a_j(w) = softmax_j(-(w - c_j)^2 / t),  c_j = sum_w a_j w / sum_w a_j  (repeated),  w~ = sum_j a_j c_j

The model sees w~ while it learns the text; at the end every weight is the nearest of the palette. The shares are worked out once
for each of the at most 65 536 values that bfloat16 weights can have (uniquification), so that what gradients need grows with
those, not with the number of weights (`tensors.palette`). t = temperature times the mean square of the weights.
Cho et al., 2023 (arXiv:2309.00964), after DKM (Cho et al., ICLR 2022). Its other two means, references to tensors that were saved
before and sharding over machines, are left out. The palette is carried from step to step. Temperature and rounds are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said, TaughtMethod, gains
from trimtab.formats import Codebook
from trimtab.tensors.losses import next_token
from trimtab.tensors.palette import distinct, nearest, quantiles, settled, soft

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

SETTLING = 10  # rounds at the beginning


@dataclass(frozen=True)
class Edkm(TaughtMethod):
    card: ClassVar = Card(
        id="edkm",
        title="eDKM: An Efficient and Accurate Train-time Weight Clustering for Large Language Models",
        paper="arXiv:2309.00964",
        fidelity="reconstructed",
        beside=("ofq", "db_llm", "rtn"),
        claims=(
            Claim(
                "trained-palette-beats-rounding-at-3-bit",
                "edkm",
                "<",
                "rtn(bits=3, group_size=0, clip=True)",
                published="77.7 (PIQA) at 3 bits, LLaMA-7B: above other ways of training at as many bits",
                note="3.0 and 3.1 stored bits; the left side is trained",
                model="asset:own-5m",
            ),
        ),
    )

    bits: int = count("of a code; a palette has 2^bits values", 3, 1, 8)
    temperature: float = number("of the shares, in units of the weights' mean square; small = hard", 0.001, low=1e-7)
    rounds: int = count("of the clustering, in every step", 2, 1, 20)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 5e-5, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners = {site: Clustered(anatomy.weight(site).dense(), self) for site in self.sites(anatomy)}
        return Clusters(learners, gains(anatomy))


class Clustered(Learner):
    """weight [out, in] is trained; the palette is state that follows it."""

    palette: Tensor

    def __init__(self, weight: Tensor, method: Edkm):
        super().__init__()
        self.rates, self.rounds, self.scale = {}, method.rounds, method.temperature
        self.weight = nn.Parameter(weight.clone())
        self.register_buffer("palette", quantiles(weight, 2**method.bits))
        self.settle(SETTLING)

    def _temperature(self) -> Tensor:
        return (self.scale * self.weight.detach().square().mean()).clamp(min=torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def settle(self, rounds: int) -> None:
        """Lets the palette follow the weights."""
        found = distinct(self.weight)
        self.palette.copy_(settled(found.values, found.counts, self.palette, self._temperature(), rounds))

    def matrix(self) -> Tensor:
        if self.progress < 1.0:
            return soft(self.weight, self.palette, self._temperature(), self.rounds)
        return self.palette.half().float()[nearest(self.weight, self.palette)]

    def result(self) -> Codebook:
        codes = nearest(self.weight, self.palette)
        return Codebook(codes.unsqueeze(0).to(torch.uint8), self.palette.half().view(1, -1, 1))


class Clusters(Pupil):
    def __init__(self, learners: Mapping[Site, Clustered], own: Sequence[str]):
        super().__init__(learners, own)
        self.clustered: list[Clustered] = list(learners.values())

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        return next_token(said.logits, ids) * share

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for learner in self.clustered:
            learner.settle(learner.rounds)
