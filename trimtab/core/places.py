"""Where in a model something happens: one weight matrix (`Site`), coupled channels (`Coupling`), or a place where a scale can
move from one side to the other (`Fold`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Role(StrEnum):
    """What a matrix does in its block. Fused projections have a role of their own."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the trade's own letter
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    QKV = "qkv"
    GATE_UP = "gate_up"
    ROUTER = "router"
    EMBED = "embed"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True)
class Site:
    """A weight matrix inside a model. Not a module: experts are slices of a 3-D tensor, Conv1D is stored transposed.

    path: dotted path of the owning module, or of the 3-D parameter for an expert (then `index` is the expert).
    shape: always [out, in], whatever the storage. block: index of the decoder block, None outside of the blocks.
    """

    path: str
    role: Role
    shape: tuple[int, int]
    block: int | None = None
    index: int | None = None
    transposed: bool = False

    @property
    def name(self) -> str:
        """Unique within the model; what patterns, receipts and errors use."""
        return self.path if self.index is None else f"{self.path}.{self.index}"


class Unit(StrEnum):
    """What is removed as a whole."""

    NEURON = "neuron"
    KV_GROUP = "kv_group"


@dataclass(frozen=True, eq=False)
class Member:
    """One matrix's share in a coupling: unit u owns `indices[u]` along `axis`, "rows" (outputs) or "columns" (inputs)."""

    site: Site
    axis: str
    indices: Tensor  # [units, per_unit] int64

    def of_units(self, values: Tensor) -> Tensor:
        """[units, per_unit]: values [out, in] of the matrix, summed over every row or column that a unit owns."""
        return values.sum(1 if self.axis == "rows" else 0)[self.indices.to(values.device)]


@dataclass(frozen=True, eq=False)
class Coupling:
    """Channels that can only vanish together, e.g. gate row i, up row i and down column i."""

    name: str
    block: int
    unit: Unit
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        return int(self.members[0].indices.shape[0])

    @property
    def consumer(self) -> Member:
        """The matrix whose input columns the units are (down, or the attention output)."""
        return next(m for m in self.members if m.axis == "columns")

    @property
    def cost(self) -> int:
        """Weights that vanish with one unit."""
        return sum(m.indices.shape[1] * m.site.shape[1 if m.axis == "rows" else 0] for m in self.members)


def query_heads(couplings: Sequence[Coupling]) -> int:
    """Of a model with these couplings; 1 where values are fused with others, which does not tell."""
    for coupling in couplings:
        values = [m for m in coupling.members if m.site.role is Role.V]
        if coupling.unit is Unit.KV_GROUP and values:
            return int(coupling.consumer.site.shape[1] // values[0].indices.shape[1])
    return 1


@dataclass(frozen=True)
class Gain:
    """What multiplies a normalised input: the norm at `path` multiplies by its weight plus `offset`."""

    path: str
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Rows:
    """What an input is proportional to: input column i to output `rows[i]` of a matrix, rows [in] int64.

    Several columns may depend on one row, as all query heads around one key-value head do.
    """

    site: Site
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Fold:
    """Matrices that share an input, and what makes that input linearly: their columns can be multiplied by any positive scale
    by which the source is divided, and the model says the same.

    Of several consumers the first is given every token; experts see only their own.
    """

    consumers: tuple[Site, ...]
    source: Gain | Rows

    @property
    def name(self) -> str:
        """Unique within the model: the path of what is divided."""
        return self.source.path if isinstance(self.source, Gain) else self.source.site.name

    @property
    def block(self) -> int:
        block = self.consumers[0].block
        assert block is not None, "folds are looked for in blocks only"
        return block

    @property
    def width(self) -> int:
        return self.consumers[0].shape[1]

    def pooled(self, values: Tensor, how: str = "mean") -> Tensor:
        """values [in] with the mean ("mean") or the largest ("amax") of all columns that must have the same scale."""
        if isinstance(self.source, Gain):
            return values
        rows = self.source.rows.to(values.device)
        pools = torch.zeros(self.source.site.shape[0], dtype=values.dtype, device=values.device)
        return pools.scatter_reduce(0, rows, values, how, include_self=False)[rows]
