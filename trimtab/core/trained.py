"""The kinds of method that are trained on data: adapters beside frozen matrices, and schedules of what is trained when.

They are no steps of a recipe. `engine/adapting.py` puts deltas into a model, `host/trainer.py` trains. A method is handed a
weight and a place and gives modules; it never sees the model, the data or the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.errors import UsageError
from trimtab.core.kinds import LinearWeight, Method, Seen
from trimtab.core.knobs import count
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds

if TYPE_CHECKING:
    from trimtab.anatomy import Anatomy


class Delta(nn.Module, ABC):
    """What is trained beside one frozen matrix. A fresh one adds exactly zero.

    Parameters that want no gradient are part of the adapter like the others: they are stored with it. Buffers that are not
    persistent are not: what knobs and shape decide is made again by `attach`.
    """

    @abstractmethod
    def forward(self, x: Tensor, product: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        """What is added to the layer's output, [..., out].

        x: [..., in]. product: x times the frozen matrix, without the bias, [..., out]. weight: makes that matrix, [out, in].
        """

    @abstractmethod
    def merged(self, weight: LinearWeight) -> LinearWeight | None:
        """One weight that does what `weight` and this delta do, or None where no format holds it exactly."""

    def portable(self) -> dict[str, Tensor]:
        """The tensors under the names that peft gives them; of methods whose `portable` says that peft knows the kind."""
        return {}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `portable` gave, here or in peft. Raises KeyError or RuntimeError where they do not fit."""
        raise KeyError(f"{type(self).__name__} has no tensors that peft knows")


@torch.no_grad()
def put(parameter: Tensor | None, value: Tensor) -> None:
    """Gives a parameter these values. Raises RuntimeError where the shapes differ, which `copy_` would make do with."""
    if parameter is None or parameter.shape != value.shape:
        raise RuntimeError(f"{list(value.shape)} does not fit {None if parameter is None else list(parameter.shape)}")
    parameter.copy_(value)


class Training(Protocol):
    """What a hook may ask of the training that it takes part in."""

    @property
    def steps(self) -> int: ...  # of the whole training

    @property
    def learning_rate(self) -> float: ...  # the highest one

    @property
    def seeds(self) -> Seeds: ...

    def losses(self, step: int) -> Iterator[Tensor]:
        """Parts that add up to the loss of the rows that a step reads, nats per learned token, for the parameters of now."""

    def general(self, windows: int) -> Iterator[Tensor]:
        """The losses of windows of general text, one by one, which is not what is learned."""


class Hook:
    """What a method does around the steps of training, which are counted from 0. Nothing, unless it says otherwise."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What it remembers from step to step: kept with the parameters, and filled in place where a training goes on."""
        return {}

    def begin(self, training: Training) -> None:
        """Before the first step that is taken, in a training that goes on, too."""

    def penalty(self) -> Tensor | None:
        """Is lowered together with a step's loss, but counts in no loss that is told."""
        return None

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        """Before the first forward pass of the step."""

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        """The gradients are complete and clipped."""

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """The parameters have moved, the gradients are still there."""


class TrainedMethod(Method):
    """Trained on data by `trimtab adapt`. usual_rate: the highest learning rate, where nobody says another one."""

    usual_rate: ClassVar[float] = 2e-4


class Chosen(tuple[Site, ...]):
    """A need: all matrices that get a delta from this method, in forward order. Known without showing anything."""


class AdapterMethod(TrainedMethod):
    """Trains a `Delta` beside each of a model's matrices, which stay as they are, in whatever format.

    needs: statistics of a matrix's inputs, collected over rows of text before anything is trained, and `Chosen`.
    """

    needs: ClassVar[tuple[type, ...]] = ()

    @property
    def looks_at(self) -> Literal["rows", "general"]:
        """Which text the statistics are of: the rows to train on, or the general text."""
        return "rows"

    def wants(self, site: Site) -> bool:
        """Whether the method goes to this matrix of a block if nobody says where it shall go."""
        return True

    def fits(self, site: Site) -> None:
        """Raises `UsageError` if the method cannot work on a matrix of this shape. Called before anything is trained."""

    @abstractmethod
    def attach(self, weight: LinearWeight, seen: Seen, site: Site) -> Delta:
        """The delta to begin with, on the weight's device. `seen.once` makes what all deltas of a model share.

        Raises ArithmeticError where what was seen decides nothing.
        """

    def blank(self, weight: LinearWeight, seen: Seen, site: Site) -> Delta:
        """A delta whose tensors are about to be read from a file: nothing was seen but `Chosen`."""
        return self.attach(weight, seen, site)

    def hook(self, deltas: Mapping[Site, Delta]) -> Hook | None:
        """What has to happen around the steps. deltas: in forward order."""
        return None

    def portable(self) -> dict[str, Any] | None:
        """The fields of peft's adapter_config.json that describe the deltas, or None where peft has no such adapter."""
        return None


@dataclass(frozen=True)
class RankedMethod(AdapterMethod):
    """Adapters that are made of products of two thin matrices, or of what takes their place."""

    rank: int = count("inner dimension of the product", 16)

    def fits(self, site: Site) -> None:
        check_rank(self.card.id, self.rank, site)


class ScheduleMethod(TrainedMethod):
    """Trains a model's own parameters, not all of them at every step; the result is a model."""

    @abstractmethod
    def trains(self, anatomy: Anatomy) -> list[str]:
        """Names of all parameters that are trained at some step."""

    @abstractmethod
    def hook(self, anatomy: Anatomy, seeds: Seeds) -> Hook:
        """Says at every step which of them want a gradient, and forgets what the optimizer knows of the others."""


def check_rank(method: str, rank: int, site: Site) -> None:
    """Raises `UsageError` naming the matrix if its rank cannot be as high."""
    if rank > min(site.shape):
        out, inputs = site.shape
        raise UsageError(
            f"{method}: rank {rank} is more than {site.name} has, which is {out} x {inputs}; "
            f"use at most {min(site.shape)}, or leave it out with --skip"
        )
