"""Adapters whose answer depends on more than what enters their matrix: they hear the tokens of a pass before it begins."""

from abc import abstractmethod
from typing import Protocol

from torch import Tensor

from trimtab.core.trained import Delta


class Listener(Protocol):
    """What several deltas of a model have in common, and what is told of every forward pass once."""

    def hear(self, embedded: Tensor, mask: Tensor, past: int) -> None:
        """embedded: [batch, length, width] of the tokens that are given, as the model embeds them.

        mask: [batch, past + length] bool, False where there is only filling. past: how many tokens came before, in a cache.
        """


class ListeningDelta(Delta):
    """A delta that depends on what its listener has heard last."""

    @property
    @abstractmethod
    def listener(self) -> Listener:
        """The same object for all deltas that share it."""
