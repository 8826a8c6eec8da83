"""Sums of scaled binary matrices: w = offset + sum_j scale_j * plane_j, plane entries 0 or 1, scales free in every group.

One algebra for many formats. Uniform b-bit codes have scale_j = 2**j * s; a non-uniform fit chooses the scales freely; signs
+-a are scale 2a and offset -a. Cost: b + 16 * (b + 1) / group_size. The planes lie one after the other, packed along
the inputs: any kernel's tiles are a permutation of these bits.
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
from trimtab.formats.grouped import check_group_size
from trimtab.tensors.packing import pack, packed_width, unpack

MOST_PLANES = 8


@dataclass(frozen=True, eq=False, init=False, repr=False)
class BitPlanes(Container):
    """w[o, i] = offset[o, g] + scale[o, g, 0] * bit 0 of codes[o, i] + scale[o, g, 1] * bit 1 + ..., g = i // group_size.

    Summed in float32, in this order. Made from codes uint8 [out, in] (bit j belongs to plane j, codes < 2**b), scale
    float16 [out, groups, b], offset float16 [out, groups]. planes: uint8 [b, out, ceil(in / 8)]. Raises `UsageError`.
    """

    kind: ClassVar[str] = "bitplanes"
    planes: Tensor
    scale: Tensor
    offset: Tensor
    shape: tuple[int, int]
    group_size: int

    def __init__(self, codes: Tensor, scale: Tensor, offset: Tensor, group_size: int):
        out, in_ = shape = checks.matrix("BitPlanes", "codes", codes)
        check_group_size(in_, group_size, "the matrix")
        count = int(scale.shape[-1]) if scale.ndim == 3 else 0
        if not 1 <= count <= MOST_PLANES:
            raise UsageError(f"BitPlanes: scale must be [out, groups, 1 to {MOST_PLANES} planes], got {list(scale.shape)}")
        checks.expect("BitPlanes", "codes", codes, shape, torch.uint8)
        checks.expect("BitPlanes", "scale", scale, (out, in_ // group_size, count), torch.float16)
        checks.expect("BitPlanes", "offset", offset, (out, in_ // group_size), torch.float16)
        checks.finite("BitPlanes", scale=scale, offset=offset)
        if int(codes.max()) >= 2**count:
            raise UsageError(f"BitPlanes: codes go up to {int(codes.max())}; {count} planes hold at most {2**count - 1}")
        planes = torch.stack([pack((codes >> j) & 1, 1) for j in range(count)])
        self._store(planes=planes, scale=scale, offset=offset, shape=shape, group_size=group_size)

    @property
    def codes(self) -> Tensor:
        """uint8 [out, in]: bit j is plane j."""
        codes = torch.zeros(self.shape, dtype=torch.uint8, device=self.planes.device)
        for j, plane in enumerate(self.planes):
            codes |= unpack(plane, 1, self.shape[1]) << j
        return codes

    def dense(self) -> Tensor:
        out, in_ = self.shape
        total = self.offset.float().unsqueeze(-1).expand(-1, -1, self.group_size)
        for j, plane in enumerate(self.planes):
            beta = unpack(plane, 1, in_).float().view(out, -1, self.group_size)
            total = total + self.scale[..., j, None].float() * beta
        return total.reshape(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"planes": self.planes, "scale": self.scale, "offset": self.offset}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "planes": len(self.planes),
            "group_size": self.group_size,
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "planes", "group_size")
        out, in_ = checks.shape(spec, cls.kind)
        count = checks.whole(spec["planes"], cls.kind, "planes", 1, MOST_PLANES)
        group_size = checks.whole(spec["group_size"], cls.kind, "group_size")
        groups = checks.divides(group_size, in_, cls.kind, "group_size")
        return {
            "planes": ((count, out, packed_width(in_, 1)), torch.uint8),
            "scale": ((out, groups, count), torch.float16),
            "offset": ((out, groups), torch.float16),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, scale=tensors["scale"], offset=tensors["offset"])
        return cls._restore(**tensors, shape=checks.shape(spec, cls.kind), group_size=spec["group_size"])
