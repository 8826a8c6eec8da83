"""Matrices while a whole model is trained: what the methods that are taught share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trimtab.core.kinds import Learner
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said
from trimtab.formats.deltas import fresh_right
from trimtab.formats.dense import Dense
from trimtab.tensors.losses import distilled, next_token


class Reader(Pupil):
    """Learns to say the next token."""

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        return next_token(said.logits, ids) * share


class Student(Pupil):
    """Learns to answer as a teacher does. weight: of the teacher's answers in the loss, 0 to 1; the rest is the text's."""

    def __init__(self, learners: Mapping[Site, Learner], own: Sequence[str], weight: float, temperature: float):
        super().__init__(learners, own)
        self.weight, self.temperature = weight, temperature

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        from_teacher = distilled(said.logits, taught.logits, self.temperature)
        return (self.weight * from_teacher + (1 - self.weight) * next_token(said.logits, ids)) * share


class Free(Learner):
    """W [out, in] float32 itself is trained; entries stay zero where `keep` [out, in] bool is given and not True."""

    def __init__(self, weight: Tensor, keep: Tensor | None = None):
        super().__init__()
        self.rates, self.keep = {}, keep
        self.weight = nn.Parameter(weight.clone())

    def matrix(self) -> Tensor:
        return self.weight if self.keep is None else self.weight * self.keep

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


class Updated(Learner):
    """W + scale B A, with B [out, rank] and A [rank, in] trained; entries that are zero in W stay zero where `keep` says so.

    weight: [out, in] float32. keep: [out, in] bool, True = may change; None: all may. B is zero at first, so is the update.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator, keep: Tensor | None = None):
        super().__init__()
        self.rates = {}
        self.weight, self.keep, self.scale = weight, keep, scale
        self.left = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self.right = nn.Parameter(fresh_right(rank, weight.shape[1], generator, weight.device))

    def matrix(self) -> Tensor:
        update = self.scale * (self.left @ self.right)
        return self.weight + (update if self.keep is None else update * self.keep)

    def result(self) -> Dense:
        return Dense(self.matrix().detach())


def standing(weight: Tensor, rank: int, alpha: float, zeros: bool, generator: torch.Generator) -> Learner:
    """What stands for weight [out, in]: an update of that rank, or the weight itself if rank is 0. zeros: they stay zero."""
    keep = weight != 0 if zeros else None
    if not rank:
        return Free(weight, keep)
    return Updated(weight, min(rank, *weight.shape), alpha / rank, generator, keep)
