"""The kind of step that trains the whole model on the calibration text: recovery, pruning while learning, distillation.

A method makes a `Pupil`: one module in which everything is that training changes, and which says what the loss is and what
becomes of the model afterwards. It never sees the optimizer's loop, the data or the disk: `engine/teaching.py` puts what is
learned into the model, `host/school.py` trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from trimtab.core.edits import Edits, SetWeight
from trimtab.core.kinds import Learner, LinearWeight, Method, Seen
from trimtab.core.places import Role, Site
from trimtab.core.progress import Watcher
from trimtab.core.trained import Hook

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


class Teacher:
    """Not a statistic but may be needed like one, by what is taught: the model as it was before the recipe's first step."""


@dataclass(frozen=True)
class Said:
    """What a model says to some windows: logits [windows, length, vocabulary]; hidden: if the lesson asks for it, what enters
    every block and what leaves the last one through the final norm, [windows, length, width] each; else nothing."""

    logits: Tensor
    hidden: Sequence[Tensor] = ()


class Pupil(nn.Module, Hook, ABC):
    """One training. Whatever it changes is a parameter or a buffer of it, or of the model's own, and so survives a kill.

    learners: what stands for matrices of the model meanwhile; a rate of theirs goes before the method's learning rate.
    own: names of parameters of the model that are trained as they are. hidden: whether `loss` looks at the hidden states.
    """

    hidden: ClassVar[bool] = False

    def __init__(self, learners: Mapping[Site, Learner] | None = None, own: Sequence[str] = ()):
        super().__init__()
        self.sites, self.own = tuple(learners or {}), tuple(own)
        self.learners = nn.ModuleList((learners or {}).values())

    def stands(self) -> dict[Site, Learner]:
        return dict(zip(self.sites, self.learners, strict=True))  # type: ignore[arg-type]

    def rates(self) -> dict[str, float]:
        """Learning rates of its parameters that differ from the method's, by name."""
        found: dict[str, float] = {}
        for number, learner in enumerate(self.learners):
            given: Mapping[str, float] = getattr(learner, "rates", {})
            found |= {f"learners.{number}.{name}": rate for name, rate in given.items()}
        return found

    @abstractmethod
    def loss(self, said: Said, taught: Said | None, ids: Tensor, share: Tensor) -> Tensor:
        """Of some windows ids [windows, length] of a step: a sum over their tokens times `share`, which is one over the tokens
        that the whole step predicts. taught: what the teacher says, if the method needs one."""

    def edits(self) -> Edits:
        """What becomes of the model when all steps are taken. Its own parameters have moved already."""
        return [SetWeight(site, learner.result()) for site, learner in self.stands().items()]

    def notes(self) -> dict[str, Any]:
        """What the receipt says about the training, besides its losses."""
        return {}


class TaughtMethod(Method):
    """Trains the whole model for `steps` steps of `windows` windows with AdamW, the rate rising to `learning_rate` and falling.

    `needs` may hold `Teacher`, and statistics of sites and of blocks, taken from the whole model before.
    preserves: shapes, and the formats that matrices are stored in, are as before. packed: works on matrices in any format.
    takes: formats besides plain ones that it works on, where it does not work on all. prompt: text whose tokens stand before
    every window that is learned; they have no loss themselves.
    """

    preserves: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    takes: ClassVar[tuple[type[LinearWeight], ...]] = ()
    steps: int
    windows: int
    learning_rate: float
    prompt: str = ""

    @abstractmethod
    def begin(self, anatomy: Anatomy, seen: Seen) -> Pupil: ...

    def trained(self, anatomy: Anatomy) -> int:
        """How many numbers are trained, for the forecast of memory: as many as the blocks have, if nobody says otherwise."""
        return sum(parameter.numel() for parameter in anatomy.blocks.parameters())

    def sites(self, anatomy: Anatomy) -> list[Site]:
        """The matrices of the blocks for which learners can stand: all but routers and experts that are stored together."""
        return [s for s in anatomy.sites if s.block is not None and s.index is None and s.role is not Role.ROUTER]


@dataclass(frozen=True)
class Term:
    """How long a lesson is. length: tokens of a window. seed: of the order of the windows. place: of its checkpoints. compute:
    what products are taken in, float32 or bfloat16."""

    steps: int
    batch: int
    length: int
    learning_rate: float
    seed: int
    place: Path | None = None
    compute: str = "float32"


class School(Protocol):
    """Who trains: lowers `loss` (windows' ids, one over the step's tokens) over `trained`, which are leaves by name, some of
    them state that wants no gradient. rates: learning rates other than the term's. Goes on from what it left in the term's
    place; returns the loss of every step. hooks: told of every step."""

    def __call__(
        self,
        model: nn.Module,
        trained: Mapping[str, Tensor],
        windows: Tensor,
        term: Term,
        loss: Callable[[Tensor, Tensor], Tensor],
        hooks: Sequence[Hook],
        rates: Mapping[str, float],
        watch: Watcher,
    ) -> list[float]: ...


def gains(anatomy: Anatomy) -> list[str]:
    """Names of the blocks' parameters that are no matrices: gains of norms, biases."""
    path = anatomy.blocks_path
    return [name for name, p in anatomy.model.named_parameters() if p.ndim < 2 and name.startswith(f"{path}.")]


def leaves(pupil: Pupil, model: nn.Module) -> dict[str, Tensor]:
    """Everything that a pupil changes, by name."""
    own = dict(model.named_parameters())
    kept = {f"pupil.{name}": tensor for name, tensor in (*pupil.named_parameters(), *pupil.named_buffers())}
    return kept | {name: own[name] for name in pupil.own}


def trains(tensor: Tensor) -> bool:
    """Whether it is moved by gradients, and is no mere state."""
    return tensor.requires_grad and tensor.dtype in (torch.float32, torch.float64)
