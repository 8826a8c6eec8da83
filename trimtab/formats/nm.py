"""n:m sparsity: of every m consecutive inputs at most n survive, stored as n values and their positions.

The pattern that sparse tensor units multiply directly (2:4), and the one whose index costs least: 2 * 2 bits per 4 weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors.packing import pack, packed_width, unpack


@dataclass(frozen=True, eq=False, repr=False)
class NM(Container):
    """values: [out, in / m * n]; packed: the positions inside the groups, ascending, ceil(log2 m) bits each, row by row.

    Made with `NM.of`. A group with fewer than n survivors is filled up with zeros at positions that were free, so that
    `keep` is n of m everywhere.
    """

    kind: ClassVar[str] = "nm"
    values: Tensor
    packed: Tensor
    shape: tuple[int, int]
    n: int
    m: int

    @classmethod
    def of(cls, dense: Tensor, keep: Tensor, n: int, m: int) -> Self:
        """dense [out, in] and keep [out, in] bool, at most n of each m kept. Raises `UsageError` where that fails."""
        out, in_ = shape = checks.matrix("NM", "dense", dense)
        checks.dtype_name(dense.dtype, "NM")
        checks.expect("NM", "keep", keep, shape, torch.bool)
        if not (1 <= n < m <= 256):
            raise UsageError(f"NM: n:m must have 1 <= n < m <= 256, got {n}:{m}")
        if in_ % m:
            raise UsageError(f"NM needs in % m == 0: the matrix has in={in_}, the pattern is {n}:{m}")
        groups = keep.reshape(out, in_ // m, m)
        fullest = int(groups.sum(-1).max())
        if fullest > n:
            raise UsageError(f"NM: a group of {m} keeps {fullest} weights; the pattern {n}:{m} allows {n}")
        # Survivors first, both parts in ascending order; then the chosen n in order of position.
        chosen = torch.argsort(~groups, dim=-1, stable=True)[..., :n].sort(-1).values
        values = torch.where(groups, dense.reshape(out, in_ // m, m), 0).gather(-1, chosen)
        packed = pack(chosen.to(torch.uint8).reshape(out, -1), _bits(m))
        return cls(values.reshape(out, -1).contiguous(), packed, shape, n, m)

    @property
    def positions(self) -> Tensor:
        """[out, in / m, n] uint8, ascending inside each group."""
        return _positions(self.packed, self.shape, self.n, self.m)

    @property
    def keep(self) -> Tensor:
        """[out, in] bool: the n places of each group that hold a value."""
        return self._spread(torch.ones_like(self.values, dtype=torch.bool))

    def dense(self) -> Tensor:
        return self._spread(self.values.float())

    def _spread(self, values: Tensor) -> Tensor:
        out, in_ = self.shape
        full = torch.zeros(out, in_ // self.m, self.m, dtype=values.dtype, device=values.device)
        return full.scatter(-1, self.positions.long(), values.view(out, in_ // self.m, self.n)).view(out, in_)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "positions": self.packed}

    def spec(self) -> dict[str, Any]:
        dtype = checks.dtype_name(self.values.dtype, self.kind)
        return {"kind": self.kind, "shape": list(self.shape), "dtype": dtype, "n": self.n, "m": self.m}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype", "n", "m")
        out, in_ = checks.shape(spec, cls.kind)
        m = checks.whole(spec["m"], cls.kind, "m", 2, 256)
        n = checks.whole(spec["n"], cls.kind, "n", 1, m - 1)
        stored = checks.divides(m, in_, cls.kind, "m") * n
        return {
            "values": ((out, stored), checks.dtype(spec["dtype"], cls.kind)),
            "positions": ((out, packed_width(stored, _bits(m))), torch.uint8),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        shape, n, m = checks.shape(spec, cls.kind), spec["n"], spec["m"]
        positions = _positions(tensors["positions"], shape, n, m)
        if int(positions.max()) >= m or bool((positions[..., 1:] <= positions[..., :-1]).any()):
            raise ModelError(f"{cls.kind}: tensor 'positions' must ascend from 0 to at most {m - 1} in every group")
        return cls._restore(values=tensors["values"], packed=tensors["positions"], shape=shape, n=n, m=m)


def _bits(m: int) -> int:
    return (m - 1).bit_length()


def _positions(packed: Tensor, shape: tuple[int, int], n: int, m: int) -> Tensor:
    out, in_ = shape
    return unpack(packed, _bits(m), in_ // m * n).view(out, in_ // m, n)
