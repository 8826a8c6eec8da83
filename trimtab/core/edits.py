"""What methods propose. Only `engine/apply.py` carries it out."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.core.kinds import LinearWeight
from trimtab.core.places import Coupling, Site


@dataclass(frozen=True, eq=False)
class SetWeight:
    """Replace the matrix at a site."""

    site: Site
    weight: LinearWeight


@dataclass(frozen=True, eq=False)
class SetParam:
    """Replace a parameter by its dotted path (norm gains, biases). A bias that did not exist is created."""

    path: str
    value: Tensor


@dataclass(frozen=True, eq=False)
class Narrow:
    """Keep only some units of a coupling: rows and columns vanish for real. keep: [units] bool."""

    coupling: Coupling
    keep: Tensor


@dataclass(frozen=True)
class DropBlock:
    """Remove a decoder block, by its index before the edit."""

    block: int


@dataclass(frozen=True)
class Arrange:
    """Let these blocks follow each other, by their indices before the edit. One that comes twice is copied, and nothing is
    shared afterwards."""

    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """Let a block use the matrices of another one, stored once; norms stay its own. Indices are those before the edit."""

    block: int
    source: int


@dataclass(frozen=True, eq=False)
class OnBasis:
    """Let a matrix be `left` [out, rank] @ the last factor of the chain that stands at `source`, stored once, there."""

    site: Site
    left: Tensor
    source: Site


@dataclass(frozen=True)
class NarrowStream:
    """The residual stream is `width` wide from now on. Every matrix and norm at it is set by edits that come after this one."""

    width: int


@dataclass(frozen=True)
class Untie:
    """Give the output head a matrix of its own where it shares the embedding's."""


@dataclass(frozen=True)
class Tie:
    """Let the output head use the embedding's matrix, stored once."""


Edit = SetWeight | SetParam | Narrow | DropBlock | Arrange | Share | OnBasis | NarrowStream | Untie | Tie
Edits = list[Edit]
