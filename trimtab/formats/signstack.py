"""A stack of blocks, each a matrix of signs times magnitudes of low rank; any number of the first ones is a weight by itself.

A block halves, about, what the blocks before it leave over, at little more than one bit per weight. So one file holds the
matrix at every size: whoever opens it takes as many blocks as there is room for (`host.within`). `worth` ranks a block among
those of all matrices of the model, so that the room can be shared out. A block costs 1 + 16 * rank * (1 / out + 1 / in) bits,
and 32 for its worth. Blocks lie one after the other: the beginning of every tensor is the smaller weight.
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

MOST_BLOCKS = 64


@dataclass(frozen=True, eq=False, init=False, repr=False)
class SignStack(Container):
    """w[o, i] = sum over blocks b, in order, of sign[b, o, i] * (left[b] @ right[b])[o, i], in float32.

    Made from negative bool [blocks, out, in] (True: the sign is -1), left float16 [blocks, out, rank], right float16
    [blocks, rank, in], worth float32 [blocks]. signs: uint8 [blocks, out, ceil(in / 8)]. Raises `UsageError`.
    """

    kind: ClassVar[str] = "signstack"
    signs: Tensor
    left: Tensor
    right: Tensor
    worth: Tensor
    shape: tuple[int, int]

    def __init__(self, negative: Tensor, left: Tensor, right: Tensor, worth: Tensor):
        if negative.ndim != 3 or not negative.numel() or not 1 <= len(negative) <= MOST_BLOCKS:
            raise UsageError(f"SignStack: negative must be [1 to {MOST_BLOCKS} blocks, out, in], got {list(negative.shape)}")
        blocks, out, in_ = negative.shape
        rank = int(left.shape[-1]) if left.ndim == 3 else 0
        if not 1 <= rank <= min(out, in_):
            raise UsageError(f"SignStack: left must be [blocks, out, 1 to {min(out, in_)}], got {list(left.shape)}")
        checks.expect("SignStack", "negative", negative, (blocks, out, in_), torch.bool)
        checks.expect("SignStack", "left", left, (blocks, out, rank), torch.float16)
        checks.expect("SignStack", "right", right, (blocks, rank, in_), torch.float16)
        checks.expect("SignStack", "worth", worth, (blocks,), torch.float32)
        checks.finite("SignStack", left=left, right=right, worth=worth)
        signs = torch.stack([pack(plane.to(torch.uint8), 1) for plane in negative])
        self._store(signs=signs, left=left, right=right, worth=worth, shape=(out, in_))

    @property
    def blocks(self) -> int:
        return len(self.signs)

    def dense(self) -> Tensor:
        total = self._block(0)
        for number in range(1, self.blocks):
            total += self._block(number)
        return total

    def first(self, blocks: int) -> "SignStack":
        """The weight that the first blocks are, 1 to all of them; shares memory with this one."""
        if not 1 <= blocks <= self.blocks:
            raise UsageError(f"SignStack: there are 1 to {self.blocks} blocks to take, not {blocks}")
        return self._restore(**{name: tensor[:blocks] for name, tensor in self.tensors().items()}, shape=self.shape)

    def _block(self, number: int) -> Tensor:
        sign = 1.0 - 2.0 * unpack(self.signs[number], 1, self.shape[1]).float()
        return sign.mul_(self.left[number].float() @ self.right[number].float())

    def tensors(self) -> dict[str, Tensor]:
        return {"signs": self.signs, "left": self.left, "right": self.right, "worth": self.worth}

    def spec(self) -> dict[str, Any]:
        return stack_spec(self.shape, self.blocks, int(self.left.shape[-1]))

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "blocks", "rank")
        out, in_ = checks.shape(spec, cls.kind)
        blocks = checks.whole(spec["blocks"], cls.kind, "blocks", 1, MOST_BLOCKS)
        rank = checks.whole(spec["rank"], cls.kind, "rank", 1, min(out, in_))
        return {
            "signs": ((blocks, out, packed_width(in_, 1)), torch.uint8),
            "left": ((blocks, out, rank), torch.float16),
            "right": ((blocks, rank, in_), torch.float16),
            "worth": ((blocks,), torch.float32),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        checks.finite(cls.kind, ModelError, **{name: tensors[name] for name in ("left", "right", "worth")})
        return cls._restore(**tensors, shape=checks.shape(spec, cls.kind))


def stack_spec(shape: tuple[int, int], blocks: int, rank: int) -> dict[str, Any]:
    """The spec of a `SignStack`."""
    return {"kind": SignStack.kind, "shape": [*shape], "blocks": blocks, "rank": rank}
