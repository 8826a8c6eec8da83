"""A rotation as a weight of its own: the factor with which a chain turns outputs, at a bit per channel.

`Rotated` turns the inputs of what it holds. What is to be turned on both sides is

    Chain((Rotation(signs_out, block_out), Rotated(inner, block_in, signs_in)))

and the weight to compress into `inner` is  R_outᵀ W R_in.
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
from trimtab.tensors.hadamard import exists, largest_block, transform
from trimtab.tensors.packing import pack, packed_width, unpack


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Rotation(Container):
    """R = diag(signs) (I (x) H_block), orthonormal. signs: [n] of +-1; block: an order of `tensors.hadamard` that divides n.

    signs are held packed, uint8 [ceil(n / 8)], a set bit is -1. Raises `UsageError`.
    """

    kind: ClassVar[str] = "rotation"
    packed: Tensor
    block: int
    shape: tuple[int, int]

    def __init__(self, signs: Tensor, block: int):
        if signs.ndim != 1 or not len(signs) or not bool((signs.abs() == 1).all()):
            raise UsageError(f"Rotation: signs must be [n] of +1 and -1, got {list(signs.shape)}")
        n = len(signs)
        if block < 1 or n % block or not exists(block):
            raise UsageError(
                f"Rotation: a block of {block} cannot turn {n} channels: it must divide them and be the order of a "
                f"Hadamard matrix; use {largest_block(n)}"
            )
        self._store(packed=pack((signs < 0).to(torch.uint8)[None], 1)[0], block=block, shape=(n, n))

    @property
    def signs(self) -> Tensor:
        """int8 [n] of +-1."""
        return 1 - 2 * unpack(self.packed[None], 1, self.shape[0])[0].to(torch.int8)

    def dense(self) -> Tensor:
        return transform(torch.eye(self.shape[0], device=self.packed.device), self.block, self.signs)

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.packed}

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "block": self.block}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "block")
        out, in_ = checks.shape(spec, cls.kind)
        if out != in_:
            raise ModelError(f"{cls.kind}: a rotation is square, its shape is {[out, in_]}")
        block = checks.whole(spec["block"], cls.kind, "block")
        checks.divides(block, in_, cls.kind, "block")
        if not exists(block):
            raise ModelError(f"{cls.kind}: there is no Hadamard matrix of order {block}")
        return {"signs": ((packed_width(in_, 1),), torch.uint8)}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls._restore(packed=tensors["signs"], block=spec["block"], shape=checks.shape(spec, cls.kind))
