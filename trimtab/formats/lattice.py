"""Runs of eight inputs as points of the lattice E8: a codebook of 2^16 vectors that is computed, not stored.

One or two bits per weight and a scale for the whole matrix; more bits are a `Sum` of several, each for what the last one left.
Meant for weights that are close to normally distributed, such as those behind rotations on both sides. Every code there can
be is the code of a point.
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
from trimtab.tensors.lattice import DIM, points


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Lattice(Container):
    """w[o, 8 v + d] = scale * point(codes[o, v])[d], in float32; `tensors.lattice` says which point has which code.

    Made from codes int64 [out, in / 8] below 256^bits, scale float16 [1], bits 1 or 2. A code is stored as `bits` bytes, the
    lower first. Raises `UsageError`.
    """

    kind: ClassVar[str] = "lattice"
    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    code_bits: int

    def __init__(self, codes: Tensor, scale: Tensor, bits: int):
        out, vectors = checks.matrix("Lattice", "codes", codes)
        if bits not in (1, 2):
            raise UsageError(f"Lattice: bits must be 1 or 2, got {bits}; more bits are a sum of several")
        checks.expect("Lattice", "codes", codes, (out, vectors), torch.int64)
        checks.expect("Lattice", "scale", scale, (1,), torch.float16)
        checks.finite("Lattice", scale=scale)
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= 256**bits:
            raise UsageError(f"Lattice: codes go from {low} to {high}; with {bits} bits the largest is {256**bits - 1}")
        parts = [(codes >> (8 * i)) & 255 for i in range(bits)]
        packed = torch.stack(parts, -1).to(torch.uint8).view(out, bits * vectors)
        self._store(packed=packed, scale=scale, shape=(out, DIM * vectors), code_bits=bits)

    @property
    def codes(self) -> Tensor:
        """int64 [out, in / 8]."""
        parts = self.packed.view(self.shape[0], -1, self.code_bits).long()
        return (parts << (8 * torch.arange(self.code_bits, device=parts.device))).sum(-1)

    def dense(self) -> Tensor:
        return (points(self.codes, self.code_bits) * self.scale.float()).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.packed, "scale": self.scale}

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "bits": self.code_bits}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "bits")
        out, in_ = checks.shape(spec, cls.kind)
        bits = checks.whole(spec["bits"], cls.kind, "bits", 1, 2)
        vectors = checks.divides(DIM, in_, cls.kind, "a point's dimension")
        return {"codes": ((out, bits * vectors), torch.uint8), "scale": ((1,), torch.float16)}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, scale=tensors["scale"])
        shape = checks.shape(spec, cls.kind)
        return cls._restore(packed=tensors["codes"], scale=tensors["scale"], shape=shape, code_bits=spec["bits"])
