"""PV-tuning: what is stored for a quantized model is trained itself - scales and codebooks by gradients, codes by jumps.

    P: one step of AdamW on scales, offsets, codebooks and the gains of norms, through the stored values W^.
    V: T = W^ - reach |W^| D,  D Adam's direction of dL/dW^ without momentum, of norm 1;  the share of runs (single weights,
       or the vectors of a codebook) where T - W^ is largest take the codes nearest to T, as long as all changes together are
       no longer than trust |W^|.

Few codes at a time: with all of them the step that gradients justify is too short to reach another code, with few it may be
long. forget = 0 adds up what the steps asked for, which is what the published command line does; with share = 1 as well it is
straight-through training. forget = 1 rebuilds T from W^ at every step. share = 0 leaves the codes alone.
Malinovskii et al., NeurIPS 2024 (arXiv:2405.14852). Teacher's answers as in the paper, over integers, bit planes and codebooks
alike; codes of several codebooks by alternating minimization instead of a beam; no embeddings; steps that ask for more (the
published 0.01 is for trainings of thousands of steps).
"""

from collections.abc import Sequence
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
from trimtab.formats.moving import Moving, Pace, quantized
from trimtab.tensors.losses import distilled

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class PvTuning(TaughtMethod):
    card: ClassVar = Card(
        id="pv_tuning",
        title="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression",
        paper="arXiv:2405.14852",
        fidelity="variant",
        beside=("elutq_tuning", "distill", "aqlm"),
        claims=(
            Claim(
                "codes-that-move-beat-codes-that-stay",
                "gptq(bits=2, clip=True) -> pv_tuning",
                "<",
                "gptq(bits=2, clip=True) -> pv_tuning(share=0.0)",
                note="equal bits, steps and tokens",
                model="asset:own-5m",
            ),
            Claim(
                "few-codes-beat-straight-through",
                "gptq(bits=2, clip=True) -> pv_tuning",
                "<",
                "gptq(bits=2, clip=True) -> pv_tuning(share=1.0, trust=1.0, forget=0.0)",
                published="AQLM with PV 5.84 < 6.59 without, Llama-2-7B at 2.02 bits, WikiText2",
                note="equal bits, steps and tokens",
                model="asset:own-5m",
            ),
        ),
    )
    preserves: ClassVar = True
    packed: ClassVar = True
    needs: ClassVar = (Teacher,)

    share: float = rate("of the codes, may change in a step; 0 = none, ever", 0.01)
    trust: float = rate("of a matrix's norm, is how far its codes may move it in a step", 0.1)
    reach: float = number("of a matrix's norm, is how far a step asks it to move", 0.03, low=0.0)
    forget: float = rate("of what earlier steps asked for is dropped in each; 1 = only the last step counts", 0.0)
    temperature: float = number("of both models' answers", 1.0, low=0.01)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one of scales, in units of their size, and of gains", 3e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        pace = Pace(self.share, self.trust, self.reach, self.forget)
        weights = {site: anatomy.weight(site) for site in self.sites(anatomy)}
        return Mover(quantized(weights, "pv_tuning", pace), gains(anatomy), self.temperature)

    def trained(self, anatomy: "Anatomy") -> int:
        return sum(site.shape[0] * site.shape[1] for site in self.sites(anatomy)) if self.share else len(gains(anatomy))


class Mover(Pupil):
    """Learns from the teacher, and lets codes move when the rest has."""

    changed: Tensor
    taken: Tensor

    def __init__(self, learners: dict[Site, Moving], own: Sequence[str], temperature: float):
        super().__init__(learners, own)
        self.moving, self.temperature = list(learners.values()), temperature
        self.register_buffer("changed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        return distilled(said.logits, taught.logits, self.temperature) * share

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        for learner in self.moving:
            learner.pushed = None

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        self.taken += 1
        if any(learner.pace.share for learner in self.moving):
            self.changed += sum(learner.move() for learner in self.moving)

    def notes(self) -> dict[str, Any]:
        """Of all codes: how many are others than in the beginning, and how many changed in a step, on average."""
        runs = sum(learner.codes.shape[1] for learner in self.moving)
        moved = sum(learner.moved() for learner in self.moving)
        return {"changed_codes": moved / runs, "changed_per_step": int(self.changed) / runs / max(1, int(self.taken))}
