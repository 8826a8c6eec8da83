"""Matrices while a whole model is trained: what the methods that are taught share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Learner
from trimtab.core.places import Site
from trimtab.core.taught import Pupil, Said
from trimtab.formats.deltas import fresh_right
from trimtab.formats.dense import Dense
from trimtab.tensors.losses import distilled, next_token, strayed


class Reader(Pupil):
    """Learns to say the next token."""

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        return next_token(said.logits, ids) * share

    def notes(self) -> dict[str, Any]:
        return {"trained_in_matrices": _numbers(self)}


class Student(Pupil):
    """Learns to answer as a teacher does. weight: of the teacher's answers in the loss, 0 to 1; the rest is the text's.

    tail: how many of the last blocks shall also leave what the teacher's do, counted from the end; pull: what their mean
    `strayed` counts beside the rest.
    """

    def __init__(
        self,
        learners: Mapping[Site, Learner],
        own: Sequence[str],
        weight: float,
        temperature: float,
        tail: int = 0,
        pull: float = 1.0,
    ):
        super().__init__(learners, own)
        self.weight, self.temperature, self.tail, self.pull = weight, temperature, tail, pull

    @property
    def hidden(self) -> bool:  # type: ignore[override]
        return self.tail > 0

    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        assert taught is not None
        from_teacher = distilled(said.logits, taught.logits, self.temperature)
        loss = self.weight * from_teacher + (1 - self.weight) * next_token(said.logits, ids)
        return (loss + self._strayed(said, taught) if self.tail else loss) * share

    def _strayed(self, said: Said, taught: Said) -> Tensor:
        pairs = list(zip(said.hidden[-self.tail :], taught.hidden[-self.tail :], strict=True))
        own, width = said.hidden[-1].shape[-1], taught.hidden[-1].shape[-1]
        if own != width:
            raise UsageError(f"hidden states are {own} wide and the teacher's {width}, so they cannot be compared; use tail=0")
        return self.pull * torch.stack([strayed(ours, theirs) for ours, theirs in pairs]).mean()

    def notes(self) -> dict[str, Any]:
        return {"trained_in_matrices": _numbers(self)}


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


def _numbers(pupil: Pupil) -> int:
    """How many numbers stand for matrices."""
    return sum(parameter.numel() for parameter in pupil.parameters())


def standing(weight: Tensor, rank: int, alpha: float, zeros: bool, generator: torch.Generator) -> Learner:
    """What stands for weight [out, in]: an update of that rank, or the weight itself if rank is 0. zeros: they stay zero."""
    keep = weight != 0 if zeros else None
    if not rank:
        return Free(weight, keep)
    return Updated(weight, min(rank, *weight.shape), alpha / rank, generator, keep)
