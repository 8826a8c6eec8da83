"""Integer codes with a scale, and optionally a zero point, for every group of consecutive inputs: w = (code - zero) * scale.

The layout of RTN, GPTQ, AWQ and their kin, and the one that the rest of the ecosystem reads. A code equal to the zero point
is exactly 0, so sparsity survives quantization. Cost: bits + 16 / group_size, and bits / group_size more with zero points.
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
from trimtab.tensors.rounding import Grid


def check_group_size(in_features: int, group_size: int, where: str) -> None:
    """Groups must tile the inputs. Raises `UsageError` naming the place and the nearest sizes that would work."""
    if group_size >= 1 and in_features % group_size == 0:
        return
    sizes = [d for d in range(1, in_features + 1) if in_features % d == 0]
    below = [d for d in sizes if d < group_size][-2:]
    above = [d for d in sizes if d > group_size][:1]
    works = ", ".join(map(str, below + above)) or str(in_features)
    raise UsageError(
        f"groups need in % group_size == 0: {where} has in={in_features}, group_size={group_size}; use one of {works}"
    )


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Grouped(Container):
    """w[o, i] = (codes[o, i] - zero[o, i // group_size]) * scale[o, i // group_size], in float32.

    Made from codes uint8 [out, in], scale float16 [out, groups], zero uint8 [out, groups] or None for the middle,
    2**(bits - 1). Codes and zeros are below 2**bits and are held packed; `codes` and `zero` unpack them.
    scale must be float16 already: codes chosen for an unrounded scale would be the wrong ones. Raises `UsageError`.
    """

    kind: ClassVar[str] = "grouped"
    packed: Tensor
    scale: Tensor
    packed_zero: Tensor | None
    shape: tuple[int, int]
    code_bits: int
    group_size: int

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int):
        out, in_ = shape = checks.matrix("Grouped", "codes", codes)
        check_group_size(in_, group_size, "the matrix")
        checks.expect("Grouped", "codes", codes, shape, torch.uint8)
        checks.expect("Grouped", "scale", scale, (out, in_ // group_size), torch.float16)
        checks.finite("Grouped", scale=scale)
        if zero is not None:
            checks.expect("Grouped", "zero", zero, (out, in_ // group_size), torch.uint8)
        self._store(
            packed=_packed("codes", codes, bits),
            scale=scale,
            packed_zero=None if zero is None else _packed("zero", zero, bits),
            shape=shape,
            code_bits=bits,
            group_size=group_size,
        )

    @classmethod
    def on_grid(cls, grid: Grid, weight: Tensor, symmetric: bool) -> Self:
        """weight [out, groups, group_size], rounded to the nearest points of a grid that was fitted to such groups."""
        out, groups, group_size = weight.shape
        codes = grid.codes(weight).reshape(out, groups * group_size).to(torch.uint8)
        zero = None if symmetric else grid.zero.squeeze(-1).to(torch.uint8)
        return cls(codes, grid.scale.squeeze(-1).half(), zero, grid.bits, group_size)

    @property
    def codes(self) -> Tensor:
        """uint8 [out, in]."""
        return unpack(self.packed, self.code_bits, self.shape[1])

    @property
    def zero(self) -> Tensor | None:
        """uint8 [out, groups], or None if the zero point is 2**(bits - 1) everywhere."""
        if self.packed_zero is None:
            return None
        return unpack(self.packed_zero, self.code_bits, self.shape[1] // self.group_size)

    def dense(self) -> Tensor:
        codes = self.codes.float().view(self.shape[0], -1, self.group_size)
        zero = self.zero
        centre = 2.0 ** (self.code_bits - 1) if zero is None else zero.float().unsqueeze(-1)
        return ((codes - centre) * self.scale.float().unsqueeze(-1)).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        zero = {} if self.packed_zero is None else {"zero": self.packed_zero}
        return {"codes": self.packed, "scale": self.scale, **zero}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "bits": self.code_bits,
            "group_size": self.group_size,
            "symmetric": self.packed_zero is None,
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "bits", "group_size", "symmetric")
        out, in_ = checks.shape(spec, cls.kind)
        bits = checks.whole(spec["bits"], cls.kind, "bits", 2, 8)
        group_size = checks.whole(spec["group_size"], cls.kind, "group_size")
        groups = checks.divides(group_size, in_, cls.kind, "group_size")
        made: Layout = {
            "codes": ((out, packed_width(in_, bits)), torch.uint8),
            "scale": ((out, groups), torch.float16),
        }
        if not checks.flag(spec["symmetric"], cls.kind, "symmetric"):
            made["zero"] = ((out, packed_width(groups, bits)), torch.uint8)
        return made

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, scale=tensors["scale"])
        return cls._restore(
            packed=tensors["codes"],
            scale=tensors["scale"],
            packed_zero=tensors.get("zero"),
            shape=checks.shape(spec, cls.kind),
            code_bits=spec["bits"],
            group_size=spec["group_size"],
        )


def _packed(name: str, codes: Tensor, bits: int) -> Tensor:
    if not 2 <= bits <= 8:
        raise UsageError(f"Grouped: bits must be 2 to 8, got {bits}")
    if int(codes.max()) >= 2**bits:
        raise UsageError(f"Grouped: {name} go up to {int(codes.max())}; with {bits} bits the largest is {2**bits - 1}")
    return pack(codes, bits)
