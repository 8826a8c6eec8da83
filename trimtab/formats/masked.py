"""Unstructured sparsity: one bit per weight says whether it survives, and only survivors are stored.

At sparsity s the cost is 1 + (1 - s) * (bits of the dtype): below 1/16 a 16-bit matrix only grows. Row and column indices
would be cheaper beyond about 95 %, which no method here reaches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors.packing import pack, packed_width, unpack


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Masked(Container):
    """Made from a dense [out, in] and keep [out, in] bool, True = survives; whatever dense holds elsewhere is dropped.

    values: [kept], row by row, in the dtype that was given. bitmap: uint8 [out, ceil(in / 8)].
    """

    kind: ClassVar[str] = "masked"
    values: Tensor
    bitmap: Tensor
    shape: tuple[int, int]

    def __init__(self, values: Tensor, keep: Tensor):
        shape = checks.matrix("Masked", "values", values)
        checks.dtype_name(values.dtype, "Masked")
        checks.expect("Masked", "keep", keep, shape, torch.bool)
        self._store(values=values[keep], bitmap=pack(keep.to(torch.uint8), 1), shape=shape)

    @property
    def keep(self) -> Tensor:
        """[out, in] bool, True = survives."""
        return unpack(self.bitmap, 1, self.shape[1]).bool()

    def dense(self) -> Tensor:
        full = torch.zeros(self.shape, dtype=torch.float32, device=self.values.device)
        return full.masked_scatter(self.keep, self.values.float())

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "bitmap": self.bitmap}

    def spec(self) -> dict[str, Any]:
        dtype = checks.dtype_name(self.values.dtype, self.kind)
        return {"kind": self.kind, "shape": list(self.shape), "dtype": dtype, "kept": len(self.values)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype", "kept")
        out, in_ = checks.shape(spec, cls.kind)
        kept = checks.whole(spec["kept"], cls.kind, "kept", 0, out * in_)
        return {
            "values": ((kept,), checks.dtype(spec["dtype"], cls.kind)),
            "bitmap": ((out, packed_width(in_, 1)), torch.uint8),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        shape = checks.shape(spec, cls.kind)
        marked = int(unpack(tensors["bitmap"], 1, shape[1]).sum(dtype=torch.int64))
        if marked != len(tensors["values"]):
            raise ModelError(f"{cls.kind}: tensor 'bitmap' marks {marked} weights, 'values' holds {len(tensors['values'])}")
        return cls._restore(values=tensors["values"], bitmap=tensors["bitmap"], shape=shape)
