"""EdgeRazor: ternary and 4-bit matrices in one model, trained to say, and to carry, what the untouched model does.

    ternary:  s = 2 mean|w| of a group, w^ = s clamp(round(w / s), -1, 1)          4 bits:  s = max|w| / 7, codes -7 to 7
    loss = words CE + teacher KL + features MSE
    KL = g KL(student || teacher) + (1 - g) KL(teacher || student),  g = clip(1 - mean H(teacher) / ln 16, 0, 1):
         the student of a confident teacher looks for its peak, that of an uncertain one covers what it thinks possible
    MSE: of the hidden states behind the blocks at which the teacher's turn most, as many as `layers` says.

Gradients pass the rounding. arXiv:2605.04062. Different from the published code: every (1 / part)-th matrix has 4 bits, instead
of every such row; embeddings, head, activations and cache stay as they are; g is of one window, not of a batch. Trits are stored
5 or 3 to a code where the width can be divided by that, which takes 1.6 or 1.67 bits, and 16 for the scale of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.core.card import Card, Claim
from trimtab.core.kinds import Learner, Seen
from trimtab.core.knobs import count, number, rate
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said, TaughtMethod, Teacher, gains
from trimtab.formats.grouped import check_group_size
from trimtab.formats.latent import Fours, Ternary
from trimtab.tensors.losses import apart, next_token, predicted, surprise

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy

UNCERTAIN = log(16)  # the entropy at which only the forward divergence counts: 16 equally likely tokens


@dataclass(frozen=True)
class EdgeRazor(TaughtMethod):
    card: ClassVar = Card(
        id="edgerazor",
        title="EdgeRazor: A Lightweight Framework for Large Language Models via Mixed-Precision Quantization-Aware Distillation",
        paper="arXiv:2605.04062",
        fidelity="variant",
        beside=("db_llm", "pv_tuning", "distill"),
        claims=(
            Claim(
                "ternary-beats-one-shot-2-bit",
                "edgerazor(steps=500)",
                "<",
                "gptq(bits=2, clip=True)",
                published="1.88 bits 11.3 points above 2-bit one-shot methods, Qwen3-0.6B",
                note="at most 2.0 and 2.28 stored bits per weight; the left side is trained",
                model="asset:own-5m",
            ),
            Claim(
                "both-divergences-beat-next-token-alone",
                "edgerazor",
                "<",
                "edgerazor(words=1.0, teacher=0.0, features=0.0)",
                note="equal bits, steps and tokens",
                model="asset:own-5m",
            ),
        ),
    )
    needs: ClassVar = (Teacher,)

    part: float = rate("of the matrices have 4 bits, evenly spread; the others are ternary", 0.0)
    group_size: int = count("inputs that share a scale; 0 = the whole row", 64, 0)
    words: float = number("weight of the text's next token in the loss", 0.1, low=0.0)
    teacher: float = number("weight of the teacher's answers in the loss", 2.0, low=0.0)
    features: float = number("weight of the teacher's hidden states in the loss", 0.1, low=0.0)
    layers: int = count("blocks whose hidden states count, chosen window by window", 3)
    steps: int = count("steps of training", 100)
    windows: int = count("windows in a step", 4)
    learning_rate: float = number("the highest one", 5e-4, low=1e-8)

    def begin(self, anatomy: "Anatomy", seen: Seen) -> Pupil:
        sites = self.sites(anatomy)
        for site in sites:
            check_group_size(site.shape[1], self.group_size or site.shape[1], site.name)
        fine = {site for number, site in enumerate(sites, 1) if int(number * self.part) > int((number - 1) * self.part)}
        learners: dict[Site, Learner] = {}
        for site in sites:
            weight, group_size = anatomy.weight(site).dense(), self.group_size or site.shape[1]
            learners[site] = Fours(weight, group_size) if site in fine else Ternary(weight, group_size)
        return Razor(learners, gains(anatomy), (self.words, self.teacher, self.features), self.layers)


class Razor(Pupil):
    """weights: of the text's next token, of the teacher's answers, and of its hidden states."""

    hidden: ClassVar = True

    def __init__(self, learners: Mapping[Site, Learner], own: Sequence[str], weights: tuple[float, float, float], layers: int):
        super().__init__(learners, own)
        self.weights, self.layers = weights, layers

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        text, teacher, features = self.weights
        answers = balanced(predicted(said.logits), predicted(taught.logits)).sum()
        likeness = unlike(said.hidden, taught.hidden, self.layers).sum()
        return (text * next_token(said.logits, ids) + teacher * answers + features * likeness) * share


def balanced(student: Tensor, teacher: Tensor) -> Tensor:
    """The entropy-aware divergence of every token. Log-probabilities [windows, tokens, vocabulary] -> [windows, tokens]."""
    entropy = surprise(teacher, teacher).mean(1, keepdim=True)
    confident = (1 - entropy / UNCERTAIN).clamp(0, 1)
    return confident * apart(student, teacher) + (1 - confident) * apart(teacher, student)


def unlike(student: Sequence[Tensor], teacher: Sequence[Tensor], layers: int) -> Tensor:
    """Mean squared distance of the hidden states at every token but the last, over the blocks where the teacher's turn most.

    Both: what enters every block and what leaves the last, [windows, length, width] each -> [windows, length - 1].
    """
    turns = torch.stack([F.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(teacher)])
    chosen = turns.topk(min(layers, len(turns)), largest=False).indices.tolist()
    distances = [(student[block + 1] - teacher[block + 1]).float().square().mean(-1) for block in chosen]
    return torch.stack(distances).mean(0)[:, :-1]
