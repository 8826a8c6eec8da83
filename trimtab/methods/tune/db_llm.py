"""DB-LLM: every weight is the sum of two binaries with scales of their own, and uncertain tokens teach most.

    w^ = a1 b1 + a2 b2,  b in {0, 1};  at first a1 = 2 s and a2 = -s: levels -s, 0, s, 2 s; then both are learned per group
    loss = sum over tokens of (1 + (ambiguity H(p_t, p_s))^gamma) KL(p_t || p_s),   H = -sum p_t log p_s

with p_t and p_s what the untouched model and this one predict; H is the teacher's own uncertainty plus how far the student is
off, and gradients do not go through it. Codes are the nearest levels of weights that are trained along, and gradients pass.
Chen et al., Findings of ACL 2024 (arXiv:2402.11960). s and the sign (the long side may be the negative one) begin where the
squared error is least. The normalisation of the ambiguity and gamma are not published. Text: the calibration set, not samples
from the teacher. Stored bits: 2 and 48 per group, because the format has an offset, which stays zero here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import count, number
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said, TaughtMethod, Teacher, gains
from trimtab.formats.grouped import check_group_size
from trimtab.formats.latent import LatentPlanes
from trimtab.tensors.bitplanes import Planes
from trimtab.tensors.losses import apart, predicted, surprise
from trimtab.tensors.rounding import LARGEST, SHRINKS

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


@dataclass(frozen=True)
class DbLlm(TaughtMethod):
    card: ClassVar = Card(
        id="db_llm",
        title="DB-LLM: Accurate Dual-Binarization for Efficient LLMs",
        paper="arXiv:2402.11960",
        fidelity="reconstructed",
        beside=("edgerazor", "pv_tuning", "hlq"),
        claims=(
            Claim(
                "beats-one-shot-planes",
                "db_llm",
                "<",
                "hlq(bits=2)",
                published="7.23 < 9.64 (OmniQuant), Llama-2-7B, WikiText2, 2 bits in groups of 64",
                note="2.75 stored bits on both sides; the left side is trained",
                model="asset:own-5m",
            ),
            Claim(
                "ambiguity-helps",
                "db_llm",
                "<",
                "db_llm(ambiguity=0.0)",
                note="equal bits, steps and tokens",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Teacher,)

    group_size: int = count("inputs that share the two scales; 0 = the whole row", 64, 0)
    ambiguity: float = number("what the ambiguity of a token is multiplied by; 0 = all tokens count alike", 1.0, low=0.0)
    gamma: float = number("power of the ambiguity", 0.1, low=0.0)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one of weights and gains", 1e-4, low=1e-8)
    scale_rate: float = number("the highest one of scales, in units of their size", 1e-3, low=0.0)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        learners: dict[Site, Learner] = {}
        for site in self.sites(anatomy):
            weight, group_size = anatomy.weight(site).dense(), self.group_size or site.shape[1]
            check_group_size(site.shape[1], group_size, site.name)
            start = dual(weight.view(len(weight), -1, group_size))
            learners[site] = LatentPlanes(weight, start, False, self.learning_rate, self.scale_rate)
        return Deviating(learners, gains(anatomy), self.ambiguity, self.gamma)


class Deviating(Pupil):
    def __init__(self, learners: Mapping[Site, Learner], own: Sequence[str], ambiguity: float, gamma: float):
        super().__init__(learners, own)
        self.ambiguity, self.gamma = ambiguity, gamma

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        return deviating(predicted(said.logits), predicted(taught.logits), self.ambiguity, self.gamma).sum() * share


def deviating(student: Tensor, teacher: Tensor, ambiguity: float, gamma: float) -> Tensor:
    """The deviation-aware divergence of every token; log-probabilities [..., vocabulary] -> [...]. ambiguity 0: the plain one."""
    plain = apart(teacher, student)
    if not ambiguity:
        return plain
    return (1 + (ambiguity * surprise(teacher, student).detach()) ** gamma) * plain


def dual(groups: Tensor) -> Planes:
    """Levels -s, 0, s and 2 s, or their negatives, with the least squared error of those tried. groups [..., group]."""
    largest = groups.abs().amax(-1, keepdim=True)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        size = (shrink * largest / 2).clamp(max=LARGEST / 2).half().float()
        for step in (size, -size):
            levels = (groups / torch.where(step != 0, step, 1.0)).round().clamp(-1, 2)
            error = (levels * step - groups).square().sum(-1, keepdim=True)
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return Planes(torch.cat([2 * best, -best], -1), torch.zeros_like(largest))
