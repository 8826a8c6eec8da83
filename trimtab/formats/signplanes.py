"""Sums of scaled matrices of signs, a scale for every block of any height and width: w = sum_j scale_j * (+1 or -1).

What `BitPlanes` cannot hold: scales that are shared down the columns, and scales that are only shifts, one byte each. Levels
are symmetric around zero, so there is no offset to store. Cost: b + 16 b / (rows * columns), 8 instead of 16 for shifts.
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
from trimtab.tensors.signs import LEAST, MOST, NOTHING, shifted

MOST_PLANES = 8


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SignPlanes(Container):
    """w[o, i] = sum over j of s_j * scale[o // rows, i // columns, j], s_j = 1 where bit j of codes[o, i] is set, else -1.

    Summed in float32, in this order. Made from codes uint8 [out, in] (codes < 2**b) and scale [ceil(out / rows),
    ceil(in / columns), b]: float16, or int8 exponents of two from -64 to 63, -128 meaning zero ("shifts").
    planes: uint8 [b, out, ceil(in / 8)]. Raises `UsageError`.
    """

    kind: ClassVar[str] = "signplanes"
    planes: Tensor
    scale: Tensor
    shape: tuple[int, int]
    rows: int
    columns: int

    def __init__(self, codes: Tensor, scale: Tensor, rows: int, columns: int):
        out, in_ = shape = checks.matrix("SignPlanes", "codes", codes)
        if not (1 <= rows <= out and 1 <= columns <= in_):
            raise UsageError(f"SignPlanes: blocks of a {out} x {in_} matrix cannot be {rows} x {columns}")
        count = int(scale.shape[-1]) if scale.ndim == 3 else 0
        if not 1 <= count <= MOST_PLANES:
            raise UsageError(f"SignPlanes: scale must be [blocks, blocks, 1 to {MOST_PLANES} planes], got {list(scale.shape)}")
        kept = scale.dtype if scale.dtype == torch.int8 else torch.float16
        checks.expect("SignPlanes", "codes", codes, shape, torch.uint8)
        checks.expect("SignPlanes", "scale", scale, (-(-out // rows), -(-in_ // columns), count), kept)
        _in_range("SignPlanes", scale, UsageError)
        if int(codes.max()) >= 2**count:
            raise UsageError(f"SignPlanes: codes go up to {int(codes.max())}; {count} planes hold at most {2**count - 1}")
        planes = torch.stack([pack((codes >> j) & 1, 1) for j in range(count)])
        self._store(planes=planes, scale=scale, shape=shape, rows=rows, columns=columns)

    @property
    def codes(self) -> Tensor:
        """uint8 [out, in]: bit j is the sign in plane j, 1 for +1."""
        codes = torch.zeros(self.shape, dtype=torch.uint8, device=self.planes.device)
        for j, plane in enumerate(self.planes):
            codes |= unpack(plane, 1, self.shape[1]) << j
        return codes

    def dense(self) -> Tensor:
        out, in_ = self.shape
        scale = shifted(self.scale) if self.scale.dtype == torch.int8 else self.scale.float()
        total = torch.zeros(self.shape, device=scale.device)
        for j, plane in enumerate(self.planes):
            size = scale[..., j].repeat_interleave(self.rows, 0)[:out].repeat_interleave(self.columns, 1)[:, :in_]
            total += torch.where(unpack(plane, 1, in_).bool(), size, -size)
        return total

    def tensors(self) -> dict[str, Tensor]:
        return {"planes": self.planes, _name(self.scale.dtype == torch.int8): self.scale}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "planes": len(self.planes),
            "rows": self.rows,
            "columns": self.columns,
            "shifts": self.scale.dtype == torch.int8,
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "planes", "rows", "columns", "shifts")
        out, in_ = checks.shape(spec, cls.kind)
        count = checks.whole(spec["planes"], cls.kind, "planes", 1, MOST_PLANES)
        rows = checks.whole(spec["rows"], cls.kind, "rows", 1, out)
        columns = checks.whole(spec["columns"], cls.kind, "columns", 1, in_)
        shifts = checks.flag(spec["shifts"], cls.kind, "shifts")
        blocks = -(-out // rows), -(-in_ // columns), count
        return {
            "planes": ((count, out, packed_width(in_, 1)), torch.uint8),
            _name(shifts): (blocks, torch.int8 if shifts else torch.float16),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        scale, shape = tensors[_name(spec["shifts"])], checks.shape(spec, cls.kind)
        _in_range(cls.kind, scale, ModelError)
        return cls._restore(planes=tensors["planes"], scale=scale, shape=shape, rows=spec["rows"], columns=spec["columns"])


def _name(shifts: bool) -> str:
    """Under which name the scales are stored."""
    return "shifts" if shifts else "scale"


def _in_range(kind: str, scale: Tensor, error: type[UsageError]) -> None:
    """Raises `error` where a scale is not a finite number."""
    if scale.dtype != torch.int8:
        checks.finite(kind, error, scale=scale)
    elif bool((((scale < LEAST) | (scale > MOST)) & (scale != NOTHING)).any()):
        raise error(f"{kind}: shifts must be from {LEAST} to {MOST}, or {NOTHING} for zero")
