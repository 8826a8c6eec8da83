"""Block-diagonal matrices: square or oblong blocks along the diagonal, zeros everywhere else, of which nothing is stored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from trimtab.core.errors import UsageError
from trimtab.core.kinds import Layout
from trimtab.formats import checks
from trimtab.formats.container import Container
from trimtab.tensors.packing import pack

MOST_BLOCKS = 4096  # the fewer numbers a file holds per weight, the more memory a small file can ask for


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(Container):
    """blocks: [count, out / count, in / count] float64, float32, float16 or bfloat16; count at most 4096. Raises `UsageError`."""

    kind: ClassVar[str] = "block_diagonal"
    blocks: Tensor
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if self.blocks.ndim != 3 or not self.blocks.numel() or len(self.blocks) > MOST_BLOCKS:
            got = list(self.blocks.shape)
            raise UsageError(f"BlockDiagonal: blocks must be [count up to {MOST_BLOCKS}, rows, columns], got {got}")
        checks.dtype_name(self.blocks.dtype, "BlockDiagonal")
        count, rows, columns = self.blocks.shape
        self._store(blocks=self.blocks, shape=(count * rows, count * columns))

    @property
    def bitmap(self) -> Tensor:
        """uint8 [out, ceil(in / 8)] as `Masked` has it; the values that it marks are the blocks as they lie."""
        here = torch.eye(len(self.blocks), dtype=torch.uint8, device=self.blocks.device)
        _, rows, columns = self.blocks.shape
        return pack(here.repeat_interleave(columns, 1), 1).repeat_interleave(rows, 0)

    def dense(self) -> Tensor:
        count, rows, columns = self.blocks.shape
        full = torch.zeros(count, rows, count, columns, device=self.blocks.device)
        along = torch.arange(count, device=self.blocks.device)
        full[along, :, along] = self.blocks.float()
        return full.view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"blocks": self.blocks}

    def spec(self) -> dict[str, Any]:
        dtype = checks.dtype_name(self.blocks.dtype, self.kind)
        return {"kind": self.kind, "shape": list(self.shape), "dtype": dtype, "count": len(self.blocks)}

    @classmethod
    def layout(cls, spec: Mapping[str, Any]) -> Layout:
        checks.fields(spec, cls.kind, "dtype", "count")
        out, in_ = checks.shape(spec, cls.kind)
        count = checks.whole(spec["count"], cls.kind, "count", 1, MOST_BLOCKS)
        rows, columns = (checks.divides(count, width, cls.kind, "count") for width in (out, in_))
        return {"blocks": ((count, rows, columns), checks.dtype(spec["dtype"], cls.kind))}

    @classmethod
    def build(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        checks.match(cls.kind, cls.layout(spec), tensors)
        return cls(tensors["blocks"])
