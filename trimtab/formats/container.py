"""What all containers share: they are counted, shown and restored in one way.

A container's fields are what it stores, packed. Its constructor takes what a method has at hand, unpacked; `build` puts
stored tensors back without unpacking them. Nothing here is overridden.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor


class Container(ABC):
    """Base of the formats in this room. Formats from elsewhere need only be a `LinearWeight`."""

    kind: ClassVar[str]
    shape: tuple[int, int]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]: ...

    @property
    def bits(self) -> float:
        """Stored bits per weight of `shape`, everything counted, to the byte."""
        return 8 * sum(t.nbytes for t in self.tensors().values()) / (self.shape[0] * self.shape[1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {self.bits:.3f} bits)"

    def _store(self, **fields: Any) -> None:
        """Frozen dataclasses with a constructor of their own set their fields through here."""
        for name, value in fields.items():
            object.__setattr__(self, name, value.contiguous() if isinstance(value, Tensor) else value)

    @classmethod
    def _restore(cls, **fields: Any) -> Self:
        """An instance from its stored fields, past the constructor."""
        made = object.__new__(cls)
        made._store(**fields)
        return made
