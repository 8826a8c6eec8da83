"""A second capability of linear methods: the mean of what a new matrix leaves out of the outputs goes into the bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from trimtab.core.kinds import LinearWeight, Seen


@runtime_checkable
class Shifts(Protocol):
    """Asked once its matrix is solved, where the place can have a bias; one that is not there is made."""

    def shift(self, weight: LinearWeight, solved: LinearWeight, seen: Seen) -> Tensor | None:
        """[out] to add to the bias, or None. weight: what stood there before `solved`."""
