"""The kind of method that trains a model from its first step with something else in the place of its matrices.

A method is handed the random matrix that a model would begin with and gives a `Structure`: parameters of which a matrix is made.
`engine/scratch.py` puts structures into a model and, once they are trained, what they came to; `trimtab grow --method` trains.

What goes on around the steps (`Hook`) depends on the step, the seed and the parameters alone: a training that was killed makes
the same structures anew, is given the kept parameters, and goes on to the same end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Site
from trimtab.core.seeds import Seeds
from trimtab.core.trained import Hook, TrainedMethod


class Structure(nn.Module, ABC):
    """What stands for a matrix [out, in] while a model is trained.

    A parameter that wants no gradient may change all the same and is kept in checkpoints. What never changes is a buffer: the
    seed makes it again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], what `matrix()` would give."""
        return nn.functional.linear(x, self.matrix())

    @abstractmethod
    def matrix(self) -> Tensor:
        """[out, in] float32, as it is now."""

    @abstractmethod
    def result(self) -> LinearWeight:
        """What is stored once the training is over. Equals `matrix()` then."""


class ScratchMethod(TrainedMethod):
    """Trains a `Structure` in the place of each of a model's matrices, from random numbers on."""

    def wants(self, site: Site) -> bool:
        """Whether the method is for this matrix of a block."""
        return True

    def fits(self, site: Site) -> None:
        """Raises `UsageError` if the method cannot work on a matrix of this shape. Called before anything is changed."""

    @abstractmethod
    def numbers(self, shape: tuple[int, int]) -> int:
        """How many trained numbers the result for a matrix [out, in] holds."""

    @abstractmethod
    def begin(self, weight: Tensor, generator: torch.Generator, site: Site) -> Structure:
        """weight [out, in] float32: random, of the spread that the model wants at this place; not to be changed."""

    def join(self, structures: Mapping[Site, Structure]) -> None:
        """Once all have begun, in forward order: lets structures use the same parameters, which are then trained once."""

    def hook(self, structures: Mapping[str, Structure], steps: int, seeds: Seeds) -> Hook | None:
        """What has to happen around the steps, of which there are `steps`. structures: by path of the layer."""
        return None


class Renewed(Structure):
    """A structure of which a part begins anew every so many steps."""

    @abstractmethod
    def parts(self) -> list[nn.Parameter]:
        """Those that begin anew."""

    @abstractmethod
    def renew(self, generator: torch.Generator, time: int) -> None:
        """Puts away what the parts have learned and begins them anew. time: counted from 1."""

    def settle(self) -> None:
        """After every update: what the parts have to keep."""


class Rounds(Hook):
    """Renews structures every `every` steps. The first `warm_up` updates of new parts are small ones, rising to their size.

    The optimizer forgets what it knew of the parts before. first: the step that rounds are counted from; at step 0 the warm-up
    of the whole training does for the first round.
    """

    def __init__(self, structures: Mapping[str, Renewed], every: int, warm_up: int, seeds: Seeds, first: int = 0):
        self.structures, self.every, self.warm_up, self.seeds, self.first = structures, every, warm_up, seeds, first
        self.before: list[tuple[nn.Parameter, Tensor]] = []

    def before_step(self, step: int, optimizer: Optimizer) -> None:
        time, late = divmod(step - self.first, self.every)
        if time < 1 or late:
            return
        for path, structure in self.structures.items():
            with torch.no_grad():
                structure.renew(self.seeds.at("renew", path, time), time)
            forget(optimizer, structure.parts())

    def before_update(self, step: int, optimizer: Optimizer) -> None:
        if self._share(step) < 1:
            parts = [part for structure in self.structures.values() for part in structure.parts()]
            self.before = [(part, part.detach().clone()) for part in parts]

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for part, before in self.before:
            part.copy_(torch.lerp(before, part, self._share(step)))
        self.before = []
        for structure in self.structures.values():
            structure.settle()

    def _share(self, step: int) -> float:
        """Of an update that is carried out."""
        time, late = divmod(step - self.first, self.every)
        gentle = time > 0 or (time == 0 and self.first > 0)
        return min(1.0, (late + 1) / (self.warm_up + 1)) if gentle else 1.0


def forget(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Whatever the optimizer remembers of these parameters."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def rest(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """From here on these parameters are not trained: no gradient is computed, none is left, nothing is remembered."""
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
        optimizer.state.pop(parameter, None)


def fixed(value: Tensor) -> nn.Parameter:
    """A parameter that no gradient changes: kept in checkpoints, as it may be changed otherwise."""
    return nn.Parameter(value, requires_grad=False)
