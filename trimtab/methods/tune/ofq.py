"""OFQ: rounding that does not oscillate - scales that follow the weights, and at the end only undecided weights still learn.

    StatsQ:  s = 2 mean|w| of a row,  u = clamp(w / s, -1, 1 - 1e-6),  w^ = s (round(u n - 1/2) + 1/2) / n,  n = 2^(bits - 1)
    annealing: in the last `anneal` of the steps a weight learns only while |t - boundary| <= border, t = u n - 1/2, the
               boundary between two codes being nearest; all others stand still, with what the optimizer remembers of them gone

The gradient goes to the weights as if nothing had been rounded, also beyond the clamp. The loss is the teacher's answers.
Liu et al., ICML 2023 (arXiv:2302.02210), for vision transformers. Weights only: rounded activations are left out, and so is
the query-key reparameterization, whose product of two projections would depend on the position in a model with rotary
embeddings; `benchmarks/oscillation.py` tries it where there are none (`tensors/query_key.py`). Levels are 2^bits odd multiples
of s / 2^bits, stored as signs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said, TaughtMethod, Teacher, gains
from trimtab.formats import SignPlanes
from trimtab.formats.latent import Latent
from trimtab.tensors.losses import distilled

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

MOMENTUM = "exp_avg"  # as AdamW calls it


@dataclass(frozen=True)
class Ofq(TaughtMethod):
    card: ClassVar = Card(
        id="ofq",
        title="Oscillation-free Quantization for Low-bit Vision Transformers",
        paper="arXiv:2302.02210",
        fidelity="variant",
        beside=("edkm", "db_llm", "edgerazor"),
        claims=(
            Claim(
                "annealing-helps",
                "ofq(steps=300)",
                "<",
                "ofq(steps=300, anneal=0.0)",
                published="64.3 % with all three parts, DeiT-T at 2-bit weights and activations, ImageNet; 9.8 above others",
                note="equal bits, steps and tokens",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Teacher,)

    bits: int = count("bits per code", 2, 1, 8)
    anneal: float = rate("of the steps, the last ones, in which only undecided weights learn", 0.25)
    border: float = number("how far from a boundary a weight counts as undecided, in units of a level's width", 0.005, 0.0, 0.5)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 2e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners = {site: StatsQ(anatomy.weight(site).dense(), self.bits) for site in self.sites(anatomy)}
        return Annealed(learners, gains(anatomy), self.border, 1 - self.anneal)


class StatsQ(Latent):
    """Levels at odd multiples of a row's mean magnitude over 2^(bits - 1)."""

    def __init__(self, weight: Tensor, bits: int):
        super().__init__(weight)
        self.bits = bits

    def _coded(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes as float and how far from their boundary [out, in]; half a level's width [out, 1] float16, as float32."""
        half = (2 * weight.abs().mean(1, keepdim=True) / 2**self.bits).half().float()
        levels = 2 ** (self.bits - 1)
        unit = torch.where(half > 0, half * 2**self.bits, 1.0)
        steps = (weight / unit).clamp(-1, 1 - 1e-6) * levels - 0.5
        codes = steps.round()
        outside = (steps + 0.5).abs() > levels - 0.5  # there the boundary is the end of the range, which nothing crosses
        return codes + levels, torch.where(outside, 1.0, 0.5 - (steps - codes).abs()), half

    def rounded(self, weight: Tensor) -> Tensor:
        codes, _, half = self._coded(weight)
        levels: int = 2**self.bits
        return (2 * codes + 1 - levels) * half

    def stored(self, weight: Tensor) -> SignPlanes:
        codes, _, half = self._coded(weight)
        scale = half.unsqueeze(-1) * 2 ** torch.arange(self.bits, device=weight.device)
        return SignPlanes(codes.to(torch.uint8), scale.half(), 1, weight.shape[1])

    def codes(self) -> Tensor:
        """[out, in], as float, of the weights as they are now."""
        return self._coded(self.weight.detach())[0]

    def undecided(self, border: float) -> Tensor:
        """[out, in] bool: so near to a boundary between codes that the next steps may carry the weight over it."""
        near: Tensor = self._coded(self.weight.detach())[1] <= border
        return near


class Annealed(Pupil):
    """border: what is undecided. start: the progress from which on nothing else learns."""

    def __init__(self, learners: Mapping[Site, StatsQ], own: Sequence[str], border: float, start: float):
        super().__init__(learners, own)
        self.rounding, self.border, self.start = list(learners.values()), border, start

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        return distilled(said.logits, taught.logits) * share

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        for learner in self.rounding:
            if learner.progress >= self.start and learner.weight.grad is not None:
                free = learner.undecided(self.border)
                learner.weight.grad *= free
                remembered = optimizer.state.get(learner.weight, {})
                if MOMENTUM in remembered:
                    remembered[MOMENTUM] *= free

    def notes(self) -> dict[str, Any]:
        undecided = sum(int(learner.undecided(self.border).sum()) for learner in self.rounding)
        return {"undecided": undecided / sum(learner.weight.numel() for learner in self.rounding)}
