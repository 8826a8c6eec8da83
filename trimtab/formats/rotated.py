"""A weight behind a rotation of its inputs: y = inner applied to x R.

R = diag(signs) (I (x) H_block) is orthonormal: x R first flips signs, then mixes every block of inputs with a Hadamard
matrix. So W = inner.dense() @ R^T, and the weight to compress into `inner` is W R:

    block = largest_block(in)
    inner = compress(transform(weight, block, signs))      # tensors/hadamard.py; the statistics turn with it: R^T gram R
    Rotated(inner, block, signs)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import ModelError, UsageError
from trimtab.core.kinds import Layout, LinearWeight
from trimtab.formats import checks, nested
from trimtab.formats.container import Container
from trimtab.tensors.hadamard import exists, inverse, largest_block
from trimtab.tensors.packing import pack, packed_width, unpack


@dataclass(frozen=True, eq=False, repr=False)
class Rotated(Container):
    """inner: any weight; block: an order of `tensors.hadamard` that divides in; signs: [in] of +-1, or None for ones.

    signs are held as int8 and stored as uint8 [ceil(in / 8)], a set bit is -1. Raises `UsageError`.
    """

    kind: ClassVar[str] = "rotated"
    inner: LinearWeight
    block: int
    signs: Tensor | None = None
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        in_, block, signs = self.inner.shape[1], self.block, self.signs
        if block < 1 or in_ % block or not exists(block):
            raise UsageError(
                f"Rotated: a block of {block} cannot turn in={in_}: it must divide it and be the order of a "
                f"Hadamard matrix; use {largest_block(in_)}"
            )
        if signs is not None and (tuple(signs.shape) != (in_,) or not bool((signs.abs() == 1).all())):
            raise UsageError(f"Rotated: signs must be [in={in_}] of +1 and -1, got {list(signs.shape)}")
        self._store(signs=None if signs is None else signs.to(torch.int8), shape=self.inner.shape)

    def dense(self) -> Tensor:
        return inverse(self.inner.dense(), self.block, self.signs)

    def tensors(self) -> dict[str, Tensor]:
        signs = {} if self.signs is None else {"signs": pack((self.signs < 0).to(torch.uint8)[None], 1)[0]}
        return {**signs, **nested.tensors([self.inner])}

    def spec(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "block": self.block,
            "signs": self.signs is not None,
            "parts": nested.specs([self.inner]),
        }

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "block", "signs", "parts")
        shape = checks.shape(spec, cls.kind)
        block = checks.whole(spec["block"], cls.kind, "block")
        checks.divides(block, shape[1], cls.kind, "block")
        if not exists(block):
            raise ModelError(f"{cls.kind}: there is no Hadamard matrix of order {block}")
        whole, shapes = nested.layout(cls.kind, spec["parts"], most=1)
        if shapes[0] != shape:
            raise ModelError(f"{cls.kind}: shape is {list(shape)}, its part is {list(shapes[0])}")
        if checks.flag(spec["signs"], cls.kind, "signs"):
            whole["signs"] = ((packed_width(shape[1], 1),), torch.uint8)
        return whole

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        (inner,) = nested.build(spec["parts"], tensors)
        packed = tensors.get("signs")
        signs = None if packed is None else 1 - 2 * unpack(packed[None], 1, inner.shape[1])[0].to(torch.int8)
        return cls(inner, spec["block"], signs)
